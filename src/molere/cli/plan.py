"""What a command will do: the experiment that flags, settings file and overrides describe, and its folder. No torch."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast  # Any: the flags of a command, as typer hands them over

from molere import registry, search, settings
from molere.config import put, read_overrides, read_yaml, refuse
from molere.data.decided import KINDS, digest
from molere.errors import ConfigError, DataError, StorageError
from molere.experiment import Experiment, experiment
from molere.names import pick
from molere.paths import OWN_ONLY, entry_of, short

RUNS = Path("molere-runs")

DEMO: Mapping[str, object] = {
    "data": {"name": "digits", "scenario": "hidden-group"},
    "methods": "erm,erm-part,drop-hard,upweight,lrw-easy,lrw-random,lrw-hard,lrwopt,molere",
    "seeds": 5,
}
COMPARE: Mapping[str, object] = {"methods": "erm,molere", "seeds": 5}
DEFAULTS: Mapping[str, Mapping[str, object]] = {"demo": DEMO, "compare": COMPARE, "train": {}}

PATHS = {
    "data": "data.name", "root": "data.root", "scenario": "data.scenario", "limit": "data.limit", "model": "model",
    "labels": "data.labels", "weights": "data.weights", "drop": "data.drop",
    "methods": "methods", "split": "method.holdout.kind", "seeds": "seeds", "epochs": "train.epochs",
    "preset": "preset", "device": "train.device", "out": "out", "jobs": "jobs", "tune": "tune", "resume": "resume",
    **{k: f"data.{k}" for k in (*OWN_ONLY, "on_bad", "image_size", "noise_seed")},
    "track": "track",
    "force": "force",
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
        """Trainings, first stages and trials not counted."""
        return len(self.experiment.methods) * len(self.experiment.seeds)

    @property
    def trials(self) -> int:
        """Trainings made before, to tune."""
        return len(self.experiment.methods) * self.experiment.tune


def _sealed(e: Experiment) -> Experiment:
    """The experiment with the digest of its files of corrections; DataError if they have changed or are missing."""
    found = digest(asdict(e.data))
    if e.data.corrections not in (None, found):
        raise DataError("labels, weights or drop have changed since the settings were written; remove data.corrections")
    return replace(e, data=replace(e.data, corrections=found))


def _labelled(e: Experiment) -> dict[str, str]:
    return {label: label for label in e.labels}


def plan(command: str, flags: Mapping[str, Any]) -> Plan:
    """The plan that the flags, the settings file and the overrides of a command describe.

    Raises ConfigError with a line for each mistake; needs no torch.
    """
    found = _sealed(asked(command, flags))
    if command == "train" and (len(found.methods) > 1 or len(found.seeds) > 1):
        raise ConfigError("train runs one method on one seed (--method NAME --seed K); `molere compare` runs several")
    default = experiment(DEFAULTS[command], {"data": {"name": found.data.name, "scenario": found.scenario}})
    if command == "train" and found.tune:
        raise ConfigError(f"--tune {found.tune}: train runs one method as given; `molere compare` tunes")
    search.check(_labelled(found), asdict(found.data), found.train, found.tune)
    folder = _folder(command, found, flags.get("name"), default)
    return Plan(command, replace(found, resume="never" if found.resume == "never" else "auto"), folder)


def asked(command: str, flags: Mapping[str, Any]) -> Experiment:
    """The experiment that flags, settings file and overrides describe, with all their mistakes in one ConfigError."""
    aside = list[str]()
    file = read_yaml(flags["config"], aside) if flags.get("config") else {}
    try:
        typed = _typed(flags)
    except ConfigError as e:
        refuse([*aside, str(e)])
        raise
    if flags.get("split"):
        layers = ({k: v for k, v in layer.items() if k != "method"} for layer in (file, typed))
        _check_split(flags["split"], experiment(DEFAULTS[command], *layers, aside=aside))
    return experiment(DEFAULTS[command], file, typed, aside=aside)


def _typed(flags: Mapping[str, Any]) -> dict[str, object]:
    """Flags and overrides as one layer of settings; naming a key in both is a mistake unless the values agree."""
    values, mistakes = read_overrides(flags.get("overrides") or []), list[str]()
    given: dict[str, object] = {k: v for k, v in flags.items() if k in PATHS and v not in (None, [])}
    if flags.get("seed") is not None:
        given["seeds"] = [flags["seed"]] if "seeds" not in given else ""
    for option, value in given.items():
        try:
            put(values, PATHS[option], _value(option, value))
        except ConfigError as e:
            mistakes.append(str(e))
    refuse(mistakes)
    return values


def _check_split(name: str, e: Experiment) -> None:
    """ConfigError unless there is such a holdout, and a method of the experiment has one to be replaced."""
    pick("split", name, registry.HOLDOUTS)
    if not any("holdout" in (settings.known_settings(spec.name) or {}) for spec in e.specs):
        named = ", ".join(spec.name for spec in e.specs)
        raise ConfigError(
            f"--split {name}: no holdout in {named} to choose; use a method such as lrw-random or erm-part"
        )


def _value(option: str, value: object) -> object:
    if option == "seeds" and value == "":
        raise ConfigError("--seed and --seeds are given together; keep one")
    if option == "test":
        return read_tests(cast(list[str], value))
    if option in ("features", "drop_columns") and isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    if option == "jobs" and isinstance(value, str) and value.isdecimal():
        return int(value)
    return value


def read_tests(given: list[str]) -> dict[str, object]:
    """NAME=PATH each, or one PATH alone, which is the set `test`."""
    found = dict[str, object]()
    for text in given:
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals and not re.search(r"[/\\]", name) else ("test", text)
        if not name or not path or name in found:
            raise ConfigError(f"--test {text}: write NAME=PATH, each NAME once, as in --test ood=PATH")
        found[name] = path
    return found


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
    scenario = re.sub(r"[^\w.-]+", "-", e.scenario or "").strip("-")
    where = f"{short(e.data.name)}-{scenario}"
    if command == "train":
        what = hashlib.sha256(f"{e.hash} {e.labels[0]}".encode()).hexdigest()[:8]
        return f"{where}-{e.specs[0].name}-seed-{e.seeds[0]}-{what}"
    if command == "demo":
        plain = replace(e, data=replace(e.data, scenario=e.scenario)).hash == default.hash and e.data.name == "digits"
        return f"demo-{e.scenario if plain else f'{where}-{e.hash}'}"
    return f"{command}-{where}-{e.hash}"


def check_folder(folder: Path) -> None:
    """StorageError if results cannot be written there; needs no torch, and leaves nothing behind."""
    try:
        there = folder.exists()
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be a folder: {error.strerror or error}; choose another with --out"
        ) from None
    if there and not folder.is_dir():
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
    files = {kind: path for kind in KINDS if (path := getattr(e.data, kind)) is not None}
    return {
        "command": p.command,
        "methods": e.labels,
        "seeds": list(e.seeds),
        "runs": p.runs,
        "data": {
            "name": e.data.name,
            "scenario": e.scenario,
            "root": e.data.root,
            "limit": e.data.limit,
            **_own(e),
            **files,
        },
        "model": e.model or _entry(e).model,
        "train": recipe,
        **({"tune": search.described(_labelled(e), e.train, e.tune)} if e.tune else {}),
        "folder": str(p.folder),
        "resume": e.resume,
    }


def _own(e: Experiment) -> dict[str, object]:
    return {k: v for k in OWN_ONLY if (v := getattr(e.data, k)) is not None}


def _entry(e: Experiment) -> registry.DatasetEntry:
    entry = entry_of(e.data.name)
    assert entry is not None, "the experiment was checked"
    return entry


def stored(folder: Path) -> Experiment:
    """The experiment that a folder of train or compare was started with; StorageError if it says none."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise StorageError(f"{folder} holds no run of molere (config.yaml is missing); give the folder of a run")
    return experiment(read_yaml(path), {"out": str(folder), "resume": "auto"})
