"""Reads tables of the user's own: CSV, TSV, Parquet, Feather, Arrow, JSON lines, and Hugging Face data from disk."""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast  # Any: pyarrow comes without types

import numpy as np

from molere.data.rows import MISSING, Rows, names_of
from molere.data.within import stays
from molere.errors import DataError
from molere.names import nearest
from molere.paths import suffix

LABELS = ("label", "labels", "target", "class", "y")
MARK = b"molere"
"""Key of a Parquet file's metadata under which roles of columns stand, as JSON."""
HF_FILES = ("dataset_dict.json", "state.json")


def is_hf(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` of Hugging Face's datasets has written."""
    return any((path / name).is_file() for name in HF_FILES)


def read_sheet(path: Path, header: bool = True, given: Mapping[str, str | None] | None = None) -> Any:
    """The file, or the folder of a saved Hugging Face data set, as a table of pyarrow; DataError where it is damaged.

    `given` names columns by role; those of a CSV file that are no features are read as they are written.
    """
    arrow, kind = importlib.import_module("pyarrow"), suffix(path)
    try:
        if path.is_dir():
            table = _hugging(path)
        elif kind in (".csv", ".tsv"):
            table = _csv(path, kind, header, given or {})
        elif kind == ".parquet":
            table = importlib.import_module("pyarrow.parquet").read_table(path)
        elif kind == ".jsonl":
            table = importlib.import_module("pyarrow.json").read_json(path)
        else:
            table = _arrow(path)
    except (OSError, arrow.ArrowException, UnicodeError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as a table ({said[:200]}); check the file and its ending") from error
    if table.num_rows == 0:
        raise DataError(f"{path} has no rows; expected one for each example")
    return table


def _csv(path: Path, kind: str, header: bool, given: Mapping[str, str | None]) -> Any:
    """Commas and quotes; tabs without quotes, or with them where that does not fit."""
    csv, arrow = importlib.import_module("pyarrow.csv"), importlib.import_module("pyarrow")
    texts = {*(name for name in given.values() if name is not None), *LABELS, "id", "split"}
    kinds = {name: arrow.string() for name in texts}  # 007 is a name of its own
    how = csv.ConvertOptions(column_types=kinds, null_values=[*MISSING], strings_can_be_null=False)
    lines = csv.ReadOptions(autogenerate_column_names=not header)
    if kind == ".csv":
        return csv.read_csv(path, lines, csv.ParseOptions(newlines_in_values=True), how)
    try:
        return csv.read_csv(path, lines, csv.ParseOptions(delimiter="\t", quote_char=False), how)
    except arrow.ArrowInvalid:
        return csv.read_csv(path, lines, csv.ParseOptions(delimiter="\t", newlines_in_values=True), how)


def _arrow(path: Path) -> Any:
    """Feather and Arrow files, of random access or streamed."""
    ipc, arrow = importlib.import_module("pyarrow.ipc"), importlib.import_module("pyarrow")
    try:
        return ipc.open_file(path).read_all()
    except arrow.ArrowInvalid:
        with arrow.OSFile(str(path)) as file:
            return ipc.open_stream(file).read_all()


def _hugging(path: Path) -> Any:
    """All parts of a saved DatasetDict, with a column `split`, or one saved Dataset; class labels by name."""
    if not (path / "dataset_dict.json").is_file():
        return _hugging_part(path)
    arrow = importlib.import_module("pyarrow")
    names = cast(Sequence[str], _json(path / "dataset_dict.json").get("splits", []))
    tables = [_hugging_part(_below(path, name)) for name in names]
    marked = [
        t.append_column("split", arrow.array([n] * t.num_rows))
        for n, t in zip(names, tables, strict=True)
        if t.num_rows
    ]
    return arrow.concat_tables(marked, promote_options="default")


def _hugging_part(path: Path) -> Any:
    arrow = importlib.import_module("pyarrow")
    state, info = _json(path / "state.json"), _json(path / "dataset_info.json")
    table = arrow.concat_tables([_arrow(_below(path, str(file["filename"]))) for file in state["_data_files"]])
    indices = cast(Sequence[Mapping[str, str]] | None, state.get("_indices_data_files"))
    if indices:
        table = table.take(arrow.concat_tables([_arrow(_below(path, i["filename"])) for i in indices]).column(0))
    for name, feature in cast(Mapping[str, Any], info.get("features") or {}).items():
        names = cast(list[str], feature.get("names")) if hasattr(feature, "get") else None
        if names and feature.get("_type") == "ClassLabel":
            named = arrow.array([*names, None]).take(_codes(table[name], len(names)))
            table = table.set_column(table.column_names.index(name), name, named)
    return table


def _below(path: Path, name: str) -> Path:
    if not stays(path, name):
        raise DataError(f"{path} names the file {name}, which is outside of it; save the data set again")
    return path / name


def _codes(column: Any, last: int) -> Any:
    """Codes of classes as positions of their names; -1 and nothing, "not labelled", as the last position."""
    arrow = importlib.import_module("pyarrow")
    codes = np.asarray(column.fill_null(-1).to_numpy(), dtype=np.int64)
    return arrow.array(np.where((codes < 0) | (codes >= last), last, codes))


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); save the data set again with save_to_disk") from error


def roles(table: Any, where: str, given: Mapping[str, str | None]) -> dict[str, str]:
    """Which column is label, group, image, text, id, split: as given, else as the table says, else by usual names.

    Raises DataError for a column that is not there, and where no label is found.
    """
    names: list[str] = table.column_names
    stored = cast(dict[bytes, bytes], table.schema.metadata or {})
    marked = cast(dict[str, str], json.loads(stored.get(MARK, b"{}")))
    usual = {"label": next((n for n in LABELS if n in names), None), "id": "id", "split": "split"}
    found = dict[str, str]()
    for role in ("label", "group", "image", "text", "id", "split"):
        name = given.get(role) or marked.get(role)
        if name is None and usual.get(role) in names:
            name = usual[role]
        if name is not None:
            found[role] = column_of(names, name, where, role)
    if "label" not in found:
        raise DataError(
            f"{where}: no column is called {', '.join(LABELS)}; name the label's with --label: {_listed(names)}"
        )
    return found


def column_of(names: Sequence[str], name: str, where: str, role: str) -> str:
    """The name, if there is such a column; DataError with the nearest one otherwise."""
    if name in names:
        return name
    guess = nearest(name, names)
    hint = f"; did you mean '{guess}'?" if guess else ""
    raise DataError(f"{where} has no column '{name}' for the {role}{hint} It has {_listed(names)}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def rows_of(table: Any, where: str, role: Mapping[str, str]) -> Rows:
    """The table's rows, their label, group, split and id read by role; the other columns stay as content."""
    names = {key: names_of(plain(table[role[key]])) if key in role else None for key in ("label", "group", "split")}
    label = names["label"]
    assert label is not None, "roles finds a label or raises"
    ids = _ids(table[role["id"]], where) if "id" in role else cast(Any, np.arange(int(table.num_rows)))
    named = [role[key] for key in ("label", "group", "split", "id") if key in role]
    return Rows(where, table.drop_columns(named), label, ids, "id" in role, names["group"], names["split"])


def plain(column: Any) -> Any:
    """A column as an array: numbers, or Python's values where it holds anything else or lacks some."""
    arrow = importlib.import_module("pyarrow")
    if arrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    simple = arrow.types.is_integer(column.type) or arrow.types.is_floating(column.type)
    if simple and column.null_count == 0:
        return column.to_numpy()
    return np.asarray([*column.to_pylist(), None], dtype=object)[:-1]


def _ids(column: Any, where: str) -> Any:
    if column.null_count:
        first = int(np.asarray(column.is_null().to_numpy()).argmax())
        raise DataError(f"{where}: row {first} has no id ({column.null_count} such); give each row one")
    values = plain(column)
    if values.dtype != object:
        return values
    texts = [str(v) for v in values]
    whole = all(t.isascii() and t.isdecimal() and (t == "0" or t[0] != "0") and len(t) < 19 for t in texts)
    return np.asarray(texts, dtype=np.int64 if whole else np.str_)
