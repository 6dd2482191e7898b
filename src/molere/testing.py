"""check_method: what the loop, saving and comparing rely on, tried on a method; ours and yours take the same test.

    check_method(Mine())            check_method("lrwopt@paper")

It trains small models on a small pool: two classes, and one rare region where they change places.
"""

import random
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from molere import rng, settings
from molere.data.pool import Data, TensorPool
from molere.identity import plain
from molere.recipe import Recipe
from molere.result import Result
from molere.run import Model, fit
from molere.storage import ContentCache
from molere.watch import AnyMethod, Interruption, Stopped, Watched, demand, same

FILES = {"model.safetensors": "parameters", "metrics.csv": "metrics", "samples.parquet": "samples"}
"""What a run leaves that must not depend on where it was interrupted."""


def check_method(method: str | AnyMethod, *, data: Data | None = None, model: Model | None = None) -> None:
    """Raise AssertionError, in one sentence, for the first promise of `Method` that a method breaks.

    Checked: settings are frozen; each step is one classifier update and touches the classifier
    in no other way; the budget is met; splits and weights are legal, weights are recorded; a seed repeats bit for bit,
    another one differs; global random states do not matter and are left alone; a run that was interrupted twice and
    resumed ends with the same bits.

    Args:
        method: a Method, or what `fit` takes for one.
        data: what to train on instead of the built-in pool.
        model: what to train; none: an MLP, then a network with BatchNorm and dropout.
    """
    name = method if isinstance(method, str) else type(method).__name__
    made = settings.method_of(method)
    _check_settings(name, made)
    data = data or rare_region()
    for each in [model] if model is not None else _models(data):
        _Check(name, made, data, each).run()


def rare_region(size: int = 96, seed: int = 0) -> Data:
    """Two classes in four dimensions; in a region far to the side, one in twelve (group 1), they change places."""
    train, select, test = (_part(size, rng.key(seed, "rare region", part)) for part in range(3))
    return Data("rare-region", train, select, {"test": test}, group_names=("common", "rare"))


def _part(size: int, seed: int) -> TensorPool:
    y = torch.arange(size) % 2
    rare = torch.arange(size) // 2 % 12 == 0
    side = torch.where(rare, 1 - y, y) * 2.0 - 1
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
    x += torch.stack([1.5 * side, 4.0 * rare, torch.zeros(size), torch.zeros(size)], dim=1)
    return TensorPool(x, y, group=rare.long())


def _models(data: Data) -> Sequence[Model]:
    width = data.train.batch(torch.zeros(1, dtype=torch.int64)).x[0].numel()

    def batch_norm() -> nn.Module:
        inner = (nn.Linear(width, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.25))
        return nn.Sequential(nn.Flatten(), *inner, nn.Linear(12, data.train.num_classes))

    return "mlp", batch_norm


def _check_settings(name: str, method: AnyMethod) -> None:
    """A frozen dataclass."""
    parameters = getattr(method, "__dataclass_params__", None)
    frozen = parameters is not None and bool(parameters.frozen)
    demand(frozen, f"{name}: its settings can be changed; decorate it with @dataclass(frozen=True, kw_only=True).")


@dataclass
class _Check:
    """All trainings of one method with one model."""

    name: str
    method: AnyMethod
    data: Data
    model: Model
    cache: ContentCache = field(default_factory=ContentCache)

    def run(self) -> None:
        before = repr(plain(self.method))
        watched = Watched(self.name, self.method)
        first = self.train(watched, world=1)
        watched.check(first)
        with tempfile.TemporaryDirectory(prefix="molere-check-") as folder:
            whole, parts = Path(folder) / "whole", Path(folder) / "parts"
            self.check_repeats(first, self.train(self.method, world=2, cache=self.cache, out=whole))
            self.check_seed(first)
            self.check_resumes(first.updates, whole, parts)
        kept = repr(plain(self.method)) == before
        demand(kept, f"{self.name}: training changed its settings; keep what changes in the state.")

    def train(self, method: AnyMethod, *, world: int, **arguments: Any) -> Result:  # Any: as in fit
        """One training, in a world with its own global random states."""
        try:
            with _world(self.name, world):
                return fit(method, data=self.data, model=self.model, recipe=self.recipe, label=self.name, **arguments)
        except (AssertionError, Interruption):
            raise
        except Exception as error:
            model = self.model if isinstance(self.model, str) else getattr(self.model, "__name__", "the model")
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise AssertionError(f"{self.name}: training {model} raised {said}") from error

    @property
    def recipe(self) -> Recipe:
        """Three epochs of six updates or so, with checkpoints within epochs and between them."""
        size = len(self.data.train)
        return Recipe(epochs=3, batch_size=min(size, max(16, size // 6)), save_every=4, device="cpu")

    def check_repeats(self, first: Result, second: Result) -> None:
        different = [what for what, equal in _agreement(first, second).items() if not equal]
        demand(
            not different,
            f"{self.name}: the same seed gave different {', '.join(different)} the second time; draw from "
            "run.rng(purpose) only, and keep what changes in the state.",
        )

    def check_seed(self, first: Result) -> None:
        other = self.train(self.method, world=3, cache=self.cache, seed=1)
        equal = _agreement(first, other)["parameters"]
        demand(not equal, f"{self.name}: seeds 0 and 1 gave the same parameters.")

    def check_resumes(self, updates: int, whole: Path, parts: Path) -> None:
        """Interrupted after a third of the run, again after three quarters, then left to finish."""
        for world, stop in enumerate((updates // 3, 3 * updates // 4, -1)):
            try:
                self.train(Stopped(self.method, stop), world=4 + world, cache=self.cache, out=parts)
            except Interruption:
                continue
        different = [what for file, what in FILES.items() if (whole / file).read_bytes() != (parts / file).read_bytes()]
        demand(
            not different,
            f"{self.name}: a run that was interrupted and resumed ended with other {', '.join(different)}; all that "
            "changes must be a field of the state, and `init` must make the same learners every time.",
        )


@contextmanager
def _world(name: str, seed: int) -> Generator[None]:
    """Global random states of their own, and the check that the block leaves them alone."""
    before = _global_states()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    start = _global_states()
    try:
        yield
        drawn = ", ".join(_drawn(start))
        demand(not drawn, f"{name}: drew from the global generator of {drawn}; use run.rng(purpose).")
    finally:
        torch.default_generator.set_state(cast(Tensor, before["torch"]))
        np.random.set_state(cast(Any, before["numpy"]))  # Any: numpy's own tuple
        random.setstate(cast(Any, before["random"]))  # Any: Python's own tuple


def _global_states() -> dict[str, object]:
    return {"torch": torch.default_generator.get_state(), "numpy": np.random.get_state(), "random": random.getstate()}


def _drawn(before: Mapping[str, object]) -> list[str]:
    """The global generators that are no longer as they were; beartype, where it checks types, draws from Python's."""
    beartype = "beartype" in sys.modules
    after = _global_states()
    return [name for name in after if not same(after[name], before[name]) and not (beartype and name == "random")]


def _agreement(a: Result, b: Result) -> dict[str, bool]:
    """Whether two runs ended with the same bits."""
    one, two = (cast(Mapping[str, Tensor], r.classifier.state_dict()) for r in (a, b))
    return {"parameters": same(one, two), "metrics": same(a.history, b.history), "samples": same(a.samples, b.samples)}
