"""`molere samples` and `molere margins`: what a finished run knows of its examples, as text, JSON, CSV and figures."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any  # Any: cells of tables

import numpy as np

from molere import margins as paired_margins
from molere import samples as examples
from molere.cli.console import finite
from molere.errors import ConfigError
from molere.margins import Differences
from molere.names import unknown
from molere.samples import LISTS, Positions
from molere.storage import files
from molere.suspects import Columns, Quality, qualities, signals

TOP, TOP_OF_EACH = 20, 8
TITLES = {
    "hardest": "Hardest (lowest margin)",
    "downweighted": "Most down-weighted (lowest mean weight)",
    "suspects": "Likely mislabelled (highest suspect score)",
    "forgotten": "Never learnt, or forgotten most often",
}


# ---- samples


def samples(
    run: str,
    which: str | None,
    where: Sequence[str],
    sort: str | None,
    names: str | None,
    top: int | None,
    out: str | None,
    as_json: bool,
) -> str:
    """The lists that were asked for, as text or one JSON object; with `out` the last one is written as CSV."""
    if which is not None and which not in LISTS:
        raise ConfigError(unknown("list", which, LISTS))
    if which is not None and sort is not None:
        raise ConfigError(f"--list {which} and --sort {sort} both order the examples; keep one")
    columns = examples.read(run)
    classes = examples.class_names(run)
    keep = examples.chosen(columns, where, classes)
    lists = _lists(columns, which, sort, out is not None)
    few = TOP if len(lists) == 1 else TOP_OF_EACH
    count = few if top is None else top or len(keep)
    chosen = {title: order[keep[order]][:count] for title, order in lists.items()}
    wanted = None if names is None else [name.strip() for name in names.split(",")]
    written = [] if out is None else [_exported(Path(out), columns, next(iter(chosen.values())), classes)]
    found = qualities(columns, examples.probabilities(run))
    shown = {title: examples.rows(columns, at, wanted, classes=classes) for title, at in chosen.items()}
    if as_json:
        return _as_json(run, columns, shown, found, out)
    head = f"{run}: {int(keep.sum()):,} of {len(keep):,} examples" if where else f"{run}: {len(keep):,} examples"
    blocks = [_titled(title, table) for title, table in shown.items()]
    return "\n\n".join([head, *blocks, *_told(columns, found), *written])


def _lists(columns: Columns, which: str | None, sort: str | None, to_file: bool) -> dict[str, Positions]:
    """Title -> all positions in order: one list, or all of them where none was asked for."""
    if sort is not None:
        return {f"Sorted by {sort}": examples.ordered(columns, sort)}
    chosen = [which] if which else ["suspects"] if to_file else list(LISTS)
    weight = columns["weight_mean" if "weight_mean" in columns else "weight"]
    equal = np.ptp(weight[np.isfinite(weight)]) < 1e-6 if np.isfinite(weight).any() else True
    if which is None and equal and len(chosen) > 1:
        chosen.remove("downweighted")  # the run weighed nothing
    return {TITLES[name]: examples.listed(columns, name) for name in chosen}


def _exported(path: Path, columns: Columns, positions: Positions, classes: Sequence[str]) -> str:
    files.write_bytes(path, examples.relabelling(columns, positions, classes=classes).encode())
    return f"{path}: {len(positions):,} examples; change `label` where it is wrong, and train with --labels {path}"


def _told(columns: Columns, found: Sequence[Quality]) -> list[str]:
    """What the suspect score is made of, and how good it is where that is known."""
    parts = ", ".join(f"{s.name} {s.share:.2f}" for s in signals(columns) if s.share > 0)
    lines = [f"The suspect score is made of: {parts}."]
    if "out_of_fold_margin" not in columns:
        lines.append("Margins are of models that have trained on the examples; train.crossfit=5 gives better ones.")
    if found:
        wrong = int((columns["clean_label"] != columns["label"]).sum())
        lines.append(f"True labels are known here: {wrong:,} are wrong. How well they are found, percent:")
        rows: dict[str, Any] = {
            "score": np.array([q.name for q in found]),
            "average precision": np.array([100 * q.average_precision for q in found]),
            f"precision at {wrong:,}": np.array([100 * q.precision for q in found]),
        }
        lines.append(_table(rows, digits=1))
    return ["\n".join(lines)]


def _as_json(
    run: str,
    columns: Columns,
    shown: Mapping[str, Columns],
    found: Sequence[Quality],
    out: str | None,
) -> str:
    titles = {title: name for name, title in TITLES.items()}
    lists = {titles.get(title, "sorted"): _records(table) for title, table in shown.items()}
    whole = {
        "run": run,
        "examples": len(columns["label"]),
        "lists": lists,
        "suspect_score": {s.name: s.share for s in signals(columns)},
        "quality": {q.name: {"average_precision": q.average_precision, "precision": q.precision} for q in found},
        "csv": out,
    }
    return json.dumps(finite(whole))


def _records(table: Columns) -> list[dict[str, Any]]:
    return [dict(zip(table, cells, strict=True)) for cells in zip(*(v.tolist() for v in table.values()), strict=True)]


# ---- margins


def margins(baseline: str, other: str, test: str | None, where: Sequence[str], out: str | None, as_json: bool) -> str:
    """The paired differences of two runs, as text or one JSON object; with `out` also as CSV files and figures."""
    found = paired_margins.of_folders(baseline, other, test=test, where=where)
    written = [] if out is None else _written(found, Path(out))
    if as_json:
        return json.dumps(finite({**_numbers(found), "files": written}))
    bins: dict[str, Any] = {
        "baseline's margin": np.array([f"{b.low:+.1f} to {b.high:+.1f}" for b in found.bins()]),
        "examples": np.array([b.n for b in found.bins()]),
        "mean": np.array([b.mean for b in found.bins()]),
        "± SEM": np.array([b.sem for b in found.bins()]),
        "median": np.array([b.median for b in found.bins()]),
    }
    return "\n\n".join([_in_words(found), _table(bins, signed=("mean", "median")), *written])


def _in_words(found: Differences) -> str:
    shares = {name: f"{100 * share:.1f} %" for name, share in found.shares.items()}
    a, b = found.names
    runs = f", {len(found.runs)} pairs of runs" if len(found.runs) > 1 else ""
    lines = [
        f"Margins of {b} minus margins of {a}, {len(found.difference):,} test examples{runs}",
        f"mean {found.mean:+.4f} ± {found.sem:.4f} (SEM over examples), median {found.median:+.4f}",
        f"larger for {shares['larger']}, smaller for {shares['smaller']}; "
        f"wrong before and right now {shares['mended']}, right before and wrong now {shares['broken']}",
    ]
    if len(found.runs) > 1:
        lines.append(f"mean of each pair: {', '.join(f'{m:+.4f}' for m in found.by_run)}")
    return "\n".join(lines)


def _numbers(found: Differences) -> dict[str, Any]:
    counts, edges = found.histogram()
    return {
        "baseline": found.names[0],
        "run": found.names[1],
        "examples": len(found.difference),
        "mean": found.mean,
        "sem": found.sem,
        "median": found.median,
        "by_run": found.by_run,
        "shares": found.shares,
        "bins": [asdict(b) for b in found.bins()],
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


def _written(found: Differences, folder: Path) -> list[str]:
    """margins-bins.csv, margins-histogram.csv, and the two figures as PNG and SVG."""
    from molere.show.clouds import margin_bins, margin_differences  # here: matplotlib takes longer than all else

    folder.mkdir(parents=True, exist_ok=True)
    bins, (counts, edges) = found.bins(), found.histogram()
    tables: dict[str, dict[str, Any]] = {
        "margins-bins.csv": {k: np.array([asdict(b)[k] for b in bins]) for k in asdict(bins[0])},
        "margins-histogram.csv": {"low": edges[:-1], "high": edges[1:], "count": counts},
    }
    for name, table in tables.items():
        files.write_bytes(folder / name, examples.as_csv(table).encode())
    names = (found.names[1], found.names[0])
    filled = [b for b in bins if b.n > 0]
    pictures = [
        margin_differences(found.baseline + found.difference, found.baseline, names),
        margin_bins([(b.low + b.high) / 2 for b in filled], [b.mean for b in filled], [b.sem for b in filled], names),
    ]
    saved = [p.save(folder / f"{p.name}.{kind}") for p in pictures for kind in ("png", "svg")]
    return [str(folder / name) for name in tables] + [str(path) for path in saved]


# ---- text


def _titled(title: str, table: Columns) -> str:
    count = len(next(iter(table.values())))
    return f"{title}\n{_table(table)}" if count else f"{title}\nnone"


def _table(table: Mapping[str, Any], *, digits: int = 3, signed: Sequence[str] = ()) -> str:
    """Columns under their names, numbers to the right."""
    columns: list[list[str]] = []
    for name, values in table.items():
        cells = [name, *(_cell(v, digits, name in signed) for v in values.tolist())]
        width = max(map(len, cells))
        left = values.dtype.kind not in "biuf"
        columns.append([c.ljust(width) if left else c.rjust(width) for c in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _cell(value: Any, digits: int, signed: bool) -> str:
    if isinstance(value, float):
        return f"{value:{'+' if signed else ''}.{digits}f}" if math.isfinite(value) else "-"
    return " ".join(str(value).split())
