"""StableNet: weights that make the penultimate features statistically independent; no validation part.

Source: Zhang, Cui, Xu, Zhou, He, Shen, "Deep Stable Learning for Out-Of-Distribution Generalization", CVPR 2021.

A feature column Z_j is seen through random Fourier functions k, drawn anew in every iteration:

    a_ijk = w_k Z_ij + b_jk,    w_k ~ N(0, 1),    b_jk ~ U(0, 2 pi),                                        (1)
    a_i.k moved and scaled onto [0, pi/2] over the columns j,    R = sqrt(2 / K) [cos a ; sin a].           (2)

The weights u = softmax([v ; v_M]) of the batch and of a memory (Z_M, v_M) of earlier batches give covariances

    C_k = sum_i u_i R_ik R_ik' - (sum_i u_i R_ik) (sum_i u_i R_ik)',                                        (3)

and v goes down (1 / lambda) sum_k sum_(j /= j') (C_k)_jj'^2 + sum_i softmax(v)_i^2 by a few steps of SGD.     (4)
The classifier's loss is sum_i softmax(v)_i l_i.                                                            (5)
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float
from torch import Tensor

from molere.data.pool import Batch
from molere.fields import check_fields
from molere.method import Method, Run
from molere.split import Split
from molere.steps import Taken


@dataclass
class StableNetState:
    """What changes in a run: the memory, paired with the batch by position."""

    features: Tensor
    """Z_M [n, d]."""
    scores: Tensor
    """v_M [n]."""


@dataclass(frozen=True, kw_only=True)
class StableNet(Method[StableNetState]):
    """Weights that decorrelate random functions of the features, learned anew for each batch."""

    functions: Annotated[int, Ge(1)] = 1
    """Random Fourier functions of each feature (K)."""
    combine: Literal["concat", "sum"] = "concat"
    """Cosine and sine as two functions (concat), or their sum as one."""
    strength: Annotated[float, Gt(0)] = 70.0
    """lambda: the larger, the closer to equal weights."""
    decay_every: Annotated[int, Ge(1)] = 5
    """Epochs between decays of lambda."""
    decay_rate: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Factor of a decay; 1: none."""
    decay_floor: Annotated[float, Interval(ge=0, le=1)] = 0.01
    """Least share of lambda that decays leave."""
    iterations: Annotated[int, Ge(1)] = 20
    """Steps of SGD on v for each batch."""
    lr: Annotated[float, Gt(0)] = 1.0
    """Their learning rate; a tenth of it in the second half of them."""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Their momentum."""
    memory: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Share of the memory that stays at each step, after the first ten."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> StableNetState:
        """A memory of zeros with equal weights, as long as a batch."""
        dtype = torch.float64 if run.recipe.precision == "float64" else torch.float32
        features = torch.zeros(run.batch_size, run.feature_width, dtype=dtype, device=run.device)
        return StableNetState(features, torch.ones(run.batch_size, dtype=dtype, device=run.device))

    def split(self, run: Run, state: StableNetState) -> Split:
        """The whole pool trains, nothing validates."""
        return Split.of(torch.empty(0, dtype=torch.int64), len(run.pool))

    def step(self, run: Run, state: StableNetState, batch: Batch) -> Taken:
        """Learn v for the batch, then one update on its softmax."""
        seen = run.forward(batch)
        scores = self.learn(run, state, seen.features)
        self.remember(run, state, seen.features, scores)
        return run.update(seen, len(seen) * scores.softmax(0))  # 5

    def learn(self, run: Run, state: StableNetState, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """v after all iterations, from ones."""
        z = torch.cat([features, state.features])
        v, velocity = torch.ones_like(state.scores), torch.zeros_like(state.scores)
        for i, (w, b) in enumerate(zip(*self.draws(run, z), strict=True)):
            functions = fourier(z, w, b, self.combine)  # 1, 2
            velocity = self.momentum * velocity + self.gradient(run, functions, v, state.scores)  # 4
            v = v - (self.lr if i < self.iterations / 2 else 0.1 * self.lr) * velocity
            if i + 1 == self.iterations and (run.updates + 1) % run.per_epoch == 0:
                self.report(run, functions, v, state.scores)
        return v

    def draws(self, run: Run, z: Tensor) -> tuple[Tensor, Tensor]:
        """w [iterations, K] and b [iterations, K, d] of this update."""
        generator, shape = run.rng("fourier"), (self.iterations, self.functions)
        w = torch.randn(*shape, generator=generator)
        b = torch.rand(*shape, z.shape[1], generator=generator)
        return w.to(z), 2 * math.pi * b.to(z)

    def gradient(self, run: Run, functions: Tensor, v: Tensor, memory: Tensor) -> Float[Tensor, " n"]:
        """Of the objective (4) with respect to v."""
        strength = self.strength * max(self.decay_rate ** (run.epoch // self.decay_every), self.decay_floor)
        u, w = torch.cat([v, memory]).softmax(0), v.softmax(0)
        from_dependence = through_softmax(u, dependence_gradient(functions, u))[: len(v)]
        return from_dependence / strength + through_softmax(w, 2 * w)

    def remember(self, run: Run, state: StableNetState, features: Tensor, scores: Tensor) -> None:
        """Mean of the first ten batches of the first epoch, then a moving mean; v itself is kept, not its softmax."""
        keep = run.updates / (run.updates + 1) if run.updates < 10 and run.epoch == 0 else self.memory
        state.features = keep * state.features + (1 - keep) * features
        state.scores = keep * state.scores + (1 - keep) * scores

    def report(self, run: Run, functions: Tensor, v: Tensor, memory: Tensor) -> None:
        """The dependence of the epoch's last batch, with the weights and without."""
        for name, scores in (("dependence", v), ("dependence_unweighted", torch.ones_like(v))):
            run.log(**{name: float(dependence(functions, torch.cat([scores, memory]).softmax(0)))})


def fourier(
    z: Float[Tensor, "r d"], w: Float[Tensor, " k"], b: Float[Tensor, "k d"], combine: Literal["concat", "sum"]
) -> Float[Tensor, "f r d"]:
    """R of equations 1 and 2, [2K, r, d] or [K, r, d]; angle 0 throughout a row in which all are the same."""
    a = w[:, None, None] * z + b[:, None, :]
    low, high = a.amin(2, keepdim=True), a.amax(2, keepdim=True)
    a = (a - low) / torch.where(high > low, high - low, 1.0) * (math.pi / 2)
    return math.sqrt(2 / len(w)) * (torch.cat([a.cos(), a.sin()]) if combine == "concat" else a.cos() + a.sin())


def covariances(
    functions: Float[Tensor, "f r d"], u: Float[Tensor, " r"]
) -> tuple[Float[Tensor, "f d d"], Float[Tensor, "f 1 d"]]:
    """C_k of equation 3 with zeros on the diagonal, and the weighted means; u has sum 1."""
    weighted = u[:, None] * functions
    mean = weighted.sum(1, keepdim=True)
    c = weighted.transpose(1, 2) @ functions - mean.transpose(1, 2) * mean
    c.diagonal(dim1=1, dim2=2).zero_()
    return c, mean


def dependence(functions: Float[Tensor, "f r d"], u: Float[Tensor, " r"]) -> Float[Tensor, ""]:
    """sum_k sum_(j /= j') (C_k)_jj'^2, over ordered pairs."""
    return covariances(functions, u)[0].square().sum()


def dependence_gradient(functions: Float[Tensor, "f r d"], u: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    """d dependence / d u_i = 2 sum_k (R_ik - 2 mean_k)' C_k R_ik, C_k without its diagonal."""
    c, mean = covariances(functions, u)
    return 2 * (((functions - 2 * mean) @ c) * functions).sum((0, 2))


def through_softmax(p: Float[Tensor, " r"], gradient: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    """d L / d v for p = softmax(v), from d L / d p."""
    return p * (gradient - (p * gradient).sum())
