"""A training taken one update at a time, and a plain twin of its classifier in float64 to compare it with."""

from typing import Any

import torch
from torch import nn

from molere import run as running
from molere.data.pool import Data
from molere.method import Method
from molere.recipe import Recipe
from molere.scouts import ScoutTrainer
from molere.steps import Taken
from molere.storage import ContentCache
from molere.testing import rare_region
from molere.training import Training
from oracles import SGD, Trainer

PLAIN = {"precision": "float64", "scheduler": "constant", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
"""A recipe whose steps are `RULE`'s."""
RULE = SGD(lr=0.1, momentum=0.9, weight_decay=5e-4)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def begun(method: str | Method[Any], *, data: Data | None = None, model: Any = two_layers, **settings: Any) -> Training:
    """A training before its first update; six updates an epoch."""
    recipe = Recipe(**{"epochs": 4, "batch_size": 16, "device": "cpu", **settings})
    setup = running._setup(method, data or rare_region(), model, recipe, 0, None)
    return Training(setup, ScoutTrainer(setup, ContentCache()), None, ())


def turn(training: Training) -> Taken:
    """One turn of the loop."""
    run, method = training.run, training.setup.method
    if run.updates % run.per_epoch == 0:
        split = method.split(run, training.state)
        assert split is not None
        run.use(split, at=run.updates)
    assert run.classifier.schedule is not None
    run.classifier.schedule.at(run.updates)
    taken = method.step(run, training.state, run.train_batch())
    run.updates += 1
    run.epoch = run.updates // run.per_epoch
    return taken


def twin_of(training: Training) -> Trainer:
    return Trainer(training.run.classifier.model, RULE)


def assert_same_parameters(training: Training, twin: Trainer, tolerance: float = 1e-12) -> None:
    """Parameters and buffers agree to rounding."""
    ours = training.run.classifier.model.state_dict()
    for name, value in {**twin.theta, **twin.fixed}.items():
        torch.testing.assert_close(ours[name], value.to(ours[name]), rtol=0, atol=tolerance)
