"""A lock file that names its owner and does not outlive it.

The operating system's lock on the file (flock) decides who has it: it ends with the process, however that
ends. The content (process, host) tells others whom to ask. A file left by a process of another machine is
respected, because some network disks do not carry locks from one machine to another.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

fcntl: ModuleType | None = None
with contextlib.suppress(ImportError):  # not on Windows
    import fcntl

_open: set[int] = set()  # descriptors of the locks this process holds


class FileLock:
    """One lock file; `try_acquire` and `release`, or `waiting` around a block. Not re-entrant."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def try_acquire(self) -> str | None:
        """Take the lock and return None, or return who has it; OSError when the file cannot be made."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            taken = _flock(fd)
            owner = _owner(fd)
            if taken is False or _lives(owner, certain=taken is True):
                os.close(fd)
                return _describe(owner)
            if _is_still(fd, self.path):
                break
            os.close(fd)  # its owner released and removed it between our opening and locking it
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, json.dumps(_identity()).encode())
        self._fd = fd
        _open.add(fd)
        return None

    def release(self) -> None:
        """Remove the file and give up the lock; does nothing where this process does not hold it."""
        if self._fd not in _open:
            return
        self.path.unlink(missing_ok=True)
        _open.discard(self._fd)
        os.close(self._fd)
        self._fd = -1

    @contextmanager
    def waiting(self, poll: float = 0.02) -> Generator[None]:
        """Hold the lock during a block, waiting as long as another process has it."""
        while self.try_acquire() is not None:
            time.sleep(poll)
        try:
            yield
        finally:
            self.release()


def _flock(fd: int) -> bool | None:
    """Whether the system's lock was taken; None where the system or the disk has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


# Any: the content of a file that may have been written by anyone.
def _owner(fd: int) -> dict[str, Any]:
    """The identity in a lock file; {} when it is empty or damaged."""
    os.lseek(fd, 0, os.SEEK_SET)
    with contextlib.suppress(ValueError):
        content = json.loads(os.read(fd, 4096))
        return content if isinstance(content, dict) else {}  # pyright: ignore[reportUnknownVariableType]
    return {}


def _identity() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot()}


def _boot() -> str:
    """The id of this start of this machine (Linux), the same in all its containers; elsewhere ''."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _lives(owner: dict[str, Any], *, certain: bool) -> bool:
    """Whether the owner in an unlocked file must be taken as alive; `certain`: the system does lock files."""
    if not owner:
        return False
    here = _identity()
    if owner.get("host") != here["host"] and (not here["boot"] or owner.get("boot") != here["boot"]):
        return True
    return not certain and _process_lives(owner.get("pid"))


def _process_lives(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    if os.name != "posix":
        return True  # signal 0 is not harmless elsewhere
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _describe(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner.get('host', '?')}" if "pid" in owner else "another process"


def _is_still(fd: int, path: Path) -> bool:
    """Whether the open file is the one that has the name now."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def _forget() -> None:
    """In a forked child: close the parent's locks, so that they end with the parent."""
    for fd in _open:
        with contextlib.suppress(OSError):
            os.close(fd)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
