"""A comparison as it lies in its folder: table, origin, results, and the folders of its runs."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # Any: JSON

from molere.errors import StorageError
from molere.ledger import folder_name
from molere.report import About
from molere.show.records import Record, of_folder
from molere.storage import files
from molere.table import Table, tabulate
from molere.tuning import Chosen


@dataclass(frozen=True)
class Compared:
    """A comparison as stored."""

    table: Table
    about: About
    results: Sequence[Mapping[str, Any]]
    folder: Path | None = None

    def record(self, label: str, seed: int, *, samples: bool = True) -> Record | None:
        """One of its runs, if it was kept."""
        if self.folder is None:
            return None
        with contextlib.suppress(StorageError):
            return of_folder(self.folder / "runs" / folder_name(label) / f"seed-{seed}", samples=samples)
        return None

    def histories(self, labels: Sequence[str]) -> dict[str, list[Any]]:
        """The rows of metrics.csv of the runs of some methods."""
        runs = {label: [self.record(label, seed, samples=False) for seed in self.table.seeds] for label in labels}
        return {label: [r.history for r in found if r is not None] for label, found in runs.items() if any(found)}


def of_comparison(folder: Path) -> Compared:
    """The comparison in a folder, finished or not; StorageError where there is none, or no run of it has ended."""
    if (folder / "table.json").is_file():
        stored: Mapping[str, Any] = files.read_json(folder / "table.json")
        about = dict(stored["about"])
        about["tuning"] = tuple(Chosen(**c) for c in about.get("tuning") or ())
        missing = {(m["label"], int(m["seed"])): m["reason"] for m in stored.get("missing") or ()}
        results = stored["results"]
        table = tabulate(
            results,
            labels=stored["methods"],
            seeds=stored["seeds"],
            baseline=stored["baseline"],
            headline=stored["headline"],
            failures=missing,
        )
        return Compared(table, About(**about), results, folder)
    results = [files.read_json(path) for path in sorted(folder.glob("runs/*/seed-*/result.json"))]
    if not results:
        raise StorageError(f"{folder} holds no comparison with a finished run; give the folder of one")
    return Compared(tabulate(results), About(title=f"{results[0]['data']}, not finished"), results, folder)
