"""The pictures of a page, and the lines of Markdown that show them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast  # Any: matplotlib

from molere.reproduce import margins as of_margins
from molere.reproduce.margins import Margins
from molere.reproduce.page import Page, grid
from molere.reproduce.resolve import Planned


def bars(made: Page, path: Path) -> tuple[str, ...]:
    """Printed and our numbers side by side, ours with their intervals."""
    from matplotlib.figure import Figure  # here: it takes long to load

    lines = [line for line in made.lines[made.plan.row.metric] if line.ours.n]
    if not lines:
        return ()
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axis = cast(Any, figure.subplots())
    places, middles = list(range(len(lines))), [100 * line.ours.mean for line in lines]
    half = [0.0 if line.ours.n < 2 else 100 * line.ours.half_width for line in lines]
    axis.errorbar(places, middles, half, fmt="o", capsize=3, label="ours, 95 % interval")
    known = [(k, line.printed) for k, line in enumerate(lines) if line.printed is not None]
    if known:
        axis.plot([k for k, _ in known], [v for _, v in known], "x", color="#c04040", label="printed")
    axis.set_xticks(places, [line.column for line in lines], rotation=35, ha="right", fontsize=8)
    axis.set_ylabel(f"{made.plan.row.metric}, %")
    axis.set_title(made.plan.title, fontsize=8)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return (f"![{made.plan.title}]({path.name})",)


def margins(plan: Planned, measured: Margins, path: Path) -> tuple[str, ...]:
    """The changes of margins: table and picture, of the columns that there are."""
    there, reference = _there(plan, measured), plan.row.reference
    if reference not in there or len(there) < 2:
        return ("No margins: the reference, or all others, are missing.",)
    of_margins.draw(there, reference, path, plan.title, plan.preset.bars or "sem")
    heads = ["column", "mean change", "where ERM errs", "where ERM is right", "median change"]
    words = f"Change of margins against {reference}, in [-2, 2]; ± is half the 95 % interval over seeds."
    return "## Margins", words, grid(heads, of_margins.table(there, reference)), f"![{plan.title}]({path.name})"


def judged(plan: Planned, measured: Margins) -> Mapping[str, Mapping[int, float]]:
    """What the claims of a figure of margins are judged by."""
    there = _there(plan, measured)
    return of_margins.values(there, plan.row.reference) if plan.row.reference in there else {}


def _there(plan: Planned, measured: Margins) -> dict[str, Any]:
    return {column: measured[column] for column in plan.columns if measured[column]}
