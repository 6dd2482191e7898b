"""Method, the seam on which every method is written; Run, what a method is lent."""

import abc
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molere import rng
from molere.bank import Bank
from molere.batches import Batches
from molere.data.pool import Batch, Pool
from molere.errors import ConfigError, NumericsError, StorageError
from molere.guard import blame, culprit
from molere.learner import Learner
from molere.losses import clip_factors, cross_entropy
from molere.metagrad import Outputs, gradients
from molere.models import feature_width
from molere.networks import is_collapsed
from molere.notes import Notes
from molere.optim import Params, make_optimizer
from molere.outcome import Outcome
from molere.passes import Passes, unscaled
from molere.probe import Chooser
from molere.recipe import Recipe
from molere.split import Split, random_part
from molere.steps import Cost, Look, Objective, Products, Risk, Seen, Taken, chunks, mean
from molere.suffix import Suffix

S = TypeVar("S")

EVAL_BATCH = 1024

LEAST_WEIGHT = 1e-4
"""Above it, an example's gradient can be had by dividing that of the weighted mean."""


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


class Run:
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
        suffix: Suffix | None = None,
    ) -> None:
        self.pool, self.recipe, self.seed, self.classifier, self.device = pool, recipe, seed, classifier, device
        self.budget, self.per_epoch, self.batch_size = budget, per_epoch, batch_size
        self.epoch, self.updates, self.cost = 0, 0, Cost()
        self.learners: dict[str, Learner] = {"classifier": classifier}
        flipped = None if pool.clean_y is None else pool.clean_y.to(pool.y.device) != pool.y
        self.notes, self.chooser = Notes(len(pool), device, flipped), Chooser(recipe.estimator)
        self.waited = 0.0
        self.head, self._verified = head, False
        self._scouts, self._passes = scouts, Passes(classifier, head, recipe, device, suffix)
        self._bank: Bank | None = None
        self._batches = Batches(len(pool), seed, device)
        self._augments = recipe.augment and pool.augments
        self._crossfits: dict[tuple[int, float], Outcome] = {}
        given: Tensor | None = getattr(pool, "weight", None)  # a pool of the user's own may know of none
        self._given = None if given is None else (given / given.double().mean()).to(device, torch.float32)

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
        """Train and validate on this split from update `at` on; both streams of batches begin anew.

        They go on where they are if this is the split in force (`run.split` itself).
        """
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

    def examples(self, index: Int[Tensor, " k"], purpose: str) -> Batch:
        """Some examples as they look in training: augmented by this update's draws for a purpose."""
        return self.pool.batch(index, augment=self.rng(purpose) if self._augments else None)

    # ---- passes and updates

    def forward(self, batch: Batch, *, remember: bool = False) -> Seen:
        """The one training forward of a batch; the step, the weights, the bank and the meta-gradient all share it.

        remember: keep what a meta-gradient needs of it.
        """
        stream = self._stream()
        if self._passes.parts > 1:
            return self._forward_in_parts(batch, stream)
        rng.reseed(stream)
        with self._passes.remembering() if remember else nullcontext((None, None)) as (recorded, tape):
            logits, features = self._passes.outputs(batch.x)
            losses = cross_entropy(logits, batch.y)
        self.cost.forward += len(batch)
        return Seen(batch, logits, losses, features, stream, recorded, tape)

    def _stream(self) -> int:
        """The key of this update's dropout masks."""
        return rng.key(self.seed, "dropout", self.updates)

    def _forward_in_parts(self, batch: Batch, stream: int) -> Seen:
        """Logits without a graph below them; `update` passes the batch again, part by part."""
        logits, features = self._passes.virtual(batch.x, None, stream=stream, grad=False, training=True)
        logits.requires_grad_()
        self.cost.forward += len(batch)
        return Seen(batch, logits, cross_entropy(logits, batch.y), features, stream)

    def candidates(self, size: int) -> Batch:
        """`size` training examples at once, to choose an update's batch from; they replace `train_batch` in a run."""
        augment = self.rng("augment") if self._augments else None
        return self.pool.batch(self._batches.train(self.updates, size), augment=augment)

    def update(
        self,
        seen: Seen,
        weights: Float[Tensor, " n"] | None = None,
        *,
        remember: bool = False,
        along: Float[Tensor, "n c"] | None = None,
    ) -> Taken:
        """One classifier update on mean(w_i l_i) (weights none: all 1); all-zero weights leave it where it is.

        Weights that the pool came with, over their mean, multiply them here and in every look.
        remember: keep what `look_back` needs, until the next update. along: d objective / d logits, to be followed
        instead of that mean; the weights are then only written down. Where the recipe clips losses, the weights of the
        largest are 0, and the others grow in proportion.
        """
        self._check(seen)
        w, along = self._with_given(seen, None if weights is None else weights.detach(), along)
        before = self.classifier.remembered() if remember else None
        sensitivity = self.classifier.sensitivity() if remember else None
        products: Products | None = None
        if along is not None or w is None or self._total(w) > 1e-12:
            products = self._step(seen, w, along, remember)
        else:
            products = self._products_from_tape(seen) if remember else None
            self.classifier.stand_still()
        self.cost.backward += len(seen)
        losses = seen.losses.detach()
        self._bank_rows(seen.batch, seen.logits, losses, seen.features)
        self.notes.presented(seen.batch.index, seen.logits.detach().argmax(1) == seen.batch.y)
        self.notes.trained(seen.batch.index, w, losses.mean())
        return Taken(seen, w, before, sensitivity, products)

    def _factors(self, seen: Seen) -> Float[Tensor, " n"] | None:
        """What multiplies the weights of a batch, whatever the method: those the pool came with, and the loss clip."""
        share = self.recipe.loss_clip
        clip = None if share is None else clip_factors(seen.losses, share)
        if self._given is None:
            return clip
        given = self._given[seen.batch.index].to(seen.losses.dtype)
        return given if clip is None else given * clip

    def _with_given(self, seen: Seen, w: Tensor | None, along: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Weights and direction of an update, times the factors that hold for every method."""
        factors = self._factors(seen)
        if factors is None:
            return w, along
        return factors if w is None else w * factors, None if along is None else along * factors.unsqueeze(1)

    def trusted(self, weights: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Learned weights, or equal ones where they are all 0 or one example holds most; `weights_fallback` counts."""
        if not is_collapsed(weights):
            return weights
        self.notes.logged["weights_fallback"] = self.notes.logged.get("weights_fallback", 0.0) + 1
        return torch.ones_like(weights.detach())

    def _check(self, seen: Seen) -> None:
        """NumericsError, with the culprit, for losses that are not finite; on a GPU only where a policy asks."""
        watched = self.device.type != "cuda" or self.recipe.on_nonfinite != "stop"
        if watched and not math.isfinite(float(seen.losses.detach().sum())):
            raise NumericsError(blame(self.learners.values(), self.pool, seen, self.updates))

    def _total(self, w: Tensor) -> float:
        total = float(w.abs().sum())
        if not math.isfinite(total):
            others = {k: v for k, v in self.learners.items() if k != "classifier"}
            where = f"at update {self.updates}{culprit(others)}"
            raise NumericsError(f"a weight is not finite {where}; lower the weight network's lr")
        return total

    def virtual(self, batch: Batch, theta: Params, *, stream: int, grad: bool = True) -> Seen:
        """A pass at other parameters, in the mode of virtual passes; nothing is changed, and no bank sees it.

        stream: key of its dropout masks. grad: whether logits and losses have their graph, down to theta.
        """
        logits, features = self._passes.virtual(batch.x, theta, stream=stream, grad=grad)
        self.cost.virtual_forward += len(batch)
        return Seen(batch, logits, cross_entropy(logits, batch.y), features, stream)

    def _step(self, seen: Seen, w: Tensor | None, along: Tensor | None, remember: bool) -> Products | None:
        """The step of `update`; with a tape, from one backward pass with the products if no weight is 0."""
        classifier, tape = self.classifier, seen.tape if remember else None
        objective = (seen.losses if w is None else w * seen.losses).mean()
        if self._passes.parts > 1:
            along = torch.autograd.grad(objective, seen.logits)[0] if along is None else along
            classifier.descend_parts(self._passes.again(seen.batch.x, along, seen.stream))
            self.cost.forward += len(seen)
        elif tape and along is None and classifier.loss_scale == 1 and (w is None or float(w.min()) > LEAST_WEIGHT):
            self._verify(seen)
            share = torch.full_like(seen.losses.detach(), 1 / len(seen))
            products, grads = tape.pullback_and_gradient(
                seen.losses, share if w is None else w * share, classifier.params
            )
            classifier.follow(grads)
            return products
        else:
            products = self._products_from_tape(seen) if tape else None
            if along is None:
                classifier.step(objective)
            else:
                classifier.descend(seen.logits, along.detach())
            return products
        return None

    def look_back(self, taken: Taken, objective: Objective = mean) -> Look:
        """The next validation batch at the parameters the step has just led to (fused order)."""
        assert taken.before is not None, "update with remember=True first"
        assert taken.sensitivity is not None, "update with remember=True first"
        self.classifier.free_gradients(taken.sensitivity)
        look, grads = self._validate(None, objective)
        direction = self.classifier.pull_back(taken.sensitivity, grads, before=taken.before)
        theta, products = taken.before, taken.products
        return Look(*look, seen=taken.seen, theta=theta, direction=direction, products=products)

    def look(self, seen: Seen, batch: Batch | None = None) -> Look:
        """The next validation batch, or another one, at the present parameters, without a gradient."""
        look, _ = self._validate(None, None, batch)
        return Look(*look, seen=seen, theta={}, direction={})

    def look_here(self, seen: Seen, objective: Objective = mean) -> Look:
        """The next validation batch at the present parameters: the look-ahead of a plain step with weights 0."""
        look, grads = self._validate(None, objective)
        theta = {k: p.detach() for k, p in self.classifier.params.items()}
        rates = self.classifier.rates()
        direction = {k: -rates[k] * g for k, g in grads.items()}
        return Look(*look, seen=seen, theta=theta, direction=direction, products=self._products_from_tape(seen))

    def look_ahead(
        self,
        seen: Seen,
        weights: Tensor,
        objective: Objective = mean,
        *,
        plain: bool = False,
        batch: Batch | None = None,
    ) -> Look:
        """The next validation batch at the parameters a step with these weights would lead to (strict order).

        plain: theta - lr grad, as in most published codes; otherwise the step of the run's own optimiser.
        batch: validates instead of the next one.
        """
        leaves = self.classifier.params
        step = self.classifier.plain_step if plain else self.classifier.lookahead
        factors = self._factors(seen)
        w = weights.detach() if factors is None else weights.detach() * factors
        ahead, pull_back = step(self._virtual_gradient(seen, (w * seen.losses).mean()))
        look, at_ahead = self._validate({k: t.requires_grad_() for k, t in ahead.items()}, objective, batch)
        self.cost.virtual_backward += len(seen)
        theta = {k: p.detach() for k, p in leaves.items()}
        direction, products = pull_back(at_ahead), self._products_from_tape(seen)
        return Look(*look, seen=seen, theta=theta, direction=direction, products=products)

    def look_before(self, seen: Seen, weights: Tensor, objective: Objective = mean, *, order: str) -> Look:
        """Before the step: at the parameters it would lead to (strict), or that it starts from (first-order)."""
        return self.look_here(seen, objective) if order == "first-order" else self.look_ahead(seen, weights, objective)

    def _virtual_gradient(self, seen: Seen, loss: Tensor) -> Params:
        """The gradient of a loss of the training pass, whose graph stays."""
        if self._passes.parts > 1:
            self.cost.virtual_forward += len(seen)
            return self._passes.gradient_in_training(seen, torch.autograd.grad(loss, seen.logits, retain_graph=True)[0])
        scale = self.classifier.loss_scale
        return unscaled(gradients(loss * scale, self.classifier.params, retain_graph=True), scale)

    def weight_gradient(self, look: Look) -> Float[Tensor, " n"]:
        """d L_val(theta') / d w_i for the batch that the step was taken on, w as it entered the mean."""
        if look.products is not None:
            self.cost.virtual_forward += len(look.seen)
            products = look.products(look.direction)
        else:
            products = self._products(look, self._passes.losses_of, look.seen.losses)
        factors = self._factors(look.seen)
        return (products if factors is None else products * factors) / len(look.seen)

    def logit_gradient(self, look: Look) -> Float[Tensor, "n c"]:
        """d z_i / d t, the change of the batch's logits along look.direction: < direction, grad z_ic(theta) >.

        With g_ic = d l_i / d z_ic as the class weights multiply it, d L_val(theta') / d w_ic = g_ic times this, over n.
        """
        found, factors = self._products(look, self._passes.logits_of, look.seen.logits), self._factors(look.seen)
        return found if factors is None else found * factors.unsqueeze(1)

    def _products_from_tape(self, seen: Seen) -> Products | None:
        if seen.tape is None:
            return None
        self._verify(seen)
        self.cost.virtual_backward += len(seen) / 2  # to the activations, not to the parameters
        return seen.tape.pullback(seen.losses, retain_graph=True)

    def _verify(self, seen: Seen) -> None:
        """Once in a process: refuse a module that mixes the examples of a batch where no shape shows it."""
        if seen.tape is not None and not self._verified:
            seen.tape.verify(seen.losses)
            self._verified = True

    def _products(self, look: Look, outputs_of: Callable[[Seen, Params], Outputs], known: Tensor) -> Tensor:
        seen, direction = look.seen, look.direction
        theta = {k: look.theta[k] for k in direction}
        outputs = outputs_of(seen, {k: t for k, t in look.theta.items() if k not in direction})
        base = known.detach() if self._passes.repeatable else None
        spent = self.updates / self.budget
        estimator, choice = self.chooser.choose(
            outputs, theta, direction, base, spent=spent, differences=not self._passes.mixed
        )
        if choice is not None:
            self.cost.virtual_forward += len(seen) * choice.passes * self.recipe.meta_share
            self.log(probe_cosine=choice.cosine)
        passes = estimator.passes + (base is None and estimator.name == "one-sided")
        self.cost.virtual_forward += len(seen) * passes * self.recipe.meta_share
        return estimator(outputs, theta, direction, base=base)

    def _validate(
        self, theta: Params | None, objective: Objective | None, batch: Batch | None = None
    ) -> tuple[tuple[Batch, Tensor, Tensor, Tensor], Params]:
        batch = self.val_batch() if batch is None else batch
        leaves = self._passes.learnt(self.classifier.params if theta is None else theta)
        stream = rng.key(self.seed, "dropout-validation", self.updates)
        self.cost.virtual_forward += len(batch)
        grads: Params = {}
        if objective is None:
            logits, features = self._passes.virtual(batch.x, theta, stream=stream, grad=False)
        else:
            wanted = partial(_value, objective, batch)
            logits, features, grads = self._passes.gradient(batch.x, wanted, leaves, theta, stream=stream)
            self.cost.virtual_forward += len(batch) * (self._passes.parts > 1)
            self.cost.virtual_backward += len(batch) * self.recipe.meta_share
        losses = cross_entropy(logits, batch.y)
        if theta is None:
            self._bank_rows(batch, logits, losses, features)
        return (batch, logits.detach(), losses.detach(), features), grads

    def _bank_rows(self, batch: Batch, logits: Tensor, losses: Tensor, features: Tensor) -> None:
        if self._bank is not None:
            self._bank.write(batch.index, features=features, logits=logits, losses=losses, update=self.updates)

    # ---- what is known of the examples

    @property
    def lr(self) -> float:
        """The classifier's learning rate at this update."""
        assert self.classifier.schedule is not None, "a classifier has a schedule"
        return self.classifier.schedule.lr

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

    def losses(self, batch: Batch, mode: Literal["train", "moving", "eval"] = "train") -> Float[Tensor, " n"]:
        """Losses of a batch at the present parameters, without a gradient.

        train: the mode of training, buffers such as running statistics left alone; moving: they move as in a training
        pass; eval: evaluation mode.
        """
        stream = rng.key(self.seed, "dropout-losses", self.updates)
        if mode == "train":
            logits, _ = self._passes.virtual(batch.x, None, stream=stream, grad=False)
        elif mode == "eval":
            logits, _ = self._passes.predict(batch.x)
        else:
            with rng.seeded(stream), torch.no_grad():
                logits, _ = self._passes.outputs(batch.x)
        self.cost.virtual_forward += len(batch)
        return cross_entropy(logits, batch.y)

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


def _value(objective: Objective, batch: Batch, logits: Tensor) -> Tensor:
    """What an objective makes of a validation batch."""
    losses = cross_entropy(logits, batch.y)
    return objective(batch, logits, losses) if isinstance(objective, Risk) else objective(losses)
