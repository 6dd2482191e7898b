"""Classifiers for tables and small images, all of one form: head(dropout(features(x)))."""

from math import prod

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Shape = tuple[int, ...]


class Classifier(nn.Module):
    """logits = head(dropout(features(x))): `features` maps to [n, d], the Linear `head` to [n, classes].

    Dropout acts only between the two; in eval mode the input of `head` is exactly `features(x)`.
    """

    def __init__(self, features: nn.Module, width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n classes"]:
        return self.head(self.dropout(self.features(x)))


def linear(shape: Shape, num_classes: int, dropout: float) -> Classifier:
    """Softmax regression on the flattened input."""
    return Classifier(nn.Flatten(), prod(shape), num_classes, dropout)


def mlp(shape: Shape, num_classes: int, dropout: float, width: int = 128) -> Classifier:
    """Two hidden ReLU layers on the flattened input."""
    first, second = nn.Linear(prod(shape), width), nn.Linear(width, width)
    features = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU())
    return Classifier(features, width, num_classes, dropout)


def cnn(shape: Shape, num_classes: int, dropout: float, width: int = 16) -> Classifier:
    """Three 3x3 convolutions with BatchNorm: 16, 32, 64 channels, strides 1, 2, 2; mean over positions."""
    layers = [_conv_bn(shape[0], width), _conv_bn(width, 2 * width, 2), _conv_bn(2 * width, 4 * width, 2)]
    return _initialised(Classifier(nn.Sequential(*layers, *_pool()), 4 * width, num_classes, dropout))


def resnet(shape: Shape, num_classes: int, dropout: float, *, depth: int) -> Classifier:
    """CIFAR ResNet of depth 6n+2: 3 stages of n blocks, 16, 32, 64 channels (He et al. 2016, section 4.2).

    Shortcuts that change shape take every second pixel and pad with zero channels (option A).
    """
    blocks = (depth - 2) // 6
    layers: list[nn.Module] = [_conv_bn(shape[0], 16)]
    before = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            layers.append(BasicBlock(before, width, stride=2 if stage and not block else 1))
            before = width
    return _initialised(Classifier(nn.Sequential(*layers, *_pool()), before, num_classes, dropout))


def wide_resnet(shape: Shape, num_classes: int, dropout: float, *, depth: int, widen: int) -> Classifier:
    """WRN-depth-widen, depth 6n+4 (Zagoruyko and Komodakis 2016, table 1); dropout before the head only."""
    blocks = (depth - 4) // 6
    layers: list[nn.Module] = [_conv(shape[0], 16)]
    before = 16
    for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for block in range(blocks):
            layers.append(PreactivationBlock(before, width, stride=2 if stage and not block else 1))
            before = width
    layers += [nn.BatchNorm2d(before), nn.ReLU(), *_pool()]
    return _initialised(Classifier(nn.Sequential(*layers), before, num_classes, dropout))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))), with the parameter-free shortcut of option A."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv_bn(before, width, stride), _conv(width, width), nn.BatchNorm2d(width))
        self.stride, self.new_channels = stride, width - before

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        before = self.new_channels // 2
        shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(shortcut + self.body(x))


class PreactivationBlock(nn.Module):
    """shortcut + conv(relu(bn(conv(a)))), a = relu(bn(x)); the shortcut is x or a 1x1 convolution of a."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.body = nn.Sequential(_conv_bn(before, width, stride), _conv(width, width))
        changed = before != width or stride != 1
        self.project = nn.Conv2d(before, width, 1, stride, bias=False) if changed else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        a = self.activate(x)
        return (x if self.project is None else self.project(a)) + self.body(a)


def _conv(before: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, width, 3, stride, padding=1, bias=False)


def _conv_bn(before: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(before, width, stride), nn.BatchNorm2d(width), nn.ReLU())


def _pool() -> tuple[nn.Module, nn.Module]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten()


def _initialised(model: Classifier) -> Classifier:
    """Convolutions normal with variance 2 / fan-out (He et al. 2015, eq. 14)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
