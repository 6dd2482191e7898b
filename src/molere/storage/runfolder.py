"""The folder of one run: who may write to it, and the files in it.

config.yaml env.json status.json metrics.csv log.jsonl result.json checkpoints/ LOCK DONE
samples.parquet predictions.parquet out_of_fold.parquet
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from molere.errors import StorageError
from molere.storage import checkpoint, files
from molere.storage.lock import FileLock
from molere.storage.logs import MetricsFile, append_event
from molere.storage.writer import Writer

Status = Literal["running", "done", "failed", "interrupted"]


class RunFolder:
    """A run's folder; `claim` it before writing, `release` it at the end, or use it as a context manager."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = MetricsFile(self.path / "metrics.csv")
        self._lock = FileLock(self.path / "LOCK")
        self._writer = Writer()

    def claim(self) -> "RunFolder":
        """Create the folder and become its owner.

        Raises StorageError when it is a file, cannot be written, holds something that is not a run, or
        belongs to a process that runs. The lock of a process that died is taken over, and what its last save
        left is removed.
        """
        self._create()
        if any(self.path.iterdir()) and not self.is_run:
            raise StorageError(f"{self.path} is not empty and not a run of molere; choose a new folder with --out")
        try:
            owner = self._lock.try_acquire()
        except OSError as error:
            raise files.storage_error(error, self.path, 0) from error
        if owner is not None:
            raise StorageError(
                f"{self.path} is in use by {owner}; choose another folder with --out, "
                f"or delete {self._lock.path.name} in it if that process has ended"
            )
        self._clean()
        if not (self.path / "status.json").exists():
            self.set_status("running")
        return self

    def release(self) -> None:
        """Give the folder up once all is written; does nothing where it was not claimed."""
        try:
            self.flush()
        finally:
            self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self.claim()

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def is_run(self) -> bool:
        """Whether a run has been here: it leaves its lock or its status."""
        return self._lock.path.exists() or (self.path / "status.json").exists()

    @property
    def is_done(self) -> bool:
        """Whether the run in this folder has ended well."""
        return (self.path / "DONE").exists()

    def mark_done(self) -> None:
        """Leave the marker that the run has ended well; the last thing a run writes."""
        files.write_bytes(self.path / "DONE", b"")

    def set_status(self, state: Status, *, exit_code: int | None = None, updates: int = 0, of: int = 0) -> None:
        """Replace status.json: what the run is doing, and how far it is."""
        value = {"state": state, "exit_code": exit_code, "updates": updates, "of": of}
        files.write_json(self.path / "status.json", value, fsync=False)

    def write_json(self, name: str, value: object) -> None:
        """Replace a JSON file of the folder in one step."""
        files.write_json(self.path / name, value)

    def write_yaml(self, name: str, value: object) -> None:
        """Replace a YAML file of the folder in one step."""
        files.write_yaml(self.path / name, value)

    def write_text(self, name: str, text: str) -> None:
        """Replace a text file of the folder in one step."""
        files.write_bytes(self.path / name, text.encode())

    # Any: as json.loads.
    def read_json(self, name: str) -> Any:
        """A JSON file of the folder; StorageError when missing or damaged."""
        return files.read_json(self.path / name)

    def log(self, event: str, **fields: object) -> None:
        """Append an event with the time to log.jsonl."""
        append_event(self.path / "log.jsonl", event, **fields)

    # Any: a state is a tree of dicts, lists, tuples, scalars and tensors; its owner knows its shape.
    def save(self, step: int, state: Mapping[str, Any], *, fsync: bool = True) -> None:
        """Save a checkpoint, after the rows of metrics.csv that it counts."""
        self.save_soon(step, state, fsync=fsync)
        self.flush()

    def save_soon(self, step: int, state: Mapping[str, Any], *, fsync: bool = True) -> None:
        """As `save`, in a thread: the state is copied before this returns, and may change while it is written.

        One save is written at a time. An error of the one before, such as a full disk, is raised here.
        """
        self.flush()
        frozen = checkpoint.Frozen.of(state)

        def write() -> None:
            if fsync:
                self.metrics.sync()
            checkpoint.save_checkpoint(self.checkpoints, step, frozen, fsync=fsync)

        self._writer.submit(write)

    def flush(self) -> None:
        """Until what `save_soon` began is written; raises its error."""
        self._writer.wait()

    def load(self, on_damage: Callable[[str], None] | None = None) -> tuple[int, dict[str, Any]] | None:
        """The newest good checkpoint, or None where there is none; see `load_latest`."""
        return checkpoint.load_latest(self.checkpoints, on_damage=on_damage)

    def start_over(self) -> None:
        """Remove the marker, the metrics, the log and the checkpoints of an earlier run; no update is done."""
        tables = ("samples.parquet", "predictions.parquet", "out_of_fold.parquet")
        for name in ("DONE", "metrics.csv", "log.jsonl", *tables, "result.json"):
            (self.path / name).unlink(missing_ok=True)
        self.metrics.truncate_to(0)
        checkpoint.remove_all(self.checkpoints)
        self.set_status("running")

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            os.listdir(self.path)
        except (FileExistsError, NotADirectoryError) as error:
            raise StorageError(
                f"{self.path} cannot be a folder: it, or one above it, is a file; choose another with --out"
            ) from error
        except OSError as error:
            raise files.storage_error(error, self.path, 0) from error

    def _clean(self) -> None:
        checkpoint.remove_leftovers(self.checkpoints)
        for path in self.path.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()
