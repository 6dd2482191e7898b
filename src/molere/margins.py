"""Paired differences of margins: what one run changes in the margin of each test example, compared with another.

    D_i = PM_i(run) - PM_i(baseline),   PM = p_y - max_{c != y} p_c in [-1, 1]

Their histogram with mean and median, and their mean and standard error by bins of the baseline's margin of width 0.2:
figures 3 and 4 of Jain, Suggala, Shenoy 2024. Both runs must have been tested on the same examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # Any: elements of columns

import numpy as np
import numpy.typing as npt

from molere.errors import DataError, StorageError
from molere.samples import chosen, class_names, found
from molere.storage.samples import read_samples

Margins = npt.NDArray[np.float64]
Predictions = Mapping[str, npt.NDArray[Any]]
FILE = "predictions.parquet"
WIDTH = 0.2


@dataclass(frozen=True, slots=True)
class Bin:
    """Differences where the baseline's margin is in [low, high), the last bin [low, 1]; NaN where n is too small."""

    low: float
    high: float
    n: int
    mean: float
    median: float
    sem: float
    """Standard error of the mean, s / sqrt(n), s from n - 1 degrees of freedom."""
    std: float


@dataclass(frozen=True, eq=False)
class Differences:
    """The baseline's margins [n], those of the other run minus them [n], and the two names (baseline, other)."""

    baseline: Margins
    difference: Margins
    names: tuple[str, str]
    runs: tuple[int, ...]
    """How many examples are of each pair of runs (one pair for each seed), in their order."""

    @property
    def mean(self) -> float:
        """Mean difference; above 0 the other run has the larger margins."""
        return float(self.difference.mean())

    @property
    def median(self) -> float:
        """Median difference."""
        return float(np.median(self.difference))

    @property
    def sem(self) -> float:
        """Standard error of the mean over examples; NaN for a single one."""
        return _sem(self.difference)

    @property
    def by_run(self) -> list[float]:
        """Mean difference of each pair of runs."""
        return [float(part.mean()) for part in np.split(self.difference, np.cumsum(self.runs)[:-1])]

    @property
    def shares(self) -> dict[str, float]:
        """Shares of examples: larger and smaller margin; wrong before and right now, right before and wrong now."""
        before, now = self.baseline, self.baseline + self.difference
        found = {"larger": self.difference > 0, "smaller": self.difference < 0}
        found |= {"mended": (before < 0) & (now > 0), "broken": (before > 0) & (now < 0)}
        return {name: float(which.mean()) for name, which in found.items()}

    def bins(self, width: float = WIDTH) -> list[Bin]:
        """Differences by bins of the baseline's margin, from -1 to 1; bins without examples too."""
        count = round(2 / width)
        place = np.clip(np.floor((self.baseline + 1) / width + 1e-6), 0, count - 1).astype(int)
        return [_bin(-1 + k * width, width, self.difference[place == k]) for k in range(count)]

    def histogram(self, count: int = 40) -> tuple[npt.NDArray[np.int64], Margins]:
        """Numbers of differences between count + 1 edges, symmetric around 0 and wide enough for all."""
        reach = max(float(np.abs(self.difference).max()), 1e-6)
        counts, edges = np.histogram(self.difference, np.linspace(-reach, reach, count + 1))
        return counts.astype(np.int64), edges.astype(np.float64)


def paired(baseline: Predictions, other: Predictions, names: tuple[str, str] = ("baseline", "run")) -> Differences:
    """The paired differences of two tables of predictions; DataError if they are not of the same examples."""
    check_same(baseline, other, names)
    before, after = (np.asarray(t["margin"], dtype=np.float64) for t in (baseline, other))
    return Differences(before, after - before, names, (len(before),))


def check_same(baseline: Predictions, other: Predictions, names: tuple[str, str]) -> None:
    """DataError unless two tables of predictions are of the same examples with the same labels, in the same order."""
    lengths = len(baseline["label"]), len(other["label"])
    if 0 in lengths:
        raise DataError("no test example is left to compare; choose a wider --where, or another --test")
    same = lengths[0] == lengths[1]
    for name in ("test", "sample_id", "id", "label", "group"):
        same = same and (name in baseline) == (name in other)
        same = same and (name not in baseline or np.array_equal(baseline[name], other[name]))
    if not same:
        given = f"{names[0]} and {names[1]} were tested on other examples ({lengths[0]} and {lengths[1]})"
        raise DataError(f"{given}; give two runs of the same data, scenario and seed")


def of_folders(
    baseline: str | Path, other: str | Path, *, test: str | None = None, where: Sequence[str] = ()
) -> Differences:
    """The paired differences of two runs, or of two folders of runs (seed-0, seed-1, ...) on their common seeds.

    test: the test set; none: the first. where: conditions on the examples, as `samples.chosen`. Raises StorageError
    for a folder without predictions, DataError for runs that were tested on other examples.
    """
    one, two = runs_in(Path(baseline)), runs_in(Path(other))
    common = [seed for seed in one if seed in two] if len(one) > 1 or len(two) > 1 else [None]
    if not common:
        raise StorageError(f"{baseline} and {other} have no seed in common; give two runs of the same seed")
    names = titles(Path(baseline), Path(other))
    pairs = [(_first(one), _first(two))] if common == [None] else [(one[s], two[s]) for s in common if s is not None]
    parts = [paired(_predictions(a, test, where), _predictions(b, test, where), names) for a, b in pairs]
    margins, differences = (np.concatenate([getattr(p, a) for p in parts]) for a in ("baseline", "difference"))
    return Differences(margins, differences, names, tuple(len(p.difference) for p in parts))


def runs_in(folder: Path) -> dict[str, Path]:
    """The run in a folder, or the runs in its folders seed-0, seed-1, ..., by name; StorageError without any."""
    inside = {path.parent.name: path.parent for path in sorted(folder.glob(f"seed-*/{FILE}"))}
    return inside or {folder.name: found(folder, FILE).parent}


def titles(baseline: Path, other: Path) -> tuple[str, str]:
    """What two runs are called: their methods, or their folders where these are the same."""
    one, two = (_label(next(iter(runs_in(folder).values()))) for folder in (baseline, other))
    return (one, two) if one and two and one != two else (baseline.as_posix(), other.as_posix())


def _label(run: Path) -> str:
    from molere.storage.files import read_json

    return str(read_json(run / "result.json").get("label", "")) if (run / "result.json").is_file() else ""


def _first(runs: Mapping[str, Path]) -> Path:
    return next(iter(runs.values()))


def _predictions(run: Path, test: str | None, where: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    table = read_samples(run / FILE)
    names = list(dict.fromkeys(table["test"].tolist()))
    if test is not None and test not in names:
        raise DataError(f"{run} has no test set {test!r}; it has {', '.join(names)}")
    keep = table["test"] == (names[0] if test is None else test)
    fixed = {k: v for k, v in table.items() if k in ("test", "sample_id", "id", "label", "group")}
    keep &= chosen(fixed, where, class_names(run))  # by what both runs have in common
    return {k: v[keep] for k, v in table.items()}


def _bin(low: float, width: float, values: Margins) -> Bin:
    n, nan = len(values), float("nan")
    mean, median = (float(values.mean()), float(np.median(values))) if n else (nan, nan)
    std = float(values.std(ddof=1)) if n > 1 else nan
    return Bin(round(low, 10), round(low + width, 10), n, mean, median, _sem(values), std)


def _sem(values: Margins) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
