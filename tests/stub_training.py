"""A stand-in for training in tests of comparisons: importable by worker processes, and told what to do by a variable.

STUB holds words: fail:LABEL:SEED, kill:LABEL:SEED, data (loading fails), slow (each run takes a minute), stuck (it
also ends for a second signal only), die (cannot be
imported). Runs append a line to STUB_LOG.
"""

import json
import os
import signal
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from molere import signals
from molere.errors import DataError, NumericsError

ORDERS = os.environ.get("STUB", "").split()
GAIN = {"erm": 0.0, "molere": 0.05, "lrw-hard": -0.2, "drop-hard": -0.2}

if "die" in ORDERS:
    raise RuntimeError("cannot be imported")


def store(folder: Path | None) -> None:
    """No cache."""


def load(name: str, *, seed: int = 0, **_: Any) -> Any:
    if "data" in os.environ.get("STUB", "").split():
        raise DataError(f"{name} is not there; give --root")
    return SimpleNamespace(name=name, seed=seed, headline=("accuracy[rotated]",))


def fit(
    method: str,
    *,
    data: Any,
    model: Any,
    recipe: Any,
    seed: int,
    out: Path | None,
    resume: str,
    cache: Any,
    observers: Sequence[Any],
    label: str,
    report: bool,
) -> Any:
    orders = os.environ.get("STUB", "").split()
    note(f"{label} {seed} {data.seed} {resume} {os.getpid()}")
    for i in range(1, 4):
        for observer in observers:
            observer({"fraction": i / 3, "metrics": {"train_loss": 1 / i}})
    if f"kill:{label}:{seed}" in orders:
        os.kill(os.getpid(), signal.SIGKILL)
    if f"fail:{label}:{seed}" in orders:
        raise NumericsError(f"the loss of {label} is no longer finite")
    if "slow" in orders:
        time.sleep(60)
    if "stuck" in orders:
        with signals.looking():
            try:
                time.sleep(60)
            except signals.Stopped as stopped:
                note(f"ended {stopped.exit_code}")
                raise
    stored = result(label, seed)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").write_text(json.dumps(stored))
        (out / "DONE").touch()
    return SimpleNamespace(as_dict=lambda: dict(stored))


def result(label: str, seed: int) -> dict[str, Any]:
    metrics = {
        "accuracy": 0.9,
        "accuracy[rotated]": 0.7
        + GAIN.get(label, 0)
        + 0.01 * seed
        + 0.002 * (zlib.crc32(f"{label}{seed}".encode()) % 5),
    }
    cost = {"seconds": 1.0, "scout_seconds": 0.0, "forward": 10.0, "backward": 10.0, "peak_mib": 50.0}
    return {
        "method": label,
        "label": label,
        "seed": seed,
        "data": "digits",
        "scenario": "hidden-group",
        "updates": 10,
        "last": metrics,
        "best": metrics,
        "best_epoch": 1,
        "cost": cost,
        "settings": {"model": "mlp"},
    }


def note(line: str) -> None:
    if path := os.environ.get("STUB_LOG"):
        with Path(path).open("a") as log:
            log.write(f"{line}\n")


def noted(environment: Mapping[str, str] = os.environ) -> list[list[str]]:
    """The runs so far: label, seed, seed of the data, resume, process."""
    path = Path(environment["STUB_LOG"])
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
