"""Comparison: what a comparison found, as text, tables and figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molere.jobs import Failure
from molere.tuning import Chosen

if TYPE_CHECKING:
    import molere.report
    import molere.table
    from molere.show.plots import OfComparison


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What a comparison found. Printing it shows the table; notebooks show it as HTML.

    results: the stored dictionary of each run that has ended well. failures: why the others have not. tuning: what was
    chosen for each method, if they were tuned.
    """

    results: list[dict[str, Any]]
    table: "molere.table.Table"
    about: "molere.report.About"
    folder: Path | None
    failures: Mapping[tuple[str, int], Failure]
    tuning: tuple[Chosen, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or that of the first failure."""
        return next((f.exit_code for f in self.failures.values()), 0)

    def to_markdown(self) -> str:
        """The report: verdict, tables, costs, and how they were made."""
        from molere import report

        return report.markdown(self.table, self.about)

    def to_csv(self) -> str:
        """One row for each method, metric and selection."""
        from molere import report

        return report.as_csv(self.table)

    def to_json(self) -> str:
        """Everything, the results of the single runs included."""
        from molere import report

        return report.as_json(self.table, self.about, self.results)

    def screen(self) -> Any:  # a rich renderable
        """The table for a terminal: `rich.print(comparison.screen())`."""
        from molere.terminal import Screen

        return Screen(self.table, title=self.about.title, closing=self._closing())

    def __rich__(self) -> Any:  # as above
        return self.screen()

    def __str__(self) -> str:
        from molere.terminal import plain

        return plain(self.table, title=self.about.title, closing=self._closing())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from molere import report

        pictures = [self.plot.gains(metric) for metric in self.table.headline] if self.table.tested else []
        return report.html(self.table, self.about) + "".join(p.html() for p in pictures)

    @property
    def plot(self) -> "OfComparison":
        """Figures by name: `comparison.plot.gains()`."""
        from molere.show.plots import OfComparison

        return OfComparison(self)

    def _closing(self) -> list[str]:
        tuned = [f"Tuned, {c.trials} trials: {c.label} {c.words}" for c in self.tuning]
        report = self.folder and self.folder / "report.html"
        shown = [f"To look at: {report}"] if report and report.exists() else []
        return tuned + ([f"Written to {self.folder}", *shown] if self.folder else [])
