"""Trackers are told what happens, and nothing that they do can stop a run."""

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from molere import fit
from molere.compare import compare
from molere.data.pool import Data
from molere.data.sources import from_arrays
from molere.errors import ConfigError
from molere.experiment import experiment
from molere.show import trackers
from molere.show.trackers import Guarded, guarded


def points() -> Data:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2
    x[:, 0] += 3 * y
    return from_arrays(x[:40], y[:40], x[40:], y[40:])


RECIPE = {"epochs": 2, "batch_size": 12}


class Diary:
    """A tracker that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def start(self, run: str, settings: Mapping[str, object], folder: Path | None, step: int) -> None:
        self.told.append(("start", run, dict(settings), folder, step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append(("log", step, dict(values)))

    def finish(self, summary: Mapping[str, float]) -> None:
        self.told.append(("finish", dict(summary)))


class Failing(Diary):
    """A tracker that raises in one of its calls."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__()
        self.where, self.error = where, error

    def _raise(self, where: str) -> None:
        if where == self.where:
            raise self.error

    def start(self, *arguments: Any) -> None:
        self._raise("start")

    def log(self, *arguments: Any) -> None:
        self._raise("log")

    def finish(self, *arguments: Any) -> None:
        self._raise("finish")


def test_a_tracker_is_told_the_run_its_epochs_and_its_end() -> None:
    diary = Diary()
    result = fit("erm", data=points(), recipe=RECIPE, track=[diary])
    first, *epochs, last = diary.told
    assert first[:2] == ("start", "erm seed 0")
    assert first[2]["train"]["epochs"] == 2
    assert [e[1] for e in epochs] == [row["updates"] for row in result.history]
    assert epochs[0][2]["train_loss"] == result.history[0]["train_loss"]
    assert last == ("finish", dict(result.last))


ERRORS = [ConnectionError("no network"), KeyError("x"), SystemExit(3), KeyboardInterrupt(), MemoryError()]


@pytest.mark.faults
@pytest.mark.parametrize("where", ["start", "log", "finish"])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_run_goes_on_without_a_tracker_that_fails(
    where: str, error: BaseException, tmp_path: Path, caplog: pytest.LogCaptureFixture, row: Any
) -> None:
    plain = fit("erm", data=points(), recipe=RECIPE)
    result = fit("erm", data=points(), recipe=RECIPE, track=[Failing(where, error)], out=tmp_path / "run")
    assert result.last == plain.last
    assert result.history == plain.history
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    problem = next(e["problem"] for e in events if e["event"] == "tracker")
    assert problem.startswith(f"Failing: {type(error).__name__}")
    assert caplog.text.count("the run goes on without it") == 1
    row("O3", 1, 1)


@pytest.mark.faults
@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_run_goes_on_when_a_tracker_does_not_answer(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Any
) -> None:
    forever, hanging = threading.Event(), Diary()
    setattr(hanging, where, lambda *arguments: forever.wait(60) and None)
    monkeypatch.setattr("molere.run.guarded", lambda given: [Guarded(one, patience=0.2) for one in given])
    plain = fit("erm", data=points(), recipe=RECIPE)
    begun = time.monotonic()
    result = fit("erm", data=points(), recipe=RECIPE, track=[hanging], out=tmp_path / "run")
    forever.set()
    assert time.monotonic() - begun < 50
    assert result.last == plain.last
    assert "did not answer within 0.2 s" in (tmp_path / "run" / "log.jsonl").read_text()
    row("O3", 1, 1)


@pytest.mark.faults
def test_a_tracker_that_hangs_is_left_behind(row: Any) -> None:
    forever = threading.Event()
    hanging = Diary()
    hanging.log = lambda step, values: forever.wait(60) and None  # type: ignore[method-assign]
    guard = Guarded(hanging, patience=0.2)
    guard.start("run", {}, None, 0)
    begun = time.monotonic()
    for step in range(5):
        guard({"metrics": {"updates": step, "train_loss": 1.0}})
    guard.finish({})
    assert time.monotonic() - begun < 5
    assert guard.problem is not None
    assert "did not answer within 0.2 s" in guard.problem
    forever.set()
    row("O3", 1, 1)


@pytest.mark.faults
def test_a_tracker_that_is_too_slow_loses_figures_and_keeps_no_run_waiting(
    monkeypatch: pytest.MonkeyPatch, row: Any
) -> None:
    monkeypatch.setattr(trackers, "MOST_WAITING", 3)
    slow, gate = Diary(), threading.Event()
    slow.start = lambda *arguments: gate.wait(60) and None  # type: ignore[method-assign]
    guard = Guarded(slow, patience=0.2)
    guard.start("run", {}, None, 0)
    for step in range(10):
        guard({"metrics": {"updates": step, "train_loss": 1.0}})
    assert guard.problem is not None
    assert "too slow" in guard.problem
    gate.set()
    row("O3", 1, 1)


def test_what_is_no_finite_number_is_not_told() -> None:
    diary = Diary()
    guard = Guarded(diary)
    guard({"metrics": {"updates": 3.0, "a": float("nan"), "b": 1, "c": "text", "d": None}})
    guard.finish({"x": float("inf"), "y": 2.0})
    assert diary.told == [("log", 3, {"b": 1.0}), ("finish", {"y": 2.0})]


def test_a_run_that_fails_ends_its_trackers_too() -> None:
    diary = Diary()
    with pytest.raises(ZeroDivisionError):
        fit("erm", data=points(), recipe=RECIPE, track=[diary], observers=[lambda event: 1 / 0])
    assert diary.told[-1] == ("finish", {})


def test_every_run_of_a_comparison_is_tracked() -> None:
    diary = Diary()
    compare(["erm", "erm-part"], data=points(), recipe=RECIPE, seeds=2, track=[diary])
    names = [t[1] for t in diary.told if t[0] == "start"]
    assert names == ["erm seed 0", "erm-part seed 0", "erm seed 1", "erm-part seed 1"]


def test_trackers_of_a_comparison_are_checked_before_anything_trains() -> None:
    with pytest.raises(ConfigError, match="unknown tracker 'x'"):
        compare(["erm"], data="digits", track=["x"])
    with pytest.raises(ConfigError, match="jobs=2 needs trackers by name"):
        compare(["erm"], data="digits", jobs=2, track=[Diary()])


def test_unknown_trackers_are_refused_with_a_guess() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        guarded(["tensorbord"])
    with pytest.raises(ConfigError, match="unknown tracker 'x'"):
        experiment({"track": "x"})
    assert experiment({"track": "tensorboard,wandb"}).track == ("tensorboard", "wandb")


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'molere\[wandb\]'"):
        fit("erm", data=points(), recipe=RECIPE, track=["wandb"])


# ---- the adapters, with stand-ins for what they adapt


class Noted:
    """Any object: notes its calls, and gives what it is told to."""

    def __init__(self, calls: list[tuple[Any, ...]], **gives: Any) -> None:
        self.calls, self.gives = calls, gives

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            self.calls.append((name, arguments, more))
            return self.gives.get(name)

        return call


def test_wandb_gets_settings_epochs_and_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[tuple[Any, ...]]()
    run = Noted(calls)
    run.summary = Noted(calls)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Noted(calls, init=run).init))
    tell(trackers.WandB())
    assert [c[0] for c in calls] == ["init", "log", "update", "finish"]
    assert calls[0][2]["config"] == {"a.b": 1}
    assert calls[1] == ("log", ({"loss": 0.5},), {"step": 7})
    assert calls[2][1] == ({"test/accuracy": 0.9},)


def test_mlflow_gets_settings_epochs_and_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[tuple[Any, ...]]()
    made = SimpleNamespace(info=SimpleNamespace(run_id="r"))
    client = Noted(calls, create_run=made, create_experiment="e")
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: client))
    tell(trackers.MLflow())
    assert ("log_param", ("r", "a.b", "1"), {}) in calls
    assert ("log_metric", ("r", "loss", 0.5), {"step": 7}) in calls
    assert calls[-1] == ("set_terminated", ("r",), {})


def tell(tracker: Any) -> None:
    tracker.start("run", {"a": {"b": 1}}, None, 0)
    tracker.log(7, {"loss": 0.5})
    tracker.finish({"accuracy": 0.9})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fit("erm", data=points(), recipe=RECIPE, track=["tensorboard"], out=tmp_path / "run")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    losses = found.Scalars("train_loss")
    assert [e.step for e in losses] == [row["updates"] for row in result.history]
    assert [e.value for e in losses] == pytest.approx([row["train_loss"] for row in result.history])
    assert found.Scalars("test/accuracy")[0].value == pytest.approx(result.last["accuracy"])
