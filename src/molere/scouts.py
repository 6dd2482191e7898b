"""Scouts: first-stage models, trained once for the same content and charged to every method that uses them."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from molere.data.pool import Pool
from molere.data.view import PoolView
from molere.evaluate import logits_of
from molere.identity import plain
from molere.learner import Learner
from molere.method import Run, Scouting
from molere.methods.erm import ERM
from molere.opening import Setup
from molere.outcome import MOST_LOGITS, Outcome
from molere.storage import ContentCache, RunFolder
from molere.training import Training

FORMAT = 2
"""Part of every key: raised when a scout of the same content would come out otherwise."""


class ScoutTrainer:
    """Trains the scouts of one training; runs and processes share them by all that decides them."""

    def __init__(self, setup: Setup, cache: ContentCache) -> None:
        self._setup, self._cache = setup, cache
        self._initial = ""

    def __call__(self, run: Run, wanted: Sequence[Scouting]) -> list[Outcome]:
        """What each model makes of the whole pool; the run is charged what they cost."""
        started = time.perf_counter()
        setups = [self._setup_of(w) for w in wanted]
        keys = [self._key(setup) for setup in setups]
        compute = {key: partial(self._train, setup, key) for key, setup in zip(keys, setups, strict=True)}
        found = self._cache.get_or_put_all(compute)
        for key in compute:
            paid = [float(c) for c in found[key]["cost"]]
            run.cost.scout_forward += paid[0]
            run.cost.scout_backward += paid[1]
            run.cost.scout_seconds += paid[2]
        run.waited += time.perf_counter() - started
        return [_recalled(found[key], self._setup.data.train.y).to(run.device) for key in keys]

    def _setup_of(self, wanted: Scouting) -> Setup:
        pool, recipe = self._setup.data.train, self._setup.recipe
        recipe = dataclasses.replace(
            recipe,
            epochs=max(1, round(wanted.epochs * recipe.epochs)),
            batch_size=min(recipe.batch_size, len(wanted.on)),
            eval_every=1,
            crossfit=None,
        )
        select = None if wanted.select is None else PoolView(pool, wanted.select)
        data = dataclasses.replace(
            self._setup.data, train=PoolView(pool, wanted.on), select=select, tests={"pool": pool}
        )
        return dataclasses.replace(self._setup, method=wanted.method or ERM(), data=data, recipe=recipe, label="scout")

    def _key(self, setup: Setup) -> str:
        if not self._initial:
            self._initial = _content(setup)
        said = {**setup.config(), "method": plain(setup.method), "initial": self._initial, "format": FORMAT}
        if setup.data.select is not None:
            said["select"] = setup.data.select.fingerprint()
        return json.dumps(said, sort_keys=True, default=str)

    def _train(self, setup: Setup, key: str) -> dict[str, Tensor]:
        with self._cache.workshop(key) as folder:
            return self._trained(setup, folder)

    def _trained(self, setup: Setup, folder: RunFolder | None) -> dict[str, Tensor]:
        """Trained from where an interrupted process left it in the folder, if there is one."""
        kept = _LeastLoss()
        training = kept.training = Training(setup, ScoutTrainer(setup, self._cache), folder, (kept,), also=kept)
        if folder is not None:
            training.load()
        training.loop()
        if kept.state is not None:
            training.run.classifier.model.load_state_dict(kept.state)
        outcome = of_pool(training.run.classifier, self._setup.data.train)
        training.run.close()
        cost = training.run.cost
        forward = cost.forward + cost.virtual_forward + cost.scout_forward + kept.passed + len(outcome.loss)
        backward = cost.backward + cost.virtual_backward + cost.scout_backward
        paid = torch.tensor([forward, backward, training.spent()], dtype=torch.float64)
        return {**_noted(outcome), "cost": paid}


def of_pool(classifier: Learner, pool: Pool) -> Outcome:
    """What a classifier makes of a whole pool, in pieces; logits are kept where they are not too many."""
    keep = len(pool) * pool.num_classes <= MOST_LOGITS
    parts = logits_of(classifier, pool)
    return Outcome.joined(Outcome.of(z, pool.y[at].to(z.device), keep=keep) for at, z in parts)


def _noted(outcome: Outcome) -> dict[str, Tensor]:
    """The tensors that say it: the logits where they are kept, all else follows from them."""
    if outcome.logits is not None:
        return {"logits": outcome.logits.cpu()}
    return {"prediction": outcome.prediction.cpu(), "loss": outcome.loss.cpu(), "margin": outcome.margin.cpu()}


def _recalled(found: Mapping[str, Tensor], y: Tensor) -> Outcome:
    """Undo `_noted`."""
    if "logits" in found:
        return Outcome.of(found["logits"], y.cpu(), keep=True)
    return Outcome(found["prediction"], found["loss"], found["margin"])


class _LeastLoss:
    """Keeps the classifier as it was after the epoch of least mean loss on the selection data, if there are any."""

    training: Training

    def __init__(self) -> None:
        self.least, self.passed = math.inf, 0
        self.state: Mapping[str, Tensor] | None = None

    def __call__(self, event: Mapping[str, object]) -> None:
        loss = cast(Mapping[str, float], event["metrics"]).get("select_nll")
        if loss is None:
            return
        assert self.training.setup.data.select is not None, "something was evaluated"
        self.passed += len(self.training.setup.data.select)
        if loss < self.least:
            now = cast(Mapping[str, Tensor], self.training.run.classifier.model.state_dict())
            self.least, self.state = loss, {k: v.detach().clone() for k, v in now.items()}

    def state_dict(self) -> dict[str, object]:
        """What is kept so far."""
        return {"least": self.least, "passed": self.passed, "state": None if self.state is None else dict(self.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: what `state_dict` gave
        """Undo `state_dict`."""
        self.least, self.passed, self.state = state["least"], state["passed"], state["state"]


def _content(setup: Setup) -> str:
    """Hash of the model as it starts: its structure and every tensor in it."""
    model = setup.build()
    digest = hashlib.sha256(repr(model).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
