"""Figures and findings of a comparison as words: each cell of a table as text, and the verdict in sentences.

Shares are shown in percent and their differences in points.
"""

import math
from collections.abc import Mapping, Sequence

from molere.table import ALPHA, Cell, Cost, Selection, Table

NONE = "–"
MOSTLY = 0.5
"""Share of rejected splits from which a row is cautioned against."""
TITLES: Mapping[Selection, str] = {
    "last": "at the last update",
    "best": "at the best epoch by validation",
}


def value(cell: Cell, digits: int = 1) -> str:
    """Mean ± half-width, in the shown unit: `93.1 ± 0.4`."""
    return _plus_minus(cell, cell.mean.mean, cell.mean.half_width, digits, sign="")


def difference(cell: Cell, digits: int = 1) -> str:
    """The paired difference to the baseline, in points: `+6.5 ± 0.7`."""
    if cell.paired is None:
        return ""
    return _plus_minus(cell, cell.paired.difference, cell.paired.half_width, digits, sign="+")


def relative(cell: Cell) -> str:
    """The difference as a share of the baseline's mean: `+8.1 %`."""
    if cell.paired is None:
        return ""
    return NONE if math.isnan(cell.paired.relative) else f"{100 * cell.paired.relative:+.1f} %"


def p_value(cell: Cell) -> str:
    """Holm's p: `<.001`, `.034`, `1.00`; `<.05` where it would be rounded up to that."""
    if cell.paired is None:
        return ""
    if math.isnan(cell.p):
        return NONE
    if cell.p < 0.001:
        return "<.001"
    if cell.p < ALPHA <= round(cell.p, 3):
        return "<.05"
    return f"{cell.p:.3f}".removeprefix("0") if cell.p < 0.9995 else "1.00"


def wins(cell: Cell) -> str:
    """Seeds on which the method is better, of those compared, and ties: `4/5`, `3/5 (1=)`."""
    if cell.paired is None:
        return ""
    ties = f" ({cell.paired.ties}=)" if cell.paired.ties else ""
    return f"{cell.paired.wins}/{cell.paired.n}{ties}"


def times(ratio: float) -> str:
    """A multiple of the baseline's cost: `1.06`."""
    return NONE if math.isnan(ratio) else f"{ratio:.2f}"


def name_of(cell: Cell, table: Table) -> str:
    """The method's label, with the number of its runs where some are missing."""
    return cell.label if cell.mean.n == len(table.seeds) else f"{cell.label} (n={cell.mean.n})"


def seconds(cost: Cost) -> str:
    """Mean seconds of a run."""
    return NONE if math.isnan(cost.seconds) else f"{cost.seconds:.1f}"


def _plus_minus(cell: Cell, middle: float, half: float, digits: int, sign: str) -> str:
    if math.isnan(middle):
        return NONE
    digits, scale = (digits, cell.metric.scale) if cell.metric.unit else (3, cell.metric.scale)
    text = f"{scale * middle:{sign}.{digits}f}"
    return text if math.isnan(half) else f"{text} ± {scale * half:.{digits}f}"


def verdict(table: Table, selection: Selection = "last") -> list[str]:
    """For each headline metric: which methods differ from the baseline, by how much, and at what cost."""
    if not table.tested:
        return [f"Only {table.baseline} was run, so there is nothing to compare it with."]
    return [_finding(table, table.column(metric, selection)) for metric in table.headline]


def verdicts(table: Table) -> list[str]:
    """The verdict at the last update, what changes (if anything) at the best epochs by validation, and cautions."""
    last = verdict(table, "last")
    if not table.tested or not any(c.mean.n for m in table.headline for c in table.column(m, "best")):
        return [*last, *cautions(table)]
    if all(_decided(table, m, "last") == _decided(table, m, "best") for m in table.headline):
        return [*last, "The best epochs by validation give the same verdict.", *cautions(table)]
    return [*last, *verdict(table, "best"), *cautions(table)]


def cautions(table: Table) -> list[str]:
    """Rows that are not what their name says: learned splits that were mostly rejected."""
    shares = {
        label: logged["split_rejected"].mean for label, logged in table.logged.items() if "split_rejected" in logged
    }
    what = "of its splits had too few candidates and were rejected, so the one before stayed; this is no learned split"
    return [f"{label}: {100 * share:.0f} % {what}." for label, share in shares.items() if share >= MOSTLY]


def _decided(table: Table, metric: str, selection: Selection) -> dict[str, str]:
    return {c.label: c.verdict for c in table.column(metric, selection)}


def _finding(table: Table, column: Sequence[Cell]) -> str:
    head = f"{column[0].metric.name}, {TITLES[column[0].selection]}:"
    others = [c for c in column if c.paired is not None]
    if not any(c.mean.n for c in column):
        return f"{head} no figures."
    if all(c.verdict == "untested" for c in others):
        return f"{head} fewer than two common seeds, so nothing can be concluded; use five seeds or more."
    better = sorted((c for c in others if c.verdict == "better"), key=lambda c: -c.gain)
    worse = sorted((c for c in others if c.verdict == "worse"), key=lambda c: c.gain)
    level = f"(Holm p < {ALPHA:.2f})".replace("0.", ".")
    if not better and not worse:
        return f"{head} no method differs from {table.baseline} {level}{_nearest(others)}."
    gains = "; ".join(f"{c.label} by {_gain(c)}, {price(table, c.label)}" for c in better)
    losses = "; ".join(f"{c.label} by {_loss(c)}" for c in worse)
    first = f"better than {table.baseline} {level}: {gains}." if better else f"none is better than {table.baseline}."
    return f"{head} {first}" + (f" Worse {level}: {losses}." if worse else "")


def _nearest(cells: Sequence[Cell]) -> str:
    """Of undecided differences that of the smallest p, and of those the largest; nothing where all are zero."""
    known = [c for c in cells if not math.isnan(c.p) and c.gain != 0]
    if not known:
        return ""
    cell = min(known, key=lambda c: (c.p, -abs(c.gain)))
    points = " points" if cell.metric.unit else ""
    return f"; the nearest to it is {cell.label} with {difference(cell)}{points} ({_probability(cell)})"


def _gain(cell: Cell) -> str:
    share = [text for text in (relative(cell),) if text != NONE]
    return f"{_size(cell)} ({', '.join([*share, _probability(cell), f'wins {wins(cell)}'])})"


def _probability(cell: Cell) -> str:
    p = p_value(cell)
    return f"p < {p[1:]}" if p.startswith("<") else f"p = {p}"


def _loss(cell: Cell) -> str:
    return _size(cell) if relative(cell) == NONE else f"{_size(cell)} ({relative(cell)})"


def _size(cell: Cell) -> str:
    half = cell.paired.half_width if cell.paired else math.nan
    return _plus_minus(cell, abs(cell.gain), half, 1, sign="") + (" points" if cell.metric.unit else "")


def price(table: Table, label: str) -> str:
    """What a method takes: `at 1.19 x its time, and 2.11 x for scouts`, in multiples of the baseline's time."""
    cost = table.cost(label)
    if math.isnan(cost.seconds_ratio):
        return "at an unknown cost"
    scouts = f" and {times(cost.scout_seconds_ratio)} x for scouts" if cost.scout_seconds_ratio > 0 else ""
    return f"at {times(cost.seconds_ratio)} x its time{scouts}"


def missing(table: Table) -> list[str]:
    """One line for each run that was asked for and is not there."""
    return [f"{m.label}, seed {m.seed}: {m.reason}" for m in table.missing]


def meaning(table: Table) -> str:
    """What the columns mean."""
    return (
        "± is half the 95 % interval of the mean over seeds (Student t). Differences are paired: method "
        f"minus {table.baseline}, seed by seed, on common seeds only. p: two-sided paired t test, with Holm's "
        "correction over the methods of each metric. wins: seeds on which the method is better (=: equal)."
    )


def budgets(table: Table) -> str:
    """The classifier updates of each method, said aloud where they differ."""
    kinds = set(table.updates.values()) - {()}
    if len(kinds) == 1 and len(min(kinds)) == 1:
        return f"Every run made {min(kinds)[0]} classifier updates."
    each = (f"{label} {'/'.join(map(str, n))}" for label, n in table.updates.items() if n)
    return "Classifier updates differ: " + ", ".join(each) + "." if kinds else ""
