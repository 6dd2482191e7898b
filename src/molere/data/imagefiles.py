"""Image files as rows: named relative to a root, read as 8-bit RGB of one size, whatever they are."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from molere.data.labels import Names
from molere.data.pixels import Window, as_rgb, centred, turned, windows, with_patch
from molere.errors import DataError

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True, eq=False)
class ImageFiles:
    """Rows of image files: `paths` [n] below `root`, with forward slashes.

    `turned` [n] are degrees by which an image is turned anticlockwise, `patch` [n] says in which upper corner it
    has a bright square (0 none, 1 left, 2 right); None: nothing is done to any.
    """

    root: Path
    paths: Names
    turned: Int[Tensor, " n"] | None = None
    patch: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Int[Tensor, " m"]) -> "ImageFiles":
        """As `take`, so that rows of files are indexed as rows of a tensor are."""
        return self.take(index)

    def take(self, index: Int[Tensor, " m"]) -> "ImageFiles":
        """These rows, in this order."""
        at = index.cpu()
        angle = None if self.turned is None else self.turned[at]
        patch = None if self.patch is None else self.patch[at]
        return replace(self, paths=self.paths[at.numpy()], turned=angle, patch=patch)

    def turn(self, degrees: Int[Tensor, " n"]) -> "ImageFiles":
        """The same files turned by as many degrees more, anticlockwise; multiples of 90 are exact."""
        before = torch.zeros_like(degrees) if self.turned is None else self.turned
        return replace(self, turned=(before + degrees) % 360)

    def with_patch(self, right: Tensor) -> "ImageFiles":
        """The same files with a bright square in the upper right corner (where true) or the upper left one."""
        return replace(self, patch=right.long() + 1)

    def joined(self, other: "ImageFiles") -> "ImageFiles":
        """These rows, then those of another; where the roots differ, below the folder that holds both."""
        common = Path(os.path.commonpath((self.root.absolute(), other.root.absolute())))
        root = self.root if self.root == other.root else common
        paths = np.concatenate((self._below(root), other._below(root)))
        return ImageFiles(root, paths, _joined(self, other, "turned"), _joined(self, other, "patch"))

    def _below(self, root: Path) -> Names:
        """The paths as seen from a folder that holds the root."""
        if root == self.root:
            return self.paths
        before = self.root.absolute().relative_to(root).as_posix()
        return self.paths if before == "." else np.asarray([f"{before}/{path}" for path in self.paths.tolist()])

    def read(
        self, index: Int[Tensor, " n"], size: int, augment: torch.Generator | None = None
    ) -> UInt8[Tensor, "n 3 size size"]:
        """Images at these rows, uint8 RGB: the centre as in evaluation, or with a generator random resized crops.

        The centre: shorter side resized to size * 256 / 224, then the middle size x size; an image of that very
        size is taken as it is. Raises DataError naming the file that cannot be read.
        """
        rows = cast(list[int], index.tolist())
        ways = [None] * len(rows) if augment is None else windows(len(rows), augment)
        pixels = np.empty((len(rows), 3, size, size), dtype=np.uint8)

        def fill(at: int) -> None:
            try:
                pixels[at] = self._image(rows[at], size, ways[at])
            except DataError as error:
                raise DataError(f"{error}; replace it, or leave it out with --on-bad skip") from error

        in_threads(fill, range(len(rows)))
        return torch.from_numpy(pixels)

    def try_read(self, size: int) -> tuple[UInt8[Tensor, "n 3 size size"], dict[int, str]]:
        """All images as in evaluation, black where a file cannot be read, and what is wrong with those rows."""
        pixels = np.zeros((len(self), 3, size, size), dtype=np.uint8)

        def fill(row: int) -> str | None:
            try:
                pixels[row] = self._image(row, size, None)
            except DataError as error:
                return str(error)
            return None

        return torch.from_numpy(pixels), _noted(in_threads(fill, range(len(self))))

    def check(self) -> dict[int, str]:
        """Rows that cannot be read, with what is wrong; every file is decoded."""

        def mistake(row: int) -> str | None:
            try:
                self._rgb(row)
            except DataError as error:
                return str(error)
            return None

        return _noted(in_threads(mistake, range(len(self))))

    def bytes(self, row: int) -> bytes:
        """The content of one file."""
        try:
            return (self.root / self.paths[row]).read_bytes()
        except OSError as error:
            raise DataError(self._said(row, error)) from error

    def _image(self, row: int, size: int, way: Window | None) -> npt.NDArray[np.uint8]:
        rgb = self._rgb(row)
        image = np.asarray(centred(rgb, size) if way is None else way.of(rgb, size)).transpose(2, 0, 1)
        image = image if self.turned is None else turned(image, int(self.turned[row]))
        return image if self.patch is None else with_patch(image, int(self.patch[row]))

    def _rgb(self, row: int) -> Image.Image:
        if not (self.root / self.paths[row]).is_file():  # a pipe would be waited for
            raise DataError(self._said(row, OSError()))
        try:
            with Image.open(self.root / self.paths[row]) as file:
                return as_rgb(file)
        except Exception as error:  # a damaged file can raise anything
            raise DataError(self._said(row, error)) from error

    def _said(self, row: int, error: Exception) -> str:
        path = self.root / self.paths[row]
        if not path.is_file():
            return f"{path} is {'no file' if path.exists() else 'not there'}"
        if path.stat().st_size == 0:
            return f"{path} is empty"
        return f"{path} cannot be read as an image ({' '.join(str(error).replace(str(path), '').split())})"


def in_threads(do: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """What a function gives for each item, in order; as many threads as torch uses."""
    count = torch.get_num_threads()
    if count < 2:
        return [do(item) for item in items]
    return list(_threads(count, os.getpid()).map(do, items))


@lru_cache(maxsize=1)
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """One set of threads for each process, so that a forked one gets its own."""
    return ThreadPoolExecutor(count, thread_name_prefix=f"images-{process}")


def _noted(found: Sequence[str | None]) -> dict[int, str]:
    return {row: said for row, said in enumerate(found) if said is not None}


def _joined(a: ImageFiles, b: ImageFiles, name: str) -> Tensor | None:
    """A column of both; 0 for the rows of the one that lacks it."""
    columns = [cast(Tensor | None, getattr(files, name)) for files in (a, b)]
    if all(column is None for column in columns):
        return None
    zeros = [torch.zeros(len(files), dtype=torch.int64) for files in (a, b)]
    return torch.cat([zero if column is None else column for zero, column in zip(zeros, columns, strict=True)])
