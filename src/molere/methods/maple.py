"""MAPLE: each example is kept with a probability of its own, learned so that plain training on the kept ones does well.

s_i: probability that example i is kept, sum_i s_i <= K.  b_i: whether a mask keeps it.  R: an outer risk, measured on a
validation part or the whole pool: its mean loss, its worst losses, or a penalty on differences between groups.

    min_s E_b R(theta*(b)),  theta*(b) = argmin_theta sum_i b_i l_i(theta) / sum_i b_i,  b_i ~ Bernoulli(s_i)       (1)
    b_i = 1[q_i >= 1/2],  q_i = sigmoid(tau (logit s_i + eta_i)),  eta_i logistic noise;  d b_i / d q_i := 1        (2)
    theta_E = theta_{E-1} - lr (momentum and grad sum_i b_i l_i / sum_j b_j), the sum over b held constant          (3)
    d R / d b_i = - lr < grad l_i(theta_{E-1}), grad R(theta_E) > / sum_j b_j, for examples that were left out, too (4)
    d R / d s_i = d R / d b_i  tau q_i (1 - q_i) / (s_i (1 - s_i))                                                  (5)
    s <- clip(Adam(s) - v, 0, 1) with the least v >= 0 for which sum_i s_i <= K                                     (6)
    tau = 1 / (.97 (1 - p) + .03); K falls as (1 - (p - .16) / .44)^3 from p = .16 to .6;  p: share of the way done (7)

Source: Zhou, Lin, Pi, Zhang, Xu, Cui, Zhang, "Model Agnostic Sample Reweighting for Out-of-Distribution Learning", ICML
2022.

full (as published): each iteration of s restarts theta from the same initial parameters and trains it by full batches;
the classifier then trains on the best mask. online: masks of mini-batches, and no restart: each step of the classifier
is the last step (3), in hindsight.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Bool, Float
from torch import Tensor

from molere import rng
from molere.data.pool import Batch
from molere.errors import DataError
from molere.fields import check_fields
from molere.fullbatch import Found, Trial
from molere.holdouts import Holdout, Random
from molere.losses import group_means, invariance_penalty, risk_variance, worst_mean
from molere.method import Method, Run
from molere.networks import mean_one
from molere.split import Split
from molere.steps import Risk, Taken

LARGEST_NORM = 3.0
"""Of the gradient of s, as published."""
EDGE = 1e-6
"""Least distance of s from 0 and 1 inside logarithms."""
TRIES = 10
"""Masks drawn until one keeps something."""
WORST = 0.2
"""Share of the losses that risk=cvar counts."""


@dataclass
class MAPLEState:
    """What changes in a MAPLE run."""

    part: Tensor
    """The examples that the risk is measured on."""
    trains: Tensor
    """The examples that s is learned for."""
    s: Tensor
    """Probabilities of being kept [N]; 0 for examples that never train."""
    moments: Tensor
    """Adam's of s [2, N]."""
    visits: Tensor
    """Its steps, for each example [N]."""
    kept: Tensor
    """The examples that the full form has found."""
    found: bool = False
    """Whether it has."""


@dataclass(frozen=True, kw_only=True)
class MAPLE(Method[MAPLEState]):
    """Learns which examples to keep, so that plain training on them has a low risk elsewhere."""

    form: Literal["online", "full"] = "online"
    """Along with the classifier (online), or by whole trainings beforehand (full, as published)."""
    risk: Literal["val", "cvar", "irmv1", "rex"] = "val"
    """Mean loss, mean of the worst fifth, or differences between groups: of their slopes (irmv1) or losses (rex)."""
    judge: Literal["part", "pool"] = "part"
    """What the risk is measured on: the validation part, or the whole pool, which then all trains (published)."""
    holdout: Holdout = Random()
    """Which part of the pool validates, if judge=part."""
    delta: Annotated[float, Interval(gt=0, le=0.5)] = 0.1
    """Its share of the pool."""
    keep: bool = False
    """Whether the validation part also trains."""
    share: Annotated[float, Interval(gt=0, le=1)] = 0.5
    """Share of the training examples that are kept in the end (K over their number)."""
    start: Annotated[float, Interval(gt=0, le=1)] | None = None
    """The same at the start, and the first s; none: the same share."""
    lr: Annotated[float, Gt(0)] = 0.05
    """Of s, by Adam."""
    q: Annotated[int, Ge(1)] = 1
    """Classifier updates for each update of s (online)."""
    iterations: Annotated[int, Ge(1)] = 30
    """Updates of s, and trainings (T; full)."""
    masks: Annotated[int, Ge(1)] = 1
    """Masks, and trainings, for each update of s (full)."""
    steps: Annotated[int, Ge(1)] = 100
    """Full-batch steps of such a training (E; full)."""
    inner_lr: Annotated[float, Gt(0)] = 0.1
    """Its learning rate (full)."""
    inner_momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Its momentum (full)."""
    choose: Literal["best", "last"] = "best"
    """The mask whose training had the least loss (of the worst group, if the risk is of groups), or one of the last s
    (full)."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> MAPLEState:
        """The validation part (which may take scouts), and equal probabilities."""
        self._check(run)
        size, device = len(run.pool), run.device
        part = torch.arange(size) if self.judge == "pool" else self.holdout(run, self.delta).val
        trains = Split.of(part, size, keep=self.keeps).train.to(device)
        s = torch.zeros(size, dtype=torch.float64, device=device)
        s[trains] = self.share if self.start is None else self.start
        return MAPLEState(
            part=part.to(device),
            trains=trains,
            s=s,
            moments=s.new_zeros(2, size),
            visits=s.new_zeros(size),
            kept=torch.empty(0, dtype=torch.int64),
        )

    def _check(self, run: Run) -> None:
        group = run.pool.group
        if self.risk not in ("irmv1", "rex"):
            return
        if group is None:
            given = f"risk={self.risk} compares groups and these data have none"
            raise DataError(f"{given}; pass group, or use risk=val or risk=cvar")
        if bool((group == group[0]).all()):
            raise DataError(f"risk={self.risk} compares groups and all examples are in one; use risk=val or risk=cvar")

    @property
    def keeps(self) -> bool:
        """Whether what validates also trains."""
        return self.keep or self.judge == "pool"

    def split(self, run: Run, state: MAPLEState) -> Split:
        """Online: the same split throughout; full: the kept examples train, once they have been found."""
        if self.form == "online":
            run.log(kept=float(state.s.sum()) / len(state.trains))
            return Split.of(state.part, len(run.pool), keep=self.keeps)
        if not state.found:
            with run.as_scout():
                self.search(run, state)
        run.note(keep_probability=state.s)
        run.log(kept=len(state.kept) / len(state.trains))
        val = state.part[:0] if self.judge == "pool" else state.part
        return Split(state.kept.cpu(), val.cpu().sort().values, shared=self.keeps)

    def step(self, run: Run, state: MAPLEState, batch: Batch) -> Taken:
        """Full: one plain update on kept examples. Online: one on those that a mask keeps; once in q, one of s."""
        if self.form == "full":
            return run.update(run.forward(batch))
        meta = run.due(self.q)
        seen = run.forward(batch, remember=meta)
        done = run.updates / run.budget
        b, slope = mask(state.s[batch.index], temperature(done), run.rng("mask"))  # 2
        taken = run.update(seen, mean_one(b.to(seen.losses.dtype)), remember=meta)  # 3
        if meta:
            look = run.look_back(taken, Risk(self.outer))
            grad = run.weight_gradient(look) * len(batch) / b.sum()  # 4, as w_i = n b_i / sum b
            self.learn(state, batch.index, grad * slope, done)  # 5
            run.note(keep_probability=state.s)
        return taken

    def outer(self, batch: Batch, logits: Tensor, losses: Tensor) -> Tensor:
        """R of some examples, from their logits and losses."""
        if self.risk == "val":
            return losses.mean()
        if self.risk == "cvar":
            return worst_mean(losses, WORST)
        assert batch.group is not None, "checked in init"
        if self.risk == "rex":
            return risk_variance(losses, batch.group)
        return invariance_penalty(logits, batch.y, batch.group)

    def size(self, done: float, state: MAPLEState) -> float:
        """K when this share of the way is done."""
        start = self.share if self.start is None else self.start
        return share_kept(done, start, self.share) * len(state.trains)

    def learn(self, state: MAPLEState, index: Tensor, grad: Tensor, done: float) -> None:
        """One step of Adam on s of some examples (of one drawn twice, on both gradients), then the projection."""
        g = torch.zeros_like(state.s).index_add(0, index, grad.to(state.s.dtype))
        g = g * (LARGEST_NORM / (g.square().sum().sqrt() + 1e-6)).clamp_max(1)
        drawn = torch.zeros_like(state.s, dtype=torch.bool).index_fill(0, index, True)
        m, v = state.moments.unbind()
        m, v = torch.where(drawn, 0.9 * m + 0.1 * g, m), torch.where(drawn, 0.999 * v + 0.001 * g.square(), v)
        t = state.visits + drawn
        move = self.lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        s = torch.where(drawn, state.s - move, state.s)
        s[state.trains] = project(s[state.trains], self.size(done, state))  # 6
        state.s, state.moments, state.visits = s, torch.stack([m, v]), t

    # ---- the full form

    def search(self, run: Run, state: MAPLEState) -> None:
        """All iterations of s, each with its trainings from the classifier's present parameters."""
        best, risks = math.inf, list[float]()
        for k in range(self.iterations):
            done, grad = k / self.iterations, torch.zeros_like(state.s[state.trains])
            for j in range(self.masks):
                draws = rng.generator(run.seed, "mask", k, j)
                b, slope = mask(state.s[state.trains], temperature(done), draws)  # 2
                trial = Trial(
                    run=run,
                    objective=Risk(self.outer),
                    on=state.trains,
                    judge=state.part,
                    steps=self.steps,
                    lr=self.inner_lr,
                    momentum=self.inner_momentum,
                    stream=rng.key(run.seed, "trial", k, j),
                )
                found = trial(b)
                grad += found.by_weight * slope / self.masks  # 4, 5
                risks.append(found.risk)
                loss = self.loss(run, state, found)
                if loss < best and self.size(done, state) <= self.share * len(state.trains):
                    best, state.kept = loss, state.trains[b]
            self.learn(state, state.trains, grad, done)
        if self.choose == "last" or best == math.inf:
            b, _ = mask(state.s[state.trains], temperature(1.0), rng.generator(run.seed, "selection"))
            state.kept = state.trains[b]
        state.found = True
        run.log(outer_risk_first=risks[0], outer_risk_last=risks[-1])

    def loss(self, run: Run, state: MAPLEState, found: Found) -> float:
        """The loss that masks are chosen by."""
        group = run.pool.group
        if self.risk in ("irmv1", "rex") and group is not None:
            return float(group_means(found.losses, group[state.part]).max())
        return float(found.losses.mean())


# ---- the pieces of s


def temperature(done: float) -> float:
    """Tau (7) when this share of the way is done: from 1 to 33."""
    return 1 / (0.97 * (1 - done) + 0.03)


def share_kept(done: float, start: float, target: float) -> float:
    """K (7) over the number of examples when this share of the way is done."""
    left = 1 - min(max((done - 0.16) / 0.44, 0.0), 1.0)
    return target + (start - target) * left**3


def mask(
    s: Float[Tensor, " n"], tau: float, generator: torch.Generator
) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """(b, d b / d s) of a mask (2, 5) that keeps something; P(b_i = 1) = s_i whatever tau is."""
    s = s.clamp(EDGE, 1 - EDGE)
    b, q = torch.zeros_like(s, dtype=torch.bool), s
    for _ in range(TRIES):
        u = torch.rand(2, len(s), dtype=torch.float64, generator=generator).clamp_min(1e-12).to(s.device)
        gumbel = -(-u.log()).clamp_min(1e-12).log()
        q = torch.sigmoid(tau * (s.logit() + gumbel[0] - gumbel[1]))
        b = q >= 0.5
        if bool(b.any()):
            break
    else:
        b[q.argmax()] = True
    return b, tau * q * (1 - q) / (s * (1 - s))


def project(s: Float[Tensor, " n"], size: float) -> Float[Tensor, " n"]:
    """The point of {0 <= s <= 1, sum s <= size} nearest to s (6).

    The sum of clip(s - v, 0, 1) falls piecewise linearly in v: Newton's steps, or halves of the bracket where one of
    them leaves it, find the v that gives `size`.
    """
    v, low, high = 0.0, 0.0, max(0.0, float(s.max()))
    for _ in range(100):
        excess = float((s - v).clamp(0, 1).sum()) - size
        if abs(excess) <= 1e-12 * max(1.0, size) or (v == 0 and excess <= 0):
            break
        low, high = (v, high) if excess > 0 else (low, v)
        free = int(((s > v) & (s < v + 1)).sum())
        newton = v + excess / free if free else low
        v = newton if low < newton < high else (low + high) / 2
    return (s - v).clamp(0, 1)
