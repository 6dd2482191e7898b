"""Scouts: first-stage models, trained once for the same content and charged to every method that uses them."""

import dataclasses
import hashlib
import json
import time
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molere.data.view import PoolView
from molere.method import Method, Run
from molere.methods.erm import ERM
from molere.storage import ContentCache
from molere.training import Job, Training, plain, predict

FORMAT = 1
"""Part of every key: raised when a scout of the same content would come out otherwise."""


class ScoutTrainer:
    """Trains scouts of one job; the key of a scout is all that decides its logits, so runs and processes share them."""

    def __init__(self, job: Job, cache: ContentCache) -> None:
        self._job, self._cache = job, cache
        self._initial = ""

    def __call__(
        self, run: Run, *, on: Int[Tensor, " k"], epochs: float, method: Method[Any] | None
    ) -> Float[Tensor, "N c"]:
        """Logits of the whole pool under a model trained on part of it, for a share of the job's epochs."""
        started = time.perf_counter()
        job = self._on(on, epochs, method)
        found = self._cache.get_or_put(self._key(job), lambda: self._train(job))
        forward, backward, seconds = found["cost"].tolist()
        run.cost.scout_forward += forward
        run.cost.scout_backward += backward
        run.cost.scout_seconds += seconds
        run.waited += time.perf_counter() - started
        return found["logits"].to(run.device)

    def _on(self, on: Tensor, epochs: float, method: Method[Any] | None) -> Job:
        view = PoolView(self._job.data.train, on)
        recipe = dataclasses.replace(
            self._job.recipe,
            epochs=max(1, round(epochs * self._job.recipe.epochs)),
            batch_size=min(self._job.recipe.batch_size, len(on)),
        )
        data = dataclasses.replace(self._job.data, train=view, select=None, tests={"pool": self._job.data.train})
        return dataclasses.replace(self._job, method=method or ERM(), data=data, recipe=recipe, label="scout")

    def _key(self, job: Job) -> str:
        if not self._initial:
            self._initial = _content(job)
        said = {**job.config(), "method": plain(job.method), "initial": self._initial, "format": FORMAT}
        return json.dumps(said, sort_keys=True, default=str)

    def _train(self, job: Job) -> dict[str, Tensor]:
        started = time.perf_counter()
        training = Training(job, ScoutTrainer(job, self._cache), None, ())
        training.loop()
        logits = predict(training.run.classifier, self._job.data.train)
        training.run.close()
        cost = training.run.cost
        forward = cost.forward + cost.virtual_forward + cost.scout_forward + len(logits)
        backward = cost.backward + cost.virtual_backward + cost.scout_backward
        paid = torch.tensor([forward, backward, time.perf_counter() - started], dtype=torch.float64)
        return {"logits": logits.cpu(), "cost": paid}


def _content(job: Job) -> str:
    """Hash of the model as it starts: its structure and every tensor in it."""
    model = job.build()
    digest = hashlib.sha256(repr(model).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
