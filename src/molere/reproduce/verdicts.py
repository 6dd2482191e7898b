"""What paired differences say of claims. Numbers in, verdicts out.

Every step of a claim is judged by the paired difference of its two columns over common seeds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from molere.reproduce.claims import Claim, Step, agrees
from molere.statistics import Paired, paired
from molere.table import ALPHA

Verdict = Literal["held", "reversed", "undecided", "not run"]
Values = Mapping[str, Mapping[int, float]]
"""Column -> seed -> value."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A step, the paired difference greater - lesser, and the verdict on it."""

    step: Step
    pair: Paired
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim, its steps judged, the verdict on the whole, and what the printed numbers themselves say of it."""

    claim: Claim
    steps: tuple[Judged, ...]
    verdict: Verdict
    printed: bool | None
    """Whether the publication's own numbers agree; None where some are not printed."""

    @property
    def count(self) -> str:
        """How many steps held: `2 of 3`."""
        return f"{sum(s.verdict == 'held' for s in self.steps)} of {len(self.steps)}"


def judge(claim: Claim, values: Values, printed: Mapping[str, float], *, higher_is_better: bool = True) -> Finding:
    """Each step by its paired differences, the claim by its steps: held if all are, reversed if any is.

    A step has held where the 95 % interval of the mean paired difference lies above zero (not below it, for >=), is
    reversed where it lies below, and undecided otherwise or with fewer than two common seeds. No correction is made
    for the number of claims.
    """
    steps = tuple(_judged(s, values, higher_is_better) for s in claim.steps)
    return Finding(claim, steps, whole(s.verdict for s in steps), agrees(claim, printed))


def whole(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim: reversed if any step is, not run if any was not, held if all have."""
    found = set(verdicts)
    order: tuple[Verdict, ...] = ("reversed", "not run", "undecided", "held")
    for verdict in order:
        if verdict in found:
            return verdict
    return "not run"


def _judged(step: Step, values: Values, higher_is_better: bool) -> Judged:
    above, below = values.get(step.greater, {}), values.get(step.lesser, {})
    if not higher_is_better:
        above, below = below, above
    pair = paired(above, below)
    if not above or not below or pair.n == 0:
        return Judged(step, pair, "not run")
    return Judged(step, pair, verdict_of(pair, step.strict))


def verdict_of(pair: Paired, strict: bool) -> Verdict:
    """Of one difference. p decides, as it is below .05 just where the interval leaves out zero."""
    if math.isnan(pair.p):
        return "undecided"
    if pair.p < ALPHA:
        return "held" if pair.difference > 0 else "reversed"
    equal = pair.difference == 0 and pair.half_width == 0
    return "held" if equal and not strict else "undecided"


def tally(findings: Sequence[Finding]) -> str:
    """How many claims met which end: `2 held, 1 reversed, 3 undecided`."""
    counts = {v: sum(f.verdict == v for f in findings) for v in ("held", "reversed", "undecided", "not run")}
    return ", ".join(f"{n} {v}" for v, n in counts.items() if n) or "no claims"
