"""Figures 3 and 4: how the margins of test examples change from ERM to a method, by ERM's own margin.

Delta_i = PM_i(method) - PM_i(ERM), PM the probabilistic margin p_y - max_{j != y} p_j of the classifier at the last
update; averaged in bins of PM_i(ERM) of width 0.2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any  # Any: plain data

import numpy as np
import numpy.typing as npt

from molere.statistics import mean_interval

Numbers = npt.NDArray[np.float64]
Margins = Mapping[str, Mapping[int, Numbers]]
"""Column -> seed -> margin of each test example [n]."""

EDGES: Numbers = np.round(np.linspace(-1, 1, 11), 10)
PLACES: Numbers = np.round(np.linspace(-1, 1, 61), 10)
"""Edges of the histogram of changes; the few beyond are not counted there."""
ERRS, RIGHT = " where ERM errs", " where ERM is right"


@dataclass(frozen=True)
class Bin:
    """Test examples whose margin under ERM lies in [low, high): how many, and their mean change."""

    low: float
    high: float
    n: float
    """Examples, mean over seeds."""
    mean: float
    sem: float
    """Standard error of the mean, over examples and then averaged over seeds."""
    std: float


def changes(margins: Margins, reference: str) -> dict[str, dict[int, Numbers]]:
    """Column -> seed -> Delta [n], for seeds that the reference has too; zero for the reference itself."""
    base = margins[reference]
    return {
        column: {seed: m - base[seed] for seed, m in by_seed.items() if seed in base}
        for column, by_seed in margins.items()
    }


def values(margins: Margins, reference: str) -> dict[str, dict[int, float]]:
    """What claims are judged by: mean Delta of each column, over all examples, where ERM errs, where it is right."""
    found = dict[str, dict[int, float]]()
    for column, by_seed in changes(margins, reference).items():
        right = {seed: margins[reference][seed] > 0 for seed in by_seed}
        found[column] = {seed: float(d.mean()) for seed, d in by_seed.items()}
        found[column + ERRS] = {s: float(d[~right[s]].mean()) for s, d in by_seed.items() if not right[s].all()}
        found[column + RIGHT] = {s: float(d[right[s]].mean()) for s, d in by_seed.items() if right[s].any()}
    return found


def bins(change: Mapping[int, Numbers], base: Mapping[int, Numbers]) -> list[Bin]:
    """The mean change in each bin of the reference's margin; per seed first, then over seeds. 1 is in the last bin."""
    found = list[Bin]()
    for k, (low, high) in enumerate(zip(EDGES[:-1], EDGES[1:], strict=True)):
        inside = [d[_bin_of(base[seed]) == k] for seed, d in change.items()]
        inside = [d for d in inside if len(d)]
        n = sum(map(len, inside)) / max(1, len(change))
        found.append(Bin(float(low), float(high), n, *_moments(inside)))
    return found


def _bin_of(margin: Numbers) -> npt.NDArray[np.int64]:
    places = np.searchsorted(EDGES, margin, side="right") - 1
    return np.clip(places, 0, len(EDGES) - 2)


def _moments(inside: Sequence[Numbers]) -> tuple[float, float, float]:
    """Mean, standard error and standard deviation, each averaged over seeds; NaN for nothing."""
    if not inside:
        return math.nan, math.nan, math.nan
    std = [float(d.std(ddof=1)) if len(d) > 1 else 0.0 for d in inside]
    sem = [s / len(d) ** 0.5 for s, d in zip(std, inside, strict=True)]
    return float(np.mean([d.mean() for d in inside])), float(np.mean(sem)), float(np.mean(std))


def table(margins: Margins, reference: str) -> list[list[str]]:
    """A line for each column: mean change over all, where ERM errs, where it is right, and the median."""
    summary, delta = values(margins, reference), changes(margins, reference)
    rows = list[list[str]]()
    for column in (c for c in margins if c != reference):
        cells = [mean_interval(list(summary[column + part].values())) for part in ("", ERRS, RIGHT)]
        middle = mean_interval([float(np.median(d)) for d in delta[column].values()])
        texts = [f"{m.mean:+.4f}" + (f" ± {m.half_width:.4f}" if m.n > 1 else "") for m in (*cells, middle)]
        rows.append([column, *texts])
    return rows


def summary(margins: Margins, reference: str) -> dict[str, dict[str, Any]]:
    """What the figure is drawn from, as plain data: for each column bins, histogram, mean and median of the changes."""
    found = dict[str, dict[str, Any]]()
    for column, change in changes(margins, reference).items():
        if column != reference and change:
            every = np.concatenate(list(change.values()))
            found[column] = {
                "bins": [asdict(b) for b in bins(change, margins[reference])],
                "histogram": np.histogram(every, PLACES)[0].tolist(),
                "mean": float(every.mean()),
                "median": float(np.median(every)),
                "n": len(every),
            }
    return found
