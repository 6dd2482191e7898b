"""RHO-Loss: train on the examples that are learnable, worth learning and not yet learned.

Source: Mindermann, Brauner, Razzak, Sharma, Kirsch, Xu, Höltgen, Gomez, Morisot, Farquhar, Gal, "Prioritized Training
on Points that are Learnable, Worth Learning, and Not Yet Learnt", ICML 2022, algorithm 1:

    IL_i = l_i under a model that was trained on the holdout only (irreducible loss);                        (1)
    rho_i = l_i(theta) - IL_i for a large batch, without a gradient;                                         (2)
    one update on the plain mean over the n examples of largest rho.                                         (3)
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Interval
from jaxtyping import Float, Int
from torch import Tensor

from molere.data.pool import Batch
from molere.errors import DataError
from molere.fields import check_fields
from molere.holdouts import Holdout, Random
from molere.losses import TOLERANCE
from molere.method import Method, Run, Scouting
from molere.split import Split, random_part
from molere.steps import Taken

NAMED_CLASSES = 20
"""With more classes than this, shares are logged in summary only."""


@dataclass
class RhoLossState:
    """The irreducible losses, and how often what was offered and selected."""

    part: Tensor
    """The holdout."""
    irreducible: Tensor
    """IL [N]."""
    selected: Tensor
    """Times each example was selected [N]."""
    offered_classes: Tensor
    """Candidates of this epoch by class [c]."""
    selected_classes: Tensor
    """Those selected, by class [c]."""


@dataclass(frozen=True, kw_only=True)
class RhoLoss(Method[RhoLossState]):
    """Each update takes the examples of largest reducible loss out of many candidates."""

    holdout: Holdout = Random()
    """Which part of the pool trains the model of irreducible losses, and nothing else."""
    delta: Annotated[float, Interval(gt=0, le=0.5)] = 0.1
    """Its share of the pool."""
    share: Annotated[float, Interval(gt=0, le=1)] = 0.1
    """Share of the candidates that trains; there are batch_size / share of them, at most the training part."""
    mode: Literal["train", "moving", "eval"] = "train"
    """Of the selecting pass: as in training, running statistics left alone (train) or moved by it (moving); or eval."""
    epochs: Annotated[float, Gt(0)] = 10.0
    """Epochs of the first training over those of the run; 1 / delta of them have as many updates as the run."""
    select: Annotated[float, Interval(ge=0, le=0.5)] = 0.2
    """Share of the holdout that chooses the first model's epoch instead of training it; 0: the last epoch."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> RhoLossState:
        """Train the model of irreducible losses on the holdout, and keep its losses."""
        part = self.holdout(run, self.delta).val
        fitted, chosen = self.parts(run, part)
        (first,) = run.scout(Scouting(fitted, self.epochs, select=chosen))
        irreducible = first.loss  # 1
        run.note(irreducible_loss=irreducible)
        zeros = torch.zeros(run.pool.num_classes, dtype=torch.int64, device=run.device)
        return RhoLossState(part, irreducible, torch.zeros_like(run.pool.y), zeros, zeros.clone())

    def parts(self, run: Run, part: Int[Tensor, " m"]) -> tuple[Tensor, Tensor | None]:
        """The holdout's positions that train the first model, and those that choose its epoch."""
        part = part.to(run.device)
        if self.select == 0:
            return part, None
        if math.floor(self.select * len(part) + TOLERANCE) == 0:
            raise DataError(
                f"select={self.select} of a holdout of {len(part)} is nobody: use a larger delta or select=0"
            )
        y = run.pool.y[part].cpu()
        chosen = some_of(y, self.select, run.rng("selection"))
        fitted = torch.ones(len(y), dtype=torch.bool)
        fitted[chosen] = False
        return part[fitted.to(run.device)], part[chosen.to(run.device)]

    def split(self, run: Run, state: RhoLossState) -> Split:
        """The holdout never trains the classifier."""
        return Split.of(state.part, len(run.pool))

    def step(self, run: Run, state: RhoLossState, batch: Batch) -> Taken:
        """Select from many candidates, in place of the given batch, and train on those."""
        many = run.sound(run.candidates(self.size(run)))
        rho = run.losses(many, self.mode) - state.irreducible[many.index]  # 2
        best = largest(rho, many.index, min(run.batch_size, len(many)))
        chosen = taken_from(many, best)
        self.count(run, state, many, chosen)
        return run.update(run.forward(chosen))  # 3

    def size(self, run: Run) -> int:
        """Number of candidates."""
        return min(len(run.split.train), math.floor(run.batch_size / self.share + TOLERANCE))

    def count(self, run: Run, state: RhoLossState, many: Batch, chosen: Batch) -> None:
        """Add up who was offered and who was selected; the epoch's last update logs the shares of the classes."""
        state.selected.index_add_(0, chosen.index, torch.ones_like(chosen.index))
        state.offered_classes.index_add_(0, many.y, torch.ones_like(many.y))
        state.selected_classes.index_add_(0, chosen.y, torch.ones_like(chosen.y))
        if (run.updates + 1) % run.per_epoch == 0:
            run.log(**class_shares(state.offered_classes, state.selected_classes))
            run.note(times_selected=state.selected.float())
            state.offered_classes.zero_()
            state.selected_classes.zero_()


def some_of(y: Int[Tensor, " m"], share: float, generator: torch.Generator) -> Int[Tensor, " k"]:
    """A share of a holdout, by class; any of it where too few classes have a second example to spare."""
    k = math.floor(share * len(y) + TOLERANCE)
    if int((y.bincount() - 1).clamp_min(0).sum()) < k:
        return torch.randperm(len(y), generator=generator)[:k]
    return random_part(y, share, generator)


def largest(rho: Float[Tensor, " m"], index: Int[Tensor, " m"], k: int) -> Int[Tensor, " k"]:
    """Places of the k largest rho, ties by smaller index; of one that occurs twice the second is taken last."""
    by_index = index.argsort(stable=True)
    again = torch.zeros_like(index, dtype=torch.bool)
    again[1:] = index[by_index].diff() == 0
    values = rho[by_index].masked_fill(again, -math.inf)
    return by_index[values.argsort(descending=True, stable=True)[:k]]


def taken_from(batch: Batch, places: Int[Tensor, " k"]) -> Batch:
    """Some examples of a batch, as they are in it."""
    group = None if batch.group is None else batch.group[places]
    return Batch(batch.x[places], batch.y[places], batch.index[places], group)


def class_shares(offered: Int[Tensor, " c"], selected: Int[Tensor, " c"]) -> dict[str, float]:
    """Shares of the classes among the selected; the least and largest ratio to their shares among the candidates."""
    shares = selected / selected.sum()
    ratios = (shares / (offered / offered.sum()))[offered > 0]
    logged = {"selected_least": float(ratios.min()), "selected_most": float(ratios.max())}
    if len(shares) <= NAMED_CLASSES:
        logged |= {f"selected_class_{c}": float(share) for c, share in enumerate(shares)}
    return logged
