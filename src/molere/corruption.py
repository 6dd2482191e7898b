"""Corruption by name: what the text of a scenario says is done to the data. No torch.

A scenario is NAME or NAME[key=value,...]: `noise`, `noise[instance=0.4]`, `clean[flip2=0.4,tail=10]`. The name is one
of the data set's or of COMMON; the settings in brackets replace those of the name.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Interval

from molere.config import dump_value, flatten, read_overrides
from molere.errors import ConfigError
from molere.fields import build, check_fields, refuse
from molere.names import one_line, pick
from molere.paths import entry_of

NOISE = ("instance", "uniform", "redrawn", "flip", "flip2", "hierarchical")
"""The kinds of label noise; a scenario has one at most."""
ROTATED = ("upright", "rotated")
SPURIOUS = ("agreeing", "conflicting")

_SPEC = re.compile(r"(?P<name>[^\[\]]*)(?:\[(?P<settings>.*)\])?", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """Shares, rates and factors of what is done to the data; at their defaults nothing is."""

    instance: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Rate of instance-dependent label noise (Xia et al. 2020)."""
    input_scale: Annotated[float, Gt(0)] = 255.0
    """Largest value of an input as instance-dependent noise sees it; at 255 each example has one wrong class."""
    uniform: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of labels flipped to any other class, all alike."""
    redrawn: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of labels drawn anew from all classes, the right one included: rate (1 - 1/C) of them change."""
    flip: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of labels flipped to one other class, the same for all of a class."""
    flip2: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of labels flipped to one of two other classes, the same two for all of a class."""
    hierarchical: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of labels flipped to another class of the same superclass."""
    superclasses: tuple[int, ...] | None = None
    """Superclass of each class, in order; none: the data set's own."""
    clean_select: bool = False
    """Whether the data kept apart to pick the best update by keep their right labels."""
    tail: Annotated[float, Ge(1)] = 1.0
    """Largest class / smallest class; sizes fall geometrically from class 0 on."""
    largest: Annotated[int, Ge(1)] | None = None
    """Size of the largest class in training under a tail; none: that of the smallest class there is."""
    group_tail: Annotated[float, Ge(1)] = 1.0
    """Largest group / smallest group, where the data have groups; sizes fall geometrically from group 0 on."""
    rotated: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of training images turned by `angle`, the hidden group; each test image is there in both ways."""
    conflicting: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of images whose corner patch does not say whether the class is odd."""
    angle: Annotated[int, Interval(ge=1, le=359)] = 90
    """Degrees by which images are turned, anticlockwise; multiples of 90 are exact."""
    shift: Annotated[int, Interval(ge=0, le=359)] = 0
    """Degrees by which all images of a second test set, `shifted`, are turned; 0: there is none."""

    def __post_init__(self) -> None:
        check_fields(self)
        refuse(_mistakes(self))

    @property
    def noise(self) -> str:
        """The kind of label noise; empty if there is none."""
        return next((kind for kind in NOISE if getattr(self, kind)), "")

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of groups 0 and 1, the rare one, that the scenario makes; none if it makes none."""
        return ROTATED if self.rotated else SPURIOUS if self.conflicting else ()


def _mistakes(s: Scenario) -> list[str]:
    found = list[str]()
    kinds = [kind for kind in NOISE if getattr(s, kind)]
    if len(kinds) > 1:
        found.append(f"Scenario: {' and '.join(kinds)} are given together; labels take one kind of noise, keep one")
    if s.rotated and s.conflicting:
        found.append("Scenario: rotated and conflicting are given together; a scenario makes one hidden group")
    return found


COMMON: Mapping[str, Scenario] = {
    "clean": Scenario(),
    "hidden-group": Scenario(rotated=0.03),
    "hidden-group-noise": Scenario(rotated=0.03, instance=0.15),
    "noise": Scenario(instance=0.3),
    "longtail": Scenario(tail=50.0),
    "spurious": Scenario(conflicting=0.05),
    "uniform": Scenario(uniform=0.4),
    "flip": Scenario(flip=0.4),
    "flip2": Scenario(flip2=0.4),
    "hierarchical": Scenario(hierarchical=0.4),
    "rotation-shift": Scenario(shift=90),
    "group-imbalance": Scenario(group_tail=10.0),
}
"""Scenarios that every data set takes; tables, texts and embeddings have no images to turn or to put a patch on."""

OWN: Mapping[str, Mapping[str, Scenario]] = {
    "digits": {
        "hidden-group": Scenario(rotated=0.04),
        "hidden-group-noise": Scenario(rotated=0.04, uniform=0.2),
    },
}
"""By data set: what a name means there instead."""


def scenarios(data: str) -> dict[str, Scenario]:
    """By name what can be asked for, the default first; a name that only the data set knows changes nothing here."""
    table, entry = {**COMMON, **OWN.get(data, {})}, entry_of(data)
    return {name: table.get(name, COMMON["clean"]) for name in (*(entry.scenarios if entry else ()), *table)}


def scenario_of(data: str, text: str) -> Scenario:
    """What a scenario's text says for a data set; ConfigError for unknown names and keys, and values out of limits."""
    name, settings = _parts(text)
    base = pick(f"scenario of {data}", name, scenarios(data))
    changed = build(Scenario, settings, f"scenario {name}")
    return dataclasses.replace(base, **{key: getattr(changed, key) for key in settings}) if settings else base


def canonical(text: str) -> str:
    """The text with its settings in alphabetical order; reading it gives the same scenario."""
    name, settings = _parts(text)
    inner = ",".join(f"{key}={dump_value(value)}" for key, value in sorted(flatten(settings).items()))
    return f"{name}[{inner}]" if inner else name


def _parts(text: str) -> tuple[str, dict[str, object]]:
    match = _SPEC.fullmatch(text.strip())
    if match is None or not match["name"].strip():
        raise ConfigError(f"scenario {one_line(text)}: write NAME or NAME[key=value,...], as in noise[instance=0.4]")
    inner = [re.sub(r"\s*=\s*", "=", part.strip(), count=1) for part in _cut(match["settings"] or "") if part.strip()]
    return match["name"].strip(), read_overrides(inner)


def _cut(text: str) -> list[str]:
    """`text` at commas outside square brackets."""
    return re.split(r",(?![^\[]*\])", text)
