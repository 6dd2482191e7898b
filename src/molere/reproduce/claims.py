"""Claims about the order of methods, as they are written in presets.

A claim is a chain such as `Easy < Random < Hard` or `OPT > ERM, MWN`: each name stands for a column of a table, and a
list means each of its names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from molere.errors import ConfigError

_SIGNS = re.compile(r"\s(<=|>=|<|>)\s")


@dataclass(frozen=True, slots=True)
class Step:
    """`greater` lies above `lesser`, or at least not below it where the step is not strict."""

    greater: str
    lesser: str
    strict: bool

    def __str__(self) -> str:
        return f"{self.greater} {'>' if self.strict else '>='} {self.lesser}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A chain of steps as it is written, and what the publication says in words."""

    text: str
    says: str = ""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, from left to right; ConfigError if the text is no chain."""
        parts = _SIGNS.split(self.text)
        if len(parts) < 3:
            raise ConfigError(f"claim {self.text!r}: write a chain such as 'Easy < Random < Hard' or 'OPT > ERM, MWN'")
        sides = [[name.strip() for name in part.split(",")] for part in parts[::2]]
        pairs = zip(sides[:-1], parts[1::2], sides[1:], strict=True)
        return tuple(_step(a, sign, b) for left, sign, right in pairs for a in left for b in right)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are named."""
        return tuple(dict.fromkeys(name for s in self.steps for name in (s.greater, s.lesser)))


def _step(left: str, sign: str, right: str) -> Step:
    greater, lesser = (left, right) if sign[0] == ">" else (right, left)
    return Step(greater, lesser, strict=len(sign) == 1)


def agrees(claim: Claim, printed: Mapping[str, float]) -> bool | None:
    """Whether printed numbers are in the order that a claim states."""
    if any(name not in printed for name in claim.columns):
        return None
    return not broken(claim, printed)


def broken(claim: Claim, printed: Mapping[str, float]) -> list[str]:
    """The steps that printed numbers contradict: `Random > Easy (80.69, 80.87)`."""
    known = [s for s in claim.steps if s.greater in printed and s.lesser in printed]
    return [f"{s} ({printed[s.greater]:g}, {printed[s.lesser]:g})" for s in known if not _in_order(s, printed)]


def _in_order(step: Step, printed: Mapping[str, float]) -> bool:
    above, below = printed[step.greater], printed[step.lesser]
    return above > below if step.strict else above >= below
