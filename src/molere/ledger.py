"""The folder of a comparison: what was asked for, which runs are finished, the tables. Needs no torch.

config.yaml status.json table.md table.csv table.json runs/LABEL/seed-K/ tune/LABEL/trial-K/ cache/ LOCK
"""

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any  # Any: JSON and YAML

from molere.config import dump_value, flatten, read_yaml
from molere.errors import StorageError
from molere.jobs import Job, is_mapping
from molere.storage import files
from molere.storage.lock import FileLock

GROWING = ("methods", "seeds")  # may be added to, not taken from
PLACES = {"data.root", "data.labels", "data.weights", "data.drop"}  # may have moved; data.corrections is their content
LONGEST = 80


class Ledger:
    """A comparison's folder; a context manager that holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache = path / "cache"
        self._lock = FileLock(path / "LOCK")

    def __enter__(self) -> "Ledger":
        """Create and claim the folder; StorageError if it is in use, not writable or of something else."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            strangers = {p.name for p in self.path.iterdir() if p.name != "LOCK" and p.suffix != ".tmp"}
        except (FileExistsError, NotADirectoryError) as error:
            raise StorageError(f"{self.path} is a file; choose another folder with --out") from error
        except OSError as error:
            raise files.storage_error(error, self.path, 0) from error
        if strangers and not self._is_comparison(strangers):
            raise StorageError(f"{self.path} is not empty and no comparison; choose a new folder with --out")
        try:
            owner = self._lock.try_acquire()
        except OSError as error:
            raise files.storage_error(error, self.path, 0) from error
        if owner is not None:
            raise StorageError(f"{self.path} is in use by {owner}; choose another folder with --out")
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _is_comparison(self, names: set[str]) -> bool:
        return (self.path / "runs").is_dir() and ("config.yaml" in names or names == {"runs"})

    def agree(self, config: Mapping[str, Any], *, resume: bool, force: bool = False) -> None:
        """Write down what is asked for; to continue, it must be what was asked for before, unless forced.

        Methods and seeds may be added. Raises StorageError naming the settings that differ.
        """
        path = self.path / "config.yaml"
        before = read_yaml(path) if resume and path.exists() else None
        differing = [] if before is None else differences(before, config)
        if differing and not force:
            raise StorageError(
                f"{self.path} holds a comparison with other settings: {'; '.join(differing)}. "
                "Give the same ones to continue it, choose another folder with --out, or mix both with --force "
                "(runs that have ended keep theirs)"
            )
        if differing:
            warnings.warn(
                f"{self.path} mixes settings: {'; '.join(differing)}; runs that have ended keep theirs", stacklevel=3
            )
        (self.path / "runs").mkdir(exist_ok=True)
        files.write_yaml(path, config)

    def run_folder(self, label: str, seed: int) -> Path:
        """Where a run is kept: runs/LABEL/seed-K, the label made fit for a file system."""
        return self.path / "runs" / folder_name(label) / f"seed-{seed}"

    def finished(self, job: Job) -> dict[str, Any] | None:
        """The result of a job that has ended well before; None when it has not, or is not readable."""
        folder = job.folder
        if folder is None or not (folder / "DONE").exists():
            return None
        try:
            result = files.read_json(folder / "result.json")
        except StorageError:
            return None
        fits = is_mapping(result) and (result.get("label"), result.get("seed")) == (job.label, job.seed)
        return dict(result) if fits else None

    def status(self) -> dict[str, Any]:
        """The last status, {} where there is none."""
        try:
            return dict(files.read_json(self.path / "status.json"))
        except (StorageError, TypeError, ValueError):
            return {}

    def set_status(self, state: str, **fields: object) -> None:
        """Replace status.json."""
        files.write_json(self.path / "status.json", {"state": state, **fields}, fsync=False)

    def write(self, name: str, text: str) -> None:
        """Replace a table."""
        files.write_bytes(self.path / name, text.encode())

    def machines(self, runs: Iterable[tuple[str, int]]) -> list[str]:
        """The machines that some runs (label, seed) were made on, one line each."""
        lines = list[str]()
        for label, seed in runs:
            with suppress(StorageError, TypeError, KeyError):
                lines.append(machine(files.read_json(self.run_folder(label, seed) / "env.json")))
        return list(dict.fromkeys(lines))


def machine(environment: Mapping[str, Any]) -> str:
    """An env.json in one line: processor and cores, device if it is another, versions."""
    e = environment
    device = "" if e["device"] == "cpu" else f", {e['device']}"
    return f"{e['cpu']}, {e['cpu_count']} cores{device}; torch {e['libraries']['torch']}, Python {e['python']}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What stands in the way of continuing: `train.lr (0.1 there, 0.05 here)`, `seeds (without 3)`."""
    found = list[str]()
    for key in GROWING:
        there: list[Any] = before.get(key) or []
        gone = [str(value) for value in there if value not in now[key]]
        found += [f"{key} (without {', '.join(gone)})"] if gone else []
    old, new = (flatten({k: v for k, v in c.items() if k not in GROWING}) for c in (before, now))
    for key in dict.fromkeys([*old, *new]):
        was, is_now = (None if v == {} else v for v in (old.get(key), new.get(key)))
        if key not in PLACES and was != is_now:
            found.append(f"{key} ({_shown(was)} there, {_shown(is_now)} here)")
    return found


def _shown(value: object) -> str:
    return "default" if value is None else dump_value(value)


def folder_name(label: str) -> str:
    """A label as a folder's name: itself where short and plain, else shortened and made unique by a hash."""
    plain = re.sub(r"[^\w@=,.+\[\]-]", "_", label)
    if plain == label and len(label) <= LONGEST and not label.startswith("."):
        return label
    return f"{plain[:LONGEST].lstrip('.')}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
