"""Presets: the rows of a table or figure of the publication, read from their YAML files. No torch.

A file gives for each row the data, the classifier, how it is trained, which of our methods stands for which column,
the printed numbers, and the claims. What stands outside `rows` holds for all rows that do not say otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Annotated, Literal, cast

from annotated_types import Ge, Interval

from molere.config import merge_all, parse_yaml
from molere.errors import ConfigError
from molere.fields import build, check_fields
from molere.names import nearest, one_line, pick
from molere.reproduce.claims import Claim

Kind = Literal["values", "bars", "margins"]
ORDERED = (*(f"table{i}" for i in range(1, 8)), *(f"figure{i}" for i in range(1, 5)))
"""The presets, in the order of the publication."""
STUDIES: Mapping[str, str] = {
    "theorem1": "Theorem 1 on a problem small enough to try every part; needs no data",
    "cost": "Appendix E: time, floating-point operations and memory of each method over ERM; needs no data",
}
"""What is no table and no figure."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: what is trained on what, what the publication printed, and what it claims."""

    title: str
    """Of the row."""
    data: Mapping[str, object]
    """As in a settings file: name, scenario, select and what else the data take."""
    model: str
    """Classifier."""
    examples: Annotated[int, Ge(2)]
    """Training examples at full scale, before a long tail thins them."""
    train: Mapping[str, object] = field(default_factory=dict[str, object])
    """How classifiers are trained."""
    delta: Annotated[float, Interval(gt=0, le=0.5)] | None = None
    """Share of the pool that validates, where the publication's split is not a tenth."""
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    """Column of the publication -> our method."""
    ours: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further columns, not in the publication -> our method."""
    reference: str = "ERM"
    """Column that the others are held against."""
    paper: Mapping[str, object] = field(default_factory=dict[str, object])
    """Column -> printed number."""
    spread: Mapping[str, object] = field(default_factory=dict[str, object])
    """Column -> what is printed after its plus-minus."""
    gains: bool = False
    """Whether the printed numbers are gains of `reference` over each column, and not values."""
    metric: str = "accuracy"
    """Which of our metrics is meant."""
    beside: Mapping[str, object] = field(default_factory=dict[str, object])
    """Further metrics of the same runs: metric -> column -> printed number."""
    seeds: Annotated[int, Ge(1)] = 3
    """How many, unless asked otherwise."""
    needs: tuple[str, ...] = ()
    """Data sets that have to be there besides."""
    claims: tuple[Mapping[str, str], ...] = ()
    """Claims as `text` and what the publication `says`."""
    deviations: tuple[str, ...] = ()
    """Where this preset departs from the publication, or fills in what it leaves open."""
    doubts: tuple[str, ...] = ()
    """What is doubtful about the printed numbers themselves."""
    printed: bool = True
    """False for a row that the publication does not have."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def methods(self) -> dict[str, str]:
        """Column -> method, ours last; two columns never share one."""
        return {**self.columns, **self.ours}

    @property
    def numbers(self) -> dict[str, float]:
        """The printed numbers."""
        return _floats(self.paper)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metric -> column -> printed number, the main one first."""
        others = cast(Mapping[str, Mapping[str, object]], self.beside)
        return {self.metric: self.numbers, **{name: _floats(numbers) for name, numbers in others.items()}}

    @property
    def claimed(self) -> list[Claim]:
        """The claims, read."""
        return [Claim(c["text"], c.get("says", "")) for c in self.claims]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A table or a figure: its title, its kind, and its rows by name."""

    name: str
    title: str
    about: str
    kind: Kind
    rows: Mapping[str, Row]
    bars: str | None = None
    """Spread that a figure of margins shows: sem or std."""

    def row(self, name: str) -> Row:
        """One row; ConfigError with the nearest name for another."""
        return pick(f"row of {self.name}", name, self.rows)


def pick_preset(name: str) -> Preset:
    """The preset of a name; ConfigError with the nearest name for another."""
    plain = name.lower().replace(" ", "").replace("-", "")
    if plain not in ORDERED:
        names = (*ORDERED, *STUDIES)
        guess = nearest(name, names)
        hint = f"; did you mean '{guess}'?" if guess else "."
        raise ConfigError(f"nothing to reproduce is called {one_line(name)}{hint} Known: {', '.join(names)}")
    return preset(plain)


def _floats(numbers: Mapping[str, object]) -> dict[str, float]:
    return {column: float(cast(float, value)) for column, value in numbers.items()}


@lru_cache(maxsize=32)
def preset(name: str) -> Preset:
    """Read `presets/NAME.yaml`, over `presets/common.yaml`."""
    top = _file(name)
    if like := top.pop("rows_of", None):
        top = {**_file(str(like)), **top}
    common = _file("common")
    top = {**merge_all(common, top), "deviations": [*_listed(common, "deviations"), *_listed(top, "deviations")]}
    rows = cast(Mapping[str, Mapping[str, object]], top.pop("rows"))
    head = {key: top.pop(key) for key in ("title", "about", "kind", "bars") if key in top}
    made = {key: _row(f"{name}.{key}", top, row) for key, row in rows.items()}
    return build(_Head, {"name": name, **head}, name).with_rows(made)


@dataclass(frozen=True, kw_only=True)
class _Head:
    name: str
    title: str
    about: str
    kind: Kind = "values"
    bars: str | None = None

    def with_rows(self, rows: Mapping[str, Row]) -> Preset:
        return Preset(**vars(self), rows=rows)


def _row(where: str, shared: Mapping[str, object], own: Mapping[str, object]) -> Row:
    """A row over what all rows share: mappings are merged (null takes away), lists of notes are added to."""
    merged = merge_all(shared, own)
    for key in ("deviations", "doubts"):
        merged[key] = [*_listed(shared, key), *_listed(own, key)]
    columns = {k: v for k, v in cast(Mapping[str, object], merged.get("columns", {})).items() if v is not None}
    return build(Row, {**merged, "columns": columns}, where)


def _listed(mapping: Mapping[str, object], key: str) -> Sequence[object]:
    return cast(Sequence[object], mapping.get(key, ()))


def _file(name: str) -> dict[str, object]:
    text = (resources.files("molere") / "presets" / f"{name}.yaml").read_text("utf-8")
    return parse_yaml(text, f"presets/{name}.yaml")
