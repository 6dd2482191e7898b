"""`molere config show | check | diff`: settings files without a run. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast  # Any: the flags of a command, as typer hands them over

from molere import search
from molere.cli.plan import DEFAULTS, asked
from molere.config import dump_value, flatten, read_yaml
from molere.errors import ConfigError
from molere.experiment import Experiment, experiment, resolved_yaml

HOW = ("out", "resume", "force", "jobs")
"""Settings that change where and how fast a run is made, not what it finds."""


def show(command: str, flags: Mapping[str, Any], as_json: bool) -> str:
    """All settings that a command would use with these flags, as a settings file or as one JSON object."""
    if command not in DEFAULTS:
        raise ConfigError(f"--for {command}: no command that trains; use one of {', '.join(DEFAULTS)}")
    config = flags.get("config")
    found = asked(command, {**flags, "config": config and settings_file(config)})
    return json.dumps(_plain(found), indent=2) if as_json else resolved_yaml(found).rstrip("\n")


def check(paths: Sequence[str], as_json: bool) -> str:
    """A line for each file, or one JSON object; ConfigError with all mistakes of all files, a line each."""
    mistakes = {path: mistakes_of(settings_file(path)) for path in paths}
    if any(mistakes.values()):
        raise Refused([m for found in mistakes.values() for m in found], _json(mistakes) if as_json else "")
    return _json(mistakes) if as_json else "\n".join(f"{path}: {_summary(path)}" for path in paths)


class Refused(ConfigError):
    """Files with mistakes; `answer` is the JSON object to print, where one was asked for."""

    def __init__(self, mistakes: Sequence[str], answer: str) -> None:
        super().__init__("\n".join(mistakes))
        self.answer = answer


def mistakes_of(path: Path) -> list[str]:
    """Every mistake of a settings file as a sentence that begins with its name; none: empty."""
    aside = list[str]()
    try:
        found = experiment(read_yaml(path, aside), aside=aside)
        search.check({label: label for label in found.labels}, asdict(found.data), found.train, found.tune)
    except ConfigError as error:
        return [line if line.startswith(f"{path}: ") else f"{path}: {line}" for line in str(error).splitlines()]
    return []


def differences(a: str, b: str, as_json: bool) -> str:
    """The settings that differ between two files or folders of runs, default for those that are not stated."""
    old, new = (_stated(experiment(read_yaml(settings_file(path)))) for path in (a, b))
    found = {
        key: [old.get(key, "default"), new.get(key, "default")]
        for key in dict.fromkeys([*old, *new])
        if key not in HOW and old.get(key) != new.get(key)
    }
    if as_json:
        return json.dumps(found, indent=2)
    if not found:
        return "the same settings"
    width = max(map(len, found))
    return "\n".join(f"{key:<{width}}  {_words(was)} -> {_words(now)}" for key, (was, now) in found.items())


def settings_file(path: str) -> Path:
    """The settings file at a path, or that of the folder of a run; ConfigError where the folder has none."""
    given = Path(path)
    if not given.is_dir():
        return given
    if not (given / "config.yaml").is_file():
        raise ConfigError(f"{path} is no folder of a run (config.yaml is missing); give that of a run, or a file")
    return given / "config.yaml"


def _plain(e: Experiment) -> dict[str, object]:
    """The settings as plain data, methods with all that is stated for them, and the scenario by its name."""
    plain = cast(dict[str, object], json.loads(json.dumps(asdict(e))))
    return {**plain, "data": {**cast(dict[str, object], plain["data"]), "scenario": e.scenario}}


def _stated(e: Experiment) -> dict[str, object]:
    return {key: value for key, value in flatten(_plain(e)).items() if value not in (None, {})}


def _words(value: object) -> str:
    return "default" if value == "default" else dump_value(value)


def _summary(path: str) -> str:
    e = experiment(read_yaml(settings_file(path)))
    count = f"{len(e.methods)} method{'s' if len(e.methods) > 1 else ''} x {len(e.seeds)} seed"
    return f"no mistakes; {count}{'s' if len(e.seeds) > 1 else ''} on {e.data.name} ({e.scenario})"


def _json(mistakes: Mapping[str, Sequence[str]]) -> str:
    return json.dumps({"files": mistakes, "mistakes": sum(map(len, mistakes.values()))}, indent=2)
