"""Human labels for CIFAR (CIFAR-10N and -100N), and CIFAR-10.1: arrays beside the official ones."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from molere.data.files import CIFAR10, Arrays, safe_unpickle
from molere.data.named.about import folder_of
from molere.errors import DataError

Labels = npt.NDArray[np.int64]

HUMAN: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "cifar10n": (
        "cifar10",
        "CIFAR-10_human.pt",
        {
            "worst": "worse_label",
            "aggregate": "aggre_label",
            "random1": "random_label1",
            "random2": "random_label2",
            "random3": "random_label3",
            "clean": "clean_label",
        },
    ),
    "cifar100n": ("cifar100", "CIFAR-100_human.pt", {"noisy": "noisy_label", "clean": "clean_label"}),
}
"""Name -> the images' data set, the file of labels, and variant -> its key in the file (Wei et al. 2022)."""


def human_labels(name: str, root: str | Path | None, variant: str) -> tuple[Labels, Labels]:
    """Human labels of one variant and right labels, of the training images that are there, by position among them.

    CIFAR-10's images come in five batches, of which some may be missing; the labels of those are left out.
    """
    images, file, variants = HUMAN[name]
    path = folder_of(name, root) / file
    columns = read_labels(path)
    human, right = (_column(columns, key, path) for key in (variants.get(variant, "clean_label"), "clean_label"))
    missing = CIFAR10.missing(root) if images == "cifar10" and root is not None else []
    here = np.repeat([batch not in missing for batch in CIFAR10.train], -(-len(right) // 5))[: len(right)]
    return human[here], right[here]


def check_right(name: str, y: Labels, right: Labels) -> None:
    """DataError where the right labels of the file are not those of the images: then the order is another one."""
    if unlike := int((right != y).sum()):
        images = HUMAN[name][0]
        said = f"{unlike} of {len(y)} right labels that come with the human ones are not those of {images}"
        raise DataError(f"{name}: {said}; the images are not in the official order, get {images} again")


def _column(columns: Mapping[str, Labels], key: str, path: Path) -> Labels:
    if key not in columns:
        raise DataError(f"{path} lacks {key}; it has {', '.join(columns)}; get the file again")
    return columns[key]


def read_labels(path: Path) -> dict[str, Labels]:
    """Label arrays of a file written by torch.save, by key; nothing but numpy arrays is unpickled from it."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            raw = archive.read(member)
    except (OSError, StopIteration, zipfile.BadZipFile) as error:
        said = str(error) or "no data.pkl in it"
        raise DataError(f"{path} is no file of torch.save ({said}); get it again") from error
    content = safe_unpickle(raw, path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected a dictionary of labels; get it again")
    fields = cast(dict[str, object], content)
    columns = {key: np.asarray(value) for key, value in fields.items()}
    for key, values in columns.items():
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise DataError(f"{path}: {key} is {values.dtype} {list(values.shape)}, expected labels [N]; get it again")
    return {key: values.astype(np.int64) for key, values in columns.items()}


def cifar10_1(root: str | Path | None) -> Arrays:
    """The 2,000 images of CIFAR-10.1, version 6, with labels of CIFAR-10."""
    folder = folder_of("cifar10.1", root)
    x, y = (_array(folder / f"cifar10.1_v6_{what}.npy") for what in ("data", "labels"))
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (32, 32, 3) or y.shape != x.shape[:1]:
        shapes = f"{x.dtype} {list(x.shape)} and {list(y.shape)}"
        raise DataError(
            f"{folder}: images and labels are {shapes}, expected uint8 [N, 32, 32, 3] and [N]; get them again"
        )
    return Arrays(np.ascontiguousarray(cast(npt.NDArray[np.uint8], x).transpose(0, 3, 1, 2)), y.astype(np.int64))


def _array(path: Path) -> npt.NDArray[np.generic]:
    try:
        return cast(npt.NDArray[np.generic], np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); get it again") from error
