"""Controls: delete the part that LRW would validate on, or weight cross-fitted errors up by a constant.

Holding a part out for validation also deletes it from training. `Drop` does only that, so that a gain or loss of LRW
can be told from the gain or loss of the deletion. `Upweight` is the plainest use of hardness: w_i = factor if an ERM
model that did not see example i misclassifies it, else 1, over the mean.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from molere.data.pool import Batch
from molere.fields import check_fields
from molere.holdouts import Holdout, Random
from molere.method import Method, Run
from molere.networks import mean_one
from molere.split import Split
from molere.steps import Taken


@dataclass
class DropState:
    """The part that was deleted."""

    part: Tensor


@dataclass(frozen=True, kw_only=True)
class Drop(Method[DropState]):
    """ERM without a part of the pool: random, easiest or hardest."""

    holdout: Holdout = Random()
    """Which part is deleted."""
    delta: Annotated[float, Interval(gt=0, le=0.5)] = 0.1
    """Its share of the pool."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> DropState:
        """Find the part, which may take scouts."""
        return DropState(self.holdout(run, self.delta).val)

    def split(self, run: Run, state: DropState) -> Split:
        """The rest trains."""
        return Split.of(state.part, len(run.pool))

    def step(self, run: Run, state: DropState, batch: Batch) -> Taken:
        """One update on the plain mean."""
        return run.update(run.forward(batch))


@dataclass
class UpweightState:
    """The weights of the pool, mean 1."""

    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class Upweight(Method[UpweightState]):
    """ERM with the errors of cross-fitted models weighted up."""

    factor: Annotated[float, Gt(0)] = 5.0
    """Weight of an error over that of a correct example."""
    folds: Annotated[int, Ge(2)] = 5
    """Models of the cross-fit."""
    epochs: Annotated[float, Gt(0)] = 0.5
    """Length of their trainings, as a share of the run's."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> UpweightState:
        """Weights from out-of-fold margins (eq. 7): an error is a margin below 0."""
        wrong = run.margins("crossfit", folds=self.folds, epochs=self.epochs) < 0
        return UpweightState(mean_one(torch.where(wrong, self.factor, 1.0)))

    def split(self, run: Run, state: UpweightState) -> Split:
        """The whole pool trains, nothing validates."""
        return Split.of(torch.empty(0, dtype=torch.int64), len(run.pool))

    def step(self, run: Run, state: UpweightState, batch: Batch) -> Taken:
        """One update on the fixed weights."""
        return run.update(run.forward(batch), state.weights[batch.index])
