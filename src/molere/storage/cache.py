"""Results kept under the content they follow from, so that runs which need the same one compute it once."""

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from molere.errors import StorageError
from molere.storage import files
from molere.storage.lock import FileLock
from molere.storage.runfolder import RunFolder

Tensors = dict[str, Tensor]


POLL = 0.02
"""Seconds between looks at what other processes are computing."""


class ContentCache:
    """Tensors by key, in memory and, with a folder, on disk for other processes and later runs.

    A key states everything the content depends on. On disk an entry is `<hash of the key>-<SHA-256 of the
    file>.safetensors`, so a damaged one is noticed, and then counts as missing. The memory holds at most
    `memory_mib`, the entries used last.
    """

    def __init__(self, folder: Path | None = None, *, memory_mib: float = 256) -> None:
        self.folder = folder
        self._limit = memory_mib * 2**20
        self._memory: OrderedDict[str, Tensors] = OrderedDict()
        self._threads: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def get(self, key: str) -> Tensors | None:
        """A copy of the tensors under a key, on the CPU, or None."""
        found = self._memory.get(key)
        if found is None and self.folder is not None:
            found = self._read(self.folder, key)
        if found is None:
            return None
        self._remember(key, found)
        return {name: tensor.clone() for name, tensor in found.items()}

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a copy of the tensors under a key. Raises StorageError when the folder cannot be written."""
        own = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
        self._remember(key, own)
        if self.folder is not None:
            data = safetensors.torch.save(own)
            name = f"{_digest(key)}-{hashlib.sha256(data).hexdigest()}.safetensors"
            self._ensure_folder(self.folder)
            files.write_bytes(self.folder / name, data, fsync=False)

    def get_or_put(self, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> Tensors:
        """The tensors under a key, computed here if no process has done so yet."""
        return self.get_or_put_all({key: compute})[key]

    def get_or_put_all(self, wanted: Mapping[str, Callable[[], Mapping[str, Tensor]]]) -> dict[str, Tensors]:
        """The tensors under several keys; what other processes compute is left to them, the rest is done meanwhile."""
        found: dict[str, Tensors] = {}
        while len(found) < len(wanted):
            before = len(found)
            for key, compute in wanted.items():
                if key not in found and (have := self._get_or_compute(key, compute)) is not None:
                    found[key] = have
            if len(found) == before:
                time.sleep(POLL)
        return found

    def _get_or_compute(self, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> Tensors | None:
        if (have := self.get(key)) is not None:
            return have
        with self.if_free(key) as mine:
            if not mine:
                return None
            if self.get(key) is None:
                self.put(key, compute())
            return self.get(key)

    @contextmanager
    def if_free(self, key: str) -> Generator[bool]:
        """Whether this thread may compute a key inside the block; False while another thread or process does.

        Not re-entrant. A process that dies inside gives way to the next.
        """
        if not self._threads[key].acquire(blocking=False):
            yield False
            return
        try:
            lock = None if self.folder is None else self._lock(self.folder, key)
            mine = lock is None or lock.try_acquire() is None
            try:
                yield mine
            finally:
                if lock is not None and mine:
                    lock.release()
        finally:
            self._threads[key].release()

    @contextmanager
    def workshop(self, key: str) -> Generator[RunFolder | None]:
        """A run's folder to compute a key in, so that an interruption loses little; removed when the block ends well.

        None without a folder on disk. Only whoever may compute the key enters, see `if_free`.
        """
        if self.folder is None:
            yield None
            return
        with RunFolder(self.folder / f"{_digest(key)}.run") as room:
            yield room
        shutil.rmtree(room.path, ignore_errors=True)

    def _lock(self, folder: Path, key: str) -> FileLock:
        self._ensure_folder(folder)
        return FileLock(folder / f"{_digest(key)}.lock")

    def _remember(self, key: str, tensors: Tensors) -> None:
        self._memory[key] = tensors
        self._memory.move_to_end(key)
        size = sum(map(_bytes, self._memory.values()))
        while size > self._limit and len(self._memory) > 1:
            size -= _bytes(self._memory.popitem(last=False)[1])

    @staticmethod
    def _read(folder: Path, key: str) -> Tensors | None:
        for path in sorted(folder.glob(f"{_digest(key)}-*.safetensors")):
            with contextlib.suppress(OSError):
                data = path.read_bytes()
                with contextlib.suppress(SafetensorError):
                    if path.stem.endswith(hashlib.sha256(data).hexdigest()):
                        return safetensors.torch.load(data)
                os.unlink(path)  # damaged, or not of this library
        return None

    @staticmethod
    def _ensure_folder(folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the cache folder {folder}: {error.strerror or error}") from error


def _digest(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def _bytes(tensors: Tensors) -> int:
    return sum(t.nbytes for t in tensors.values())
