"""Method, the seam on which every method is written; Run, what a method is lent."""

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molere import rng
from molere.bank import Bank
from molere.batches import Batches
from molere.data.pool import Batch, Pool
from molere.errors import ConfigError, StorageError
from molere.learner import Learner
from molere.losses import cross_entropy
from molere.metagrad import gradients
from molere.models import feature_width
from molere.notes import Notes
from molere.optim import Params, make_optimizer
from molere.passes import Passes
from molere.probe import Chooser
from molere.recipe import Recipe
from molere.split import Split, probabilistic_margin, random_part
from molere.steps import Cost, Look, Seen, Taken, chunks, mean

S = TypeVar("S")

EVAL_BATCH = 1024


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

    def __call__(self, run: "Run", wanted: "Sequence[Scouting]") -> "list[Tensor]":
        """Logits of the whole pool [N, c] under each of the models."""
        ...


@dataclass(frozen=True, eq=False)
class Scouting:
    """One first-stage model: the part of the pool it trains on, its share of the epochs, its method (none: ERM)."""

    on: Int[Tensor, " k"]
    epochs: float = 1.0
    method: Method[Any] | None = None


class Run:
    """What the library lends a method: data, classifier, passes, updates, randomness and scouts; nothing more.

    Attributes:
        pool: the labelled examples, addressed by index.
        recipe: how the classifier is trained.
        seed: of all draws of this run.
        classifier: the module being trained, its optimiser and schedule.
        epoch, updates: epochs begun and classifier updates done.
        budget, per_epoch: classifier updates in all and for each epoch.
        cost: passes counted so far.
        notes: what is written down about each example and this epoch.
        chooser: of the estimator of meta-gradients.
        waited: seconds this process spent on scouts.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        recipe: Recipe,
        seed: int,
        classifier: Learner,
        head: nn.Module | None,
        device: torch.device,
        budget: int,
        per_epoch: int,
        batch_size: int,
        scouts: Scouts,
    ) -> None:
        self.pool, self.recipe, self.seed, self.classifier, self.device = pool, recipe, seed, classifier, device
        self.budget, self.per_epoch, self.batch_size = budget, per_epoch, batch_size
        self.epoch, self.updates, self.cost = 0, 0, Cost()
        self.learners: dict[str, Learner] = {"classifier": classifier}
        self.notes, self.chooser = Notes(len(pool), device), Chooser(recipe.estimator)
        self.waited = 0.0
        self._scouts, self._passes = scouts, Passes(classifier, head, recipe, device)
        self._bank: Bank | None = None
        self._batches = Batches(len(pool), seed, device)
        self._augments = recipe.augment and pool.augments

    # ---- randomness and progress

    def rng(self, purpose: str) -> torch.Generator:
        """A generator for one purpose at this update, the same however the run came here."""
        return rng.generator(self.seed, purpose, self.updates)

    def due(self, every: int) -> bool:
        """Whether this update is one of those that come once in `every`, the first of a run included."""
        return self.updates % every == 0

    def passed(self, share: float) -> bool:
        """Whether this share of the budget has been spent, in whole epochs."""
        return self.epoch >= self.epochs_of(share)

    def epochs_of(self, share: float) -> int:
        """This share of the budget in whole epochs, a half counted as one; ConfigError if it is all of them."""
        epochs = self.budget // self.per_epoch
        whole = math.floor(share * epochs + 0.5)
        if whole >= epochs:
            raise ConfigError(f"warmup={share} leaves none of {epochs} epochs; use a smaller one, or more train.epochs")
        return whole

    def ends(self, stretch: int) -> bool:
        """Whether this update is the last of one of those stretches, and not of an epoch, which ends anyway."""
        after = self.updates + 1
        return after % stretch == 0 and after % self.per_epoch != 0

    # ---- batches

    @property
    def split(self) -> Split:
        """The split in force."""
        return self._batches.split

    def resplit(self, split: Split) -> None:
        """Change the split within an epoch, from the next update on."""
        self.use(split, at=self.updates + 1)

    def use(self, split: Split, *, at: int) -> None:
        """Train and validate on this split from update `at` on; both streams of batches begin anew."""
        self._batches.use(split, at=at)
        if len(split.val):
            self.notes.validated(self.split.val)

    def train_batch(self) -> Batch:
        """The training batch of this update: without repetition until the training part is used up."""
        augment = self.rng("augment") if self._augments else None
        return self.pool.batch(self._batches.train(self.updates, self.batch_size), augment=augment)

    def val_batch(self) -> Batch:
        """The next validation batch, cycling through the validation part."""
        augment = self.rng("augment-validation") if self._augments else None
        return self.pool.batch(self._batches.val(self.recipe.val_batch_size or self.batch_size), augment=augment)

    # ---- passes and updates

    def forward(self, batch: Batch) -> Seen:
        """The one training forward of a batch; the step, the weights, the bank and the meta-gradient all share it."""
        stream = rng.key(self.seed, "dropout", self.updates)
        rng.reseed(stream)
        logits, features = self._passes.outputs(batch.x)
        self.cost.forward += len(batch)
        return Seen(batch, logits, cross_entropy(logits, batch.y), features, stream)

    def update(self, seen: Seen, weights: Float[Tensor, " n"] | None = None, *, remember: bool = False) -> Taken:
        """One classifier update on mean(w_i l_i) (weights none: all 1); all-zero weights leave it where it is.

        remember: keep what `look_back` needs.
        """
        w = None if weights is None else weights.detach()
        before = self.classifier.snapshot() if remember else None
        sensitivity = self.classifier.sensitivity() if remember else None
        loss = (seen.losses if w is None else w * seen.losses).mean()
        if w is None or float(w.abs().sum()) > 1e-12:
            self.classifier.step(loss)
        self.cost.backward += len(seen)
        losses = seen.losses.detach()
        self._bank_rows(seen.batch, seen.logits, losses, seen.features)
        self.notes.trained(seen.batch.index, w, loss.detach() if w is None else losses.mean())
        return Taken(seen, w, before, sensitivity)

    def look_back(self, taken: Taken, objective: Callable[[Tensor], Tensor] = mean) -> Look:
        """The next validation batch at the parameters the step has just led to (fused order)."""
        assert taken.before is not None, "update with remember=True first"
        assert taken.sensitivity is not None, "update with remember=True first"
        look, grads = self._validate(None, objective)
        direction = self.classifier.pull_back(taken.sensitivity, grads, before=taken.before)
        return Look(*look, seen=taken.seen, theta=taken.before, direction=direction)

    def look(self, seen: Seen) -> Look:
        """The next validation batch at the present parameters, without a gradient."""
        look, _ = self._validate(None, None)
        return Look(*look, seen=seen, theta={}, direction={})

    def look_ahead(self, seen: Seen, weights: Tensor, objective: Callable[[Tensor], Tensor] = mean) -> Look:
        """The next validation batch at the parameters a step with these weights would lead to (strict order)."""
        loss, leaves = (weights.detach() * seen.losses).mean(), self.classifier.params
        ahead, pull_back = self.classifier.lookahead(gradients(loss, leaves, retain_graph=True))
        look, at_ahead = self._validate({k: t.requires_grad_() for k, t in ahead.items()}, objective)
        self.cost.virtual_backward += len(seen)
        theta = {k: p.detach() for k, p in leaves.items()}
        return Look(*look, seen=seen, theta=theta, direction=pull_back(at_ahead))

    def weight_gradient(self, look: Look) -> Float[Tensor, " n"]:
        """d L_val(theta') / d w_i for the batch that the step was taken on, w as it entered the mean."""
        losses, seen = self._passes.losses_of(look.seen), look.seen
        base = seen.losses.detach() if self._passes.repeatable else None
        spent = self.updates / self.budget
        estimator, choice = self.chooser.choose(losses, look.theta, look.direction, base, spent=spent)
        if choice is not None:
            self.cost.virtual_forward += len(seen) * choice.passes
            self.log(probe_cosine=choice.cosine)
        self.cost.virtual_forward += len(seen) * (estimator.passes + (base is None and estimator.name == "one-sided"))
        return estimator(losses, look.theta, look.direction, base=base) / len(seen)

    def _validate(
        self, theta: Params | None, objective: Callable[[Tensor], Tensor] | None
    ) -> tuple[tuple[Batch, Tensor, Tensor, Tensor], Params]:
        batch, leaves = self.val_batch(), self.classifier.params if theta is None else theta
        stream = rng.key(self.seed, "dropout-validation", self.updates)
        logits, features = self._passes.virtual(batch.x, theta, stream=stream, grad=objective is not None)
        losses = cross_entropy(logits, batch.y)
        self.cost.virtual_forward += len(batch)
        grads: Params = {}
        if objective is not None:
            grads = gradients(objective(losses), leaves)
            self.cost.virtual_backward += len(batch)
        if theta is None:
            self._bank_rows(batch, logits, losses, features)
        return (batch, logits.detach(), losses.detach(), features), grads

    def _bank_rows(self, batch: Batch, logits: Tensor, losses: Tensor, features: Tensor) -> None:
        if self._bank is not None:
            self._bank.write(batch.index, features=features, logits=logits, losses=losses, update=self.updates)

    # ---- what is known of the examples

    @property
    def feature_width(self) -> int:
        """Width d of the penultimate features."""
        return feature_width(self.classifier.model)

    @property
    def bank(self) -> Bank:
        """What the last pass saw of each example; kept from the first time it is asked for."""
        if self._bank is None:
            self._bank = Bank(len(self.pool), self.device)
        return self._bank

    def keep_bank(self) -> None:
        """Have every pass written down from now on; say so in `init`."""
        _ = self.bank

    def drop_bank(self) -> None:
        """Write no more down, and forget what was."""
        self._bank = None

    def refresh_bank(self, since: int) -> None:
        """An exact pass over the examples that the bank has not seen since an update number."""
        stale = self.bank.stale(since)
        for index, logits, features in self.predictions(stale):
            losses = cross_entropy(logits, self.pool.y[index])
            self.bank.write(index, features=features, logits=logits, losses=losses, update=self.updates)

    def predictions(self, index: Int[Tensor, " k"]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(index, logits, features) in chunks: evaluation mode, no augmentation, no gradient, nothing changed."""
        for chunk in chunks(index, EVAL_BATCH):
            logits, features = self._passes.predict(self.pool.batch(chunk).x)
            self.cost.virtual_forward += len(chunk)
            yield chunk, logits, features

    def predict(self, index: Int[Tensor, " k"]) -> tuple[Float[Tensor, "k c"], Float[Tensor, "k d"]]:
        """Logits and penultimate features of some examples, as `predictions`."""
        parts = list(self.predictions(index))
        return torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])

    def mean_loss(self, index: Int[Tensor, " k"]) -> float:
        """Mean cross-entropy of some examples under the present classifier."""
        return float(cross_entropy(self.predict(index)[0], self.pool.y[index]).mean())

    # ---- further networks, scouts, notes

    def learner(
        self, name: str, net: nn.Module, *, optimizer: str = "adam", lr: float, momentum: float = 0.9
    ) -> Learner:
        """A further network with its optimiser, saved and resumed under its name."""
        if name in self.learners:
            raise ConfigError(f"this run has a network named {name!r} already; give the new one another name")
        net = net.to(self.device, torch.float64 if self.recipe.precision == "float64" else None)
        made = make_optimizer(optimizer, net.parameters(), lr=lr, momentum=momentum)
        self.learners[name] = Learner(name, net, made)
        return self.learners[name]

    def scout(self, *wanted: Scouting) -> list[Tensor]:
        """Logits of the whole pool [N, c] under first-stage models with this run's recipe; cached by content."""
        with torch.enable_grad(), rng.seeded(None):
            return self._scouts(self, wanted)

    def crossfit(
        self, folds: int = 5, epochs: float = 0.5, *, method: Method[Any] | None = None
    ) -> Float[Tensor, "N c"]:
        """Out-of-fold logits: each example under the model (none: ERM) of the fold that left it out."""
        order = torch.randperm(len(self.pool), generator=rng.generator(self.seed, "folds")).to(self.device)
        by_class = order[torch.argsort(self.pool.y[order], stable=True)]
        held = [by_class[fold::folds] for fold in range(folds)]
        logits = self.scout(*(Scouting(self._without(part), epochs, method) for part in held))
        out = torch.zeros_like(logits[0])
        for part, found in zip(held, logits, strict=True):
            out[part] = found[part]
        return out

    def _without(self, part: Tensor) -> Tensor:
        """The rest of the pool."""
        rest = torch.ones(len(self.pool), dtype=torch.bool, device=self.device)
        rest[part] = False
        return rest.nonzero().flatten()

    def margins(self, source: str, *, folds: int = 5, epochs: float = 0.5) -> Float[Tensor, " N"]:
        """Margins (eq. 7) of the pool, from a `crossfit` or, as published, a `scout`: ERM without `scout_part`."""
        if source == "crossfit":
            logits = self.crossfit(folds, epochs)
        else:
            (logits,) = self.scout(Scouting(self._without(self.scout_part.to(self.device))))
        return probabilistic_margin(logits.softmax(1), self.pool.y)

    @property
    def scout_part(self) -> Int[Tensor, " k"]:
        """The random tenth that a `scout` of margins does not train on."""
        return random_part(self.pool.y.cpu(), 0.1, rng.generator(self.seed, "scout-part"))

    def note(self, **columns: Float[Tensor, " N"]) -> None:
        """Per-example values that belong into samples.parquet."""
        self.notes.columns.update({k: v.detach() for k, v in columns.items()})

    def log(self, **metrics: float) -> None:
        """Numbers that belong into this epoch's row of metrics."""
        self.notes.logged.update(metrics)

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
