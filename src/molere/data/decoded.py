"""Images decoded once: kept outside the data as one array, made anew when a file has changed."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import PIL
import torch
from jaxtyping import UInt8
from torch import Tensor

from molere.data.cachefolder import cache_folder
from molere.data.imagefiles import ImageFiles

FORMAT = 1


def decoded(files: ImageFiles, size: int) -> tuple[UInt8[Tensor, "n 3 size size"], dict[int, str]]:
    """All images as in evaluation, black where a file cannot be read, and what is wrong with those rows.

    The array is kept in the cache folder under names, sizes and times of change of all files, and mapped from
    there next time, so that processes side by side share it. Where that cannot be written, nothing is kept.
    """
    place = _place(files, f"{size}-{PIL.__version__}")
    found, bad = _recalled_images(place), _recalled_mistakes(place)
    if found is not None and bad is not None:
        return torch.from_numpy(found), bad
    pixels, bad = files.try_read(size)
    _remember(place, pixels.numpy(), bad)
    return pixels, bad


def _recalled_mistakes(place: Path) -> dict[int, str] | None:
    """What was noted beside an entry of the cache; None where there is none that can be read."""
    try:
        noted = cast(dict[str, str], json.loads(_notes(place).read_text()))
        return {int(row): said for row, said in noted.items()}
    except (OSError, ValueError):
        return None


def _recalled_images(place: Path) -> npt.NDArray[np.uint8] | None:
    try:
        return cast(npt.NDArray[np.uint8], np.load(place, mmap_mode="c"))  # copied only where written to
    except (OSError, ValueError):
        return None


def _place(files: ImageFiles, settings: str) -> Path:
    digest = hashlib.sha256(f"{FORMAT} {settings} {files.root.resolve()}".encode())
    for path in files.paths:
        try:
            status = os.stat(files.root / path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"\n{path} {state}".encode(errors="surrogateescape"))
    return cache_folder() / "images" / f"{digest.hexdigest()[:32]}.npy"


def _notes(place: Path) -> Path:
    return place.with_suffix(".json")


def _remember(place: Path, pixels: npt.NDArray[np.uint8], bad: dict[int, str]) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".tmp", delete=False) as file:
            np.save(file, pixels)
        os.replace(file.name, place)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, suffix=".tmp", delete=False) as notes:
            json.dump(bad, notes)
        os.replace(notes.name, _notes(place))
    except OSError:
        return
