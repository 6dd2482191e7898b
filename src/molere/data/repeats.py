"""Test examples that are training examples too: what a model has seen is no test of it. Counted exactly."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from molere.data.imagefiles import ImageFiles
from molere.data.imagepool import ImagePool
from molere.data.joined import JoinedPool
from molere.data.pool import Data, Pool, TensorPool
from molere.data.view import PoolView

MOST_FILES = 20_000
"""So many image files are compared when data are loaded; larger data by `molere data check NAME --images`."""


def repeated(data: Data, most_files: int | None = MOST_FILES) -> dict[str, int]:
    """By test: how many of its examples have the very input (numbers, pixels or file) of a training example.

    Only tests that have some are named. Pools in memory are compared as they are, before augmentation; image files byte
    by byte, up to `most_files` of them (none: all); what reads its items one by one is left out.
    """
    train = list(_inputs(data.train))
    counts = {k: sum(_count(train, part, most_files) for part in _inputs(test)) for k, test in data.tests.items()}
    return {name: count for name, count in counts.items() if count}


def told(name: str, count: int, size: int) -> str:
    """The sentence for a test that has some."""
    return f"{count:,} of {size:,} examples of {name} are training examples too"


Inputs = TensorPool | ImageFiles


def _inputs(pool: Pool) -> Iterator[Inputs]:
    """What a pool is made of, where that can be compared."""
    if isinstance(pool, JoinedPool):
        for part in pool.parts:
            yield from _inputs(part)
    elif isinstance(pool, PoolView):
        pools = (p.subset(pool.index) if isinstance(p, TensorPool) else p.take(pool.index) for p in _inputs(pool.pool))
        yield from pools
    elif isinstance(pool, ImagePool):
        yield pool.files
    elif isinstance(pool, TensorPool):
        yield pool


def _count(train: Sequence[Inputs], test: Inputs, most_files: int | None) -> int:
    if isinstance(test, TensorPool):
        like = [p.x for p in train if isinstance(p, TensorPool) and p.shape == test.shape and p.x.dtype == test.x.dtype]
        return same_rows(like, test.x)
    files = [part for part in train if isinstance(part, ImageFiles)]
    few = most_files is None or sum(map(len, (*files, test))) <= most_files
    return same_files(files, test) if few else 0


def same_rows(train: Sequence[Tensor], test: Tensor) -> int:
    """How many rows of a test equal a training row; all of one shape and type."""
    seen = {digest for x in train for digest in _rows(x)}
    return sum(digest in seen for digest in _rows(test)) if seen else 0


def _rows(x: Tensor) -> Iterator[bytes]:
    flat = x.flatten(1).cpu()
    flat = flat + 0.0 if flat.is_floating_point() else flat  # minus zero is zero
    for row in flat.contiguous().view(torch.uint8).numpy():
        yield hashlib.blake2b(row, digest_size=16).digest()


def same_files(train: Sequence[ImageFiles], test: ImageFiles) -> int:
    """How many files of a test have the very bytes of a training file; only files of one size are read."""
    sizes = [_size(path) for path in _paths(test)]
    wanted = {*sizes} - {-1}
    alike = [path for files in train for path in _paths(files) if _size(path) in wanted]
    common, seen = {_size(path) for path in alike}, {_digest(path) for path in alike}
    return sum(size in common and _digest(path) in seen for size, path in zip(sizes, _paths(test), strict=True))


def _paths(files: ImageFiles) -> list[Path]:
    return [files.root / path for path in files.paths.tolist()]


def _size(path: Path) -> int:
    """Bytes of a file, -1 where there is none."""
    return path.stat().st_size if path.is_file() else -1


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
