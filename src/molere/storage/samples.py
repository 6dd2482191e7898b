"""Tables of examples as Parquet files; `samples.parquet` has one row per example of the pool, sorted by `sample_id`."""

import importlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from molere.errors import StorageError
from molere.storage import files

# Any: columns may hold any element type, and pyarrow, loaded on first use, comes without types.
Column = npt.NDArray[Any] | Tensor | Sequence[Any]


def write_samples(path: Path, columns: Mapping[str, Column]) -> None:
    """Replace a Parquet file (zstd) by columns of equal length, rows sorted by `sample_id`.

    Equal columns give equal bytes. Raises ValueError when `sample_id` is missing or repeated, or
    lengths differ.
    """
    files.write_bytes(path, samples_bytes(columns))


def samples_bytes(columns: Mapping[str, Column]) -> bytes:
    """The content of such a file."""
    arrays = {name: _array(column) for name, column in columns.items()}
    if "sample_id" not in arrays or len({len(a) for a in arrays.values()}) != 1:
        lengths = {name: len(a) for name, a in arrays.items()}
        raise ValueError(f"samples need a sample_id and columns of one length; got {lengths}")
    order = np.argsort(arrays["sample_id"], kind="stable")
    ids = arrays["sample_id"][order]
    if (ids[1:] == ids[:-1]).any():
        raise ValueError("samples need each sample_id once")
    return _table_bytes({name: a[order] for name, a in arrays.items()})


def write_table(path: Path, columns: Mapping[str, Column]) -> None:
    """Replace a Parquet file (zstd) by columns of equal length, rows as they come; equal columns give equal bytes."""
    files.write_bytes(path, _table_bytes(columns))


def _table_bytes(columns: Mapping[str, Column]) -> bytes:
    arrow, parquet = _arrow()
    table = arrow.table({name: arrow.array(_array(column)) for name, column in columns.items()})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_samples(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The columns of a table of examples; StorageError when it is missing or damaged."""
    arrow, parquet = _arrow()
    try:
        table = parquet.read_table(io.BytesIO(path.read_bytes()), page_checksum_verification=True)
    except (OSError, arrow.ArrowException) as error:
        raise StorageError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from error
    return {name: table[name].to_numpy() for name in table.column_names}


def _array(column: Column) -> npt.NDArray[Any]:
    return column.detach().cpu().numpy() if isinstance(column, Tensor) else np.asarray(column)


def _arrow() -> tuple[Any, Any]:
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
