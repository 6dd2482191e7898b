"""What a report knows of a run: from its folder, or from the Result in hand."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # Any: JSON, and columns of numbers

import numpy as np
import numpy.typing as npt

from molere.errors import StorageError
from molere.storage import files
from molere.storage.logs import MetricsFile
from molere.storage.samples import read_samples

Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Record:
    """One run as stored: result.json, metrics.csv, samples.parquet, predictions.parquet, and what is beside them."""

    result: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    samples: Columns = field(default_factory=dict[str, npt.NDArray[Any]])
    predictions: Columns = field(default_factory=dict[str, npt.NDArray[Any]])
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: str = ""
    """The settings file of the run, where there is one."""
    shown: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Images and texts of a few examples, kept when the data were at hand."""
    folder: Path | None = None

    @property
    def label(self) -> str:
        """The method as it was asked for."""
        return str(self.result["label"])

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.result["seed"])

    def test(self) -> Columns:
        """The predictions on the main test set alone."""
        names = self.predictions.get("test")
        if names is None or not len(names):
            return self.predictions
        first = names == names[0]
        return {k: v[first] for k, v in self.predictions.items()}


def part(stored: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping within a stored one; {} where it is missing or null."""
    return stored.get(name) or {}


def of_result(result: Any) -> Record:  # a molere.Result, which is not imported here
    """The record of a run that is in hand."""
    return Record(
        result=result.as_dict(),
        history=result.history,
        samples={k: np.asarray(v) for k, v in result.samples.items()},
        predictions={k: np.asarray(v) for k, v in result.predictions.items()},
    )


def of_folder(path: Path, *, samples: bool = True) -> Record:
    """The record of a run's folder, with tables of examples if wanted; StorageError where there is no finished run."""
    if not (path / "result.json").is_file():
        raise StorageError(f"{path} holds no finished run (result.json is missing); give the folder of a run")
    settings = path / "config.yaml"
    return Record(
        result=files.read_json(path / "result.json"),
        history=MetricsFile(path / "metrics.csv").read(),
        samples=_table(path / "samples.parquet") if samples else {},
        predictions=_table(path / "predictions.parquet") if samples else {},
        environment=_json(path / "env.json"),
        settings=settings.read_text("utf-8") if settings.is_file() else "",
        shown=_json(path / "shown.json"),
        folder=path,
    )


def _json(path: Path) -> Mapping[str, Any]:
    with contextlib.suppress(StorageError):
        return files.read_json(path)
    return {}


def _table(path: Path) -> Columns:
    return read_samples(path) if path.is_file() else {}
