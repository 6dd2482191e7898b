"""From a preset's row and what a person asks for to the experiment that is run: checked, titled, without torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, cast

from annotated_types import Interval

from molere import settings
from molere.config import flatten
from molere.data.named.about import find, how_to_get
from molere.errors import ConfigError
from molere.experiment import Experiment, experiment
from molere.fields import check_fields
from molere.names import one_line
from molere.reproduce.presets import Preset, Row
from molere.settings import MethodSpec, parse_specs


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a person wants of a preset."""

    scale: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Share of the training examples and of the epochs."""
    seeds: str | int | None = None
    """How many, or which; none: the preset's."""
    methods: str | None = None
    """Columns or methods to run; none: all of the preset."""
    root: str | None = None
    """Folder that holds the data sets."""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    """Settings over those of the preset: model, data, train."""
    tune: int = 0
    """Trials for each method beforehand."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Seen:
    """What the data of a row turned out to be."""

    examples: int
    """In the pool and, where one is kept apart, the selection part."""
    largest: int
    smallest: int
    """Examples of the largest and of the smallest class of the pool that is not empty."""
    warnings: tuple[str, ...] = ()
    """Said while they were read."""


@dataclass(frozen=True)
class Planned:
    """A row as it is going to be run. columns: column -> label in the comparison's table."""

    preset: Preset
    key: str
    row: Row
    asked: Asked
    experiment: Experiment
    columns: Mapping[str, str]
    title: str
    deviations: tuple[str, ...]
    lacking: str
    """What of the data is not there; empty if all is."""
    steps: tuple[str, ...]
    """How to get it."""
    changed: bool
    """Whether settings differ from those of the preset at this scale."""

    @property
    def runs(self) -> int:
        """Trainings, first stages not counted."""
        return len(self.columns) * len(self.experiment.seeds)

    @property
    def folder(self) -> str:
        """Name of the comparison's folder: the row, and what is trained where that is not the preset's own."""
        here = replace(self.experiment, data=replace(self.experiment.data, root=None))
        return f"{self.key}-{here.hash}" if self.changed else self.key


def resolve(preset: Preset, key: str, asked: Asked) -> Planned:
    """The plan of one row; ConfigError, a line for each mistake, where the preset or what is asked does not hold."""
    row = preset.row(key)
    shrunk = _shrunk(row, asked.scale)
    chosen = _chosen(row, asked.methods)
    layers = (_base(row, asked), shrunk, asked.settings)
    found = experiment(*layers, {"methods": [str(s) for s in chosen.values()], "tune": asked.tune})
    lacking, steps = _lacking(row, asked.root)
    return Planned(
        preset=preset,
        key=key,
        row=row,
        asked=asked,
        experiment=found,
        columns=dict(zip(chosen, found.labels, strict=True)),
        title=_title(preset, row, asked, found),
        deviations=(*_departures(row, asked, found, chosen), *row.deviations),
        lacking=lacking,
        steps=steps,
        changed=bool(asked.settings) or asked.tune > 0,
    )


def with_data(plan: Planned, seen: Seen) -> Planned:
    """The plan with title and deviations that say what the data turned out to be."""
    row, asked, e = plan.row, plan.asked, plan.experiment
    found = _departures(row, asked, e, plan.columns, seen)
    return replace(plan, title=_title(plan.preset, row, asked, e, seen), deviations=(*found, *row.deviations))


def _base(row: Row, asked: Asked) -> dict[str, object]:
    data = {**row.data, **({"root": asked.root} if asked.root is not None else {})}
    delta = {} if row.delta is None else {"method": {"delta": row.delta}}
    return {"data": data, "model": row.model, "train": dict(row.train), "seeds": asked.seeds or row.seeds, **delta}


def _shrunk(row: Row, scale: float) -> dict[str, object]:
    """Examples and epochs at a scale, both rounded; nothing at full scale."""
    if scale == 1:
        return {}
    epochs = max(1, round(scale * _epochs(row)))
    return {"data": {"limit": max(2, round(scale * row.examples))}, "train": {"epochs": epochs}}


def _epochs(row: Row) -> int:
    return int(cast(int, row.train["epochs"]))


def _chosen(row: Row, wanted: str | None) -> dict[str, MethodSpec]:
    """Column -> method: all, or those named by column or method; others are added. The reference stays."""
    table = {column: MethodSpec.parse(spec) for column, spec in row.methods.items()}
    if wanted is None:
        return table
    picked = dict[str, MethodSpec]()
    for text in settings.split_outside(wanted):
        columns = [c for c, spec in table.items() if text in (c, str(spec)) or text.lower() == c.lower()]
        columns = columns or [c for c, spec in table.items() if spec.name == text]
        picked |= {c: table[c] for c in columns} or {str(s): s for s in _own(text, row)}
    return {row.reference: table[row.reference], **picked}


def _own(text: str, row: Row) -> list[MethodSpec]:
    try:
        return parse_specs(text)
    except ConfigError as error:
        raise ConfigError(f"{error}. Columns: {', '.join(row.methods)}") from None


def _lacking(row: Row, root: str | None) -> tuple[str, tuple[str, ...]]:
    """What of the data is not there, and how to get it."""
    name = str(row.data["name"])
    names = dict.fromkeys((name, *row.needs))
    found = [find(n, root) for n in names]
    absent = [f for f in found if not f.complete]
    steps = [step for f in absent for step in how_to_get(f.name)]
    words = "; ".join(f.lacking for f in absent).replace("pass --root", "pass --data-root")
    return words, tuple(dict.fromkeys(steps))


def present(row: Row, root: str | None) -> bool:
    """Whether the data of a row are there."""
    return not _lacking(row, root)[0]


# ---- words


def _title(preset: Preset, row: Row, asked: Asked, e: Experiment, seen: Seen | None = None) -> str:
    """What stands above the page: no one is to take a small run for the published one."""
    parts = [f"{preset.title}: {row.title}"]
    parts += [] if row.printed else ["a row of our own"]
    trained = _trained(row, e, seen)
    if asked.scale != 1 or trained or e.train.get("epochs") != row.train.get("epochs"):
        scale = f"at scale {asked.scale:g} (" if asked.scale != 1 else "at a smaller size ("
        size = trained or f"{row.examples:,} of {row.examples:,} training examples"
        parts.append(f"{scale}{size}, {e.train['epochs']} of {_epochs(row)} epochs)")
    parts += [f"{e.model} for {row.model}"] if e.model != row.model else []
    seeds = len(e.seeds)
    return ", ".join([*parts, "1 seed" if seeds == 1 else f"{seeds} seeds"])


def _trained(row: Row, e: Experiment, seen: Seen | None) -> str:
    """How many of the training examples there are; empty where there are all."""
    asked = row.examples if e.data.limit is None else min(e.data.limit, row.examples)
    if _has_tail(row):
        cut = "" if seen is None else f", {seen.examples:,} of them in the long tail"
        return f"{asked:,} of {row.examples:,} training examples{cut}" if asked < row.examples or cut else ""
    there = asked if seen is None else seen.examples
    return f"{there:,} of {row.examples:,} training examples" if there != row.examples else ""


def _has_tail(row: Row) -> bool:
    return "longtail" in str(row.data.get("scenario"))


def _departures(row: Row, asked: Asked, e: Experiment, chosen: Collection[str], seen: Seen | None = None) -> list[str]:
    """What this run changes in the preset, in sentences."""
    trained = _trained(row, e, seen)
    found = [f"{trained}; the test sets are whole."] if trained else []
    changed, before = _settings(e), _settings(experiment(_base(row, asked)))
    found += [
        f"{key} is {_said(changed.get(key))}, in the preset {_said(before.get(key))}."
        for key in dict.fromkeys([*before, *changed])
        if changed.get(key) != before.get(key)
    ]
    if _has_tail(row) and seen is not None:
        factor = seen.largest / seen.smallest
        sizes = f"The largest class has {seen.largest:,} examples, the smallest {seen.smallest:,}"
        found.append(f"{sizes}: {factor:.3g} to 1 is the imbalance here.")
    elif _has_tail(row) and e.data.limit is not None:
        found.append("With fewer examples the smallest classes are cut off at one, so the true imbalance is less.")
    left = [column for column in row.methods if column not in chosen]
    found += [f"Not run: {', '.join(left)}."] if left else []
    found += [f"Each method was tuned by {asked.tune} trials first."] if asked.tune else []
    found += [f"Said of the data: {' '.join(text.split())}" for text in (() if seen is None else seen.warnings)]
    return found


def _settings(e: Experiment) -> dict[str, object]:
    """What is compared with the preset's: how it is trained, on what; not where the data are and how many."""
    data = {k: v for k, v in asdict(e.data).items() if k not in {"root", "limit"}}
    flat = flatten({"train": dict(e.train), "data": data, "method": dict(e.method)})
    return {**flat, "model": e.model, "data.scenario": e.scenario, "preset": e.preset}


def _said(value: object) -> str:
    return "the default" if value is None else value if isinstance(value, str) else one_line(value)


def rows_of(preset: Preset, wanted: Sequence[str]) -> list[str]:
    """The rows asked for, or all that the publication has; `all` means those of our own too."""
    if not wanted:
        return [key for key, row in preset.rows.items() if row.printed]
    if list(wanted) == ["all"]:
        return list(preset.rows)
    for key in wanted:
        preset.row(key)
    return list(dict.fromkeys(wanted))


def expanded(path: str | None) -> str | None:
    """A folder as typed, with ~ read."""
    return None if path is None else str(Path(path).expanduser())
