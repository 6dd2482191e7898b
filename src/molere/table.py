"""From the results of many runs to one table of numbers: methods by metrics, beside the baseline.

A result is the dictionary stored with every run: method, label, seed, the metrics of the last update and of
the best epoch by validation, and what the run cost. Rendering is elsewhere; this file only counts.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from molere import statistics
from molere.errors import ConfigError
from molere.statistics import NAN, Mean, Paired

Result = Mapping[str, Any]  # JSON as stored: strings, numbers and mappings of them
Numbers = Mapping[str, Any]  # JSON again: numbers, whole ones too, and null where not known
Selection = Literal["last", "best"]
Verdict = Literal["better", "worse", "unclear", "untested"]

SELECTIONS: tuple[Selection, ...] = ("last", "best")
ALPHA = 0.05
LOWER_IS_BETTER = frozenset({"nll", "ece"})
NOT_A_SHARE = frozenset({"nll", "margin"})


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric reads: `accuracy[rotated]` and `c/accuracy` are shares in percent; more is better."""

    name: str

    @property
    def kind(self) -> str:
        """The name without its test set (`SET/`) and its group (`[GROUP]`)."""
        return self.name.split("[")[0].rsplit("/", 1)[-1]

    @property
    def higher_is_better(self) -> bool:
        """False for losses and calibration errors."""
        return self.kind not in LOWER_IS_BETTER

    @property
    def scale(self) -> float:
        """What a stored value is multiplied by to be shown: 100 for shares."""
        return 1.0 if self.kind in NOT_A_SHARE else 100.0

    @property
    def unit(self) -> str:
        """The unit of a shown value."""
        return "" if self.kind in NOT_A_SHARE else "percent"


@dataclass(frozen=True, slots=True)
class Cell:
    """One method and metric, at the last update or the best epoch by validation; in the metric's own scale.

    paired: the comparison to the baseline on common seeds (None for the baseline itself). p: its paired t
    test after Holm's correction over the methods of this metric and selection.
    """

    label: str
    metric: Metric
    selection: Selection
    mean: Mean
    paired: Paired | None
    p: float

    @property
    def gain(self) -> float:
        """The difference to the baseline, positive where the method is better."""
        if self.paired is None:
            return NAN
        return self.paired.difference if self.metric.higher_is_better else -self.paired.difference

    @property
    def verdict(self) -> Verdict:
        """better or worse where p < .05, unclear otherwise; untested without a paired test."""
        if math.isnan(self.p):
            return "untested"
        if self.p >= ALPHA:
            return "unclear"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a method costs, as multiples of the baseline on common seeds (mean over mean); scouts apart.

    passes: 1 for a sample's forward and 2 for its backward pass, the classifier's own and the virtual ones.
    """

    label: str
    n: int
    seconds: float
    seconds_ratio: float
    passes_ratio: float
    memory_ratio: float
    scout_seconds_ratio: float
    scout_passes_ratio: float


@dataclass(frozen=True, slots=True)
class Missing:
    """A run that was asked for and has no result, and why."""

    label: str
    seed: int
    reason: str


@dataclass(frozen=True, slots=True)
class Table:
    """All that is compared. `cells` go by metric, selection and method; headline metrics come first."""

    baseline: str
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    headline: tuple[str, ...]
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]
    costs: tuple[Cost, ...]
    missing: tuple[Missing, ...]
    updates: Mapping[str, tuple[int, ...]]
    """Classifier updates of each method, one number unless its runs differ."""
    logged: Mapping[str, Mapping[str, Mean]]
    """What each method's runs logged along the way, by name: means over epochs, then over seeds."""

    def column(self, metric: str, selection: Selection) -> list[Cell]:
        """The cells of one metric, in the order of the methods."""
        return [c for c in self.cells if c.metric.name == metric and c.selection == selection]

    def cost(self, label: str) -> Cost:
        """The cost of one method."""
        return next(c for c in self.costs if c.label == label)

    @property
    def tested(self) -> bool:
        """Whether there are two or more methods to compare."""
        return len(self.labels) > 1


def tabulate(
    results: Iterable[Result],
    *,
    labels: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    baseline: str | None = None,
    headline: Sequence[str] | None = None,
    failures: Mapping[tuple[str, int], str] | None = None,
) -> Table:
    """The table of a list of results.

    labels, seeds: what was asked for, so that missing runs show (default: what is there). baseline: a label
    (default: the first ERM, else the first method). headline: metrics to lead with (default: as the results
    say, else accuracy and worst_group). failures: (label, seed) -> why there is no result. Raises
    ConfigError for an unknown baseline.
    """
    runs = {(str(r["label"]), int(r["seed"])): r for r in results}
    labels = tuple(labels if labels is not None else dict.fromkeys(label for label, _ in runs))
    seeds = tuple(seeds if seeds is not None else sorted({seed for _, seed in runs}))
    runs = {key: r for key, r in runs.items() if key[0] in labels and key[1] in seeds}
    baseline = _baseline(runs, labels, baseline)
    lead = _headline(runs.values(), headline)
    metrics = (*lead, *(m for m in _metric_names(runs.values()) if m not in lead))
    columns = [_column(runs, labels, baseline, Metric(m), s) for m in metrics for s in SELECTIONS]
    return Table(
        baseline=baseline,
        labels=labels,
        seeds=seeds,
        headline=lead,
        metrics=metrics,
        cells=tuple(cell for column in columns for cell in column),
        costs=tuple(_cost(runs, label, baseline) for label in labels),
        missing=_missing(runs, labels, seeds, failures or {}),
        updates={label: _updates(runs, label) for label in labels},
        logged={label: _logged(runs, label) for label in labels},
    )


Runs = Mapping[tuple[str, int], Result]


def _baseline(runs: Runs, labels: Sequence[str], wanted: str | None) -> str:
    if not labels:
        raise ConfigError("there is nothing to compare: give at least one method, e.g. erm")
    if wanted is not None and wanted not in labels:
        raise ConfigError(f"the baseline {wanted!r} is not among the methods; it can be one of {', '.join(labels)}")
    plain = [label for (label, _), r in runs.items() if r["method"] == "erm"]
    erm = [label for label in labels if label == "erm"] + [label for label in labels if label in plain]
    return wanted or (erm or list(labels))[0]


def _metric_names(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(name for r in results for s in SELECTIONS for name in _metrics(r, s)))


def _metrics(result: Result, selection: Selection) -> Numbers:
    return result.get(selection) or {}  # a run without selection data has no best epoch


def _headline(results: Iterable[Result], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics to lead with that there are; never none if there is any metric."""
    results = list(results)
    there = _metric_names(results)
    stored = next((r["headline"] for r in results if r.get("headline")), ("accuracy", "worst_group"))
    chosen = [m for m in (wanted if wanted is not None else stored) if m in there]
    return tuple(chosen or there[:1])


def _values(runs: Runs, label: str, read: Callable[[Result], float | None]) -> dict[int, float]:
    """seed -> the finite values of one method's runs."""
    values = {seed: read(r) for (name, seed), r in runs.items() if name == label}
    return {seed: float(v) for seed, v in sorted(values.items()) if v is not None and math.isfinite(v)}


def _column(runs: Runs, labels: Sequence[str], baseline: str, metric: Metric, selection: Selection) -> list[Cell]:
    values = {label: _values(runs, label, lambda r: _metrics(r, selection).get(metric.name)) for label in labels}
    pairs = {
        label: statistics.paired(values[label], values[baseline], higher_is_better=metric.higher_is_better)
        for label in labels
        if label != baseline
    }
    p = statistics.holm({label: pair.p for label, pair in pairs.items()})
    return [
        Cell(
            label=label,
            metric=metric,
            selection=selection,
            mean=statistics.mean_interval(list(values[label].values())),
            paired=pairs.get(label),
            p=p.get(label, NAN),
        )
        for label in labels
    ]


def _cost(runs: Runs, label: str, baseline: str) -> Cost:
    def ratio(of: Callable[[Numbers], float], to: Callable[[Numbers], float]) -> float:
        return _ratio(_values(runs, label, lambda r: of(r["cost"])), _values(runs, baseline, lambda r: to(r["cost"])))

    seconds = _values(runs, label, lambda r: r["cost"].get("seconds"))
    return Cost(
        label=label,
        n=len(seconds),
        seconds=statistics.mean_interval(list(seconds.values())).mean,
        seconds_ratio=ratio(_item("seconds"), _item("seconds")),
        passes_ratio=ratio(passes, passes),
        memory_ratio=ratio(_item("peak_mib"), _item("peak_mib")),
        scout_seconds_ratio=ratio(_item("scout_seconds"), _item("seconds")),
        scout_passes_ratio=ratio(scout_passes, passes),
    )


def passes(cost: Numbers) -> float:
    """Forward equivalents of a run (forward 1, backward 2 a sample), virtual passes included, no scouts."""
    return sum(_number(cost, f"{kind}forward") + 2 * _number(cost, f"{kind}backward") for kind in ("", "virtual_"))


def scout_passes(cost: Numbers) -> float:
    """Forward-pass equivalents of the runs made beforehand to find the hard examples."""
    return _number(cost, "scout_forward") + 2 * _number(cost, "scout_backward")


def _number(cost: Numbers, name: str) -> float:
    return float(cost.get(name) or 0.0)


def _item(name: str) -> Callable[[Numbers], float]:
    return lambda cost: NAN if cost.get(name) is None else float(cost[name])


def _ratio(values: Mapping[int, float], reference: Mapping[int, float]) -> float:
    seeds = values.keys() & reference.keys()
    bottom = math.fsum(reference[s] for s in seeds)
    return math.fsum(values[s] for s in seeds) / bottom if bottom > 0 else NAN


def _missing(
    runs: Runs, labels: Sequence[str], seeds: Sequence[int], failures: Mapping[tuple[str, int], str]
) -> tuple[Missing, ...]:
    absent = [(label, seed) for label in labels for seed in seeds if (label, seed) not in runs]
    return tuple(Missing(label, seed, failures.get((label, seed), "not run")) for label, seed in absent)


def _updates(runs: Runs, label: str) -> tuple[int, ...]:
    return tuple(sorted({int(r["updates"]) for (name, _), r in runs.items() if name == label}))


def _logged(runs: Runs, label: str) -> dict[str, Mean]:
    """By name, over the seeds that logged it."""
    names = dict.fromkeys(name for (of, _), r in runs.items() if of == label for name in _log_of(r))
    values = {name: _values(runs, label, lambda r, name=name: _log_of(r).get(name)) for name in names}
    return {name: statistics.mean_interval(list(v.values())) for name, v in values.items()}


def _log_of(result: Result) -> Mapping[str, float]:
    return result.get("logged") or {}  # results of earlier versions have none
