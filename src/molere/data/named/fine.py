"""Fine-grained photographs by torchvision's classes: aircraft, cars, pets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from molere.data.index import Index
from molere.data.named.about import folder_of
from molere.data.named.rows import Parts, below, rows_of
from molere.errors import DataError


def aircraft(root: Path, variant: str) -> Parts:
    """FGVC-Aircraft: the official training and validation parts as the pool, 100 variants, the official test."""
    return _official("aircraft", "FGVCAircraft", root, ("trainval", "test"))


def cars(root: Path, variant: str) -> Parts:
    """Stanford Cars: the official training and test parts, 196 classes."""
    return _official("cars", "StanfordCars", root, ("train", "test"))


def pet(root: Path, variant: str) -> Parts:
    """Oxford-IIIT Pet: the official trainval part as the pool, 37 breeds, the official test."""
    return _official("pet", "OxfordIIITPet", root, ("trainval", "test"))


def _official(name: str, kind: str, root: Path, splits: tuple[str, str]) -> Parts:
    import torchvision.datasets  # here: importing it takes a second

    folder = folder_of(name, root)
    made = cast(Callable[..., Any], getattr(torchvision.datasets, kind))  # Any: torchvision's data sets
    train, test = (_indexed(name, folder, made, split) for split in splits)
    return Parts(train=train, tests={"test": test})


def _indexed(name: str, folder: Path, made: Callable[..., Any], split: str) -> Index:
    """The rows of one of torchvision's data sets, which reads its own lists; no image is opened."""
    try:
        dataset = made(str(folder.parent), split=split)
    except Exception as error:  # it reads lists of lines and MATLAB files, whose damage shows in many ways
        said = " ".join(str(error).split())
        raise DataError(f"{name}: the lists in {folder} cannot be read ({said}); molere data check {name}") from error
    files, labels = _files_and_labels(dataset)
    paths = [below(file, folder) for file in files]
    return rows_of(folder, paths, [int(label) for label in labels], [str(c) for c in dataset.classes])


def _files_and_labels(dataset: Any) -> tuple[list[Any], list[Any]]:
    """The files that a data set of torchvision would open, and their labels; it has no public name for them."""
    if hasattr(dataset, "_samples"):
        return [file for file, _ in dataset._samples], [label for _, label in dataset._samples]
    files = getattr(dataset, "_image_files", None) or getattr(dataset, "_images", None)
    if files is None or not hasattr(dataset, "_labels"):
        raise DataError(f"{type(dataset).__name__} of this torchvision keeps its files elsewhere; install another one")
    return list(files), list(dataset._labels)
