"""CVaR, DORO and trimmed losses: weights by the size of an example's loss within its batch, nothing learned.

Distributionally robust optimisation trains for the worst part of the data, of share alpha. Noise makes it chase wrong
labels, so DORO leaves out the largest losses first; trimming does only that. With l_(1) >= l_(2) >= ... in a batch:

    CVaR          mean of the first k = floor(alpha n)                                                              (1)
    CVaR-DORO     sum_{j=n2+1..n1} l_(j) / (alpha (n - n2)),  n1 = floor((eps + alpha (1 - eps)) n),
                  n2 = floor(eps n)                                                                                 (2)
    chi2-DORO     min_eta C sqrt(mean_i (l_i - eta)_+^2) + eta,  C = sqrt(1 + (1/alpha - 1)^2), i over the n - n2
                  losses that (2) leaves                                                                            (3)
    trimmed       mean of what is left without the floor(share n) largest                                           (4)

Source: Zhai, Dan, Kolter, Ravikumar, "DORO: Distributional and Outlier Robust Optimization", ICML 2021.

Each objective R is handed to `run.update` as weights w_i = n dR/dl_i, held constant, for then

    grad_theta mean_i sg[w_i] l_i  =  sum_i (dR/dl_i) grad_theta l_i  =  grad_theta R(l(theta)).

(1), (2) and (4) are linear in the losses while their order stays: the weights are the coefficients, times n. In (3) eta
is where the objective is least, so d R/d eta = 0 there and only the direct dependence counts (Danskin):

    dR/dl_i = C (l_i - eta)_+ / (n' sqrt(mean (l - eta)_+^2)),    n' = n - n2.

d R/d eta = 0 also says that these sum to 1, so w_i = n (l_i - eta)_+ / sum_j (l_j - eta)_+. All four are homogeneous in
the losses, R(c l) = c R(l), so that by Euler's theorem mean(w_i l_i) is the objective's value, too.
"""

import abc
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from molere.data.pool import Batch
from molere.fields import check_fields
from molere.losses import TOLERANCE
from molere.method import Method, Run
from molere.split import Split
from molere.steps import Taken


class ByLoss(Method[None], abc.ABC):
    """The whole pool trains, on weights that are a function of the batch's losses alone."""

    @abc.abstractmethod
    def weights(self, losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """w_i = n dR/dl_i of the objective R, from detached losses."""

    def init(self, run: Run) -> None:
        """Nothing to remember."""

    def split(self, run: Run, state: None) -> Split:
        """The whole pool trains, nothing validates."""
        return Split.of(torch.empty(0, dtype=torch.int64), len(run.pool))

    def step(self, run: Run, state: None, batch: Batch) -> Taken:
        """One update on the objective's gradient."""
        seen = run.forward(batch)
        return run.update(seen, self.weights(seen.losses.detach()))


@dataclass(frozen=True, kw_only=True)
class CVaR(ByLoss):
    """The mean of the largest losses of a batch."""

    alpha: Annotated[float, Interval(gt=0, le=1)] = 0.2
    """Share of the batch that counts; 1 is plain training."""

    def __post_init__(self) -> None:
        check_fields(self)

    def weights(self, losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """n / k for the k largest, else 0."""
        k = max(1, _floor(self.alpha * len(losses)))
        return _ranked(losses, 0, k) * (len(losses) / k)  # 1


@dataclass(frozen=True, kw_only=True)
class DORO(ByLoss):
    """A robust objective on what is left of a batch without its largest losses; epsilon 0 leaves all of it."""

    objective: Literal["cvar", "chi2"] = "cvar"
    """The robust objective: CVaR, or the worst case within a chi-square ball."""
    alpha: Annotated[float, Interval(gt=0, le=1)] = 0.2
    """Share of the worst part; 1 is the plain mean."""
    epsilon: Annotated[float, Interval(ge=0, lt=1)] = 0.05
    """Share of the batch, the largest losses, that is left out as outliers."""

    def __post_init__(self) -> None:
        check_fields(self)

    def weights(self, losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Coefficients of (2), or the normalised excess of (3)."""
        n = len(losses)
        dropped = min(n - 1, _floor(self.epsilon * n))  # n2
        if self.objective == "chi2":
            return _chi_square(losses, self.alpha, dropped)
        last = max(dropped + 1, _floor((self.epsilon + self.alpha * (1 - self.epsilon)) * n))  # n1
        return _ranked(losses, dropped, last) * (n / max(1.0, self.alpha * (n - dropped)))  # 2


@dataclass(frozen=True, kw_only=True)
class Trimmed(ByLoss):
    """The mean of a batch without its largest losses."""

    share: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Share of the batch that is left out; 0 is plain training."""

    def __post_init__(self) -> None:
        check_fields(self)

    def weights(self, losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """n / (n - k) for all but the k largest."""
        n = len(losses)
        dropped = min(n - 1, _floor(self.share * n))
        return _ranked(losses, dropped, n) * (n / (n - dropped))  # 4


def _floor(x: float) -> int:
    """The integer below, where (0.1 + 0.2 * 0.9) * 100 counts as 28."""
    return math.floor(x + TOLERANCE)


def _ranked(losses: Tensor, first: int, last: int) -> Tensor:
    """1 for the losses of rank first + 1 to last, the largest having rank 1; of equal ones, earlier ones come first."""
    chosen = torch.zeros_like(losses)
    chosen[losses.argsort(descending=True, stable=True)[first:last]] = 1
    return chosen


def _chi_square(losses: Tensor, alpha: float, dropped: int) -> Tensor:
    """The normalised excess over eta of those that are left (3)."""
    if (1 / alpha - 1) ** 2 < TOLERANCE:  # C = 1: the least is at minus infinity, and is the plain mean
        return _ranked(losses, dropped, len(losses)) * (len(losses) / (len(losses) - dropped))
    order = losses.argsort(descending=True, stable=True)[dropped:]
    kept = losses[order].double()
    kept = kept - kept.mean()  # shifting all losses shifts eta
    excess = (kept - least_eta(kept, alpha)).clamp_min(0)
    tied = (kept == kept[0]).double()  # eta at the largest loss: a subgradient of the maximum, shared by equal ones
    excess = torch.where(excess.sum() > 0, excess, tied)
    weights = torch.zeros_like(losses)
    weights[order] = (len(losses) * excess / excess.sum()).to(losses.dtype)
    return weights


def least_eta(losses: Float[Tensor, " n"], alpha: float) -> Float[Tensor, ""]:
    """Where C sqrt(mean (l - eta)_+^2) + eta is least (3), for losses in falling order and alpha below 1.

    While eta lies between the k-th and the next loss, with m and v the mean and the variance of the first k, the
    objective is C sqrt(k/n (v + (m - eta)^2)) + eta, whose derivative vanishes at eta = m - sqrt(v / (C^2 k/n - 1)). Of
    these n candidates, each moved into its interval, the best is taken, since the objective is convex.
    """
    n = len(losses)
    k = torch.arange(1, n + 1, dtype=losses.dtype, device=losses.device)
    square = 1 + (1 / alpha - 1) ** 2  # C^2
    m = losses.cumsum(0) / k
    v = ((losses * losses).cumsum(0) / k - m * m).clamp_min(0)
    slope = square * k / n - 1
    low = torch.cat([losses[1:], losses.new_full((1,), -math.inf)])
    free = torch.where(slope > 0, m - (v / slope).sqrt(), -math.inf)
    eta = torch.minimum(torch.maximum(free, low), losses)
    value = (square * k / n * (v + (m - eta).square())).sqrt() + eta
    return eta[value.nan_to_num(nan=math.inf).argmin()]
