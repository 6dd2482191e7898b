"""The part of a run that passes examples and updates the classifier, and the bank of what those passes saw."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molere import rng
from molere.bank import Bank
from molere.data.pool import Batch
from molere.losses import clip_factors, cross_entropy
from molere.models import feature_width
from molere.optim import Params, Schedule
from molere.passes import Passes
from molere.rundata import Lent
from molere.runguard import RunGuard
from molere.steps import Products, Seen, Taken, chunks

EVAL_BATCH = 1024

LEAST_WEIGHT = 1e-4
"""Above it, an example's gradient can be had by dividing that of the weighted mean."""


class RunPasses(RunGuard):
    """The classifier: its passes, its updates, and what they saw of each example."""

    def __init__(self, lent: Lent) -> None:
        super().__init__(lent)
        self._passes = Passes(lent.classifier, lent.head, lent.recipe, lent.device, lent.suffix)
        self._bank: Bank | None = None
        self._verified = False
        given: Tensor | None = getattr(lent.pool, "weight", None)  # a pool of the user's own may know of none
        self._given = None if given is None else (given / given.double().mean()).to(lent.device, torch.float32)

    # ---- passes

    def forward(self, batch: Batch, *, remember: bool = False) -> Seen:
        """The one training forward of a batch; the step, the weights, the bank and the meta-gradient all share it.

        remember: keep what a meta-gradient needs of it. NumericsError, with the culprit, for losses that are not
        finite: nothing has learned from them yet.
        """
        stream, self._passed = self._stream(), {"": batch}
        if self._passes.parts > 1:
            return self._forward_in_parts(batch, stream)
        rng.reseed(stream)
        with self._sparing():
            with self._passes.remembering() if remember else nullcontext((None, None)) as (recorded, tape):
                logits, features = self._passes.outputs(batch.x)
                losses = cross_entropy(logits, batch.y)
            self.demand(losses, batch, features=features)
        self.cost.forward += len(batch)
        return Seen(batch, logits, losses, features, stream, recorded, tape)

    def _stream(self) -> int:
        """The key of this update's dropout masks."""
        return rng.key(self.seed, "dropout", self.updates)

    def _forward_in_parts(self, batch: Batch, stream: int) -> Seen:
        """Logits without a graph below them; `update` passes the batch again, part by part."""
        logits, features = self._passes.virtual(batch.x, None, stream=stream, grad=False, training=True)
        losses = cross_entropy(logits.requires_grad_(), batch.y)
        self.demand(losses, batch, features=features)
        self.cost.forward += len(batch)
        return Seen(batch, logits, losses, features, stream)

    def virtual(self, batch: Batch, theta: Params, *, stream: int, grad: bool = True) -> Seen:
        """A pass at other parameters, in the mode of virtual passes; nothing is changed, and no bank sees it.

        stream: key of its dropout masks. grad: whether logits and losses have their graph, down to theta.
        """
        logits, features = self._passes.virtual(batch.x, theta, stream=stream, grad=grad)
        self.cost.virtual_forward += len(batch)
        losses = cross_entropy(logits, batch.y)
        self.demand(losses, batch)
        return Seen(batch, logits, losses, features, stream)

    # ---- updates

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
        self.demand(seen.losses, seen.batch)
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

    # ---- what is known of the examples

    @property
    def schedule(self) -> Schedule:
        """The classifier's schedule."""
        assert self.classifier.schedule is not None, "a classifier has a schedule"
        return self.classifier.schedule

    @property
    def lr(self) -> float:
        """The classifier's learning rate at this update."""
        return self.schedule.lr

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
        losses = cross_entropy(self.predict(index)[0], self.pool.y[index])
        return float(losses[self.rankable(losses, index)].mean())

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

    def _bank_rows(self, batch: Batch, logits: Tensor, losses: Tensor, features: Tensor) -> None:
        if self._bank is not None:
            self._bank.write(batch.index, features=features, logits=logits, losses=losses, update=self.updates)
