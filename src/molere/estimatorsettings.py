"""Settings of the estimator as a file holds them: numbers, texts, lists and mappings, and a method by its spec."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast  # Any: settings are whatever users hand over

import numpy as np
from torch import nn

from molere import registry
from molere.errors import ConfigError
from molere.settings import MethodSpec, make_method


@dataclass(frozen=True)
class Stored:
    """What of the settings goes into a file, and what must be handed over again."""

    plain: dict[str, Any]
    """By name, in values that JSON has."""
    spec: str | None
    """Of the method, where it was an object that a spec reproduces."""
    own: dict[str, str]
    """What is not stored, by name: the function's name, or the object's class."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Stored":
        """numpy's numbers as Python's, tuples as lists, paths as text."""
        plain, own, spec = dict[str, Any](), dict[str, str](), None
        for name, value in settings.items():
            try:
                plain[name] = _plain(value)
            except _NotPlainError:
                spec = spec_of(value) if name == "method" else spec
                if name != "method" or spec is None:
                    own[name] = _name(value)
        return cls(plain, spec, own)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All settings, those that were not stored as given; ConfigError, naming it, where one is missing."""
        for name in sorted(self.own, key=lambda n: (n != "model", n)):
            if name not in given or (name == "model" and isinstance(given[name], str)):
                raise ConfigError(_missing(name, self.own[name]))
        more = [n for n in given if n not in self.own and n not in ("model", "logits", "method")]
        if more:
            hint = f"leave it out, and change it with set_params({more[0]}=...)"
            raise ConfigError(f"{more[0]} is none of what load asks for: {hint}")
        made = {} if self.spec is None or "method" in given else {"method": make_method(self.spec)}
        return {**self.plain, **made, **given}


def spec_of(method: object) -> str | None:
    """The shortest spec that makes an equal method; None where there is none, as for a class of one's own."""
    kind, found = type(method), list[str]()
    for name, entry in registry.METHODS.items():
        if (entry.module, entry.attribute) == (kind.__module__, kind.__qualname__):
            try:
                spec = str(MethodSpec(name, "", _different(method, make_method(name))))
                found += [spec] if make_method(spec) == method else []
            except Exception:  # noqa: S112  # settings that no spec can write, such as tensors
                continue
    return min(found, key=len, default=None)


def _different(value: Any, base: Any) -> dict[str, object]:
    """The fields of a dataclass in which it differs from another of its class."""
    pairs = {f.name: (getattr(value, f.name), getattr(base, f.name)) for f in dataclasses.fields(value) if f.init}
    return {name: _setting(new, old) for name, (new, old) in pairs.items() if new != old}


def _setting(new: Any, old: Any) -> object:
    if not dataclasses.is_dataclass(new):
        return new
    if type(new) is type(old):
        return _different(new, old)
    return {"kind": type(new).__name__.lower(), **_different(new, type(new)())}


class _NotPlainError(Exception):
    """The value is none that JSON has."""


def _plain(given: object) -> object:
    value: object = cast(Any, given).item() if isinstance(given, np.generic) else given
    if isinstance(value, float) and not math.isfinite(value):
        raise _NotPlainError
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in cast(Sequence[object], value)]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in cast(Mapping[object, object], value)):
        return {k: _plain(v) for k, v in cast(Mapping[str, object], value).items()}
    raise _NotPlainError


def _name(value: object) -> str:
    return type(value).__name__ if isinstance(value, nn.Module) else getattr(value, "__name__", type(value).__name__)


def _missing(name: str, own: str) -> str:
    if name == "model":
        return f"the module was a {own} of yours, whose code is not stored: pass model={own}"
    if name == "logits":
        return "the module's output was read by a function of yours, which is not stored: pass logits=..."
    return f"{name} held something of yours ({own}), which is not stored: pass {name}=..."
