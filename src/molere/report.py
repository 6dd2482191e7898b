"""The report of a comparison: Markdown and HTML to read, CSV and JSON to compute with.

Everything that a reader needs to judge a figure is beside it: n, the interval, the test, what it cost, and
the command that made it.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, cast

from molere import logged, wording
from molere.table import SELECTIONS, Cell, Cost, Metric, Result, Selection, Table
from molere.tuning import Chosen, searched
from molere.wording import (
    TITLES,
    difference,
    name_of,
    p_value,
    relative,
    seconds,
    times,
    value,
    verdict,
    wins,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Where the figures come from: what the table is of, and how to make it again."""

    title: str = "Comparison"
    command: str = ""
    date: str = ""
    machine: str = ""
    jobs: int = 1
    """Runs that were timed side by side."""
    tuning: tuple[Chosen, ...] = ()
    """What was chosen for each method beforehand."""


COLUMNS: tuple[tuple[str, Callable[[Cell], str]], ...] = (
    ("{metric}, {unit}", lambda c: value(c, 2)),
    ("difference to {baseline}, {points}", lambda c: difference(c, 2)),
    ("relative", relative),
    ("p (Holm)", p_value),
    ("wins", wins),
)
COSTS: tuple[tuple[str, Callable[[Cost], str]], ...] = (
    ("seconds a run", seconds),
    ("seconds x {baseline}", lambda c: times(c.seconds_ratio)),
    ("passes x {baseline}", lambda c: times(c.passes_ratio)),
    ("peak memory x {baseline}", lambda c: times(c.memory_ratio)),
    ("scout seconds x {baseline}", lambda c: times(c.scout_seconds_ratio)),
    ("scout passes x {baseline}", lambda c: times(c.scout_passes_ratio)),
)


def markdown(table: Table, about: About) -> str:
    """The whole report as Markdown: origin, verdict, headline metrics at both selections, costs, the rest."""
    parts = [f"# {about.title}", _origin(table, about), "## Verdict", _bullets(wording.verdicts(table))]
    for selection, title in TITLES.items():
        parts.append(f"## {title.removeprefix('at ').capitalize()}")
        parts += [_metric_table(table, metric, selection) for metric in table.headline]
    parts += ["## Cost", _cost_notes(table, about), _cost_table(table)]
    parts += [*_tuning(table, about), *_other_metrics(table), *_logged(table)]
    parts += ["## Missing runs", _bullets(wording.missing(table))] if table.missing else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(table: Table, about: About) -> str:
    facts = {
        "Seeds": f"{len(table.seeds)} ({', '.join(map(str, table.seeds))})",
        "Command": f"`{about.command}`" if about.command else "",
        "Date": about.date,
        "Machine": about.machine,
    }
    lines = [f"- {name}: {text}" for name, text in facts.items() if text]
    return "\n".join(lines) + f"\n\n{wording.meaning(table)} {wording.budgets(table)}".rstrip()


def _metric_table(table: Table, metric: str, selection: Selection) -> str:
    column = table.column(metric, selection)
    words = {name: _cell_text(word) for name, word in metric_words(table, column[0].metric).items()}
    heads = ["method", *(head.format(**words) for head, _ in COLUMNS)]
    rows = [[name_of(c, table), *(show(c) for _, show in COLUMNS)] for c in column]
    return _grid(heads, rows)


def metric_words(table: Table, metric: Metric) -> dict[str, str]:
    """What the headings of a metric's columns are filled with."""
    points = "points" if metric.unit else "absolute"
    return {"metric": metric.name, "unit": metric.unit or "mean", "points": points, "baseline": table.baseline}


def _cost_notes(table: Table, about: About) -> str:
    side = f" {about.jobs} runs were timed side by side." if about.jobs > 1 else ""
    return (
        f"Mean over common seeds, divided by that of {table.baseline}. A pass is one forward of a sample, a "
        "backward counts as two; virtual passes of the classifier are included. Scouts, the trainings made "
        "beforehand to find hard examples, are extra and stand apart; methods that need the same share it."
        f"{side}"
    )


def _cost_table(table: Table) -> str:
    heads = ["method", *(head.format(baseline=_cell_text(table.baseline)) for head, _ in COSTS)]
    return _grid(heads, [[c.label, *(show(c) for _, show in COSTS)] for c in table.costs])


def _tuning(table: Table, about: About) -> list[str]:
    """How settings were found, what was chosen, and what that took."""
    if not about.tuning:
        return []
    first, run = about.tuning[0], table.cost(table.baseline).seconds
    text = (
        f"Random search on the data of seed {first.seed}, {first.trials} trials for every method; trial 0 is the "
        "method as given. Chosen by accuracy on selection data, at the best epoch by it; trials see no test data. "
        "Their cost is not part of the figures above."
    )
    heads = ["method", "chosen", "selection accuracy, %", "as given, %", "failed", "seconds, scouts included"]
    rows = [[*_found(c), f"{c.seconds:.1f}", times(c.seconds / run if run > 0 else math.nan)] for c in about.tuning]
    grid = _grid([*heads, f"runs of {_cell_text(table.baseline)}"], rows)
    return ["## Tuning", text, grid, "Searched:", _bullets(searched(about.tuning))]


def _found(c: Chosen) -> list[str]:
    given = "" if c.given is None else f"{100 * c.given:.2f}"
    return [c.label, c.words, f"{100 * c.accuracy:.2f}", given, str(c.failed)]


def _other_metrics(table: Table) -> list[str]:
    others = [m for m in table.metrics if m not in table.headline]
    if not others:
        return []
    columns = {m: table.column(m, "last") for m in others}
    heads = ["method", *(_cell_text(m) + (", %" if columns[m][0].metric.unit else "") for m in others)]
    rows = [[label, *(value(columns[m][i]) for m in others)] for i, label in enumerate(table.labels)]
    return ["## Other metrics, at the last update", _grid(heads, rows)]


def _logged(table: Table) -> list[str]:
    heads, rows = logged.rows(table)
    grid = [_grid(heads, [[label, *map(logged.shown, means)] for label, means in rows])] if len(heads) > 1 else []
    own = "\n".join(f"- {line}" for line in logged.of_single_methods(table))
    return ["## Logged along the way, means over epochs", *grid, *filter(None, [own])] if grid or own else []


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *([_cell_text(t) for t in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell_text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# ---- HTML


def html(table: Table, about: About) -> str:
    """Verdict, headline metrics and costs as an HTML fragment, for notebooks; all names escaped."""
    parts = [f"<h4>{escape(about.title)}</h4>", _items(wording.verdicts(table))]
    for selection, title in TITLES.items():
        for metric in table.headline:
            column = table.column(metric, selection)
            heads = ["method", metric, f"difference to {table.baseline}", "relative", "p (Holm)", "wins"]
            rows = [[name_of(c, table), *(show(c) for _, show in COLUMNS)] for c in column]
            parts += [f"<p>{escape(metric)} {title}</p>", _html_grid(heads, rows)]
    heads = ["method", *(head.format(baseline=table.baseline) for head, _ in COSTS)]
    parts += [
        "<p>Cost</p>",
        _html_grid(heads, [[c.label, *(show(c) for _, show in COSTS)] for c in table.costs]),
    ]
    parts += [_items(wording.missing(table)), f"<p>{escape(wording.meaning(table))}</p>"]
    return "<div>" + "\n".join(part for part in parts if part) + "</div>"


def _items(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _html_grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(t)}</td>" for t in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


# ---- CSV and JSON


def records(table: Table) -> list[dict[str, object]]:
    """A flat dictionary for each method, metric and selection; in shown units, None where undefined."""
    return [_record(table, cell) for cell in table.cells]


def _record(table: Table, cell: Cell) -> dict[str, object]:
    scale, pair = cell.metric.scale, cell.paired
    cost = {name: number for name, number in asdict(table.cost(cell.label)).items() if name not in {"label", "n"}}
    return {
        "method": cell.label,
        "metric": cell.metric.name,
        "selection": cell.selection,
        "headline": cell.metric.name in table.headline,
        "higher_is_better": cell.metric.higher_is_better,
        "unit": cell.metric.unit,
        "n": cell.mean.n,
        "mean": _number(scale * cell.mean.mean),
        "half_width_95": _number(scale * cell.mean.half_width),
        "baseline": table.baseline,
        "pairs": pair.n if pair else None,
        "difference": _number(scale * pair.difference) if pair else None,
        "difference_se": _number(scale * pair.se) if pair else None,
        "difference_half_width_95": _number(scale * pair.half_width) if pair else None,
        "relative_percent": _number(100 * pair.relative) if pair else None,
        "p": _number(pair.p) if pair else None,
        "p_holm": _number(cell.p) if pair else None,
        "wins": pair.wins if pair else None,
        "ties": pair.ties if pair else None,
        "verdict": cell.verdict if pair else None,
        **{name: _number(number) for name, number in cost.items()},
    }


def _number(number: float) -> float | None:
    return number if math.isfinite(number) else None


def as_csv(table: Table) -> str:
    """The records as CSV, one row for each method, metric and selection; empty where undefined."""
    rows = records(table)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(table: Table, about: About, results: Iterable[Result] = ()) -> str:
    """Origin, verdict, records, missing runs and the results themselves as JSON; null where undefined."""
    content = {
        "about": asdict(about),
        "baseline": table.baseline,
        "methods": table.labels,
        "seeds": table.seeds,
        "headline": table.headline,
        "updates": table.updates,
        "logged": {label: {k: asdict(m) for k, m in logged.items()} for label, logged in table.logged.items()},
        "verdict": {selection: verdict(table, selection) for selection in SELECTIONS},
        "rows": records(table),
        "missing": [asdict(m) for m in table.missing],
        "results": list(results),
    }
    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


def finite(thing: Any) -> Any:  # any tree of mappings, sequences and leaves, and the same back
    """The same with nan and infinity as None: JSON has no word for them."""
    if isinstance(thing, float):
        return _number(thing)
    if isinstance(thing, Mapping):
        return {str(key): finite(item) for key, item in cast("Mapping[Any, Any]", thing).items()}
    if isinstance(thing, list | tuple):
        return [finite(item) for item in cast("Sequence[Any]", thing)]
    return thing
