"""Fetches the data sets that may be fetched: into a folder beside, checked there, and only then into place."""

import contextlib
import http.client
import os
import shutil
import socket
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from molere.data.named.about import find
from molere.data.named.checking import checksum_states, missing_images
from molere.data.named.facts import FACTS
from molere.data.named.factsheet import Facts
from molere.errors import DataError, StorageError

PATIENCE = 60.0
"""Seconds that a host may be silent."""
BROKEN = (
    OSError, RuntimeError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error,
    http.client.HTTPException,
)  # fmt: skip
"""What a download that fails can raise."""
IMAGENET_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")


def there(name: str, root: str | Path) -> bool:
    """Is the data set itself there, whole, as far as file names and published checksums say?"""
    found = find(name, root)
    if not FACTS[name].places:
        return True
    if found.missing or found.folder is None:
        return False
    return "differs" not in checksum_states(name, root).values() and not _batches_missing(name, found.folder)


def _batches_missing(name: str, folder: Path) -> bool:
    return name == "cifar10" and not all((folder / batch).is_file() for batch in FACTS[name].md5)


def fetchable(name: str, root: str | Path) -> bool:
    """Can it be fetched from here: by torchvision, from published addresses, or (ImageNet) from archives at hand?"""
    facts = FACTS[name]
    return bool(facts.fetch) and (name != "imagenet" or _archives(root) is not None)


def fetch(name: str, root: str | Path) -> Path:
    """Fetch one data set to its usual place below the root; returns that place.

    Nothing is kept of a download that breaks off, or whose checksum is wrong: DataError says why in one line.
    """
    base = Path(root).expanduser()
    with _beside(base) as scratch:
        try:
            with contextlib.redirect_stdout(sys.stderr), _patience():
                _download(name, FACTS[name], base, scratch)
            _check(name, scratch)
        except BROKEN as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            by_hand = f"try again, or {_by_hand(name, base)}"
            raise DataError(f"{name} could not be fetched ({reason}); nothing of it was kept; {by_hand}") from error
        place = base / FACTS[name].places[0]
        _into_place(scratch, base)
    return place


@contextlib.contextmanager
def _patience() -> Generator[None]:
    """A host that does not answer is given up; torchvision itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _by_hand(name: str, base: Path) -> str:
    """What a person does where fetching fails: which file goes where, or the page that offers it."""
    facts = FACTS[name]
    if facts.urls and not any(target.endswith(".tar") for target in facts.urls):
        return "; ".join(f"save {url} as {base / target}" for target, (url, _) in facts.urls.items())
    return f"get it from {facts.page}, put it into {base / facts.places[0]}, and type: molere data check {name}"


@contextlib.contextmanager
def _beside(base: Path) -> Generator[Path]:
    """An empty folder on the same disk, gone at the end."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".molere-get-", dir=base))
    except OSError as error:
        raise StorageError(f"{base} cannot be written to ({error.strerror}); choose another --root") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(name: str, facts: Facts, base: Path, scratch: Path) -> None:
    import torchvision.datasets  # here: importing it takes a second
    from torchvision.datasets.utils import download_url, extract_archive

    if name == "imagenet":
        _unpack_imagenet(torchvision.datasets.ImageNet, base, scratch)
    elif facts.fetch != "files":
        getattr(torchvision.datasets, facts.fetch)(str(scratch), download=True)
        for archive in (*scratch.glob("*.gz"), *scratch.glob("*/*.tar.gz")):
            archive.unlink()
    for target, (url, md5) in facts.urls.items():
        file = scratch / target
        download_url(url, str(file.parent), file.name, md5)
        if file.suffix == ".tar":
            extract_archive(str(file), str(scratch), remove_finished=True)


def _archives(root: str | Path) -> Path | None:
    """The folder that holds the three archives of ImageNet; None if there is none."""
    folders = (Path(root).expanduser() / place for place in FACTS["imagenet"].places)
    return next((f for f in folders if all((f / archive).is_file() for archive in IMAGENET_ARCHIVES)), None)


def _unpack_imagenet(imagenet: Any, base: Path, scratch: Path) -> None:  # Any: a class of torchvision
    """Unpack ImageNet's archives by torchvision, which checks their md5 before."""
    folder, target = _archives(base), scratch / "imagenet"
    if folder is None:
        raise DataError(f"imagenet: {', '.join(IMAGENET_ARCHIVES)} are not in {base / 'imagenet'}")
    target.mkdir()
    for archive in IMAGENET_ARCHIVES:
        (target / archive).symlink_to((folder / archive).resolve())
    for split in ("train", "val"):
        imagenet(str(target), split=split)
    for archive in IMAGENET_ARCHIVES:
        (target / archive).unlink()


def _check(name: str, scratch: Path) -> None:
    """RuntimeError unless all files and images are there and have their published checksums."""
    alone = find(name, scratch)
    if alone.missing:
        raise RuntimeError(f"what came lacks {', '.join(alone.missing)}")
    wrong = [file for file, state in checksum_states(name, scratch).items() if state == "differs"]
    if wrong:
        raise RuntimeError(f"the checksum of {', '.join(wrong)} is wrong")
    if not FACTS[name].needs and (missing := missing_images(name, scratch)):
        raise RuntimeError(f"what came lacks {len(missing)} images, e.g. {missing[0]}")


def _into_place(scratch: Path, base: Path) -> None:
    """Move every file to its place, folders that are not there yet as a whole."""
    for entry in sorted(scratch.iterdir()):
        target = base / entry.name
        if entry.is_dir() and target.is_dir():
            _into_place(entry, target)
        else:
            os.replace(entry, target)
