"""fit: train one classifier by one method, with everything it leaves behind."""

import contextlib
import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from molere import registry, rng, settings
from molere.adapters import Read, made_of, reading
from molere.data import sources
from molere.data.pool import Data
from molere.data.repeats import repeated
from molere.errors import ConfigError, DataError, StorageError
from molere.fields import build as build_settings
from molere.fields import refuse
from molere.meter import Meter
from molere.method import Method
from molere.models import build
from molere.models.weights import load_weights
from molere.opening import Setup, device_of
from molere.recipe import Recipe
from molere.result import Result
from molere.scouts import ScoutTrainer
from molere.show import reports
from molere.show.trackers import Tracker, guarded
from molere.show.trackers import check as check_trackers
from molere.steps import Cost
from molere.storage import ContentCache, PeakMemory, RunFolder, environment, write_bytes, write_samples, write_table
from molere.training import Observer, Training

Model = str | nn.Module | Callable[[], nn.Module]


def fit(
    method: str | Method[Any] = "molere",  # Any: of whatever state
    *,
    data: str | Mapping[str, Any] | Data = "digits",
    model: Model | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: Literal["auto", "never"] = "auto",
    force: bool = False,
    cache: ContentCache | None = None,
    observers: Sequence[Observer] = (),
    label: str | None = None,
    report: bool = True,
    track: Sequence[str | Tracker] = (),
    preset: str = "default",
    settings: Mapping[str, object] | None = None,
    logits: Read | None = None,
    progress: bool = False,
) -> Result:
    """Train one classifier by one method; the same arguments give the same bits on a CPU, interrupted or not.

    Args:
        method: a name such as `lrwopt`, `lrw-hard@paper[keep=true]`, or a Method.
        data: a name or arguments of `load`, or a Data.
        model: a name, a factory, or a module, which is copied; none: the data's own default.
        recipe: a Recipe, or settings over the data's own defaults.
        seed: of everything random.
        out: folder for checkpoints, metrics, samples and the result; none: nothing is kept.
        resume: continue from the last checkpoint in `out` (auto), or start over (never).
        force: continue although settings or data are others than those of the run in `out`; the log names them.
        cache: where first-stage models are kept, to be shared between runs.
        observers: called with a mapping for each epoch; they only watch.
        label: the name of this run in tables.
        report: write report.html into `out` at the end.
        track: trackers to be told of each epoch, by name (tensorboard, wandb, mlflow), or objects; what goes wrong in
            one of them does not concern the run.
        preset: `paper` for a method as published; for a method given by name that names no preset itself.
        settings: of a method given by name, as in `{"delta": 0.2}`; those it does not have are refused.
        logits: where the logits are in what a module of yours returns, if it returns more: `lambda out: out[0]`.
        progress: show how far the run is, on standard error.

    Returns:
        The result, with the classifier at the last update.

    Raises:
        ConfigError, DataError, StorageError, NumericsError, ResourceError: one line each, before the first update
        wherever possible.
    """
    check_trackers(track)
    if isinstance(method, str):
        method = _written(method, preset, settings)
    elif preset != "default" or settings:
        raise ConfigError(
            "preset and settings are for a method given by name; a Method has its settings: state them there"
        )
    setup = _setup(method, data, model if logits is None else reading(model, logits), recipe, seed, label)
    if progress:
        with Meter(1, shows=True, bars=sys.stderr.isatty()) as meter:
            return _fit(setup, out, resume, force, cache, (*observers, _drawn(meter)), report, track)
    return _fit(setup, out, resume, force, cache, observers, report, track)


def _written(method: str, preset: str, given: Mapping[str, object] | None) -> str:
    spec = settings.MethodSpec.parse(method)
    refuse(settings.nobodys([spec], given or {}))
    return settings.written(method, preset, given)


def _drawn(meter: Meter) -> Observer:
    def observe(event: Mapping[str, object]) -> None:
        row = cast(Mapping[str, float], event["metrics"])
        meter.update(0, "running", cast(float, event["fraction"]), row, str(event["label"]))

    return observe


def _fit(
    setup: Setup,
    out: str | Path | None,
    resume: Literal["auto", "never"],
    force: bool,
    cache: ContentCache | None,
    observers: Sequence[Observer],
    report: bool,
    track: Sequence[str | Tracker],
) -> Result:
    folder = None if out is None else _claimed(RunFolder(out), setup, resume, force)
    finished = folder is not None and folder.is_done
    watching = [] if finished else guarded(track)
    summary: Mapping[str, float] = {}
    training: Training | None = None
    try:
        with rng.seeded(None), PeakMemory(setup.device) as peak:
            scouts = cache or ContentCache(None if folder is None else folder.path / "cache")
            training = Training(setup, ScoutTrainer(setup, scouts), folder, (*observers, *watching))
            if folder is not None and resume == "auto":
                training.load()
            if folder is not None and not finished:
                folder.log("resumed" if training.run.updates else "started", updates=training.run.updates)
                if not training.run.updates and (counts := repeated(setup.data)):
                    folder.log("repeated", tests=counts)  # test examples that are training examples too
            for tracker in watching:
                place = None if folder is None else folder.path
                tracker.start(f"{setup.label} seed {setup.seed}", setup.config(), place, training.run.updates)
            training.loop()
            result = training.result(peak)
        summary = result.last
        if folder is not None and finished:
            return dataclasses.replace(result, cost=Cost.of(folder.read_json("result.json")["cost"]))
        if folder is not None:
            _write(folder, result)
            _show(folder, result, setup.data, report)
        return result
    except BaseException as error:
        if folder is not None:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(StorageError):  # a full disk, most likely: the error that counts is on its way
                _write_out(folder)
                folder.log(state, error=f"{type(error).__name__}: {error}")
                far = {} if training is None else {"updates": training.run.updates, "of": training.run.budget}
                code = getattr(error, "exit_code", 130 if state == "interrupted" else 1)
                folder.set_status(state, exit_code=code, **far)
        raise
    finally:
        for tracker in watching:
            tracker.finish(summary)
            if tracker.problem and folder is not None:
                folder.log("tracker", problem=tracker.problem)
        if folder is not None:
            folder.release()


def _write_out(folder: RunFolder) -> None:
    """Finish the save in progress; what it fails with is logged, since another error is on its way."""
    try:
        folder.flush()
    except Exception as error:
        folder.log("save failed", error=f"{type(error).__name__}: {error}")


def _claimed(folder: RunFolder, setup: Setup, resume: str, force: bool) -> RunFolder:
    """The folder, if it is free and holds this run or none."""
    folder.claim()
    try:
        _prepare(folder, setup, resume, force)
    except BaseException:
        folder.release()
        raise
    return folder


def _setup(
    method: str | Method[Any],
    data: str | Mapping[str, Any] | Data,
    model: Model | None,
    recipe: Recipe | Mapping[str, Any] | None,
    seed: int,
    label: str | None,
) -> Setup:
    chosen = settings.method_of(method)
    label = label or (method if isinstance(method, str) else type(method).__name__.lower())
    if not isinstance(cast(object, data), str | Mapping | Data):
        given = f"data is a {type(data).__name__}"
        raise ConfigError(f"{given}, expected a name, arguments of load, or a Data; use from_arrays or from_datasets")
    if not isinstance(data, Data):
        arguments: dict[str, Any] = {"seed": seed, **({"name": data} if isinstance(data, str) else data)}
        data = sources.load(**arguments)
    if not isinstance(recipe, Recipe):
        recipe = build_settings(Recipe, {**data.recipe, **(recipe or {})}, "train")
    device = device_of(recipe)
    if recipe.batch_size > len(data.train):
        raise DataError(
            f"batch_size {recipe.batch_size} is larger than the pool of {len(data.train)}; use a smaller one"
        )
    data = _on(device, data)
    model = data.default_model if model is None else registry.paper_model(data.name) if model == "paper" else model
    name = model if isinstance(model, str) else _name(model)
    made = _builder(model, data, recipe, seed)
    return Setup(_overridden(chosen, recipe), data, made, name, recipe, seed, label, device)


def _on(device: torch.device, data: Data) -> Data:
    tests = {name: pool.to(device) for name, pool in data.tests.items()}
    select = None if data.select is None else data.select.to(device)
    return dataclasses.replace(data, train=data.train.to(device), select=select, tests=tests)


def _name(model: nn.Module | Callable[[], nn.Module]) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "model")


def _overridden(method: Method[Any], recipe: Recipe) -> Method[Any]:
    """The recipe's Q and warm-up, where they are set and the method has them."""
    own = {f.name for f in dataclasses.fields(cast(Any, method))} if dataclasses.is_dataclass(method) else set[str]()
    new = {k: v for k, v in (("q", recipe.q), ("warmup", recipe.warmup)) if v is not None and k in own}
    return dataclasses.replace(cast(Any, method), **new) if new else method


def _builder(model: Model, data: Data, recipe: Recipe, seed: int) -> Callable[[], nn.Module]:
    if isinstance(model, str):
        shape = tuple(data.train.batch(torch.zeros(1, dtype=torch.int64)).x.shape[1:])
        more: dict[str, Any] = {"dropout": recipe.dropout, "seed": seed, "weights": recipe.weights}
        return lambda: build(model, num_classes=data.train.num_classes, input_shape=shape, **more)

    def copied() -> nn.Module:
        with rng.seeded(rng.key(seed, "init")):
            made = made_of(model)
        return made if recipe.weights is None else load_weights(made, recipe.weights, type(made).__name__)

    return copied


def _prepare(folder: RunFolder, setup: Setup, resume: str, force: bool) -> None:
    """Write what is to be run; refuse to continue something else."""
    config = json.loads(json.dumps(setup.config()))
    if resume == "never":
        folder.start_over()
    elif (folder.path / "run.json").exists():
        before = folder.read_json("run.json")
        different = sorted(_differences(before, config))
        if different and not force:
            raise StorageError(
                f"{folder.path} holds another run: {'; '.join(different)}. Choose another folder with --out, start "
                "over with --resume never, or go on with --force, which gives up that one configuration made the result"
            )
        if folder.is_done:
            return
        if different:
            folder.log("forced", given_up="one configuration for the whole run", differences=different)
            warnings.warn(f"{folder.path} goes on with other settings: {'; '.join(different)}", stacklevel=4)
    folder.write_json("run.json", config)
    folder.write_json("env.json", environment(setup.device))


def _differences(before: Any, now: Any, where: str = "") -> Iterator[str]:  # Any: JSON
    if isinstance(before, dict) and isinstance(now, dict):
        old, new = cast(dict[str, Any], before), cast(dict[str, Any], now)
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif before != now:
        yield f"{where} ({_shown(cast(object, before))} there, {_shown(cast(object, now))} here)"


def _shown(value: object) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def _write(folder: RunFolder, result: Result) -> None:
    """The files of a finished run; the marker comes last."""
    write_samples(folder.path / "samples.parquet", cast(Mapping[str, Any], result.samples))
    write_table(folder.path / "predictions.parquet", cast(Mapping[str, Any], result.predictions))
    if result.out_of_fold:
        write_samples(folder.path / "out_of_fold.parquet", cast(Mapping[str, Any], result.out_of_fold))
    state = {k: v.detach().cpu().contiguous() for k, v in result.classifier.state_dict().items()}
    write_bytes(folder.path / "model.safetensors", safetensors.torch.save(_untied(state)))
    folder.write_json("result.json", result.as_dict())
    folder.set_status("done", exit_code=0, updates=result.updates, of=result.updates)
    folder.log("done", updates=result.updates, stopped=result.stopped)
    folder.mark_done()


def _show(folder: RunFolder, result: Result, data: Data, report: bool) -> None:
    """What people look at, once all else is safe; a picture that cannot be made is no reason to fail."""
    try:
        reports.keep(folder.path, result.samples, data)
        if report:
            reports.write_report(folder.path)
    except Exception as error:
        folder.log("no report", error=f"{type(error).__name__}: {error}")
        logging.getLogger("molere").warning("no report was written to %s: %s", folder.path, error)


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, so that tied parameters can be written under each of their names."""
    return {k: v.clone() for k, v in state.items()}
