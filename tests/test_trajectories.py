"""Every method repeats itself: the same seed the same bytes, and the first 20 updates as they were stored.

`python tests/test_trajectories.py` stores the trajectories anew, for a change that is meant to change them;
`git diff tests/trajectories` then shows which methods it reached.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from molere import registry
from molere.method import Run
from molere.recipe import Recipe
from molere.run import fit
from molere.steps import Taken
from molere.testing import rare_region
from reliability import Row, counted

STORED = Path(__file__).parent / "trajectories"
UPDATES, SHOWN, SIZE, BATCH = 20, 4, 80, 16
TOLERANCE = 1e-6
"""Of numbers near 1: libraries for matrices differ between processors in the last digits of float64."""
METHODS = [*registry.METHODS]
PART = 5
"""Methods that every run tries; the rest are tried with the whole list of faults."""


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 2))


def recipe(**more: Any) -> Recipe:
    return Recipe(**{"epochs": 4, "batch_size": BATCH, "lr": 0.1, "device": "cpu", "warmup": 0.25, **more})


@contextmanager
def recorded(size: int) -> Iterator[list[dict[str, Any]]]:
    """Losses, weights and splits of the updates that are made within; those of first-stage models are left out."""
    found, update = list[dict[str, Any]](), Run.update

    def watched(run: Run, *arguments: Any, **keywords: Any) -> Taken:
        taken = update(run, *arguments, **keywords)
        if len(run.pool) == size:
            weights = torch.ones(1) if taken.weights is None else taken.weights
            found.append(
                {
                    "loss": float(taken.seen.losses.detach().mean()),
                    "weights": [float(weights.mean()), *map(float, weights[:SHOWN])],
                    "validation": marked(run.split.val, size),
                }
            )
        return taken

    Run.update = watched
    try:
        yield found
    finally:
        Run.update = update


def marked(index: Tensor, size: int) -> str:
    """A set of positions as the hexadecimal digits of a number with these bits."""
    return f"{sum(1 << int(i) for i in index):0{size // 4}x}"


def trajectory(method: str) -> list[dict[str, Any]]:
    with recorded(SIZE) as found:
        fit(method, data=rare_region(SIZE), model=net, recipe=recipe(precision="float64"))
    return found[:UPDATES]


def text(steps: list[dict[str, Any]]) -> str:
    """One update a line, numbers with nine digits."""
    rounded = [{k: v if isinstance(v, str) else _digits(v) for k, v in step.items()} for step in steps]
    return "[\n" + ",\n".join(f"  {json.dumps(step)}" for step in rounded) + "\n]\n"


def _digits(value: Any) -> Any:
    return [_digits(v) for v in value] if isinstance(value, list) else float(f"{value:.9g}")


def departure(method: str) -> str:
    """Where a method leaves its stored trajectory; empty if it does not."""
    now, before = trajectory(method), json.loads((STORED / f"{method}.json").read_text())
    for number, (one, other) in enumerate(zip(now, before, strict=True)):
        if one["validation"] != other["validation"]:
            return f"update {number}: another split"
        for what in ("loss", "weights"):
            if one[what] != pytest.approx(other[what], rel=TOLERANCE, abs=TOLERANCE):
                return f"update {number}: {what} {one[what]}, stored {other[what]}"
    return ""


@counted(PART, len(METHODS))
def test_methods_take_the_way_that_is_stored(count: int, row: Row) -> None:
    tried = METHODS[:: max(1, len(METHODS) // count)][:count]
    row.judge("A2", [(m, said) for m in tried if (said := departure(m))], len(tried))


def test_every_method_has_a_stored_trajectory_and_nothing_else_is_stored() -> None:
    assert sorted(p.stem for p in STORED.glob("*")) == sorted(METHODS)
    assert all(len(json.loads(p.read_text())) == UPDATES for p in STORED.glob("*.json"))


def fingerprint(method: str, seed: int) -> str:
    """Hash of all that a run finds."""
    found = fit(method, data=rare_region(SIZE), model=net, recipe=recipe(epochs=2), seed=seed)
    digest = hashlib.sha256(json.dumps(found.history).encode())
    for tensor in found.classifier.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@counted(2, len(METHODS), dear=True)
def test_a_seed_gives_the_same_bytes_twice_and_another_seed_others(
    count: int, row: Row, request: pytest.FixtureRequest
) -> None:
    tried = METHODS[:: max(1, len(METHODS) // count)][:count]
    seeds = 5 if request.node.get_closest_marker("faults") else 2
    wrong = list[tuple[object, object]]()
    for method in tried:
        first = [fingerprint(method, seed) for seed in range(seeds)]
        again = [fingerprint(method, seed) for seed in range(seeds)]
        if first != again or len(set(first)) < seeds:
            wrong.append((method, (first, again)))
    row.judge("N7", wrong, len(tried))


def store() -> None:
    STORED.mkdir(exist_ok=True)
    for method in METHODS:
        (STORED / f"{method}.json").write_text(text(trajectory(method)))


if __name__ == "__main__":
    store()
