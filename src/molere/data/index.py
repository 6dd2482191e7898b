"""Indexes: which image files there are and what is known of each, from class folders or from a table."""

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from molere.data.bad import good_rows
from molere.data.folders import listed
from molere.data.imagefiles import ImageFiles
from molere.data.labels import Names
from molere.data.rows import classes_among
from molere.data.within import inside
from molere.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Image files below `root` with class, and group, split and id where known; row i of all columns is one example.

    ids are the user's own, else the paths: they stay what they are when other rows are left out.
    """

    root: Path
    paths: Names
    y: Int[Tensor, " n"]
    classes: tuple[str, ...]
    group: Int[Tensor, " n"] | None = None
    group_names: tuple[str, ...] = ()
    split: Names | None = None
    ids: npt.NDArray[np.generic] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def files(self) -> ImageFiles:
        """The rows as files."""
        return ImageFiles(self.root, self.paths)

    def take(self, index: Int[Tensor, " m"]) -> "Index":
        """These rows, in this order; classes and names of groups stay."""
        at = index.numpy()
        rows = {name: None if (v := getattr(self, name)) is None else v[at] for name in ("split", "ids")}
        group = None if self.group is None else self.group[index]
        return replace(self, paths=self.paths[at], y=self.y[index], group=group, **rows)

    def part(self, name: str) -> "Index":
        """Rows whose split is `name`; none where there is no such split."""
        rows = np.zeros(len(self), dtype=np.bool_) if self.split is None else self.split == name
        return self.take(torch.from_numpy(np.flatnonzero(rows)))


def scan_folder(root: str | Path, classes: Sequence[str] | None = None) -> Index:
    """Images below `root`, one folder for each class, in torchvision's order; ids are the paths.

    `classes` None: the sorted names of the folders; else the classes of the training data, in their order, of which
    some folders may be missing. Raises DataError for folders that are none of these classes.
    """
    base = Path(root).expanduser()
    listing = listed(base)
    y = torch.from_numpy(listing.y)
    if classes is not None:
        strange = [name for name in listing.classes if name not in set(classes)]
        if strange:
            raise DataError(f"{base}: {_some(strange)} are no classes of the training data; known: {_some(classes)}")
        place = {name: at for at, name in enumerate(classes)}
        y = torch.tensor([place[name] for name in listing.classes])[y]
    return Index(base, listing.paths, y, tuple(classes or listing.classes), ids=listing.paths)


def read_table(
    path: str | Path,
    *,
    image: str = "image",
    label: str = "label",
    group: str | None = None,
    split: str | None = None,
    id: str | None = None,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    on_bad: str = "error",
) -> Index:
    """Images named in a table (.csv, .tsv, .parquet) by paths below `root`, by default the folder of the table.

    `label`, `group`, `split` and `id` name columns; classes and groups are the sorted distinct values (numbers by
    size), or `classes` as given. Files that are missing, paths that leave the root, labels that are empty or not
    among the classes, and ids that came before are bad rows: named and counted, refused or left out (`on_bad`).
    """
    place = Path(path).expanduser()
    table = _columns(place, {"image": image, "label": label, "group": group, "split": split, "id": id})
    base = place.parent if root is None else Path(root).expanduser()
    paths, bad = _relative(table["image"], base)
    names = _names(table["label"]) if classes is None else tuple(classes)
    y, strange = _places(table["label"], names, "label")
    groups = _names(table["group"]) if "group" in table else ()
    of_group, ungrouped = _places(table["group"], groups, "group") if "group" in table else (None, {})
    bad = {**_again(table.get("id")), **ungrouped, **strange, **bad}
    good = good_rows(len(paths), bad, str(place), on_bad)
    own = np.asarray(paths, dtype=np.str_)
    index = Index(
        base,
        own,
        torch.from_numpy(y),
        names,
        None if of_group is None else torch.from_numpy(of_group),
        groups,
        np.asarray(list(map(str, table["split"]))) if "split" in table else None,
        np.asarray(table["id"]) if "id" in table else own,
    )
    return index if good.all() else index.take(torch.from_numpy(np.flatnonzero(good)))


def _columns(place: Path, wanted: Mapping[str, str | None]) -> dict[str, list[object]]:
    """The wanted columns of a table; DataError names those that are not there, and those that are."""
    asked = {use: name for use, name in wanted.items() if name is not None}
    table = _table(place, list(asked.values()))
    missing = [name for name in asked.values() if name not in table.column_names]
    if missing:
        raise DataError(f"{place} has no column {_some(missing)}; its columns are {_some(table.column_names, 20)}")
    if len(table) == 0:
        raise DataError(f"{place} has no rows; expected one for each image")
    found: dict[str, list[object]] = {use: table[name].to_pylist() for use, name in asked.items()}
    return {use: _numbered(column) if use == "id" else column for use, column in found.items()}


def _table(place: Path, text: Sequence[str]) -> Any:  # Any: pyarrow comes without types
    """The table of a file; in one of text the columns `text` stay as they are written ("007" is not 7)."""
    arrow = importlib.import_module("pyarrow")
    try:
        if place.suffix.lower() == ".parquet":
            return importlib.import_module("pyarrow.parquet").read_table(place)
        csv = importlib.import_module("pyarrow.csv")
        tabs = csv.ParseOptions(delimiter="\t" if place.suffix.lower() in (".tsv", ".tab") else ",")
        kinds = csv.ConvertOptions(column_types={name: arrow.string() for name in text})
        return csv.read_csv(place, parse_options=tabs, convert_options=kinds)
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{place} cannot be read as a table ({reason}); give a .csv, .tsv or .parquet file") from error


def _numbered(ids: list[object]) -> list[object]:
    """Ids as whole numbers where all of them are written as such."""
    plain = all(isinstance(v, str) and v.isascii() and v.isdecimal() and (v == "0" or v[0] != "0") for v in ids)
    return [int(cast(str, v)) for v in ids] if plain else ids


def _relative(given: Sequence[object], base: Path) -> tuple[list[str], dict[int, str]]:
    """Paths below the base with forward slashes, and what is wrong with those that are no file there."""
    whole = os.path.abspath(base)
    paths, bad, known = list[str](), dict[int, str](), dict[str, dict[str, bool]]()
    for row, value in enumerate(given):
        text = "" if value is None else str(value).replace("\\", "/") if os.sep == "/" else str(value)
        path = os.path.relpath(os.path.normpath(os.path.join(whole, text)), whole)
        paths.append(Path(path).as_posix())
        if not text:
            bad[row] = f"row {row} names no image"
        elif path == ".." or path.startswith(f"..{os.sep}"):
            bad[row] = f"row {row}: {text} leaves {base}"
        elif (stays := _stays(os.path.join(whole, path), whole, known)) is None:
            bad[row] = f"row {row}: {base / path} is not there"
        elif not stays:
            bad[row] = f"row {row}: {text} leaves {base} by a link"
    return paths, bad


def _stays(path: str, whole: str, known: dict[str, dict[str, bool]]) -> bool | None:
    """Whether a file stays below the base; None where there is none. Every folder is listed once."""
    folder, name = os.path.split(path)
    if folder not in known:
        known[folder] = inside(folder, whole)
    return known[folder].get(name)


def _names(values: Sequence[object]) -> tuple[str, ...]:
    """The distinct values as text, sorted: numbers by size, text by letters; those that say none left out."""
    distinct = classes_among({_text(value) for value in values})
    try:
        return tuple(sorted(distinct, key=lambda text: (float(text), text)))
    except ValueError:
        return tuple(sorted(distinct))


def _places(values: Sequence[object], names: Sequence[str], what: str) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
    """The position of each value among the names (0 where it is none), and what is wrong with those that are none."""
    place, known = {name: at for at, name in enumerate(names)}, _some(names)
    y, bad = np.zeros(len(values), dtype=np.int64), dict[int, str]()
    for row, text in enumerate(map(_text, values)):
        if text in place:
            y[row] = place[text]
        else:
            bad[row] = f"row {row}: {what} {text!r} is not one of {known}" if text else f"row {row} has no {what}"
    return y, bad


def _text(value: object) -> str:
    """A cell as text without blanks around it; "" where empty; 2.0 is 2, as whole numbers beside empty cells are."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _again(ids: Sequence[object] | None) -> dict[int, str]:
    """Rows whose id came before."""
    first, bad = dict[object, int](), dict[int, str]()
    for row, own in enumerate(ids or ()):
        before = first.setdefault(own, row)
        if before != row:
            bad[row] = f"row {row}: id {own!r} is also that of row {before}"
    return bad


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
