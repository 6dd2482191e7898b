"""Checkpoints, whole or not there: `step-000500/{state.safetensors, state.json, manifest.json}` and LATEST.

A checkpoint is written to a temporary folder beside its place, then renamed; then the one-line pointer LATEST
is replaced. The manifest holds the SHA-256 of each file and is compared byte by byte with the one the files
imply, so that a flipped bit anywhere is found: safetensors itself does not notice one.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from molere.errors import StorageError
from molere.storage import files
from molere.storage.nested import flatten, to_bytes, unflatten

FORMAT = 1
KEEP = 2
_NAME = re.compile(r"step-(\d{6,})")
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Frozen:
    """A state as it was at one moment: copies of its tensors on the CPU, and the rest as JSON text."""

    tensors: Mapping[str, Tensor]
    structure: bytes

    # Any: a state is a tree of dicts, lists, tuples, scalars and tensors; its owner knows its shape.
    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Frozen":
        """The state, to be written while it changes; StorageError naming the path of what cannot be saved."""
        tensors, structure = flatten(dict(state))
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        return cls(copies, json.dumps(structure, separators=(",", ":"), allow_nan=False).encode())

    def state(self) -> Any:  # Any: what `of` was given
        """The state, in tensors of its own."""
        return unflatten({name: tensor.clone() for name, tensor in self.tensors.items()}, json.loads(self.structure))


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any] | Frozen, *, fsync: bool = True) -> Path:
    """Save the state of a run after `step` updates as `folder/step-NNNNNN` and return that folder.

    Keeps this and the newest older checkpoint; later ones, of a future that was given up, are removed.
    Without `fsync` the files survive the death of the process, but perhaps not that of the machine. Only one
    process may save to a folder at a time. Raises StorageError when the disk is full (nothing is left behind)
    or the state cannot be saved.
    """
    contents = _contents(step, state if isinstance(state, Frozen) else Frozen.of(state))
    size = sum(map(len, contents.values()))
    target = folder / name_of(step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if files.free_bytes(folder) < size:
            raise files.out_of_space(target, size)
        write_folder(target, contents, fsync=fsync)
    except OSError as error:
        raise files.storage_error(error, target, size) from error
    files.write_bytes(folder / "LATEST", f"{target.name}\n".encode(), fsync=False)  # no harm if lost
    _prune(folder, step)
    return target


def load_latest(folder: Path, *, on_damage: Callable[[str], None] | None = None) -> tuple[int, dict[str, Any]] | None:
    """The step and state of the newest good checkpoint; None where none was ever saved.

    Starts at the one LATEST names and goes on to older ones; `on_damage` is told, in one line each, about
    those passed over. Raises StorageError naming the files when there are checkpoints and all of them are
    damaged.
    """
    problems: list[str] = []
    for candidate in _candidates(folder):
        try:
            return load_checkpoint(candidate)
        except StorageError as error:
            problems.append(str(error))
            if on_damage is not None:
                on_damage(str(error))
    if problems:
        raise StorageError(f"no good checkpoint in {folder}: {'; '.join(problems)}; start anew with --resume never")
    return None


def load_checkpoint(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and state of one checkpoint folder; StorageError naming the file that is missing or damaged."""
    try:
        data = {name: (path / name).read_bytes() for name in ("state.safetensors", "state.json")}
        manifest = (path / "manifest.json").read_bytes()
    except OSError as error:
        raise StorageError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    named = _NAME.fullmatch(path.name)
    step = int(named[1]) if named else -1
    if manifest != _manifest(step, data):
        raise StorageError(_blame(path, manifest, data))
    try:
        return step, unflatten(safetensors.torch.load(data["state.safetensors"]), json.loads(data["state.json"]))
    except Exception as error:  # files that fit their manifest, but were not written here, can hold anything
        reason = " ".join(str(error).split())[:80]
        raise StorageError(f"{path} is no checkpoint of molere ({type(error).__name__}: {reason})") from error


def name_of(step: int) -> str:
    """Name of the checkpoint folder of a step: step-000500."""
    return f"step-{step:06d}"


def remove_leftovers(folder: Path) -> None:
    """Delete what a save that was killed left in a folder of checkpoints."""
    for path in [*folder.glob(f"{_TEMPORARY}*"), *folder.glob(".LATEST.*.tmp")]:
        _delete(path)


def _contents(step: int, state: Frozen) -> dict[str, bytes]:
    data = {"state.safetensors": to_bytes(state.tensors), "state.json": state.structure}
    return data | {"manifest.json": _manifest(step, data)}


def _manifest(step: int, data: Mapping[str, bytes]) -> bytes:
    """The only manifest that fits these files: format, step, and the size and SHA-256 of each."""
    listed = {name: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for name, d in data.items()}
    return f"{json.dumps({'format': FORMAT, 'step': step, 'files': listed}, indent=2)}\n".encode()


def _blame(path: Path, manifest: bytes, data: Mapping[str, bytes]) -> str:
    """What does not fit, in one line: a newer format, a file with other content, or the manifest itself."""
    try:
        stored = json.loads(manifest)
        if stored["format"] > FORMAT:
            return f"{path} has checkpoint format {stored['format']}, this molere reads {FORMAT}; update molere"
        for name, content in data.items():
            if stored["files"][name]["sha256"] != hashlib.sha256(content).hexdigest():
                return f"{path / name} is damaged: its SHA-256 is not the one in manifest.json"
    except (ValueError, KeyError, TypeError):
        pass
    return f"{path / 'manifest.json'} is damaged"


def write_folder(target: Path, contents: Mapping[str, bytes], *, fsync: bool = True, prefix: str = _TEMPORARY) -> None:
    """Put a folder of these files in its place at once, also in that of another; raises OSError, and leaves that."""
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    before = temporary.with_name(f"{temporary.name}-old")
    try:
        for name, data in contents.items():
            files.write_new(temporary / name, data, fsync=fsync)
        temporary.chmod(0o777 & ~_umask())
        if fsync:
            files.fsync_folder(temporary)
        if target.exists():  # saved before, by a run that then went back to an earlier step
            target.rename(before)
        temporary.rename(target)
        if fsync:
            files.fsync_folder(target.parent)
    except BaseException:
        if before.exists() and not target.exists():
            before.rename(target)
        _delete(temporary)
        raise
    _delete(before)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _candidates(folder: Path) -> list[Path]:
    """Checkpoints in the order to try them: the one LATEST names, then by falling step."""
    found = sorted(_steps(folder).items(), reverse=True)
    pointer = ""
    with contextlib.suppress(OSError, ValueError):
        pointer = (folder / "LATEST").read_text().strip()
    return sorted((path for _, path in found), key=lambda path: path.name != pointer)


def _steps(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    return {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}


def _prune(folder: Path, step: int) -> None:
    """Keep `step` and the newest before it."""
    steps = _steps(folder)
    keep = sorted(s for s in steps if s <= step)[-KEEP:]
    for other, path in steps.items():
        if other not in keep:
            _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def remove_all(folder: Path) -> None:
    """Delete every checkpoint, the pointer first, so that none is found half removed."""
    remove_leftovers(folder)
    _delete(folder / "LATEST")
    for path in _steps(folder).values():
        _delete(path)
