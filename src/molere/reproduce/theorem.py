"""Theorem 1 on a problem small enough to try every part: what is chosen first, the part or the classifier?

Twelve points of the plane with labels, two copies of each, are the pool; K = 4 of its 24 examples validate. The
classifier is logistic regression, and the loss l of a point includes its share of a ridge, so that all is convex:

    max-min   max over parts S' of min over theta of sum_{S'} l        (eq. 3), by trying every part
    min-max   min over theta of max over parts S' of sum_{S'} l        (eq. 4), the pool's CVaR, by convex programming
    tri-level max over S' of the loss on S' of what is trained on the rest with the best weights   (eq. 2)

Jain, Suggala and Shenoy (2024), theorem 1: the first and the last agree where weights see x and y. No part takes both
copies of a point, so the rest covers what validates (the common support of the proof).
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast  # Any: scipy's results

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

COPIES = 2
K = 4
RIDGE = 0.02
POINTS: Numbers = np.array(
    [[-1.4, 0.3], [-1.1, -0.6], [-0.8, 0.9], [-1.7, -0.2], [-0.5, -0.3], [-0.9, 0.2],
     [1.2, 0.4], [0.9, -0.7], [1.6, 0.1], [0.6, 0.8], [0.7, 2.2], [-0.5, -0.3]]
)  # fmt: skip
LABELS: Counts = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1])
"""The eleventh point is of a rare kind, learnable from its second coordinate; the fifth and twelfth are one input
with both labels."""

INPUTS: Numbers = np.column_stack((POINTS, np.ones(len(POINTS))))
SIGNS: Numbers = np.where(LABELS == 1, 1.0, -1.0)


def losses(theta: Numbers) -> Numbers:
    """-log p(y | x) + ridge / 2 |theta|^2 of every point [..., 12] under parameters [..., 3]."""
    margin = SIGNS * (theta @ INPUTS.T)
    return np.logaddexp(0.0, -margin) + 0.5 * RIDGE * (theta**2).sum(-1, keepdims=True)


def parts() -> Counts:
    """Every part of K points, one copy of each at most, as copies taken of each point [495, 12]."""
    return np.array([[a in part for a in range(len(LABELS))] for part in combinations(range(len(LABELS)), K)], np.int64)


def fitted(weights: Numbers) -> Numbers:
    """Parameters [n, 3] of least weighted loss, weights [n, 12], by Newton's method with halved steps."""
    theta = np.zeros((len(weights), INPUTS.shape[1]))
    for _ in range(60):
        step = _newton(theta, weights)
        size, before = np.ones(len(weights)), _total(theta, weights)
        for _ in range(30):
            worse = _total(theta - size[:, None] * step, weights) > before + 1e-15
            if not worse.any():
                break
            size[worse] /= 2
        theta = theta - size[:, None] * step
        if np.abs(step).max() < 1e-12:
            break
    return theta


def _total(theta: Numbers, weights: Numbers) -> Numbers:
    return (weights * losses(theta)).sum(1)


def gradients(theta: Numbers) -> Numbers:
    """d l / d theta of every point [..., 12, 3]."""
    p_wrong = 1 / (1 + np.exp(SIGNS * (theta @ INPUTS.T)))
    return -(SIGNS * p_wrong)[..., None] * INPUTS + RIDGE * theta[..., None, :]


def _newton(theta: Numbers, weights: Numbers) -> Numbers:
    gradient = (weights[..., None] * gradients(theta)).sum(1)
    p = 1 / (1 + np.exp(-(theta @ INPUTS.T)))
    curvature = np.einsum("na,ai,aj->nij", weights * p * (1 - p), INPUTS, INPUTS)
    curvature += (RIDGE * weights.sum(1))[:, None, None] * np.eye(INPUTS.shape[1])
    return cast(Numbers, np.linalg.solve(curvature, gradient[..., None]))[..., 0]


def least_loss(weights: Numbers) -> Numbers:
    """min over theta of sum_a weights_a l_a(theta), for each row of weights [n, 12]."""
    return _total(fitted(weights), weights)


@dataclass(frozen=True)
class MinMax:
    """The solution of the min-max problem: parameters [3], value, and a lower bound of the value that proves it."""

    theta: Numbers
    value: float
    bound: float
    mixture: Numbers
    """Copies of each point, fractions allowed, that no classifier does better on than `bound` [12]."""


def min_max() -> MinMax:
    """min over theta and t of K t + sum_a (l_a - t)_+, the sum of the K largest losses, with a slack for each point.

    Rockafellar and Uryasev (2000). Sequential quadratic programming finds it, the mixture proves it.
    """
    from scipy import optimize  # here: it takes long to load

    d, n = INPUTS.shape[1], len(LABELS)
    start = np.concatenate((np.zeros(d), [1.0], np.zeros(n)))
    cost: Numbers = np.concatenate((np.zeros(d), [float(K)], np.ones(n)))
    free: list[tuple[float | None, float | None]] = [(None, None)] * (d + 1)

    def value(z: Numbers) -> float:
        return float(cost @ z)

    def slope(z: Numbers) -> Numbers:
        return cost

    def slack(z: Numbers) -> Numbers:
        return z[d] + z[d + 1 :] - losses(z[:d])

    def slack_slope(z: Numbers) -> Numbers:
        return np.hstack((-gradients(z[:d]), np.ones((n, 1)), np.eye(n)))

    above: dict[str, Any] = {"type": "ineq", "fun": slack, "jac": slack_slope}
    bounds, options = [*free, *[(0.0, None)] * n], {"ftol": 1e-13, "maxiter": 1000}
    solve = cast(Any, optimize.minimize)
    found = solve(value, start, jac=slope, bounds=bounds, constraints=[above], method="SLSQP", options=options)
    theta = np.asarray(found.x[:d], dtype=np.float64)
    mixture = _mixture(theta)
    return MinMax(theta, worst(theta), float(least_loss(mixture[None])[0]), mixture)


def worst(theta: Numbers) -> float:
    """The largest summed loss of a part under a classifier: that of its K largest losses."""
    return float(np.sort(losses(theta))[-K:].sum())


def _mixture(theta: Numbers, near: float = 1e-4) -> Numbers:
    """The part, fractions allowed, against which theta is best: its weighted gradients vanish."""
    from scipy import optimize

    loss, g = losses(theta), gradients(theta)
    level = np.sort(loss)[-K]
    full, tied = loss > level + near, np.abs(loss - level) <= near
    mixture = np.where(full, 1.0, 0.0)
    target = np.concatenate((-(mixture @ g), [K - mixture.sum()]))
    columns = np.vstack((g[tied].T, np.ones(int(tied.sum()))))
    mixture[tied] = cast(Any, optimize.lsq_linear)(columns, target, bounds=(0.0, 1.0), tol=1e-14).x
    return mixture


def of_pairs(counts: Counts) -> float:
    """The loss on a part of what is trained on the rest with weights phi(x, y) = Q_val / Q_train, by another solver.

    phi is k / (copies - k): the weighted training risk is then the validation risk (the proof of theorem 1).
    """
    from scipy import optimize

    rest = COPIES - counts
    weights = rest * (counts / rest)

    def risk(theta: Numbers) -> float:
        return float((weights * losses(theta)).sum())

    def slope(theta: Numbers) -> Numbers:
        return weights @ gradients(theta)

    start, options = np.zeros(INPUTS.shape[1]), {"gtol": 1e-10}
    found = cast(Any, optimize.minimize)(risk, start, jac=slope, method="BFGS", options=options)
    return float((counts * losses(np.asarray(found.x))).sum())


def of_inputs(counts: Counts) -> float:
    """The same with the best weights of the inputs alone, phi(x): one weight for points at the same place."""
    from scipy import optimize

    _, place = np.unique(POINTS, axis=0, return_inverse=True)
    rest = (COPIES - counts).astype(np.float64)

    def loss(log_weights: Numbers) -> float:
        theta = fitted((rest * np.exp(log_weights)[place.ravel()])[None])[0]
        return float((counts * losses(theta)).sum())

    start = np.full(int(place.max()) + 1, -1.0)
    start[np.unique(place.ravel()[counts > 0])] = 1.0
    found = cast(Any, optimize.minimize)(loss, start, method="L-BFGS-B", bounds=[(-12.0, 6.0)] * len(start))
    return float(found.fun)


def one_input(train: float, val: float) -> tuple[float, float]:
    """One input with label 1 in shares `train` and `val`: the mean loss reached on validation, and the least one.

    A weight of the input scales the training risk and leaves its optimum at `train`.
    """
    reached = -(val * np.log(train) + (1 - val) * np.log(1 - train))
    return float(reached), float(-(val * np.log(val) + (1 - val) * np.log(1 - val)))
