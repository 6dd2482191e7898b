"""Meta-weights: weights from a small network on what an example looks like to the classifier, learned by looking ahead.

The step of Meta-Weight-Net (Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", NeurIPS
2019, eq. 3 to 5), which does not care what the network V_phi reads; `input_i` is a constant in all three lines:

    w_i = V_phi(input_i(theta));  theta'(phi) = theta - lr grad (1/n) sum_i w_i l_i(theta)                           (3)
    phi <- optimiser step along grad_phi (1/m) sum_j l_j(theta'(phi))                                                (4)
    w_i = V_phi(input_i(theta)) with the new phi;  theta <- optimiser step on (1/n) sum_i w_i l_i(theta)             (5)

lr is the classifier's present learning rate; (3) has neither momentum nor weight decay. With `normalize=sum1` w is
divided by its sum over the batch in (3) and (5), and both are sums instead of means.
"""

import abc
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from torch import Tensor, nn

from molere import rng
from molere.data.pool import Batch
from molere.fields import check_fields
from molere.holdouts import Holdout, Random
from molere.learner import Learner
from molere.method import Method, Run
from molere.networks import mean_one
from molere.split import Split
from molere.steps import Seen, Taken


@dataclass
class MetaWeightsState:
    """What changes in a run with a learned weight function."""

    weigher: Learner
    part: Tensor
    """The validation part, found once."""


@dataclass(frozen=True, kw_only=True)
class MetaWeights(Method[MetaWeightsState], abc.ABC):
    """A learned function from an example's present outputs to its weight; which outputs, a subclass says."""

    holdout: Holdout = Random()
    """Which part of the pool validates; published: a clean, balanced one."""
    delta: Annotated[float, Interval(gt=0, le=0.5)] = 0.1
    """Its share of the pool."""
    keep: bool = False
    """Whether the validation part also trains; as published it does not."""
    q: Annotated[int, Ge(1)] = 1
    """Classifier updates for each update of the weight function (Q)."""
    normalize: Literal["none", "sum1"] = "none"
    """none: the mean of w_i l_i, w_i as the network gives it; sum1: the sum, w_i over the batch's sum of them."""
    optimizer: str = "adam"
    """Of the weight function."""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Its learning rate."""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Its momentum, for optimisers that take one."""
    nesterov: bool = False
    """Nesterov momentum, for SGD."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """Its weight decay."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abc.abstractmethod
    def network(self, run: Run) -> nn.Module:
        """V_phi: inputs [n, ...] to weights [n] in (0, 1)."""

    @abc.abstractmethod
    def inputs(self, seen: Seen) -> Float[Tensor, "n *k"]:
        """What V_phi reads of a batch; detached."""

    def init(self, run: Run) -> MetaWeightsState:
        """Choose the validation part (which may take scouts) and make the weight function."""
        part = self.holdout(run, self.delta).val
        with rng.seeded(rng.key(run.seed, "weigher")):
            net = self.network(run)
        weigher = run.learner(
            "weigher",
            net,
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )
        return MetaWeightsState(weigher, part)

    def split(self, run: Run, state: MetaWeightsState) -> Split:
        """The same split throughout."""
        return Split.of(state.part, len(run.pool), keep=self.keep)

    def weights(self, weigher: Learner, seen: Seen) -> Float[Tensor, " n"]:
        """Weights of a batch as they enter the mean, with their graph."""
        w = weigher(self.inputs(seen))
        return w if self.normalize == "none" else mean_one(w)

    def reweighted(self, run: Run, state: MetaWeightsState, batch: Batch, val: Batch | None = None) -> Taken:
        """Once in Q a look ahead and an update of phi; then the update, with the new weights.

        val: validates instead of the next validation batch.
        """
        learns = run.due(self.q)
        seen = run.forward(batch, remember=learns)
        if learns:
            w = self.weights(state.weigher, seen)
            look = run.look_ahead(seen, w, plain=True, batch=val)  # 3
            state.weigher.descend(w, run.weight_gradient(look))  # 4
        return run.update(seen, run.trusted(self.weights(state.weigher, seen)))  # 5
