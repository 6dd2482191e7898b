"""A single run in a few lines of text. Needs no torch."""

import math
from collections.abc import Mapping
from typing import cast


def summary(result: Mapping[str, object]) -> str:
    """A single run in a few lines: metrics at the last update and at the best by validation."""
    last, best = (cast(Mapping[str, float], result[k]) for k in ("last", "best"))
    cost = cast(Mapping[str, float], result["cost"])
    seconds = f" in {cost['seconds']:.1f} s" if "seconds" in cost else ""
    head = f"{result['label']}, seed {result['seed']}: {result['updates']:,} updates{seconds} ({result['stopped']})"
    width = max([len(name) for name in last], default=0)
    if not result["best_epoch"]:  # no selection data
        return "\n".join([head, *(f"{name:<{width}}  {_number(name, last[name])}" for name in last)])
    rows = [f"{'':<{width}}  {'last':>8}  {'best':>8}  (best: epoch {result['best_epoch']} by validation)"]
    rows += [f"{name:<{width}}  {_number(name, last[name])}  {_number(name, best.get(name))}" for name in last]
    return "\n".join([head, *rows])


def _number(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return f"{'-':>8}"
    fraction = name.split("/")[-1].split("[")[0] in ("accuracy", "balanced_accuracy", "worst_class", "worst_group")
    return f"{100 * value:>6.2f} %" if fraction else f"{value:>8.4f}"
