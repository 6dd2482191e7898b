"""The examples of a finished run: lists of those to look at, filters, sorting, and tables to relabel.

    hardest        the lowest margin, out of fold where it is known
    downweighted   the lowest mean weight over all uses
    suspects       the labels that are probably wrong, by `suspects.suspect_score`
    forgotten      never learnt, or forgotten most often (Toneva et al. 2019)

Tables are columns by name, as in samples.parquet with `suspect_score` beside them; lists and filters give positions.
"""

import csv
import io
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any  # Any: cells of a table

import numpy as np
import numpy.typing as npt

from molere.errors import ConfigError, StorageError
from molere.names import pick, unknown
from molere.storage.files import read_json
from molere.storage.samples import read_samples
from molere.suspects import MARGINS, Column, Columns, forgotten, low_ranks, suspect_score

Positions = npt.NDArray[np.intp]
OF_CLASSES = ("label", "clean_label", "prediction", "out_of_fold_prediction", "suggestion")
"""Columns that hold classes."""


def read(folder: str | Path) -> dict[str, Column]:
    """The columns of a run's samples.parquet, and `suspect_score`; StorageError where there is no finished run."""
    columns = read_samples(found(Path(folder), "samples.parquet"))
    return {**columns, "suspect_score": suspect_score(columns)}


def probabilities(folder: str | Path, name: str = "out_of_fold.parquet") -> npt.NDArray[np.float64] | None:
    """Out-of-fold probabilities [N, c] of a run; None where it has not kept any."""
    path = Path(folder) / name
    table = read_samples(path) if path.is_file() else {}
    columns = [table[f"p{c}"] for c in range(len(table)) if f"p{c}" in table]
    return np.stack(columns, axis=1).astype(np.float64) if columns else None


def class_names(folder: str | Path) -> tuple[str, ...]:
    """What the classes of a run are called, in the order of their numbers; () where that is not known."""
    path = Path(folder) / "shown.json"
    return tuple(map(str, read_json(path).get("class_names") or ())) if path.is_file() else ()


def found(folder: Path, name: str) -> Path:
    """A file of a finished run; StorageError that says what the folder is instead."""
    path = folder / name
    if path.is_file():
        return path
    inner = next(iter(sorted(folder.glob(f"runs/*/*/{name}"))), None) or next(
        iter(sorted(folder.glob(f"*/{name}"))), None
    )
    if inner is not None:
        raise StorageError(f"{folder} holds several runs; give one of them, such as {inner.parent}")
    if (folder / "status.json").is_file() and not (folder / "DONE").is_file():
        raise StorageError(f"{folder} has no {name}, for its run has not ended; type: molere resume {folder}")
    if (folder / "DONE").is_file():
        raise StorageError(f"{folder} has no {name}: an older molere made it; train again with --resume never")
    raise StorageError(f"{folder} holds no run of molere; give the folder of one, as `molere train` prints it")


# ---- lists


def _hardest(columns: Columns) -> Column:
    return low_ranks(columns[next(name for name in MARGINS if name in columns)])


def _downweighted(columns: Columns) -> Column:
    weight = columns["weight_mean" if "weight_mean" in columns else "weight"]
    return np.where(np.isfinite(weight), -weight, -np.inf)  # what never trained was not weighted down


LISTS: Mapping[str, Callable[[Columns], Column]] = {
    "hardest": _hardest,
    "downweighted": _downweighted,
    "suspects": lambda columns: columns["suspect_score"],
    "forgotten": forgotten,
}
"""Name -> a number per example, the largest to be looked at first."""


def listed(columns: Columns, name: str) -> Positions:
    """Positions of all examples in the order of a list; of equal ones the earlier first."""
    score = np.asarray(pick("list", name, LISTS)(columns), dtype=np.float64)
    return np.argsort(-score, kind="stable")


def ordered(columns: Columns, by: str) -> Positions:
    """Positions in the order of a column, or with a minus before its name in the reverse; NaN comes last."""
    values = column(columns, by.removeprefix("-"))
    if values.dtype.kind not in "biuf":
        order = np.argsort(values.astype(str), kind="stable")
        return order[::-1] if by.startswith("-") else order
    numbers = values.astype(np.float64)
    return np.argsort(-numbers if by.startswith("-") else numbers, kind="stable")


def column(columns: Columns, name: str) -> Column:
    """A column by name; ConfigError with the nearest name otherwise."""
    if name not in columns:
        raise ConfigError(unknown("column", name, columns))
    return columns[name]


# ---- filters

_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*")


def chosen(columns: Columns, conditions: Sequence[str], names: Sequence[str] = ()) -> npt.NDArray[np.bool_]:
    """Which examples meet all conditions, such as `label=3`, `margin<0`, `prediction!=label` or `id=cat 7.png`.

    On the right stands a number, a column or a text, and for labels the name of a class where `names` has it.
    ConfigError for what is no condition or no column.
    """
    keep = np.ones(len(next(iter(columns.values()))), dtype=np.bool_)
    for condition in conditions:
        keep &= _meets(columns, condition, names)
    return keep


def _meets(columns: Columns, condition: str, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    read = _CONDITION.fullmatch(condition)
    if read is None:
        raise ConfigError(f"{condition!r} is no condition; write one as in label=3, margin<0 or prediction!=label")
    left, compare = column(columns, read[1]), _COMPARE[read[2].replace("==", "=")]
    if read[1] in OF_CLASSES and read[3] in names:
        return np.asarray(compare(left, list(names).index(read[3])), dtype=np.bool_)
    if read[3] in columns:
        return np.asarray(compare(left, columns[read[3]]), dtype=np.bool_)
    if left.dtype.kind not in "biuf":
        return np.asarray(compare(left.astype(str), read[3]), dtype=np.bool_)
    try:
        value = {"true": 1.0, "false": 0.0}.get(read[3].lower())
        return np.asarray(compare(left, float(read[3]) if value is None else value), dtype=np.bool_)
    except ValueError:
        what = "a number, a column nor a class" if names and read[1] in OF_CLASSES else "a number nor a column"
        raise ConfigError(f"{condition!r}: {read[3]!r} is neither {what}; {read[1]} is a number") from None


# ---- tables

SHOWN = (
    "id", "label", "clean_label", "group", "suggestion", "suspect_score", "margin", "out_of_fold_margin", "weight_mean",
    "train_probability", "forgetting",
)  # fmt: skip
"""Columns of a listing, of those that are there."""


def rows(
    columns: Columns, positions: Positions, wanted: Sequence[str] | None = None, *, classes: Sequence[str] = ()
) -> dict[str, Column]:
    """Some examples as columns: by default id, label, what it might be instead (`suggestion`), scores.

    Labels are given by the names of their classes, where these are known.
    """
    table = {"id": columns["sample_id"], **columns, "suggestion": suggestion(columns)}
    wanted = [n for n in SHOWN if n in table and not _is_empty(table[n])] if wanted is None else wanted
    return {name: _named(name, column(table, name)[positions], classes) for name in wanted}


def _named(name: str, values: Column, classes: Sequence[str]) -> Column:
    if name not in OF_CLASSES or not len(values) or not 0 <= int(values.min()) <= int(values.max()) < len(classes):
        return values
    return np.asarray(classes)[values.astype(np.intp)]


def suggestion(columns: Columns) -> Column:
    """The class that models which have not seen the example take it for; else the finished classifier's prediction."""
    return columns["out_of_fold_prediction" if "out_of_fold_prediction" in columns else "prediction"]


def _is_empty(values: Column) -> bool:
    return values.dtype.kind == "f" and not np.isfinite(values).any()


def relabelling(columns: Columns, positions: Positions, *, classes: Sequence[str] = ()) -> str:
    """CSV to relabel by: change `label` where it is wrong and give the file to --labels; the other columns help.

    id, label, given_label (as it was), suggestion, then all that is known; classes by name where these are known.
    """
    table = rows(columns, positions, ["id", "label", "suggestion"], classes=classes)
    table = {
        "id": table["id"],
        "label": table["label"],
        "given_label": table["label"],
        "suggestion": table["suggestion"],
    }
    others = [name for name, values in columns.items() if name not in table and not _is_empty(values)]
    return as_csv({**table, **rows(columns, positions, others, classes=classes)})


def as_csv(table: Columns) -> str:
    """Columns as CSV; what is not finite is empty."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*(map(_cell, values.tolist()) for values in table.values()), strict=True))
    return out.getvalue()


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and not np.isfinite(value) else value
