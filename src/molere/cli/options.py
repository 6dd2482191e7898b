"""The options of the commands that train, and the experiment they describe together with files and overrides."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any  # Any: the flags of a command, as typer hands them over

import typer

from molere import registry
from molere.config import merge_all, put, read_overrides, read_yaml, refuse
from molere.errors import ConfigError, StorageError
from molere.experiment import Experiment, experiment

RUNS = Path("molere-runs")

DEMO: Mapping[str, object] = {
    "data": {"name": "digits", "scenario": "hidden-group"},
    "methods": "erm,erm-part,drop-hard,upweight,lrw-easy,lrw-random,lrw-hard,lrwopt,molere",
    "seeds": 5,
}
COMPARE: Mapping[str, object] = {"methods": "erm,molere", "seeds": 5}
DEFAULTS: Mapping[str, Mapping[str, object]] = {"demo": DEMO, "compare": COMPARE, "train": {}}

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as in train.lr=0.05 method.delta=0.2.")
]
Config = Annotated[str | None, typer.Option("--config", "-c", metavar="FILE", help="Settings file (YAML).")]
Data = Annotated[str | None, typer.Option("--data", metavar="NAME", help="Data set: see `molere data list`.")]
Root = Annotated[str | None, typer.Option("--root", metavar="PATH", help="Folder that holds the data set.")]
Scenario = Annotated[str | None, typer.Option("--scenario", metavar="NAME", help="Scenario of the data set.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Train on N examples only.")]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Classifier: see `molere models`.")]
Methods = Annotated[
    list[str] | None,
    typer.Option("--methods", "--method", metavar="NAME,...", help="Methods: see `molere methods`; NAME[key=value]."),
]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="N", help="How many seeds, or which: 5, or 3,5,7.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="K", help="One seed.")]
Epochs = Annotated[int | None, typer.Option("--epochs", metavar="N", help="Passes over the data; train.epochs.")]
Preset = Annotated[str | None, typer.Option("--preset", metavar="NAME", help="default, or paper (as published).")]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Out = Annotated[str | None, typer.Option("--out", metavar="PATH", help="Folder for the results.")]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Folder's name below --out or ./molere-runs.")]
Jobs = Annotated[str | None, typer.Option("--jobs", metavar="N", help="Runs side by side, or auto.")]
Resume = Annotated[
    str | None, typer.Option("--resume", metavar="auto|PATH|never", help="Go on in the folder, in PATH, or start anew.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print all settings as a settings file, and stop.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print a traceback with an error.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bars or lines.")]

PATHS = {
    "data": "data.name", "root": "data.root", "scenario": "data.scenario", "limit": "data.limit", "model": "model",
    "methods": "methods", "seeds": "seeds", "epochs": "train.epochs", "preset": "preset", "device": "train.device",
    "out": "out", "jobs": "jobs", "resume": "resume",
}  # fmt: skip
"""Option -> key of the settings."""


@dataclass(frozen=True)
class Plan:
    """What a command will do: which experiment, in which folder."""

    command: str
    experiment: Experiment
    folder: Path

    @property
    def runs(self) -> int:
        """Trainings, first stages not counted."""
        return len(self.experiment.methods) * len(self.experiment.seeds)


def plan(command: str, flags: Mapping[str, Any]) -> Plan:
    """The plan that the flags, the settings file and the overrides of a command describe.

    Raises ConfigError with a line for each mistake; needs no torch.
    """
    typed = _typed(flags)
    file = read_yaml(flags["config"]) if flags.get("config") else {}
    found = experiment(DEFAULTS[command], file, typed)
    if command == "train" and (len(found.methods) > 1 or len(found.seeds) > 1):
        raise ConfigError("train runs one method on one seed (--method NAME --seed K); `molere compare` runs several")
    default = experiment(DEFAULTS[command], {"data": {"name": found.data.name, "scenario": found.scenario}})
    folder = _folder(command, found, flags.get("name"), default)
    return Plan(command, replace(found, resume="never" if found.resume == "never" else "auto"), folder)


def _typed(flags: Mapping[str, Any]) -> dict[str, object]:
    """Flags and overrides as one layer of settings; naming a key in both is a mistake unless the values agree."""
    values, mistakes = read_overrides(flags.get("overrides") or []), list[str]()
    given = {k: v for k, v in flags.items() if v is not None and k in PATHS and v != []}
    if flags.get("seed") is not None:
        given["seeds"] = [flags["seed"]] if "seeds" not in given else ""
    for option, value in given.items():
        try:
            put(values, PATHS[option], _value(option, value))
        except ConfigError as e:
            mistakes.append(str(e))
    refuse(mistakes)
    return values


def _value(option: str, value: object) -> object:
    if option == "seeds" and value == "":
        raise ConfigError("--seed and --seeds are given together; keep one")
    if option == "jobs" and isinstance(value, str) and value.isdecimal():
        return int(value)
    return value


def _folder(command: str, e: Experiment, name: str | None, default: Experiment) -> Path:
    """Where the results go: --resume PATH, --out, or a name that says what was asked for."""
    if e.resume not in ("auto", "never"):
        if e.out is not None and Path(e.out) != Path(e.resume):
            raise ConfigError(f"--resume {e.resume} and --out {e.out} name two folders; keep one")
        if not Path(e.resume).is_dir():
            raise StorageError(f"{e.resume} is not a folder; give one that a run was written to, or --resume auto")
        return Path(e.resume)
    if name is not None and (not name.strip(".") or re.search(r"[/\\\0]", name)):
        raise ConfigError(f"--name {name!r}: a folder's name has no slash; use --out for a path")
    if e.out is not None:
        return Path(e.out) / name if name else Path(e.out)
    return RUNS / (name or _default_name(command, e, default))


def _default_name(command: str, e: Experiment, default: Experiment) -> str:
    where = f"{e.data.name}-{e.scenario}"
    if command == "train":
        what = hashlib.sha256(f"{e.hash} {e.labels[0]}".encode()).hexdigest()[:8]
        return f"{where}-{e.specs[0].name}-seed-{e.seeds[0]}-{what}"
    if command == "demo":
        plain = replace(e, data=replace(e.data, scenario=e.scenario)).hash == default.hash and e.data.name == "digits"
        return f"demo-{e.scenario if plain else f'{where}-{e.hash}'}"
    return f"{command}-{where}-{e.hash}"


def check_folder(folder: Path) -> None:
    """StorageError if results cannot be written there; needs no torch, and leaves nothing behind."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file; choose another folder with --out")
    above = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    if not above.is_dir():
        raise StorageError(f"{folder} cannot be a folder: {above} is a file; choose another with --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(f"{above} cannot be written to; choose another folder with --out")
    marks = {"LOCK", "status.json", "config.yaml"}
    if folder.is_dir() and (names := set(os.listdir(folder))) and not names & marks:
        raise StorageError(f"{folder} is not empty and no run of molere; choose a new folder with --out")


def described(p: Plan) -> dict[str, object]:
    """The plan as plain data, for --dry-run."""
    e = p.experiment
    recipe = {"epochs": "the data's own", **e.train}
    return {
        "command": p.command,
        "methods": e.labels,
        "seeds": list(e.seeds),
        "runs": p.runs,
        "data": {"name": e.data.name, "scenario": e.scenario, "root": e.data.root, "limit": e.data.limit},
        "model": e.model or registry.DATASETS[e.data.name].model,
        "train": recipe,
        "folder": str(p.folder),
        "resume": e.resume,
    }


def stored(folder: Path, places: Sequence[str] = ("experiment.yaml", "config.yaml")) -> Experiment:
    """The experiment that a folder of train or compare was started with; StorageError if it says none."""
    for name in places:
        if (folder / name).is_file():
            return experiment(_readable(read_yaml(folder / name)), {"out": str(folder), "resume": "auto"})
    raise StorageError(f"{folder} holds no run of molere ({places[-1]} is missing); give the folder of a run")


def _readable(config: Mapping[str, object]) -> dict[str, object]:
    """A stored config with the keys of a settings file: `recipe` is another word for `train`, nothing is a default."""
    renamed = {"train" if k == "recipe" else k: v for k, v in config.items() if v is not None}
    return merge_all({k: v for k, v in renamed.items() if k in Experiment.__dataclass_fields__})
