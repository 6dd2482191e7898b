"""Method, the seam on which every method is written; Run, what a method is lent."""

import abc
import dataclasses
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molere import rng
from molere.data.pool import Batch
from molere.errors import ConfigError, StorageError
from molere.learner import Learner
from molere.optim import make_optimizer
from molere.outcome import Outcome
from molere.rundata import Lent
from molere.runlooks import RunLooks
from molere.split import Split, random_part
from molere.steps import Cost, Taken

S = TypeVar("S")


class Method(abc.ABC, Generic[S]):
    """A way to train a classifier: frozen settings here, all that changes in a state of type S.

    S is a dataclass of Learners, tensors, numbers, strings and None, so that it can be saved and resumed at any update.
    A method never holds a loop, a loader or a device; it asks the run it is lent.
    """

    @abc.abstractmethod
    def init(self, run: "Run") -> S:
        """The state at the start: networks, tables, whatever scouts are needed."""

    @abc.abstractmethod
    def split(self, run: "Run", state: S) -> Split | None:
        """Which examples train and which validate, asked at the start of each epoch; None ends the run."""

    @abc.abstractmethod
    def step(self, run: "Run", state: S, batch: Batch) -> Taken:
        """Exactly one classifier update (`run.update`), and whatever else belongs to it."""


@runtime_checkable
class Scouts(Protocol):
    """Trains first-stage models with the run's own recipe, once for the same content."""

    def __call__(self, run: "Run", wanted: "Sequence[Scouting]") -> "list[Outcome]":
        """What each of the models makes of the whole pool."""
        ...


@dataclass(frozen=True, eq=False)
class Scouting:
    """One first-stage model: the part of the pool it trains on, its share of the epochs, its method (none: ERM)."""

    on: Int[Tensor, " k"]
    epochs: float = 1.0
    method: Method[Any] | None = None
    select: Int[Tensor, " m"] | None = None
    """Examples that choose the epoch, by least mean loss; none: the last epoch."""


class Run(RunLooks):
    """What the library lends a method: data, classifier, passes, updates, randomness and scouts; nothing more.

    Attributes:
        pool: the labelled examples, addressed by index.
        recipe: how the classifier is trained.
        seed: of all draws of this run.
        classifier: the module being trained, its optimiser and schedule.
        head: its last linear layer, which reads the features; none if it has none.
        epoch, updates: epochs begun and classifier updates done.
        budget, per_epoch: classifier updates in all and for each epoch.
        cost: passes counted so far.
        notes: what is written down about each example and this epoch.
        chooser: of the estimator of meta-gradients.
        waited: seconds this process spent on scouts.
    """

    def __init__(self, lent: Lent, scouts: Scouts) -> None:
        super().__init__(lent)
        self.waited = 0.0
        self._scouts = scouts
        self._crossfits: dict[tuple[int, float], Outcome] = {}

    # ---- further networks, scouts, notes

    def learner(
        self,
        name: str,
        net: nn.Module,
        *,
        optimizer: str = "adam",
        lr: float,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float | None = None,
    ) -> Learner:
        """A further network with its optimiser, saved and resumed under its name; no weight decay: the optimiser's."""
        if name in self.learners:
            raise ConfigError(f"this run has a network named {name!r} already; give the new one another name")
        net = net.to(self.device, torch.float64 if self.recipe.precision == "float64" else None)
        settings: dict[str, object] = {} if weight_decay is None else {"weight_decay": weight_decay}
        settings |= {"nesterov": True} if nesterov else {}
        made = make_optimizer(optimizer, net.parameters(), lr=lr, momentum=momentum, arguments=settings)
        self.learners[name] = Learner(name, net, made)
        return self.learners[name]

    def scout(self, *wanted: Scouting) -> list[Outcome]:
        """What first-stage models with this run's recipe make of each example of the pool; cached by content."""
        with torch.enable_grad(), rng.seeded(None):
            return self._scouts(self, wanted)

    def crossfit(self, folds: int = 5, epochs: float = 0.5, *, method: Method[Any] | None = None) -> Outcome:
        """Out of fold: each example under the model (none: ERM) of the fold that left it out."""
        if method is None and (folds, epochs) in self._crossfits:
            return self._crossfits[folds, epochs]
        order = torch.randperm(len(self.pool), generator=rng.generator(self.seed, "folds")).to(self.device)
        by_class = order[torch.argsort(self.pool.y[order], stable=True)]
        held = [by_class[fold::folds] for fold in range(folds)]
        found = self.scout(*(Scouting(self._without(part), epochs, method) for part in held))
        out = Outcome.out_of_fold(found, held)
        if method is None:
            self._crossfits[folds, epochs] = out
        return out

    @property
    def crossfitted(self) -> Outcome | None:
        """Outcomes out of fold under ERM that the method has asked for; none if it has not."""
        return next(iter(self._crossfits.values()), None)

    def _without(self, part: Tensor) -> Tensor:
        """The rest of the pool."""
        rest = torch.ones(len(self.pool), dtype=torch.bool, device=self.device)
        rest[part] = False
        return rest.nonzero().flatten()

    def margins(self, source: str, *, folds: int = 5, epochs: float = 0.5) -> Float[Tensor, " N"]:
        """Margins (eq. 7) of the pool, from a `crossfit` or, as published, a `scout`: ERM without `scout_part`."""
        if source == "crossfit":
            return self.crossfit(folds, epochs).margin
        (found,) = self.scout(Scouting(self._without(self.scout_part.to(self.device))))
        return found.margin

    @property
    def scout_part(self) -> Int[Tensor, " k"]:
        """The random tenth that a `scout` of margins does not train on."""
        return random_part(self.pool.y.cpu(), 0.1, rng.generator(self.seed, "scout-part"))

    @contextmanager
    def as_scout(self) -> Generator[None]:
        """Charge the passes and seconds of the block to scouts; for what a method trains by itself beforehand."""
        before, started = replace(self.cost), time.perf_counter()
        try:
            yield
        finally:
            cost, seconds = self.cost, time.perf_counter() - started
            for way in ("forward", "backward"):
                names = (way, f"virtual_{way}")
                passed = sum(getattr(cost, n) - getattr(before, n) for n in names)
                setattr(cost, f"scout_{way}", getattr(cost, f"scout_{way}") + passed)
                for n in names:
                    setattr(cost, n, getattr(before, n))
            cost.scout_seconds += seconds
            self.waited += seconds

    # ---- for the loop

    def close(self) -> None:
        """Leave the module as it was found."""
        self._passes.close()

    def state_dict(self) -> dict[str, Any]:  # Any: nested plain data and tensors
        """All that changes, by name."""
        return {
            "epoch": self.epoch,
            "updates": self.updates,
            "batches": self._batches.state_dict(),
            "learners": {k: v.state_dict() for k, v in self.learners.items()},
            "notes": self.notes.state_dict(),
            "chooser": self.chooser.state_dict(),
            "bank": None if self._bank is None else self._bank.state_dict(),
            "cost": self.cost.as_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Undo `state_dict`; the method's `init` has made the learners before."""
        self.epoch, self.updates = state["epoch"], state["updates"]
        self._batches.load_state_dict(state["batches"])
        if late := sorted(set(state["learners"]) ^ set(self.learners)):
            raise StorageError(f"init makes other networks than were saved ({late[0]!r}); make every network in init")
        for name, saved in state["learners"].items():
            self.learners[name].load_state_dict(saved)
        self.notes.load_state_dict(state["notes"])
        self.chooser.load_state_dict(state["chooser"])
        if state["bank"] is None:
            self.drop_bank()
        else:
            self.bank.load_state_dict(state["bank"])
        spent = self.cost.scout_seconds
        self.cost = Cost.of(state["cost"])
        self.cost.scout_seconds = max(spent, self.cost.scout_seconds)


def state_of(state: object) -> dict[str, Any]:  # Any: plain data and tensors
    """A method's state without its learners, which the run saves under their names."""
    if state is None:
        return {}
    values = {f.name: getattr(state, f.name) for f in dataclasses.fields(cast(Any, state))}
    return {k: v for k, v in values.items() if not isinstance(v, Learner)}


def restore(state: object, saved: Mapping[str, Any]) -> None:  # Any: as above
    """Put saved values back, tensors on the device that `init` chose for them."""
    for name, value in saved.items():
        made = getattr(state, name)
        if isinstance(value, Tensor):
            value = value.to(made.device if isinstance(made, Tensor) else value.device, copy=True)
        if not isinstance(made, Learner):
            setattr(state, name, value)
