"""Feature columns as numbers: numbers filled and scaled, names one-hot, lists of numbers as they come.

What is fitted (medians, means, deviations, names) is fitted on the training part alone.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any  # Any: pyarrow's tables and scikit-learn's estimators come without types

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from molere.data.readers import MISSING, column_of
from molere.data.rows import Rows, named
from molere.errors import DataError

NAMES = 64  # one-hot columns that a column of names becomes at most; rare names share one
DAY = 86_400.0
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Columns:
    """Feature columns by what they hold: numbers, names, lists of numbers."""

    numbers: tuple[str, ...]
    names: tuple[str, ...]
    lists: tuple[str, ...]


class Features:
    """What turns the columns of a table into x [n, d] float32.

    Numbers: missing ones become the median, with a column that says so; dates count in days; then (v - mean) /
    deviation. Names: one-hot, the 63 most frequent and one for the rest; a missing name is a name. Raises DataError
    naming the column for kinds that are neither.
    """

    def __init__(self, train: Rows, features: Sequence[str] | None, drop: Sequence[str] | None, scale: bool) -> None:
        self.columns = _columns(train, features, drop)
        impute, process = importlib.import_module("sklearn.impute"), importlib.import_module("sklearn.preprocessing")
        self._filler = impute.SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        self._scaler = process.StandardScaler(with_mean=scale, with_std=scale)
        self._encoder = process.OneHotEncoder(
            handle_unknown="infrequent_if_exist", max_categories=NAMES, sparse_output=False, dtype=np.float32
        )
        numbers = self._numbers(train)
        self.has_numbers = numbers.shape[1] > 0
        if self.has_numbers:
            self._scaler.fit(self._filler.fit_transform(numbers))
        if self.columns.names:
            self._encoder.fit(_names(train, self.columns.names))

    def __call__(self, rows: Rows) -> Tensor:
        """x [n, d]: numbers, then lists, then a column for each name."""
        parts = list[npt.NDArray[np.float32]]()
        if self.has_numbers:
            filled = self._filler.transform(self._numbers(rows))
            parts.append(np.asarray(self._scaler.transform(filled), dtype=np.float32))
        if self.columns.names:
            parts.append(self._encoder.transform(_names(rows, self.columns.names)))
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def _numbers(self, rows: Rows) -> Matrix:
        single = [_number(rows, name)[:, None] for name in self.columns.numbers]
        blocks = [_block(rows, name) for name in self.columns.lists]
        found: Matrix = np.concatenate([*single, *blocks], axis=1) if single or blocks else np.zeros((len(rows), 0))
        endless = np.isinf(found).any(1)
        if endless.any():
            first = named(rows, int(endless.argmax()))
            raise DataError(f"{rows.where}: {first} holds infinity ({int(endless.sum())} such); mend or remove them")
        return found


def _columns(rows: Rows, features: Sequence[str] | None, drop: Sequence[str] | None) -> Columns:
    """The chosen columns by kind; what holds nothing at all is left out."""
    types, table = importlib.import_module("pyarrow").types, rows.content
    has: list[str] = table.column_names
    left = {column_of(has, name, rows.where, "--drop-columns") for name in drop or ()}
    chosen = [column_of(has, name, rows.where, "feature") for name in features or has if name not in left]
    found: dict[str, list[str]] = {"numbers": [], "names": [], "lists": []}
    for name in chosen:
        kind = table.schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if types.is_null(kind):
            continue
        found[_kind(types, kind, name, rows.where)].append(name)
    if not any(found.values()):
        raise DataError(f"{rows.where} has no feature column; it has {', '.join(has) or 'only labels'}")
    return Columns(**{key: tuple(names) for key, names in found.items()})


def _kind(types: Any, kind: Any, name: str, where: str) -> str:
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "lists"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "names"
    if types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind) or types.is_nested(kind):
        raise DataError(
            f"{where}: column '{name}' holds {kind}; leave it out with --drop-columns {name}, or name it by --image"
        )
    return "numbers"


def _number(rows: Rows, name: str) -> Matrix:
    """One column as float64 [n], missing values as NaN; dates and times in days."""
    arrow = importlib.import_module("pyarrow")
    types, column = arrow.types, _column(rows, name)
    share = 1.0
    if types.is_timestamp(column.type):
        column, share = column.cast(arrow.timestamp("s"), safe=False).cast(arrow.int64()), DAY
    elif types.is_date(column.type):
        column = column.cast(arrow.date32()).cast(arrow.int32())
    elif types.is_boolean(column.type):
        column = column.cast(arrow.int8())
    elif types.is_time(column.type) or types.is_duration(column.type):
        column = column.cast(arrow.int32() if types.is_time32(column.type) else arrow.int64())
    try:
        column = column.cast(arrow.float64(), safe=False)
    except arrow.ArrowException as error:
        said = " ".join(str(error).split())
        raise DataError(f"{rows.where}: column '{name}' holds numbers in training, not here ({said})") from error
    values: Matrix = column.to_numpy()
    return values / share


def _block(rows: Rows, name: str) -> Matrix:
    """A column of lists of numbers as float64 [n, length of the first]."""
    arrow = importlib.import_module("pyarrow")
    column = _column(rows, name).combine_chunks()
    lengths = np.asarray(importlib.import_module("pyarrow.compute").list_value_length(column).fill_null(-1))
    other = lengths != lengths[0]
    if other.any() or lengths[0] < 1:
        first = int(other.argmax())
        said = f"{named(rows, first)} has {max(0, int(lengths[first]))} numbers in '{name}'"
        raise DataError(
            f"{rows.where}: {said}, {named(rows, 0)} {max(0, int(lengths[0]))}; expected as many in each row"
        )
    flat: Matrix = column.flatten().cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    return flat.reshape(len(rows), int(lengths[0]))


def _names(rows: Rows, columns: Sequence[str]) -> npt.NDArray[np.object_]:
    """Names [n, columns] without blanks around them; what stands for a missing value is ""."""
    arrow = importlib.import_module("pyarrow")
    found = np.empty((len(rows), len(columns)), dtype=object)
    for at, name in enumerate(columns):
        values: list[str | None] = _column(rows, name).cast(arrow.string()).to_pylist()
        found[:, at] = ["" if v is None or v.strip() in MISSING else v.strip() for v in values]
    return found


def _column(rows: Rows, name: str) -> Any:
    """The column of that name; DataError where a test file lacks it."""
    if name not in rows.content.column_names:
        raise DataError(
            f"{rows.where} lacks the column '{name}' that the training data have; add it, or --drop-columns {name}"
        )
    column, types = rows.content[name], importlib.import_module("pyarrow").types
    return column.cast(column.type.value_type) if types.is_dictionary(column.type) else column


def texts_of(rows: Rows, column: str) -> list[str]:
    """A column of texts; a missing one is empty."""
    arrow = importlib.import_module("pyarrow")
    values: list[str | None] = _column(rows, column).cast(arrow.string()).to_pylist()
    return ["" if value is None else value for value in values]
