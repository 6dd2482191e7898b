"""Full-batch trainings beside a run: on weighted examples, from the classifier's parameters, which stay as they are.

    theta_0: the classifier's,  theta_{e+1} = theta_e - lr u_e,  u_e = momentum u_{e-1} + grad sum_i b_i l_i / sum_j b_j

and, with the sum over b held constant and R some objective of a judging part,

    d R(theta_E) / d b_i = - lr < grad l_i(theta_{E-1}), grad R(theta_E) > / sum_j b_j,

the derivative through the last step only, for examples with b_i = 0, too.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molere import rng
from molere.data.pool import Batch
from molere.losses import cross_entropy
from molere.metagrad import gradients
from molere.method import Run
from molere.optim import Params
from molere.steps import Look, Risk, Seen

CHUNK = 1024
"""Examples that are passed at a time."""


@dataclass(frozen=True)
class Found:
    """What a trial says of its mask."""

    by_weight: Float[Tensor, " n"]
    """d R / d b, for all examples."""
    risk: float
    """R after the training."""
    losses: Float[Tensor, " m"]
    """Of the judging part, after the training."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training on the examples that a mask keeps."""

    run: Run
    objective: Risk
    """R, of the whole judging part."""
    on: Int[Tensor, " n"]
    """The examples that may train."""
    judge: Int[Tensor, " m"]
    """The judging part."""
    steps: int
    """Full-batch steps (E)."""
    lr: float
    momentum: float
    stream: int
    """Key of dropout masks."""

    def __call__(self, b: Bool[Tensor, " n"]) -> Found:
        """Train on the examples that b keeps, and judge."""
        before, after, last = self.train(b)
        grad, risk, losses = self.judged(after)
        direction = {k: -self.lr * g for k, g in grad.items()}
        looks = [Look(s.batch, s.logits, s.losses, s.features, s, before, direction) for s in last]
        products = torch.cat([self.run.weight_gradient(look) * len(look.seen) for look in looks])
        return Found(products / b.sum(), risk, losses)

    def train(self, b: Bool[Tensor, " n"]) -> tuple[Params, Params, list[Seen]]:
        """Parameters before and after the last step, and what that step saw of all n examples.

        Before it, only what is kept is passed.
        """
        theta, seen = self.run.classifier.snapshot(), list[Seen]()
        before, velocity = theta, {k: torch.zeros_like(p) for k, p in theta.items()}
        for e in range(self.steps):
            index, kept = (self.on, b) if e == self.steps - 1 else (self.on[b], b[b])
            seen, grad = self.full_batch(theta, index, kept.double() / b.sum(), rng.key(self.stream, "step", e))
            velocity = {k: self.momentum * u + grad[k] for k, u in velocity.items()}
            before, theta = theta, {k: p - self.lr * velocity[k] for k, p in theta.items()}
        return before, theta, seen

    def full_batch(
        self, theta: Params, index: Int[Tensor, " k"], w: Float[Tensor, " k"], stream: int
    ) -> tuple[list[Seen], Params]:
        """The passes of some examples, piece by piece, and grad sum_i w_i l_i."""
        leaves, seen = {k: p.detach().requires_grad_() for k, p in theta.items()}, list[Seen]()
        total = {k: torch.zeros_like(p) for k, p in theta.items()}
        for place, (piece, weights) in enumerate(zip(pieces(index), pieces(w), strict=True)):
            found = self.run.virtual(self.run.pool.batch(piece), leaves, stream=rng.key(stream, "piece", place))
            _add(total, gradients((weights.to(found.losses.dtype) * found.losses).sum(), leaves))
            self.run.cost.virtual_backward += len(piece)
            seen.append(replace(found, logits=found.logits.detach(), losses=found.losses.detach()))
        return seen, total

    def judged(self, theta: Params) -> tuple[Params, float, Float[Tensor, " m"]]:
        """(grad R(theta), R, losses of the judging part); in two passes, as R is no sum over examples."""
        pool, judge = self.run.pool, self.judge
        leaves = {k: p.detach().requires_grad_() for k, p in theta.items()}
        first = [self._judge(place, piece, leaves, grad=False) for place, piece in enumerate(pieces(judge))]
        logits = torch.cat([s.logits for s in first]).requires_grad_()
        losses = cross_entropy(logits, pool.y[judge])
        group = None if pool.group is None else pool.group[judge]
        risk = self.objective(Batch(torch.cat([s.batch.x for s in first]), pool.y[judge], judge, group), logits, losses)
        (cotangent,) = torch.autograd.grad(risk, logits)
        total = {k: torch.zeros_like(p) for k, p in theta.items()}
        for place, (piece, along) in enumerate(zip(pieces(judge), pieces(cotangent), strict=True)):
            again = self._judge(place, piece, leaves, grad=True)
            _add(total, gradients((again.logits * along).sum(), leaves))
            self.run.cost.virtual_backward += len(piece)
        return total, float(risk.detach()), losses.detach()

    def _judge(self, place: int, piece: Tensor, leaves: Params, *, grad: bool) -> Seen:
        stream = rng.key(self.stream, "judge", place)
        return self.run.virtual(self.run.pool.batch(piece), leaves, stream=stream, grad=grad)


def pieces(values: Tensor) -> tuple[Tensor, ...]:
    """A full batch in pieces of about the same length."""
    return values.tensor_split(math.ceil(len(values) / CHUNK))


def _add(total: Params, grads: Params) -> None:
    for k, g in grads.items():
        total[k] += g
