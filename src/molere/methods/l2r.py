"""L2R: weights of a batch from the agreement of its gradients with that of validation examples; nothing is learned.

Source: Ren, Zeng, Yang, Urtasun, "Learning to Reweight Examples for Robust Deep Learning", ICML 2018, section 3.

    theta'(eps) = theta - lr grad sum_i eps_i l_i(theta)                                                            (1)
    u_i = - d L_val(theta'(eps)) / d eps_i at eps = 0   =   lr < grad l_i(theta), grad L_val(theta) >               (2)
    w_i = max(u_i, 0) / sum_j max(u_j, 0), zeros where no u_i is positive                                           (3)
    theta <- optimiser step on sum_i w_i l_i(theta)                                                                 (4)

theta' = theta at eps = 0, so (2) needs no step: a validation pass at theta and the products of its gradient with those
of the examples. (4) is a sum over weights that sum to 1, that is a mean over weights of mean 1. lr cancels in (3).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from molere.data.pool import Batch
from molere.errors import ConfigError
from molere.fields import check_fields
from molere.holdouts import Holdout, Random
from molere.method import Method, Run
from molere.split import Split
from molere.steps import Seen, Taken


@dataclass
class L2RState:
    """What an L2R run remembers."""

    part: Tensor
    """The validation part, found once."""


@dataclass(frozen=True, kw_only=True)
class L2R(Method[L2RState]):
    """Each batch is weighed anew: an example counts as far as its gradient agrees with the validation gradient."""

    holdout: Holdout = Random()
    """Which part of the pool validates; published: a clean one."""
    delta: Annotated[float, Interval(gt=0, le=0.5)] = 0.1
    """Its share of the pool."""
    keep: bool = False
    """Whether the validation part also trains; as published it does not."""
    reweight_every: Annotated[int, Ge(1)] = 1
    """Updates for each one with weights; between them all weights are 1, since weights exist for their batch only."""
    last_layer_only: bool = False
    """Products over the last linear layer alone: cheaper, no longer exact."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> L2RState:
        """Choose the validation part, which may take scouts."""
        if self.last_layer_only:
            _last_layer(run)
        return L2RState(self.holdout(run, self.delta).val)

    def split(self, run: Run, state: L2RState) -> Split:
        """The same split throughout."""
        return Split.of(state.part, len(run.pool), keep=self.keep)

    def step(self, run: Run, state: L2RState, batch: Batch) -> Taken:
        """One update on the batch's own weights; none where no example agrees."""
        if not run.due(self.reweight_every):
            return run.update(run.forward(batch))
        seen = run.forward(batch, remember=not self.last_layer_only)
        agreement = self.last_layer(run, seen) if self.last_layer_only else self.exact(run, seen)
        return run.update(seen, agreeing(agreement))  # 4

    def exact(self, run: Run, seen: Seen) -> Float[Tensor, " n"]:
        """u over all parameters that are trained."""
        return -run.weight_gradient(run.look_here(seen))  # 2

    def last_layer(self, run: Run, seen: Seen) -> Float[Tensor, " n"]:
        """u over the last layer, from logits and features alone."""
        look, bias = run.look(seen), "bias" in dict(_last_layer(run).named_parameters())
        train = (seen.features, residuals(seen.logits.detach(), seen.batch.y))
        return last_layer_products(train, (look.features, residuals(look.logits, look.batch.y)), bias).mean(1)  # 2


def agreeing(u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """w_i = n max(u_i, 0) / sum_j max(u_j, 0): mean 1, or all zeros where no u_i is positive."""
    positive = u.clamp_min(0)
    total = positive.sum()
    return len(u) * positive / torch.where(total > 0, total, 1.0)  # 3


def residuals(logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """d l_i / d z_ic = softmax(z_i)_c - 1[y_i = c]."""
    return logits.softmax(1) - F.one_hot(y, logits.shape[1])


def last_layer_products(
    train: tuple[Float[Tensor, "n d"], Float[Tensor, "n c"]],
    val: tuple[Float[Tensor, "m d"], Float[Tensor, "m c"]],
    bias: bool = True,
) -> Float[Tensor, "n m"]:
    """< grad l_i, grad l_j > over a linear layer: (h_i . h_j + 1 if it has a bias) (r_i . r_j)."""
    return (train[0] @ val[0].T + float(bias)) * (train[1] @ val[1].T)


def _last_layer(run: Run) -> nn.Linear:
    if not isinstance(run.head, nn.Linear):
        raise ConfigError("last_layer_only=true needs a model that ends in a linear layer; use last_layer_only=false")
    return run.head
