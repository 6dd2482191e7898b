"""Suffix: the last blocks of a module, run from the activations that an earlier pass left at the cut.

A meta-gradient through the last blocks only needs no forward pass of the first ones: what they gave to the training
batch is known. While `replay` lasts, every unit before the cut returns its recorded output instead of running.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from molere.errors import ConfigError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

Recorded = dict[str, tuple[Any, list[Tensor]]]
"""Output of each unit before the cut (Any: whatever a module returns), and the random state it left, by their names."""


class Suffix:
    """The last `share` of a module's units: the blocks that it runs one after the other.

    Args:
        model: any module that runs each of its units once in a pass.
        x: an example batch, passed through once in evaluation mode to see the order of the units.
        share: of the units with parameters, in (0, 1], at least one.

    Attributes:
        names: trainable parameters from the cut on, as `named_parameters` calls them.

    Raises:
        ConfigError: a unit runs twice in a pass or the module runs none, so there is no place to cut.
    """

    def __init__(self, model: nn.Module, x: Tensor, share: float) -> None:
        units, self._overwritten = _run_order(model, x)
        having = [name for name, unit in units if any(True for _ in unit.parameters())]
        if not having:
            raise ConfigError(f"{type(model).__name__} has no blocks to cut between; use train.meta_share=1")
        first = having[-math.ceil(share * len(having) - 1e-9)]
        cut = [name for name, _ in units].index(first)
        self._before = dict(units[:cut])
        inside = {id(p) for _, unit in units[cut:] for p in unit.parameters()}
        self.names = [k for k, p in model.named_parameters() if p.requires_grad and id(p) in inside]

    @contextmanager
    def record(self) -> Generator[Recorded]:
        """What the units before the cut return while the block lasts, detached."""
        found: Recorded = {}

        def keep(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:  # Any: whatever modules take
            found[name] = (_mapped(output, copied=name in self._overwritten), _random_state())

        handles = [unit.register_forward_hook(partial(keep, name)) for name, unit in self._before.items()]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def replay(self, recorded: Recorded) -> Generator[None]:
        """The units before the cut return what was recorded, without running."""
        try:
            for name, unit in self._before.items():
                unit.__dict__["forward"] = partial(_replayed, *recorded[name], name in self._overwritten)
            yield
        finally:
            for unit in self._before.values():
                unit.__dict__.pop("forward", None)


def _replayed(output: Any, state: list[Tensor], overwritten: bool, *_: Any, **__: Any) -> Any:
    """In the place of a unit: its output, and the random state it left, so that later dropout masks are the same."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
    return _mapped(output, wide=True, copied=overwritten)


def _random_state() -> list[Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def _mapped(output: Any, *, wide: bool = False, copied: bool = False) -> Any:
    """The tensors in a module's output, detached; wide: in float32 at least, as virtual passes are not autocast."""
    if isinstance(output, Tensor):
        low = wide and output.dtype in (torch.bfloat16, torch.float16)
        found = output.float() if low else output.detach()
        return found.clone() if copied else found
    if isinstance(output, dict):
        return {k: _mapped(part, wide=wide, copied=copied) for k, part in cast("dict[Any, Any]", output).items()}
    if isinstance(output, list | tuple):
        parts = [_mapped(part, wide=wide, copied=copied) for part in cast("list[Any]", output)]
        if hasattr(cast(Any, output), "_fields"):  # a named tuple, such as a packed sequence
            return cast(Any, type(cast(Any, output)))(*parts)
        return parts if isinstance(output, list) else tuple(parts)
    return output


def _units(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The modules that a model is a sequence of: its children, and those of containers and stacks in their place."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        opened = isinstance(child, CONTAINERS) or any(_is_stack(m) for m in child.modules())
        found += _units(child, f"{path}.") if opened else [(path, child)]
    return found


def _is_stack(module: nn.Module) -> bool:
    """Whether a module is a container of two or more blocks of one class, such as a transformer's layers."""
    blocks = list(module.children()) if isinstance(module, CONTAINERS) else []
    return len(blocks) > 1 and len({type(b) for b in blocks}) == 1 and all(list(b.children()) for b in blocks)


def _run_order(model: nn.Module, x: Tensor) -> tuple[list[tuple[str, nn.Module]], set[str]]:
    """The units as they run, and those whose output is overwritten later in the pass (y += x)."""
    units, order, given = dict(_units(model)), list[str](), dict[str, tuple[Tensor, int]]()

    def note(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        order.append(name)
        if isinstance(output, Tensor):
            given[name] = output, output._version

    handles = [u.register_forward_hook(partial(note, n)) for n, u in units.items()]
    modes = [(m, m.training) for m in model.modules()]
    try:
        for m, _ in modes:
            m.training = False
        with torch.no_grad():
            model(x.to(next(model.parameters()).dtype) if x.is_floating_point() else x)
    finally:
        for m, mode in modes:
            m.training = mode
        for handle in handles:
            handle.remove()
    if twice := next((n for n in order if order.count(n) > 1), None):
        raise ConfigError(f"{twice} runs more than once in a pass, so there is no cut; use train.meta_share=1")
    overwritten = {n for n, (output, version) in given.items() if output._version > version}
    return [(n, units[n]) for n in order], overwritten
