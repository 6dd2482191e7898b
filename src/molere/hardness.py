"""Hardness scores: ranks, their mean over neighbours, and a score that finds hidden groups, not wrong labels.

Early losses rank mislabelled and ambiguous examples highest. Averaging the ranks over the neighbours in
feature space makes an example hard only if its region is, and ranking that within the predicted class removes
classes that are hard as a whole. Nothing here trains anything.
"""

import logging

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molere.errors import DataError, NumericsError
from molere.split import lowest, part_size

_BLOCK = 2**24
"""Distances held at a time (64 MiB of float32)."""

_MANY = 100_000
"""Examples from which the search for neighbours is worth a warning."""

logger = logging.getLogger(__name__)


def rank01(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ranks scaled to [0, 1], lowest value 0; equal values share their mean rank, a single value gets 0.5."""
    if bad := int((~values.isfinite()).sum()):
        raise NumericsError(
            f"{bad} of {len(values)} values are not finite and cannot be ranked: lower the learning rate."
        )
    if len(values) == 1:
        return torch.full_like(values, 0.5)
    ordered = values.sort().values
    below, upto = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    rank = (below + upto - 1).double() / 2
    return (rank / max(1, len(values) - 1)).to(values.dtype)


def neighbour_mean(
    features: Float[Tensor, "n d"], values: Float[Tensor, " n"], k: int = 10, chunk: int | None = None
) -> Float[Tensor, " n"]:
    """Mean of `values` over the k nearest other examples (Euclidean, exact, `chunk` rows at a time).

    The example itself is left out by its index, so copies of it count. Where examples tie for the last place
    they share it, so the result does not depend on their order. With fewer than k others, all of them count.
    """
    n = len(features)
    if n > _MANY:
        logger.warning("exact neighbours of %d examples: %.1e distances, minutes to hours on a CPU", n, float(n) ** 2)
    if n < 2:
        raise DataError(f"neighbours of {n} example: use at least 2 examples.")
    if bad := int((~features.isfinite()).any(dim=1).sum()):
        raise NumericsError(f"the features of {bad} of {n} examples are not finite: lower the learning rate.")
    centred = features.float() - features.float().mean(dim=0)  # shorter vectors, so less cancellation in the distances
    rows = chunk or max(1, _BLOCK // n)
    parts = [
        _block_mean(centred, values.double(), start, min(start + rows, n), min(k, n - 1)) for start in range(0, n, rows)
    ]
    return torch.cat(parts).to(values.dtype)


def smr_score(
    mean_losses: Float[Tensor, " n"],
    features: Float[Tensor, "n d"],
    predicted: Int[Tensor, " n"],
    k: int = 10,
    min_members: int = 6,
) -> Float[Tensor, " n"]:
    """Smoothed early hardness in [0, 1]: rank, within the predicted class, of the neighbours' mean loss rank.

    `mean_losses` are means of each example's loss over the epochs of a warm-up, `features` the penultimate
    ones. Predicted classes with fewer than `min_members` examples get 0.5. An example's own label and loss
    play no part in its score.
    """
    smooth = neighbour_mean(features, rank01(mean_losses.double()), k).float()  # equal sums stay equal
    score = torch.full_like(smooth, 0.5)
    for c in range(int(predicted.max()) + 1):
        members = (predicted == c).nonzero().flatten()
        if len(members) >= min_members:
            score[members] = rank01(smooth[members])
    return score


def static_weights(score: Float[Tensor, " n"], c: float) -> Float[Tensor, " n"]:
    """w_i = exp(c (2 score_i - 1)) / mean: mean 1, and no ratio above exp(2c) for scores in [0, 1]."""
    weights = (c * (2 * score - 1)).exp()
    return weights / weights.mean()


def hardest_share(score: Float[Tensor, " n"], delta: float) -> Int[Tensor, " m"]:
    """Indices of the floor(delta * n) highest scores, hardest first; of equal ones those of smaller index."""
    return lowest(-score, part_size(len(score), delta))


def _block_mean(features: Tensor, values: Tensor, start: int, stop: int, k: int) -> Tensor:
    distance = torch.cdist(features[start:stop], features)
    row = torch.arange(stop - start, device=features.device)
    distance[row, row + start] = torch.inf
    near = distance.topk(k + 1, dim=1, largest=False)  # one more, to see ties for the last place; itself comes last
    mean = values[near.indices[:, :k]].mean(dim=1)
    tied = (near.values[:, k] == near.values[:, k - 1]).nonzero().flatten()
    for part in range(0, len(tied), 256):
        i = tied[part : part + 256]
        mean[i] = _shared_mean(distance[i], values, near.values[i, k - 1 : k], k)
    return mean


def _shared_mean(distance: Tensor, values: Tensor, last: Tensor, k: int) -> Tensor:
    """Mean over the k nearest; all examples at distance `last` share the places that closer ones leave."""
    closer, level = (distance < last).double(), (distance == last).double()
    places = k - closer.sum(dim=1)
    return (closer @ values + places * (level @ values) / level.sum(dim=1)) / k
