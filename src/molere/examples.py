"""Examples: what is known of each example of the pool, and of the split in force."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from molere.losses import cross_entropy
from molere.method import Run
from molere.split import probabilistic_margin


def of_each(run: Run, logits: Float[Tensor, "N c"]) -> dict[str, Any]:  # Any: a column of numbers or of users' ids
    """One row per example, as columns, under the classifier that gave these logits: what samples.parquet holds."""
    pool, n = run.pool, len(run.pool)
    y = pool.y.to(logits.device)
    validates = torch.zeros(n, dtype=torch.bool, device=run.device)
    validates[run.split.val] = True
    table: dict[str, Any] = {"sample_id": torch.arange(n)}
    if pool.ids is not None:
        table["id"] = pool.ids
    table |= {"label": y}
    if pool.clean_y is not None:
        table["clean_label"] = pool.clean_y
    if pool.group is not None:
        table["group"] = pool.group
    table |= {
        "prediction": logits.argmax(1),
        "loss": cross_entropy(logits, y),
        "margin": probabilistic_margin(logits.softmax(1), y),
        "weight": run.notes.weight,
        "weight_mean": run.notes.weight_mean,
        "train_probability": torch.full((n,), float("nan")),
        "in_validation": validates,
        "times_in_validation": run.notes.times_in_validation,
        **run.notes.columns,
    }
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
