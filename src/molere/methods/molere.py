"""The recommended method: smoothed early hardness, then weights; nothing is removed from training.

theta: run.classifier.  phi: state.weigher.  One run:

    1. warm up as ERM for a fifth of the epochs (at least one); M_i = rank of the mean loss of example i at their ends
    2. s_i = mean of M over the k nearest other examples in penultimate features
    3. score_i = rank of s_i among the examples of the same predicted class, in [0, 1]   (smr)
    4. static weights   w_i = exp(c (2 score_i - 1)) / mean
       or learned ones  LRW with the tenth of highest score as validation part, which keeps training

An example's own label enters only through its neighbours, so a mislabelled example is not hard unless its region is; an
intrinsically hard class is not either, since ranks are taken within classes. Static weights are the default: in our
measurements learned ones were never better, and in networks that interpolate their training data the meta-gradient
points elsewhere.

Source: this library's own measurements (docs/results), on the weighting of Jain, Suggala, Shenoy 2024, eq. 13 and 15.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from molere.data.pool import Batch
from molere.errors import ConfigError
from molere.fields import check_fields
from molere.hardness import hardest_share, smr_score, static_weights
from molere.learner import Learner
from molere.losses import trimmed_mean
from molere.method import Method, Run
from molere.split import Split, random_part
from molere.steps import Taken, mean
from molere.weighting import Weights


@dataclass
class MolereState:
    """What changes in a run."""

    falls_back: bool
    """Whether the guard has chosen ERM."""
    early_loss: Tensor
    """Sum of each example's losses at the ends of the warm-up's epochs."""
    weights: Tensor
    """Static weights, mean 1; ones until the score is known."""
    part: Tensor
    """Validation part of learned weights; empty until the score is known."""
    weigher: Learner | None
    """The weight network; none where weights are static."""
    scored: bool = False
    """Whether the warm-up is over and the score known."""


@dataclass(frozen=True, kw_only=True)
class Molere(Method[MolereState]):
    """Weights from smoothed early hardness: for rare groups that nobody has labelled, at about the cost of ERM."""

    mode: Literal["static", "learned"] | None = None
    """Weights fixed by the score, or learned; none: static, or learned where noise is expected."""
    expect: Literal["nothing", "rare-groups", "noise"] = "nothing"
    """What the data are thought to hold: rare-groups doubles c and learns more often; noise validates on a random
    tenth that never trains, without its largest losses, instead of on the hardest tenth by score."""
    c: Annotated[float, Ge(0)] | None = None
    """Weights differ by a factor of at most exp(2c); none: .5, or 1 where rare groups are expected."""
    q: Annotated[int, Ge(1)] | None = None
    """Classifier updates for each update of learned weights; none: 5, or 2 where rare groups are expected."""
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Share of the run that is plain ERM and yields the early losses; one epoch at least."""
    delta: Annotated[float, Interval(gt=0, le=0.5)] = 0.1
    """Share of the pool that learned weights are validated on."""
    neighbours: Annotated[int, Ge(1)] = 10
    """Neighbours k over which hardness is smoothed."""
    guard: bool = False
    """Compare with ERM out of fold first and fall back to it if clearly worse; costs two or more ERM runs."""
    guard_folds: Annotated[int, Ge(2)] = 2
    """Folds of that comparison."""
    network: Literal["features", "full", "frozen", "signals"] | None = None
    """What learned weights are a function of: the classifier's features, the example itself, frozen features, or
    cross-fitted margin and present loss; none: features, or signals where noise is expected."""
    lr_weights: Annotated[float, Gt(0)] = 1e-2
    """Learning rate of learned weights."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mode == "static" and self.expect == "noise":
            raise ConfigError("static weights are not made for noise; leave mode out, or expect=nothing")

    def init(self, run: Run) -> MolereState:
        """Ask the guard if wanted, make the weight network if weights are learned, and start the table of losses."""
        if run.epochs_of(self.warmup) == 0 and run.budget == run.per_epoch:
            raise ConfigError("molere needs an epoch to find hard examples and one to use them; set train.epochs=2")
        falls_back = self.guard and self.loses_out_of_fold(run)
        learns = self.learns and not falls_back
        part = torch.empty(0, dtype=torch.int64)
        if learns and self.expect == "noise":
            part = random_part(run.pool.y.cpu(), self.delta, run.rng("held-out"))
        if not falls_back:
            run.keep_bank()
        return MolereState(
            falls_back=falls_back,
            early_loss=torch.zeros(len(run.pool), device=run.device),
            weights=torch.ones(len(run.pool), device=run.device),
            part=part.to(run.device),
            weigher=self.weights.init(run) if learns else None,
        )

    def split(self, run: Run, state: MolereState) -> Split:
        """Everything trains; the hardest tenth validates too if weights are learned (noise: a random tenth instead)."""
        if run.epoch > 0 and not state.scored and not state.falls_back:
            self.watch(run, state)
        return Split.of(state.part.cpu(), len(run.pool), keep=self.expect != "noise")

    def step(self, run: Run, state: MolereState, batch: Batch) -> Taken:
        """One update: plain while warming up, weighted after."""
        if not state.scored:
            return run.update(run.forward(batch))
        if state.weigher is None:
            return run.update(run.forward(batch), state.weights[batch.index])
        meta = run.due(self.every)
        seen = run.forward(batch, remember=meta)
        w = self.weights(run, state.weigher, seen)  # w_i = g_phi(x_i)
        taken = run.update(seen, run.trusted(w), remember=meta)
        if meta:
            look = run.look_back(taken, self.val_loss())
            self.weights.learn(run, state.weigher, w, run.weight_gradient(look))
        return taken

    def watch(self, run: Run, state: MolereState) -> None:
        """At the end of a warm-up epoch: add up losses; at the end of the warm-up: score, weights, validation part."""
        run.refresh_bank(run.updates - run.per_epoch)
        state.early_loss += run.bank.losses
        if not run.passed(self.warmup):
            return
        state.scored = True
        score = self.score(run, state)
        run.note(hardness=score)
        if state.weigher is None:
            state.weights = static_weights(score, self.strength).to(run.device)
        elif self.expect != "noise":
            state.part = hardest_share(score, self.delta).to(run.device)
        run.drop_bank()

    def score(self, run: Run, state: MolereState) -> Tensor:
        """Smoothed early hardness [N]; examples that cannot be ranked get the middle of it."""
        losses, features, predicted = state.early_loss, run.bank.features, run.bank.predicted
        fine = run.rankable(losses)
        if len(fine) == len(losses):
            return smr_score(losses, features, predicted, k=self.neighbours)
        found = smr_score(losses[fine], features[fine], predicted[fine], k=self.neighbours)
        return torch.full_like(losses, 0.5, dtype=found.dtype).index_copy(0, fine, found)

    def val_loss(self) -> Callable[[Tensor], Tensor]:
        """Mean, or without the largest tenth where labels are noisy."""
        return partial(trimmed_mean, share=0.1) if self.expect == "noise" else mean

    @property
    def strength(self) -> float:
        """C in force."""
        return self.c if self.c is not None else (1.0 if self.expect == "rare-groups" else 0.5)

    @property
    def every(self) -> int:
        """Q in force."""
        return self.q if self.q is not None else (2 if self.expect == "rare-groups" else 5)

    @property
    def learns(self) -> bool:
        """Whether weights are learned."""
        return self.mode == "learned" or self.expect == "noise"

    @property
    def weights(self) -> Weights:
        """The weight network of learned weights."""
        network = self.network or ("signals" if self.expect == "noise" else "features")
        return Weights(network=network, c=self.strength, lr=self.lr_weights)

    def loses_out_of_fold(self, run: Run) -> bool:
        """Whether accuracy out of fold is below ERM's by more than two paired standard errors."""
        mine = run.crossfit(self.guard_folds, 1.0, method=replace(self, guard=False))
        erm = run.crossfit(self.guard_folds, 1.0)
        y = run.pool.y
        gain = (mine.prediction == y).float() - (erm.prediction == y).float()
        error = float(gain.std()) / len(y) ** 0.5
        run.log(guard_gain=float(gain.mean()), guard_error=error)
        return float(gain.mean()) < -2 * error
