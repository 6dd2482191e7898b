"""fit: train one classifier by one method, with everything it leaves behind."""

import contextlib
import copy
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from molere import rng, settings
from molere.data import sources
from molere.data.pool import Data
from molere.errors import ConfigError, DataError, StorageError
from molere.fields import build as build_settings
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
    method: str | Method[Any],  # Any: of whatever state
    *,
    data: str | Mapping[str, Any] | Data,
    model: Model | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: Literal["auto", "never"] = "auto",
    force: bool = False,
    cache: ContentCache | None = None,
    observers: Sequence[Observer] = (),
    label: str | None = None,
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

    Returns:
        The result, with the classifier at the last update.

    Raises:
        ConfigError, DataError, StorageError, NumericsError, ResourceError: one line each, before the first update
        wherever possible.
    """
    setup = _setup(method, data, model, recipe, seed, label)
    folder = None if out is None else _claimed(RunFolder(out), setup, resume, force)
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
            with contextlib.suppress(StorageError):  # a full disk, most likely: the error that counts is on its way
                _write_out(folder)
                folder.log(state, error=f"{type(error).__name__}: {error}")
                folder.set_status(state, exit_code=getattr(error, "exit_code", 130 if state == "interrupted" else 1))
        raise
    finally:
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
    state = {k: v.detach().cpu().contiguous() for k, v in result.classifier.state_dict().items()}
    write_bytes(folder.path / "model.safetensors", safetensors.torch.save(_untied(state)))
    folder.write_json("result.json", result.as_dict())
    folder.set_status("done", exit_code=0, updates=result.updates, of=result.updates)
    folder.log("done", updates=result.updates, stopped=result.stopped)
    folder.mark_done()


def _untied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, so that tied parameters can be written under each of their names."""
    return {k: v.clone() for k, v in state.items()}
