"""Rows as they were read from the user's files: contents not yet numbers, names not yet classes."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from jaxtyping import Int
from torch import Tensor

from molere.data.bad import good_rows
from molere.errors import DataError
from molere.names import one_line

Names: TypeAlias = npt.NDArray[np.character]  # texts of numpy
Ids: TypeAlias = npt.NDArray[np.generic]

MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
"""Cells that hold no number."""
IGNORED = "-100"
"""A label that torch's losses leave out in silence; among whole numbers from 0 on it is no class."""
WHOLE = 2.0**53  # up to here a float says which whole number is meant
SAME = {
    "training": "train",
    "val": "select",
    "valid": "select",
    "validation": "select",
    "dev": "select",
    "hard": "holdout",
    "testing": "test",
}
"""Other names of the parts train, select (picks the best update), holdout (methods validate on it) and test."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Examples of one file: contents, names of labels ("" where missing), and what else is known of each.

    ids are the user's own (`has_ids`), or else positions in the file.
    """

    where: str
    content: Any  # a table of pyarrow, an array, a sparse matrix: what `take` below can index
    label: Names
    ids: Ids
    has_ids: bool
    group: Names | None = None
    split: Names | None = None

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: Int[Tensor, " m"] | npt.NDArray[np.int64]) -> "Rows":
        """These rows, in this order."""
        at = index.numpy() if isinstance(index, Tensor) else index
        columns = {name: None if (v := getattr(self, name)) is None else v[at] for name in ("group", "split")}
        content = self.content.take(at) if hasattr(self.content, "column_names") else self.content[at]
        return replace(self, content=content, label=self.label[at], ids=self.ids[at], **columns)

    def parts(self) -> dict[str, "Rows"]:
        """The rows by the part that their split names; all of them as `train` where there is no split."""
        if self.split is None:
            return {"train": self}
        named = np.asarray([SAME.get(s.lower(), s) if s.lower() != "train" else "train" for s in self.split])
        found = {str(name): replace(self.take(np.flatnonzero(named == name)), split=None) for name in np.unique(named)}
        if "train" not in found:
            raise DataError(f"{self.where}: no row is of the split `train`; the split has {', '.join(found)}")
        return found


def names_of(values: Any) -> Names:
    """Labels or groups as names: whole numbers without a point, texts without blanks around them, "" if missing."""
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "f":
        wide = array.astype(np.float64)
        return np.asarray([_number(float(v)) for v in wide], dtype=np.str_)
    if array.dtype.kind == "O":
        return np.asarray([_name(v) for v in cast(Sequence[object], array)], dtype=np.str_)
    return np.char.strip(array.astype(np.str_))


def _name(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return _number(value)
    return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else str(value).strip()


def _number(value: float) -> str:
    if np.isnan(value):
        return ""
    return str(int(value)) if value == round(value) and abs(value) < WHOLE else repr(value)


def sorted_names(names: Names) -> tuple[str, ...]:
    """The names that occur: by value where all are numbers, else by alphabet; the missing name is none."""
    found = sorted(classes_among({str(name) for name in np.unique(names)}))
    try:
        return tuple(sorted(found, key=float))
    except ValueError:
        return tuple(found)


def classes_among(names: Collection[str]) -> set[str]:
    """The names without those that say "no label": NaN; beside numbers alone MISSING; beside whole numbers IGNORED."""
    found = {name for name in names if name and name.lower() != "nan"}
    others = found - {*MISSING}
    if all(map(_is_number, others)):
        found = others
    others = found - {IGNORED}
    return others if all(name.isdecimal() for name in others) else found


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def positions(names: Names, known: Sequence[str]) -> npt.NDArray[np.int64]:
    """Position of each name among the known ones; -1 where it is not among them."""
    order = np.argsort(np.asarray(known, dtype=np.str_), kind="stable")
    ordered = np.asarray(known, dtype=np.str_)[order]
    at = np.searchsorted(ordered, names).clip(max=len(ordered) - 1)
    return np.where(ordered[at] == names, order[at], -1)


def usable(rows: Rows, classes: Sequence[str], on_bad: str) -> Rows:
    """The rows with a label among the classes and an id of their own; the others are named and counted."""
    at = positions(rows.label, classes)
    bad = {int(i): _bad_label(rows, int(i), classes) for i in np.flatnonzero(at < 0)}
    if rows.group is not None:
        bad |= {int(i): f"{named(rows, int(i))} has no group" for i in np.flatnonzero(rows.group == "")}
    if rows.has_ids:
        bad |= _repeated(rows)
    good = good_rows(len(rows), bad, rows.where, on_bad)
    return rows if good.all() else rows.take(np.flatnonzero(good))


def without(rows: Rows, bad: Mapping[int, str], on_bad: str) -> Rows:
    """The rows that are not bad, which are named and counted."""
    good = good_rows(len(rows), bad, rows.where, on_bad)
    return rows if good.all() else rows.take(np.flatnonzero(good))


def named(rows: Rows, row: int) -> str:
    """One row as a message names it: by its id, else by its position in the file (from 0)."""
    return f"{'id' if rows.has_ids else 'row'} {rows.ids[row]}"


def _bad_label(rows: Rows, row: int, classes: Sequence[str]) -> str:
    label = str(rows.label[row])
    if not label:
        return f"{named(rows, row)} has no label"
    some = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return f"{named(rows, row)} has the label {one_line(label)}, which is not among {some}"


def _repeated(rows: Rows) -> dict[int, str]:
    _, first, inverse = np.unique(rows.ids, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(rows)))
    return {int(i): f"id {rows.ids[i]} of row {i} is that of row {first[inverse[i]]} too" for i in again}


Numbers: TypeAlias = Callable[[Rows], Tensor]
"""What turns the contents of rows into x [n, ...], once it has been fitted."""
