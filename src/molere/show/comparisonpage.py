"""The report of a comparison: verdict, tables, figures, examples of its best method, runs, settings."""

import json
import math
import shlex
from collections.abc import Sequence

from molere import logged, wording
from molere.report import COLUMNS, COSTS, About, metric_words
from molere.show import clouds, curves, gains, things
from molere.show.compared import Compared
from molere.show.page import Cell, Code, Examples, Grid, Page, Section, number
from molere.show.records import part
from molere.show.runpage import confidence, of_examples, settings_file
from molere.show.style import Picture
from molere.table import SELECTIONS, Metric, Selection, Table
from molere.wording import TITLES

MOST_CURVES = 7
"""Methods that one figure shows lines of."""
MOST_RUNS = 2000
"""Rows of the table of single runs."""


def page(c: Compared) -> Page:
    """All sections, those that have something to show."""
    t, about = c.table, c.about
    words, lists = examples(c)
    return Page(
        kind="Comparison",
        title=about.title,
        verdict=wording.verdicts(t),
        facts=_facts(c),
        date=about.date,
        sections=[
            *(_tables(t, selection) for selection in SELECTIONS),
            Section("Cost", words=[_cost_words(t)], tables=[_costs(t)]),
            Section("Figures", figures=figures(c)),
            Section("Examples", words=words, lists=lists),
            Section("Other metrics", tables=_others(t)),
            _logged(t),
            Section("Tuning", tables=_tuning(about)),
            Section("Runs", words=wording.missing(t), tables=[_runs(c)]),
            Section("Settings and environment", code=_settings(c)),
        ],
    )


def _facts(c: Compared) -> list[tuple[str, str]]:
    t, about = c.table, c.about
    facts = [("Baseline", t.baseline), ("Methods", str(len(t.labels))), ("Seeds", ", ".join(map(str, t.seeds)))]
    facts += [("Date", about.date), ("Machine", about.machine)]
    facts += [("Runs side by side", str(about.jobs))] if about.jobs > 1 else []
    return [(name, text) for name, text in facts if text]


def _tables(t: Table, selection: Selection) -> Section:
    title = TITLES[selection].removeprefix("at ").capitalize()
    grids = [metric_grid(t, metric, selection) for metric in t.headline]
    return Section(
        title, words=[f"{wording.meaning(t)} {wording.budgets(t)}"] if selection == "last" else (), tables=grids
    )


def metric_grid(t: Table, metric: str, selection: Selection) -> Grid:
    """One metric of all methods: value, difference, p, wins; better and worse are marked."""
    column = t.column(metric, selection)
    words = metric_words(t, column[0].metric)
    rows = list[list[Cell]]()
    for cell in column:
        pair, scale = cell.paired, cell.metric.scale
        keys = [
            scale * cell.mean.mean,
            pair and scale * pair.difference,
            pair and pair.relative,
            cell.p,
            pair and pair.wins,
        ]
        mark = cell.verdict if cell.verdict in ("better", "worse") else ""
        shown = [Cell(show(cell), _key(key)) for (_, show), key in zip(COLUMNS, keys, strict=True)]
        shown[1] = Cell(shown[1].text, shown[1].key, mark)
        rows.append([Cell(wording.name_of(cell, t)), *shown])
    return Grid(f"{metric}, {TITLES[selection]}", ["method", *(h.format(**words) for h, _ in COLUMNS)], rows)


def _key(value: float | int | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _cost_words(t: Table) -> str:
    return (
        f"Means over common seeds, as multiples of {t.baseline}'s. A pass is a forward of a sample, a backward "
        "counts as two. Scouts, trained beforehand to find hard examples, stand apart."
    )


def _costs(t: Table) -> Grid:
    """Costs of every method; those of scouts only where there were any."""
    keys = ("seconds", "seconds_ratio", "passes_ratio", "memory_ratio", "scout_seconds_ratio", "scout_passes_ratio")
    given = [(key, *column) for key, column in zip(keys, COSTS, strict=True)]
    shown = [column for column in given if not _of_scouts(column[0]) or any(getattr(c, column[0]) > 0 for c in t.costs)]
    heads = ["method", *(head.format(baseline=t.baseline) for _, head, _ in shown)]
    rows = [[Cell(c.label), *(_cost(show(c), getattr(c, key), key) for key, _, show in shown)] for c in t.costs]
    return Grid("Cost", heads, rows)


def _cost(text: str, value: float, name: str) -> Cell:
    """A cost, or nothing where there were no scouts."""
    return Cell("") if _of_scouts(name) and not value > 0 else Cell(text, _key(value))


def _of_scouts(name: str) -> bool:
    return name.startswith("scout")


def some(t: Table) -> list[str]:
    """The baseline and the methods worth a line of their own: the best by the first headline metric, as many as fit."""
    best = by_gain(t)
    named = [label for label in ("molere", "lrwopt") if label in best]
    wanted = list(dict.fromkeys([*best[: MOST_CURVES - 1 - len(named)], *named]))
    return [t.baseline, *(label for label in t.labels if label in wanted)]


def leading(t: Table) -> str:
    """The method whose examples are shown: the best one with weights of its own, else the best, else the baseline."""
    found = by_gain(t)
    return next((label for label in found if _weighs(t, label)), found[0] if found else t.baseline)


def by_gain(t: Table) -> list[str]:
    """The methods that are not the baseline, the best by the first headline metric first."""
    cells = [c for c in t.column(t.headline[0], "last") if c.paired is not None and not math.isnan(c.gain)]
    return [c.label for c in sorted(cells, key=lambda c: -c.gain)]


def figures(c: Compared) -> list[Picture]:
    """Every figure that there are numbers for."""
    t = c.table
    found: list[Picture | None] = []
    if t.tested:
        found += [gains.gains(t, metric) for metric in t.headline]
        found += [gains.cost_against_gain(t, metric) for metric in t.headline[:2]]
    found.append(gains.groups(t))
    labels = some(t)
    histories = c.histories(labels)
    found += [curves.learning(histories, column, t.baseline) for column in ("train_loss", "select_accuracy")]
    found += [_calibration(c, labels), *_of_weights(c)]
    return [picture for picture in found if picture is not None]


def _calibration(c: Compared, labels: Sequence[str]) -> Picture | None:
    records = {label: c.record(label, c.table.seeds[0]) for label in labels}
    found = {label: confidence(r.test()) for label, r in records.items() if r is not None}
    return clouds.calibration(found, c.table.baseline, seed=c.table.seeds[0])


def _of_weights(c: Compared) -> list[Picture | None]:
    """What the best method with weights of its own did to the examples; and the learned split, where there is one."""
    t = c.table
    found = by_gain(t)
    weighted = next((label for label in found if _weighs(t, label)), None)
    split = next((label for label in found if "split_churn" in t.logged.get(label, {})), None)
    out = list[Picture | None]()
    if weighted and (r := c.record(weighted, t.seeds[0])) is not None:
        drawn = curves.weights(r.history), *(clouds.weight_against(r.samples, x) for x in ("loss", "margin"))
        out += [p and p.of(weighted, r.seed) for p in drawn]
    if split and (r := c.record(split, t.seeds[0])) is not None:
        out += [
            p and p.of(split, r.seed)
            for p in (curves.churn(r.history), clouds.label_balance(r.samples, r.shown.get("class_names") or ()))
        ]
    return out


def _weighs(t: Table, label: str) -> bool:
    size = t.logged.get(label, {}).get("effective_sample_size")
    return size is not None and abs(size.mean - 1) > 1e-4


def examples(c: Compared) -> tuple[list[str], list[Examples]]:
    """Sentences and lists of the examples of one run; empty where none were kept."""
    label = leading(c.table)
    record = c.record(label, c.table.seeds[0])
    found = [] if record is None else things.lists(record.samples, record.shown)
    if record is None or not found:
        return [], []
    words = [f"Training examples as {label} left them, seed {c.table.seeds[0]}; each run has its own samples.parquet."]
    return [*words, *of_examples(record.samples)], found


def _others(t: Table) -> list[Grid]:
    names = [m for m in t.metrics if m not in t.headline]
    if not names:
        return []
    columns = [t.column(m, "last") for m in names]
    heads = ["method", *(f"{m}, %" if Metric(m).unit else m for m in names)]
    rows = [
        [Cell(label), *(Cell(wording.value(col[i]), _key(col[i].metric.scale * col[i].mean.mean)) for col in columns)]
        for i, label in enumerate(t.labels)
    ]
    return [Grid("Other metrics, at the last update", heads, rows)]


def _logged(t: Table) -> Section:
    heads, rows = logged.rows(t)
    cells = [
        [Cell(label), *(Cell(logged.shown(m), None if m is None else _key(m.mean)) for m in means)]
        for label, means in rows
    ]
    grids = [Grid("Means over epochs, then over seeds", heads, cells)] if len(heads) > 1 else []
    return Section("Logged along the way", words=[f"{line}." for line in logged.of_single_methods(t)], tables=grids)


def _tuning(about: About) -> list[Grid]:
    heads = ["method", "chosen", "selection accuracy, %", "trials", "seconds"]
    rows = [
        [Cell(c.label), Cell(c.words), number(100 * c.accuracy), number(c.trials, 0), number(c.seconds, 1)]
        for c in about.tuning
    ]
    return [Grid("Random search on selection data, before the comparison", heads, rows)] if rows else []


def _runs(c: Compared) -> Grid:
    t = c.table
    heads = ["run", "seed", *(f"{m}{', %' if Metric(m).unit else ''}" for m in t.headline), "best epoch", "seconds"]
    rows = list[list[Cell]]()
    for r in c.results[:MOST_RUNS]:
        values = [_scaled(m, part(r, "last").get(m)) for m in t.headline]
        seconds = part(r, "cost").get("seconds")
        tail = [number(r.get("best_epoch") or 0, 0), number(math.nan if seconds is None else seconds, 1)]
        rows.append([Cell(str(r["label"])), number(int(r["seed"]), 0), *values, *tail])
    return Grid("Every run, at its last update", heads, rows)


def _scaled(metric: str, value: float | None) -> Cell:
    m = Metric(metric)
    return number(math.nan if value is None else m.scale * value, 2 if m.unit else 4)


def _settings(c: Compared) -> list[Code]:
    place = shlex.quote(str(c.folder)) if c.folder else "FOLDER"
    command = c.about.command or f"molere resume {place}"
    code = [Code("Commands to reproduce", f"{command}\nmolere report {place}")]
    return [*code, *made_with(c)]


def made_with(c: Compared) -> list[Code]:
    """The settings, what decides the result of the baseline's first run, and the environment, as far as kept."""
    code = list[Code]()
    if c.folder is None:
        return code
    if (c.folder / "config.yaml").is_file():
        code.append(settings_file((c.folder / "config.yaml").read_text("utf-8")))
    first = c.record(c.table.baseline, c.table.seeds[0], samples=False)
    if first is not None:
        made = json.dumps(first.result.get("settings") or {}, indent=2, ensure_ascii=False)
        code.append(Code(f"What decides the result of {first.label}, seed {first.seed}", made))
        if first.environment:
            code.append(Code("Environment", json.dumps(first.environment, indent=2, ensure_ascii=False)))
    return code
