"""Scouts: first-stage models, trained once for the same content and charged to every method that uses them."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from molere.data.view import PoolView
from molere.identity import plain
from molere.method import Method, Run, Scouting
from molere.methods.erm import ERM
from molere.storage import ContentCache
from molere.training import Setup, Training, predict

FORMAT = 2
"""Part of every key: raised when a scout of the same content would come out otherwise."""


class ScoutTrainer:
    """Trains the scouts of one training; a key says all that decides their logits, so runs and processes share them."""

    def __init__(self, setup: Setup, cache: ContentCache) -> None:
        self._setup, self._cache = setup, cache
        self._initial = ""

    def __call__(self, run: Run, wanted: Sequence[Scouting]) -> list[Tensor]:
        """Logits of the whole pool [N, c] under each model; the run is charged what they cost."""
        started = time.perf_counter()
        setups = [self._on(w.on, w.epochs, w.method) for w in wanted]
        keys = [self._key(setup) for setup in setups]
        compute = {key: partial(self._train, setup) for key, setup in zip(keys, setups, strict=True)}
        found = self._cache.get_or_put_all(compute)
        for key in compute:
            paid = [float(c) for c in found[key]["cost"]]
            run.cost.scout_forward += paid[0]
            run.cost.scout_backward += paid[1]
            run.cost.scout_seconds += paid[2]
        run.waited += time.perf_counter() - started
        return [found[key]["logits"].to(run.device) for key in keys]

    def _on(self, on: Tensor, epochs: float, method: Method[Any] | None) -> Setup:
        view = PoolView(self._setup.data.train, on)
        recipe = dataclasses.replace(
            self._setup.recipe,
            epochs=max(1, round(epochs * self._setup.recipe.epochs)),
            batch_size=min(self._setup.recipe.batch_size, len(on)),
        )
        data = dataclasses.replace(self._setup.data, train=view, select=None, tests={"pool": self._setup.data.train})
        return dataclasses.replace(self._setup, method=method or ERM(), data=data, recipe=recipe, label="scout")

    def _key(self, setup: Setup) -> str:
        if not self._initial:
            self._initial = _content(setup)
        said = {**setup.config(), "method": plain(setup.method), "initial": self._initial, "format": FORMAT}
        return json.dumps(said, sort_keys=True, default=str)

    def _train(self, setup: Setup) -> dict[str, Tensor]:
        started = time.perf_counter()
        training = Training(setup, ScoutTrainer(setup, self._cache), None, ())
        training.loop()
        logits = predict(training.run.classifier, self._setup.data.train)
        training.run.close()
        cost = training.run.cost
        forward = cost.forward + cost.virtual_forward + cost.scout_forward + len(logits)
        backward = cost.backward + cost.virtual_backward + cost.scout_backward
        paid = torch.tensor([forward, backward, time.perf_counter() - started], dtype=torch.float64)
        return {"logits": logits.cpu(), "cost": paid}


def _content(setup: Setup) -> str:
    """Hash of the model as it starts: its structure and every tensor in it."""
    model = setup.build()
    digest = hashlib.sha256(repr(model).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
