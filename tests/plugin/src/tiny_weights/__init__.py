"""A method in a package of its own: molere finds it by the entry point in pyproject.toml."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from molere import Batch, Method, Run, Split
from molere.equations import mean_one
from molere.fields import check_fields
from molere.steps import Taken


@dataclass
class ByClassState:
    """What changes in a run: nothing, but a state holds tables."""

    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class ByClass(Method[ByClassState]):
    """Weights by the frequency of an example's label, to a negative power."""

    power: Annotated[float, Ge(0)] = 1.0
    """0: equal weights; 1: every class counts the same."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> ByClassState:
        """Count the labels."""
        counts = run.pool.y.bincount()[run.pool.y].float()
        return ByClassState(mean_one(counts**-self.power))

    def split(self, run: Run, state: ByClassState) -> Split:
        """The whole pool trains."""
        return Split.of(torch.arange(0), len(run.pool))

    def step(self, run: Run, state: ByClassState, batch: Batch) -> Taken:
        """One update."""
        return run.update(run.forward(batch), state.weights[batch.index])
