"""Loan: what the owner of a loop says of it once, and the run that is made of it."""

import dataclasses
import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from molere import rng
from molere.adapters import Adapted, Packed, Read, attempted, check_learns, check_mode
from molere.borrowed import Borrowed, Stream, Theirs, without_data
from molere.data.pool import Data, Pool
from molere.errors import ConfigError, DataError
from molere.holdouts import Given
from molere.learner import Learner
from molere.lending import ENDLESS, LOOPS, built, classes_of, notice_steps, recipe_of
from molere.method import Method
from molere.methods.control import Drop
from molere.models import head_or_none
from molere.opening import Setup, check_trained
from molere.recipe import Recipe
from molere.rundata import Lent
from molere.scouts import ScoutTrainer
from molere.storage import ContentCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loan:
    """A loop's module, optimiser and data, and what its owner said of them; the arguments of Reweighter."""

    model: nn.Module
    """Not compiled: what `uncompiled` gives."""
    optimizer: torch.optim.Optimizer
    read: Read | None
    pool: Pool | None
    """The training data, if they were given."""
    initial: nn.Module | None
    """A copy of the module as it was given, with a pool."""
    epochs: int | None
    per_epoch: int | None
    accumulate: int
    said: Mapping[str, object]
    """Settings of the recipe."""
    scaler: torch.amp.GradScaler | None
    cache: str | Path | None
    seed: int
    label: str

    def __post_init__(self) -> None:
        """ConfigError for what is no module or optimiser, or for settings that are the loop's."""
        _check_module(self.model)
        _check_optimizer(self.optimizer, self.model)
        if self.pool is not None and self.epochs is None:
            raise ConfigError("data= needs epochs=, how many your loop takes: methods wait for shares of the run")
        if theirs := sorted(set(self.said) & set(LOOPS)):
            raise ConfigError(f"recipe states {theirs[0]}, which is your loop's: leave it out ({LOOPS[theirs[0]]})")

    def module(self, unpacks: bool) -> nn.Module:
        """The module as the run calls it, whose parameters are the owner's."""
        check_trained(self.model)
        return Adapted(self.model, self.read) if unpacks or self.read is not None else self.model

    def classes(self, x: Tensor) -> int:
        """The number of classes, by the module's output for the first batch."""
        check_mode()
        module = self.module(isinstance(x, Packed))
        first = next(module.parameters())
        with rng.seeded(None), torch.enable_grad(), Learner("probe", module, self.optimizer).at(evaluating=nn.Module):
            x = x.to(first.device)
            out = attempted(module, x.to(first.dtype) if x.is_floating_point() else x)
        classes = classes_of(out, len(x), module)
        check_learns(module, cast(Tensor, out))
        return classes

    def method(self, method: Method[Any]) -> Method[Any]:  # Any: of whatever state
        """The method as it works here: without a pool, what validates comes from val=."""
        if self.pool is not None or not hasattr(method, "holdout"):
            return method
        if isinstance(method, Drop):
            without_data("all that it does is to leave a part of them out")
        return cast(Method[Any], dataclasses.replace(cast(Any, method), holdout=Given([0])))

    def run(self, method: Method[Any], classes: int, size: int, *, unpacks: bool) -> Borrowed:
        """A run of a method whose updates are the owner's; `size` examples come in a call."""
        module = self.module(unpacks)
        first = next(p for p in module.parameters() if p.requires_grad)
        recipe = recipe_of(self.optimizer, first, size, self.epochs or 1, self.said)
        learner = Learner("classifier", module, self.optimizer, Theirs(self.optimizer), grad_clip=recipe.grad_clip)
        learner.use_scaler(self.scaler)
        pool: Pool = Stream(classes, first.device) if self.pool is None else self.pool.to(first.device)
        per_epoch = self._per_epoch(pool, size * self.accumulate)
        lent = Lent(
            pool=pool, recipe=recipe, seed=self.seed, classifier=learner, head=head_or_none(module),
            device=first.device,
            budget=ENDLESS if self.epochs is None else self.epochs * per_epoch, per_epoch=per_epoch, batch_size=size,
        )  # fmt: skip
        run = Borrowed(lent, self._scouts(method, pool, recipe, module, first.device))
        run.untap()
        run.streams, run.micros, run.unpacks = self.pool is None, self.accumulate, unpacks
        run.timed = self.epochs is not None and (self.pool is not None or self.per_epoch is not None)
        if self.accumulate > 1:
            notice_steps(self.optimizer, run)
        return run

    def renew(self, run: Borrowed) -> None:
        """Take up what the owner has frozen, unfrozen or replaced in the module since the last call."""
        if run.classifier.renew():
            check_trained(self.model)
            run.head = head_or_none(run.classifier.model)

    def state(self, method: Method[Any], run: Borrowed) -> Any:  # Any: of the method's own kind
        """The method's state at the start."""
        run.tap()
        try:
            with rng.seeded(rng.key(self.seed, "method init", 0)), torch.enable_grad():
                return method.init(run)
        except DataError as error:
            if self.pool is None:
                without_data(str(error))
            raise
        finally:
            run.untap()

    def _per_epoch(self, pool: Pool, update: int) -> int:
        found = self.per_epoch or (ENDLESS if self.pool is None else len(pool) // update)
        if found == 0:
            raise DataError(f"an update takes {update} examples and there are {len(pool)}; use a smaller batch_size")
        return found

    def _scouts(
        self, method: Method[Any], pool: Pool, recipe: Recipe, module: nn.Module, device: torch.device
    ) -> ScoutTrainer:
        initial, read = self.initial, self.read
        make = partial(built, module if initial is None else initial, read if initial is not None else None)
        data = Data("yours", pool, None, {"training": pool})
        setup = Setup(method, data, make, type(self.model).__name__, recipe, self.seed, self.label, device)
        return ScoutTrainer(setup, ContentCache(None if self.cache is None else Path(self.cache)))


def check_trains(run: Borrowed, index: Tensor, label: str) -> None:
    """ConfigError for examples that validate and must not train, and for repetitions that nobody makes."""
    if run.streams:
        return
    if run.split.repeated:
        hint = "draw batches from weigh.batches, or use a mode that weighs (jtt[mode=weight])"
        raise ConfigError(f"{label} repeats examples in the training data: {hint}")
    index = torch.as_tensor(index)
    held = torch.empty(0) if run.split.shared else torch.isin(index.to(run.device), run.split.val)
    if bool(held.any()):
        hint = "draw batches from weigh.batches, or set keep=true"
        raise ConfigError(f"example {int(index[held.cpu()][0])} validates in this epoch and must not train: {hint}")


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside what torch.compile made, with the same parameters; others as they are."""
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser inside others that hold it as `optimizer`, as Accelerate's do."""
    within = getattr(optimizer, "optimizer", None)
    return unwrapped(within) if isinstance(within, torch.optim.Optimizer) else optimizer


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}, expected the module that your loop trains")
    if hasattr(model, "no_sync") and hasattr(model, "module"):
        raise ConfigError(f"model is a {type(model).__name__}; pass the module inside: model.module")


def _check_optimizer(optimizer: object, model: nn.Module) -> None:
    if not all(hasattr(optimizer, name) for name in ("param_groups", "defaults", "state", "step")):
        given = f"optimizer is a {type(optimizer).__name__}"
        raise ConfigError(f"{given}, expected an optimiser of torch, as torch.optim.SGD(model.parameters(), lr=0.1)")
    known = cast(torch.optim.Optimizer, optimizer)
    closure = inspect.signature(known.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(f"{type(known).__name__} steps by a closure and cannot look ahead; use another optimiser")
    updated = {id(p) for group in known.param_groups for p in group["params"]}
    if updated.isdisjoint(id(p) for p in model.parameters()):
        given = f"the optimizer updates no parameter of {type(model).__name__}"
        raise ConfigError(f"{given}; make it of model.parameters(), after the last change of the model")
