"""Settings files and `key=value` overrides, read strictly: what a person wrote is what is meant. No torch.

Layers of settings are plain nested mappings, laid on each other by `merge`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast  # Any: PyYAML's constructors are untyped

from molere.errors import ConfigError
from molere.fields import build, check_fields, refuse, unknown_key
from molere.names import nearest, one_line, pick, unknown

__all__ = [
    "build",
    "check_fields",
    "dump_value",
    "flatten",
    "merge",
    "merge_all",
    "nearest",
    "one_line",
    "parse_value",
    "parse_yaml",
    "pick",
    "put",
    "read_overrides",
    "read_yaml",
    "refuse",
    "unknown",
    "unknown_key",
]

LARGEST_FILE = 1 << 20
"""Bytes; a settings file is far smaller, and a wrong file is often far larger."""


def _strict(text: str, where: str, aside: list[str] | None = None) -> object:
    """The value of strict YAML text."""
    from molere import strictyaml  # here: listings need no PyYAML

    return strictyaml.load(text, where, aside)


def parse_yaml(text: str, where: str = "settings", aside: list[str] | None = None) -> dict[str, object]:
    """A mapping from strict YAML text; ConfigError otherwise, each mistake on a line that `where` begins.

    aside: takes the mistakes that did not stop the reading, to be told with others.
    """
    value = _strict(text, where, aside)
    if value is None:
        raise ConfigError(f"{where}: empty; write settings such as 'train: {{epochs: 10}}'")
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a mapping of keys to values; got {one_line(value)}")
    return cast(dict[str, object], value)


def read_yaml(path: str | Path, aside: list[str] | None = None) -> dict[str, object]:
    """The mapping in a settings file; ConfigError if it is missing, too large, not text or not strict.

    aside: as in `parse_yaml`.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(f"{path}: a pipe or a device, expected a regular file; write the settings to a file first")
    try:
        with path.open("rb") as f:
            raw = f.read(LARGEST_FILE + 1)
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({(e.strerror or str(e)).lower()})") from None
    if len(raw) > LARGEST_FILE:
        raise ConfigError(f"{path}: larger than 1 MiB; that is not a settings file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    return parse_yaml(text, str(path), aside)


def parse_value(text: str, where: str = "value") -> object:
    """One value as it would stand after a key: a number, true, false, null, text, or brackets of these."""
    return _strict(text, where)


def read_overrides(arguments: Sequence[str]) -> dict[str, object]:
    """Nested settings from dotted overrides, such as ["train.lr=0.05", "method.weights.c=1"].

    Raises one ConfigError with a line for each mistake.
    """
    found, mistakes = dict[str, object](), list[str]()
    for argument in arguments:
        try:
            put(found, *_override(argument))
        except ConfigError as e:
            mistakes.append(str(e))
    refuse(mistakes)
    return found


def _override(argument: str) -> tuple[str, object]:
    path, equals, text = argument.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(
            f"{one_line(argument)} is not an option nor an override; write key=value, as in train.lr=0.05"
        )
    if not text.strip():
        raise ConfigError(f"{path}: no value given; write {path}=none for none")
    return path, parse_value(text, path)


def put(into: dict[str, object], path: str, value: object) -> None:
    """Set a dotted key; ConfigError if it holds another value already."""
    *outer, last = path.split(".")
    for i, key in enumerate(outer):
        inner = into.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{path}: {'.'.join(outer[: i + 1])} was given the value {one_line(inner)} as well; keep one"
            )
        into = cast(dict[str, object], inner)
    if last in into and into[last] != value:
        raise ConfigError(f"{path}: given twice ({one_line(into[last])} and {one_line(value)}); keep one")
    into[last] = value


def merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """`base` with the settings of `over` laid on it, level by level.

    A mapping whose `kind` differs replaces the one below it, for the settings of another kind do not apply.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        value = {"kind": value} if isinstance(value, str) and isinstance(below, Mapping) and "kind" in below else value
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            new, old = cast(Mapping[str, object], value), cast(Mapping[str, object], below)
            other_kind = "kind" in new and new["kind"] != old.get("kind", new["kind"])
            merged[key] = dict(new) if other_kind else merge(old, new)
        else:
            merged[key] = value
    return merged


def merge_all(*layers: Mapping[str, object]) -> dict[str, object]:
    """The layers laid on each other, the last on top."""
    merged = dict[str, object]()
    for layer in layers:
        merged = merge(merged, layer)
    return merged


def flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings as dotted keys, in order; empty mappings stay as values."""
    flat = dict[str, object]()
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(cast(Mapping[str, object], value), f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def dump_value(value: object) -> str:
    """A value on one line such that `parse_value` reads it back; text stays bare where that is safe."""
    if isinstance(value, str):
        plain = re.fullmatch(r"(?:[A-Za-z_/]|\.[./])[A-Za-z0-9_./+-]*", value)
        return value if plain and value.lower() not in ("true", "false", "null") else _quoted(value)
    if isinstance(value, float):
        text = repr(value)
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)
    if isinstance(value, Mapping):
        items = cast(Mapping[str, object], value).items()
        return "{" + ", ".join(f"{dump_value(k)}: {dump_value(v)}" for k, v in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(dump_value(v) for v in cast(Sequence[object], value)) + "]"
    return json.dumps(value)


def _quoted(text: str) -> str:
    escape = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
    return escape.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(text, ensure_ascii=False))
