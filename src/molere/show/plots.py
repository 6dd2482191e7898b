"""`result.plot.margins()` and `comparison.plot.gains()`: every figure by name, for notebooks and scripts.

Each gives a Picture, which a notebook shows, and which is saved by `.save("x.svg")`; `.figure` is matplotlib's.
"""

from html import escape
from typing import Any  # Any: a Result or a Comparison, which are not imported here

from molere import margins as margin
from molere.errors import DataError
from molere.show import clouds, comparisonpage, curves, gains, records, runpage
from molere.show.compared import Compared
from molere.show.style import Picture
from molere.table import Selection


class OfRun:
    """Figures of one run."""

    def __init__(self, result: Any) -> None:
        self.record = records.of_result(result)

    def html(self) -> str:
        """Verdict, metrics and the first figures of the run, for notebooks; all names escaped."""
        r = self.record.result
        grid = runpage.metrics(r)
        top = "".join(f"<th>{escape(head)}</th>" for head in grid.heads)
        body = "".join("<tr>" + "".join(f"<td>{escape(c.text)}</td>" for c in row) + "</tr>" for row in grid.rows)
        words = "".join(f"<li>{escape(line)}</li>" for line in runpage.verdict(self.record))
        pictures = [p.html() for p in runpage.figures(self.record)[:3]]
        head = f"<h4>{escape(runpage.title(r))}</h4><ul>{words}</ul>"
        table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
        return f"<div>{head}{table}{''.join(pictures)}</div>"

    def all(self) -> list[Picture]:
        """Every figure of the report."""
        return runpage.figures(self.record)

    def learning(self, column: str = "select_accuracy") -> Picture:
        """A column of `Result.history` over the epochs."""
        found = curves.learning({self.record.label: [self.record.history]}, column)
        return _there(found, f"no epoch has {column!r}; there are {', '.join(sorted(self.record.history[-1]))}")

    def weights(self) -> Picture:
        """The distribution of the weights over the epochs."""
        return _there(curves.weights(self.record.history), "all examples had the same weight")

    def weight_against(self, column: str = "loss") -> Picture:
        """Weight against loss or margin."""
        found = clouds.weight_against(self.record.samples, column)
        return _there(found, f"no weights to show against {column!r}; give loss or margin, and a method that weighs")

    def margins(self, baseline: Any = None) -> Picture:
        """Margins of test examples; with another Result, what this one changes in them."""
        ours = self.record.test()
        if baseline is None:
            return clouds.margins(ours["margin"], "test examples")
        found = self._paired(baseline)
        return clouds.margin_differences(found.baseline + found.difference, found.baseline, self._names(baseline))

    def margin_bins(self, baseline: Any) -> Picture:
        """What this run changes in the margins of another, by the other's margin in bins of 0.2."""
        bins = [b for b in self._paired(baseline).bins() if b.n]
        middles = [(b.low + b.high) / 2 for b in bins]
        return clouds.margin_bins(middles, [b.mean for b in bins], [b.sem for b in bins], self._names(baseline))

    def calibration(self) -> Picture:
        """Accuracy against confidence on test data."""
        found = clouds.calibration({self.record.label: runpage.confidence(self.record.test())})
        return _there(found, "no predictions were kept")

    def churn(self) -> Picture:
        """How much the learned split changes."""
        return _there(curves.churn(self.record.history), f"{self.record.label} learns no split")

    def label_balance(self) -> Picture:
        """Who validates, by class."""
        return _there(clouds.label_balance(self.record.samples), f"{self.record.label} holds no validation part")

    def _paired(self, baseline: Any) -> margin.Differences:
        theirs = records.of_result(baseline)
        return margin.paired(theirs.test(), self.record.test(), names=(theirs.label, self.record.label))

    def _names(self, baseline: Any) -> tuple[str, str]:
        return self.record.label, str(baseline.label)


class OfComparison:
    """Figures of a comparison; a metric is the first headline one unless it is named."""

    def __init__(self, comparison: Any) -> None:
        c = comparison
        self.compared = Compared(c.table, c.about, c.results, c.folder)
        self.table = c.table

    def gains(self, metric: str | None = None, selection: Selection = "last") -> Picture:
        """Gains over the baseline with intervals."""
        return gains.gains(self.table, self._metric(metric), selection)

    def cost(self, metric: str | None = None) -> Picture:
        """Gain against cost."""
        return gains.cost_against_gain(self.table, self._metric(metric))

    def groups(self) -> Picture:
        """Accuracy in each group or the worst class."""
        return _there(gains.groups(self.table), "no accuracy was measured")

    def learning(self, column: str = "select_accuracy") -> Picture:
        """Learning curves of the best methods, over their seeds; of a comparison with a folder."""
        runs = self.compared.histories(comparisonpage.some(self.table))
        found = curves.learning(runs, column, self.table.baseline)
        return _there(found, f"no run kept {column!r}; call compare with out=FOLDER")

    def all(self) -> list[Picture]:
        """Every figure of the report."""
        return comparisonpage.figures(self.compared)

    def _metric(self, metric: str | None) -> str:
        if metric is not None and metric not in self.table.metrics:
            raise DataError(f"no metric {metric!r}; there are {', '.join(self.table.metrics)}")
        return metric or self.table.headline[0]


def _there(picture: Picture | None, reason: str) -> Picture:
    if picture is None:
        raise DataError(f"there is nothing to draw: {reason}")
    return picture
