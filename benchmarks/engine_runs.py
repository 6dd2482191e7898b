"""Whole runs for the engine benchmark, by turns; and how much a process grows in many meta updates."""

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from engine_models import ARCHITECTURES, Problem, problem_of
from engine_ways import PHI_LR, LossNet, by_molere, loss_net
from main_job import cifar_shaped, recipe_of, resident
from timing import Training, side_by_side

from molere import models, rng
from molere.data.pool import Batch, Data
from molere.holdouts import Random
from molere.learner import Learner
from molere.method import Method, Run
from molere.methods.lrw import LRW, LRWState
from molere.recipe import Recipe
from molere.registry import METHODS
from molere.run import fit
from molere.steps import Taken


class Size(Protocol):
    """How much is measured."""

    @property
    def batch(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def images(self) -> int: ...
    @property
    def epochs(self) -> int: ...


class LossWeighted(LRW):
    """LRW in the strict order whose weights are a function of the loss, as in Meta-Weight-Net (Shu et al. 2019)."""

    def init(self, run: Run) -> LRWState:
        """The validation part and phi."""
        with rng.seeded(rng.key(run.seed, "weigher")):
            net = LossNet()
        return LRWState(run.learner("weigher", net, lr=PHI_LR), self.holdout(run, self.delta).val)

    def step(self, run: Run, state: LRWState, batch: Batch) -> Taken:
        """A virtual step and an update of phi once in Q, then the real step with the new weights."""
        meta = run.due(self.q)
        seen = run.forward(batch, remember=meta)
        weigher: Learner = state.weigher
        if meta:
            w = weigher(seen.losses.detach())
            weigher.descend(w, run.weight_gradient(run.look_ahead(seen, w)))
        return run.update(seen, weigher(seen.losses.detach()))


def _compared(recipe: Recipe) -> dict[str, tuple[str | Method[Any], Recipe]]:
    """The trainings of one set, by name."""
    found: dict[str, tuple[str | Method[Any], Recipe]] = {"erm": ("erm", recipe)}
    for q in (1, 5, 10):
        mwn = f"mwn[q={q}]" if "mwn" in METHODS else LossWeighted(q=q, order="strict", holdout=Random())
        found |= {f"{m}/{q}": (f"{m}[q={q}]", recipe) for m in ("lrwopt", "lrw-random")} | {f"mwn/{q}": (mwn, recipe)}
    half = max(1, recipe.batch_size // 2)
    found["lrwopt suffix-2/3/5"] = "lrwopt[q=5]", replace(recipe, meta_share=2 / 3)
    found["lrwopt val-1/2/5"] = "lrwopt[q=5]", replace(recipe, val_batch_size=half)
    return found


def runs_of_a_set(size: Size, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each epoch of each training of a set, all by turns."""
    data = replace(cifar_shaped(size.images), default_model=size.model)
    recipe = replace(recipe_of("cifar100", size.epochs), warmup=0.0, estimator="one-sided", device=str(device))
    recipe = replace(recipe, batch_size=min(recipe.batch_size, size.batch))
    trainings = {k: _training(method, data, one, device) for k, (method, one) in _compared(recipe).items()}
    clock = 1 if device.type == "cuda" else 0  # wall time, CPU time
    return {name: found[:, clock].tolist() for name, found in side_by_side(trainings).items()}


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _training(method: str | Method[Any], data: Data, recipe: Recipe, device: torch.device) -> Training:
    def train(tick: Callable[[], None]) -> None:
        def observe(_: object) -> None:
            synchronise(device)
            tick()

        fit(method, data=data, recipe=recipe, observers=[observe])

    return train


GROWING: Mapping[str, Mapping[str, Any]] = {
    "one-sided, fused": {"estimator": "one-sided"},
    "one-sided, strict": {"estimator": "one-sided", "strict": True},
    "exact, fused": {"estimator": "exact"},
    "ghost, fused": {"estimator": "ghost"},
}
"""Engines whose process is watched."""


def report_growth(updates: int, device: torch.device) -> None:
    """In a process of its own: print the growth of each engine after its first tenth, in MiB."""
    small = replace(ARCHITECTURES["mlp"], shape=(1, 8, 8), build=_small)
    problem = problem_of(small, 32, device)
    print(json.dumps({name: _growth(problem, settings, updates) for name, settings in GROWING.items()}))


def _growth(problem: Problem, settings: Mapping[str, Any], updates: int) -> float:
    step = by_molere(problem, loss_net(problem.device), **settings)
    for _ in range(max(20, updates // 10)):
        step()
    before = _held(problem.device)
    for _ in range(updates):
        step()
    return _held(problem.device) - before


def _held(device: torch.device) -> float:
    gc.collect()
    on_device = torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    return resident("VmRSS") + on_device


def _small() -> torch.nn.Module:
    return models.build("mlp", num_classes=10, input_shape=(1, 8, 8))
