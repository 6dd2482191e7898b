"""The jobs of a comparison: one method on one seed each, run one after the other in this process.

Needs no torch until a job runs: what trains and what loads data are named, not imported.
"""

import dataclasses
import importlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeGuard

from molere import errors
from molere.errors import DataError, MolereError
from molere.storage import files

State = Literal["kept", "running", "done", "failed"]
Event = Mapping[str, Any]  # what an observer of a run is told; numbers and short texts
EVERY = 0.2  # seconds between two reports of progress


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a comparison. folder: where it is kept, and continued from; None: nowhere.

    train: settings of training over the plan's. trial: its number, if it is one of a search; it is then tested on the
    selection data. tuned: what a search chose for this run, to be kept with its result.
    """

    label: str
    method: Any  # a spec, or a Method, which is not imported here
    seed: int
    folder: Path | None = None
    train: Mapping[str, Any] = field(default_factory=dict[str, Any])
    trial: int | None = None
    tuned: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """What all jobs of a comparison share. fit, load, store, report: `module:name`, imported where they are used."""

    data: Any  # a name, a mapping of arguments of `load`, or a Data
    model: Any = None  # as `fit` takes it
    recipe: Any = None  # as `fit` takes it
    cache: Path | None = None  # folder; none: in memory
    resume: bool = True
    force: bool = False
    fit: str = "molere.run:fit"
    load: str = "molere.data.sources:load"
    store: str = "molere.storage:ContentCache"
    report: str = "molere.show.reports:write_report"
    track: tuple[Any, ...] = ()  # names of trackers, or Trackers


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job has no result. kind: the name of the exception's class; fatal: no other job can do better."""

    message: str
    kind: str = "MolereError"
    exit_code: int = 1
    details: str = ""
    fatal: bool = False

    @classmethod
    def of(cls, error: BaseException, *, fatal: bool = False) -> "Failure":
        """The failure that an exception means; of a MolereError only its own sentence."""
        known = isinstance(error, MolereError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        return cls(
            message=" ".join(message.split()),
            kind=type(error).__name__,
            exit_code=error.exit_code if known else 1,
            details="".join(traceback.format_exception(error)),
            fatal=fatal,
        )

    def throw(self) -> NoReturn:
        """Raise it again, as the MolereError it was, or as a plain one."""
        error = getattr(errors, self.kind, MolereError)(self.message)
        error.add_note(self.details)
        raise error


@dataclass(frozen=True, slots=True)
class Progress:
    """News of one job, for whoever draws bars. metrics: the latest; fraction: of the job, in [0, 1]."""

    job: Job
    state: State
    fraction: float
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one job: its result as stored, or why there is none."""

    job: Job
    result: dict[str, Any] | None = None  # Any: JSON
    failure: Failure | None = None


Emit = Callable[[Progress | Outcome], None]


class Bench:
    """Runs jobs one by one and keeps what they share: the data of a seed, and a cache of scouts."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._fit, self._load = imported(plan.fit), imported(plan.load)
        self._cache = imported(plan.store)(plan.cache)
        self._loaded: tuple[int, Any] | None = None  # a Data, which is not imported here

    def run(self, job: Job, emit: Emit) -> Outcome:
        """Train and evaluate; an exception becomes the outcome's failure, so that the next job can go on."""
        try:
            data = self._data(job.seed)
            data = data if job.trial is None else _without_tests(data)
        except Exception as error:
            return Outcome(job, failure=Failure.of(error, fatal=True))
        try:
            result = self._fit(
                job.method,
                data=data,
                model=self.plan.model,
                recipe=_recipe(self.plan.recipe, job.train),
                seed=job.seed,
                out=job.folder,
                resume="auto" if self.plan.resume else "never",
                **({"force": True} if self.plan.force else {}),
                cache=self._cache,
                observers=(_observer(job, emit),),
                label=job.label,
                report=False,
                **({"track": self.plan.track} if self.plan.track and job.trial is None else {}),
            ).as_dict()
        except Exception as error:
            return Outcome(job, failure=Failure.of(error))
        result = {**result, "headline": list(data.headline)}
        if job.tuned is not None:
            result["tuned"] = dict(job.tuned)
            if job.folder is not None:
                files.write_json(job.folder / "result.json", result)
        return Outcome(job, result=result)

    def _data(self, seed: int) -> Any:
        """The data of a seed: named data are loaded anew (another split), given data are the same for all."""
        if not isinstance(self.plan.data, str) and not is_mapping(self.plan.data):
            return self.plan.data
        if self._loaded is None or self._loaded[0] != seed:
            self._loaded = None  # free the memory first
            self._loaded = (seed, self._load(**{**load_arguments(self.plan.data), "seed": seed}))
        return self._loaded[1]


def _without_tests(data: Any) -> Any:
    """The data with the selection part as the only test set."""
    if data.select is None:
        raise DataError(f"{data.name} has no selection data to tune on; pass select= when you load it")
    return dataclasses.replace(data, tests={"validation": data.select})


def _recipe(recipe: Any, train: Mapping[str, Any]) -> Any:
    """The recipe of a comparison with other settings of training."""
    if not train:
        return recipe
    if recipe is None or is_mapping(recipe):
        return {**(recipe or {}), **train}
    return dataclasses.replace(recipe, **train)


def run_here(jobs: Iterable[Job], plan: Plan, emit: Emit) -> None:
    """Run jobs one after the other in this process; raises what stops every job, such as missing data."""
    bench = Bench(plan)
    for job in jobs:
        emit(Progress(job, "running", 0.0))
        outcome = bench.run(job, emit)
        if outcome.failure is not None and outcome.failure.fatal:
            outcome.failure.throw()
        emit(outcome)


def load_arguments(data: str | Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `load` for data given by name or as a mapping with a name."""
    given = {"name": data} if isinstance(data, str) else dict(data)
    if "name" not in given:
        raise DataError("the data have no name; give e.g. {'name': 'digits', 'scenario': 'clean'}")
    return {key: value for key, value in given.items() if value is not None}


def is_mapping(thing: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether settings are given as a mapping."""
    return isinstance(thing, Mapping)


def imported(place: str) -> Any:  # whatever stands there
    """The thing at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _observer(job: Job, emit: Emit) -> Callable[[Event], None]:
    """Turns a run's events into progress, at most one each `EVERY` seconds."""
    last = -EVERY

    def observe(event: Event) -> None:
        nonlocal last
        now = time.monotonic()
        if "fraction" in event and now - last >= EVERY:
            last = now
            emit(Progress(job, "running", float(event["fraction"]), dict(event.get("metrics") or {})))

    return observe
