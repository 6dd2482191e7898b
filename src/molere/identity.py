"""Identity: settings of any kind as plain values, equal where the results they lead to must be. Needs no torch."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from types import CodeType, FunctionType
from typing import Any, cast  # Any: settings are whatever users hand over

DEEPEST = 8
"""Objects within objects that are looked into; what lies deeper counts by its name."""


def plain(value: Any, depth: int = DEEPEST) -> Any:
    """Settings as numbers, texts, lists and dicts, the same in every process.

    A dataclass appears as its fields beside its `kind`, an array or tensor by its content, a function by its name
    and code, a module by its structure, another object by its class and those attributes that are numbers or texts.
    """
    if isinstance(value, str | int | float | bool | None):
        return value
    if depth == 0:
        return _name(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name), depth - 1) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(k): plain(v, depth - 1) for k, v in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [plain(v, depth - 1) for v in cast(Sequence[Any], value)]
    return _object(value, depth)


def _object(value: Any, depth: int) -> Any:
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu().numpy()
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):
        return digest(f"{value.dtype.str}{value.shape}".encode() + value.tobytes())
    if isinstance(value, partial):
        call = cast("partial[Any]", value)
        return {"call": plain(call.func, depth - 1), "with": plain([*call.args, call.keywords], depth - 1)}
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        given = repr(plain([held, value.__defaults__, value.__kwdefaults__], depth - 1))
        return f"{_name(value)}-{digest(_code(value.__code__) + given.encode())[:16]}"
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return _name(value)
    if hasattr(value, "named_parameters"):
        return f"{_name(value)}-{digest(repr(value).encode())[:16]}"
    attributes = cast(dict[str, Any], vars(value))
    return {"kind": _name(value), **{k: v for k, v in attributes.items() if isinstance(v, str | int | float | None)}}


def _code(code: CodeType) -> bytes:
    """What a function does, whatever its file and lines."""
    inner = [_code(c) if isinstance(c, CodeType) else repr(c).encode() for c in code.co_consts]
    return b"\0".join([code.co_code, repr(code.co_names).encode(), *inner])


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _name(value: Any) -> str:
    named: Any = value if hasattr(value, "__qualname__") else cast(Any, type(value))
    return f"{named.__module__}.{named.__qualname__}"


def digest(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
