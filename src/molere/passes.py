"""Passes: forward passes of the classifier, real ones and virtual ones, with the features that enter its head.

With gradient accumulation a batch goes through in parts, each with its own dropout masks and batch statistics. The
first pass then keeps no graph; gradients come from a second pass part by part, along d objective / d logits.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from molere import rng
from molere.errors import DataError
from molere.ghost import GhostTape
from molere.kernels import full_float32, is_reduced, uncompiled
from molere.learner import Learner
from molere.losses import cross_entropy
from molere.metagrad import Outputs, gradients
from molere.optim import Params
from molere.recipe import Recipe
from molere.steps import Seen, Tap
from molere.suffix import Recorded, Suffix


class Passes:
    """Logits and penultimate features of one classifier, in the precision of a recipe.

    A virtual pass leaves parameters, buffers, gradients and the global random state as they were.
    """

    def __init__(
        self,
        classifier: Learner,
        head: nn.Module | None,
        recipe: Recipe,
        device: torch.device,
        suffix: Suffix | None = None,
    ) -> None:
        self._classifier, self._device = classifier, device
        self._suffix, self._ghost = suffix, recipe.estimator == "ghost"
        self._tap = None if head is None else Tap(head)
        self._low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.precision)
        self._evaluating = None if recipe.meta_bn == "batch" else _BatchNorm
        self.parts = recipe.accumulate

    def listen(self, tap: Tap) -> None:
        """Take the features of passes from here."""
        self._tap = tap

    def lower(self, dtype: torch.dtype | None) -> None:
        """Autocast training passes to this type; none: leave them as they are."""
        self._low = dtype

    @property
    def repeatable(self) -> bool:
        """Whether a virtual pass at the same parameters gives the training pass's losses."""
        return self._low is None and self._evaluating is None and not is_reduced(self._device)

    @property
    def mixed(self) -> bool:
        """Whether training passes are autocast."""
        return self._low is not None

    def pieces(self, n: int, stream: int) -> list[tuple[slice, int]]:
        """The parts that a batch of n goes through in, each with the key of its dropout masks."""
        if self.parts == 1:
            return [(slice(0, n), stream)]
        size = math.ceil(n / self.parts)
        return [(slice(i, i + size), rng.key(stream, "part", i)) for i in range(0, n, size)]

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, c], float32 at least, and what entered the head [n, d], detached (logits, if there is none)."""
        with nullcontext() if self._low is None else torch.autocast(self._device.type, self._low):
            logits = self._logits(x)
        logits = logits if self._low is None else logits.float()
        return logits, logits.detach() if self._tap is None else self._tap.take().to(logits.dtype)

    def _logits(self, x: Tensor) -> Tensor:
        try:
            return self._classifier(x)
        except ValueError as error:
            if len(x) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                "BatchNorm needs two examples and this batch has one: use a larger delta or batch"
            ) from error

    def virtual(
        self, x: Tensor, theta: Params | None, *, stream: int, grad: bool, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As `outputs`, at other parameters (none: its own), in the mode of virtual passes or of training."""
        evaluating = None if training else self._evaluating
        with self._classifier.at(theta, stream=stream, evaluating=evaluating), torch.set_grad_enabled(grad):
            found: list[tuple[Tensor, Tensor]] = []
            for part, key in self.pieces(len(x), stream):
                rng.reseed(key)
                found.append(self.outputs(x[part]))
        if len(found) == 1:
            return found[0]
        logits, features = (torch.cat(column) for column in zip(*found, strict=True))
        return logits, features

    def again(self, x: Tensor, along: Tensor, stream: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits, d objective / d logits) of a batch part by part, each with a graph of its own."""
        for part, key in self.pieces(len(x), stream):
            rng.reseed(key)
            yield self.outputs(x[part])[0], along[part]

    def gradient(
        self, x: Tensor, objective: Callable[[Tensor], Tensor], leaves: Params, theta: Params | None, *, stream: int
    ) -> tuple[Tensor, Tensor, Params]:
        """Logits, features and the gradient of objective(logits) for leaves, in the mode of virtual passes."""
        scale = self._classifier.loss_scale
        if self.parts == 1:
            logits, features = self.virtual(x, theta, stream=stream, grad=True)
            found = gradients(objective(logits) * scale, leaves)
            return logits, features, unscaled(found, scale)
        logits, features = self.virtual(x, theta, stream=stream, grad=False)
        z = logits.requires_grad_()
        with torch.enable_grad():
            along = torch.autograd.grad(objective(z), z)[0]
        with self._classifier.at(theta, stream=stream, evaluating=self._evaluating), torch.enable_grad():
            return z.detach(), features, self._summed(x, along, leaves, stream)

    def gradient_in_training(self, seen: Seen, along: Tensor) -> Params:
        """The gradient along d objective / d logits of a batch that was seen in parts; nothing is changed."""
        with self._classifier.at(None, stream=seen.stream):
            return self._summed(seen.batch.x, along, self._classifier.params, seen.stream)

    def _summed(self, x: Tensor, along: Tensor, leaves: Params, stream: int) -> Params:
        scale, total = self._classifier.loss_scale, {k: torch.zeros_like(p) for k, p in leaves.items()}
        for logits, cotangent in self.again(x, along, stream):
            for k, g in gradients((logits * cotangent).sum() * scale, leaves).items():
                total[k] += g
        return unscaled(total, scale)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `outputs`, in evaluation mode and without a gradient."""
        with self._classifier.at(None, evaluating=nn.Module), torch.no_grad():
            return self.outputs(x)

    def learnt(self, leaves: Params) -> Params:
        """Those of the parameters that meta-gradients run through."""
        return leaves if self._suffix is None else {k: leaves[k] for k in self._suffix.names}

    @contextmanager
    def remembering(self) -> Generator[tuple[Recorded | None, GhostTape | None]]:
        """What the meta-gradient of a pass in the block will need: outputs before the cut, a tape, or neither."""
        with ExitStack() as stack:
            recorded = None if self._suffix is None else stack.enter_context(self._suffix.record())
            leaves = self.learnt(self._classifier.params)
            if not self._ghost:
                yield recorded, None
                return
            stack.enter_context(uncompiled())
            yield recorded, stack.enter_context(GhostTape(leaves))

    def logits_of(self, seen: Seen, rest: Params) -> Outputs:
        """Theta -> logits of a batch [n, c], in full precision, with the dropout masks of its training pass; virtual.

        rest: the parameters that theta leaves out. Blocks before the cut are not run if what they gave was recorded.
        """

        def logits(theta: Params) -> Tensor:
            with ExitStack() as stack:
                if is_reduced(self._device):
                    stack.enter_context(full_float32())
                if self._suffix is not None and seen.recorded is not None:
                    stack.enter_context(self._suffix.replay(seen.recorded))
                stack.enter_context(
                    self._classifier.at({**rest, **theta}, stream=seen.stream, evaluating=self._evaluating)
                )
                found: list[Tensor] = []
                for part, key in self.pieces(len(seen), seen.stream):
                    rng.reseed(key)
                    found.append(self._logits(seen.batch.x[part]))
            if self._tap is not None:
                self._tap.take()
            return found[0] if len(found) == 1 else torch.cat(found)

        return logits

    def losses_of(self, seen: Seen, rest: Params) -> Outputs:
        """Theta -> losses of a batch [n], as `logits_of`."""
        logits = self.logits_of(seen, rest)
        return lambda theta: cross_entropy(logits(theta), seen.batch.y)

    def close(self) -> None:
        """Leave the module as it was found."""
        if self._tap is not None:
            self._tap.remove()


def unscaled(grads: Params, scale: float) -> Params:
    """Gradients of a loss that was multiplied by a scale (float16); all zero if they overflowed."""
    if scale == 1:
        return grads
    finite = all(bool(torch.isfinite(g).all()) for g in grads.values())
    return {k: g / scale if finite else torch.zeros_like(g) for k, g in grads.items()}
