"""Splits of one pool into a training and a validation part: two index tensors, and how a part is drawn or ranked.

`generate_split` is the rule of the learned splitter. Wherever examples are ranked, equal scores are ordered by the
smaller index, and no part drawn here takes the last example of a class away from training.
"""

import logging
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molere.errors import ConfigError, DataError, NumericsError
from molere.losses import TOLERANCE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Positions in the pool that train and that validate, disjoint unless `shared`; none may validate.

    A training part that is `repeated` may name an example several times, which then trains that often in each lap.
    Raises DataError when a part repeats or misnames an example, when training is left without any, or when
    the parts overlap without being shared.
    """

    train: Int[Tensor, " n"]
    val: Int[Tensor, " m"]
    shared: bool = False
    repeated: bool = False

    def __post_init__(self) -> None:
        _check_part("training", self.train, repeated=self.repeated)
        _check_part("validation", self.val)
        if len(self.train) == 0:
            raise DataError("the training part is empty: leave examples to train on, with a smaller delta.")
        trains = _distinct(self.train) if self.repeated else len(self.train)
        both = 0 if self.shared else trains + len(self.val) - _distinct(torch.cat((self.train, self.val)))
        if both:
            raise DataError(
                f"{both} examples are in both parts of the split: remove them from one, or pass shared=True."
            )

    @classmethod
    def of(cls, val: Int[Tensor, " m"], size: int, *, keep: bool = False) -> "Split":
        """Split of a pool of `size` examples with this validation part, sorted; keep: all examples train."""
        val = val.cpu()
        if len(val) and int(val.max()) >= size:
            raise DataError(f"validation example {int(val.max())} is not in the pool: use positions below {size}.")
        _check_part("validation", val)
        trains = torch.ones(size, dtype=torch.bool)
        trains[val] = keep
        return cls(trains.nonzero().flatten(), val.sort().values, shared=keep)

    @property
    def is_empty_val(self) -> bool:
        """Nothing validates, as in ERM on the whole pool."""
        return len(self.val) == 0


@dataclass(frozen=True, slots=True, eq=False)
class SplitDecision:
    """What `generate_split` decided."""

    split: Split | None
    """The new split; when rejected, the previous one (none if there was none)."""
    candidates: int
    """Examples below the threshold, before the cap."""
    rejected: bool
    """Too few examples were left to validate, so the previous split stays."""
    returned: int
    """Examples put back so that no class vanishes from training."""


def part_size(size: int, delta: float) -> int:
    """K = floor(delta * size), how many may validate; ConfigError and DataError for a useless delta."""
    if not 0 < delta < 1:
        raise ConfigError(f"delta={delta} is no share of the pool: use a number between 0 and 1, such as 0.1.")
    k = math.floor(delta * size + TOLERANCE)
    if k == 0:
        least = math.ceil((1 - TOLERANCE) / delta)
        raise DataError(
            f"the validation part is empty: delta={delta} of {size} examples rounds to 0. "
            f"Use at least {least} examples or a larger delta."
        )
    return k


def probabilistic_margin(probs: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """PM = p_y - max_{c != y} p_c in [-1, 1]; negative when misclassified, 0 for a tie (eq. 7)."""
    label = y.unsqueeze(1)
    others = probs.scatter(1, label, -torch.inf).amax(dim=1)
    return probs.gather(1, label).squeeze(1) - others


def lowest(scores: Float[Tensor, " n"], k: int) -> Int[Tensor, " k"]:
    """Indices of the k lowest scores, in the order of (score, index); NumericsError when a score is NaN."""
    if bad := int(scores.isnan().sum()):
        raise NumericsError(
            f"{bad} of {len(scores)} scores are NaN, so examples cannot be ranked: lower the learning rate."
        )
    return scores.detach().cpu().argsort(stable=True)[:k]


def random_part(
    y: Int[Tensor, " n"], delta: float, generator: torch.Generator, stratified: bool = True
) -> Int[Tensor, " m"]:
    """Draw floor(delta * n) examples, in proportion to the classes (largest remainder) or from all alike."""
    order = torch.randperm(len(y), generator=generator)
    return choose(order, y, delta, stratified)


def balanced_part(y: Int[Tensor, " n"], per_class: int, generator: torch.Generator) -> Int[Tensor, " m"]:
    """Draw this many examples of each class, or all but one where a class has no more."""
    y, order = y.cpu(), torch.randperm(len(y), generator=generator)
    seats = (y.bincount() - 1).clamp_max(per_class)
    if len(part := order[_place_in_class(y[order]) < seats[y[order]]]) == 0:
        raise DataError("nothing is left to validate: no class has two examples; use more examples.")
    return part


def generate_split(
    train_probability: Float[Tensor, " n"],
    y: Int[Tensor, " n"],
    delta: float,
    threshold: float = 0.5,
    min_val: int | None = None,
    previous: Split | None = None,
) -> SplitDecision:
    """Learned split: examples with P(train | x, y) < threshold validate, the lowest floor(delta * n) at most.

    Of a class that would vanish from training, the example of highest probability is put back. When fewer
    than `min_val` (default: the number of classes, at least two), or than the whole part where that is smaller, are
    left, the previous split stays.
    """
    k = part_size(len(y), delta)
    least = min(k, max(2, _distinct(y)) if min_val is None else min_val)
    candidates = int((train_probability < threshold).sum())
    chosen = lowest(train_probability, min(candidates, k))
    val = take(chosen, y, k, stratified=False)
    returned = len(chosen) - len(val)
    if returned:
        logger.info("put %d examples back into training: their classes would have vanished from it", returned)
    if len(val) < least:
        logger.info("split rejected: %d validation examples of at most %d, %d are needed", len(val), k, least)
        return SplitDecision(previous, candidates, True, returned)
    return SplitDecision(Split.of(val, len(y)), candidates, False, returned)


def churn(previous_val: Int[Tensor, " m"], val: Int[Tensor, " k"], size: int | None = None) -> float:
    """|symmetric difference| / K of successive validation parts; K = `size`, by default the larger part's."""
    union = _distinct(torch.cat((previous_val, val)))
    common = len(previous_val) + len(val) - union
    return (union - common) / max(1, size or max(len(previous_val), len(val)))


def _check_part(name: str, part: Tensor, *, repeated: bool = False) -> None:
    if part.dtype != torch.int64 or part.ndim != 1:
        raise DataError(f"the {name} part is {part.dtype} of {tuple(part.shape)}: pass flat int64 positions.")
    if len(part) and int(part.min()) < 0:
        raise DataError(f"the {name} part contains position {int(part.min())}: use positions from 0 on.")
    if not repeated and (again := len(part) - _distinct(part)):
        raise DataError(f"the {name} part names {again} examples more than once: name each once.")


def _distinct(values: Tensor) -> int:
    return len(values) and int(values.sort().values.diff().count_nonzero()) + 1


def choose(order: Int[Tensor, " n"], y: Int[Tensor, " N"], delta: float, stratified: bool) -> Int[Tensor, " m"]:
    """The first floor(delta N) of `order` as `take` takes them; DataError where that is nothing."""
    if len(part := take(order, y, part_size(len(y), delta), stratified)) == 0:
        raise DataError("nothing is left to validate: use more examples, less trim or negative_only=false.")
    return part


def take(order: Int[Tensor, " n"], y: Int[Tensor, " N"], k: int, stratified: bool) -> Int[Tensor, " m"]:
    """The first k of `order`, best candidate first, such that one example of each class stays out of it."""
    y = y.cpu()
    counts = y.bincount()
    seats = _seats(order, y, counts, k) if stratified else counts - 1
    return order[_place_in_class(y[order]) < seats[y[order]]][:k]


def _place_in_class(y: Tensor) -> Tensor:
    """How many examples of the same class come before each."""
    by_class = y.argsort(stable=True)
    counts = y.bincount()
    place = torch.empty_like(y)
    place[by_class] = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[by_class]]
    return place


def _seats(order: Tensor, y: Tensor, counts: Tensor, k: int) -> Tensor:
    """Seats for the classes by largest remainder, fewer than members; ties: the class that comes first."""
    size, total = [int(n) for n in counts], len(y)
    seats = [k * n // total for n in size]
    ranked = [int(c) for c in y[order][_place_in_class(y[order]) == 0]]  # in the order of their first example
    while sum(seats) < k and (room := [c for c in ranked if seats[c] < size[c] - 1]):
        seats[max(room, key=lambda c: k * size[c] - total * seats[c])] += 1
    return torch.tensor(seats)
