"""The part of a run that looks ahead: what a step does to the validation loss, and what each example's weight does."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from molere import rng
from molere.data.pool import Batch
from molere.losses import cross_entropy
from molere.metagrad import Outputs, gradients
from molere.optim import Params
from molere.passes import unscaled
from molere.probe import Chooser
from molere.rundata import Lent
from molere.runpasses import RunPasses
from molere.steps import Look, Objective, Risk, Seen, Taken, mean


class RunLooks(RunPasses):
    """Validation batches before, at and after a step, and the gradient that comes back to the weights (eq. 6)."""

    def __init__(self, lent: Lent) -> None:
        super().__init__(lent)
        self.chooser = Chooser(lent.recipe.estimator)

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
        self._passed["validation"] = batch
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
        self.demand(losses, batch, validates=True)
        if theta is None:
            self._bank_rows(batch, logits, losses, features)
        return (batch, logits.detach(), losses.detach(), features), grads


def _value(objective: Objective, batch: Batch, logits: Tensor) -> Tensor:
    """What an objective makes of a validation batch."""
    losses = cross_entropy(logits, batch.y)
    return objective(batch, logits, losses) if isinstance(objective, Risk) else objective(losses)
