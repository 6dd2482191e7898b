"""Lending: what is found out about somebody else's module, optimiser and data, so that a run can be made of them."""

import copy
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from molere.adapters import Adapted, Read, hint
from molere.borrowed import Borrowed, Handed
from molere.data.pool import DatasetPool, Pool, TensorPool
from molere.errors import ConfigError
from molere.fields import build
from molere.recipe import Recipe
from molere.steps import chunks

LOOPS = {
    "epochs": "pass epochs= to Reweighter",
    "batch_size": "pass batch_size= to Reweighter",
    "accumulate": "pass accumulate= to Reweighter",
    "optimizer": "it is the optimiser given",
    "lr": "it is the optimiser's",
    "weight_decay": "it is the optimiser's",
    "momentum": "it is the optimiser's",
    "device": "it is the module's",
    "compile": "compile the module yourself, for your own passes",
    "meta_share": "all blocks are used",
}
"""Settings of training that are not the Reweighter's, and where they are said."""

ENDLESS = 10**12
"""Updates of a run whose length was not said."""


def recipe_of(
    optimizer: torch.optim.Optimizer, parameter: Tensor, size: int, epochs: int, said: Mapping[str, object]
) -> Recipe:
    """The recipe of a loop: what its optimiser and module show, and what was said."""
    shown: dict[str, object] = {
        "epochs": epochs,
        "batch_size": size,
        "optimizer": partial(like, type(optimizer), dict(optimizer.defaults)),
        "lr": max(float(optimizer.param_groups[0]["lr"]), 1e-12),
        "precision": "float64" if parameter.dtype == torch.float64 else "float32",
        "device": str(parameter.device),
    }
    return build(Recipe, {**shown, **said}, "recipe")


class EpochBatches(Iterable[list[int]]):
    """The training batches of an epoch, as lists of positions; how many there are is its length."""

    def __init__(self, begun: Callable[[], Borrowed]) -> None:
        self._begun = begun

    def __len__(self) -> int:
        run = self._begun()
        return (run.per_epoch - run.updates % run.per_epoch) * run.micros

    def __iter__(self) -> Iterator[list[int]]:
        run = self._begun()
        for update in range(run.updates, run.updates + len(self) // run.micros):
            index = run.positions(update, run.batch_size * run.micros)
            yield from (cast(list[int], part.tolist()) for part in chunks(index, run.batch_size))


def notice_steps(optimizer: torch.optim.Optimizer, run: Borrowed) -> None:
    """Tell a run of each step of its owner's optimiser, as long as there is the run; ConfigError if that cannot be."""
    if not hasattr(optimizer, "register_step_post_hook"):
        given = f"{type(optimizer).__name__} does not tell of its steps"
        raise ConfigError(f"{given}, which accumulate= needs; derive it from torch.optim.Optimizer")
    told = weakref.ref(run)

    def stepped(*_: object) -> None:
        if (known := told()) is not None:
            known.stepped()

    weakref.finalize(run, optimizer.register_step_post_hook(stepped).remove).atexit = False


def weights_of(handed: Handed) -> Tensor:
    """The weights of the examples that train; ones where the method has none for them."""
    return torch.ones_like(handed.seen.losses.detach()) if handed.weights is None else handed.weights.clone()


def classes_of(out: object, n: int, module: nn.Module) -> int:
    """The number of classes that a module's output [n, c] shows; ConfigError for another output."""
    name = type(module.module if isinstance(module, Adapted) else module).__name__
    if not isinstance(out, Tensor):
        raise ConfigError(f"{name} returns a {type(out).__name__}, expected logits [n, classes]; pass {hint(out)}")
    if out.ndim != 2 or len(out) != n:
        given = f"{name} gives {list(out.shape)} for {n} examples"
        raise ConfigError(f"{given}, expected logits [{n}, classes]; say with logits= where they are")
    return out.shape[1]


def pool_of(data: Any) -> Pool:  # Any: as Reweighter takes it
    """Training data as a pool."""
    if isinstance(data, Pool):
        return data
    if isinstance(data, tuple):
        x, y = cast(tuple[Any, Any], data)
        return TensorPool(x, y)
    return DatasetPool(data)


def built(model: nn.Module, read: Read | None) -> nn.Module:
    """A copy of the module as it was at the start."""
    made = copy.deepcopy(model)
    return made if read is None else Adapted(made, read)


def like(
    kind: Callable[..., torch.optim.Optimizer], defaults: Mapping[str, Any], parameters: Any, *, lr: float, **given: Any
) -> torch.optim.Optimizer:
    """An optimiser like the owner's, for models that are trained first."""
    known = inspect.signature(kind).parameters
    return kind(parameters, **{**{k: v for k, v in defaults.items() if k in known}, **given, "lr": lr})
