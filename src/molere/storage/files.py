"""Writing a file so that a reader, or a crash, finds the old content or the new one, never a part."""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from molere.errors import StorageError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def write_bytes(path: Path, data: bytes, *, fsync: bool = True) -> None:
    """Replace a file in one step: temporary file beside it, fsync, rename, fsync of the folder.

    Raises StorageError, and leaves the old content, when the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_new(temporary, data, fsync=fsync)
        os.replace(temporary, path)
        if fsync:
            fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(error, path, len(data)) from error


def write_new(path: Path, data: bytes, *, fsync: bool = True) -> None:
    """Write a file at its place, not atomically; raises OSError."""
    with path.open("wb") as file:
        file.write(data)
        if fsync:
            file.flush()
            os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable, on systems that can open one."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def storage_error(error: OSError, path: Path, size: int) -> StorageError:
    """One line on why a path could not be written; a full disk is told with the bytes needed and free."""
    if error.errno in _FULL:
        return out_of_space(path, size)
    return StorageError(f"cannot write {path}: {error.strerror or error}; choose another folder with --out")


def out_of_space(path: Path, size: int) -> StorageError:
    """The error for a disk or quota that is full."""
    return StorageError(
        f"no space for {path}: {size} bytes needed, {free_bytes(path)} free; make room, then resume the run"
    )


def free_bytes(path: Path) -> int:
    """Bytes free on the disk of a path, or of the nearest folder above it that exists."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0


def write_json(path: Path, value: object, *, fsync: bool = True) -> None:
    """Replace a file by a value as strict JSON (two spaces, keys as given, nan and infinities as null)."""
    text = json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode(), fsync=fsync)


def write_yaml(path: Path, value: object, *, fsync: bool = True) -> None:
    """Replace a file by a value as YAML in block style, keys in the order given."""
    text = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=110)
    write_bytes(path, text.encode(), fsync=fsync)


# Any: what a JSON file holds is known to its reader, not to this function.
def read_json(path: Path) -> Any:
    """The content of a JSON file; StorageError naming it when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise StorageError(f"{path} is damaged: not valid JSON ({error}); delete it, or restore it") from error


# Any: what json.dumps and yaml.safe_dump take, a tree of any values.
def plain(value: Any) -> Any:
    """The same value with every mapping a dict and every tuple a list, for writers that know no others."""
    return _rebuilt(value, lambda leaf: leaf)


def strict(value: Any) -> Any:
    """The same value for strict JSON: nan and infinities become null, which reads as "not known"."""
    return _rebuilt(value, lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf)


def _rebuilt(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _rebuilt(item, leaf) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_rebuilt(item, leaf) for item in cast("list[Any]", value)]
    return leaf(value)
