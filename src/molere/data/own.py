"""The user's own data, given by a path: class folders, tables, arrays, sparse rows, saved Hugging Face data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Int
from torch import Tensor

from molere import paths
from molere.corruption import Scenario, canonical, scenario_of
from molere.data.corrupt import stratified_split
from molere.errors import ConfigError, DataError
from molere.experiment import DataChoice
from molere.fields import build, hints
from molere.names import unknown
from molere.rng import key

T = TypeVar("T")


class NoTestError(DataError):
    """There is no test, and none was to be taken from the data."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of the user's own data; the settings are described where a command reads them."""

    name: str
    scenario: Scenario = Scenario()
    scenario_name: str = "clean"
    root: str | Path | None = None
    limit: int | None = None
    seed: int = 0
    noise_seed: int | None = None
    select: float = 0.1
    test: Mapping[str, str] = field(default_factory=dict[str, str])
    val_root: str | None = None
    label: str | None = None
    group: str | None = None
    image: str | None = None
    text: str | None = None
    id: str | None = None
    split_column: str | None = None
    features: Sequence[str] | None = None
    drop_columns: Sequence[str] | None = None
    header: bool = True
    scale: bool = True
    text_as: str = "tfidf"
    dimensions: int | None = None
    augment: str | None = None
    test_share: float = 0.2
    on_bad: str = "error"
    image_size: int | None = None

    @property
    def path(self) -> Path:
        """Where the data lie."""
        return Path(self.name).expanduser()

    @property
    def roles(self) -> dict[str, str | None]:
        """Columns by role, as far as they were named."""
        named = {role: getattr(self, role) for role in ("label", "group", "image", "text", "id")}
        return {**named, "split": self.split_column}

    @property
    def others(self) -> dict[str, Path]:
        """The other files and folders by part: `holdout` (methods validate on it), and the test sets by name."""
        held = {} if self.val_root is None else {"holdout": self.val_root}
        return {name: Path(place).expanduser() for name, place in {**held, **self.test}.items()}


def asked(name: str, **given: Any) -> Asked:  # Any: settings of the data
    """The settings checked; ConfigError for unknown ones, for paths that lead nowhere and parts named twice."""
    known = {f.name for f in fields(Asked)}
    stated = {k: v for k, v in given.items() if v is not None}
    stray = [unknown("setting of the data", k, sorted(known)) for k in stated if k not in known]
    if mistakes := [*stray, *paths.mistakes({"name": name, **stated})]:
        raise ConfigError("\n".join(mistakes))
    scenario = canonical(str(stated.get("scenario", "clean")))
    tests = paths.tests(stated.get("test"))
    if reserved := [t for t in tests if t in ("train", "select", "holdout") or "/" in t]:
        raise ConfigError(f"test set '{reserved[0]}': give it another name, such as ood")
    read: dict[str, Any] = {**stated, "name": name, "test": tests, "scenario_name": scenario}
    read["scenario"] = scenario_of(name, scenario)
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in stated.items() if k in hints(DataChoice)}
    build(DataChoice, {**plain, "name": name, "test": tests}, "data")  # within the limits that commands have
    shares: dict[str, Any] = {k: float(read[k]) for k in ("select", "test_share") if k in read}
    found = Asked(**{**read, **shares})
    if found.limit == 1:
        raise ConfigError("data.limit is a number of training examples, 2 or more; got 1")
    makes_groups = found.scenario.groups or found.scenario.shift
    if found.val_root is not None and makes_groups:
        raise ConfigError(f"scenario {scenario} changes the tests of --val-root too; keep one of them")
    return found


def gathered(parts: Mapping[str, T], more: Mapping[str, T], where: str) -> dict[str, T]:
    """The parts of the data and those of other files; DataError for one that both have."""
    if both := [name for name in more if name in parts]:
        raise DataError(f"{where} has a part '{both[0]}' of its own; give the other one another name")
    return {**parts, **more}


def test_part(y: Int[Tensor, " n"], a: Asked, tests: Sequence[str]) -> tuple[Tensor, Tensor] | None:
    """Positions that stay and that are the test; None where a test is given, or none is wanted."""
    if "test" in tests or a.test_share == 0:
        if not tests:
            raise NoTestError(f"{a.name}: there is no test; give one with --test PATH, or leave --test-share out")
        return None
    held = round(a.test_share * len(y))
    if held < 1:
        raise DataError(f"{a.name}: {len(y)} examples leave none for the test; give one with --test PATH")
    return stratified_split(y, held, key(a.seed, "own-test"))


def settings_for(size: int) -> dict[str, object]:
    """Training settings for as many training examples."""
    return {"epochs": 30, "batch_size": max(2, min(64, 2 ** (max(size, 2).bit_length() - 3))), "weight_decay": 5e-4}


def headline(a: Asked, groups: Sequence[str], tests: Sequence[str]) -> tuple[str, ...]:
    """The metrics that a table leads with: the worst group where there are groups, and the other tests' accuracies."""
    if a.scenario.groups:
        return tuple(f"accuracy[{group}]" for group in reversed(a.scenario.groups))
    first = ("worst_group", "accuracy") if groups else ("accuracy",)
    first += ("worst_class",) if a.scenario.tail > 1 else ()
    return (*first, *(f"{name}/accuracy" for name in tests[1:]))


def check_classes(classes: Sequence[str], where: str) -> None:
    """DataError for fewer than two classes."""
    if len(classes) < 2:
        raise DataError(f"{where}: there is one class only ({', '.join(classes) or 'none'}); expected two or more")
