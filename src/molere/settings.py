"""Methods by name: spec strings, the settings a name takes, and the way to a Method. Torch only at the end.

A spec is NAME, NAME@PRESET, NAME[key=value,other.key=value] or NAME@PRESET[...]: `lrw-hard@paper[keep=true]`.
Later settings win: the class's defaults, the name's own, the preset, the spec's brackets, the overrides.
"""

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, cast  # Any: schema.json is what it is

from molere import registry
from molere.config import dump_value, flatten, merge_all, read_overrides
from molere.errors import ConfigError
from molere.fields import Kinds, build, refuse, unknown_keys
from molere.limits import Limits, shown
from molere.names import one_line, pick, unknown

if TYPE_CHECKING:
    from molere.method import Method

Schema = Mapping[str, Any]
"""By key: limits, default and help of a setting; `fields` holds nested settings, `kinds` alternatives."""

_SPEC = re.compile(r"(?P<name>[^@\[\]]+)(?:@(?P<preset>[^@\[\]]+))?(?:\[(?P<settings>.*)\])?", re.DOTALL)


@dataclass(frozen=True)
class MethodSpec:
    """One method of a comparison, as typed: a name, a preset and settings of its own."""

    name: str
    preset: str = ""
    """Empty: the preset of the whole comparison."""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])

    @classmethod
    def parse(cls, text: str) -> "MethodSpec":
        """Read NAME@PRESET[key=value,...]; ConfigError for another form, and for names that do not exist."""
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"method {one_line(text)}: write NAME, NAME@PRESET or NAME[key=value,other.key=value]")
        name, preset = match["name"].strip(), (match["preset"] or "").strip()
        pick("method", name, registry.METHODS)
        if preset:
            pick("preset", preset, registry.PRESETS)
        parts = [p for p in split_outside(match["settings"] or "") if p]
        return cls(name, preset, read_overrides(parts))

    def __str__(self) -> str:
        """The canonical spelling: settings in alphabetical order; reading it gives the same spec."""
        flat = sorted(flatten(self.settings).items())
        inner = ",".join(f"{k}={dump_value(v)}" for k, v in flat)
        return self.name + (f"@{self.preset}" if self.preset else "") + (f"[{inner}]" if inner else "")


def split_outside(text: str, by: str = ",") -> list[str]:
    """`text` cut at commas that stand outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for previous, c in zip("," + text, text, strict=False):
        if quote:
            quote = "" if c == quote and previous != "\\" else quote
        elif c in "\"'":
            quote = c
        else:
            depth += (c in "[{(") - (c in "]})")
        if c == by and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts]


def parse_specs(text: str) -> list[MethodSpec]:
    """The methods of a list such as "erm,lrw-hard[delta=0.2],molere@paper"; naming one twice is a mistake."""
    found, mistakes = list[MethodSpec](), list[str]()
    for part in split_outside(text):
        try:
            spec = MethodSpec.parse(part)
            if spec in found:
                mistakes.append(f"method {spec} is named twice; keep one")
            found.append(spec)
        except ConfigError as e:
            mistakes.append(str(e) if part else "a method is missing between two commas")
    refuse(mistakes)
    return found


@lru_cache(maxsize=1)
def schema() -> Schema:
    """The stored description of all settings, written by `python -m molere.schema`; empty if missing."""
    file = resources.files("molere") / "schema.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def known_settings(name: str) -> Schema | None:
    """The stored settings of a method, the name's own defaults filled in; None if its class is not stored."""
    entry = pick("method", name, registry.METHODS)
    stored = schema().get("methods", {}).get(f"{entry.module}:{entry.attribute}")
    return None if stored is None else _with_defaults(stored, entry.settings)


def recipe_settings() -> Schema:
    """The settings of Recipe (`train.*`), as stored."""
    return schema().get("recipe", {})


def mistakes_in(settings: Mapping[str, object], known: Schema, where: str) -> list[str]:
    """A sentence for each unknown key and each value outside its limits; needs no torch."""
    found = unknown_keys(where, (key for key in settings if key not in known), [*known, *_deeper(known)])
    for key, value in settings.items():
        if key in known:
            found += _mistakes_at(known[key], value, f"{where}.{key}" if where else key)
    return found


def preset_of(spec: MethodSpec, preset: str) -> Mapping[str, object]:
    """What the spec's preset, or else the comparison's, changes for this method."""
    name = spec.preset or preset
    pick("preset", name, registry.PRESETS)
    return registry.METHODS[spec.name].paper if name == "paper" else {}


def resolved(spec: MethodSpec, overrides: Mapping[str, object], preset: str = "default") -> dict[str, object]:
    """What a spec states beyond its class's defaults: by name, preset and brackets, then the overrides."""
    own = registry.METHODS[spec.name].settings
    return merge_all(own, preset_of(spec, preset), spec.settings, overrides)


def check_spec(spec: MethodSpec, overrides: Mapping[str, object], preset: str = "default") -> list[str]:
    """The mistakes of a spec and its overrides, found without torch; none for a class that is not stored."""
    known = known_settings(spec.name)
    return [] if known is None else mistakes_in(resolved(spec, overrides, preset), known, spec.name)


def make_method(
    spec: str | MethodSpec, overrides: Mapping[str, object] | None = None, preset: str = "default"
) -> "Method[Any]":
    """The method a spec names, its settings checked; imports the method's module, and torch with it.

    Raises ConfigError for unknown names and keys and values outside their limits, a line for each.
    """
    spec = MethodSpec.parse(spec) if isinstance(spec, str) else spec
    settings = resolved(spec, overrides or {}, preset)
    return cast("Method[Any]", build(load(registry.METHODS[spec.name]), settings, spec.name, kinds()))


def method_of(method: object) -> "Method[Any]":
    """The method that was given, made if it is a spec; ConfigError for a class, or for what is no method."""
    if isinstance(method, str):
        return make_method(method)
    if isinstance(method, type):
        raise ConfigError(f"method is the class {method.__name__}; pass a method: {method.__name__}()")
    if not all(callable(getattr(method, name, None)) for name in ("init", "split", "step")):
        raise ConfigError(f"method is a {type(method).__name__}, expected a name such as 'lrw-hard', or a Method")
    return cast("Method[Any]", method)


def written(method: str, preset: str = "default", overrides: Mapping[str, object] | None = None) -> str:
    """A spec with a preset and settings written into it: the preset where it has none, settings where it has such."""
    spec = MethodSpec.parse(method)
    pick("preset", preset, registry.PRESETS)
    own = spec.preset or (preset if registry.METHODS[spec.name].paper and preset != "default" else "")
    if own == spec.preset and not overrides:
        return method
    return str(MethodSpec(spec.name, own, merge_all(spec.settings, applicable(spec, overrides or {}))))


def load(entry: registry.Entry) -> type:
    """The class behind a name."""
    return getattr(importlib.import_module(entry.module), entry.attribute)


def kinds() -> Kinds:
    """Which classes a field of type Holdout may hold, by their `kind`."""
    return {"Holdout": {name: _loader(entry) for name, entry in registry.HOLDOUTS.items()}}


def applicable(spec: MethodSpec, overrides: Mapping[str, object]) -> dict[str, object]:
    """The overrides for all methods (`method.delta=0.2`) that this one has a setting for."""
    known = known_settings(spec.name)
    return dict(overrides) if known is None else {k: v for k, v in overrides.items() if k in known}


def nobodys(specs: Sequence[MethodSpec], overrides: Mapping[str, object]) -> list[str]:
    """A sentence for each override that no method of the comparison has a setting for."""
    tables = [known_settings(s.name) for s in specs]
    if any(t is None for t in tables):
        return []
    known = dict.fromkeys(k for t in tables if t for k in (*t, *_deeper(t)))
    return unknown_keys("method", (k for k in overrides if not any(t and k in t for t in tables)), known)


def check_model(name: str) -> None:
    """ConfigError unless `name` is a listed model, a wrn-DEPTH-WIDTH, torchvision:NAME, timm:NAME or paper.

    NAME is checked later.
    """
    if name.startswith(("torchvision:", "timm:")) or name in registry.MODELS or name == "paper":
        return
    if match := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        if (int(match[1]) - 4) % 6 == 0 and int(match[1]) > 4 and int(match[2]) > 0:
            return
        raise ConfigError(f"model '{name}': a Wide ResNet's depth is 6 n + 4 (10, 16, 22, 28); its width at least 1")
    known = [*registry.MODELS, "torchvision:NAME", "timm:NAME", "paper"]
    raise ConfigError(unknown("model", name, known))


def _loader(entry: registry.Entry) -> Callable[[], type]:
    return lambda: load(entry)


def _with_defaults(stored: Schema, settings: Mapping[str, object]) -> Schema:
    out = dict(stored)
    for key, value in settings.items():
        if key in out and isinstance(value, Mapping) and "fields" in out[key]:
            out[key] = {
                **out[key],
                "fields": _with_defaults(out[key]["fields"], cast(Mapping[str, object], value)),
            }
        elif key in out:
            out[key] = {**out[key], "default": value}
    return out


def _deeper(known: Schema) -> list[str]:
    return [f"{k}.{inner}" for k, entry in known.items() for inner in entry.get("fields", {})]


def _mistakes_at(entry: Schema, value: object, where: str) -> list[str]:
    if "kinds" in entry:
        return _mistakes_of_kind(entry, value, where)
    if "fields" in entry and isinstance(value, Mapping):
        return mistakes_in(cast(Mapping[str, object], value), entry["fields"], where)
    sentence = Limits.read(entry).mistake(where, value)
    return [sentence] if sentence else []


def _mistakes_of_kind(entry: Schema, value: object, where: str) -> list[str]:
    given = {"kind": value} if isinstance(value, str) else value
    settings = dict(cast(Mapping[str, object], given)) if isinstance(given, Mapping) else {"kind": given}
    kind = settings.pop("kind", entry["default"].get("kind"))
    if not isinstance(kind, str) or kind not in entry["kinds"]:
        return [f"{where}.kind must be one of {', '.join(entry['kinds'])}; got {shown(kind)}."]
    return mistakes_in(settings, entry["kinds"][kind], where)
