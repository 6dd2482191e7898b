"""The classifiers that the engine benchmark measures, and a problem for each: a state to start from and two batches."""

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from molere import models, rng

LR = 0.05
"""Of the step that is looked through: plain SGD, which every peer can differentiate."""


@dataclass(frozen=True)
class Architecture:
    """A classifier by name; `deep`: one of those that the targets of cost and memory speak of."""

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 32, 32)
    deep: bool = True


@dataclass(frozen=True)
class Problem:
    """One step to look through: a classifier in training, its batch, a validation batch of the same size."""

    model: nn.Module
    x: Tensor
    y: Tensor
    val_x: Tensor
    val_y: Tensor

    def classifier(self) -> nn.Module:
        """A copy of the classifier as it stands."""
        return copy.deepcopy(self.model)

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.x.device


class ViT(nn.Module):
    """ViT-tiny for small images (Dosovitskiy et al. 2021, Touvron et al. 2021): torch's pre-norm encoder layers."""

    def __init__(self, shape: tuple[int, ...], classes: int, *, patch: int, width: int = 192, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(shape[0], width, patch, patch)
        self.first = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, 1 + shape[1] * shape[2] // patch**2, width) * 0.02)
        layer = partial(nn.TransformerEncoderLayer, width, width // 64, 4 * width, 0.0, F.gelu)
        self.blocks = nn.Sequential(*(layer(batch_first=True, norm_first=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images [n, c, h, w]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], dim=1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class FrozenBatchNorm(nn.BatchNorm2d):
    """BatchNorm by its running statistics, also in training."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        """Stays in evaluation mode."""
        return super().train(False)


def frozen(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The module with its BatchNorm in evaluation mode, statistics those of random images."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(32, *shape, generator=generator))
    return _replaced(model).train()


def _replaced(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    if not isinstance(module, nn.BatchNorm2d):
        return module
    twin = FrozenBatchNorm(module.num_features, module.eps)
    twin.load_state_dict(module.state_dict())
    return twin


def _named(name: str, shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> Callable[[], nn.Module]:
    return partial(models.build, name, num_classes=classes, input_shape=shape)


def _architecture(
    title: str, name: str, shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, *, deep: bool = True
) -> Architecture:
    return Architecture(title, _named(name, shape, classes), shape, deep)


def _vit() -> nn.Module:
    with rng.seeded(0):
        return ViT((3, 32, 32), 10, patch=8)


def _convnext() -> nn.Module:
    create = importlib.import_module("timm").create_model
    with rng.seeded(0):
        return cast(nn.Module, create("convnext_atto", num_classes=10))


def _resnet_frozen() -> nn.Module:
    return frozen(_named("resnet32")(), (3, 32, 32))


ARCHITECTURES: Mapping[str, Architecture] = {
    "mlp": _architecture("MLP, 3072-128-128-10", "mlp", deep=False),
    "cnn": _architecture("CNN, 3 convolutions, BatchNorm", "cnn"),
    "resnet32": _architecture("ResNet-32, BatchNorm in train mode", "resnet32"),
    "resnet32-eval": Architecture("ResNet-32, BatchNorm in eval mode", _resnet_frozen),
    "wrn-16-2": _architecture("WRN-16-2", "wrn-16-2"),
    "vit-tiny": Architecture("ViT-tiny, 12 blocks, 16 patches", _vit),
    "convnext-atto": Architecture("ConvNeXt-atto (timm), 64 px", _convnext, (3, 64, 64)),
    "wrn-28-10": _architecture("WRN-28-10", "wrn-28-10", classes=100),
    "resnet50": _architecture("ResNet-50, 224 px", "resnet50", (3, 224, 224), 1000),
    "vit-b-16": _architecture("ViT-B/16, 224 px", "vit_b_16", (3, 224, 224), 1000),
}
FOR_GPU = ("wrn-28-10", "resnet50", "vit-b-16")
"""Measured on a CPU only if asked for."""


def problem_of(architecture: Architecture, batch: int, device: torch.device, steps: int = 3) -> Problem:
    """The classifier after a few steps of ERM; classes are patterns under noise, so that gradients have a direction."""
    model = architecture.build().to(device).train()
    classes = _classes(model, architecture.shape, device)
    generator = torch.Generator().manual_seed(1)
    shown = min(classes, 10)
    patterns = torch.randn(shown, *architecture.shape, generator=generator)
    y = torch.randint(0, shown, ((2 + steps) * batch,), generator=generator)
    x = 0.5 * patterns[y] + torch.randn(len(y), *architecture.shape, generator=generator)
    parts = list(zip(torch.split(x.to(device), batch), torch.split(y.to(device), batch), strict=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for seen, labels in parts[2:]:
        optimizer.zero_grad()
        backward(F.cross_entropy(model(seen), labels))
        optimizer.step()
    optimizer.zero_grad()
    return Problem(model, *parts[0], *parts[1])


def backward(loss: Tensor) -> None:
    """The gradient of a scalar into the parameters."""
    loss.backward()  # pyright: ignore[reportUnknownMemberType]


def _classes(model: nn.Module, shape: tuple[int, ...], device: torch.device) -> int:
    found: Any = copy.deepcopy(model).eval()(torch.zeros(1, *shape, device=device))  # Any: a module returns anything
    return int(found.shape[1])
