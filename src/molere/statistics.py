"""Means over seeds with their intervals, and paired comparisons to a baseline.

A method and its baseline share their seeds (the same split of the data, the same initial weights, the same
batches), so they are compared seed by seed: the spread of the differences is what counts, not the spread of
either. Numbers in, numbers out: no tensors, no files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import special

LEVEL = 0.95
NAN = math.nan


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over n seeds and the half-width of its 95 % interval (Student t); nan where n is too small."""

    n: int
    mean: float
    half_width: float


@dataclass(frozen=True, slots=True)
class Paired:
    """A method minus its baseline over their common seeds.

    difference, se, half_width: mean of the n differences, its standard error, half of its 95 % interval; in
    the metric's unit, with its sign (for a loss, negative is good). p: two-sided paired t test. wins, ties:
    seeds on which the method is better, or equal. relative: difference / mean of the baseline.
    """

    n: int
    difference: float
    se: float
    half_width: float
    p: float
    wins: int
    ties: int
    relative: float

    @property
    def losses(self) -> int:
        """Seeds on which the method is worse."""
        return self.n - self.wins - self.ties


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> Mean:
    """Mean, and half-width t_{(1+level)/2, n-1} s / sqrt(n) of its interval; nan for a single value."""
    n = len(values)
    if n == 0:
        return Mean(0, NAN, NAN)
    return Mean(n, _mean(values), _quantile(n, level) * standard_error(values))


def standard_error(values: Sequence[float]) -> float:
    """s / sqrt(n), with s from n - 1 degrees of freedom; nan for fewer than two values."""
    n = len(values)
    if n < 2:
        return NAN
    middle = _mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (n - 1) / n)


def paired(values: Mapping[int, float], baseline: Mapping[int, float], *, higher_is_better: bool = True) -> Paired:
    """Compare two tables seed -> value on the seeds they share; seeds of only one of them are left out.

    Differences within rounding (1e-12 of the values) are exact ties.
    """
    seeds = sorted(values.keys() & baseline.keys())
    differences = [_difference(values[s], baseline[s]) for s in seeds]
    if not seeds:
        return Paired(0, NAN, NAN, NAN, NAN, 0, 0, NAN)
    mean = mean_interval(differences)
    reference = _mean([baseline[s] for s in seeds])
    return Paired(
        n=len(seeds),
        difference=mean.mean,
        se=standard_error(differences),
        half_width=mean.half_width,
        p=paired_t_test(differences),
        wins=sum(d > 0 if higher_is_better else d < 0 for d in differences),
        ties=sum(d == 0 for d in differences),
        relative=mean.mean / reference if reference != 0 else NAN,
    )


def paired_t_test(differences: Sequence[float]) -> float:
    """Two-sided p of "the mean difference is zero": 2 F_{n-1}(-|mean| / se); nan below two differences.

    Differences without any spread leave t undefined. If all are zero, p = 1. If all are the same other
    number (accuracies on a small test set), p is that of the exact sign-flip test, 2^(1-n): never smaller
    than n seeds can support.
    """
    n = len(differences)
    if n < 2:
        return NAN
    mean, se = _mean(differences), standard_error(differences)
    if all(d == 0 for d in differences):
        return 1.0
    if se * math.sqrt(n) <= 1e-9 * abs(mean):
        return 2.0 ** (1 - n)
    return min(1.0, 2 * float(special.stdtr(n - 1, -abs(mean) / se)))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p (Holm 1979): the i-th smallest of m becomes max_{j <= i} min(1, (m - j + 1) p_(j)).

    An undefined p (nan) stays nan and does not count among the m tests.
    """
    tests = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    adjusted = dict.fromkeys(p, NAN)
    largest = 0.0
    for i, (value, name) in enumerate(tests):
        largest = max(largest, min(1.0, (len(tests) - i) * value))
        adjusted[name] = largest
    return adjusted


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _difference(value: float, reference: float) -> float:
    difference = value - reference
    return 0.0 if abs(difference) <= 1e-12 * max(abs(value), abs(reference)) else difference


def _quantile(n: int, level: float) -> float:
    """The Student quantile t_{(1+level)/2} with n - 1 degrees of freedom."""
    return float(special.stdtrit(n - 1, (1 + level) / 2)) if n > 1 else NAN
