"""Class folders: which images lie in them, listed once and remembered outside the data."""

import hashlib
import importlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from molere.data.cachefolder import cache_folder
from molere.data.labels import Names
from molere.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
SETTLED = 2.0  # seconds after which a folder that changes again also shows another time of change
FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """Images of class folders: `paths` [n] below the root, `y` [n] positions in `classes`, sorted names.

    `folders` gives the time of change (ns) of the root and of every folder below it.
    """

    paths: Names
    y: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    folders: dict[str, int]


def listed(root: Path) -> Listing:
    """The images of class folders, from the last listing where no folder has changed since.

    Classes are the sorted names of the folders in `root`; images come in the order of torchvision's ImageFolder:
    by class, then folder, then name. Hidden files and folders are left out, links are followed. Raises DataError
    where there is no folder, no class folder, or a class folder without images.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; give the folder that holds one folder for each class")
    place = place_of(root)
    known = _recalled(place)
    if known is not None and all(_changed(root / name) == then for name, then in known.folders.items()):
        return known
    began = time.time()
    found = _listed_now(root)
    if began - max(found.folders.values()) / 1e9 > SETTLED:
        _remember(place, found)
    return found


def place_of(root: Path) -> Path:
    """Where the listing of a folder is remembered."""
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]
    return cache_folder() / "indexes" / f"{name}.parquet"


def _listed_now(root: Path) -> Listing:
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{root} holds no folders; expected one for each class, as in {root}/CLASS/IMAGE.jpg")
    folders, paths, counts = {"": _changed(root)}, list[str](), list[int]()
    for name in names:
        before = len(paths)
        paths += _images_below(root, name, folders)
        counts.append(len(paths) - before)
    if 0 in counts:
        bare = [name for name, count in zip(names, counts, strict=True) if count == 0]
        more = f" and {len(bare) - 5} more" if len(bare) > 5 else ""
        raise DataError(f"no image in {', '.join(str(root / b) for b in bare[:5])}{more}; remove or fill these folders")
    y = np.repeat(np.arange(len(names)), counts)
    return Listing(np.asarray(paths), y, tuple(names), folders)


def _images_below(root: Path, name: str, folders: dict[str, int]) -> list[str]:
    """Paths of the images of one class; notes each folder with its time of change."""
    found: dict[str, list[str]] = {}
    seen = set[tuple[int, int]]()
    for folder, inner, files in os.walk(root / name, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = [one for one in inner if not one.startswith(".")]
        below = Path(folder).relative_to(root).as_posix()
        folders[below] = status.st_mtime_ns
        found[folder] = [f"{below}/{f}" for f in sorted(files) if f.lower().endswith(SUFFIXES) and f[0] != "."]
    return [path for folder in sorted(found) for path in found[folder]]


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return -1


def _recalled(place: Path) -> Listing | None:
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        table = parquet.ParquetFile(place).read()
        notes = cast(dict[str, Any], json.loads(table.schema.metadata[b"molere"]))  # Any: as written below
        if notes["format"] != FORMAT:
            return None
        paths, y = texts(table["path"].combine_chunks()), _numbers(table["y"].combine_chunks())
        return Listing(paths, y, tuple(notes["classes"]), notes["folders"])
    except Exception:  # missing, damaged, of another version: it is made anew
        return None


def texts(column: Any) -> Names:  # Any: pyarrow comes without types
    """An Arrow array of text as numpy's, from its bytes where all are ASCII; its own `to_numpy` imports pandas."""
    _, ends, content = column.buffers()
    at = np.frombuffer(ends, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    raw = np.frombuffer(content, dtype=np.uint8)[at[0] : at[-1]]
    if len(raw) == 0 or raw.max() > 127:
        return np.asarray(column.to_pylist(), dtype=np.str_)
    lengths = np.diff(at)
    width = int(lengths.max())
    letters = np.zeros((len(column), width), dtype=np.uint32)
    letters[np.arange(width) < lengths[:, None]] = raw
    return letters.view(np.dtype((np.str_, width))).ravel()


def _numbers(column: Any) -> npt.NDArray[np.int64]:  # Any: as above
    """An Arrow array of int32 as int64."""
    values = np.frombuffer(column.buffers()[1], dtype=np.int32)
    return values[column.offset : column.offset + len(column)].astype(np.int64)


def _remember(place: Path, listing: Listing) -> None:
    """Write the listing; a cache that cannot be written, or names that are no text, are done without."""
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    notes = {"format": FORMAT, "classes": listing.classes, "folders": listing.folders}
    try:
        columns = {"path": arrow.array(listing.paths.tolist()), "y": arrow.array(listing.y.astype(np.int32))}
        table = arrow.table(columns).replace_schema_metadata({"molere": json.dumps(notes)})
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".tmp", delete=False) as file:
            parquet.write_table(table, file, compression="zstd")
        os.replace(file.name, place)
    except (OSError, UnicodeError):
        return
