"""Doctor: what each way of taking a meta-gradient costs, and how far it is off, for one module on this machine."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from molere.data.pool import Data, TensorPool
from molere.errors import ConfigError
from molere.methods.erm import ERM
from molere.opening import Setup, device_of, open_run
from molere.outcome import Outcome
from molere.recipe import Recipe
from molere.split import Split

WAYS: dict[str, dict[str, Any]] = {  # Any: settings of a recipe
    "one-sided": {"estimator": "one-sided"},
    "central": {"estimator": "central"},
    "exact": {"estimator": "exact"},
    "ghost": {"estimator": "ghost"},
    "one-sided, last two thirds": {"estimator": "one-sided", "meta_share": 2 / 3},
    "one-sided, last third": {"estimator": "one-sided", "meta_share": 1 / 3},
    "one-sided, head": {"estimator": "one-sided", "meta_share": 1e-9},
}
"""By name, what a recipe says; the last three run through a part of the module and are not exact."""


@dataclass(frozen=True)
class Finding:
    """One way of taking the products p_i = < v, grad l_i > of a batch.

    cosine: of p with the products in float64. error: |p - p64| / |p64|. times: a classifier update with its
    meta-gradient over a plain update, medians of updates timed in turn. refused: why the module does not allow it.
    """

    way: str
    cosine: float = float("nan")
    error: float = float("nan")
    times: float = float("nan")
    refused: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found; chosen and reason: what `estimator=auto` does for this module and batch."""

    model: str
    parameters: int
    batch: int
    device: str
    chosen: str
    reason: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        about = f"{self.model}, {self.parameters:,} parameters, batch {self.batch}, {self.device}"
        head = f"{'products':<28}{'cosine':>9}{'error':>10}{'time x ERM':>12}"
        lines = [_line(f) for f in self.findings]
        return "\n".join([about, f"auto: {self.chosen} ({self.reason})", "", head, *lines])


def _line(finding: Finding) -> str:
    if finding.refused:
        return f"{finding.way:<28}{finding.refused}"
    return f"{finding.way:<28}{finding.cosine:>9.5f}{finding.error:>10.1e}{finding.times:>12.2f}"


def examine(
    build: Callable[[], nn.Module],
    x: Shaped[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    recipe: Recipe | None = None,
    repeats: int = 5,
) -> Diagnosis:
    """Try every way of taking meta-gradients on a module and a batch; nothing is kept.

    Args:
        build: makes the classifier, with the same parameters each time.
        x: a batch; it trains, and validates too.
        y: its labels.
        recipe: optimiser, learning rate, precision and device; none: Recipe() on the CPU.
        repeats: timed updates of each kind.

    Raises:
        DataError, ConfigError: these are no labels, or the module is no classifier of them.
    """
    recipe = replace(recipe or Recipe(device="cpu"), batch_size=len(x), scheduler="constant")
    opened = partial(_Bench, build, x, y)
    truth = _truth(opened, replace(recipe, precision="float64", meta_share=1.0, accumulate=1, compile=None))
    plain, probed = opened(recipe), opened(replace(recipe, estimator="auto"))
    probed.products()
    tried = {way: _tried(opened, replace(recipe, **settings)) for way, settings in WAYS.items()}
    times = _times(plain, [bench for bench, _ in tried.values() if isinstance(bench, _Bench)], repeats)
    choice = probed.run.chooser.choice
    return Diagnosis(
        model=type(plain.run.classifier.model).__name__,
        parameters=sum(p.numel() for p in plain.run.classifier.params.values()),
        batch=len(x),
        device=str(plain.run.device),
        chosen=str(probed.run.chooser.name),
        reason="set in the recipe" if choice is None else choice.reason,
        findings=tuple(_finding(way, *found, truth, times) for way, found in tried.items()),
    )


class _Bench:
    """A run on one batch, to take updates with and without a meta-gradient."""

    def __init__(self, build: Callable[[], nn.Module], x: Tensor, y: Tensor, recipe: Recipe) -> None:
        device = device_of(recipe)
        pool = TensorPool(x, y).to(device)
        setup = Setup(ERM(), Data("batch", pool, None, {"test": pool}), build, "own", recipe, 0, "doctor", device)
        self.run = open_run(setup, _no_scouts)
        everything = torch.arange(len(x))
        self.run.use(Split(everything, everything, shared=True), at=0)

    def products(self) -> Float[Tensor, " n"]:
        """One update with its meta-gradient."""
        run = self.run
        seen = run.forward(run.train_batch(), remember=True)
        taken = run.update(seen, torch.ones_like(seen.losses), remember=True)
        found = run.weight_gradient(run.look_back(taken))
        run.updates += 1
        return found

    def update(self) -> None:
        """One plain update."""
        self.run.update(self.run.forward(self.run.train_batch()))
        self.run.updates += 1


def _truth(opened: Callable[[Recipe], _Bench], recipe: Recipe) -> Tensor:
    """Products in float64: exact, or by the central difference where a module has no forward derivatives."""
    try:
        return opened(replace(recipe, estimator="exact")).products()
    except ConfigError:
        return opened(replace(recipe, estimator="central")).products()


def _no_scouts(run: object, wanted: object) -> list[Outcome]:
    raise ConfigError("a batch under examination has no scouts")


def _tried(opened: Callable[[Recipe], _Bench], recipe: Recipe) -> tuple[_Bench | str, Tensor | None]:
    """A run and the products of its first update, or why there are none."""
    try:
        bench = opened(recipe)
        return bench, bench.products()
    except ConfigError as error:
        return str(error), None


def _times(plain: _Bench, benches: list[_Bench], repeats: int) -> dict[int, float]:
    """By id of a bench, its median time over that of a plain update, all taken in turn."""
    calls = [plain.update, *(bench.products for bench in benches)]
    spent = [[_seconds(call, plain.run.device) for call in calls] for _ in range(repeats + 1)][1:]
    medians = [statistics.median(column) for column in zip(*spent, strict=True)]
    return {id(bench): median / medians[0] for bench, median in zip(benches, medians[1:], strict=True)}


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _finding(way: str, bench: _Bench | str, found: Tensor | None, truth: Tensor, times: dict[int, float]) -> Finding:
    if isinstance(bench, str) or found is None:
        return Finding(way, refused=str(bench))
    p, p64 = found.double().cpu(), truth.double().cpu()
    cosine = float(functional.cosine_similarity(p, p64, dim=0))
    return Finding(way, cosine, float(torch.dist(p, p64) / torch.dist(p64, torch.zeros_like(p64))), times[id(bench)])
