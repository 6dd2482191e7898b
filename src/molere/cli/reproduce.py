"""`molere reproduce`: which rows, what they need, and the pages of those that ran. torch comes late."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast  # Any: plain data

from molere.cli.console import Console, Meter, finite
from molere.cli.plan import RUNS, check_folder
from molere.config import put, read_overrides
from molere.errors import ConfigError, DataError, MolereError
from molere.reproduce.presets import ORDERED, STUDIES, pick_preset, preset
from molere.reproduce.resolve import Asked, Planned, expanded, present, resolve, rows_of

if TYPE_CHECKING:
    from molere.jobs import Progress


def listing(root: str | None, as_json: bool) -> str:
    """All presets and their rows, with the data each needs and whether they are there."""
    rows = [(name, key, row) for name in ORDERED for key, row in preset(name).rows.items()]
    if as_json:
        found = [
            {
                "preset": n,
                "row": k,
                "title": r.title,
                "data": r.data["name"],
                "found": present(r, root),
                "model": r.model,
            }
            for n, k, r in rows
        ]
        return json.dumps({"rows": found, "studies": dict(STUDIES)}, indent=2)
    lines = list[str]()
    for name in ORDERED:
        lines.append(f"{name}: {preset(name).title}")
        for key, row in preset(name).rows.items():
            there = "found" if present(row, root) else "missing"
            own = "" if row.printed else ", not in the publication"
            lines.append(f"  --row {key:<20} {there:<8} {row.data['name']}, {row.model}{own}")
    lines += [f"{name}: {text}" for name, text in STUDIES.items()]
    if root is None:
        lines.append(
            "Give --data-root PATH, the folder that holds the data sets; molere data get NAME says how to get one."
        )
    return "\n".join(lines)


def plans(name: str, rows: Sequence[str], asked: Asked) -> list[Planned]:
    """The rows of a preset as they would be run; one ConfigError for the mistakes of all."""
    chosen = pick_preset(name)
    return [resolve(chosen, key, asked) for key in rows_of(chosen, rows)]


def asked_for(flags: Mapping[str, Any]) -> Asked:
    """The options of the command as one request; ConfigError where an override meets an option."""
    values = read_overrides(flags.get("overrides") or [])
    for option, key in (
        ("model", "model"),
        ("limit", "data.limit"),
        ("epochs", "train.epochs"),
        ("device", "train.device"),
    ):
        if flags.get(option) is not None:
            put(values, key, flags[option])
    known = ("data", "model", "train", "method", "preset")
    stray = [key for key in values if key not in known]
    if stray:
        raise ConfigError(f"{', '.join(stray)}: a preset takes settings of {', '.join(known)}, as in train.lr=0.05")
    return Asked(
        scale=1.0 if flags.get("scale") is None else float(flags["scale"]),
        seeds=flags.get("seeds"),
        methods=flags.get("methods"),
        root=expanded(flags.get("data_root")),
        settings=values,
        tune=int(flags.get("tune") or 0),
    )


def begin(name: str, flags: Mapping[str, Any], console: Console) -> int:
    """Run a study, or the rows of a preset; the exit code."""
    if name not in STUDIES:
        return start(name, flags, console)
    from molere.cli import studies  # here: they are not always asked for

    return studies.start(name, flags, console)


def start(name: str, flags: Mapping[str, Any], console: Console) -> int:
    """Say what would run, or run it row by row and print the pages; the exit code is that of the first failure."""
    asked = asked_for(flags)
    todo = plans(name, flags.get("rows") or [], asked)
    out = folder(name, asked, flags.get("out"))
    if flags["dry_run"]:
        console.result(_dry(todo, out, as_json=flags["json"]))
        return 0
    check_folder_of_rows(out)
    there = [p for p in todo if not p.lacking]
    for p in (p for p in todo if p.lacking):
        console.say(f"{p.preset.name} {p.key}: left out, {p.lacking}")
    if not there:
        raise DataError("; ".join([todo[0].lacking, *(f"to get it: {step}" for step in todo[0].steps[:1])]))
    return _run(there, out, flags, console)


def folder(name: str, asked: Asked, out: str | None) -> Path:
    """Where the rows go: --out, or a name that says table and scale."""
    scale = "" if asked.scale == 1 else f"-scale-{asked.scale:g}"
    return Path(out) if out is not None else RUNS / f"reproduce-{name.lower()}{scale}"


def check_folder_of_rows(out: Path) -> None:
    """StorageError where the rows' folder cannot be written to."""
    check_folder(out / "row")


def _run(todo: Sequence[Planned], out: Path, flags: Mapping[str, Any], console: Console) -> int:
    from molere.reproduce import rows

    out.mkdir(parents=True, exist_ok=True)
    pages, code = list[rows.Page](), 0
    command = shlex.join(["molere", *sys.argv[1:]])
    for plan in todo:
        console.say(
            f"{plan.title}: {len(plan.columns)} methods x {len(plan.experiment.seeds)} seeds -> {out / plan.folder}"
        )
        try:
            with console.meter(plan.runs + plan.experiment.tune * len(plan.columns)) as meter:
                made, comparison = rows.run_row(
                    plan,
                    out,
                    jobs=_jobs(flags.get("jobs")),
                    resume=flags.get("resume") != "never",
                    command=command,
                    progress=lambda news, meter=meter: _tell(meter, news),
                )
        except MolereError as error:
            if len(todo) == 1:
                raise
            console.say(f"error: {plan.key}: {error}")
            code = code or error.exit_code
            continue
        pages.append(made)
        code = code or comparison.exit_code
    _report(out, console)
    if flags["json"]:
        console.result(json.dumps(finite({"folder": str(out), "pages": [rows.as_dict(p) for p in pages]})))
    else:
        console.result(rows.together(pages) + f"\nWritten to {out}\nTo look at: {out / 'report.html'}")
    return code


def _report(out: Path, console: Console) -> None:
    """The page of all rows; one that cannot be made is no reason to fail."""
    from molere.show.reports import write_report

    try:
        write_report(out)
    except Exception as error:
        console.say(f"no report was written to {out}: {error}")


def _jobs(given: str | None) -> Any:
    if given is None or given == "auto":
        return "auto"
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"--jobs must be auto or a number of at least 1; got {given!r}.")
    return int(given)


def _tell(meter: Meter, news: "Progress") -> None:
    job = news.job
    what = f"seed {job.seed}" if job.trial is None else f"trial {job.trial}"
    meter.update((job.label, job.seed, job.trial), news.state, news.fraction, news.metrics, f"{job.label} {what}")


# ---- without training


def _dry(todo: Sequence[Planned], out: Path, *, as_json: bool) -> str:
    described = [_described(p, out) for p in todo]
    if as_json:
        return json.dumps({"rows": described}, indent=2)
    return "\n\n".join(_words(d) for d in described)


def _described(p: Planned, out: Path) -> dict[str, object]:
    e = p.experiment
    return {
        "preset": p.preset.name,
        "row": p.key,
        "title": p.title,
        "data": {"name": e.data.name, "scenario": e.scenario, "root": e.data.root, "limit": e.data.limit},
        "found": not p.lacking,
        "lacking": p.lacking,
        "steps": list(p.steps),
        "model": e.model,
        "train": dict(e.train),
        "columns": dict(p.columns),
        "seeds": list(e.seeds),
        "runs": p.runs,
        "claims": [c.text for c in p.row.claimed],
        "deviations": list(p.deviations),
        "folder": str(out / p.folder),
    }


def _words(d: Mapping[str, object]) -> str:
    data = cast(Mapping[str, object], d["data"])
    lines = [
        str(d["title"]),
        f"  would train {d['runs']} runs; nothing is done",
        f"  data: {data['name']} ({data['scenario']}), " + ("found" if d["found"] else f"missing: {d['lacking']}"),
        *(f"    {step}" for step in cast(Sequence[str], d["steps"])),
        f"  model: {d['model']}",
        f"  train: {json.dumps(d['train'])}",
        *(f"  {column}: {label}" for column, label in cast(Mapping[str, str], d["columns"]).items()),
        *(f"  claim: {text}" for text in cast(Sequence[str], d["claims"])),
        *(f"  deviation: {text}" for text in cast(Sequence[str], d["deviations"])),
        f"  folder: {d['folder']}",
    ]
    return "\n".join(lines)
