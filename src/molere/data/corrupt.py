"""Known corruptions, as functions from labels to labels or positions: noise, long tails, rare groups.

Every draw is made on the CPU from counter-based generators, so one seed gives the same corruption on every
machine; keep it apart from the seed of a training. The true labels stay with the caller.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from molere.errors import DataError
from molere.rng import generator

SPREAD = 0.1  # standard deviation of the flip probabilities over instances


def instance_noise(
    x: Shaped[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    rate: float,
    classes: int,
    seed: int,
    input_scale: float = 255.0,
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Labels flipped in dependence on the input, and the flip probabilities (Xia et al. 2020, Algorithm 2).

    q_i ~ N(rate, .1^2) truncated to [0, 1]
    a_i = x_i^T W[y_i],  W[c] [features, classes] of standard normals
    P_i = q_i softmax(a_i without y_i) on the wrong classes, 1 - q_i on y_i;  the new label ~ Categorical(P_i)

    The expected share of flips is E[q]: .1288 for rate .1, .2055 (.2), .3004 (.3), .4000 (.4); rate 0 changes
    nothing. Inputs are brought to 0..input_scale (uint8 images divided by 255 first, floats taken as 0..1);
    at the published 255 the softmax is one-hot: each instance has a single wrong class.
    """
    _check_rate(rate)
    q = flip_probabilities(len(y), rate, seed)
    noisy = y.clone()
    draws = torch.rand(len(y), generator=generator(seed, "noise-label"), dtype=torch.float64)
    flat = x.cpu().flatten(1)
    scale = input_scale / 255 if x.dtype == torch.uint8 else input_scale
    for c in range(classes):
        at = torch.nonzero(y.cpu() == c).flatten()
        w = torch.randn(flat.shape[1], classes, generator=generator(seed, "noise-projection", c))
        p = noisy_probabilities(flat[at].double() * scale @ w.double(), q[at], c)
        noisy[at.to(y.device)] = _categorical(p, draws[at]).to(y.device)
    return noisy, q


def flip_probabilities(n: int, rate: float, seed: int) -> Float[Tensor, " n"]:
    """q [n] ~ N(rate, .1^2) truncated to [0, 1], by inversion in float64; all 0 for rate 0."""
    if rate == 0:
        return torch.zeros(n, dtype=torch.float64)
    u = torch.rand(n, generator=generator(seed, "noise-rate"), dtype=torch.float64)
    width = SPREAD * math.sqrt(2)
    low, high = math.erf(-rate / width), math.erf((1 - rate) / width)
    return (rate + width * torch.erfinv(low + u * (high - low))).clamp(0, 1)


def noisy_probabilities(logits: Float[Tensor, "n c"], q: Float[Tensor, " n"], label: int) -> Float[Tensor, "n c"]:
    """P [n, c] of the new label for examples of one class: 1 - q stays, q goes by softmax to the others."""
    others = logits.index_fill(1, torch.tensor(label), -torch.inf)
    p = q[:, None] * torch.softmax(others, 1)
    p[:, label] = 1 - q
    return p


def uniform_noise(y: Int[Tensor, " n"], rate: float, classes: int, seed: int) -> Int[Tensor, " n"]:
    """Each label flipped with probability `rate` to one of the other classes, all equally likely.

    Here `rate` is the true share of flips. `uniform_transition` has the other convention: it draws the new
    label from all classes, the old one included, which flips rate (1 - 1/C) of them.
    """
    _check_rate(rate)
    return transition_noise(y, uniform_transition(rate * classes / (classes - 1), classes), seed)


def transition_noise(y: Int[Tensor, " n"], transition: Float[Tensor, "c c"], seed: int) -> Int[Tensor, " n"]:
    """New labels ~ Categorical(transition[y_i]); rows of the matrix are true classes and sum to 1."""
    if bool((transition < 0).any()) or not torch.allclose(transition.sum(1), torch.ones(()).to(transition)):
        row = int((transition.sum(1) - 1).abs().argmax())
        given = f"row {row} is {transition[row].tolist()}"
        raise DataError(f"each row of a transition matrix holds probabilities of sum 1; {given}")
    draws = torch.rand(len(y), generator=generator(seed, "noise-label"), dtype=torch.float64)
    return _categorical(transition.double().cpu()[y.cpu()], draws).to(y.device)


def uniform_transition(rate: float, classes: int) -> Float[Tensor, "c c"]:
    """(rate / C) 1 1^T + (1 - rate) I, whose true share of flips is rate (1 - 1/C) (Shu et al. 2019)."""
    return torch.full((classes, classes), rate / classes, dtype=torch.float64) + (1 - rate) * _eye(classes)


def flip_transition(rate: float, classes: int, targets: int = 1, seed: int = 1) -> Float[Tensor, "c c"]:
    """1 - rate on the diagonal, rate shared by `targets` other classes of each row (Shu et al. 2019, "flip").

    The targets are drawn by seed. One is the paper's flip, two the "flip2" of its published commands.
    """
    _check_rate(rate)
    matrix = (1 - rate) * _eye(classes)
    for c in range(classes):
        order = torch.randperm(classes - 1, generator=generator(seed, "flip-targets", c))[:targets]
        matrix[c, order + (order >= c)] = rate / targets
    return matrix


def sibling_transition(rate: float, groups: Sequence[int]) -> Float[Tensor, "c c"]:
    """1 - rate on the diagonal, rate spread over the other classes of the group (of a superclass)."""
    _check_rate(rate)
    group = torch.as_tensor(groups)
    siblings = (group[:, None] == group).double() - _eye(len(group))
    if bool((siblings.sum(1) == 0).any()):
        alone = int((siblings.sum(1) == 0).int().argmax())
        raise DataError(f"class {alone} has no sibling; put at least two classes in each group")
    return (1 - rate) * _eye(len(group)) + rate * siblings / siblings.sum(1, keepdim=True)


def long_tail(
    y: Int[Tensor, " n"], factor: float, classes: int, n_max: int | None = None, *, seed: int | None = None
) -> Int[Tensor, " kept"]:
    """Positions kept: floor(n_max factor^(-c / (C - 1))) examples of class c, at least 1 (Cui et al. 2019).

    Class 0 is the largest. n_max None: the size of the smallest class, so that every class has enough. The
    first ones in order are kept, or, with a seed, random ones.
    """
    if factor < 1:
        raise DataError(f"long-tail factor is largest class / smallest class, 1 or more; got {factor}")
    sizes = cast(list[int], torch.bincount(y, minlength=classes).tolist())
    wanted = tail_sizes(factor, classes, min(sizes) if n_max is None else n_max)
    for c, (size, need) in enumerate(zip(sizes, wanted, strict=True)):
        if size < need:
            raise DataError(f"class {c} has {size} examples, its long-tail size is {need}; lower n_max={n_max}")
    order = _shuffled(len(y), seed, "long-tail")
    kept = [order[y.cpu()[order] == c][:need] for c, need in enumerate(wanted)]
    return torch.cat(kept).sort().values


def tail_sizes(factor: float, classes: int, n_max: int) -> list[int]:
    """floor(n_max factor^(-c / (C - 1))) for c = 0..C-1, with a guard for powers just short of a whole."""
    return [max(1, int(n_max * factor ** (-c / (classes - 1)) + 1e-6)) for c in range(classes)]


def rare_group(y: Int[Tensor, " n"], share: float, seed: int) -> Bool[Tensor, " n"]:
    """Marks round(share n) examples, the same share of each class as nearly as can be."""
    _check_rate(share)
    mask = torch.zeros(len(y), dtype=torch.bool)
    mask[stratified_subset(y, round(share * len(y)), seed)] = True
    return mask.to(y.device)


def rotate90(x: Shaped[Tensor, "n c h w"], mask: Bool[Tensor, " n"]) -> Shaped[Tensor, "n c h w"]:
    """A copy of the images with the marked ones turned by 90 degrees, anticlockwise."""
    if x.shape[-1] != x.shape[-2]:
        raise DataError(f"only square images can be turned by 90 degrees; got shape {list(x.shape)}")
    turned = x.clone()
    turned[mask] = torch.rot90(x[mask], 1, (-2, -1))
    return turned


def corner_patch(x: Shaped[Tensor, "n c h w"], right: Bool[Tensor, " n"]) -> Shaped[Tensor, "n c h w"]:
    """A copy of the images with a bright square in the upper right corner (marked) or the upper left one."""
    side = max(2, x.shape[-1] // 8)
    bright = 255 if x.dtype == torch.uint8 else 1.0
    patched = x.clone()
    patched[right, :, :side, -side:] = bright
    patched[~right, :, :side, :side] = bright
    return patched


def stratified_subset(y: Int[Tensor, " n"], n: int, seed: int) -> Int[Tensor, " m"]:
    """Positions, in order, of n random examples; each class has its share of y, to within one example."""
    if not 0 <= n <= len(y):
        raise DataError(f"cannot take {n} of {len(y)} examples; ask for 0..{len(y)}")
    counts = torch.bincount(y.cpu())
    exact = counts.double() * n / max(1, len(y))
    take = exact.floor().long()
    ties = torch.rand(len(counts), generator=generator(seed, "subset-ties"), dtype=torch.float64)
    largest = torch.argsort((exact - take) + 1e-6 * ties, descending=True)[: n - int(take.sum())]
    take[largest] += 1
    order = _shuffled(len(y), seed, "subset")
    kept = [order[y.cpu()[order] == c][:k] for c, k in enumerate(cast(list[int], take.tolist()))]
    return torch.cat([*kept, order[:0]]).sort().values


def stratified_split(y: Int[Tensor, " n"], n: int, seed: int) -> tuple[Int[Tensor, " rest"], Int[Tensor, " m"]]:
    """Positions of all others, and of n random examples with the class shares of y; each in order."""
    part = stratified_subset(y, n, seed)
    rest = torch.ones(len(y), dtype=torch.bool).index_fill_(0, part, False)
    return torch.nonzero(rest).flatten(), part


def _categorical(p: Float[Tensor, "n c"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """One draw per row by inversion; a class of probability 0 is never drawn."""
    cumulative = p.cumsum(1)
    return (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(1)


def _shuffled(n: int, seed: int | None, purpose: str) -> Int[Tensor, " n"]:
    return torch.arange(n) if seed is None else torch.randperm(n, generator=generator(seed, purpose))


def _eye(classes: int) -> Float[Tensor, "c c"]:
    return torch.eye(classes, dtype=torch.float64)


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise DataError(f"a rate is a share in [0, 1); got {rate}")
