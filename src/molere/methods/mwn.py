"""MWN, Meta-Weight-Net: the weight of an example as a learned function of its loss.

w_i = V_phi(l_i), V_phi a network 1-100-1 with a sigmoid at the end. An increasing V is what hard examples or rare
classes call for, a decreasing one wrong labels; which it is, a validation part decides.

Source: Shu, Xie, Yi, Zhao, Zhou, Xu, Meng, "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting",
NeurIPS 2019; equations 3 to 5 are in `molere.metaweights`. There are two published variants: label noise (`mwn`),
weights as they are and a mean; class imbalance (`mwn-imbalance`), weights over their sum.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from molere.data.pool import Batch
from molere.metaweights import MetaWeights, MetaWeightsState
from molere.method import Run
from molere.networks import LossNet
from molere.steps import Seen, Taken


@dataclass(frozen=True, kw_only=True)
class MWN(MetaWeights):
    """Weights as a function of the loss, learned so that one step lowers the loss on a validation part."""

    hidden: Annotated[int, Ge(1)] = 100
    """Hidden units of the weight function."""

    def network(self, run: Run) -> nn.Module:
        """From one number to one number."""
        return LossNet(self.hidden)

    def inputs(self, seen: Seen) -> Float[Tensor, " n"]:
        """The losses, as they are."""
        return seen.losses.detach()

    def step(self, run: Run, state: MetaWeightsState, batch: Batch) -> Taken:
        """One weighted update, and once in Q an update of the weight function before it."""
        return self.reweighted(run, state, batch)
