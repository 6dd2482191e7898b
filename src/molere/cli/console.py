"""What a command says while it works: lines on standard error, bars on a terminal, results on standard output."""

import math
import sys
from collections.abc import Mapping
from typing import cast

from molere.meter import EVERY, Meter
from molere.summary import summary

__all__ = ["EVERY", "Console", "Meter", "finite", "summary"]


class Console:
    """News go to standard error, results to standard output; quiet drops the news."""

    def __init__(self, *, quiet: bool = False, progress: bool = True) -> None:
        self.quiet, self.shows_progress = quiet, progress and not quiet

    def say(self, line: str) -> None:
        """A line of news, at once."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def result(self, text: str) -> None:
        """A result."""
        print(text, flush=True)

    def meter(self, total: int) -> "Meter":
        """Progress of so many runs."""
        return Meter(total, shows=self.shows_progress, bars=sys.stderr.isatty())


def finite(value: object) -> object:
    """A value for JSON: what is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in cast(list[object], value)]
    return value
