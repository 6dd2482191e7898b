"""Reads arrays of the user's own: .npz files of numpy, and sparse rows in svmlight's format."""

import bz2
import gzip
import importlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # Any: arrays of any element type, and sparse matrices, which come without types

import numpy as np

from molere.data.rows import Rows, names_of
from molere.errors import DataError
from molere.paths import ARRAYS, SPARSE, suffix

ROLES: Mapping[str, tuple[str, ...]] = {
    "x": ("x", "images", "features", "embeddings", "data"),
    "y": ("y", "labels", "label", "targets", "target"),
    "group": ("group", "groups"),
    "split": ("split",),
    "ids": ("ids", "id"),
}
"""Names of arrays by what they are."""


def read_npz(path: Path) -> Rows:
    """Arrays x and y, with group, split and ids where they are there; or x_train, y_train, x_test, y_test and so on.

    Also as train_images, train_labels, ... Objects are refused, so that no file can run code. x uint8
    [n, h, w], [n, c, h, w] or [n, h, w, c] are images.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        said = "it holds Python objects" if "pickle" in str(error) else " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({said}); save numbers and texts with numpy.savez") from error
    by_part = dict[str, dict[str, Any]]()
    for name, array in arrays.items():
        for part, role in _place(name):
            by_part.setdefault(part, {})[role] = array
    if not by_part or any(not {"x", "y"} <= set(found) for found in by_part.values()):
        listed = ", ".join(arrays) or "nothing"
        raise DataError(f"{path} holds {listed}; expected x and y, or x_train, y_train, x_test and y_test")
    if "" in by_part:
        return _rows(str(path), by_part[""])
    parts = [_rows(str(path), found) for found in by_part.values()]
    return _together(str(path), parts, list(by_part))


def _place(name: str) -> list[tuple[str, str]]:
    """(part, role) that an array's name says; the part is "" where it says none; nothing for other names."""
    known = {word: role for role, words in ROLES.items() for word in words}
    if name in known:
        return [("", known[name])]
    front, _, last = name.rpartition("_")
    first, _, back = name.partition("_")
    for part, word in ((first, back), (last, front)):
        if part and word in known:
            return [(part, known[word])]
    return []


def _rows(where: str, found: Mapping[str, Any]) -> Rows:
    x, label = _images_first(np.asarray(found["x"])), names_of(found["y"])
    if x.ndim < 2 or label.ndim != 1:
        raise DataError(f"{where}: x is {list(x.shape)} and y {list(label.shape)}; expected [n, ...] and [n]")
    columns = {k: names_of(found[k]) if k in found else None for k in ("group", "split")}
    ids = np.asarray(found["ids"]) if "ids" in found else np.arange(len(label))
    lengths = {k: len(v) for k, v in {"x": x, "y": label, "ids": ids, **columns}.items() if v is not None}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{v} {k}" for k, v in lengths.items())
        raise DataError(f"{where} holds {said}; expected as many of each")
    return Rows(where, x, label, ids, "ids" in found, columns["group"], columns["split"])


def _images_first(x: Any) -> Any:
    """8-bit images with channels last as [n, c, h, w]; other arrays as they are."""
    if x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x


def _together(where: str, parts: Sequence[Rows], names: Sequence[str]) -> Rows:
    """The parts one after the other, with their names as split."""
    if len({part.content.shape[1:] for part in parts}) > 1 or len({part.content.dtype for part in parts}) > 1:
        shapes = ", ".join(f"{n}: {list(p.content.shape)} {p.content.dtype}" for n, p in zip(names, parts, strict=True))
        raise DataError(f"{where}: x differs between the parts ({shapes}); expected one shape and type")
    split = np.repeat(np.asarray(names), [len(part) for part in parts])
    x, label, ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("content", "label", "ids"))
    groups = [part.group for part in parts if part.group is not None]
    group = np.concatenate(groups) if len(groups) == len(parts) else None
    return Rows(where, x, label, ids, False, group, split)


def read_svmlight(path: Path) -> Rows:
    """Rows of a file in svmlight's format, sparse; labels are the names +1 and -1, or whatever numbers they are."""
    sklearn = importlib.import_module("sklearn.datasets")
    opened = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix.lower(), open)
    try:
        with opened(path, "rb") as file:
            x, y = sklearn.load_svmlight_file(file, zero_based=True)
    except (OSError, EOFError, ValueError) as error:
        said = re.sub(r"\s+", " ", str(error))
        raise DataError(f"{path} cannot be read as svmlight ({said}); expected lines such as: 1 4:0.5 9:2") from error
    return Rows(str(path), x.tocsr(), names_of(y), np.arange(len(y)), False)


def reader_of(path: Path) -> Any:
    """What reads a file of arrays; None for other files."""
    return read_npz if suffix(path) in ARRAYS else read_svmlight if suffix(path) in SPARSE else None
