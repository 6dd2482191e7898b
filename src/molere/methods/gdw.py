"""GDW: a weight for every example and class, on the gradient of the loss with respect to the logits.

Source: Chen, Zheng et al., "Generalized DataWeighting via Class-Level Gradient Manipulation", NeurIPS 2021. An example
may be wrong about one class and right about the others, so the loss is not weighted as a whole. p = softmax(z),
l_i = -log p_iy, and the classifier descends Omega * D:

    D = p - onehot(y) = dl/dz  [n, c]                                                                               (1)
    sum_c Omega_ic D_ic = 0,   that is,   Omega_iy = sum_{c != y} Omega_ic p_ic / (1 - p_iy)                        (2)
    w_i = V_phi(sg l_i),   Omega_ic = w_i                          V: loss -> weight, an MLP (Meta-Weight-Net)      (3)
    theta' = theta - lr J^T (Omega * D) / n                        J = dz/dtheta; plain SGD                         (4)
    Gamma = dL_val(theta')/dOmega,   phi <- Adam(dL_val(theta')/dphi)                                               (5)
    Omega' = Omega - clip(eta Gamma / sum |Gamma|, -0.2, 0.2),   clamped to [1e-6, 1e6], then (2)                   (6)
    theta <- SGD(J^T (Omega' * D) / n)                                                                              (7)

Both derivatives of (5) need one directional derivative of the logits: Gamma_ic = D_ic s_ic / n with
s_ic = < -lr grad L_val(theta'), grad z_ic >. There is no scalar loss behind (7); the training loss that is reported is
plain cross-entropy.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from molere import rng
from molere.data.pool import Batch
from molere.fields import check_fields
from molere.holdouts import Holdout, Random
from molere.learner import Learner
from molere.method import Method, Run
from molere.networks import LossNet
from molere.split import Split
from molere.steps import Seen, Taken

CAP = 0.999
"""Largest probability as it enters D and (2): 1 - p_y is divided by."""


@dataclass
class GDWState:
    """What changes in a GDW run."""

    weigher: Learner
    part: Tensor
    """The validation part, found once."""


@dataclass(frozen=True, kw_only=True)
class GDW(Method[GDWState]):
    """Class weights: those of an MLP on the loss, moved along the validation loss's gradient in each step."""

    holdout: Holdout = Random()
    """Which part of the pool validates; as published, examples known to be clean."""
    delta: Annotated[float, Interval(gt=0, le=0.5)] = 0.1
    """Its share of the pool."""
    keep: bool = False
    """Whether the validation part also trains; as published it does not."""
    q: Annotated[int, Ge(1)] = 1
    """Classifier updates for each meta update (Q); those between take Omega from V as it stands."""
    eta: Annotated[float, Gt(0)] | None = None
    """Step of the class weights, to be divided by the batch's sum of |Gamma|; none: 10 c, as published."""
    clip: Annotated[float, Gt(0)] = 0.2
    """Largest change of a class weight in a step."""
    hidden: Annotated[int, Ge(1)] = 100
    """Hidden units of V."""
    optimizer: str = "adam"
    """Of V."""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate of V."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """Weight decay of V."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> GDWState:
        """Choose the validation part and make V."""
        part = self.holdout(run, self.delta).val
        with rng.seeded(rng.key(run.seed, "weigher")):
            net = LossNet(self.hidden)
        decay = self.weight_decay
        return GDWState(run.learner("weigher", net, optimizer=self.optimizer, lr=self.lr, weight_decay=decay), part)

    def split(self, run: Run, state: GDWState) -> Split:
        """The same split throughout."""
        return Split.of(state.part, len(run.pool), keep=self.keep)

    def step(self, run: Run, state: GDWState, batch: Batch) -> Taken:
        """One update along class-weighted logit gradients; between meta updates, on the weights of V."""
        meta = run.due(self.q)
        seen = run.forward(batch, remember=meta)
        w = state.weigher(seen.losses.detach())  # 3
        if not meta:
            return run.update(seen, w)
        p = seen.logits.detach().softmax(1).clamp_max(CAP)
        look = run.look_ahead(seen, w, plain=True)  # 4
        change = difference(p, batch.y)
        gamma = change * run.logit_gradient(look) / len(seen)
        alike = zero_sum(torch.ones_like(p), p, batch.y)  # Omega for w = 1
        state.weigher.descend(w, (gamma * alike).sum(1))  # 5
        omega = self.moved(run, w.detach()[:, None] * alike, gamma, p, batch.y)
        return run.update(seen, mean_over_others(omega, seen), along=omega * change / len(seen))  # 7

    def moved(
        self,
        run: Run,
        omega: Float[Tensor, "n c"],
        gamma: Float[Tensor, "n c"],
        p: Float[Tensor, "n c"],
        y: Int[Tensor, " n"],
    ) -> Float[Tensor, "n c"]:
        """Omega' of (6); a batch whose gradient vanishes keeps its Omega."""
        size = gamma.abs().sum().clamp_min(torch.finfo(gamma.dtype).tiny)
        step = (10 * p.shape[1] if self.eta is None else self.eta) * gamma / size
        if (run.updates + 1) % run.per_epoch == 0:  # one number an epoch
            run.log(clipped_share=float((step.abs() >= self.clip).float().mean()))
        return zero_sum((omega - step.clamp(-self.clip, self.clip)).clamp(1e-6, 1e6), p, y)  # 6


def difference(p: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """D = p - onehot(y) (1)."""
    return p - F.one_hot(y, p.shape[1])


def zero_sum(omega: Float[Tensor, "n c"], p: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """Omega with the label's weight such that sum_c Omega_ic D_ic = 0 (2), for p_iy < 1."""
    label = y[:, None]
    others = (omega * p).scatter(1, label, 0).sum(1, keepdim=True)
    return omega.scatter(1, label, others / (1 - p.gather(1, label)))


def mean_over_others(omega: Float[Tensor, "n c"], seen: Seen) -> Float[Tensor, " n"]:
    """The weight to be written down: the mean of Omega_ic over c != y by p_ic, which is Omega_iy where p is not capped.

    It is the factor by which the pull on the label's logit differs from that of the plain loss.
    """
    others = seen.logits.detach().scatter(1, seen.batch.y[:, None], -torch.inf).softmax(1)
    return (omega * others).sum(1)
