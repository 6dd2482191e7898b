"""The user's own tables, texts, arrays and sparse rows as the pools of one experiment."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from molere.data.arrays import reader_of
from molere.data.corrupt import stratified_split, stratified_subset
from molere.data.joined import JoinedPool
from molere.data.own import Asked, check_classes, gathered, headline, settings_for, test_part
from molere.data.pixels import as_rgb, centred
from molere.data.pool import Data, TensorPool
from molere.data.readers import read_sheet, roles, rows_of
from molere.data.rows import Numbers, Rows, named, positions, sorted_names, usable, without
from molere.data.scenarios import Part, corrupted, in_both_groups, shifted
from molere.data.tables import Features, texts_of
from molere.data.texts import TextsById, fit_sparse, fit_texts
from molere.data.within import stays
from molere.errors import DataError
from molere.paths import short
from molere.rng import key

NOT_TRAINED = ("select", "holdout")


@dataclass(frozen=True, slots=True)
class Read:
    """A file's rows, and the columns of texts and of images among their contents."""

    rows: Rows
    text: str | None = None
    image: str | None = None


def load_rows(a: Asked) -> Data:
    """Data of a table, an .npz or svmlight file, or a saved Hugging Face data set."""
    main = read_rows(a.path, a, a.roles)
    named_roles = {**a.roles, "text": main.text, "image": main.image}
    others = {part: replace(read_rows(p, a, named_roles, main.rows).rows, split=None) for part, p in a.others.items()}
    parts = gathered(main.rows.parts(), others, str(a.path))
    classes = sorted_names(parts["train"].label)
    check_classes(classes, str(a.path))
    parts = {part: usable(rows, classes, a.on_bad) for part, rows in parts.items()}
    if main.image is not None:
        parts = {part: _decoded(rows, main.image, a) for part, rows in parts.items()}
    parts = {part: without(rows, _unfit(rows), a.on_bad) for part, rows in parts.items()}
    parts = _split(parts, classes, a)
    numbers, pixels = _numbers(parts["train"], main, a)
    data = _data(parts, classes, numbers, pixels, a)
    return data if main.text is None else replace(data, texts=_read_in(parts, main.text))


def _read_in(parts: Mapping[str, Rows], column: str) -> TextsById:
    """What the examples of the training part read, and those of a holdout that trains beside them."""
    rows = [parts[name] for name in ("train", "holdout") if name in parts]
    places = [(part, i) for part in rows for i in range(len(part))] if len(rows) > 1 else None

    def text(i: int) -> str:
        part, row = (rows[0], i) if places is None else places[i]
        return texts_of(part.take(np.array([row])), column)[0]

    return TextsById(np.concatenate([r.ids for r in rows]), text)


def read_rows(path: Path, a: Asked, given: Mapping[str, str | None], like: Rows | None = None) -> Read:
    """The rows of a file; those of another file than the first need the label, and the group where that has some."""
    reader = reader_of(path)
    if reader is not None:
        return Read(_alike(reader(path), like))
    table = read_sheet(path, a.header, given)
    wanted = dict(given)
    if like is not None:  # ids and splits of other files are theirs, if they have any
        wanted |= {role: None for role in ("id", "split") if given.get(role) not in table.column_names}
    found = roles(table, str(path), wanted)
    image = found.get("image") or _image_column(table)
    return Read(_alike(rows_of(table, str(path), found), like), found.get("text"), image)


def _alike(rows: Rows, like: Rows | None) -> Rows:
    """The rows, if their contents are of the same kind as those of the first file; groups only where it has some."""
    if like is None:
        return rows
    if hasattr(rows.content, "column_names") != hasattr(like.content, "column_names"):
        raise DataError(f"{rows.where} and {like.where} are of two kinds; give both as tables, or both as arrays")
    shapes = [getattr(r.content, "shape", ())[1:] for r in (rows, like)]
    if isinstance(rows.content, np.ndarray) and shapes[0] != shapes[1]:
        raise DataError(f"{rows.where} holds x {list(shapes[0])}, {like.where} {list(shapes[1])}; expected one shape")
    if like.group is not None and rows.group is None:
        raise DataError(f"{rows.where} has no groups, but {like.where} has; add the column, or leave --group out")
    return rows if like.group is not None else replace(rows, group=None)


def _image_column(table: Any) -> str | None:  # Any: a table of pyarrow
    """The column of encoded images, as Hugging Face stores them: {bytes, path}."""
    kinds = {field.name: str(field.type) for field in table.schema}
    return next((name for name, kind in kinds.items() if kind.startswith("struct<bytes: ")), None)


def _unfit(rows: Rows) -> dict[int, str]:
    """Rows of an array that hold NaN or infinity."""
    if not isinstance(rows.content, np.ndarray):
        return {}
    x = cast("np.ndarray[Any, Any]", rows.content)
    if x.dtype.kind != "f":
        return {}
    wrong = ~np.isfinite(x.reshape(len(x), -1)).all(1)
    return {int(i): f"{named(rows, int(i))} holds NaN or infinity" for i in np.flatnonzero(wrong)}


def _decoded(rows: Rows, column: str, a: Asked) -> Rows:
    """The rows with the images of a column as their contents, uint8 [n, 3, size, size]; bad ones are named."""
    size, bad = a.image_size or 224, dict[int, str]()
    x = np.zeros((len(rows), 3, size, size), np.uint8)
    for i, cell in enumerate(rows.content[column].to_pylist()):
        held = cast(dict[str, Any], cell) if isinstance(cell, dict) else {"bytes": cell}
        try:
            with Image.open(io.BytesIO(held["bytes"]) if held.get("bytes") else _named_by(held, rows, a)) as file:
                x[i] = np.asarray(centred(as_rgb(file), size)).transpose(2, 0, 1)
        except Exception as error:  # a damaged image can raise anything
            bad[i] = f"{named(rows, i)}: its image cannot be read ({' '.join(str(error).split())})"
    return without(replace(rows, content=x), bad, a.on_bad)


def _named_by(held: Mapping[str, Any], rows: Rows, a: Asked) -> Path:
    """The file that a cell without bytes names, below the folder of its table or `root`; ValueError if it leaves it."""
    table = Path(rows.where)
    base = Path(a.root).expanduser() if a.root is not None else table if table.is_dir() else table.parent
    path = str(held.get("path") or "")
    if not path:
        raise ValueError("it is empty")
    if not stays(base, path):
        raise ValueError(f"{path} leaves {base}; give the folder that holds it with --root")
    return base / path


def _split(parts: Mapping[str, Rows], classes: tuple[str, ...], a: Asked) -> dict[str, Rows]:
    """train, select and holdout where there are, then the tests, the main one first; limited as asked."""
    found = dict(parts)
    train = found.pop("train")
    outside = {name: found.pop(name) for name in NOT_TRAINED if name in found}
    if split := test_part(_y(train, classes), a, list(found)):
        train, found = train.take(split[0]), {"test": train.take(split[1]), **found}
    if "select" not in outside and (held := round(a.select * len(train))):
        held = held if a.limit is None else min(1000, held)
        rest, kept = stratified_split(_y(train, classes), held, key(a.seed, "select"))
        train, outside = train.take(rest), {**outside, "select": train.take(kept)}
    if a.limit is not None and a.limit < len(train):
        train = train.take(stratified_subset(_y(train, classes), a.limit, key(a.seed, "limit")))
    return {"train": train, **outside, **found}


def _y(rows: Rows, classes: tuple[str, ...]) -> Int[Tensor, " n"]:
    return torch.from_numpy(positions(rows.label, classes))


def _numbers(train: Rows, main: Read, a: Asked) -> tuple[Numbers, dict[str, Any]]:
    """What turns contents into x, fitted on the training part, and settings of pools of images."""
    content = train.content
    if main.text is not None:
        column = main.text
        texts = fit_texts(texts_of(train, column), a.text_as, a.dimensions)
        return (lambda rows: texts(texts_of(rows, column))), {}
    if hasattr(content, "column_names"):
        return Features(train, a.features, a.drop_columns, a.scale), {}
    if not isinstance(content, np.ndarray):
        sparse = fit_sparse(content, a.dimensions)
        return (lambda rows: sparse(rows.content)), {}
    if content.dtype == np.uint8 and content.ndim > 2:
        return (lambda rows: torch.from_numpy(rows.content)), _pixels(content, a)
    return _standard(train, a.scale), {}


def _standard(train: Rows, scale: bool) -> Numbers:
    """Arrays as they are; vectors to mean 0 and deviation 1 of the training part (constant columns to 0)."""
    x = cast("np.ndarray[Any, Any]", train.content)
    if not scale or x.ndim != 2:
        return lambda rows: torch.from_numpy(
            rows.content if rows.content.dtype.kind != "f" else np.float32(rows.content)
        )
    mean, deviation = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    spread = np.where(deviation > 0, deviation, 1.0)
    return lambda rows: torch.from_numpy(((rows.content - mean) / spread).astype(np.float32))


def _pixels(x: Any, a: Asked) -> dict[str, Any]:
    """Mean and deviation of each channel over the training part, and what is done to images in training."""
    if a.augment == "imagenet":
        raise DataError(f"{a.name}: --augment imagenet is for image files; use crop-flip for images in an array")
    some = x[np.linspace(0, len(x) - 1, min(len(x), 1000)).astype(np.int64)] / 255
    axes = (0, 2, 3) if some.ndim == 4 else (0, 1, 2)
    mean, std = np.atleast_1d(some.mean(axes)), np.atleast_1d(some.std(axes)).clip(1 / 255)
    return {"mean": mean.tolist(), "std": std.tolist(), "augment": a.augment or "none"}


def _data(
    parts: Mapping[str, Rows], classes: tuple[str, ...], numbers: Numbers, pixels: Mapping[str, Any], a: Asked
) -> Data:
    """The pools: training and selection part after the corruption, tests as the scenario has them."""
    known = [rows.group for rows in parts.values() if rows.group is not None]
    groups = sorted_names(np.concatenate(known)) if known else ()
    made = {name: _part(rows, classes, groups, numbers) for name, rows in parts.items()}
    trained = [name for name in ("train", "select") if name in made]
    tests = [name for name in made if name not in ("train", *NOT_TRAINED)]
    dirty = corrupted([made[n] for n in trained], a.scenario, len(classes), a.seed, noise_seed=a.noise_seed)
    done = {**made, **dict(zip(trained, dirty, strict=True))}
    for name in tests:
        other = shifted(made[name], a.scenario)
        done[name] = in_both_groups(made[name], a.scenario)
        done |= {} if other is None else {f"{name}-shifted": other}
    pools = {name: _pool(part, parts[name.removesuffix("-shifted")], classes, pixels) for name, part in done.items()}
    train, select, held = pools.pop("train"), pools.pop("select", None), pools.pop("holdout", None)
    return Data(
        name=short(a.name),
        train=train if held is None else JoinedPool(train, held),
        select=select,
        tests=pools,
        group_names=a.scenario.groups or groups,
        headline=headline(a, groups, list(pools)),
        default_model="cnn" if len(train.shape) == 3 else "mlp",
        recipe={**settings_for(len(train)), "lr": 0.05},
        scenario=a.scenario_name,
        class_names=classes,
    )


def _part(rows: Rows, classes: tuple[str, ...], groups: tuple[str, ...], numbers: Numbers) -> Part:
    group = None if rows.group is None else torch.from_numpy(positions(rows.group, groups))
    return Part(numbers(rows), _y(rows, classes), torch.arange(len(rows)), group)


def _pool(part: Part, rows: Rows, classes: tuple[str, ...], pixels: Mapping[str, Any]) -> TensorPool:
    known = {"group": part.group, "clean_y": part.clean_y, "flip_probability": part.flip_probability}
    ids = rows.ids[part.ids.numpy()]
    return TensorPool(cast(Tensor, part.x), part.y, num_classes=len(classes), ids=ids, **known, **pixels)
