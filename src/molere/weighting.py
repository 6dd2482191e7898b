"""Weights: how a weight network is built, what it reads, how its scores become weights, and how it learns.

The component that LRW, LRWOpt and the recommended method share. Its network g_phi reads the example itself (`full`),
the classifier's detached penultimate features of the same training pass (`features`), those features as they stood
when weighting began (`frozen`), or two signals, the cross-fitted margin and the present loss (`signals`).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor, nn

from molere import rng
from molere.fields import check_fields
from molere.learner import Learner
from molere.method import Run
from molere.networks import WeightNet, bounded, sigmoid_weights
from molere.steps import Seen


@dataclass(frozen=True, kw_only=True)
class Weights:
    """w_i = exp(c tanh(s_i - mean s)) or sigmoid(s_i), over its batch mean; s_i = g_phi(x_i) or g_phi(x_i, y_i)."""

    network: Literal["features", "full", "frozen", "signals"] = "features"
    """What g_phi reads: the classifier's features, the example, frozen features, or margin and loss."""
    inputs: Literal["x", "xy"] = "x"
    """g_phi(x), or g_phi(x, y) with the label appended before the last layer."""
    output: Literal["bounded", "sigmoid"] = "bounded"
    """From scores to weights, of mean 1 over the batch."""
    c: Annotated[float, Ge(0)] = 0.5
    """Bounded weights differ by a factor of at most exp(2c)."""
    hidden: Annotated[int, Ge(0)] = 64
    """Hidden units of a network on features; 0: linear."""
    optimizer: str = "adam"
    """Of the weight network."""
    lr: Annotated[float, Gt(0)] = 1e-2
    """Its learning rate (beta_2)."""
    scaled: bool = True
    """Divide the gradient by the classifier's lr / n before the optimiser sees it: raw ones are that small."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> Learner:
        """The weight network of a run, named `weigher`."""
        classes = run.pool.num_classes if self.inputs == "xy" else 0
        with rng.seeded(rng.key(run.seed, "weigher")):
            net = self._network(run, classes)
        return run.learner("weigher", net, optimizer=self.optimizer, lr=self.lr)

    def _network(self, run: Run, classes: int) -> nn.Module:
        if self.network == "full":
            return WeightNet.full(run.classifier.model, classes)
        if self.network == "signals":
            return _Signals(WeightNet.on_features(2, self.hidden, classes), run.filled(run.margins("crossfit")))
        head = WeightNet.on_features(run.feature_width, self.hidden, classes)
        return head if self.network == "features" else _Frozen(head, len(run.pool), run.feature_width)

    def __call__(self, run: Run, weigher: Learner, seen: Seen) -> Float[Tensor, " n"]:
        """The weights of a batch, with their graph; mean 1. Frozen features are those at the first call."""
        if isinstance(weigher.model, _Frozen) and not bool(weigher.model.filled):
            weigher.model.fill(run.filled(run.predict(torch.arange(len(run.pool), device=run.device))[1]))
        if self.network == "full":
            run.cost.virtual_forward += len(seen)  # a network of the classifier's size
            scores = weigher(seen.batch.x, seen.batch.y)
        elif self.network == "features":
            scores = weigher(seen.features, seen.batch.y)
        else:
            scores = weigher(seen.batch.index, seen.losses.detach(), seen.batch.y)
        return bounded(scores, self.c) if self.output == "bounded" else sigmoid_weights(scores)

    def learn(self, run: Run, weigher: Learner, w: Float[Tensor, " n"], dw: Float[Tensor, " n"]) -> None:
        """One update of phi along the chain rule through w (eq. 13); dw = d L_val / d w."""
        weigher.descend(w, self.rescaled(run, dw))
        run.cost.virtual_backward += len(w) if self.network == "full" else 0

    def rescaled(self, run: Run, dw: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The gradient over lr / n, if `scaled`; as it is at a learning rate of 0."""
        schedule = run.classifier.schedule
        return dw * (len(dw) / schedule.lr) if self.scaled and schedule is not None and schedule.lr > 0 else dw


class _Frozen(nn.Module):
    """A head over a table of features that was filled once."""

    features: Tensor
    filled: Tensor

    def __init__(self, head: WeightNet, size: int, width: int) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("features", torch.zeros(size, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    def fill(self, features: Tensor) -> None:
        self.features.copy_(features)
        self.filled.fill_(True)

    def forward(self, index: Tensor, losses: Tensor, y: Tensor) -> Tensor:
        return self.head(self.features[index], y)


class _Signals(nn.Module):
    """A head over [cross-fitted margin, present loss]."""

    margins: Tensor

    def __init__(self, head: WeightNet, margins: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("margins", margins.clone())

    def forward(self, index: Tensor, losses: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.stack([self.margins[index], losses], dim=1), y)
