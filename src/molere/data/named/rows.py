"""What the readers of data sets share: rows of image files, columns of CSV tables, lines of text files."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool
from torch import Tensor

from molere.data.index import Index
from molere.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a data set is made of: a pool, tests (the first is the main one), perhaps a part of its own to select by."""

    train: Index
    tests: Mapping[str, Index]
    select: Index | None = None
    answers: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """By test: the classes among which its answers are looked for; all where it is not named."""
    validation: Index | None = None
    """Examples to validate on, added to the pool for methods that are told to (holdout given)."""


def rows_of(
    root: Path,
    paths: Sequence[str],
    y: Sequence[int],
    classes: Sequence[str],
    group: Sequence[int] | None = None,
    group_names: Sequence[str] = (),
) -> Index:
    """Rows of image files below a root; ids are the paths."""
    names = np.asarray(paths, dtype=np.str_)
    labels = torch.tensor(y, dtype=torch.int64)
    groups = None if group is None else torch.tensor(group, dtype=torch.int64)
    return Index(root, names, labels, tuple(classes), groups, tuple(group_names), ids=names)


def below(path: str | Path, root: Path) -> str:
    """A file's path relative to a root, with forward slashes."""
    return PurePosixPath(Path(path).relative_to(root)).as_posix()


def columns_of(path: Path, *names: str) -> dict[str, list[str]]:
    """Columns of a CSV file as text; DataError names a column or a cell that is not there."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            there = list(table.fieldnames or ())
            lacking = [name for name in names if name not in there]
            if lacking:
                raise DataError(f"{path} lacks the column {', '.join(lacking)}; it has {', '.join(there)}")
            found: dict[str, list[str]] = {name: [] for name in names}
            for row in table:
                for name in names:
                    found[name].append(_cell(path, table.line_num, name, row))
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); get it again") from error


def _cell(path: Path, line: int, name: str, row: Mapping[str, str | None]) -> str:
    value = row[name]
    if value is None:
        raise DataError(f"{path}, line {line}: there is no {name}; the line is cut short, get the file again")
    return value


def whole_numbers(path: Path, name: str, values: Iterable[str], limit: int | None = None) -> list[int]:
    """Numbers 0, 1, 2, ... (below a limit) from text; DataError names file, line and value of the first other one."""
    found = list[int]()
    for line, value in enumerate(values, start=2):
        text = value.removesuffix(".0")
        if not text.isdecimal() or (limit is not None and int(text) >= limit):
            expected = "a whole number from 0 on" if limit is None else f"one of 0 ... {limit - 1}"
            raise DataError(f"{path}, line {line}: {name} is {value!r}, expected {expected}; get the file again")
        found.append(int(text))
    return found


def lines_of(path: Path) -> list[str]:
    """Lines of a text file that are not empty; DataError if it cannot be read."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); get it again") from error


def only(index: Index, rows: Sequence[bool] | Bool[Tensor, " n"]) -> Index:
    """The rows that are marked."""
    return index.take(torch.as_tensor(rows).nonzero().flatten())


def chosen(index: Index, classes: Sequence[str]) -> Index:
    """The rows of these classes, which become all the classes there are."""
    place = {name: at for at, name in enumerate(classes)}
    new = torch.tensor([place.get(name, -1) for name in index.classes])[index.y]
    kept = only(index, new >= 0)
    return replace(kept, y=new[new >= 0], classes=tuple(classes))


def ungrouped(index: Index) -> Index:
    """The same rows without groups."""
    return replace(index, group=None, group_names=())


def at_root(index: Index, root: Path) -> Index:
    """The same rows, their paths, and their ids, relative to a folder above."""
    prefix = below(index.root, root)
    paths = np.char.add(f"{prefix}/", cast(npt.NDArray[np.str_], index.paths))
    return replace(index, root=root, paths=paths, ids=paths)
