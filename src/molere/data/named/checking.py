"""Looks at a data set on disk: checksums, examples of each part, images that are missing or cannot be read."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from molere.data.embedded import digits
from molere.data.files import FOLDERS, read
from molere.data.index import Index
from molere.data.named.about import Found, find
from molere.data.named.catalog import COMPANIONS, IMAGE_SETS, parts_of
from molere.data.named.cifars import HUMAN, check_right, cifar10_1, human_labels
from molere.data.named.facts import FACTS
from molere.data.readable import mistakes
from molere.data.repeats import same_files, same_rows
from molere.errors import DataError

_BLOCK = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was found; `problem` says why the data set cannot be used, `notes` what a person should know."""

    found: Found
    checksums: Mapping[str, str] = field(default_factory=dict[str, str])
    parts: Mapping[str, int] = field(default_factory=dict[str, int])
    missing: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    repeated: Mapping[str, int] = field(default_factory=dict[str, int])
    """By part: examples that are training examples too; of image files only where these were opened."""
    problem: str = ""

    @property
    def fine(self) -> bool:
        """All is there and can be read; files that differ from the official ones are no hindrance."""
        return not (self.problem or self.missing or self.bad)


def check(name: str, root: str | Path | None, images: bool = False) -> Checked:
    """Read lists and arrays of a data set, look for every image, and with `images` decode them all."""
    found = find(name, root)
    if not found.complete:
        return Checked(found=found, checksums=_states(name, root), problem=found.lacking)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            parts, indexes, arrays = _read(name, root)
        except DataError as error:
            return Checked(found=found, checksums=_states(name, root), problem=str(error))
    absent = [path for index in indexes.values() for path in _missing(index)]
    bad = (
        [said for index in indexes.values() for said in mistakes(index.files, anew=True).values()]
        if images and not absent
        else []
    )
    return Checked(
        found=found,
        checksums=_states(name, root),
        parts=parts,
        missing=tuple(absent),
        bad=tuple(bad),
        repeated=_repeated(indexes if images and not absent else {}, arrays),
        notes=tuple(dict.fromkeys(str(warning.message) for warning in heard)),
    )


def _read(name: str, root: str | Path | None) -> tuple[dict[str, int], dict[str, Index], dict[str, Tensor]]:
    """Examples of each part; the image files of each, or else the inputs."""
    if name in IMAGE_SETS:
        parts = parts_of(name, root, IMAGE_SETS[name].variants[0])
        own = {"train": parts.train, **({} if parts.select is None else {"select": parts.select}), **parts.tests}
        return {part: len(index) for part, index in own.items()}, own, {}
    if name in COMPANIONS:
        index = COMPANIONS[name](Path(root or ".").expanduser())
        return {"test": len(index)}, {"test": index}, {}
    if name == "digits":
        return {"all": len(digits()[1])}, {}, {}
    images = HUMAN[name][0] if name in HUMAN else name if name in FOLDERS else "cifar10"
    train, test = read(images, root)
    if name in HUMAN:
        check_right(name, train.y, human_labels(name, root, "clean")[1])
    more = {"cifar10.1": cifar10_1(root)} if name == "cifar10.1" else {}
    found = {part: torch.from_numpy(arrays.x) for part, arrays in {"train": train, "test": test, **more}.items()}
    return {part: len(x) for part, x in found.items()}, {}, found


def _repeated(files: Mapping[str, Index], arrays: Mapping[str, Tensor]) -> dict[str, int]:
    if "train" not in {**files, **arrays}:
        return {}
    others = [part for part in (*files, *arrays) if part != "train"]
    counts = {
        part: same_files([files["train"].files], files[part].files)
        if part in files
        else same_rows([arrays["train"]], arrays[part])
        for part in others
        if part in files or arrays[part].shape[1:] == arrays["train"].shape[1:]
    }
    return {part: count for part, count in counts.items() if count}


def missing_images(name: str, root: str | Path) -> list[str]:
    """Images that the lists of a data set name and that are not there."""
    return [path for index in _read(name, root)[1].values() for path in _missing(index)]


def _missing(index: Index) -> list[str]:
    return [str(index.root / path) for path in index.paths if not (index.root / path).is_file()]


def _states(name: str, root: str | Path | None) -> dict[str, str]:
    own = checksum_states(name, root)
    return {**own, **{file: state for other in FACTS[name].needs for file, state in _states(other, root).items()}}


def checksum_states(name: str, root: str | Path | None) -> dict[str, str]:
    """`official`, `differs` or `not there` for each file whose checksum is published."""
    folder = find(name, root).folder
    return {} if folder is None else {file: _state(folder / file, md5) for file, md5 in FACTS[name].md5.items()}


def _state(path: Path, md5: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError:
        return "not there"
    return "official" if digest.hexdigest() == md5 else "differs"
