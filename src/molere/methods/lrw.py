"""LRW: learned reweighting, validated on a part of the pool that is chosen before training.

Source: Jain, Suggala, Shenoy, "Improving Generalization via Meta-Learning on Hard Samples", 2024, section 3 and eq. 1:

    theta*(phi) = argmin_theta sum_train g_phi(x) l(y, f_theta(x)),    phi* = argmin_phi sum_val l(y, f_theta*(phi)(x)).

theta: run.classifier.  phi: state.weigher, w_i = g_phi(x_i).  LRW-Easy, -Random and -Hard are this class with three
holdouts. Numbers at the end of a line are equations.

Fused order (default): the real step is the virtual one; phi learns in hindsight from the step just taken.
Strict order (as published): a virtual step first, phi learns from it, then the real step with the new weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from annotated_types import Ge, Interval
from torch import Tensor

from molere.data.pool import Batch
from molere.fields import check_fields
from molere.holdouts import Holdout, Random
from molere.learner import Learner
from molere.losses import difficulty_aware, trimmed_mean
from molere.method import Method, Run
from molere.split import Split
from molere.steps import Taken, mean
from molere.weighting import Weights


@dataclass
class LRWState:
    """What changes in an LRW run."""

    weigher: Learner
    part: Tensor
    """The validation part, found once."""


@dataclass(frozen=True, kw_only=True)
class LRW(Method[LRWState]):
    """Weights as a function of the example, learned so that one step lowers the loss on a validation part."""

    holdout: Holdout = Random()
    """Which part of the pool validates."""
    delta: Annotated[float, Interval(gt=0, le=0.5)] = 0.1
    """Its share of the pool."""
    keep: bool = False
    """Whether the validation part also trains; as published it does not."""
    q: Annotated[int, Ge(1)] = 5
    """Classifier updates for each update of the weight network (Q)."""
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of the run with equal weights first."""
    order: Literal["fused", "strict", "first-order"] = "fused"
    """Learn from the step taken (fused), from a virtual step before it (strict), or without any step (first-order)."""
    objective: Literal["mean", "difficulty-aware", "focal", "trimmed"] = "mean"
    """Validation loss; difficulty-aware is variant 1 of appendix F by batches (with many classes only after a warm-up),
    focal the same by examples, trimmed leaves out the largest tenth."""
    weights: Weights = Weights()
    """The weight network."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> LRWState:
        """Make the weight network and choose the validation part, which may take scouts."""
        weigher = self.weights.init(run)  # first: it refuses what it cannot weigh before scouts are trained
        return LRWState(weigher, self.holdout(run, self.delta).val)

    def split(self, run: Run, state: LRWState) -> Split:
        """The same split throughout."""
        return Split.of(state.part, len(run.pool), keep=self.keep)

    def step(self, run: Run, state: LRWState, batch: Batch) -> Taken:
        """One weighted update, and once in Q an update of the weight network."""
        if not run.passed(self.warmup):
            return run.update(run.forward(batch))
        meta = run.due(self.q)
        seen = run.forward(batch, remember=meta)
        w = self.weights(run, state.weigher, seen)  # w_i = g_phi(x_i)
        if meta and self.order != "fused":
            look = run.look_before(seen, w, self.val_loss(), order=self.order)
            self.weights.learn(run, state.weigher, w, run.weight_gradient(look))  # 13
            w = self.weights(run, state.weigher, seen)
        taken = run.update(seen, run.trusted(w), remember=meta and self.order == "fused")  # 15
        if meta and self.order == "fused":
            look = run.look_back(taken, self.val_loss())
            self.weights.learn(run, state.weigher, w, run.weight_gradient(look))  # 13
        return taken

    def val_loss(self) -> Callable[[Tensor], Tensor]:
        """From validation losses [m] to the scalar that phi lowers."""
        if self.objective == "difficulty-aware":
            return partial(difficulty_aware, eta=1.0, epsilon=1e-6)
        if self.objective == "focal":
            return focal_mean
        return partial(trimmed_mean, share=0.1) if self.objective == "trimmed" else mean


def focal_mean(losses: Tensor) -> Tensor:
    """The mean of -(1 - p_i)^2 log p_i, p_i = exp(-l_i): the difficulty-aware loss of each example for itself."""
    return difficulty_aware(losses, eta=2.0, epsilon=1e-6, level="example").mean()
