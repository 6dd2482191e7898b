"""What methods logged along the way, means over epochs and then over seeds: which of it a report shows, and how."""

import math

from molere.statistics import Mean
from molere.table import Table

OF_WEIGHTS = frozenset({"effective_sample_size", "weights_nonzero", "weights_mean", "weight_flipped", "weight_clean"})
"""What every run logs of its weights; shown where they vary."""
MOST_DIGITS = 4
"""Behind the point."""

Row = tuple[str, list[Mean | None]]
"""A method, and its mean of each column; None where it has none."""


def rows(table: Table) -> tuple[list[str], list[Row]]:
    """Headings and a row a method of what several methods logged; of one or two methods, of what any did."""
    by = {name: [label for label in table.labels if name in table.logged[label]] for name in _told(table)}
    shared = [name for name, labels in by.items() if len(labels) > 1 or len(table.labels) < 3]
    return ["method", *shared], [(label, [table.logged[label].get(n) for n in shared]) for label in table.labels]


def of_single_methods(table: Table) -> list[str]:
    """What one method alone logged, a line a method."""
    heads, _ = rows(table)
    alone = [name for name in _told(table) if name not in heads]
    lines = list[str]()
    for label, means in table.logged.items():
        told = ", ".join(f"{name} {shown(means[name])}" for name in alone if name in means)
        lines += [f"{label}: {told}"] if told else []
    return lines


def shown(mean: Mean | None) -> str:
    """`0.943 ± 0.012`: two digits of the half-width, at most four behind the point; four digits where it is none."""
    if mean is None or math.isnan(mean.mean):
        return ""
    half = mean.half_width
    digits = 0 if math.isnan(half) or half <= 0 else 1 - math.floor(math.log10(half))
    digits = min(max(digits, 0), MOST_DIGITS)
    if math.isnan(half) or half < 0.5 * 10**-MOST_DIGITS:
        return f"{mean.mean:.4g}"
    return f"{mean.mean:.{digits}f} ± {half:.{digits}f}"


def _told(table: Table) -> list[str]:
    """What was logged, without the weights' figures where no method's are other than 1."""
    names = list(dict.fromkeys(name for means in table.logged.values() for name in means))
    return [name for name in names if name not in OF_WEIGHTS or _varies(table, name)]


def _varies(table: Table, name: str) -> bool:
    """Whether any method has another figure than equal weights give, which is 1."""
    means = [logged[name].mean for logged in table.logged.values() if name in logged]
    return any(abs(mean - 1) > 1e-5 for mean in means)
