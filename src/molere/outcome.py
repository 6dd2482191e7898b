"""Outcomes: what a classifier makes of each example; for large pools that is all that is kept of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molere.losses import cross_entropy
from molere.split import probabilistic_margin

MOST_LOGITS = 2**23
"""Logits that are kept beside an outcome at most (32 MiB); of more examples and classes only what follows from them."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a classifier makes of each of n examples.

    Three float32 or int64 columns whatever the number of classes: 1.28 million examples of 1,000 classes take 20 MiB,
    their logits 4.8 GiB.
    """

    prediction: Int[Tensor, " n"]
    """The class of the largest logit."""
    loss: Float[Tensor, " n"]
    """Cross-entropy, in nats."""
    margin: Float[Tensor, " n"]
    """p_y - max of the others (eq. 7), in [-1, 1]."""
    logits: Float[Tensor, "n c"] | None = None
    """Where they were asked for, and are not too many (`MOST_LOGITS`)."""

    @classmethod
    def of(cls, logits: Float[Tensor, "n c"], y: Int[Tensor, " n"], *, keep: bool = False) -> "Outcome":
        """Predicted class, cross-entropy and margin; keep: the logits too."""
        margin = probabilistic_margin(logits.softmax(1), y)
        return cls(logits.argmax(1), cross_entropy(logits, y), margin, logits if keep else None)

    @classmethod
    def joined(cls, parts: "Iterable[Outcome]") -> "Outcome":
        """Of several batches, one after the other."""
        given = list(parts)
        logits = [part.logits for part in given if part.logits is not None]
        return cls(
            torch.cat([part.prediction for part in given]),
            torch.cat([part.loss for part in given]),
            torch.cat([part.margin for part in given]),
            torch.cat(logits) if logits else None,
        )

    @classmethod
    def out_of_fold(cls, found: "Sequence[Outcome]", held: Sequence[Int[Tensor, "..."]]) -> "Outcome":
        """Each example as the model sees it that was not trained on it: found[f] at positions held[f]."""
        order = torch.cat(list(held)).argsort()
        return cls.joined(outcome.at(part) for outcome, part in zip(found, held, strict=True)).at(order)

    def at(self, index: Int[Tensor, " k"]) -> "Outcome":
        """Of these examples, in this order."""
        logits = None if self.logits is None else self.logits[index]
        return Outcome(self.prediction[index], self.loss[index], self.margin[index], logits)

    def to(self, device: torch.device) -> "Outcome":
        """The same on a device."""
        logits = None if self.logits is None else self.logits.to(device)
        return Outcome(self.prediction.to(device), self.loss.to(device), self.margin.to(device), logits)
