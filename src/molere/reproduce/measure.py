"""Margins of test examples under the classifiers that a comparison kept, read once and then stored beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # Any: the arguments of load

import numpy as np
import safetensors.torch
import torch
from torch import nn

from molere.data import sources
from molere.data.pool import Pool
from molere.errors import DataError
from molere.ledger import folder_name
from molere.models import build
from molere.reproduce.margins import Numbers
from molere.split import probabilistic_margin

BATCH = 1024


@dataclass(frozen=True)
class Classifier:
    """The classifier that was trained: its name, and the dropout before its head."""

    model: str
    dropout: float = 0.0


def measured(
    folder: Path, columns: Mapping[str, str], seeds: tuple[int, ...], data: Mapping[str, Any], classifier: Classifier
) -> dict[str, dict[int, Numbers]]:
    """Column -> seed -> margins of the main test set [n], of every run that has ended.

    folder: that of the comparison; margins are kept in its `margins`. data: the arguments of `load`.
    """
    found: dict[str, dict[int, Numbers]] = {column: {} for column in columns}
    for seed in seeds:
        test: Pool | None = None
        for column, label in columns.items():
            run, kept = folder / "runs" / folder_name(label) / f"seed-{seed}", _place(folder, label, seed)
            if not (run / "DONE").exists():
                continue
            if not kept.exists():
                test = _test_set(data, seed) if test is None else test
                kept.parent.mkdir(exist_ok=True)
                np.save(kept, margins_of(run / "model.safetensors", classifier, test))
            found[column][seed] = np.load(kept, allow_pickle=False)
    return found


def _place(folder: Path, label: str, seed: int) -> Path:
    return folder / "margins" / f"{folder_name(label)}-seed-{seed}.npy"


def _test_set(data: Mapping[str, Any], seed: int) -> Pool:
    arguments: dict[str, Any] = {**data, "seed": seed}
    return next(iter(sources.load(**arguments).tests.values()))


def margins_of(weights: Path, made: Classifier, test: Pool) -> Numbers:
    """Margins of all test examples [n] under a stored classifier, in evaluation mode on the CPU."""
    shape = tuple(test.batch(torch.zeros(1, dtype=torch.int64)).x.shape[1:])
    classifier = build(made.model, num_classes=test.num_classes, input_shape=shape, dropout=made.dropout)
    _load(classifier, weights)
    classifier.eval()
    starts = range(0, len(test), BATCH)
    parts = [_margins(classifier, test, torch.arange(a, min(a + BATCH, len(test)))) for a in starts]
    return torch.cat(parts).double().numpy()


def _load(classifier: nn.Module, weights: Path) -> None:
    state = safetensors.torch.load_file(weights)
    try:
        classifier.load_state_dict(state)
    except RuntimeError:
        raise DataError(f"{weights} is of another classifier; run this row again with --resume never") from None


@torch.no_grad()
def _margins(classifier: nn.Module, test: Pool, index: torch.Tensor) -> torch.Tensor:
    batch = test.batch(index)
    return probabilistic_margin(classifier(batch.x).softmax(1), batch.y)
