"""Experiment: all that a command is asked to run, from flags, files and presets; checked without torch."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal, cast

from annotated_types import Ge, Interval

from molere import paths, registry, settings
from molere.config import dump_value, merge_all
from molere.corruption import canonical, scenario_of
from molere.data.decided import KINDS, digest
from molere.errors import ConfigError
from molere.fields import build, check_fields, hints, refuse, unknown_keys
from molere.limits import shown
from molere.names import one_line, unknown
from molere.settings import MethodSpec, Schema

_CORRECTIONS = (*KINDS, "corrections")


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Which examples to train on."""

    name: str = "digits"
    """Data set; `molere data list` shows them."""
    root: str | None = None
    """Folder that holds the data set; none: embedded, or the usual places."""
    scenario: str | None = None
    """What is done to the training data; none: the first that the data set offers."""
    limit: Annotated[int, Ge(1)] | None = None
    """Train on this many examples, drawn in proportion to the classes; none: on all."""
    noise_seed: Annotated[int, Interval(ge=0, lt=2**63)] | None = None
    """Seed of label noise: an example then has the same label whatever the seed; none: the seed of the run."""
    select: Annotated[float, Interval(ge=0, le=0.5)] | None = None
    """Share of the training data kept apart to pick the best update by; none: the data set's own, 0: nothing."""

    on_bad: Literal["error", "skip"] | None = None
    """Rows of one's own data that cannot be used: error (none means that), or skip to leave them out."""
    image_size: Annotated[int, Interval(ge=8, le=1024)] | None = None
    """Height and width of images read from files; none: 224, or the data set's own."""
    test: Mapping[str, object] | None = None
    """Test sets of one's own data, NAME: PATH each; the first is the main one."""
    val_root: str | None = None
    """Examples to validate on, a natural hard or shifted set; methods without a holdout train on them."""
    label: str | None = None
    """Column of the label; none: label, target, class or y."""
    group: str | None = None
    """Column of the group, for accuracies by group; none: no groups."""
    image: str | None = None
    """Column of image files (paths from the table's folder, or from data.root)."""
    text: str | None = None
    """Column of texts."""
    id: str | None = None
    """Column of the examples' own ids; none: positions, or the paths of images."""
    split_column: str | None = None
    """Column that says train, select, holdout, or the name of a test set; none: split, where there is one."""
    features: tuple[str, ...] | None = None
    """Feature columns; none: all that are nothing else."""
    drop_columns: tuple[str, ...] | None = None
    """Columns to leave out."""
    header: bool | None = None
    """Whether the first line of a CSV file names the columns (none means yes; no: they are f0, f1, ...)."""
    scale: bool | None = None
    """Whether numbers are brought to mean 0 and deviation 1 of the training part (none means yes)."""
    text_as: Literal["tfidf", "hashed"] | None = None
    """Texts as the truncated SVD of TF-IDF (none means that), fitted on the training part, or as hashed words."""
    dimensions: Annotated[int, Interval(ge=2, le=4096)] | None = None
    """Numbers that a text or a sparse row becomes; none: 256, or 1,024 for hashed words."""
    augment: Literal["none", "flip", "crop", "crop-flip", "imagenet"] | None = None
    """What is done to images in training; none: crops and flips for image files, nothing for arrays."""
    test_share: Annotated[float, Interval(ge=0, le=0.5)] | None = None
    """Share of one's own data that is the test, where none is given; none: a fifth, 0: no such test."""
    labels: str | None = None
    """CSV with columns id and label: training examples get these labels."""
    weights: str | None = None
    """Parquet or CSV with columns id and weight: what training examples count, whatever the method."""
    drop: str | None = None
    """File with an id in each line: training examples that are left out."""
    corrections: str | None = None
    """Digest of the three files, written here by molere; what has changed since is refused."""

    def __post_init__(self) -> None:
        check_fields(self)


_FIRST = ("name", "root", "scenario", "limit")
"""Settings of the data that have always been hashed; others only where they are stated."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Methods, seeds, data and settings of one command; what it is written to, and how."""

    data: DataChoice = field(default_factory=DataChoice)
    """The examples."""
    model: str | None = None
    """Classifier; `molere models` shows them. None: the one that suits the data."""
    methods: tuple[str, ...] = ("molere",)
    """Methods, each as NAME, NAME@PRESET or NAME[key=value]."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; a number N alone means 0 to N - 1."""
    preset: str = "default"
    """Settings of all methods that name no preset themselves: default, or paper (as published)."""
    train: Mapping[str, object] = field(default_factory=dict[str, object])
    """How classifiers are trained, the same for every method."""
    method: Mapping[str, object] = field(default_factory=dict[str, object])
    """Settings of the methods, for each that has one of the name."""
    out: str | None = None
    """Folder for the results; none: a name below ./molere-runs."""
    jobs: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Runs side by side."""
    tune: Annotated[int, Ge(0)] = 0
    """Trials of a random search on validation data, for every method; 0: no tuning."""
    track: tuple[str, ...] = ()
    """Trackers that are told the figures of each epoch: tensorboard, wandb, mlflow."""
    force: bool = False
    """Go on in the folder although settings or data differ from those of the run in it."""
    resume: str = "auto"
    """auto: go on where the folder stopped; never: start anew; or the folder to go on with."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def specs(self) -> list[MethodSpec]:
        """The methods, read."""
        return [MethodSpec.parse(m) for m in self.methods]

    @property
    def scenario(self) -> str | None:
        """The scenario asked for, or the data set's first."""
        entry = paths.entry_of(self.data.name)
        return canonical(self.data.scenario) if self.data.scenario else (entry.scenarios[0] if entry else None)

    @property
    def hash(self) -> str:
        """Eight hexadecimal digits of what is trained: not of seeds, methods, folder and number of jobs."""
        what = {k: v for k, v in asdict(self).items() if k in ("data", "model", "preset", "train", "method")}
        what["data"] = {k: v for k, v in asdict(self.data).items() if v is not None or k in _FIRST}
        what |= {"tune": self.tune} if self.tune else {}
        what["data"] = {k: v for k, v in asdict(self.data).items() if k not in _CORRECTIONS}
        if found := self.data.corrections or digest(asdict(self.data)):
            what["data"]["corrections"] = found
        text = json.dumps({**what, "scenario": self.scenario}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def labels(self) -> list[str]:
        """The methods with the preset and the settings under `method` written into each that has them."""
        return [settings.written(str(spec), self.preset, self.method) for spec in self.specs]


def experiment(*layers: Mapping[str, object], aside: Sequence[str] = ()) -> Experiment:
    """The experiment that layers of settings describe, the last on top; short forms are understood.

    `data: digits`, `methods: erm,molere`, `seeds: 5` (0 to 4) and `seeds: 3,5,7`. Raises one ConfigError,
    with a line for each unknown name or key and each value outside its limits, after the mistakes `aside`.
    """
    merged = merge_all(*(_with_mapping(layer) for layer in layers))
    known = hints(Experiment)
    good, mistakes = dict[str, object](), list(aside)
    for key, value in merged.items():
        if key not in known:
            continue
        try:  # each key by itself, so that a mistake in one does not hide those in another
            read = _READ.get(key, _as_it_is)(value)
            build(Experiment, {key: read})
            good[key] = read
        except ConfigError as e:
            mistakes += str(e).splitlines()
    mistakes += unknown_keys("", (key for key in merged if key not in known), known)
    found = build(Experiment, good)
    refuse([*mistakes, *_mistakes(found, named="methods" in good or "methods" not in merged)])
    if found.data.scenario is not None:
        found = replace(found, data=replace(found.data, scenario=canonical(found.data.scenario)))
    return _validating(found)


def _validating(e: Experiment) -> Experiment:
    """With examples to validate on, every holdout is given, unless the settings choose holdouts themselves."""
    if e.data.val_root is None or "holdout" in e.method or any("holdout" in s.settings for s in e.specs):
        return e
    if not any("holdout" in (settings.known_settings(spec.name) or {}) for spec in e.specs):
        named = ", ".join(spec.name for spec in e.specs)
        raise ConfigError(f"data.val_root: none of {named} validates on a part of its own; add lrw-random or l2r")
    return replace(e, method={**e.method, "holdout": {"kind": "given"}})


def _as_it_is(value: object) -> object:
    return value


def _with_mapping(layer: Mapping[str, object]) -> dict[str, object]:
    return {k: {"name": v} if k == "data" and isinstance(v, str) else v for k, v in layer.items()}


def _methods(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in cast(list[object], texts)):
        raise ConfigError(f"methods must be a list such as [erm, molere]; got {one_line(value)}.")
    named = ",".join(cast(list[str], texts))
    return [str(s) for s in settings.parse_specs(",".join(registry.METHODS) if named.strip() == "all" else named)]


def _seeds(value: object) -> list[int]:
    """5 -> 0, 1, 2, 3, 4; "3,5,7" or a list -> these."""
    if isinstance(value, str):
        parts = [p.strip() for p in value.split(",")]
        read: list[object] = [int(p) if p.isdecimal() else p for p in parts]
        return _seeds(read[0] if len(read) == 1 and parts[0].isdecimal() else read)
    if type(value) is int and 0 < value <= 10_000:
        return list(range(value))
    found = cast(list[object], value) if isinstance(value, list) else []
    good = [s for s in found if type(s) is int and 0 <= s < 2**63]
    if not found or len(good) < len(found):
        given = shown(cast(object, value))
        raise ConfigError(f"seeds must be a number of seeds or a list of them, as in 5 or 3,5,7; got {given}.")
    if len(set(good)) < len(good):
        raise ConfigError(f"seeds must differ; got {shown(good)}.")
    return good


def _track(value: object) -> list[str]:
    names = [n.strip() for n in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(n, str) for n in cast(list[object], names)):
        raise ConfigError(f"track must be a list such as [tensorboard]; got {one_line(value)}.")
    found = cast(list[str], names)
    refuse([unknown("tracker", name, registry.TRACKERS) for name in found if name not in registry.TRACKERS])
    return found


_READ: Mapping[str, Callable[[object], object]] = {"methods": _methods, "seeds": _seeds, "track": _track}
"""Key -> how its short forms are read."""


def _mistakes(e: Experiment, *, named: bool) -> list[str]:
    """What is wrong with settings that can be read; named: whether the methods are those asked for."""
    found = list[str]()
    found += paths.mistakes(asdict(e.data))
    entry = paths.entry_of(e.data.name)
    if entry is not None and e.data.scenario is not None:
        found += _said(lambda text: scenario_of(e.data.name, text), e.data.scenario)
    preset = e.preset if e.preset in registry.PRESETS else "default"
    if preset != e.preset:
        found.append(unknown("preset", e.preset, registry.PRESETS))
    if e.model is not None:
        found += _said(settings.check_model, e.model)
    found += settings.mistakes_in(e.train, settings.recipe_settings(), "train")
    if not named:  # of the methods nothing is known, so any method's settings are admitted
        return found + settings.nobodys([MethodSpec(name) for name in registry.METHODS], e.method)
    found += settings.nobodys(e.specs, e.method)
    for spec in e.specs:
        found += settings.check_spec(spec, settings.applicable(spec, e.method), preset)
    return found


def _said(check: Callable[[str], object], name: str) -> list[str]:
    try:
        check(name)
    except ConfigError as e:
        return str(e).splitlines()
    return []


def resolved_yaml(e: Experiment, *, heading: Sequence[str] = ()) -> str:
    """The experiment as a settings file with a comment for each key; reading it gives the same experiment.

    Settings of training and methods that were not stated follow as comments with their defaults.
    """
    known = settings.schema().get("experiment", {})
    own = () if paths.is_own(e.data.name) else paths.OWN_ONLY
    fields = {k: v for k, v in known.get("data", {}).get("fields", {}).items() if k not in own}
    sections = {"data": fields, "train": settings.recipe_settings()}
    sections["method"] = {k: v for spec in e.specs for k, v in (settings.known_settings(spec.name) or {}).items()}
    lines = [f"# {line}" for line in heading]
    plain = asdict(e)
    plain["data"] = {k: v for k, v in plain["data"].items() if v is not None or k not in paths.OWN_ONLY}
    for key, value in plain.items():
        comment = _comment(known.get(key, {}))
        if key in sections:
            lines += _section(key, cast(Mapping[str, object], value), sections[key], comment)
        else:
            lines.append(f"{key}: {dump_value(value)}{comment}")
    return "\n".join(lines) + "\n"


def _section(key: str, stated: Mapping[str, object], known: Schema, comment: str) -> list[str]:
    unstated = [f"  # {line[2:]}" for line in _lines(_unstated(known, stated), known, "  ")]
    return [f"{key}:{'' if stated else ' {}'}{comment}", *_lines(stated, known, "  "), *unstated]


def _lines(mapping: Mapping[str, object], known: Schema, indent: str) -> list[str]:
    lines = list[str]()
    for key, value in mapping.items():
        entry = known.get(key, {})
        inner = cast(Mapping[str, object], value if isinstance(value, Mapping) else {})
        scalar = "" if inner else f" {dump_value(cast(object, value))}"
        lines.append(f"{indent}{dump_value(key)}:{scalar}{_comment(entry)}")
        lines += _lines(inner, _inside(entry, inner.get("kind")), indent + "  ")
    return lines


def _unstated(known: Schema, stated: Mapping[str, object]) -> dict[str, object]:
    """The defaults of what was not stated, level by level."""
    found = dict[str, object]()
    for key, entry in known.items():
        given = stated.get(key, {})
        if "fields" in entry and isinstance(given, Mapping):
            inner = _unstated(entry["fields"], cast(Mapping[str, object], given))
            found |= {key: inner} if inner else {}
        elif key not in stated and "default" in entry:
            found[key] = entry["default"]
    return found


def _inside(entry: Schema, kind: object) -> Schema:
    return entry.get("fields") or entry.get("kinds", {}).get(kind, {})


def _comment(entry: Schema) -> str:
    return f"  # {entry['help']}" if entry.get("help") else ""
