"""The page of one method: its settings with type, default and help, from the stored description."""

import json
import textwrap
from collections.abc import Mapping
from typing import Any, cast  # Any: the stored settings

from molere import registry
from molere.config import dump_value
from molere.limits import Limits
from molere.settings import MethodSpec, Schema, known_settings, preset_of

WIDTH = 100


def page(name: str, as_json: bool) -> str:
    """One method and its settings: type, default, help, and what the preset `paper` changes."""
    spec = MethodSpec.parse(name)
    entry, known = registry.METHODS[spec.name], known_settings(spec.name)
    paper = preset_of(spec, "paper")
    if as_json:
        whole = {"method": spec.name, "summary": entry.summary, "settings": known or {}, "paper": paper}
        return json.dumps(whole, indent=2)
    lines = [f"{spec.name}: {entry.summary}", ""]
    if known is None:
        lines.append(f"Its settings are the fields of {entry.module}.{entry.attribute}.")
    lines += _settings(known or {}) or ["It has no settings of its own."]
    if paper:
        lines += ["", "Preset paper: " + ", ".join(f"{k}={dump_value(v)}" for k, v in paper.items())]
    example = next((k for k, e in (known or {}).items() if "fields" not in e and "kinds" not in e), None)
    if known and example:
        value = dump_value(known[example]["default"])
        lines += ["", f"As in: molere train --method '{spec.name}[{example}={value}]', or method.{example}={value}"]
    return "\n".join(lines)


def _settings(known: Schema, prefix: str = "") -> list[str]:
    lines = list[str]()
    for key, entry in known.items():
        if "fields" in entry:
            lines += [f"{prefix}{key}: {entry.get('help', '')}", *_settings(entry["fields"], f"{prefix}{key}.")]
        elif "kinds" in entry:
            lines += _kinds(prefix + key, entry)
        else:
            lines += _setting(prefix + key, entry)
    return lines


def _kinds(key: str, entry: Mapping[str, Any]) -> list[str]:
    default = cast(Mapping[str, object], entry.get("default", {}))
    lines = [f"{key}={default.get('kind')}", *_wrapped(f"one of {', '.join(entry['kinds'])}. {entry.get('help', '')}")]
    for kind, fields in entry["kinds"].items():
        own = {k: {**e, "default": default.get(k, e.get("default"))} for k, e in fields.items()}
        if kind == default.get("kind"):
            lines += _settings(own, f"{key}.")
    return lines


def _setting(key: str, entry: Mapping[str, Any]) -> list[str]:
    default = f"={dump_value(entry['default'])}" if "default" in entry else ""
    return [f"{key}{default}", *_wrapped(f"{Limits.read(entry)}. {entry.get('help', '')}")]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
