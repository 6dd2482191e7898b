"""The pictures of a page, and the lines of Markdown that show them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any  # JSON

from molere.reproduce import margins as of_margins
from molere.reproduce.margins import Margins
from molere.reproduce.page import Page, as_dict, grid
from molere.reproduce.resolve import Planned


def pictures(made: Page, path: Path) -> tuple[str, ...]:
    """Write the figure that the page's row has, as PNG and SVG; the lines that show it."""
    from molere.show import printed  # here: it takes long to load

    found = printed.of_row(as_dict(made))
    for picture in found:
        picture.save(path.with_suffix(".png"))
        picture.save(path.with_suffix(".svg"))
    return tuple(f"![{p.caption.replace('[', '(').replace(']', ')')}]({path.stem}.png)" for p in found)


def margins(plan: Planned, measured: Margins) -> tuple[str, ...]:
    """The changes of margins as a table, of the columns that there are."""
    there, reference = _there(plan, measured), plan.row.reference
    if reference not in there or len(there) < 2:
        return ("No margins: the reference, or all others, are missing.",)
    heads = ["column", "mean change", "where ERM errs", "where ERM is right", "median change"]
    words = f"Change of margins against {reference}, in [-2, 2]; ± is half the 95 % interval over seeds."
    return "## Margins", words, grid(heads, of_margins.table(there, reference))


def judged(plan: Planned, measured: Margins) -> Mapping[str, Mapping[int, float]]:
    """What the claims of a figure of margins are judged by."""
    there = _there(plan, measured)
    return of_margins.values(there, plan.row.reference) if plan.row.reference in there else {}


def changes(plan: Planned, measured: Margins) -> Mapping[str, Any]:
    """What the figure of margins is drawn from."""
    there = _there(plan, measured)
    return of_margins.summary(there, plan.row.reference) if plan.row.reference in there else {}


def _there(plan: Planned, measured: Margins) -> dict[str, Any]:
    return {column: measured[column] for column in plan.columns if measured[column]}
