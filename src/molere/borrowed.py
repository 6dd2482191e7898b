"""A run on somebody else's module and optimiser: methods work as in `fit`, and the update is left to the owner.

What `run.update` would do is handed out instead: the weights, and the gradient of the logits where a method follows
that. A method that looks back at the step it has taken is shown the step that the optimiser would take, which is the
same one if the owner takes it.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molere import rng
from molere.bank import Bank
from molere.data.pool import Batch, Device
from molere.errors import ConfigError
from molere.guard import listed
from molere.losses import cross_entropy
from molere.method import Run, Scouting
from molere.optim import Params, Schedule
from molere.outcome import Outcome
from molere.steps import Look, Objective, Seen, Taken, Tap, mean


@dataclass(frozen=True)
class Handed:
    """What a method wants of the update: weights in the mean of the losses, or a gradient of the logits."""

    seen: Seen
    weights: Float[Tensor, " n"] | None
    along: Float[Tensor, "n c"] | None


class Validation(Protocol):
    """Where validation batches come from."""

    def __call__(self, size: int) -> Batch:
        """The next one; at most this many examples, where that can be chosen."""
        ...


class Theirs(Schedule):
    """The learning rate that the owner's loop sets."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def at(self, update: int) -> None:
        """Nothing: it is the owner's business."""

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: object) -> None:
        """Nothing was remembered."""


class StreamBatch(Batch):
    """Examples that come and go: they have no position, and a method that asks for it is told what it takes.

    places: where they stand in the owner's validation data, if they are from there and it is known [n].
    """

    __slots__ = ("places",)

    places: Int[Tensor, " n"] | None

    def __init__(self, x: Tensor, y: Tensor, group: Tensor | None = None, places: Tensor | None = None) -> None:
        for name, value in (("x", x), ("y", y), ("group", group), ("places", places)):
            object.__setattr__(self, name, value)

    @property
    def index(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Not known."""
        without_data("it keeps something for each training example")


class Stream:
    """The pool of a loop whose examples come and go: of one validating and one training place, and no content."""

    def __init__(self, num_classes: int, device: Device) -> None:
        self.y = torch.arange(2, device=device)
        self.num_classes = num_classes
        self.group: Tensor | None = None
        self.clean_y: Tensor | None = None
        self.ids: npt.NDArray[np.generic] | None = None

    def __len__(self) -> int:
        return 2

    @property
    def augments(self) -> bool:
        """Never."""
        return False

    def batch(self, index: Tensor, *, augment: torch.Generator | None = None) -> Batch:
        """Not here."""
        without_data("it looks at training examples by position")

    def fingerprint(self) -> str:
        """Nothing to tell apart."""
        return "stream"

    def to(self, device: Device) -> "Stream":
        """The same on a device."""
        return Stream(self.num_classes, device)


def without_data(why: str) -> NoReturn:
    """Say that a method cannot work on a stream of examples."""
    how = "pass data=(x, y) and epochs= to Reweighter, and index= at each call"
    raise ConfigError(f"this method needs the training data ({why}): {how}")


class Borrowed(Run):
    """A run whose classifier is updated by its owner.

    Attributes:
        handed: what the method's last step wanted of the update.
        validation: where validation batches come from; none: the pool's validation part.
        offered: the examples of this call.
        passes_itself: whether the training pass is made here, with its graph, and not by the owner.
        micro, micros: which part of an update this is, of how many (gradient accumulation).
        streams: whether examples come and go.
        timed: whether it is known how long the run is.
        unpacks: whether the module takes several tensors.
        began: the update at which an epoch was last begun.
        history: metrics of each epoch, where there is a pool.
    """

    handed: Handed | None = None
    validation: Validation | None = None
    offered: Batch | None = None
    passes_itself = False
    micro: int = 0
    micros: int = 1
    streams = False
    timed = True
    unpacks = False
    began = -1
    history: list[dict[str, float]]
    remedy = "lower the learning rate of your loop, or pass grad_clip= if it clips gradients"

    def ids_of(self, batch: Batch, which: Bool[Tensor, " n"]) -> str:
        """By their ids where they are of the pool; else by their places in the validation data, or in the batch."""
        if not isinstance(batch, StreamBatch):
            return super().ids_of(batch, which)
        at = which.nonzero().flatten().cpu()
        if batch.places is not None:
            return f"{listed(map(int, batch.places.cpu()[at]))} of the validation data"
        offered = batch is self.offered
        return f"{listed(map(int, at))} of the {'' if offered else 'validation '}batch"

    def forget(self) -> None:
        """Hold the owner's batches no longer."""
        self.offered, self.validation, self._passed = None, None, {}

    def positions(self, update: int, count: int) -> Tensor:
        """The training examples of an update, as positions in the pool."""
        return self._batches.train(update, count)

    # ---- what is deferred

    def forward(self, batch: Batch, *, remember: bool = False) -> Seen:
        """The training forward; unless it is made here for the owner, statistics and random states stay."""
        if self.passes_itself:
            return super().forward(batch, remember=remember)
        stream, self._passed = self._stream(), {"": batch}
        with self._passes.remembering() if remember else nullcontext((None, None)) as (recorded, tape):
            logits, features = self._passes.virtual(batch.x, None, stream=stream, grad=True, training=True)
            losses = cross_entropy(logits, batch.y)
        self.demand(losses, batch, features=features)
        self.cost.virtual_forward += len(batch)
        return Seen(batch, logits, losses, features, stream, recorded, tape)

    def update(
        self,
        seen: Seen,
        weights: Float[Tensor, " n"] | None = None,
        *,
        remember: bool = False,
        along: Float[Tensor, "n c"] | None = None,
    ) -> Taken:
        """Hand out what the update is to be; nothing is updated."""
        w = None if weights is None else weights.detach()
        if w is not None:
            self._total(w)
        asked, along = self._with_given(seen, w, along)
        self.handed = Handed(seen, asked, None if along is None else along.detach())
        if not self.streams:
            losses = seen.losses.detach()
            self._bank_rows(seen.batch, seen.logits, losses, seen.features)
            self.notes.trained(seen.batch.index, w, losses.mean())
        return Taken(seen, w)

    def look_back(self, taken: Taken, objective: Objective = mean) -> Look:
        """The next validation batch after the step that the optimiser would take now."""
        w = torch.ones_like(taken.seen.losses) if taken.weights is None else taken.weights
        look = self.look_ahead(taken.seen, w.to(taken.seen.losses.dtype), objective)
        if not self.streams:
            self._bank_rows(look.batch, look.logits, look.losses, look.features)
        return look

    def look(self, seen: Seen, batch: Batch | None = None) -> Look:
        """A validation batch at the present parameters; once the update is handed out, at those it would lead to."""
        if self.handed is None:
            return super().look(seen, batch)
        w = torch.ones_like(seen.losses) if self.handed.weights is None else self.handed.weights
        ahead, _ = self.classifier.lookahead(self._virtual_gradient(seen, (w.detach() * seen.losses).mean()))
        found, _ = self._validate(ahead, None, batch)
        self.cost.virtual_backward += len(seen)
        look = Look(*found, seen=seen, theta={}, direction={})
        if not self.streams:
            self._bank_rows(look.batch, look.logits, look.losses, look.features)
        return look

    def candidates(self, size: int) -> Batch:
        """The examples of this call."""
        assert self.offered is not None, "there is a call"
        return self.offered

    def val_batch(self) -> Batch:
        """From the owner's validation data, or from the pool."""
        if self.validation is None and self.streams:
            raise ConfigError("this method validates its weights: pass val=(x, y) at the call, or to Reweighter")
        if self.validation is None:
            return super().val_batch()
        return self.validation(self.recipe.val_batch_size or self.batch_size)

    # ---- gradient accumulation

    def advance(self) -> None:
        """A call is over, and with the last part of an update the update."""
        self.micro = (self.micro + 1) % self.micros
        if not self.micro:
            self._count()

    def stepped(self) -> None:
        """The owner's optimiser has stepped: an update of fewer parts than were said is over, too."""
        if self.micro:
            self.micro = 0
            self._count()

    def _count(self) -> None:
        self.updates += 1
        self.cost.updates += 1
        if self.updates % self.per_epoch == 0:
            self.epoch += 1
            if not self.streams:
                self.history.append({"epoch": float(self.epoch), **self.notes.row(self.per_epoch * self.micros)})

    def _stream(self) -> int:
        return rng.key(self.seed, "dropout", self.updates, *([self.micro] if self.micro else []))

    def _virtual_gradient(self, seen: Seen, loss: Tensor) -> Params:
        """The gradient of the whole update as far as it is known: what was accumulated, and this part."""
        found = super()._virtual_gradient(seen, loss)
        if self.micros == 1:
            return found
        scale, out = self.classifier.loss_scale, {k: g / self.micros for k, g in found.items()}
        if self.micro:
            held = {k: p.grad for k, p in self.classifier.params.items() if p.grad is not None}
            out = {k: g + held[k] / scale if k in held else g for k, g in out.items()}
        return out

    def weight_gradient(self, look: Look) -> Float[Tensor, " n"]:
        return super().weight_gradient(look) / self.micros

    # ---- what a stream has not

    def epochs_of(self, share: float) -> int:
        if not self.timed and share > 0:
            given = f"this method waits for a share of the run ({share:g})"
            raise ConfigError(f"{given}: pass epochs= and per_epoch= (updates of an epoch), or data= and epochs=")
        return super().epochs_of(share) if self.timed else 0

    def scout(self, *wanted: Scouting) -> list[Outcome]:
        if self.streams:
            without_data("it trains models on them first")
        return super().scout(*wanted)

    def keep_bank(self) -> None:
        if self.streams:
            without_data("it remembers what it saw of them")
        super().keep_bank()

    @property
    def bank(self) -> Bank:
        if self.streams:
            without_data("it remembers what it saw of them")
        return super().bank

    # ---- the module between calls

    def tap(self) -> None:
        """Listen to what enters the head, until `untap`."""
        if self.head is not None:
            self._passes.listen(Tap(self.head))

    def untap(self) -> None:
        """Leave the module as it was."""
        self._passes.close()

    def autocast(self, dtype: torch.dtype | None) -> None:
        """Passes are autocast to this type from now on; none: they are not."""
        self._passes.lower(dtype)
