"""Setup, one training fully said; open_run, its classifier, checked, with optimiser, schedule and device."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from molere import rng
from molere.adapters import attempted, check_learns, check_mode, hint
from molere.data.pool import Data, Pool
from molere.errors import ConfigError, ResourceError
from molere.identity import plain
from molere.learner import Learner
from molere.method import Method, Run, Scouts
from molere.models import head_or_none
from molere.models.weights import content as weights_content
from molere.names import unknown
from molere.optim import Schedule, make_optimizer
from molere.recipe import Recipe
from molere.rundata import Lent
from molere.suffix import Suffix


@dataclass(frozen=True)
class Setup:
    """One training, fully said."""

    method: Method[Any]  # Any: of whatever state
    data: Data
    build: Callable[[], nn.Module]
    model: str
    recipe: Recipe
    seed: int
    label: str
    device: torch.device

    def config(self) -> dict[str, object]:
        """What decides the result, in plain values."""
        return {
            "method": self.label,
            "settings": plain(self.method if dataclasses.is_dataclass(self.method) else type(self.method)),
            "data": {"name": self.data.name, "scenario": self.data.scenario, "content": self.data.train.fingerprint()},
            "model": self.model,
            "train": plain(self.recipe.stated()),
            "seed": self.seed,
            **({"weights": held} if (held := weights_content(self.recipe.weights)) else {}),
        }


def device_of(recipe: Recipe) -> torch.device:
    """The device a recipe names; ConfigError if there is none of that name, ResourceError if it is not here."""
    name = recipe.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ResourceError(f"device {name!r} is not here; use --device cpu or auto")
    return device


def open_run(setup: Setup, scouts: Scouts) -> Run:
    """The classifier with its optimiser and schedule, and the run that is lent to the method."""
    recipe, pool = setup.recipe, setup.data.train
    model = _module(setup)
    if recipe.precision == "float32" and next(p for p in model.parameters() if p.requires_grad).dtype == torch.float64:
        recipe = dataclasses.replace(recipe, precision="float64")  # a module that comes in it stays in it
    per_epoch = len(pool) // recipe.batch_size
    lent = Lent(
        pool=pool,
        recipe=recipe,
        seed=setup.seed,
        classifier=_learner(model, recipe, setup.device, per_epoch),
        head=head_or_none(model),
        device=setup.device,
        budget=recipe.epochs * per_epoch,
        per_epoch=per_epoch,
        batch_size=recipe.batch_size,
        suffix=_suffix(model, setup),
    )
    return Run(lent, scouts)


def _module(setup: Setup) -> nn.Module:
    """The module of a setup in its precision and place, in training mode, looked at on two examples of the pool."""
    recipe = setup.recipe
    model = setup.build().to(setup.device)
    model = model.double() if recipe.precision == "float64" else model
    if recipe.channels_last:
        model = cast(Any, model).to(memory_format=torch.channels_last)  # torch's stubs know no keyword form
    check_trained(model)
    _check_outputs(model, setup.data.train, setup.device)
    return model.train()


def _learner(model: nn.Module, recipe: Recipe, device: torch.device, per_epoch: int) -> Learner:
    """The module with the optimiser and the schedule of a recipe."""
    optimizer = make_optimizer(
        recipe.optimizer,
        [p for p in model.parameters() if p.requires_grad],
        lr=recipe.lr,
        arguments=recipe.optimizer_args,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    updates, settings = recipe.epochs * per_epoch, recipe.scheduler_args
    schedule = Schedule(recipe.scheduler, optimizer, updates=updates, per_epoch=per_epoch, settings=settings)
    classifier = Learner(
        "classifier",
        model,
        optimizer,
        schedule,
        grad_clip=recipe.grad_clip,
        scaled=recipe.precision == "float16" and device.type == "cuda",
        channels_last=recipe.channels_last,
        backend=_compiler(recipe),
    )
    classifier.guarded = recipe.on_nonfinite != "stop"
    return classifier


def _suffix(model: nn.Module, setup: Setup) -> Suffix | None:
    """The last blocks of the module, where a meta-gradient asks those alone."""
    recipe, pool = setup.recipe, setup.data.train
    if recipe.accumulate > 1 and (recipe.meta_share < 1 or recipe.estimator == "ghost"):
        raise ConfigError("a batch in parts keeps no activations for ghost or meta_share; use train.accumulate=1")
    if recipe.meta_share == 1:
        return None
    return Suffix(model, pool.batch(torch.arange(2, device=pool.y.device)).x.to(setup.device), recipe.meta_share)


def check_trained(model: nn.Module) -> None:
    """ConfigError for a module of which nothing trains."""
    if not any(p.requires_grad for p in model.parameters()):
        hint = "unfreeze what is to learn, as model.head.requires_grad_(True)"
        raise ConfigError(f"{type(model).__name__} has no parameter that is trained; {hint}")


def _compiler(recipe: Recipe) -> str | None:
    """The recipe's backend of torch.compile, if it names one that is here."""
    if recipe.compile is None:
        return None
    known: list[str] = torch.compiler.list_backends(exclude_tags=())
    if recipe.compile not in known:
        raise ConfigError(unknown("train.compile", recipe.compile, known))
    if recipe.meta_share < 1:
        raise ConfigError("compiled passes cannot be cut; use train.meta_share=1, or leave train.compile out")
    return recipe.compile


def _check_outputs(model: nn.Module, pool: Pool, device: torch.device) -> None:
    """ConfigError unless the module gives logits [n, c] for at least the classes of the pool."""
    check_mode()
    model.eval()
    with torch.enable_grad(), rng.seeded(0):
        x = pool.batch(torch.arange(min(2, len(pool)), device=pool.y.device)).x.to(device)
        double = next(model.parameters()).dtype == torch.float64
        out = attempted(model, x.double() if double and x.is_floating_point() else x)
    name = type(model).__name__
    if not isinstance(out, Tensor):
        given = f"{name} returns a {type(out).__name__}, expected logits [n, classes]"
        raise ConfigError(f"{given}; say where they are in it: {hint(out)}")
    if out.ndim != 2 or len(out) != len(x):
        given = f"{name} gives {list(out.shape)} for {len(x)} examples"
        raise ConfigError(f"{given}, expected logits [{len(x)}, {pool.num_classes}]; flatten its output")
    if out.shape[1] < pool.num_classes:
        last = f"example {int(pool.y.argmax())} has label {int(pool.y.max())}"
        given = f"{name} has {out.shape[1]} outputs for {pool.num_classes} classes ({last})"
        raise ConfigError(f"{given}; give it {pool.num_classes} outputs, or mend the labels")
    check_learns(model, out)
