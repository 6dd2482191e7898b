"""Files with what a person has decided on examples: new labels, weights, or that they be dropped. Needs no torch.

    labels    CSV with columns `id` and `label` (a class by its name or number)
    weights   Parquet or CSV with columns `id` (or `sample_id`) and `weight`
    drop      text, an id in each line, or CSV with a column `id`

Other columns are ignored. Ids are compared as text.
"""

import csv
import hashlib
import importlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from molere.errors import DataError
from molere.names import nearest

Given: TypeAlias = str | Path | None
KINDS = ("labels", "weights", "drop")


def digest(files: Mapping[str, Given]) -> str | None:
    """Twelve hexadecimal digits of the content of the files, whatever their names; None where there are none.

    `files` may hold other keys than those of KINDS. Raises DataError if a file cannot be read.
    """
    given = {kind: Path(path) for kind in KINDS if (path := files.get(kind)) is not None}
    found = hashlib.sha256()
    for kind, path in given.items():
        found.update(kind.encode() + hashlib.sha256(_bytes(path)).digest())
    return found.hexdigest()[:12] if given else None


def read_labels(path: Path, classes: int, names: Sequence[str] = ()) -> dict[str, int]:
    """Labels in 0..classes-1 by id, given as names of classes or, what is no name, as numbers.

    Raises DataError that names line, id and value.
    """
    known = {name: number for number, name in enumerate(names)}
    found = dict[str, int]()
    for line, row in _rows(path, "id", "label"):
        where, text = f"{path}, line {line}: label {row['label']!r} of example {row['id']}", row["label"].strip()
        label = known.get(text, _whole(text))
        if label is None or not label < classes:
            near = nearest(text, names)
            hint = f"did you mean {near!r}?" if near else f"give a number from 0 to {classes - 1}, or remove the line"
            raise DataError(f"{where} is no class; {hint}")
        if found.setdefault(row["id"], label) != label:
            above = names[found[row["id"]]] if names else found[row["id"]]
            raise DataError(f"{where}, which has label {above} above; keep one line")
    return found


def _whole(text: str) -> int | None:
    """A number of a class, also as spreadsheets write it (2.0)."""
    whole = text.removesuffix(".0")
    return int(whole) if whole.isascii() and whole.isdigit() else None


def read_weights(path: Path) -> dict[str, float]:
    """Weights of at least 0 by id, NaN where the example has none; DataError names id and value."""
    found = dict[str, float]()
    for name, weight in _weights(path):
        if weight < 0 or math.isinf(weight):
            raise DataError(f"{path}: weight {weight} of example {name} is not a number of at least 0; mend it")
        if name in found:
            raise DataError(f"{path}: example {name} has two weights; keep one")
        found[name] = weight
    return found


def read_ids(path: Path) -> list[str]:
    """Ids, one in each line that is not empty, or a CSV's column `id`."""
    text = _text(path)
    first = text.splitlines()[0] if text.strip() else ""
    if any("id" in _cells(first, mark) for mark in _MARKS):
        return [row["id"] for _, row in _rows(path, "id")]
    return [line.strip() for line in text.splitlines() if line.strip()]


def _weights(path: Path) -> Iterator[tuple[str, float]]:
    if path.suffix == ".parquet":
        table = _parquet(path)
        key = "id" if "id" in table else "sample_id"
        if key not in table or "weight" not in table:
            raise DataError(f"{path} has columns {', '.join(table)}; expected id and weight")
        yield from ((str(k), _number(w, path, k)) for k, w in zip(table[key], table["weight"], strict=True))
    else:
        for _, row in _rows(path, "id", "weight"):
            yield row["id"], _number(row["weight"].strip(), path, row["id"])


def _number(value: Any, path: Path, name: Any) -> float:  # Any: a cell
    if value is None or value == "":
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{path}: weight {value!r} of example {name} is not a number; mend it") from None


def _parquet(path: Path) -> dict[str, list[Any]]:  # Any: cells
    _bytes(path)  # whether it is there
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    try:
        return cast("dict[str, list[Any]]", parquet.read_table(path).to_pydict())
    except arrow.ArrowException as error:
        raise DataError(f"{path} is no table in Parquet ({str(error).splitlines()[0]}); give one, or a CSV") from error


_MARKS = (",", ";", "\t")


def _cells(line: str, mark: str) -> list[str]:
    return [cell.strip() for row in csv.reader([line], delimiter=mark) for cell in row]


def _rows(path: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of its line, the columns asked for) of each row of a CSV that is not empty."""
    text = _text(path)
    head = text.splitlines()[0] if text.strip() else ""
    mark = next((m for m in _MARKS if set(columns) <= set(_cells(head, m))), None)
    if mark is None:
        raise DataError(f"{path} begins with {head[:80]!r}; expected a CSV with columns {' and '.join(columns)}")
    names = _cells(head, mark)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    next(reader)
    for cells in reader:
        if not any(cells):
            continue
        if len(cells) < len(names):
            raise DataError(f"{path}, line {reader.line_num}: {len(cells)} cells, expected {len(names)}; mend the line")
        row = dict(zip(names, cells, strict=False))
        yield reader.line_num, {k: row[k].strip() if k == "id" else row[k] for k in columns}


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a text file in UTF-8; save it as CSV in UTF-8") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({(error.strerror or str(error)).lower()}); check the name") from None
