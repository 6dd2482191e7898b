"""The page of one row: printed numbers beside ours, claims with their verdicts, and everything that differs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast  # Any: JSON

from molere.reproduce.resolve import Planned
from molere.reproduce.verdicts import Finding, Judged, Values, judge, tally
from molere.statistics import Mean, Paired, mean_interval, paired
from molere.table import Metric

NONE = "–"
Result = Mapping[str, Any]

WHAT_VERDICTS_MEAN = (
    "A claim has held where the 95 % interval of the paired difference, seed by seed, lies on its side of zero for "
    "every step, is reversed where one lies on the other side, and is undecided otherwise; no correction is made for "
    "the number of claims. At another scale, classifier or number of seeds a verdict is about this run, not about the "
    "publication."
)


@dataclass(frozen=True)
class Line:
    """One column of the publication: the printed number, ours, and both differences to the reference."""

    column: str
    label: str
    printed: float | None
    spread: float | None
    ours: Mean
    printed_difference: float | None
    difference: Paired | None


@dataclass(frozen=True)
class Page:
    """All that is said of one row."""

    plan: Planned
    lines: Mapping[str, tuple[Line, ...]]
    """Metric -> a line for each column."""
    findings: tuple[Finding, ...]
    about: Mapping[str, str] = field(default_factory=dict[str, str])
    """Command, date, machine, and where the comparison is kept."""
    extra: tuple[str, ...] = ()
    """Further parts in Markdown: figures and their tables."""
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Column -> its changes of margins; empty where they are not asked for."""


def values_of(plan: Planned, results: Iterable[Result], metric: str) -> dict[str, dict[int, float]]:
    """Column -> seed -> the metric at the last update, of what there is."""
    column_of = {label: column for column, label in plan.columns.items()}
    found: dict[str, dict[int, float]] = {column: {} for column in plan.columns}
    for r in results:
        value = r["last"].get(metric)
        if r["label"] in column_of and value is not None and math.isfinite(value):
            found[column_of[r["label"]]][int(r["seed"])] = float(value)
    return found


def page(
    plan: Planned,
    results: Sequence[Result],
    about: Mapping[str, str],
    *,
    extra: Sequence[str] = (),
    margins: Values | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Page:
    """The page of a row's results.

    margins: what the claims of a figure of margins are judged by. changes: what that figure is drawn from.
    """
    row = plan.row
    lines = {metric: _lines(plan, values_of(plan, results, metric), metric, n) for metric, n in row.metrics.items()}
    values = values_of(plan, results, row.metric) if margins is None else margins
    better = Metric(row.metric).higher_is_better
    printed = _implied(plan) if margins is None else {}
    findings = tuple(judge(claim, values, printed, higher_is_better=better) for claim in row.claimed)
    return Page(plan, lines, findings, about, tuple(extra), changes or {})


def _implied(plan: Planned) -> dict[str, float]:
    """The printed numbers in which claims can be read: gains of the reference are turned round, with 0 for it."""
    numbers = plan.row.numbers
    return numbers if not plan.row.gains else {plan.row.reference: 0.0, **{c: -v for c, v in numbers.items()}}


def _lines(plan: Planned, values: Values, metric: str, printed: Mapping[str, float]) -> tuple[Line, ...]:
    row, better = plan.row, Metric(metric).higher_is_better
    spread = {c: float(cast(float, v)) for c, v in row.spread.items()} if metric == row.metric else {}
    base = values.get(row.reference, {})
    implied = {row.reference: 0.0, **{c: -v for c, v in printed.items()}} if row.gains else printed
    return tuple(
        Line(
            column=column,
            label=label,
            printed=None if row.gains else printed.get(column),
            spread=spread.get(column),
            ours=mean_interval(list(values[column].values())),
            printed_difference=_gap(implied, column, row.reference),
            difference=None if column == row.reference else paired(values[column], base, higher_is_better=better),
        )
        for column, label in plan.columns.items()
    )


def _gap(printed: Mapping[str, float], column: str, reference: str) -> float | None:
    if column == reference or column not in printed or reference not in printed:
        return None
    return printed[column] - printed[reference]


# ---- Markdown


def markdown(p: Page) -> str:
    """The page, to be read."""
    facts = [f"- {name}: {text}" for name, text in p.about.items() if text]
    parts = [f"# {p.plan.title}", f"{p.plan.preset.about[:1].upper()}{p.plan.preset.about[1:]}.", "\n".join(facts)]
    for metric, lines in p.lines.items():
        parts += [f"## {metric}" if len(p.lines) > 1 else "## Numbers", _numbers(p.plan, lines)]
    parts += [_meaning(p.plan), *p.extra]
    if p.findings:
        parts += [
            "## Claims",
            f"{tally(p.findings)[:1].upper()}{tally(p.findings)[1:]}.",
            _claims(p),
            WHAT_VERDICTS_MEAN,
        ]
    parts += ["## Deviations from the publication", _bullets(p.plan.deviations)]
    if p.plan.row.doubts:
        parts += ["## Doubts about the printed numbers", _bullets(p.plan.row.doubts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _numbers(plan: Planned, lines: Sequence[Line]) -> str:
    against = plan.row.reference
    heads = ["column", "method", "printed", "ours", f"printed, minus {against}", f"ours, minus {against}", "p", "n"]
    rows = [[line.column, f"`{line.label}`", *_figures(line)] for line in lines]
    return grid(heads, rows)


def _figures(line: Line) -> list[str]:
    printed = NONE if line.printed is None else f"{line.printed:g}" + (f" ± {line.spread:g}" if line.spread else "")
    gap = NONE if line.printed_difference is None else f"{line.printed_difference:+.2f}"
    pair = line.difference
    ours = "" if pair is None else points(pair)
    p = "" if pair is None else _p(pair.p)
    return [printed, share(line.ours), gap if pair is not None else "", ours, p, str(line.ours.n)]


def share(mean: Mean) -> str:
    """A mean share in percent, with half its interval: `81.2 ± 0.4`."""
    return plus_minus(100 * mean.mean, 100 * mean.half_width)


def points(pair: Paired) -> str:
    """A mean paired difference of shares in points: `+0.61 ± 0.40`."""
    return plus_minus(100 * pair.difference, 100 * pair.half_width, sign="+")


def plus_minus(middle: float, half: float, sign: str = "") -> str:
    """Two decimals; a dash where there is nothing, no interval where there is none."""
    if math.isnan(middle):
        return NONE
    return f"{middle:{sign}.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def _p(p: float) -> str:
    return NONE if math.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _meaning(plan: Planned) -> str:
    row = plan.row
    half = "± is half the 95 % interval of the mean over seeds (Student t); differences are paired, in points."
    gains = f" The printed numbers are gains of {row.reference}, shown with their sign turned." if row.gains else ""
    ours = ", ".join(row.ours) if row.ours else ""
    own = f" Not in the publication: {ours}." if ours else ""
    return f"{half} p: two-sided paired t test, not corrected.{gains}{own}"


def _claims(p: Page) -> str:
    heads = ["claim", "verdict", "steps held", "paired differences", "printed numbers agree"]
    return grid(heads, [_claim(f, p.plan) for f in p.findings])


def _claim(f: Finding, plan: Planned) -> list[str]:
    agree = {True: "yes", False: "no", None: NONE}[f.printed]
    said = f"{f.claim.text}" + (f" ({f.claim.says})" if f.claim.says else "")
    return [said, f"**{f.verdict}**", f.count, "; ".join(_step(s, plan) for s in f.steps), agree]


def _step(s: Judged, plan: Planned) -> str:
    if s.verdict == "not run":
        return f"{s.step}: not run"
    scale = 100.0 if Metric(plan.row.metric).unit and plan.preset.kind != "margins" else 1.0
    text = plus_minus(scale * s.pair.difference, scale * s.pair.half_width, sign="+")
    if scale == 1.0:
        text = f"{s.pair.difference:+.3f}" + ("" if math.isnan(s.pair.half_width) else f" ± {s.pair.half_width:.3f}")
    return f"{s.step}: {text}"


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *([t.replace("|", "\\|") for t in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# ---- JSON


def as_dict(p: Page) -> dict[str, Any]:
    """Everything on the page, as plain data; NaN stands where there is no number."""
    return {
        "preset": p.plan.preset.name,
        "row": p.plan.key,
        "title": p.plan.title,
        "about": dict(p.about),
        "kind": p.plan.preset.kind,
        "reference": p.plan.row.reference,
        "metric": p.plan.row.metric,
        "metrics": {metric: [asdict(line) for line in lines] for metric, lines in p.lines.items()},
        "changes": dict(p.changes),
        "bars": p.plan.preset.bars,
        "claims": [_plain(f) for f in p.findings],
        "verdicts": tally(p.findings),
        "deviations": list(p.plan.deviations),
        "doubts": list(p.plan.row.doubts),
    }


def _plain(f: Finding) -> dict[str, Any]:
    steps = [{"step": str(s.step), "verdict": s.verdict, **asdict(s.pair)} for s in f.steps]
    return {"text": f.claim.text, "says": f.claim.says, "verdict": f.verdict, "printed": f.printed, "steps": steps}
