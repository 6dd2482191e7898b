"""Data of the user's own, named by a path instead of a name: what kind they are. Needs no torch, reads nothing."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # Any: settings of the data, as they were given

from molere import registry
from molere.config import dump_value
from molere.names import unknown

TABLES = (".csv", ".tsv", ".parquet", ".feather", ".arrow", ".jsonl")
ARRAYS = (".npz",)
SPARSE = (".svmlight", ".libsvm", ".svm")
PACKED = (".gz", ".bz2", ".zst")
"""Endings of compressed files, after that of a table or of sparse rows."""

OWN_ONLY = (
    "val_root", "test", "label", "group", "image", "text", "id", "split_column", "features", "drop_columns", "header",
    "scale", "text_as", "dimensions", "augment", "test_share",
)  # fmt: skip
"""Settings that only the user's own data have."""

PLACES = ("root", "val_root", "labels", "weights", "drop")
"""Settings of the data that are paths; the name and the test sets may be."""

SCENARIOS = ("clean", "noise", "longtail", "hidden-group", "hidden-group-noise", "spurious")
OWN = registry.DatasetEntry("your own data", SCENARIOS, model="one that suits the data")


def suffix(path: str | Path) -> str:
    """The ending that says what a file is, in lower case, without that of the compression."""
    endings = [s.lower() for s in Path(path).suffixes]
    return next((s for s in reversed(endings) if s not in PACKED), "")


def is_own(name: str) -> bool:
    """Whether data are given by a path: no registered name, and there, or spelt like a path or a file."""
    if name in registry.DATASETS:
        return False
    return bool(re.search(r"[/\\~]", name)) or suffix(name) in (*TABLES, *ARRAYS, *SPARSE) or Path(name).exists()


def entry_of(name: str) -> registry.DatasetEntry | None:
    """The entry of a named data set, one for all data given by a path, None for anything else."""
    return registry.DATASETS.get(name) or (OWN if is_own(name) else None)


def short(name: str) -> str:
    """A name for tables and folders: that of the file or folder, without endings; a named data set's own."""
    if not is_own(name):
        return name
    path = Path(name).expanduser()
    last = path.name if path.name not in ("", ".", "..") else path.resolve().name
    return re.sub(r"[^\w.-]+", "-", last.partition(".")[0] or last).strip("-.") or "data"


def mistakes(given: Mapping[str, Any]) -> list[str]:
    """A sentence for each setting of the data that does not fit its name, or names nothing that is there."""
    name = str(given["name"])
    if entry_of(name) is None:
        known = unknown("data set", name, registry.DATASETS)
        return [f"{known}; or give a path to your own data, such as ./{name} or {name}.csv"]
    if name in registry.DATASETS:
        stray = [key for key in OWN_ONLY if given.get(key) is not None]
        return [f"data.{key} is for data given by a path; {name} is a named data set: leave it out" for key in stray]
    places = {"data": name, "val_root": given.get("val_root"), **_tests(given.get("test"))}
    absent = {k: v for k, v in places.items() if v is not None and not Path(str(v)).expanduser().exists()}
    return [f"{where}: there is nothing at {place}; correct the path" for where, place in absent.items()]


def placed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of the data that are paths to something here, absolute: they hold in any folder."""
    found: dict[str, Any] = {key: _absolute(given[key]) for key in PLACES if given.get(key) is not None}
    if is_own(str(given["name"])):
        found["name"] = _absolute(given["name"])
    if given.get("test") is not None:
        found["test"] = {name: _absolute(path) for name, path in tests(given["test"]).items()}
    return found


def _absolute(path: object) -> str:
    place = os.path.abspath(os.path.expanduser(str(path)))
    return place if os.path.exists(place) else str(path)


def unplaced(text: str, given: Mapping[str, Any]) -> str:
    """A settings file as others may read it: absolute paths of its data by their last part alone."""
    named = {"name": given.get("name"), **{key: given.get(key) for key in PLACES}, **tests(given.get("test"))}
    for path in {str(p) for p in named.values() if p is not None and os.path.isabs(str(p))}:
        written = "|".join(map(re.escape, {dump_value(path), path, f"'{path}'"}))
        last = dump_value(os.path.basename(path.rstrip("/\\")))
        text = re.sub(rf"(?m)(: )(?:{written})(?=\s|$)", lambda found, last=last: found[1] + last, text)
    return text


def _tests(test: object) -> dict[str, object]:
    if not isinstance(test, Mapping):
        return {} if test is None else {"test": test}
    return {f"test {name}": path for name, path in test.items()}  # pyright: ignore[reportUnknownVariableType]


def tests(given: object) -> dict[str, str]:
    """Test sets by name: a mapping as it is, a single path as the set `test`."""
    if isinstance(given, Mapping):
        return {str(name): str(path) for name, path in given.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return {} if given is None else {"test": str(given)}
