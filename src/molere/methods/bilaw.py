"""BiLAW: the weight of an example as a learned function of its margins to all classes.

    m_ic = p_i,y_i - p_ic,    w_i = V_phi(m_i),    V_phi a network C-128-1 with a sigmoid at the end,

p the classifier's probabilities, m_i detached, m_i,y_i = 0. The rest is Meta-Weight-Net, eq. 3 to 5 in
`molere.metaweights`. `sorted`: without the label's own entry and in ascending order, so that classes have no names.

Source: Holtz, Weng, Mishne, "Learning Sample Reweighting for Accuracy and Adversarial Robustness", 2022. We know its
summary and background, not its code: the vector of margins and the network are our reading of it. It was made for
adversarial training (`adversarial`): then losses, margins and the validation loss are those of examples moved to where
their loss is larger, by projected gradient ascent (Madry et al., ICLR 2018).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int
from torch import Tensor, nn

from molere.data.pool import Batch
from molere.errors import ConfigError
from molere.losses import cross_entropy
from molere.metaweights import MetaWeights, MetaWeightsState
from molere.method import Run
from molere.networks import MarginNet
from molere.steps import Seen, Taken


@dataclass(frozen=True, kw_only=True)
class BiLAW(MetaWeights):
    """Weights as a function of the margins, learned so that one step lowers the loss on a validation part."""

    hidden: Annotated[int, Ge(1)] = 128
    """Hidden units of the weight function."""
    sorted: bool = False
    """Margins in ascending order and without the label's own, so that classes are exchangeable."""
    adversarial: bool = False
    """Train and validate on adversarial examples."""
    epsilon: Annotated[float, Gt(0)] = 8 / 255
    """How far an adversarial input may move, as a share of its channel's range in the batch."""
    step_size: Annotated[float, Gt(0)] = 2 / 255
    """How far each step moves it, as such a share."""
    steps: Annotated[int, Ge(1)] = 10
    """Steps of an attack."""

    def network(self, run: Run) -> nn.Module:
        """From one margin for each class to one number."""
        if self.adversarial and not run.pool.batch(torch.zeros(1, dtype=torch.int64)).x.is_floating_point():
            raise ConfigError("adversarial=true needs inputs that can move and these are integers; leave it out")
        return MarginNet(run.pool.num_classes - self.sorted, self.hidden)

    def inputs(self, seen: Seen) -> Float[Tensor, "n k"]:
        """The margins [n, c], or in order [n, c - 1]."""
        margins = class_margins(seen.logits.detach().softmax(1), seen.batch.y)
        return in_order(margins, seen.batch.y) if self.sorted else margins

    def step(self, run: Run, state: MetaWeightsState, batch: Batch) -> Taken:
        """One weighted update, and once in Q an update of the weight function before it."""
        if not self.adversarial:
            return self.reweighted(run, state, batch)
        val = self.attacked(run, run.val_batch(), "attack-validation") if run.due(self.q) else None
        return self.reweighted(run, state, self.attacked(run, batch, "attack"), val)

    def attacked(self, run: Run, batch: Batch, purpose: str) -> Batch:
        """The batch with inputs that the present classifier, in evaluation mode, gets more wrong."""

        def loss(x: Tensor) -> Tensor:
            return cross_entropy(run.classifier(x), batch.y).sum()

        run.look_at(batch)  # the range of a channel is that of all examples
        start = 2 * torch.rand(batch.x.shape, generator=run.rng(purpose)).to(batch.x) - 1
        with run.classifier.at(None, evaluating=nn.Module):
            x = ascended(loss, batch.x, start, epsilon=self.epsilon, step_size=self.step_size, steps=self.steps)
        run.cost.virtual_forward += self.steps * len(batch)
        run.cost.virtual_backward += self.steps * len(batch)
        return replace(batch, x=x)


def class_margins(probs: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """m_ic = p_i,y_i - p_ic in [-1, 1]; 0 at c = y_i; the least of the others is the probabilistic margin."""
    return probs.gather(1, y.unsqueeze(1)) - probs


def in_order(margins: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """The c - 1 margins to other classes, ascending: the first is the probabilistic margin."""
    return margins.scatter(1, y.unsqueeze(1), torch.inf).sort(1).values[:, :-1]


def ascended(
    loss: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n *shape"],
    start: Float[Tensor, "n *shape"],
    *,
    epsilon: float,
    step_size: float,
    steps: int,
) -> Float[Tensor, "n *shape"]:
    """Projected gradient ascent on the loss: x + step_size sign(grad) a step, no entry further than epsilon from x.

    The first point is epsilon times `start`, in [-1, 1], away. Both lengths are shares of the range of the entry's
    channel (dimension 1) in this batch, and no entry leaves that range.
    """
    across = [d for d in range(x.ndim) if d != 1]
    low, high = x.amin(across, keepdim=True), x.amax(across, keepdim=True)
    reach = epsilon * (high - low)
    least, most = torch.maximum(x - reach, low), torch.minimum(x + reach, high)
    moved = (x + reach * start).clamp(least, most)
    for _ in range(steps):
        leaf = moved.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(loss(leaf), leaf)
        moved = (moved + step_size * (high - low) * slope.sign()).clamp(least, most)
    return moved
