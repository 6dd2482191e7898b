"""Examples: what is known of each example of the pool and of the tests, and of the split in force."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molere.data.pool import Pool
from molere.losses import cross_entropy
from molere.method import Run
from molere.outcome import MOST_LOGITS as MOST_PROBABILITIES
from molere.outcome import Outcome
from molere.split import probabilistic_margin


def of_each(
    run: Run, outcome: Outcome, out_of_fold: Outcome | None = None
) -> dict[str, Any]:  # Any: a column of numbers or of users' ids
    """One row per example, as columns, with what the classifier makes of each: what samples.parquet holds.

    out_of_fold: the same of models that have not seen the example, where there are any.
    """
    pool, n = run.pool, len(run.pool)
    validates = torch.zeros(n, dtype=torch.bool, device=run.device)
    validates[run.split.val] = True
    table: dict[str, Any] = {"sample_id": torch.arange(n)}
    if pool.ids is not None:
        table["id"] = pool.ids
    table |= {"label": pool.y}
    if pool.clean_y is not None:
        table["clean_label"] = pool.clean_y
    flips = getattr(pool, "flip_probability", None)  # a column that pools of known noise have
    if flips is not None:
        table["flip_probability"] = flips
    if pool.group is not None:
        table["group"] = pool.group
    table |= {
        "prediction": outcome.prediction,
        "loss": outcome.loss,
        "margin": outcome.margin,
        "weight": run.notes.weight,
        "weight_mean": run.notes.weight_mean,
        "train_probability": torch.full((n,), float("nan")),
        "in_validation": validates,
        "times_in_validation": run.notes.times_in_validation,
        "forgetting": run.notes.forgetting,
        "learnt": run.notes.learnt,
        **run.notes.columns,
    }
    if out_of_fold is not None:
        table |= {f"out_of_fold_{k}": getattr(out_of_fold, k) for k in ("prediction", "loss", "margin")}
    return _plain(table)


def of_folds(pool: Pool, found: Outcome) -> dict[str, Any]:  # Any: as above
    """One row per example of the pool: label and probabilities under a model that has not seen it."""
    known = {} if found.logits is None else _probabilities(found.logits)
    return _plain({"sample_id": torch.arange(len(pool)), "label": pool.y, **known})


def of_tests(tests: Mapping[str, Pool], logits: Mapping[str, Tensor]) -> dict[str, Any]:  # Any: as above
    """One row per example of each test set, as columns: what predictions.parquet holds.

    test (name of the set), sample_id (position in it), id where all sets have them, label, group (-1: not known),
    prediction, loss, margin in [-1, 1], confidence (largest probability), and p0, p1, ... if they are not too many.
    """
    tables = [_of_test(name, pool, logits[name]) for name, pool in tests.items()]
    common = [k for k in tables[0] if all(k in t for t in tables)]
    return {k: np.concatenate([t[k] for t in tables]) for k in common}


def _of_test(name: str, pool: Pool, logits: Tensor) -> dict[str, Any]:
    n = len(pool)
    ids = {} if pool.ids is None else {"id": pool.ids}
    group = torch.full((n,), -1) if pool.group is None else pool.group
    table = {"test": np.full(n, name), "sample_id": torch.arange(n), **ids, "label": pool.y, "group": group}
    return _plain({**table, **_judged(logits, pool.y), **_probabilities(logits)})


def _judged(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Prediction, loss, margin and confidence."""
    y, p = y.to(logits.device), logits.softmax(1)
    margin = probabilistic_margin(p, y)
    return {
        "prediction": logits.argmax(1), "loss": cross_entropy(logits, y), "margin": margin, "confidence": p.amax(1),
    }  # fmt: skip


def _probabilities(logits: Tensor) -> dict[str, Tensor]:
    """Columns p0, p1, ... of the probabilities; {} where they are too many for a small file."""
    if logits.numel() > MOST_PROBABILITIES:
        return {}
    return {f"p{c}": column for c, column in enumerate(logits.float().softmax(1).unbind(1))}


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in table.items()}


def of_split(run: Run) -> dict[str, float]:
    """Size of the validation part, and its share of wrong labels where clean ones are known; {} if none validate."""
    if len(run.split.val) == 0:
        return {}
    out = {"validation_size": float(len(run.split.val))}
    if run.pool.clean_y is not None:
        wrong = run.pool.clean_y != run.pool.y
        out["validation_noise"] = float(wrong.to(run.device)[run.split.val].float().mean())
    return out
