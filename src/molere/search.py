"""Random search: what is drawn for a method, from ranges that are data, each draw a function of its key. No torch.

Trial 0 is a method as it was given. The other trials draw each setting that the registry declares for it and that
nobody has stated. A setting that several methods search has the same value in trial t of each.
"""

import dataclasses
import math
import random
from collections.abc import Mapping
from typing import Any, cast  # Any: settings, and methods of any kind

from molere import registry, settings
from molere.config import flatten, merge_all, put
from molere.errors import ConfigError
from molere.jobs import is_mapping
from molere.registry import Choice, LogUniform
from molere.settings import MethodSpec

Space = Mapping[str, LogUniform | Choice]
"""What is searched, by its key as an override: train.lr, method.delta."""


def space_of(method: Any, recipe: Any) -> dict[str, LogUniform | Choice]:
    """What is searched for a spec, or a Method: the training settings and its own, less those that are stated.

    Stated: in the recipe, in the spec's brackets, or by its preset. A Recipe states what differs from its defaults.
    """
    stated = _stated(recipe)
    kind = "sgd" if str(stated.get("optimizer", "sgd")).lower() == "sgd" else "other"
    found = {f"train.{k}": v for k, v in registry.SEARCH_TRAIN[kind].items() if k not in stated}
    if isinstance(method, str):
        spec = MethodSpec.parse(method)
        held = [*flatten(merge_all(settings.preset_of(spec, "default"), spec.settings)), *({"q", "warmup"} & {*stated})]
        own = registry.SEARCH.get(spec.name, {})
        found |= {f"method.{k}": v for k, v in own.items() if not any(_overlap(k, h) for h in held)}
    return found


def _stated(recipe: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(recipe) and not isinstance(recipe, type):
        default: Any = type(recipe)()
        return {k: v for k, v in vars(recipe).items() if v != getattr(default, k)}
    return dict(cast(Mapping[str, Any], recipe or {}))


def _overlap(a: str, b: str) -> bool:
    """Whether two dotted keys are the same, or one holds the other."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def drawn(space: Space, seed: int, trial: int) -> dict[str, Any]:
    """The settings of a trial, each a function of seed, trial and key alone; none in trial 0."""
    return {key: _draw(s, random.Random(f"tune {seed} {trial} {key}")) for key, s in space.items()} if trial else {}


def _draw(space: LogUniform | Choice, generator: random.Random) -> Any:
    if isinstance(space, Choice):
        return generator.choice(space.values)
    log = generator.uniform(math.log(space.low), math.log(space.high))
    return float(f"{math.exp(log):.3g}")


def applied(method: Any, chosen: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The method with its drawn settings, and the settings of training."""
    nested = dict[str, Any]()
    for key, value in chosen.items():
        put(nested, key, value)
    if isinstance(method, str) and "method" in nested:
        spec = MethodSpec.parse(method)
        method = str(MethodSpec(spec.name, spec.preset, merge_all(spec.settings, nested["method"])))
    return method, nested.get("train", {})


def described(methods: Mapping[str, Any], recipe: Any, trials: int) -> dict[str, object]:
    """What a search would do, as plain data."""
    spaces = {label: space_of(method, recipe) for label, method in methods.items()}
    return {
        "trials": trials,
        "runs": trials * len(methods),
        "search": {label: {k: str(s) for k, s in space.items()} for label, space in spaces.items()},
    }


def _has_selection(data: Any) -> bool:
    """Whether there will be a part to choose by; where nothing is said, the data set has one."""
    if isinstance(data, str):
        return True
    if is_mapping(data):
        return data.get("select") != 0
    return data.select is not None


def mistakes(methods: Mapping[str, Any], data: Any, recipe: Any, trials: int) -> list[str]:
    """Why this cannot be tuned: nothing to search for a method, or data without a part to choose by."""
    if not trials:
        return []
    found = [
        f"tune={trials}: nothing is left to search for {label}, as all of it is stated; state less, or leave tune out"
        for label, method in methods.items()
        if not space_of(method, recipe)
    ]
    if not _has_selection(data):
        found.append(f"tune={trials} needs selection data, and these have none; pass select= when you load them")
    return found


def check(methods: Mapping[str, Any], data: Any, recipe: Any, trials: int) -> None:
    """ConfigError with a line for each mistake."""
    if found := mistakes(methods, data, recipe, trials):
        raise ConfigError("\n".join(found))
