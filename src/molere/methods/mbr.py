"""MBR: margins of a finished ERM model as weights; or, as in MAIL, margins of the model being trained.

    w_i = sigma(-gamma (PM_i - beta)) over the mean,    PM_i = p_i,y - max_(c /= y) p_i,c.

Sources: the weights are those of Wang, Liu, Han, Liu, Gong, Niu, Zhou, Sugiyama, "Probabilistic Margins for Instance
Reweighting in Adversarial Training", NeurIPS 2021 (MAIL), there from the present model's adversarial probabilities.
Margins of a finished model, and training again from scratch with them: the baseline of Jain, Suggala, Shenoy, 2024,
which does not say by which function; this one is our choice.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from torch import Tensor

from molere.data.pool import Batch
from molere.fields import check_fields
from molere.method import Method, Run, Scouting
from molere.networks import mean_one
from molere.split import Split, probabilistic_margin
from molere.steps import Seen, Taken


@dataclass
class MBRState:
    """The weights of the pool, mean 1."""

    weights: Tensor


@dataclass(frozen=True, kw_only=True)
class MBR(Method[MBRState]):
    """Low margins weigh more, by a fixed function."""

    gamma: Annotated[float, Ge(0)] = 2.0
    """Slope; 0: equal weights."""
    beta: Annotated[float, Interval(ge=-1, le=1)] = 0.0
    """Margin at which the weight is half of the largest possible."""
    margins: Literal["erm", "crossfit", "present"] = "erm"
    """Under one finished ERM model, under ERM models that did not see the example, or under the present model."""
    epochs: Annotated[float, Gt(0)] = 1.0
    """Length of ERM's trainings, as a share of the run's."""
    folds: Annotated[int, Ge(2)] = 5
    """Models of a cross-fit."""
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.625
    """Share of the run with equal weights first, where the margins are those of the present model."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> MBRState:
        """The weights of the whole pool, unless they come with each batch."""
        if self.margins == "present":
            return MBRState(torch.ones(len(run.pool), device=run.device))
        margins = self.found(run)
        run.note(erm_margin=margins)
        run.log(erm_errors=float((margins < 0).float().mean()))
        weights, fine = torch.ones_like(margins), run.rankable(margins)
        weights[fine] = mean_one(self.raw(margins[fine]))
        return MBRState(weights)

    def found(self, run: Run) -> Float[Tensor, " N"]:
        """Margins of the pool: evaluation mode, no augmentation."""
        if self.margins == "crossfit":
            return run.margins("crossfit", folds=self.folds, epochs=self.epochs)
        (first,) = run.scout(Scouting(torch.arange(len(run.pool), device=run.device), self.epochs))
        return first.margin

    def raw(self, margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """sigma(-gamma (PM - beta)), in (0, 1)."""
        return torch.sigmoid(-self.gamma * (margins - self.beta))

    def split(self, run: Run, state: MBRState) -> Split:
        """The whole pool trains, nothing validates."""
        return Split.of(torch.empty(0, dtype=torch.int64), len(run.pool))

    def step(self, run: Run, state: MBRState, batch: Batch) -> Taken:
        """One update on the fixed weights, or on those of the present margins."""
        seen = run.forward(batch)
        return run.update(seen, self.present(run, seen) if self.margins == "present" else state.weights[batch.index])

    def present(self, run: Run, seen: Seen) -> Float[Tensor, " n"] | None:
        """Weights from the batch's own logits, mean 1 over the batch; none during the warm-up."""
        if not run.passed(self.warmup):
            return None
        probabilities = seen.logits.detach().softmax(1)
        return mean_one(self.raw(probabilistic_margin(probabilities, seen.batch.y)))
