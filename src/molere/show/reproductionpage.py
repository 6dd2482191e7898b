"""The report of a reproduction, or of any comparisons side by side: claims first, then one part a row."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast  # Any: JSON

from molere import wording
from molere.errors import StorageError
from molere.show import gains, printed
from molere.show.compared import Compared, of_comparison
from molere.show.comparisonpage import examples, made_with, metric_grid
from molere.show.page import Cell, Code, Grid, Page, Section, number
from molere.show.records import part
from molere.storage import files
from molere.table import Metric

MARKS = {"held": "better", "reversed": "worse"}
ROW = {"row", "metrics", "claims"}
"""What a row's JSON file has."""


@dataclass(frozen=True)
class Row:
    """A row of a reproduction: what was said of it, {} for a plain comparison, and its runs, if any have ended."""

    name: str
    said: Mapping[str, Any]
    compared: Compared | None

    @property
    def claims(self) -> Sequence[Mapping[str, Any]]:
        """Claims of the publication, each with its verdict."""
        return self.said.get("claims") or ()


def rows_of(folder: Path) -> list[Row]:
    """The rows in a folder: ROW.json with the comparison ROW/ beside it; else every comparison right below it."""
    said = {path.stem: found for path in sorted(folder.glob("*.json")) if set(found := _mapping(path)) >= ROW}
    names = list(said) or [path.parent.name for path in sorted(folder.glob("*/table.json"))]
    return [Row(name, said.get(name, {}), _compared(folder / name)) for name in names]


def _mapping(path: Path) -> Mapping[str, Any]:
    with contextlib.suppress(StorageError):
        found = files.read_json(path)
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {}


def _compared(folder: Path) -> Compared | None:
    with contextlib.suppress(StorageError):
        return of_comparison(folder)
    return None


def page(folder: Path, rows: Sequence[Row]) -> Page:
    """Claims and their verdicts, gains by data set, and a section a row."""
    there = {row.name: row.compared for row in rows if row.compared is not None}
    tables = {name: c.table for name, c in there.items() if c.table.tested}
    is_reproduction = any(row.said for row in rows)
    return Page(
        kind="Reproduction" if is_reproduction else "Comparisons",
        title=_title(folder, rows),
        verdict=_verdict(rows),
        date=next((c.about.date for c in there.values()), ""),
        facts=[("Rows", str(len(rows))), ("With results", str(len(there)))],
        sections=[
            Section("Claims", tables=_claims(rows)),
            Section("Gains by data set", figures=[gains.gains_by_data(tables)] if tables else []),
            *map(_section, rows),
            Section("Commands", code=_commands(rows)),
        ],
    )


def _title(folder: Path, rows: Sequence[Row]) -> str:
    """That of the only row, else the names of the tables and figures of the publication, else of the folder."""
    if len(rows) == 1 and rows[0].said.get("title"):
        return str(rows[0].said["title"])
    return " · ".join(dict.fromkeys(str(r.said["preset"]) for r in rows if "preset" in r.said)) or folder.name


def _verdict(rows: Sequence[Row]) -> list[str]:
    """How many claims held, which were reversed; then each row's own verdict in a sentence."""
    claims = [(row.name, c) for row in rows for c in row.claims]
    lines = list[str]()
    if claims:
        verdicts = [str(c["verdict"]) for _, c in claims]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("held", "reversed", "undecided", "not run"))
        lines.append(f"Of {len(claims)} claims: {counts}.")
        turned = [f"{c['text']} ({name})" for name, c in claims if c["verdict"] == "reversed"]
        lines += [f"Reversed: {'; '.join(turned)}."] if turned else []
    for row in rows:
        told = ["no run has ended yet."] if row.compared is None else wording.verdict(row.compared.table)
        lines += [f"{row.name}: {sentence}" for sentence in told]
    return lines


def _claims(rows: Sequence[Row]) -> list[Grid]:
    found = [
        [Cell(_claim(c)), Cell(row.name), Cell(str(c["verdict"]), None, MARKS.get(c["verdict"], "")), Cell(_steps(c))]
        for row in rows
        for c in row.claims
    ]
    return (
        [Grid("Claims of the publication", ["claim", "row", "verdict", "steps"], found, is_text=True)] if found else []
    )


def _claim(c: Mapping[str, Any]) -> str:
    return f"{c['text']} ({c['says']})" if c.get("says") else str(c["text"])


def _steps(c: Mapping[str, Any]) -> str:
    return "; ".join(f"{s['step']}: {s['verdict']}" for s in c.get("steps") or ())


def _section(row: Row) -> Section:
    words = [str(text) for text in (*(row.said.get("deviations") or ()), *(row.said.get("doubts") or ()))]
    tables = [_printed(name, lines) for name, lines in part(row.said, "metrics").items()]
    title = str(row.said.get("title") or f"Row {row.name}")
    if row.compared is None:
        return Section(title, words=["No run of this row has ended yet.", *words], tables=tables)
    figures = printed.of_row(row.said) if "kind" in row.said else []
    missing = wording.missing(row.compared.table)
    found = [metric_grid(row.compared.table, metric, "last") for metric in row.compared.table.headline]
    of_examples, lists = examples(row.compared)
    return Section(
        title,
        words=[row.compared.about.title, *words, *missing, *of_examples],
        tables=[*tables, *found],
        figures=figures,
        lists=lists,
        code=made_with(row.compared),
    )


def _printed(metric: str, lines: Sequence[Mapping[str, Any]]) -> Grid:
    """The printed numbers beside ours, and both differences to the row's reference."""
    scale = Metric(metric).scale
    rows = list[list[Cell]]()
    for line in lines:
        ours, pair = part(line, "ours"), part(line, "difference")
        numbers = [
            _known(line.get("printed")),
            scale * _known(ours.get("mean")),
            scale * _known(ours.get("half_width")),
        ]
        gaps = [_known(line.get("printed_difference")), scale * _known(pair.get("difference"))]
        shown = [*(number(x) for x in numbers), *(number(x, 2, "+") for x in gaps), number(_known(pair.get("p")), 3)]
        rows.append([Cell(str(line["column"])), Cell(str(line["label"])), *shown])
    heads = ["column", "method", "printed", "here", "± (95 %)", "printed difference", "difference here", "p"]
    return Grid(f"{metric} beside the publication", heads, rows)


def _known(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def _commands(rows: Sequence[Row]) -> list[Code]:
    lines = [str(part(row.said, "about").get("Command", "")).strip("`") for row in rows]
    lines += [row.compared.about.command for row in rows if row.compared is not None]
    lines = [line for line in dict.fromkeys(lines) if line]
    return [Code("Commands to reproduce", "\n".join(lines))] if lines else []
