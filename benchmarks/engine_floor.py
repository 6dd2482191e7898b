"""What the passes of a fused one-sided update cost by themselves, in bare torch: the floor of any engine."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from engine_models import LR, Problem, backward
from engine_runs import synchronise
from torch import Tensor
from torch.nn import functional as F

PARTS = ("training", "its backward", "SGD", "validation", "its backward", "moved", "moves")
"""Forward passes, what follows them, and the moves of the parameters, in order; the first three are the ERM step."""


def parts_of(problem: Problem, rounds: int) -> list[list[float]]:
    """For each round the seconds of each part: forward and backward of two batches, a forward without a graph."""
    model = problem.classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, fused=True)
    leaves = list(model.parameters())
    held: dict[str, Tensor] = {}

    def forward(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        held["loss"] = F.cross_entropy(model(x), y)

    def moved() -> None:
        with torch.no_grad():
            F.cross_entropy(model(problem.x), problem.y, reduction="none")

    def moves() -> None:
        with torch.no_grad():
            kept = [p.clone() for p in leaves]
            torch._foreach_add_(leaves, kept, alpha=1e-5)  # pyright: ignore[reportPrivateUsage]
            torch._foreach_copy_(leaves, kept)  # pyright: ignore[reportPrivateUsage]

    calls: list[Callable[[], object]] = [
        lambda: forward(problem.x, problem.y),
        lambda: backward(held["loss"]),
        optimizer.step,
        lambda: forward(problem.val_x, problem.val_y),
        lambda: backward(held["loss"]),
        moved,
        moves,
    ]
    found = [[_seconds(call, problem.device) for call in calls] for _ in range(rounds + 1)]
    return found[1:]  # the first round warms up


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    synchronise(device)
    started = clock()
    call()
    synchronise(device)
    return clock() - started


def floor_of(rounds: Sequence[Sequence[float]]) -> tuple[list[float], float]:
    """Medians of the parts and of their sum, in ERM steps of their round."""
    over = [[part / sum(one[:3]) for part in one] for one in rounds]
    return [median(column) for column in zip(*over, strict=True)], median([sum(one) for one in over])


def table(cells: Mapping[str, Any], titles: Mapping[str, str], measured: Mapping[str, float]) -> str:
    """The parts by classifier, their sum, and what molere adds to it."""
    known = [m for m in titles if f"floor/{m}" in cells]
    if not known:
        return ""
    lines = [
        "## What the passes cost by themselves",
        "",
        "The passes of the fused order in bare torch, in ERM steps of the same round (medians): training batch forward",
        "and backward, SGD, validation batch forward and backward, training batch forward at moved parameters, and the",
        "moves. Beyond them molere's one-sided update has products, a network of weights, and its bookkeeping.",
        "",
        f"| classifier | {' | '.join(PARTS)} | sum | molere | beyond the passes |",
        "|---" * (len(PARTS) + 4) + "|",
    ]
    for model in known:
        parts, total = floor_of(cells[f"floor/{model}"])
        ours = measured.get(model)
        tail = " | |" if ours is None else f" {ours:.2f} | {ours - total:+.2f} |"
        lines.append(f"| {titles[model]} | {' | '.join(f'{p:.2f}' for p in parts)} | {total:.2f} |{tail}")
    return "\n".join([*lines, ""])
