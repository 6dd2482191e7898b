"""Limits of a setting: what a field accepts, said once beside it as an annotation. No torch.

The check, the sentence of the error, the listing and the stored schema follow from the limits.
"""

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

# Any: an annotation is whatever stands behind a field's colon.
from typing import Annotated, Any, Literal, Union, cast

from annotated_types import Ge, Gt, Interval, Le, Lt

from molere.names import one_line

if typing.TYPE_CHECKING:
    from pydantic import TypeAdapter

_PLAIN: Mapping[Any, str] = {int: "int", float: "float", bool: "bool", str: "text", type(None): "null"}
_WORDS = {
    "int": "an int",
    "float": "a float",
    "bool": "true or false",
    "text": "text",
    "null": "none",
    "list": "a list",
    "mapping": "a mapping",
    "callable": "a function",
    "object": "any value",
}
_BOUNDS = ("gt", "ge", "lt", "le")


@dataclass(frozen=True)
class Limits:
    """What a field accepts, as plain data: it can be stored and read back without the field's class."""

    types: tuple[str, ...] = ("object",)
    """Of: int, float, bool, text, null, list, mapping, callable, object (anything)."""
    gt: int | float | None = None
    ge: int | float | None = None
    lt: int | float | None = None
    le: int | float | None = None
    choices: tuple[str | int, ...] = ()

    @classmethod
    def of(cls, annotation: Any) -> "Limits":
        """The limits an annotation states."""
        origin, args = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is Annotated:
            return _narrowed(cls.of(args[0]), args[1:])
        if origin in (Union, types.UnionType):
            return _joined([cls.of(a) for a in args])
        if origin is Literal:
            return cls(types=(), choices=args)
        return cls(types=(_type_name(annotation, origin),))

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "Limits":
        """The inverse of `plain`; other keys are ignored."""
        bounds = {k: stored.get(k) for k in _BOUNDS}
        return cls(types=tuple(stored.get("types", ())), choices=tuple(stored.get("choices", ())), **bounds)

    def plain(self) -> dict[str, object]:
        """As a mapping for JSON, without what is not stated."""
        bounds = {k: b for k in _BOUNDS if (b := getattr(self, k)) is not None}
        lists = {"types": list(self.types), "choices": list(self.choices)}
        return {**{k: v for k, v in lists.items() if v}, **bounds}

    def check(self, value: object) -> object:
        """`value` if it is within the limits; ValueError otherwise.

        An int given for a float becomes one; the text `none` becomes None where none is allowed.
        """
        if value == "none" and "null" in self.types and "none" not in self.choices:
            return None
        if "object" in self.types:
            return value
        from pydantic import ValidationError

        try:
            _adapter(self).validate_python(_as_list(value))
        except ValidationError:
            raise ValueError(str(self)) from None
        return float(value) if type(value) is int and "int" not in self.types and not self.choices else value

    def __str__(self) -> str:
        """For people: 'a float in (0, 0.5]', 'one of batch, eval', 'an int of at least 1 (or none)'."""
        aside = {"null", "callable"} if len(self.types) > 1 else set[str]()
        words = [f"one of {', '.join(map(str, self.choices))}"] if self.choices else []
        words += [_WORDS[t] + (self._range() if t in ("int", "float") else "") for t in self.types if t not in aside]
        return " or ".join(words) + (" (or none)" if "null" in aside & set(self.types) else "")

    def _range(self) -> str:
        low, high = _first(self.gt, self.ge), _first(self.lt, self.le)
        left, right = "(" if self.gt is not None else "[", ")" if self.lt is not None else "]"
        if low is not None and high is not None:
            return f" in {left}{low:g}, {high:g}{right}"
        if low is not None:
            return f" above {low:g}" if left == "(" else f" of at least {low:g}"
        if high is not None:
            return f" below {high:g}" if right == ")" else f" of at most {high:g}"
        return ""

    def hint(self, value: object) -> str:
        """A second sentence where the mistake has a usual cause."""
        high = _first(self.lt, self.le)
        if isinstance(value, int | float) and high is not None and 0 < high <= 1 < value <= 100:
            return " It is a fraction, not a percentage."
        return ""

    def mistake(self, where: str, value: object) -> str | None:
        """The sentence for a value outside the limits; None if it is within."""
        try:
            self.check(value)
        except ValueError:
            return f"{where} must be {self}; got {shown(value)}.{self.hint(value)}"
        return None


@lru_cache(maxsize=1024)
def _adapter(limits: Limits) -> "TypeAdapter[object]":
    """The check by pydantic: strict (no text for numbers, no true for 1), NaN and infinity refused."""
    from pydantic import ConfigDict, TypeAdapter

    bounds = Interval(gt=limits.gt, ge=limits.ge, lt=limits.lt, le=limits.le)
    known: dict[str, Any] = {"int": Annotated[int, bounds], "float": Annotated[float, bounds], "bool": bool,
                             "text": str, "null": None, "list": list[object], "mapping": Mapping[str, object],
                             "callable": Callable[..., object]}  # fmt: skip
    parts = [known[t] for t in limits.types] + ([Literal[limits.choices]] if limits.choices else [])
    either: Any = Union[tuple(parts)]  # noqa: UP007 (the parts are not known before)
    return TypeAdapter(either, config=ConfigDict(strict=True, allow_inf_nan=False))


def _type_name(annotation: Any, origin: Any) -> str:
    if annotation is None:
        return "null"
    found = origin or annotation
    if found is Callable or not isinstance(found, type):
        return "callable" if found is Callable else "object"
    if issubclass(found, Mapping):
        return "mapping"
    return "list" if found in (list, tuple, Sequence) else _PLAIN.get(found, "object")


def _narrowed(limits: Limits, metadata: Iterable[object]) -> Limits:
    for m in metadata:
        for part in m if isinstance(m, Interval) else (m,):
            if isinstance(part, Gt | Ge | Lt | Le):
                name = type(part).__name__.lower()
                limits = replace(limits, **{name: getattr(part, name)})
    return limits


def _joined(parts: Sequence[Limits]) -> Limits:
    bounds = {name: _first(*(getattr(p, name) for p in parts)) for name in _BOUNDS}
    types = tuple(dict.fromkeys(t for p in parts for t in p.types))
    return Limits(types=types, choices=tuple(c for p in parts for c in p.choices), **bounds)


def shown(value: object) -> str:
    """A value as it would stand in a settings file, on one line."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "none"}[value]
    return one_line(value)


def _as_list(value: object) -> object:
    return list(cast(tuple[object, ...], value)) if isinstance(value, tuple) else value


def _first(*values: int | float | None) -> int | float | None:
    return next((v for v in values if v is not None), None)
