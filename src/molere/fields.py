"""Settings as frozen dataclasses with `Annotated` limits: check them, build them from mappings. No torch."""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeVar, cast  # Any: an annotation is whatever stands behind a field's colon

from molere.errors import ConfigError
from molere.limits import Limits, shown
from molere.names import nearest, one_line

T = TypeVar("T")


def check_fields(instance: object) -> None:
    """Check every field of a frozen dataclass against its annotation; to be called by `__post_init__`.

    An int given for a float is made one. Raises one ConfigError with a line for each mistake.
    """
    cls, mistakes = type(instance), list[str]()
    for name, limits in field_limits(cls).items():
        value: object = getattr(instance, name)
        sentence = limits.mistake(f"{cls.__name__}: {name}", value)
        if classes := classes_in(hints(cls)[name]) or protocols_in(hints(cls)[name]):
            inside = isinstance(value, tuple(classes)) or (value is None and "null" in limits.types)
            known = " or ".join(
                f"{c.__name__}(...)" if dataclasses.is_dataclass(c) else f"a {c.__name__}" for c in classes
            )
            sentence = None if inside else f"{cls.__name__}: {name} must be {known}; got {shown(value)}."
        if sentence:
            mistakes.append(sentence)
        elif type(value) is int or value == "none":
            object.__setattr__(instance, name, limits.check(value))
    refuse(mistakes)


def build(cls: type[T], mapping: Mapping[str, object], where: str = "", kinds: "Kinds | None" = None) -> T:
    """An instance of a dataclass from plain settings; unknown keys are refused at every level.

    A nested dataclass is given as a mapping of what differs from the outer field's default. Where a field may
    hold one of several (`holdout`), the key `kind` names it, and a bare name stands for `{kind: name}`.
    Raises one ConfigError with a line for each mistake.
    """
    reader = _Reader(kinds or {})
    values = reader.values(cls, mapping, where)
    refuse(reader.mistakes)
    return cls(**values)


def refuse(mistakes: Sequence[str]) -> None:
    """Raise one ConfigError holding all the mistakes, a line each; nothing if there are none."""
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))


def unknown_key(where: str, key: object, known: Iterable[str]) -> str:
    """The sentence for a key that is not there: 'train.lrr: unknown key; did you mean train.lr?'."""
    listed = list(known)
    path = f"{where}." if where else ""
    guess = nearest(str(key), listed) or next((k for k in listed if k.split(".")[-1] == key), None)
    hint = f"did you mean {path}{guess}?" if guess else f"known: {', '.join(listed) or 'none'}"
    return f"{path}{one_line(key).strip(chr(39))}: unknown key; {hint}"


def unknown_keys(where: str, keys: Iterable[object], known: Iterable[str]) -> list[str]:
    """A sentence for each of the first unknown keys at a place, and one that counts the others."""
    given, listed = list(keys), list(known)
    return first_of(
        [lambda k=k: unknown_key(where, k, listed) for k in given], f"{where or 'settings'}: ", "unknown keys"
    )


def first_of(mistakes: Sequence[Callable[[], str]], where: str, what: str) -> list[str]:
    """The first of many mistakes, and a sentence that counts the others; those are not even worded."""
    more = len(mistakes) - MOST_TOLD
    return [*(told() for told in mistakes[:MOST_TOLD]), *([f"{where}and {more} more {what}"] if more > 0 else [])]


MOST_TOLD = 20
"""Mistakes of one kind at one place that are told one by one."""
Kinds = Mapping[str, Mapping[str, Callable[[], type]]]
"""Field type's name -> kind -> how to get its class; for fields not annotated with a union of classes."""


@lru_cache(maxsize=256)
def hints(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass's settable fields, limits included, in order."""
    found = typing.get_type_hints(cls, include_extras=True)
    return {f.name: found[f.name] for f in dataclasses.fields(cls) if f.init}


@lru_cache(maxsize=256)
def field_limits(cls: type) -> dict[str, Limits]:
    """The limits of each settable field."""
    return {name: Limits.of(annotation) for name, annotation in hints(cls).items()}


def default_of(cls: type, name: str) -> object:
    """The default of a field; `dataclasses.MISSING` if it has none."""
    found = next(f for f in dataclasses.fields(cls) if f.name == name)
    return found.default if found.default_factory is dataclasses.MISSING else found.default_factory()


def classes_in(annotation: Any) -> list[type]:
    """The dataclasses an annotation names, itself or as members of a union."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) is not None else (annotation,)
    return [p for p in parts if isinstance(p, type) and dataclasses.is_dataclass(p)]


def protocols_in(annotation: Any) -> list[type]:
    """The runtime-checkable protocol that an annotation is."""
    return [annotation] if getattr(annotation, "_is_runtime_protocol", False) else []


def kinds_in(annotation: Any, kinds: Kinds) -> dict[str, Callable[[], type]]:
    """Kind -> class for a field that may hold one of several dataclasses; empty for other fields."""
    if named := kinds.get(getattr(annotation, "__name__", "")):
        return dict(named)
    several = classes_in(annotation)
    return {c.__name__.lower(): lambda c=c: c for c in several} if len(several) > 1 else {}


@dataclass(frozen=True)
class _Reader:
    """Plain settings -> values of fields; collects the mistakes on the way."""

    kinds: Kinds
    mistakes: list[str] = field(default_factory=list[str])

    def values(self, cls: type, mapping: Mapping[str, object], where: str) -> dict[str, object]:
        """The fields that the mapping names; None in the place of those that cannot be read."""
        annotations, found = hints(cls), dict[str, object]()
        self.mistakes.extend(unknown_keys(where, (key for key in mapping if key not in annotations), annotations))
        for key, value in mapping.items():
            if key in annotations:
                path = f"{where}.{key}" if where else key
                found[key] = self.value(annotations[key], value, path, default_of(cls, key))
        return found

    def value(self, annotation: Any, value: object, where: str, default: object) -> object:
        if choice := kinds_in(annotation, self.kinds):
            return self.chosen(choice, value, where, default)
        if nested := classes_in(annotation):
            return self.instance(nested[0], annotation, value, where, default)
        limits = Limits.of(annotation)
        if sentence := limits.mistake(where, value):
            self.mistakes.append(sentence)
            return None
        checked = limits.check(value)
        return tuple(cast(list[object], checked)) if _is_tuple(annotation, checked) else checked

    def chosen(self, choice: Mapping[str, Callable[[], type]], value: object, where: str, default: object) -> object:
        """The dataclass that the key `kind` names; without one, the kind of the default."""
        if dataclasses.is_dataclass(value):
            return value
        given = {"kind": value} if isinstance(value, str) else value
        settings = dict(cast(Mapping[str, object], given)) if isinstance(given, Mapping) else {"kind": given}
        kind = settings.pop("kind", type(default).__name__.lower())
        if isinstance(kind, str) and kind in choice:
            return self.nested(choice[kind](), settings, where, default)
        self.mistakes.append(f"{where}.kind must be one of {', '.join(choice)}; got {shown(kind)}.")
        return None

    def instance(self, cls: type, annotation: Any, value: object, where: str, default: object) -> object:
        """A nested dataclass from its settings, or as it is; None where the field may be empty."""
        if isinstance(value, Mapping):
            return self.nested(cls, cast(Mapping[str, object], value), where, default)
        if value in (None, "none") and "null" in Limits.of(annotation).types:
            return None
        if not isinstance(value, cls):
            self.mistakes.append(f"{where} must be a mapping of {cls.__name__}'s settings; got {shown(value)}.")
        return value

    def nested(self, cls: type, mapping: Mapping[str, object], where: str, default: object) -> object:
        """The default with the settings of the mapping, where it is of this class; else a new one."""
        before = len(self.mistakes)
        values = self.values(cls, mapping, where)
        if type(default) is not cls:
            missing = [n for n in hints(cls) if n not in values and default_of(cls, n) is dataclasses.MISSING]
            self.mistakes.extend(f"{where}.{name} must be given." for name in missing)
        if len(self.mistakes) == before:
            try:
                return replace(cast(Any, default), **values) if type(default) is cls else cls(**values)
            except (ConfigError, TypeError) as e:
                self.mistakes.append(f"{where}: {e}")
        return None


def _is_tuple(annotation: Any, value: object) -> bool:
    parts = (annotation, *typing.get_args(annotation))
    return isinstance(value, list) and any(p is tuple or typing.get_origin(p) is tuple for p in parts)
