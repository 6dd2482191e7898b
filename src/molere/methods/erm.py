"""ERM: empirical risk minimisation, every example with weight 1, on the whole pool.

theta <- theta - lr grad (1/n) sum_i l_i(theta). The baseline of every comparison.
"""

from dataclasses import dataclass

import torch

from molere.data.pool import Batch
from molere.method import Method, Run
from molere.split import Split
from molere.steps import Taken


@dataclass(frozen=True, kw_only=True)
class ERM(Method[None]):
    """Plain training; what a user would otherwise do."""

    def init(self, run: Run) -> None:
        """Nothing to remember."""

    def split(self, run: Run, state: None) -> Split:
        """The whole pool trains, nothing validates."""
        return Split.of(torch.empty(0, dtype=torch.int64), len(run.pool))

    def step(self, run: Run, state: None, batch: Batch) -> Taken:
        """One update on the plain mean."""
        return run.update(run.forward(batch))
