"""Known corruptions of what is there, as functions of images, labels and positions: long tails, rare groups, turns.

Every draw is made on the CPU from counter-based generators, so one seed gives the same corruption on every
machine; keep it apart from the seed of a training. The true labels stay with the caller.
"""

import math
from typing import cast

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from molere.data.imagefiles import ImageFiles
from molere.errors import DataError
from molere.rng import generator

Images = Shaped[Tensor, "..."] | ImageFiles


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
    return _first_of_each(order, y.cpu(), torch.tensor(wanted)).sort().values


def tail_sizes(factor: float, classes: int, n_max: int) -> list[int]:
    """floor(n_max factor^(-c / (C - 1))) for c = 0..C-1, with a guard for powers just short of a whole."""
    return [max(1, int(n_max * factor ** (-c / (classes - 1)) + 1e-6)) for c in range(classes)]


def rare_group(y: Int[Tensor, " n"], share: float, seed: int) -> Bool[Tensor, " n"]:
    """Marks round(share n) examples, the same share of each class as nearly as can be."""
    _check_share(share)
    mask = torch.zeros(len(y), dtype=torch.bool)
    mask[stratified_subset(y, round(share * len(y)), seed)] = True
    return mask.to(y.device)


def turned(x: Images, mask: Bool[Tensor, " n"], degrees: int = 90) -> Images:
    """A copy of the images with the marked ones turned anticlockwise, by less than 360 degrees.

    Multiples of 90 are exact; by other angles pixels are interpolated, and corners become black.
    """
    if isinstance(x, ImageFiles):
        return x.turn(torch.where(mask.cpu(), degrees, 0))
    if x.ndim != 4 or (degrees % 180 == 90 and x.shape[-1] != x.shape[-2]):
        kind = "images" if x.ndim != 4 else "square images"
        raise DataError(f"only {kind} can be turned by {degrees} degrees; got shape {list(x.shape)}")
    copy = x.clone()
    copy[mask] = _rotation(x[mask], degrees)
    return copy


def _rotation(x: Shaped[Tensor, "n c h w"], degrees: int) -> Shaped[Tensor, "n c h w"]:
    if degrees % 90 == 0:
        return torch.rot90(x, degrees // 90, (-2, -1))
    angle = torch.tensor(math.radians(degrees), dtype=torch.float64)
    high, wide = x.shape[-2:]
    cos, sin, ratio = angle.cos(), angle.sin(), high / wide
    matrix = torch.stack([cos, -sin * ratio, 0 * cos, sin / ratio, cos, 0 * cos]).view(1, 2, 3).float()
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    values = F.grid_sample(x.float(), grid, mode="bilinear", align_corners=False)
    return values.round().to(x.dtype) if x.dtype == torch.uint8 else values.to(x.dtype)


def corner_patch(x: Images, right: Bool[Tensor, " n"]) -> Images:
    """A copy of the images with a bright square in the upper right corner (marked) or the upper left one."""
    if isinstance(x, ImageFiles):
        return x.with_patch(right)
    if x.ndim != 4:
        raise DataError(f"only images can have a corner patch; got shape {list(x.shape)}")
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
    return _first_of_each(order, y.cpu(), take).sort().values


def stratified_split(y: Int[Tensor, " n"], n: int, seed: int) -> tuple[Int[Tensor, " rest"], Int[Tensor, " m"]]:
    """Positions of all others, and of n random examples with the class shares of y; each in order."""
    part = stratified_subset(y, n, seed)
    rest = torch.ones(len(y), dtype=torch.bool).index_fill_(0, part, False)
    return torch.nonzero(rest).flatten(), part


def _first_of_each(order: Int[Tensor, " n"], y: Int[Tensor, " n"], take: Int[Tensor, " c"]) -> Int[Tensor, " m"]:
    """The first take[c] positions of each class c in an order of the examples; one sort, however many classes."""
    labels = y[order]
    by_class = labels.argsort(stable=True)
    ranked, counts = labels[by_class], torch.bincount(labels, minlength=len(take))
    place = torch.arange(len(y)) - (counts.cumsum(0) - counts)[ranked]
    return order[by_class[place < take[ranked]]]


def _shuffled(n: int, seed: int | None, purpose: str) -> Int[Tensor, " n"]:
    return torch.arange(n) if seed is None else torch.randperm(n, generator=generator(seed, purpose))


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise DataError(f"a share is in [0, 1]; got {share}")
