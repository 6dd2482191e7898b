"""What all examples train on: digits with wrong labels, and a few that were checked."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Labelled = tuple[Tensor, Tensor]


def noisy_digits(size: int = 640, wrong: float = 0.3) -> tuple[Labelled, Labelled, Labelled]:
    """(x, y) to train on, 30 % of the labels wrong; 100 checked ones to validate weights on; and a test."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = torch.tensor(x[order], dtype=torch.float32) / 16, torch.tensor(y[order])
    noisy = y.clone()
    flipped = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < wrong
    noisy[flipped] = (noisy[flipped] + 1) % 10
    return (x[:size], noisy[:size]), (x[size : size + 100], y[size : size + 100]), (x[size + 100 :], y[size + 100 :])


def network() -> nn.Module:
    """A small classifier."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@torch.no_grad()
def accuracy(model: nn.Module, test: Labelled) -> float:
    """Share of the test that is right."""
    model.eval()
    return float((model(test[0]).argmax(1) == test[1]).float().mean())
