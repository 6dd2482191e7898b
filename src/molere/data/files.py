"""Reads images from the folders that torchvision uses: nothing is written, and no pickle can run code."""

import gzip
import hashlib
import io
import pickle
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from molere.errors import DataError


class Arrays(NamedTuple):
    """Images uint8 [N, C, H, W] and labels int64 [N], in the order of the files."""

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a data set lies below the root, its files with their official md5, and who can fetch it."""

    place: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    loader: str
    label_key: str = ""

    def missing(self, root: str | Path) -> list[str]:
        """Files that are not there, neither as they are nor as .gz."""
        base = Path(root).expanduser() / self.place
        names = [*self.train, *self.test]
        return [name for name in names if not (base / name).is_file() and not (base / f"{name}.gz").is_file()]


FASHION_MNIST = Folder(
    place="FashionMNIST/raw",
    train={
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    },
    test={
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    loader="torchvision.datasets.FashionMNIST",
)
CIFAR10 = Folder(
    place="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    loader="torchvision.datasets.CIFAR10",
    label_key="labels",
)
CIFAR100 = Folder(
    place="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    loader="torchvision.datasets.CIFAR100",
    label_key="fine_labels",
)
FOLDERS: Mapping[str, Folder] = {"fashion-mnist": FASHION_MNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}


def available(name: str, root: str | Path | None = None) -> bool:
    """Is the data there to be loaded? Embedded data always is; CIFAR-10 with at least one training batch."""
    folder = FOLDERS.get(name)
    if folder is None:
        return True
    if root is None:
        return False
    missing = folder.missing(root)
    return not missing or (folder is CIFAR10 and _usable_part(missing))


def read(name: str, root: str | Path | None) -> tuple[Arrays, Arrays]:
    """Official training and test part of a data set of FOLDERS; DataError says what was looked for, where."""
    folder = FOLDERS[name]
    if root is None:
        raise DataError(f"{name}: no folder given; pass --root PATH, the folder that holds {folder.place}")
    missing = folder.missing(root)
    base = Path(root).expanduser() / folder.place
    if not available(name, root):
        lacking = f"{base} lacks {', '.join(missing)}" if base.is_dir() else f"there is no folder {base}"
        raise DataError(f"{name}: {lacking}; correct --root, or type {folder.loader}(ROOT, download=True) in Python")
    if missing:
        warnings.warn(f"{base} lacks {', '.join(missing)}; only the rest of {name} is read", stacklevel=2)
    reader = _read_batches if folder.label_key else _read_idx_pair
    present = [file for file in folder.train if file not in missing]
    return reader(base, folder, present), reader(base, folder, list(folder.test))


def _usable_part(missing: list[str]) -> bool:
    return "test_batch" not in missing and len(missing) < len(CIFAR10.train)


def _read_idx_pair(base: Path, folder: Folder, files: list[str]) -> Arrays:
    images, labels = (read_idx(base / file) for file in files)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        shapes = f"{list(images.shape)} and {list(labels.shape)}"
        raise DataError(f"{base}: {files[0]} and {files[1]} do not match: shapes {shapes}; fetch both again")
    return Arrays(images[:, None], labels.astype(np.int64))


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of an idx file of bytes: two zeros, type 8, number of dimensions, big-endian sizes, bytes."""
    try:
        raw = _content(path)
        zeros, kind, ndim = struct.unpack_from(">HBB", raw)
        shape = cast(tuple[int, ...], struct.unpack_from(f">{ndim}I", raw, 4))
        if zeros != 0 or kind != 8:
            raise ValueError("not an idx file of bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it and fetch it again") from error


def _content(path: Path) -> bytes:
    """Bytes of the file, or of the .gz beside it where only that is there."""
    return path.read_bytes() if path.is_file() else gzip.decompress(Path(f"{path}.gz").read_bytes())


def _read_batches(base: Path, folder: Folder, files: list[str]) -> Arrays:
    """CIFAR batches: pickled dictionaries of `data` [N, 3072] (channel, row, column) and a list of labels."""
    official = {**folder.train, **folder.test}
    batches = [_batch(base / file, official[file], folder.label_key) for file in files]
    return Arrays(np.concatenate([b.x for b in batches]), np.concatenate([b.y for b in batches]))


def _batch(path: Path, md5: str, label_key: str) -> Arrays:
    try:
        raw = _content(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it and fetch it again") from error
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != md5:
        warnings.warn(f"{path} is not the official file (its md5 differs); it is read as it is", stacklevel=2)
    entry = safe_unpickle(raw, path)
    if not isinstance(entry, dict):
        raise DataError(f"{path} holds a {type(entry).__name__}, expected a CIFAR batch; fetch it again")
    fields = cast(dict[str, object], entry)
    x, y = np.asarray(fields.get("data")), np.asarray(fields.get(label_key))
    if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3072 or y.shape != x.shape[:1]:
        raise DataError(f"{path}: expected `data` uint8 [N, 3072] and `{label_key}` [N]; fetch it again")
    return Arrays(x.reshape(-1, 3, 32, 32), y.astype(np.int64))


class _ArraysOnly(pickle.Unpickler):
    """Admits what numpy arrays are made of and nothing else, so that no file can run code."""

    ADMITTED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
    }

    def find_class(self, module_name: str, global_name: str) -> object:
        if (module_name, global_name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _latin1
        if (module_name, global_name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}; only numpy arrays are admitted")
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes are encoded as {encoding}; expected latin1")
    return text.encode("latin1")


def safe_unpickle(raw: bytes, path: Path) -> object:
    """Numbers, strings, lists, dictionaries, numpy arrays from a pickle; DataError if it asks for more."""
    try:
        return _ArraysOnly(io.BytesIO(raw), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({reason}); fetch the data again") from error
