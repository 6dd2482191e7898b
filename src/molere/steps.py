"""The passes of one update, as values: what was seen, what step was taken, what the validation batch said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

from molere.data.pool import Batch
from molere.ghost import GhostTape
from molere.optim import Params, Sensitivity
from molere.suffix import Recorded

Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]
Products = Callable[[Params], Float[Tensor, " n"]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One training forward: logits and losses with their graph, features detached; `stream` replays its dropout."""

    batch: Batch
    logits: Float[Tensor, "n c"]
    losses: Float[Tensor, " n"]
    features: Float[Tensor, "n d"]
    stream: int
    recorded: Recorded | None = None
    """Outputs of the blocks before the cut, where meta-gradients run through the last blocks only."""
    tape: GhostTape | None = None
    """The calls that parameters entered, where the products are taken layer by layer."""
    given: Float[Tensor, " n"] | None = None
    """Weights that the examples came with; the losses have them as factors."""

    def __len__(self) -> int:
        return len(self.batch)


@dataclass(frozen=True, slots=True)
class Taken:
    """One classifier update; `before` and `sensitivity` are there if it is to be looked back upon."""

    seen: Seen
    weights: Float[Tensor, " n"] | None
    before: Params | None = None
    sensitivity: Sensitivity | None = None
    products: Products | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """One validation forward after a step, real or virtual, from theta on the batch `seen`.

    direction = (d theta'/d grad)^T grad L_val(theta'), so that d L_val / d w_i = <direction, grad l_i(theta)> / n; by
    name, for all parameters or those of the last blocks.
    """

    batch: Batch
    logits: Float[Tensor, "m c"]
    losses: Float[Tensor, " m"]
    features: Float[Tensor, "m d"]
    seen: Seen
    theta: Params
    direction: Params
    products: Products | None = None
    """Direction -> the products, where the tape of the training forward gives them."""


@dataclass(frozen=True, slots=True)
class Risk:
    """An objective of a validation batch that is more than a function of its losses."""

    of: Callable[[Batch, Tensor, Tensor], Tensor]
    """(batch, logits [m, c], losses [m]) -> scalar."""

    def __call__(self, batch: Batch, logits: Tensor, losses: Tensor) -> Tensor:
        return self.of(batch, logits, losses)


Objective = Callable[[Tensor], Tensor] | Risk
"""Validation losses [m] -> the scalar to be lowered, or a Risk."""


@dataclass
class Cost:
    """What a run has paid: samples passed forward and backward by role, updates, seconds, peak memory in MiB.

    Roles: the classifier's own passes; virtual ones (validation batches, look-ahead, inner products); scouts (ERM
    models that a method trains first), which are charged to every method that uses them, also when shared.
    """

    updates: int = 0
    forward: float = 0.0
    backward: float = 0.0
    virtual_forward: float = 0.0
    virtual_backward: float = 0.0
    scout_forward: float = 0.0
    scout_backward: float = 0.0
    seconds: float = field(default=0.0, compare=False)
    scout_seconds: float = field(default=0.0, compare=False)
    peak_mib: float = field(default=0.0, compare=False)

    @classmethod
    def of(cls, stored: Mapping[str, float]) -> "Cost":
        """Undo `as_dict`, also as a file gives it."""
        rest = {k: float(v) for k, v in stored.items() if k != "updates"}
        return cls(updates=int(stored["updates"]), **rest)

    def counts(self) -> dict[str, int | float]:
        """The part that does not depend on the machine."""
        names = ("forward", "backward", "virtual_forward", "virtual_backward", "scout_forward", "scout_backward")
        return {"updates": float(self.updates), **{n: getattr(self, n) for n in names}}

    def as_dict(self) -> dict[str, int | float]:
        """All of it."""
        return {
            **self.counts(),
            "seconds": self.seconds,
            "scout_seconds": self.scout_seconds,
            "peak_mib": self.peak_mib,
        }


class Tap:
    """Remembers what entered a module in the last forward pass: the penultimate features, if the module is the head."""

    def __init__(self, head: nn.Module) -> None:
        self._value: Tensor | None = None
        self._handle = head.register_forward_pre_hook(cast(Hook, self._remember))

    @no_type_check  # it is traced by torch.compile, as a check of types cannot be
    def _remember(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._value = inputs[0]

    def take(self) -> Tensor:
        """The features of the last pass [n, d], detached; they are forgotten here."""
        assert self._value is not None, "no forward pass went through the head"
        value, self._value = self._value.detach(), None
        return value.flatten(1)

    def remove(self) -> None:
        """Leave the module as it was found."""
        self._handle.remove()
        self._value = None


def chunks(values: Tensor, size: int) -> list[Tensor]:
    """A tensor in pieces of at most `size` along its first dimension."""
    return [values[i : i + size] for i in range(0, len(values), size)]


def mean(losses: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """The plain objective of a validation batch."""
    return losses.mean()


def effective_sample_size(weights: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """(sum w)^2 / (n sum w^2), as a share of n in (0, 1]; 1 where all weights are equal."""
    return weights.sum().square() / (len(weights) * weights.square().sum()).clamp_min(torch.finfo(weights.dtype).tiny)
