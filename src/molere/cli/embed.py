"""`molere data embed`: features of a frozen classifier for all examples of the data, in one file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast  # Any: flags, as typer hands them over

from molere import paths, settings
from molere.cli.console import Console
from molere.cli.plan import read_tests
from molere.config import read_overrides
from molere.errors import ConfigError
from molere.experiment import DataChoice
from molere.fields import build, refuse


def embed(flags: Mapping[str, Any], console: Console) -> str:
    """Write the features, and say what was written: the file, and the command that trains a head on it."""
    given, out = _choice(flags), Path(flags["out"])
    name, model = given.pop("name"), str(flags["model"])
    refuse(paths.mistakes({"name": name, **given}))
    settings.check_model(model)
    weights = None if flags["weights"] in ("none", "") else flags["weights"]
    console.say(f"embed: {name} by {model} ({weights or 'no weights: as initialised'}) -> {out}")
    from molere import embed  # here: a mistyped option is told before torch is loaded
    from molere.opening import device_of
    from molere.recipe import Recipe

    embed.check_place(out)
    frozen = embed.backbone(model, weights, flags["image_size"])
    data, joined = embed.whole(name, **given, image_size=frozen.side if paths.is_own(name) else None)
    device = device_of(Recipe(device=flags["device"] or "auto"))
    found = embed.features(data, frozen, device, flags["batch_size"], joined=joined)
    embed.write(found, out)
    parts = {str(part): int((found.split == part).sum()) for part in dict.fromkeys(found.split.tolist())}
    if flags["json"]:
        return json.dumps({"file": str(out), "features": int(found.x.shape[1]), "parts": parts})
    counts = ", ".join(f"{n} {part}" for part, n in parts.items())
    return f"{out}: {found.x.shape[1]} features of {counts} examples\nmolere train --data {out} --model linear"


def _choice(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the data that flags and overrides (data.key=value) state."""
    named = read_overrides(flags.get("overrides") or [])
    if stranger := next((k for k in named if k != "data"), None):
        raise ConfigError(f"{stranger}: features depend on the data alone, as in data.label=COLUMN")
    keys = ("root", "label", "group", "image", "id", "split_column", "val_root", "on_bad", "limit")
    stated = {k: flags[k] for k in keys if flags.get(k) is not None}
    tests = {"test": read_tests(flags["test"])} if flags.get("test") else {}
    more = cast(dict[str, object], named.get("data") or {})
    whole: dict[str, object] = {"name": flags["data"], **stated, **tests, **more}
    found = build(DataChoice, whole, "data")
    return {k: v for k, v in vars(found).items() if v is not None}
