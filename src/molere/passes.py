"""Passes: forward passes of the classifier, real ones and virtual ones, with the features that enter its head."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from molere.errors import DataError
from molere.learner import Learner
from molere.losses import cross_entropy
from molere.metagrad import Losses
from molere.optim import Params
from molere.recipe import Recipe
from molere.steps import Seen, Tap


class Passes:
    """Logits and penultimate features of one classifier, in the precision of a recipe.

    A virtual pass leaves parameters, buffers, gradients and the global random state as they were.
    """

    def __init__(self, classifier: Learner, head: nn.Module | None, recipe: Recipe, device: torch.device) -> None:
        self._classifier, self._device = classifier, device
        self._tap = None if head is None else Tap(head)
        self._low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.precision)
        self._evaluating = None if recipe.meta_bn == "batch" else _BatchNorm

    @property
    def repeatable(self) -> bool:
        """Whether a virtual pass at the same parameters gives the training pass's losses."""
        return self._low is None and self._evaluating is None

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

    def virtual(self, x: Tensor, theta: Params | None, *, stream: int, grad: bool) -> tuple[Tensor, Tensor]:
        """As `outputs`, at other parameters (none: its own), in the mode of virtual passes."""
        with self._classifier.at(theta, stream=stream, evaluating=self._evaluating), torch.set_grad_enabled(grad):
            return self.outputs(x)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `outputs`, in evaluation mode and without a gradient."""
        with self._classifier.at(None, evaluating=nn.Module), torch.no_grad():
            return self.outputs(x)

    def losses_of(self, seen: Seen) -> Losses:
        """Theta -> losses of a batch [n], in full precision, with the dropout masks of its training pass; virtual."""

        def losses(theta: Params) -> Tensor:
            with self._classifier.at(theta, stream=seen.stream, evaluating=self._evaluating):
                logits = self._logits(seen.batch.x)
            if self._tap is not None:
                self._tap.take()
            return cross_entropy(logits, seen.batch.y)

        return losses

    def close(self) -> None:
        """Leave the module as it was found."""
        if self._tap is not None:
            self._tap.remove()
