"""Losses as pure functions: per example, weighted, and the terms of the splitter's objective.

Symbols: l_i the cross-entropy of example i; a_i = P(train | x_i, y_i) the splitter's probability; delta the
share of the pool that validates. Equation numbers are those of Jain, Suggala and Shenoy, "Improving
Generalization via Meta-Learning on Hard Samples" (CVPR 2024).
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

FLOOR = 1e-8
"""Least probability inside a logarithm; also the least mass of either side of a split."""

TOLERANCE = 1e-9
"""Added before rounding down, so that 0.29 * 100 counts as 29."""


def cross_entropy(logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """l_i = -log softmax(logits_i)[y_i], without reduction, in float32 (float64 stays float64)."""
    return F.cross_entropy(_wide(logits), y, reduction="none")


def split_loss(train_probability: Float[Tensor, " n"], correct: Bool[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Cross-entropy of a_i with "the classifier is right on i" (eq. 5): right trains, wrong validates."""
    a = _wide(train_probability)
    return -_log(torch.where(correct, a, 1 - a))


def soft_validation_objective(
    train_probability: Float[Tensor, " n"],
    losses: Float[Tensor, " n"],
    stabilise: Literal["none", "standardise", "clip"] = "none",
) -> Float[Tensor, ""]:
    """J = sum_i (1 - a_i) l_i / sum_i (1 - a_i), the validation loss under soft membership (l_i: constants).

    dJ/da_i = -(l_i - J) / sum_j (1 - a_j): maximising J moves examples of more than average loss to the
    validation part. J does not change when all 1 - a_i are scaled, so it says nothing about the size of that
    part. `standardise` shifts and scales the losses to mean 0 and deviation 1, `clip` caps them at their 95 %
    quantile.
    """
    losses = _stabilised(losses.detach(), stabilise)
    membership = 1 - _wide(train_probability) + FLOOR
    return (membership * losses).sum() / membership.sum()


def share_penalty(train_probability: Float[Tensor, " n"], delta: float) -> Float[Tensor, ""]:
    """Omega_1 = KL( (1 - delta, delta) || (r, 1 - r) ), r = mean_i a_i; 0 at 1 - delta, large at 0 and 1."""
    a = _wide(train_probability)
    constant = _entropy_term(1 - delta) + _entropy_term(delta)
    return constant - (1 - delta) * _log(a.mean()) - delta * _log((1 - a).mean())


def label_penalty(train_probability: Float[Tensor, " n"], y: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, ""]:
    """Omega_2 = sum over both parts of KL( P(y) || P(y | part) ), over the classes present in the batch.

    P(y = c | train) = sum_i a_i 1[y_i = c] / sum_i a_i, with 1 - a_i for the validation part; P(y) is a
    constant.
    """
    a = _wide(train_probability)
    label = F.one_hot(y, num_classes).to(a.dtype)
    label = label[:, label.any(dim=0)]
    prior = label.mean(dim=0)
    return _kl_to_share(prior, a @ label) + _kl_to_share(prior, (1 - a) @ label)


def difficulty_aware(
    losses: Float[Tensor, " n"],
    eta: float | None = None,
    epsilon: float = 1e-6,
    level: Literal["batch", "example"] = "batch",
    p_true: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "..."]:
    """-L^eta log max(epsilon, 1 - L), a meta loss that gives easy tasks little weight (Li et al., 2020).

    level="batch": L is the mean of the losses, the result a scalar; eta defaults to 1. Beyond L = 1 - epsilon
    the logarithm saturates and multiplies the gradient by -log(epsilon), so warm up before using it with many
    classes. level="example": L_i = 1 - p_i with p_i the probability of the label (default exp(-l_i)), which
    is the focal loss; the result has shape [n] and eta defaults to 2.
    """
    if level == "batch":
        mean = losses.mean()
        return -_power(mean, 1.0 if eta is None else eta) * (1 - mean).clamp_min(epsilon).log()
    p = (-losses).exp() if p_true is None else p_true
    return -_power(1 - p, 2.0 if eta is None else eta) * p.clamp_min(epsilon).log()


def trimmed_mean(losses: Float[Tensor, " n"], share: float) -> Float[Tensor, ""]:
    """Mean of the losses without the floor(share * n) largest (of equal ones, later ones go first).

    Loss clipping against label noise (Zhai et al., ICML 2021); at least one loss is kept.
    """
    dropped = math.floor(share * len(losses) + TOLERANCE)
    kept = losses.detach().argsort(stable=True)[: max(1, len(losses) - dropped)]
    return losses[kept].mean()


def clip_factors(losses: Float[Tensor, " n"], share: float) -> Float[Tensor, " n"]:
    """n / (n - k) for each loss but the k = floor(share n) largest, 0 for these: with them a mean is `trimmed_mean`."""
    k = min(len(losses) - 1, math.floor(share * len(losses) + TOLERANCE))
    kept = losses.detach().argsort(stable=True)[: len(losses) - k]
    return torch.zeros_like(losses).index_fill(0, kept, len(losses) / (len(losses) - k)).detach()


def worst_mean(losses: Float[Tensor, " n"], share: float) -> Float[Tensor, ""]:
    """Mean of the floor(share * n) largest losses, at least one: CVaR of level `share`."""
    k = max(1, math.floor(share * len(losses) + TOLERANCE))
    return losses.topk(k).values.mean()


def invariance_penalty(
    logits: Float[Tensor, "n c"], y: Int[Tensor, " n"], group: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Mean over groups e of (d R_e(a f) / d a at a = 1)^2, R_e their mean cross-entropy (IRMv1, Arjovsky et al., 2019).

    For logits f, d l_i(a f) / d a at a = 1 is sum_c (p_ic - 1[y_i = c]) f_ic.
    """
    f = _wide(logits)
    slope = ((f.softmax(1) - F.one_hot(y, f.shape[1])) * f).sum(1)
    return group_means(slope, group).square().mean()


def risk_variance(losses: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Variance of the groups' mean losses (V-REx, Krueger et al., 2021), over the number of groups."""
    return group_means(losses, group).var(correction=0)


def group_means(values: Float[Tensor, " n"], group: Int[Tensor, " n"]) -> Float[Tensor, " g"]:
    """The mean of each group that is there."""
    counts = group.bincount()
    sums = values.new_zeros(len(counts)).index_add(0, group, values)
    return sums[counts > 0] / counts[counts > 0]


def _wide(values: Tensor) -> Tensor:
    """Values in float32 at least: half precision knows nothing between 0.996 and 1."""
    return values if values.dtype == torch.float64 else values.float()


def _log(p: Tensor) -> Tensor:
    """Logarithm of p moved linearly from [0, 1] into [FLOOR, 1 - FLOOR]: finite, with a gradient.

    Clamping instead would cut the gradient off exactly where a collapsed splitter needs it.
    """
    return (FLOOR + (1 - 2 * FLOOR) * p).log()


def _entropy_term(p: float) -> float:
    return p * math.log(p) if p > 0 else 0.0


def _kl_to_share(prior: Tensor, mass: Tensor) -> Tensor:
    """KL(prior || mass / its sum), where a part of no mass counts as having the labels of the whole."""
    share = (mass + FLOOR * prior) / (mass.sum() + FLOOR)
    return (prior * (prior / share).log()).sum()


def _power(base: Tensor, eta: float) -> Tensor:
    """base^eta, kept off zero, where the gradient of a power below one is infinite."""
    return base.clamp_min(1e-12) ** eta


def _stabilised(losses: Tensor, how: Literal["none", "standardise", "clip"]) -> Tensor:
    if how == "standardise":
        return (losses - losses.mean()) / (losses.std(correction=0) + FLOOR)
    if how == "clip":
        return losses.clamp_max(losses.quantile(0.95))
    return losses
