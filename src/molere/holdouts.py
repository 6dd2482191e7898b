"""Holdouts: rules that choose which examples of a run's pool validate, before its first update.

No rule but `Given` takes the last example of a class away from training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Int
from torch import Tensor

from molere.errors import DataError
from molere.losses import TOLERANCE
from molere.split import Split, balanced_part, choose, lowest, part_size, random_part, take

if TYPE_CHECKING:
    from molere.method import Run


@runtime_checkable
class Holdout(Protocol):
    """A rule that chooses which share delta of a run's pool validates."""

    def __call__(self, run: "Run", delta: float) -> Split:
        """The split with the rule's validation part; the rest of the pool trains."""
        ...


@dataclass(frozen=True)
class Random:
    """A random part, by default in proportion to the classes."""

    stratified: bool = True
    """In proportion to the classes, or else any examples."""
    per_class: Annotated[int, Ge(1)] | None = None
    """This many examples of each class, whatever delta says."""

    def part(self, run: "Run", delta: float) -> Int[Tensor, " m"]:
        """Positions that validate, drawn from the run's own stream."""
        if self.per_class is not None:
            return balanced_part(run.pool.y, self.per_class, run.rng("holdout"))
        return random_part(run.pool.y, delta, run.rng("holdout"), self.stratified)

    def __call__(self, run: "Run", delta: float) -> Split:
        return Split.of(self.part(run, delta), len(run.pool))


@dataclass(frozen=True)
class Clean:
    """A random part of the examples whose labels are known to be right, in proportion to their classes.

    The meta set of the publications on label noise. Known are they where the pool has `clean_y` beside `y`.
    """

    per_class: Annotated[int, Ge(1)] | None = None
    """This many examples of each class, whatever delta says."""

    def part(self, run: "Run", delta: float) -> Int[Tensor, " m"]:
        """Positions that validate; DataError where right labels are not known, or too few are."""
        right, draws = _right(run), run.rng("holdout")
        y = run.pool.y.cpu()[right]
        if self.per_class is not None:
            return right[balanced_part(y, self.per_class, draws)]
        k = part_size(len(run.pool), delta)
        part = right[take(torch.randperm(len(y), generator=draws), y, min(k, len(y) - 1), stratified=True)]
        if len(part) < k:
            raise DataError(f"{k} are to validate and {len(part)} labels to spare are right: use a smaller delta.")
        return part

    def __call__(self, run: "Run", delta: float) -> Split:
        return Split.of(self.part(run, delta), len(run.pool))


def _note_unseen(run: "Run", rule: "Easiest | Hardest", part: Tensor) -> None:
    """Log which share of a part the scout had not trained on, a tenth by chance: its margins there are not inflated."""
    if rule.margins == "scout":
        run.log(validation_unseen_by_scout=float(torch.isin(part, run.scout_part).float().mean()))


@dataclass(frozen=True)
class Easiest:
    """The examples of largest margin under a first model (the train-twice heuristic, Easy)."""

    margins: Literal["crossfit", "scout"] = "crossfit"
    """crossfit: margins from models that did not see the example; scout: one ERM model of a random part."""
    folds: Annotated[int, Ge(2)] = 5
    """Models of a cross-fit."""
    epochs: Annotated[float, Gt(0)] = 0.5
    """Length of a first-stage training, as a share of the run's."""
    stratified: bool = False
    """Take each class's share of the part from its own ranking."""

    def part(self, run: "Run", delta: float) -> Int[Tensor, " m"]:
        """Positions that validate, easiest first."""
        margins = run.margins(self.margins, folds=self.folds, epochs=self.epochs)
        run.note(holdout_margin=margins)
        fine = run.rankable(margins).cpu()
        part = choose(fine[lowest(-margins.cpu()[fine], len(fine))], run.pool.y, delta, self.stratified)
        _note_unseen(run, self, part)
        return part

    def __call__(self, run: "Run", delta: float) -> Split:
        return Split.of(self.part(run, delta), len(run.pool))


@dataclass(frozen=True)
class Hardest:
    """The examples of smallest margin under a first model (the train-twice heuristic, Hard).

    Under label noise most of them are mislabelled; `trim` then leaves out the very lowest.
    """

    margins: Literal["crossfit", "scout"] = "crossfit"
    """crossfit: margins from models that did not see the example; scout: one ERM model of a random part."""
    folds: Annotated[int, Ge(2)] = 5
    """Models of a cross-fit."""
    epochs: Annotated[float, Gt(0)] = 0.5
    """Length of a first-stage training, as a share of the run's."""
    stratified: bool = False
    """Take each class's share of the part from its own ranking."""
    negative_only: bool = False
    """Only misclassified examples validate, perhaps fewer than delta of the pool (variant 3 of appendix F)."""
    trim: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of the pool, of lowest margin, that never validates."""

    def part(self, run: "Run", delta: float) -> Int[Tensor, " m"]:
        """Positions that validate, hardest first; DataError when no example qualifies."""
        margins = run.margins(self.margins, folds=self.folds, epochs=self.epochs)
        run.note(holdout_margin=margins)
        fine = run.rankable(margins).cpu()
        order = fine[lowest(margins.cpu()[fine], len(fine))][math.floor(self.trim * len(margins) + TOLERANCE) :]
        if self.negative_only:
            order = order[margins.cpu()[order] < 0]
        part = choose(order, run.pool.y, delta, self.stratified)
        _note_unseen(run, self, part)
        return part

    def __call__(self, run: "Run", delta: float) -> Split:
        return Split.of(self.part(run, delta), len(run.pool))


@dataclass(frozen=True, eq=False)
class Given:
    """Examples named by their position in the pool, or by the data; delta plays no part."""

    index: Sequence[int] | Int[Tensor, " m"] | None = None
    """The positions; none: the examples that the data were given to validate on (data.val_root)."""

    def part(self, run: "Run", delta: float) -> Int[Tensor, " m"]:
        """Positions that validate, as given; DataError where neither the method nor the data name any."""
        index = getattr(run.pool, "validation", None) if self.index is None else self.index
        if index is None:
            raise DataError("holdout=given: these data name no examples to validate on; give some with --val-root PATH")
        return torch.as_tensor(index, dtype=torch.int64).cpu()

    def __call__(self, run: "Run", delta: float) -> Split:
        return Split.of(self.part(run, delta), len(run.pool))


def _right(run: "Run") -> Int[Tensor, " k"]:
    """Positions of the examples whose label is known to be right."""
    if run.pool.clean_y is None:
        raise DataError("holdout=clean needs true labels and these data have none: pass clean_y or holdout=random.")
    right = (run.pool.clean_y == run.pool.y).nonzero().flatten().cpu()
    if len(right) == 0:
        raise DataError("holdout=clean: no label equals clean_y; check that both are of the same examples.")
    return right
