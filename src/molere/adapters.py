"""Adapters: modules that give more than logits, or take more than one tensor, as the classifiers that runs train.

A module may return a tuple, a dict or an object; a function says where the logits are in it. Its inputs may be a
mapping of tensors (`module(**inputs)`) or a tuple (`module(*inputs)`); they travel as one tensor, `Packed`.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from molere.errors import ConfigError, DataError

Read = Callable[[Any], Tensor]  # Any: whatever the module returns
Inputs = Tensor | Mapping[str, Any] | Sequence[Any]  # Any: tensors; the types of foreign batches say less


class Adapted(nn.Module):
    """logits = read(module(x)); the module is a part, unmodified, and shares its parameters."""

    def __init__(self, module: nn.Module, read: Read | None = None) -> None:
        super().__init__()
        self.module = module
        self.read = read

    def forward(self, x: Tensor) -> Any:  # Any: whatever the module returns, if nothing reads it
        """Logits [n, classes]."""
        out = called(self.module, x)
        return out if self.read is None else self.read(out)


class Packed(Tensor):
    """Several tensors that belong to the same n examples, as one integer tensor [n] that holds them."""

    parts: Mapping[str, Tensor] | tuple[Tensor, ...]

    @staticmethod
    def of(parts: Mapping[str, Tensor] | tuple[Tensor, ...]) -> "Packed":
        """Pack tensors [n, ...]; DataError unless all have the same n."""
        tensors = list(parts.values()) if isinstance(parts, Mapping) else list(parts)
        lengths = {len(t) if t.ndim else 0 for t in tensors}
        if len(lengths) != 1 or 0 in lengths:
            raise DataError(f"inputs of lengths {sorted(lengths)} belong together; give one row per example in each")
        made = torch.Tensor._make_subclass(Packed, torch.arange(lengths.pop(), device=tensors[0].device))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        made.parts = parts
        return made

    def each(self, change: Callable[[Tensor], Tensor]) -> "Packed":
        """The same change made to every tensor."""
        if isinstance(self.parts, Mapping):
            return Packed.of({k: change(t) for k, t in self.parts.items()})
        return Packed.of(tuple(change(t) for t in self.parts))

    def __getitem__(self, index: Any) -> "Packed":  # Any: as for tensors
        return self.each(lambda t: t[index])

    def to(self, *args: Any, **kwargs: Any) -> "Packed":  # Any: as for tensors
        """Every tensor moved."""
        return self.each(lambda t: t.to(*args, **kwargs))


def packed(x: Inputs) -> Tensor:
    """Inputs as one tensor: a tensor as it is, a mapping or a sequence of tensors packed."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Mapping):
        return Packed.of({k: v for k, v in x.items() if isinstance(v, Tensor)})
    return Packed.of(tuple(cast(Sequence[Tensor], x)))


def called(module: nn.Module, x: Tensor) -> Any:  # Any: whatever the module returns
    """The module on an input, unpacked if it is `Packed`."""
    if not isinstance(x, Packed):
        return module(x)
    return module(**x.parts) if isinstance(x.parts, Mapping) else module(*x.parts)


def made_of(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """A copy of a module, or what a factory makes; ConfigError for what makes no module without arguments."""
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    given = cast(object, model)
    name = getattr(given, "__name__", type(given).__name__)
    if not callable(given):
        raise ConfigError(f"model is a {name}, expected a name, a module, its class, or a function that makes it")
    if missing := _asked(given):
        raise ConfigError(f"{name} cannot be made without {missing}: pass model=lambda: {name}({missing}=...)")
    made = given()
    if not isinstance(made, nn.Module):
        raise ConfigError(f"model={name} makes a {type(made).__name__}, expected a module; return the module")
    return made


def _asked(make: Callable[..., object]) -> str | None:
    """The first argument without a default, if there is one."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # built in
        return None
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return next((p.name for p in parameters if p.default is p.empty and p.kind not in free), None)


def attempted(module: nn.Module, x: Tensor) -> object:
    """The module on the first examples; ConfigError where it fails on them."""
    try:
        return module(x)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        name = type(module.module if isinstance(module, Adapted) else module).__name__
        said = " ".join(str(error).split())[:200]
        given = "inputs" if isinstance(x, Packed) else f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        raise ConfigError(f"{name} fails on {given} ({said}); give a module for such inputs, or change them") from error


def check_learns(module: nn.Module, logits: Tensor) -> None:
    """ConfigError for logits, made with gradients enabled, that no gradient goes through."""
    check_mode()
    if logits.requires_grad:
        return
    name = type(module.module if isinstance(module, Adapted) else module).__name__
    hint = "the output of its last layer, not detached nor made under torch.no_grad"
    if isinstance(module, Adapted) and module.read is not None:
        raise ConfigError(f"what logits= picks of {name} has no gradient, so nothing would learn; pick {hint}")
    raise ConfigError(f"the logits of {name} have no gradient, so nothing would learn; return {hint}")


def check_mode() -> None:
    """ConfigError under torch.inference_mode."""
    if torch.is_inference_mode_enabled():
        raise ConfigError("torch.inference_mode is on, under which nothing can learn; train outside of it")


def reading(model: nn.Module | Callable[[], nn.Module] | str | None, read: Read) -> Callable[[], nn.Module]:
    """A factory of `Adapted` modules, under the model's own name; ConfigError for a model named by a string."""
    if model is None or isinstance(model, str):
        given = "the default model" if model is None else f"the model {model!r}"
        raise ConfigError(f"logits= is for a module of yours; {given} gives logits already: leave it out")

    def make() -> nn.Module:
        return Adapted(made_of(model), read)

    make.__name__ = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "model")
    return make


def hint(out: object) -> str:
    """What to pass as `logits` for a module that returned this."""
    if isinstance(out, Mapping):
        keys = [str(k) for k in cast(Mapping[object, object], out)]
        return f'logits=lambda out: out["{next((k for k in keys if "logit" in k), keys[0] if keys else "logits")}"]'
    if isinstance(out, Sequence):
        return "logits=lambda out: out[0]"
    return "logits=lambda out: out.logits"
