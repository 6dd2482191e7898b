"""Which image files can be read: each is decoded once, and again only when it has changed."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import PIL
import torch

from molere.data.cachefolder import cache_folder
from molere.data.imagefiles import ImageFiles

FORMAT = 1
MANY = 50_000
"""Of more files none is looked at beforehand, unless that is asked for; then their folders' times are compared."""
MUCH = 4 * 2**30
"""Bytes of files, of which the same holds; decoding them takes minutes."""
_AT_ONCE = 10_000  # files decoded before what was found is remembered
_ROWS = 8192  # hashed together, so that they stay in the processor's cache
_FACTOR, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(29)

Marks = npt.NDArray[np.uint64]

logger = logging.getLogger(__name__)


def mistakes(files: ImageFiles, *, by_folder: bool = False, anew: bool = False) -> dict[int, str]:
    """Rows that cannot be read, with what is wrong with each.

    A file that could be read is not decoded again while its size and time of change stay, or with `by_folder` the time
    of change of its folder, whatever other files are asked for beside it; with `anew` every file is decoded. One that
    could not be read is tried again each time. What is known is kept in the cache folder; where that cannot be
    written, nothing is. With `by_folder` a file that is overwritten in place goes unnoticed here.
    """
    if len(files) == 0:
        return {}
    place, marks, found = place_of(files.root), marks_of(files, by_folder), dict[int, str]()
    new = np.arange(len(files)) if anew else np.flatnonzero(~_among(marks, _recalled(place)))
    if len(new) > _AT_ONCE:
        logger.warning("%s: %s image files are looked through, once", files.root, f"{len(new):,}")
    for rows in np.array_split(new, range(_AT_ONCE, len(new), _AT_ONCE)):
        bad = files.take(torch.from_numpy(rows)).check()
        found |= {int(rows[at]): said for at, said in bad.items()}
        remember(place, marks[np.delete(rows, list(bad))])
    return found


def are_many(parts: Sequence[ImageFiles]) -> bool:
    """Whether these files are more, or larger, than are looked through before they are needed."""
    if sum(map(len, parts)) > MANY:
        return True
    sizes = (max(0, _state(f"{files.root}/{path}")[0]) for files in parts for path in files.paths.tolist())
    return sum(sizes) > MUCH


def place_of(root: Path) -> Path:
    """Where it is remembered which files below a folder could be read."""
    digest = hashlib.sha256(f"{FORMAT} {PIL.__version__} ".encode() + os.fsencode(root.resolve()))
    return cache_folder() / "checks" / f"{digest.hexdigest()[:32]}.npy"


def marks_of(files: ImageFiles, by_folder: bool) -> Marks:
    """A 64-bit hash of each path and of the state of the file, or of its folder."""
    letters = np.ascontiguousarray(files.paths).view(np.uint32).reshape(len(files), -1)
    pairs = np.pad(letters, ((0, 0), (0, letters.shape[1] % 2))).view(np.uint64)
    states = (_of_folders if by_folder else _of_files)(str(files.root), cast(list[str], files.paths.tolist()))
    marks = np.full(len(files), _FACTOR)
    for at in range(0, len(files), _ROWS):
        rows = slice(at, at + _ROWS)
        for column in pairs[rows].T.copy():  # shorter paths end in zeros, which are passed over
            marks[rows] = np.where(column == 0, marks[rows], _mixed(marks[rows], column))
        for column in states[rows].T:
            marks[rows] = _mixed(marks[rows], column)
    return marks


def _mixed(marks: Marks, numbers: Marks) -> Marks:
    """Each mark with one more number in it; different numbers give different marks."""
    product = (marks ^ numbers) * _FACTOR
    return product ^ (product >> _SHIFT)


def _among(marks: Marks, known: Marks) -> npt.NDArray[np.bool_]:
    """Which marks are known, the known ones sorted; in order, which is faster than np.isin at a million."""
    found, order = np.zeros(len(marks), np.bool_), np.argsort(marks)
    if len(known):
        asked = marks[order]
        found[order] = known[np.searchsorted(known, asked).clip(max=len(known) - 1)] == asked
    return found


def _of_files(root: str, paths: list[str]) -> Marks:
    return np.asarray([_state(f"{root}/{path}") for path in paths], dtype=np.int64).view(np.uint64)


def _of_folders(root: str, paths: list[str]) -> Marks:
    folders = [path[: path.rfind("/") + 1] for path in paths]
    known = {folder: _state(f"{root}/{folder}")[1] for folder in set(folders)}
    return np.fromiter(map(known.__getitem__, folders), np.int64, len(paths)).view(np.uint64)[:, None]


def _state(path: str) -> tuple[int, int]:
    """Size and time of change; of what is not there none."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _recalled(place: Path) -> Marks:
    try:
        marks = cast(Marks, np.load(place))
    except (OSError, ValueError, EOFError):  # none, or damaged: it is made anew
        return np.empty(0, np.uint64)
    return np.sort(marks) if marks.dtype == np.uint64 and marks.ndim == 1 else np.empty(0, np.uint64)


def remember(place: Path, marks: Marks) -> None:
    """Add the marks of files that could be read to those that are known."""
    if len(marks) == 0:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".tmp", delete=False) as file:
            np.save(file, np.union1d(_recalled(place), marks))
        os.replace(file.name, place)
    except OSError:
        return
