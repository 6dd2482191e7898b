"""`molere reproduce theorem1 | cost`: what is no table and no figure. torch is imported here, late."""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any  # Any: plain data

from molere.cli.console import Console, finite
from molere.cli.plan import RUNS, check_folder
from molere.config import read_overrides
from molere.errors import ConfigError
from molere.experiment import experiment
from molere.settings import parse_specs

USED = {
    "theorem1": ("out", "seeds"),
    "cost": ("out", "seeds", "methods", "model", "limit", "epochs", "device", "data_root", "overrides"),
}
"""Options that each of them reads."""
ALL = (
    "row", "data_root", "reduced", "seeds", "methods", "model", "limit", "epochs", "device", "jobs", "tune", "resume",
)  # fmt: skip
COST: Mapping[str, object] = {
    "data": {"name": "digits", "scenario": "clean"},
    "model": "resnet20",
    "train": {"epochs": 4, "batch_size": 64, "q": 5},
}
"""What `cost` trains unless told otherwise: small images by a residual network, so that passes are what takes time."""


def start(name: str, flags: Mapping[str, Any], console: Console) -> int:
    """Run one of them, print its page and write it to its folder."""
    stray = [o for o in ALL if flags.get(o) and o not in USED[name]]
    if stray or (flags.get("overrides") and "overrides" not in USED[name]):
        given = ", ".join(f"--{o.replace('_', '-').replace('reduced', 'scale')}" for o in stray) or "KEY=VALUE"
        raise ConfigError(f"{given}: {name} takes no such thing; its options are {_listed(USED[name])}")
    out = Path(flags["out"]) if flags.get("out") else RUNS / f"reproduce-{name}"
    if flags["dry_run"]:
        words = {"study": name, "folder": str(out), **(_planned(flags) if name == "cost" else {})}
        lines = "\n".join(f"{k}: {v}" for k, v in words.items())
        console.result(json.dumps(words, indent=2) if flags["json"] else lines)
        return 0
    check_folder(out / name)
    text, numbers = (_theorem if name == "theorem1" else _cost)(flags, out, console)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text, "utf-8")
    (out / f"{name}.json").write_text(json.dumps(finite(numbers), indent=1) + "\n", "utf-8")
    as_json = json.dumps(finite({**numbers, "folder": str(out)}))
    console.result(as_json if flags["json"] else f"{text}\nWritten to {out}")
    return 0


def _listed(options: tuple[str, ...]) -> str:
    return ", ".join("KEY=VALUE" if o == "overrides" else f"--{o.replace('_', '-')}" for o in options)


def _seeds(flags: Mapping[str, Any], default: int) -> list[int]:
    return list(experiment({"seeds": flags.get("seeds") or default}).seeds)


def _about() -> dict[str, str]:
    from molere.ledger import machine
    from molere.storage import environment

    return {
        "Command": f"`{shlex.join(['molere', *sys.argv[1:]])}`",
        "Date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "Machine": machine(environment("cpu")),
    }


def _theorem(flags: Mapping[str, Any], out: Path, console: Console) -> tuple[str, dict[str, Any]]:
    from molere.reproduce import theorem_page as page

    seeds = _seeds(flags, 5)
    console.say(f"theorem1: every part of a small problem, and MOLERE on {len(seeds)} seeds")
    found = page.found(seeds)
    out.mkdir(parents=True, exist_ok=True)
    page.draw(found, out / "theorem1.png")
    numbers: dict[str, Any] = {
        "max_min": found.max_min,
        "min_max": found.min_max.value / page.K,
        "gap": found.gap,
        "hardest": found.hardest,
        "random": float(found.values.mean()),
        "learned": {name: [v for _, v in runs] for name, runs in found.learned.items()},
        "verdicts": page.verdicts(found),
    }
    return page.markdown(found, _about(), "theorem1.png"), {"about": _about(), **numbers}


def _planned(flags: Mapping[str, Any]) -> dict[str, Any]:
    from molere.reproduce.cost import METHODS

    typed = read_overrides(flags.get("overrides") or [])
    asked: dict[str, Any] = {"model": flags["model"]} if flags.get("model") else {}
    data = {"limit": flags.get("limit"), "root": flags.get("data_root")}
    train = {"epochs": flags.get("epochs"), "device": flags.get("device")}
    asked["data"] = {k: v for k, v in data.items() if v is not None}
    asked["train"] = {k: v for k, v in train.items() if v is not None}
    e = experiment(COST, asked, typed, {"methods": flags.get("methods") or ",".join(METHODS)})
    load = {k: v for k, v in {**asdict(e.data), "scenario": e.scenario}.items() if v is not None}
    return {"data": load, "model": e.model, "train": dict(e.train), "methods": e.labels}


def _cost(flags: Mapping[str, Any], out: Path, console: Console) -> tuple[str, dict[str, Any]]:
    planned = _planned(flags)
    from molere.data import sources
    from molere.reproduce import cost

    methods = list(dict.fromkeys([cost.BASE, *planned["methods"]]))
    parse_specs(",".join(methods))
    data, repeats = sources.load(**planned["data"]), len(_seeds(flags, 3))
    words = f"{data.name} ({data.scenario}), {len(data.train):,} examples, {planned['model']}, {planned['train']}"
    setting = cost.Setting(data, planned["model"], planned["train"], words)
    spent, failed = cost.measured(methods, setting, repeats, console.say)
    about = {**_about(), "Repetitions": str(repeats)}
    numbers = {"about": about, "setting": words, "spent": [asdict(s) for s in spent], "failed": failed}
    return cost.markdown(spent, failed, setting, about), numbers
