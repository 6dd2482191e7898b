"""JTT: just train twice; what an early-stopped ERM model gets wrong counts more in the second training.

Source: Liu, Haghgoo, Chen, Raghunathan, Koh, Sagawa, Liang, Finn, "Just Train Twice: Improving Group Robustness without
Training Group Information", ICML 2021, algorithm 1:

    E = {i: the ERM model of T epochs predicts another label than y_i},                                     (1)
    theta = argmin  sum_(i in E) factor l_i + sum_(i not in E) l_i, from scratch.                            (2)

As published, (2) is done by repetition: examples of E are appended `factor` more times, 1 + factor in all.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Interval
from jaxtyping import Float
from torch import Tensor

from molere.data.pool import Batch
from molere.errors import ConfigError
from molere.fields import check_fields
from molere.losses import TOLERANCE
from molere.method import Method, Run, Scouting
from molere.networks import mean_one
from molere.split import Split
from molere.steps import Taken


@dataclass
class JTTState:
    """The error set, as a mask of the pool."""

    wrong: Tensor


@dataclass(frozen=True, kw_only=True)
class JTT(Method[JTTState]):
    """ERM with the errors of an early-stopped ERM model repeated or weighted up."""

    mode: Literal["repeat", "weight"] = "repeat"
    """Repeat the errors in the training part, or weigh them up."""
    factor: Annotated[float, Gt(0)] = 5.0
    """How often errors are appended (repeat, a whole number), or their weight over that of the others (weight)."""
    epochs: Annotated[float, Interval(gt=0, le=1)] = 0.1
    """Length of the first training, as a share of the run's, rounded up to whole epochs (T)."""
    normalise: bool = True
    """Weights over their mean, so that the learning rate stays what it is; repetition has no use for it."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mode == "repeat" and self.factor != round(self.factor):
            raise ConfigError(f"JTT: nothing can be repeated {self.factor} times: give a whole factor, or mode=weight.")

    def init(self, run: Run) -> JTTState:
        """Train the first model and find its errors: evaluation mode, no augmentation, after its last epoch."""
        total = run.recipe.epochs
        epochs = max(1, math.ceil(self.epochs * total - TOLERANCE))
        (first,) = run.scout(Scouting(torch.arange(len(run.pool), device=run.device), epochs / total))
        wrong = first.prediction != run.pool.y  # 1
        run.note(first_error=wrong.float())
        run.log(error_share=float(wrong.float().mean()))
        if run.pool.clean_y is not None and bool(wrong.any()):
            run.log(error_noise=float((run.pool.clean_y != run.pool.y)[wrong].float().mean()))
        return JTTState(wrong)

    def split(self, run: Run, state: JTTState) -> Split:
        """The whole pool trains; repeated errors make laps longer than epochs, so a lap goes on in the next epoch."""
        if self.mode == "weight":
            return Split.of(torch.empty(0, dtype=torch.int64), len(run.pool))
        return run.split if run.updates else repeated(state.wrong, round(self.factor))

    def step(self, run: Run, state: JTTState, batch: Batch) -> Taken:
        """One update on the plain or the weighted mean."""
        seen = run.forward(batch)
        return run.update(seen, self.weights(state.wrong)[batch.index] if self.mode == "weight" else None)  # 2

    def weights(self, wrong: Tensor) -> Float[Tensor, " N"]:
        """`factor` for errors, 1 for the others, over their mean if asked for."""
        w = torch.where(wrong, self.factor, 1.0)
        return mean_one(w) if self.normalise else w


def repeated(wrong: Tensor, times: int) -> Split:
    """The pool, errors appended `times` times."""
    pool, errors = torch.arange(len(wrong)), wrong.cpu().nonzero().flatten()
    return Split(torch.cat([pool, errors.repeat(times)]), pool[:0], repeated=True)
