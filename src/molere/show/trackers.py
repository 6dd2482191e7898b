"""Trackers: TensorBoard, Weights & Biases and MLflow behind one small adapter, none of which can stop a run.

A tracker works in a thread of its own, fed by a queue: what it raises ends the tracking, not the training; one that
hangs is left behind when the run ends. The files of the run, metrics.csv and log.jsonl, are written in any case.
"""

import importlib
import importlib.util
import logging
import math
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from molere import registry
from molere.errors import ConfigError
from molere.names import unknown

Values = Mapping[str, float]
PATIENCE = 10.0
"""Seconds that a tracker is waited for when the run has ended."""
MOST_WAITING = 1000
"""Messages that wait for a slow tracker; more are dropped."""


@runtime_checkable
class Tracker(Protocol):
    """What a tracker does; anything with these three methods is one."""

    def start(self, run: str, settings: Mapping[str, object], folder: Path | None, step: int) -> None:
        """A run begins, or goes on from an update; folder: where it is kept."""
        ...

    def log(self, step: int, values: Values) -> None:
        """The figures of an epoch that ended with this update."""
        ...

    def finish(self, summary: Values) -> None:
        """The run has ended; its test metrics, {} if it failed."""
        ...


class TensorBoard:
    """Scalars for TensorBoard, in `tensorboard/` in the folder of the run."""

    def start(self, run: str, settings: Mapping[str, object], folder: Path | None, step: int) -> None:
        place = Path("molere-runs", "tensorboard", run) if folder is None else folder / "tensorboard"
        made = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = made(str(place), purge_step=step or None)
        self.writer.add_text("settings", "\n".join(f"    {k}: {v}" for k, v in flat(settings).items()))

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, summary: Values) -> None:
        for name, value in summary.items():
            self.writer.add_scalar(f"test/{name}", value)
        self.writer.close()


class WandB:
    """A run of Weights & Biases, in the project that WANDB_PROJECT names, else `molere`."""

    def start(self, run: str, settings: Mapping[str, object], folder: Path | None, step: int) -> None:
        wandb = importlib.import_module("wandb")
        place = None if folder is None else str(folder)
        project = os.environ.get("WANDB_PROJECT", "molere")
        self.run: Any = wandb.init(project=project, name=run, config=flat(settings), dir=place, resume="allow")

    def log(self, step: int, values: Values) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, summary: Values) -> None:
        self.run.summary.update({f"test/{k}": v for k, v in summary.items()})
        self.run.finish()


class MLflow:
    """A run of MLflow, in the experiment `molere`, at the place that MLFLOW_TRACKING_URI names."""

    def start(self, run: str, settings: Mapping[str, object], folder: Path | None, step: int) -> None:
        self.client: Any = importlib.import_module("mlflow").MlflowClient()
        found = self.client.get_experiment_by_name("molere")
        experiment = self.client.create_experiment("molere") if found is None else found.experiment_id
        self.id = self.client.create_run(experiment, run_name=run).info.run_id
        for name, value in flat(settings).items():
            self.client.log_param(self.id, name, str(value)[:500])

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self.client.log_metric(self.id, _safe(name), value, step=step)

    def finish(self, summary: Values) -> None:
        for name, value in summary.items():
            self.client.log_metric(self.id, _safe(f"test/{name}"), value)
        self.client.set_terminated(self.id)


MADE: Mapping[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)


def flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings under dotted names."""
    out = dict[str, object]()
    for key, value in settings.items():
        name = f"{prefix}{key}"
        inner = cast("Mapping[str, object]", value) if isinstance(value, Mapping) else None
        out |= {name: value} if inner is None else flat(inner, f"{name}.")
    return out


class Guarded:
    """A tracker that cannot harm: its calls wait in a queue, are made in a thread, and their errors are only noted.

    problem: what went wrong first, or none.
    """

    def __init__(self, tracker: Tracker, *, patience: float = PATIENCE) -> None:
        self.tracker, self.patience = tracker, patience
        self.problem: str | None = None
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="molere-tracker", daemon=True)
        self._thread.start()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Observe an epoch."""
        row: Mapping[str, Any] = event.get("metrics") or {}
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        step = int(numbers.pop("updates", 0))
        self._put(lambda: self.tracker.log(step, numbers))

    def start(self, run: str, settings: Mapping[str, object], folder: Path | None, step: int) -> None:
        """Begin."""
        self._put(lambda: self.tracker.start(run, settings, folder, step))

    def finish(self, summary: Values) -> None:
        """End, waiting for it a while."""
        known = {k: float(v) for k, v in summary.items() if math.isfinite(v)}
        self._put(lambda: self.tracker.finish(known))
        self._put(None)
        self._thread.join(self.patience)
        if self._thread.is_alive():
            self._failed(f"it did not answer within {self.patience:g} s")

    def _put(self, call: Callable[[], None] | None) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._failed("it is too slow; some figures were dropped")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self.problem is not None:
                continue
            try:
                call()
            except BaseException as error:  # a tracker may even ask the process to end
                self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, reason: str) -> None:
        if self.problem is None:
            self.problem = f"{type(self.tracker).__name__}: {' '.join(reason.split())}; the run goes on without it"
            logging.getLogger("molere").warning("%s", self.problem)


def check(names: Sequence[object]) -> None:
    """ConfigError for a tracker that does not exist, or whose package is not installed."""
    for name in names:
        if not isinstance(name, str):
            continue
        if name not in registry.TRACKERS:
            raise ConfigError(unknown("tracker", name, registry.TRACKERS))
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"tracker {name}: the package is not installed; type: pip install 'molere[{name}]'")


def guarded(trackers: Sequence[str | Tracker]) -> list[Guarded]:
    """Trackers by name, or objects, each behind its guard."""
    check(trackers)
    return [Guarded(MADE[t]() if isinstance(t, str) else t) for t in trackers]
