"""Clothing-1M by its lists of keys (paths of images) and of labels (Xiao et al. 2015)."""

from collections.abc import Mapping
from pathlib import Path

from molere.data.index import Index
from molere.data.named.about import folder_of
from molere.data.named.rows import Parts, lines_of, rows_of
from molere.errors import DataError

NAMES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat", "Suit",
    "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip


def clothing1m(root: Path, variant: str) -> Parts:
    """The million images with noisy labels as the pool (variant `noisy`), or those with right ones (`right-labels`).

    The best update is picked on the official validation images, whose labels are right, as are the test's.
    """
    folder = folder_of("clothing1m", root)
    right = _labels(_file(folder, "clean_label_kv.txt"))
    if variant == "right-labels":
        train = _part(folder, "clean_train_key_list.txt", right)
    else:
        train = _part(folder, "noisy_train_key_list.txt", _labels(_file(folder, "noisy_label_kv.txt")))
    select, test = (_part(folder, f"clean_{part}_key_list.txt", right) for part in ("val", "test"))
    return Parts(train=train, tests={"test": test}, select=select)


def _file(folder: Path, name: str) -> Path:
    inner = folder / "annotations" / name
    return inner if inner.is_file() else folder / name


def _labels(path: Path) -> dict[str, int]:
    """Path of an image -> label, from lines `images/0/00/000.jpg 5`."""
    found = dict[str, int]()
    for line, text in enumerate(lines_of(path), start=1):
        image, _, label = text.rpartition(" ")
        if not image or not label.isdecimal() or int(label) >= len(NAMES):
            raise DataError(
                f"{path}, line {line}: {text!r}, expected an image and a label 0 ... 13; get the file again"
            )
        found[image] = int(label)
    return found


def _part(folder: Path, keys: str, labels: Mapping[str, int]) -> Index:
    paths = lines_of(_file(folder, keys))
    without = [path for path in paths if path not in labels]
    if without:
        named = ", ".join(without[:5])
        raise DataError(
            f"{folder / keys}: {len(without)} images have no label, e.g. {named}; get the label files again"
        )
    return rows_of(folder, paths, [labels[path] for path in paths], NAMES)
