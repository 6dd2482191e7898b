"""Names typed by a person: find them in a table, or say which one was probably meant. No torch."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from molere.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name` (case ignored), or None if nothing is close."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a table: the nearest one, and all of them."""
    listed = list(known)
    guess = nearest(name, listed)
    hint = f"; did you mean '{guess}'?" if guess else "."
    return f"unknown {kind} {one_line(name)}{hint} Known: {', '.join(listed)}"


def pick(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry called `name`; ConfigError with the nearest name otherwise."""
    if name in table:
        return table[name]
    raise ConfigError(unknown(kind, name, table))


def one_line(value: object, width: int = 80) -> str:
    """`value` as it would be typed in Python, on one line and cut to `width`."""
    text = " ".join(repr(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."
