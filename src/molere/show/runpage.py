"""The report of one run."""

import contextlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any  # Any: JSON, and columns of numbers

import numpy as np

from molere import paths, registry
from molere.config import parse_yaml
from molere.errors import MolereError
from molere.jobs import is_mapping
from molere.show import clouds, curves, things
from molere.show.page import Cell, Code, Grid, Page, Section, number
from molere.show.records import Columns, Record, part
from molere.show.style import Picture
from molere.suspects import qualities
from molere.table import Metric, passes, scout_passes

LEADING = ("accuracy", "worst_group", "worst_class")


def page(record: Record) -> Page:
    """Verdict, metrics, figures, examples, settings."""
    r = record.result
    return Page(
        kind="Run",
        title=title(r),
        verdict=verdict(record),
        facts=_facts(record),
        sections=[
            Section("Metrics", tables=[metrics(r)]),
            Section("Figures", figures=figures(record)),
            Section("Examples", words=of_examples(record.samples), lists=things.lists(record.samples, record.shown)),
            Section("Cost", tables=[cost(r)]),
            Section("Settings and environment", code=settings(record)),
        ],
    )


def title(r: Mapping[str, Any]) -> str:
    """Method, data, scenario, seed."""
    scenario = f" ({r['scenario']})" if r.get("scenario") else ""
    return f"{r['label']} on {r['data']}{scenario}, seed {r['seed']}"


def verdict(record: Record) -> list[str]:
    """What came out, how it was reached, and what one run cannot say."""
    r, last, best = record.result, record.result["last"], part(record.result, "best")
    lead = [m for m in LEADING if m in last]
    found = ", ".join(f"{m.replace('_', ' ')} {_shown(m, last[m])}" for m in lead)
    lines = [f"{found[:1].upper()}{found[1:]} on test data, at the last update."] if found else []
    if best and r.get("best_epoch"):
        at = ", ".join(f"{m.replace('_', ' ')} {_shown(m, best[m])}" for m in lead if m in best)
        lines.append(f"At the best epoch by validation, {r['best_epoch']}: {at}.")
    lines.append(_of_weights(r, record.samples))
    lines.append(_of_cost(r))
    lines.append(f"One run tells nothing about how sure this is; compare seed by seed: {_compared(record)}")
    return [line for line in lines if line]


def _of_weights(r: Mapping[str, Any], samples: Columns) -> str:
    logged: Mapping[str, float] = r.get("logged") or {}
    size = logged.get("effective_sample_size", 1.0)
    if abs(size - 1) < 1e-4 and abs(logged.get("weights_mean", 1.0) - 1) < 1e-4:
        return "All examples counted the same."
    parts = [f"The weights are worth {100 * size:.0f} % of the examples of a batch (effective sample size)"]
    if "weight_flipped" in logged and "weight_clean" in logged:
        flipped, clean = logged["weight_flipped"], logged["weight_clean"]
        parts.append(f"examples with wrong labels weighed {flipped:.2f} on average, those with right ones {clean:.2f}")
    return f"{'; '.join(parts)}."


def _of_cost(r: Mapping[str, Any]) -> str:
    cost = part(r, "cost")
    seconds = f" in {cost['seconds']:.1f} s" if cost.get("seconds") is not None else ""
    scouts = cost.get("scout_seconds") or 0
    beside = f", and {scouts:.1f} s for scouts" if scouts else ""
    memory = f"; peak memory {cost['peak_mib']:.0f} MiB" if cost.get("peak_mib") else ""
    return f"{r['updates']:,} updates{seconds}{beside}{memory} ({r.get('stopped', 'budget spent')})."


def _shown(metric: str, value: float | None) -> str:
    m = Metric(metric)
    if value is None or not math.isfinite(value):
        return "not known"
    return f"{m.scale * value:.1f} %" if m.unit else f"{value:.3f}"


def _facts(record: Record) -> list[tuple[str, str]]:
    r, stated = record.result, part(record.result, "settings")
    facts = [
        ("Method", r["label"]),
        ("Data", r["data"]),
        ("Scenario", r.get("scenario") or ""),
        ("Seed", str(r["seed"])),
    ]
    facts += [("Model", str(stated.get("model") or "")), ("Updates", f"{r['updates']:,}")]
    facts += [("Training examples", f"{len(record.samples['label']):,}")] if "label" in record.samples else []
    return [(name, text) for name, text in facts if text]


def metrics(r: Mapping[str, Any]) -> Grid:
    """All test metrics at both selections."""
    last, best = r["last"], part(r, "best")
    rows = [[Cell(_named(m)), _cell(m, last[m]), _cell(m, best.get(m))] for m in last]
    return Grid("Test metrics", ["metric", "last update", "best epoch by validation"], rows)


def _named(metric: str) -> str:
    return f"{metric}, %" if Metric(metric).unit else metric


def _cell(metric: str, value: float | None) -> Cell:
    m = Metric(metric)
    return number(math.nan if value is None else m.scale * value, 2 if m.unit else 4)


def cost(r: Mapping[str, Any]) -> Grid:
    """What the run took."""
    c = part(r, "cost")
    per = passes(c), scout_passes(c)
    rows = [
        ("seconds", c.get("seconds"), 1),
        ("seconds of scouts", c.get("scout_seconds"), 1),
        ("passes (samples forward 1, backward 2)", per[0], 0),
        ("passes of scouts", per[1], 0),
        ("peak memory, MiB", c.get("peak_mib"), 0),
    ]
    shown = [[Cell(name), number(math.nan if v is None else float(v), digits)] for name, v, digits in rows]
    return Grid("What the run took", ["what", "amount"], shown)


def figures(record: Record) -> list[Picture]:
    """Every figure that there are numbers for."""
    history, samples, test = record.history, record.samples, record.test()
    found: Sequence[Picture | None] = [
        curves.learning({record.label: [history]}, "train_loss"),
        curves.learning({record.label: [history]}, "select_accuracy"),
        curves.weights(history),
        clouds.weight_against(samples, "loss"),
        clouds.weight_against(samples, "margin"),
        clouds.margins(test["margin"], "test examples") if len(test.get("margin", ())) else None,
        clouds.calibration({record.label: confidence(test)}),
        curves.churn(history),
        clouds.label_balance(samples, record.shown.get("class_names") or ()),
    ]
    return [picture for picture in found if picture is not None]


def confidence(test: Columns) -> tuple[Any, Any]:
    """Largest probabilities of test examples, and whether they were right; empty where they were not kept."""
    if "confidence" not in test:
        return np.zeros(0), np.zeros(0, dtype=bool)
    return test["confidence"], test["label"] == test["prediction"]


def of_examples(samples: Columns) -> list[str]:
    """How many are misclassified, and how well suspects are found, where that can be told."""
    if "label" not in samples:
        return []
    wrong = int((samples["label"] != samples["prediction"]).sum())
    n = len(samples["label"])
    words = [f"Of {n:,} training examples the finished classifier gives {wrong:,} another class than their label."]
    found = qualities(samples) if "margin" in samples else []
    if not found:
        return words
    flips = int((samples["clean_label"] != samples["label"]).sum())
    told = ", ".join(f"{100 * q.precision:.0f} % by {q.name} ({q.average_precision:.2f})" for q in found)
    says = (
        f"The true labels are known: {flips:,} are wrong. Of the first {flips:,} of a list sorted by a score are wrong:"
    )
    return [*words, f"{says} {told}; the average precision is in brackets."]


def settings(record: Record) -> list[Code]:
    """How to make the run again, what it was made with, and on what."""
    made = json.dumps(record.result.get("settings") or {}, indent=2, ensure_ascii=False)
    code = [Code("Commands to reproduce", commands(record))]
    code += [settings_file(record.settings)] if record.settings else []
    code.append(Code("What decides the result", made))
    if record.environment:
        code.append(Code("Environment", json.dumps(record.environment, indent=2, ensure_ascii=False)))
    return code


def settings_file(text: str) -> Code:
    """A settings file as it lies in the folder, but for where the data are on this machine."""
    shown = text
    with contextlib.suppress(MolereError):
        data = parse_yaml(text).get("data")
        shown = paths.unplaced(text, data) if is_mapping(data) else text
    words = (
        "" if shown == text else "Of paths to data the last part is shown; config.yaml in the folder has them whole."
    )
    return Code("Settings file", shown, words)


def _compared(record: Record) -> str:
    """The command, or the call where data came from Python, that holds this method against ERM."""
    label = record.label
    methods = [label, "molere"] if re.split(r"[@\[]", label)[0] == "erm" else ["erm", label]
    if not _typed(record):
        return f"molere.compare({methods!r}, data=..., seeds=5)"
    what = f"--methods {shlex.quote(','.join(methods))} --seeds 5"
    if (stated := _stated(record)) is not None:
        return f"molere compare -c {stated} {what} --out NEW-FOLDER"
    return f"molere compare {_data(record)} {what}"


def _stated(record: Record) -> str | None:
    """The settings file as it is typed in any folder."""
    if not record.settings or record.folder is None:
        return None
    return shlex.quote(str((record.folder / "config.yaml").absolute()))


def _typed(record: Record) -> bool:
    """Whether the run can be had by a command: its data have a name, or a settings file says where they are."""
    return _stated(record) is not None or record.result["data"] in registry.DATASETS


def _data(record: Record) -> str:
    r = record.result
    where = f" --scenario {shlex.quote(str(r['scenario']))}" if r.get("scenario") else ""
    return f"--data {shlex.quote(str(r['data']))}{where}"


def commands(record: Record) -> str:
    """What to type: to train again, to look at it again."""
    r, place = record.result, shlex.quote(str(record.folder.absolute() if record.folder else "FOLDER"))
    method = shlex.quote(record.label)
    if (stated := _stated(record)) is not None:
        train = f"molere train -c {stated} --out NEW-FOLDER"
    elif _typed(record):
        train = f"molere train --method {method} {_data(record)} --seed {r['seed']}"
    else:
        train = f"molere.fit({record.label!r}, data=..., seed={r['seed']})  # in Python, with the same data"
    return f"{train}\nmolere report {place}\nmolere samples {place}"
