"""The networks beside the classifier: the weight network g and the splitter; and maps from scores to weights.

    s = g(x) or g(x, y)                      [n], any real number
    w = bounded(s, c) or sigmoid_weights(s)  [n], positive, mean 1 over the batch

The mean is held at 1 because a common factor of all weights is only a change of the learning rate.
"""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from molere.errors import ConfigError
from molere.models import feature_width, head_of, replace_head

NO_WEIGHT = 1e-12


def mean_one(weights: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """n w_i / sum_j w_j for w >= 0, differentiable; all zeros if the sum is below 1e-12.

    Equal weights, and the only weight of a batch of one, give exactly 1.
    """
    # Dividing by the largest first changes only the rounding: equal weights become ones, whose sum is exact.
    relative = weights / weights.detach().max().clamp_min(NO_WEIGHT / len(weights))
    scaled = len(weights) * relative / relative.sum().clamp_min(NO_WEIGHT)
    return torch.where(weights.detach().sum() < NO_WEIGHT, torch.zeros_like(weights), scaled)


def is_collapsed(weights: Float[Tensor, " n"]) -> bool:
    """Whether a learned weighting has nothing left to train on: a sum of 0, or most of it on one of eight or more."""
    total, largest = float(weights.detach().sum()), float(weights.detach().max())
    return total <= NO_WEIGHT or (len(weights) >= 8 and largest > 0.5 * total)


def bounded(scores: Float[Tensor, " n"], c: float) -> Float[Tensor, " n"]:
    """w_i = n e_i / sum_j e_j, where e_i = exp(c tanh(s_i - mean s)).

    No two weights of a batch differ by more than a factor exp(2 c); a shift of all scores changes nothing.
    """
    return mean_one(torch.exp(c * torch.tanh(scores - scores.mean())))


def sigmoid_weights(scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """w_i = n sigmoid(s_i) / sum_j sigmoid(s_j); their ratio is not bounded (all s_i < -30: zeros)."""
    return mean_one(torch.sigmoid(scores))


class WeightNet(nn.Module):
    """Scores s = g(x), or g(x, y) if built with `num_classes`: one real number for each example.

    The last layer starts near zero, so that training starts from almost equal weights.
    """

    def __init__(self, body: nn.Module, head: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.body, self.head, self.num_classes = body, head, num_classes
        self.train()

    @classmethod
    def full(cls, model: nn.Module, num_classes: int = 0) -> "WeightNet":
        """A copy of the classifier, present parameters included, with a scalar head in place of its own.

        As in Jain, Suggala, Shenoy 2024: the classifier's backbone plus one fully connected layer.
        The model must end in its head: whatever it does after it would be done to the features here.
        """
        parameter = next(head_of(model)[1].parameters())
        body = replace_head(copy.deepcopy(model), nn.Identity())
        head = _scalar(feature_width(model) + num_classes)
        return cls(body, head.to(parameter.device, parameter.dtype), num_classes)

    @classmethod
    def on_features(cls, width: int, hidden: int = 64, num_classes: int = 0) -> "WeightNet":
        """An MLP on inputs [n, width] that are features already; hidden=0 makes it linear."""
        return cls(nn.Identity(), _with_hidden(width + num_classes, hidden, _scalar), num_classes)

    def train(self, mode: bool = True) -> "WeightNet":
        """As in any module, but a copied classifier stays in eval mode: a score depends on its example alone.

        With batch statistics or dropout, an example would be weighed differently in each batch and each pass.
        """
        super().train(mode)
        self.body.eval()
        for module in self.body.modules():
            if isinstance(module, nn.RNNBase):  # cuDNN differentiates these in train mode only
                module.train(mode)
        return self

    def forward(self, x: Shaped[Tensor, "n *shape"], y: Int[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        return self.head(_with_labels(self.body(x), y, self.num_classes)).squeeze(1)


class Splitter(nn.Module):
    """P(train | x, y) = sigmoid(MLP([features ; onehot(y)])), one hidden ReLU layer; linear if hidden=0.

    On top of the classifier's features (Jain, Suggala, Shenoy 2024); linear in Bao and Barzilay 2022.
    """

    def __init__(self, width: int, num_classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.mlp = _with_hidden(width + num_classes, hidden, lambda width: nn.Linear(width, 1))

    def forward(self, features: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The train_probability of each pair, in [0, 1]; no gradient reaches the features."""
        return torch.sigmoid(self.mlp(_with_labels(features.detach(), y, self.num_classes)).squeeze(1))


class LossNet(nn.Module):
    """V(l) = sigmoid(W_2 relu(W_1 l + b_1) + b_2), from the loss of an example to its weight in (0, 1).

    Meta-Weight-Net (Shu et al., NeurIPS 2019, section 3.1): one hidden layer, torch's own initialisation.
    """

    def __init__(self, hidden: int = 100) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, losses: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The weights; pass the losses detached, so that no gradient goes through them."""
        return torch.sigmoid(self.mlp(losses.unsqueeze(1)).squeeze(1))


class MarginNet(nn.Module):
    """V(m) = sigmoid(MLP(m)), from the margins of an example to its weight in (0, 1); torch's own initialisation."""

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        self.width = width
        self.mlp = _with_hidden(width, hidden, lambda width: nn.Linear(width, 1))

    def forward(self, margins: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """The weights; pass the margins detached. Those of outputs beyond the classes of the data are left out."""
        return torch.sigmoid(self.mlp(margins[:, : self.width]).squeeze(1))


def _scalar(width: int) -> nn.Linear:
    """A layer to one number whose output starts near 0: default weights x 0.01, bias 0."""
    layer = nn.Linear(width, 1)
    with torch.no_grad():
        layer.weight.mul_(0.01)
        layer.bias.zero_()
    return layer


def _with_hidden(width: int, hidden: int, last: Callable[[int], nn.Linear]) -> nn.Module:
    if hidden == 0:
        return last(width)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last(hidden))


def _with_labels(features: Float[Tensor, "n d"], y: Int[Tensor, " n"] | None, num_classes: int) -> Tensor:
    """[features ; onehot(y)], or the features alone if num_classes is 0."""
    if num_classes == 0:
        return features
    if y is None:
        raise ConfigError("this weight network was built with num_classes and needs labels: call it as g(x, y)")
    return torch.cat([features, F.one_hot(y, num_classes).to(features.dtype)], dim=1)
