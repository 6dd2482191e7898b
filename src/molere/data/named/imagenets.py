"""ImageNet-1K, its 100-class part, and ImageNet-A and -R as tests of classifiers with ImageNet's 1,000 outputs."""

import warnings
from importlib import resources
from pathlib import Path

import torch

from molere.data.folders import SUFFIXES
from molere.data.index import Index, scan_folder
from molere.data.named.about import folder_of
from molere.data.named.rows import Parts, chosen, columns_of, rows_of
from molere.errors import DataError
from molere.rng import generator


def wnids(name: str) -> tuple[str, ...]:
    """The sorted WordNet ids of `imagenet1k`, `imagenet100`, `imagenet_a` or `imagenet_r`."""
    text = (resources.files("molere.data.named") / f"{name}.txt").read_text(encoding="ascii")
    return tuple(sorted(text.split()))


def imagenet(root: Path, variant: str) -> Parts:
    """The whole official training set as the pool; the official validation set as the test."""
    return _with_test(folder_of("imagenet", root), wnids("imagenet1k"))


def imagenet100(root: Path, variant: str) -> Parts:
    """The images of 100 classes, from a folder of their own or from that of ImageNet."""
    return _with_test(folder_of("imagenet-100", root), wnids("imagenet100"))


def imagenet_a(root: Path, variant: str) -> Parts:
    """ImageNet with ImageNet-A as a second test; see `_with_second_test`."""
    return _with_second_test("imagenet-a", root, variant)


def imagenet_r(root: Path, variant: str) -> Parts:
    """ImageNet with ImageNet-R as a second test; see `_with_second_test`."""
    return _with_second_test("imagenet-r", root, variant)


def _with_second_test(name: str, root: Path, variant: str) -> Parts:
    """ImageNet and a set of 200 of its classes, whose labels are places among the 1,000.

    Answers on it are looked for among its 200 classes. Variant `validation`: half of its images, always the same
    ones, are to be validated on, and the test is the other half; variant `half`: that test without the former.
    """
    base = imagenet(root, variant)
    own = wnids(name.replace("-", "_"))
    folder = folder_of(name, root)
    every = _images(folder, base.train.classes, own)
    answers = {name: tuple(base.train.classes.index(wnid) for wnid in own)}
    if variant not in ("validation", "half"):
        return Parts(train=base.train, tests={**base.tests, name: every}, answers=answers)
    order = torch.randperm(len(every), generator=generator(0, f"{name}-half"))
    to_validate, to_test = (half.sort().values for half in order.tensor_split(2))
    tests = {**base.tests, name: every.take(to_test)}
    kept = every.take(to_validate) if variant == "validation" else None
    return Parts(train=base.train, tests=tests, answers=answers, validation=kept)


def _with_test(folder: Path, classes: tuple[str, ...]) -> Parts:
    train = _images(folder / "train", classes, classes)
    return Parts(train=train, tests={"test": _validation_images(folder, classes)})


def _images(folder: Path, classes: tuple[str, ...], expected: tuple[str, ...]) -> Index:
    """Images of class folders named by WordNet ids, of which those in `classes` count; a warning names missing ones."""
    index = scan_folder(folder)
    missing = sorted(set(expected) - set(index.classes))
    if len(missing) == len(expected):
        raise DataError(f"{folder} holds none of the {len(expected)} class folders, e.g. {expected[0]}; correct --root")
    if missing:
        named = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        warnings.warn(f"{folder} lacks {len(missing)} of {len(expected)} class folders: {named}", stacklevel=2)
    return chosen(index, classes)


def _validation_images(folder: Path, classes: tuple[str, ...]) -> Index:
    """The official validation images, in class folders, or in one folder with the table that Kaggle gives."""
    val = folder / "val"
    if any(entry.is_dir() for entry in val.iterdir()):
        return _images(val, classes, classes)
    table = next((p / "LOC_val_solution.csv" for p in (folder, *folder.parents[:3]) if _has_table(p)), None)
    if table is None:
        images = sum(entry.suffix.lower() in SUFFIXES for entry in val.iterdir())
        how = f"put LOC_val_solution.csv (Kaggle) into {folder}, or let torchvision sort them: molere data get imagenet"
        raise DataError(f"{val} holds {images} images and no class folders; {how}")
    columns = columns_of(table, "ImageId", "PredictionString")
    place = {wnid: at for at, wnid in enumerate(classes)}
    rows = [(image, boxes.split()[0]) for image, boxes in zip(*columns.values(), strict=True) if boxes.split()]
    kept = [(image, place[wnid]) for image, wnid in rows if wnid in place]
    return rows_of(folder, [f"val/{image}.JPEG" for image, _ in kept], [y for _, y in kept], classes)


def _has_table(folder: Path) -> bool:
    return (folder / "LOC_val_solution.csv").is_file()
