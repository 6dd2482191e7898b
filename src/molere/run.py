"""fit: train one classifier by one method, with everything it leaves behind."""

import copy
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from molere import rng, settings
from molere.adapters import Read, reading
from molere.data import sources
from molere.data.pool import Data
from molere.errors import ConfigError, DataError, StorageError
from molere.fields import build as build_settings
from molere.fields import refuse
from molere.meter import Meter
from molere.method import Method
from molere.models import build
from molere.recipe import Recipe
from molere.result import Result
from molere.scouts import ScoutTrainer
from molere.steps import Cost
from molere.storage import ContentCache, PeakMemory, RunFolder, environment, write_bytes, write_samples
from molere.training import Observer, Setup, Training, device_of

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
    cache: ContentCache | None = None,
    observers: Sequence[Observer] = (),
    label: str | None = None,
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
        cache: where first-stage models are kept, to be shared between runs.
        observers: called with a mapping for each epoch; they only watch.
        label: the name of this run in tables.
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
    if isinstance(method, str):
        method = _written(method, preset, settings)
    elif preset != "default" or settings:
        raise ConfigError(
            "preset and settings are for a method given by name; a Method has its settings: state them there"
        )
    setup = _setup(method, data, model if logits is None else reading(model, logits), recipe, seed, label)
    if progress:
        with Meter(1, shows=True, bars=sys.stderr.isatty()) as meter:
            return _fit(setup, out, resume, cache, (*observers, _drawn(meter)))
    return _fit(setup, out, resume, cache, observers)


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
    cache: ContentCache | None,
    observers: Sequence[Observer],
) -> Result:
    folder = None if out is None else _claimed(RunFolder(out), setup, resume)
    finished = folder is not None and folder.is_done
    try:
        with rng.seeded(None), PeakMemory(setup.device) as peak:
            scouts = cache or ContentCache(None if folder is None else folder.path / "cache")
            training = Training(setup, ScoutTrainer(setup, scouts), folder, observers)
            if folder is not None and resume == "auto":
                training.load()
            if folder is not None and not finished:
                folder.log("resumed" if training.run.updates else "started", updates=training.run.updates)
            training.loop()
            result = training.result(peak)
        if folder is not None and finished:
            return dataclasses.replace(result, cost=Cost.of(folder.read_json("result.json")["cost"]))
        if folder is not None:
            _write(folder, result)
        return result
    except BaseException as error:
        if folder is not None:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            folder.log(state, error=f"{type(error).__name__}: {error}")
            folder.set_status(state, exit_code=getattr(error, "exit_code", 130 if state == "interrupted" else 1))
        raise
    finally:
        if folder is not None:
            folder.release()


def _claimed(folder: RunFolder, setup: Setup, resume: str) -> RunFolder:
    """The folder, if it is free and holds this run or none."""
    folder.claim()
    try:
        _prepare(folder, setup, resume)
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
    chosen = settings.make_method(method) if isinstance(method, str) else method
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
    name = model if isinstance(model, str) else (data.default_model if model is None else _name(model))
    made = _builder(model or data.default_model, data, recipe, seed)
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
        return lambda: build(
            model, num_classes=data.train.num_classes, input_shape=shape, dropout=recipe.dropout, seed=seed
        )

    def copied() -> nn.Module:
        with rng.seeded(rng.key(seed, "init")):
            return copy.deepcopy(model) if isinstance(model, nn.Module) else model()

    return copied


def _prepare(folder: RunFolder, setup: Setup, resume: str) -> None:
    """Write what is to be run; refuse to continue something else."""
    config = json.loads(json.dumps(setup.config()))
    if resume == "never":
        folder.start_over()
    elif (folder.path / "run.json").exists():
        before = folder.read_json("run.json")
        if different := sorted(_differences(before, config)):
            raise StorageError(
                f"{folder.path} holds another run ({', '.join(different)} differ); choose another folder with --out, "
                "or start over with --resume never"
            )
        if folder.is_done:
            return
    folder.write_json("run.json", config)
    folder.write_json("env.json", environment(setup.device))


def _differences(before: Any, now: Any, where: str = "") -> Iterator[str]:  # Any: JSON
    if isinstance(before, dict) and isinstance(now, dict):
        old, new = cast(dict[str, Any], before), cast(dict[str, Any], now)
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif before != now:
        yield where


def _write(folder: RunFolder, result: Result) -> None:
    """The files of a finished run; the marker comes last."""
    write_samples(folder.path / "samples.parquet", cast(Mapping[str, Any], result.samples))
    state = {k: v.detach().cpu().contiguous() for k, v in result.classifier.state_dict().items()}
    write_bytes(folder.path / "model.safetensors", safetensors.torch.save(_untied(state)))
    folder.write_json("result.json", result.as_dict())
    folder.set_status("done", exit_code=0, updates=result.updates, of=result.updates)
    folder.log("done", updates=result.updates, stopped=result.stopped)
    folder.mark_done()


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, so that tied parameters can be written under each of their names."""
    return {k: v.clone() for k, v in state.items()}
