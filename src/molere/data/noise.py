"""Known label noise: instance-dependent, and by a matrix of transitions between classes.

Every draw is made on the CPU from counter-based generators, so one seed gives the same noise on every machine; keep
it apart from the seed of a training. With `ids` an example's draws belong to its id: its label flips, or not, whatever
other examples are there. The true labels stay with the caller.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from molere.data.imagefiles import ImageFiles
from molere.errors import DataError
from molere.rng import generator

SPREAD = 0.1
"""Standard deviation of the flip probabilities over instances."""
SIDE = 32
"""Images that are larger than 64 pixels are seen by instance-dependent noise at this size."""
BLOCK = 4096
CHUNK = 512

Inputs = Shaped[Tensor, "..."] | ImageFiles


def instance_noise(
    x: Inputs,
    y: Int[Tensor, " n"],
    rate: float,
    classes: int,
    seed: int,
    input_scale: float = 255.0,
    *,
    ids: Int[Tensor, " n"] | None = None,
    side: int = SIDE,
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Labels flipped in dependence on the input, and the flip probabilities (Xia et al. 2020, Algorithm 2).

    q_i ~ N(rate, .1^2) truncated to [0, 1]
    a_i = x_i^T W[y_i],  W[c] [features, classes] of standard normals
    P_i = q_i softmax(a_i without y_i) on the wrong classes, 1 - q_i on y_i;  the new label ~ Categorical(P_i)

    The expected share of flips is E[q]: .1288 for rate .1, .2055 (.2), .3004 (.3), .4000 (.4); rate 0 changes
    nothing. Inputs are brought to 0..input_scale (uint8 images divided by 255 first, floats taken as 0..1);
    at the published 255 the softmax is one-hot: each instance has a single wrong class. Files are
    read at `side` x `side` pixels, so that they get the noise of those pixels in memory; images above 64 x 64 are then
    averaged over areas to 32 x 32.
    """
    _check_rate(rate)
    q = flip_probabilities(len(y), rate, seed, ids=ids)
    noisy = y.clone()
    draws = _uniform(len(y), seed, "noise-label", ids)
    for c in range(classes):
        at = torch.nonzero(y.cpu() == c).flatten()
        if len(at) == 0:
            continue
        chunks = cast(tuple[Tensor, ...], at.split(_chunk(x, len(at))))
        logits = [_projected(_seen(x, chunk, side), classes, seed, c, input_scale) for chunk in chunks]
        p = noisy_probabilities(torch.cat(logits), q[at], c)
        noisy[at.to(y.device)] = _categorical(p, draws[at]).to(y.device)
    return noisy, q


def _chunk(x: Inputs, n: int) -> int:
    return CHUNK if isinstance(x, ImageFiles) or x.shape[1:].numel() > 3 * 64 * 64 else n


def _projected(
    flat: Shaped[Tensor, "m features"], classes: int, seed: int, label: int, scale: float
) -> Float[Tensor, "m c"]:
    """x_i^T W[label] of some examples, x in 0..scale."""
    w = torch.randn(flat.shape[1], classes, generator=generator(seed, "noise-projection", label))
    return flat.double() * (scale / 255 if flat.dtype == torch.uint8 else scale) @ w.double()


def _seen(x: Inputs, at: Int[Tensor, " m"], side: int) -> Shaped[Tensor, "m features"]:
    """The inputs as the noise sees them, one row each."""
    some = x.read(at, side) if isinstance(x, ImageFiles) else x[at.to(x.device)].cpu()
    if some.ndim == 4 and min(some.shape[-2:]) > 2 * SIDE:
        small = F.adaptive_avg_pool2d(some.float(), SIDE)
        some = small.round().to(torch.uint8) if some.dtype == torch.uint8 else small
    return some.flatten(1)


def flip_probabilities(n: int, rate: float, seed: int, *, ids: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
    """q [n] ~ N(rate, .1^2) truncated to [0, 1], by inversion in float64; all 0 for rate 0."""
    if rate == 0:
        return torch.zeros(n, dtype=torch.float64)
    u = _uniform(n, seed, "noise-rate", ids)
    width = SPREAD * math.sqrt(2)
    low, high = math.erf(-rate / width), math.erf((1 - rate) / width)
    return (rate + width * torch.erfinv(low + u * (high - low))).clamp(0, 1)


def noisy_probabilities(logits: Float[Tensor, "n c"], q: Float[Tensor, " n"], label: int) -> Float[Tensor, "n c"]:
    """P [n, c] of the new label for examples of one class: 1 - q stays, q goes by softmax to the others."""
    others = logits.index_fill(1, torch.tensor(label), -torch.inf)
    p = q[:, None] * torch.softmax(others, 1)
    p[:, label] = 1 - q
    return p


def uniform_noise(
    y: Int[Tensor, " n"], rate: float, classes: int, seed: int, *, ids: Int[Tensor, " n"] | None = None
) -> Int[Tensor, " n"]:
    """Each label flipped with probability `rate` to one of the other classes, all equally likely.

    Here `rate` is the true share of flips. `uniform_transition` has the other convention: it draws the new
    label from all classes, the old one included, which flips rate (1 - 1/C) of them.
    """
    _check_rate(rate)
    return transition_noise(y, uniform_transition(rate * classes / (classes - 1), classes), seed, ids=ids)


def transition_noise(
    y: Int[Tensor, " n"], transition: Float[Tensor, "c c"], seed: int, *, ids: Int[Tensor, " n"] | None = None
) -> Int[Tensor, " n"]:
    """New labels ~ Categorical(transition[y_i]); rows of the matrix are true classes and sum to 1."""
    if bool((transition < 0).any()) or not torch.allclose(transition.sum(1), torch.ones(()).to(transition)):
        row = int((transition.sum(1) - 1).abs().argmax())
        given = f"row {row} is {transition[row].tolist()}"
        raise DataError(f"each row of a transition matrix holds probabilities of sum 1; {given}")
    draws = _uniform(len(y), seed, "noise-label", ids)
    rows = transition.double().cpu()
    own = y.cpu()
    chunks = [slice(i, i + (1 << 16)) for i in range(0, len(own), 1 << 16)]  # the rows of all would be N x C
    new = [_categorical(rows[own[some]], draws[some]) for some in chunks]
    return torch.cat([own[:0], *new]).to(y.device)


def uniform_transition(rate: float, classes: int) -> Float[Tensor, "c c"]:
    """(rate / C) 1 1^T + (1 - rate) I, whose true share of flips is rate (1 - 1/C) (Shu et al. 2019)."""
    return torch.full((classes, classes), rate / classes, dtype=torch.float64) + (1 - rate) * _eye(classes)


def flip_transition(rate: float, classes: int, targets: int = 1, seed: int = 1) -> Float[Tensor, "c c"]:
    """1 - rate on the diagonal, rate shared by `targets` other classes of each row (Shu et al. 2019, "flip").

    The targets are drawn by seed. One is the paper's flip, two the "flip2" of its published commands.
    """
    _check_rate(rate)
    if classes <= targets:
        raise DataError(f"flips to {targets} other classes need {targets + 1} classes; there are {classes}")
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


def _uniform(n: int, seed: int, purpose: str, ids: Int[Tensor, " n"] | None) -> Float[Tensor, " n"]:
    """Numbers in [0, 1): the i-th of one stream for position i, or, with ids, the number that belongs to each id."""
    if ids is None:
        return torch.rand(n, generator=generator(seed, purpose), dtype=torch.float64)
    own = ids.cpu()
    draws = torch.empty(n, dtype=torch.float64)
    for block in cast(list[int], torch.unique(own // BLOCK).tolist()):
        inside = own // BLOCK == block
        table = torch.rand(BLOCK, generator=generator(seed, f"{purpose} by id", block), dtype=torch.float64)
        draws[inside] = table[own[inside] % BLOCK]
    return draws


def _categorical(p: Float[Tensor, "n c"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """One draw per row by inversion; a class of probability 0 is never drawn."""
    cumulative = p.cumsum(1)
    return (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(1)


def _eye(classes: int) -> Float[Tensor, "c c"]:
    return torch.eye(classes, dtype=torch.float64)


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise DataError(f"a rate is a share in [0, 1); got {rate}")
