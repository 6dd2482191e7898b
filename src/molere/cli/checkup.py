"""`molere doctor`: examine a classifier, named or the user's own, on random examples of a given shape."""

import dataclasses
import importlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from molere import settings
from molere.config import read_overrides
from molere.errors import ConfigError
from molere.fields import build as build_settings
from molere.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from molere.doctor import Diagnosis


def report(
    model: str, shape: str, classes: int, batch_size: int, device: str, overrides: Sequence[str], as_json: bool
) -> str:
    """The diagnosis as text, or as one JSON object."""
    sizes = _shape(shape)
    given = read_overrides(list(overrides))
    if stranger := next((k for k in given if k != "train"), None):
        raise ConfigError(f"{stranger}: a doctor knows settings of training only, as in train.lr=0.05")
    recipe = build_settings(Recipe, {"lr": 0.05, **_train(given), "device": device}, "train")
    make = _maker(model, sizes, classes)
    import torch  # here: a mistyped option is told before torch is loaded

    from molere.doctor import examine

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(batch_size, *sizes, generator=generator), torch.arange(batch_size) % classes
    found = examine(make, x, y, recipe=recipe)
    return _json(found) if as_json else str(found)


def _train(given: Any) -> dict[str, Any]:  # Any: plain settings
    return dict(given.get("train") or {})


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.replace("x", ",").split(",")
    if not all(s.strip().isdigit() and int(s) > 0 for s in sizes):
        raise ConfigError(f"--shape {text}: give the size of one example, as in 3x32x32, or 20 for a vector")
    return tuple(int(s) for s in sizes)


def _maker(name: str, shape: tuple[int, ...], classes: int) -> "Callable[[], nn.Module]":
    """A named classifier, or what `module:attribute` makes, looked for in the working folder too."""
    if ":" in name and not name.startswith("torchvision:"):
        return partial(_seeded, _own(name))
    settings.check_model(name)
    from molere.models import build

    return partial(build, name, num_classes=classes, input_shape=shape)


def _own(name: str) -> "Callable[[], nn.Module]":
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--model {name}: {error}; write FILE:CLASS for a class in FILE.py here") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ConfigError(f"--model {name}: not a class or function that makes a module")
    return cast("Callable[[], nn.Module]", found)


def _seeded(make: "Callable[[], nn.Module]") -> "nn.Module":
    from molere import rng

    with rng.seeded(rng.key(0, "init")):
        return make()


def _json(found: "Diagnosis") -> str:
    plain = dataclasses.asdict(found)
    for finding in plain["findings"]:
        finding.update({k: None for k, v in finding.items() if isinstance(v, float) and math.isnan(v)})
    return json.dumps(plain)
