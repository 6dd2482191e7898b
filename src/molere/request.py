"""What a comparison is asked for: read, checked before anything trains, said again as settings. No torch."""

import dataclasses
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal  # Any: what users hand over, and plain settings

from molere import paths, settings
from molere.corruption import scenario_of
from molere.data.decided import digest
from molere.errors import ConfigError
from molere.fields import refuse
from molere.identity import plain
from molere.jobs import is_mapping, load_arguments
from molere.names import one_line, unknown
from molere.settings import MethodSpec


@dataclasses.dataclass(frozen=True)
class Request:
    """A comparison, fully said. methods: label -> spec or Method, in the order of the table's rows."""

    methods: Mapping[str, Any]
    seeds: tuple[int, ...]
    data: Any
    model: Any
    recipe: Any
    tune: int = 0
    """Trials of each method; 0: no tuning."""

    @property
    def is_plain(self) -> bool:
        """Whether all of it is names and settings, so that other processes can be told."""
        named = all(isinstance(m, str) for m in self.methods.values())
        data, model = isinstance(self.data, str) or is_mapping(self.data), isinstance(self.model, str | None)
        return named and data and model and (self.recipe is None or is_mapping(self.recipe))

    def config(self) -> dict[str, Any]:
        """What decides the results, as plain values; `molere -c` reads it if all was names and settings."""
        return {
            "data": _plain_data(self.data),
            "model": plain(self.model),
            "methods": list(self.methods),
            "seeds": list(self.seeds),
            "train": plain(vars(self.recipe) if dataclasses.is_dataclass(self.recipe) else self.recipe or {}),
            **({"tune": self.tune} if self.tune else {}),
        }


def request(
    methods: Sequence[Any], data: Any, model: Any, recipe: Any, seeds: int | Sequence[int], tune: int = 0
) -> Request:
    """Read and check; one ConfigError with a line for each mistake."""
    mistakes = list[str]()
    labelled, numbers = dict[str, Any](), tuple[int, ...]()
    with _collected(mistakes):
        labelled = _labelled(methods)
    with _collected(mistakes):
        numbers = _seeds(seeds)
    for spec in labelled.values():
        if isinstance(spec, str):
            with _collected(mistakes):
                refuse(settings.check_spec(MethodSpec.parse(spec), {}))
    if isinstance(data, str) or is_mapping(data):
        with _collected(mistakes):
            refuse(_of_data(load_arguments(data)))
    if isinstance(model, str):
        with _collected(mistakes):
            settings.check_model(model)
    if is_mapping(recipe):
        mistakes += settings.mistakes_in(recipe, settings.recipe_settings(), "train")
    if type(tune) is not int or tune < 0:
        mistakes.append(f"tune must be a number of trials, 0 for none; got {one_line(tune)}")
    refuse(mistakes)
    return Request(labelled, numbers, data, model, recipe, tune)


@contextmanager
def _collected(mistakes: list[str]) -> Generator[None]:
    try:
        yield
    except ConfigError as error:
        mistakes.append(str(error))


def _labelled(methods: Sequence[Any]) -> dict[str, Any]:
    if isinstance(methods, str) or not methods:
        raise ConfigError(f"methods must be a list such as ['erm', 'molere']; got {one_line(methods)}")
    found = dict[str, Any]()
    for method in methods:
        spec = str(_spec(method)) if is_mapping(method) or isinstance(method, MethodSpec) else method
        label = spec.strip() if isinstance(spec, str) else label_of(spec)
        if label in found:
            raise ConfigError(f"method {label} is given twice; keep one")
        found[label] = label if isinstance(spec, str) else spec
    return found


def _spec(given: Any) -> MethodSpec:
    known = [f.name for f in dataclasses.fields(MethodSpec)]
    if is_mapping(given):
        refuse([unknown("key of a method", key, known) for key in given if key not in known])
        return MethodSpec(**given)
    return given


def label_of(method: object) -> str:
    """A Method as a label: its class's name, and the settings that are not its defaults."""
    name = type(method).__name__.lower()
    if not dataclasses.is_dataclass(method):
        return name
    stated = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    stated = {f.name: stated[f.name] for f in dataclasses.fields(method) if stated[f.name] != _default(f)}
    inner = ",".join(f"{k}={label_of(v) if dataclasses.is_dataclass(v) else v}" for k, v in stated.items())
    return f"{name}[{inner}]" if inner else name


def _default(field: "dataclasses.Field[Any]") -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not found or len(set(found)) < len(found) or any(s < 0 for s in found):
        raise ConfigError(f"seeds must be a number of seeds, or different ones such as 0, 1, 2; got {one_line(seeds)}")
    return found


def _of_data(given: Mapping[str, Any]) -> list[str]:
    entry, mistakes = paths.entry_of(given["name"]), paths.mistakes(given)
    if entry is None or mistakes:
        return mistakes
    scenario = given.get("scenario", entry.scenarios[0])
    with _collected(mistakes):
        scenario_of(given["name"], scenario)
    return mistakes


def _plain_data(data: Any) -> dict[str, Any]:
    if isinstance(data, str) or is_mapping(data):
        given = {key: str(v) if isinstance(v, Path) else plain(v) for key, v in load_arguments(data).items()}
        found = digest(given)
        return given if found is None else {**given, "corrections": found}
    return {"name": data.name, "scenario": data.scenario, "content": data.train.fingerprint()}


def side_by_side(jobs: int | Literal["auto"], asked: Request) -> int:
    """How many runs at a time; auto: as many as cores and runs, one with a GPU or with objects."""
    if jobs == "auto":
        if not asked.is_plain or _uses_gpu(asked.recipe):
            return 1
        return min(cores(), len(asked.methods) * max(len(asked.seeds), asked.tune))
    if jobs < 1:
        raise ConfigError(f"jobs must be auto or at least 1; got {jobs}")
    if jobs > 1 and not asked.is_plain:
        raise ConfigError(f"jobs={jobs} needs methods, data and model by name and a recipe of settings; use jobs=1")
    return jobs


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _uses_gpu(recipe: Mapping[str, Any] | None) -> bool:
    device = str((recipe or {}).get("device") or "auto")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    there = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None  # torch would know, slowly
    return device.startswith("cuda") or (device == "auto" and there and not hidden)


def call(asked: Request, jobs: int | str) -> str:
    """The Python call that makes this comparison again."""
    given = {"data": asked.data, "model": asked.model, "recipe": asked.recipe, "seeds": list(asked.seeds), "jobs": jobs}
    given |= {"tune": asked.tune or None}
    stated = [
        f"{key}={_said(value)}" for key, value in given.items() if value is not None and (key, value) != ("jobs", 1)
    ]
    return f"molere.compare([{', '.join(map(_said, asked.methods.values()))}], {', '.join(stated)})"


def _said(value: Any) -> str:
    """A value as it is typed; an object by its class and name."""
    if isinstance(value, str | int | list) or is_mapping(value):
        return repr(plain(value))
    return f"<{type(value).__name__} {name}>" if (name := getattr(value, "name", "")) else one_line(value)
