"""Examples: what is known of each example of the pool, and of the split in force."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molere.losses import cross_entropy
from molere.method import Run
from molere.split import probabilistic_margin


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a classifier makes of each of n examples; logits are not kept, as n of them can be too many."""

    prediction: Int[Tensor, " n"]
    loss: Float[Tensor, " n"]
    margin: Float[Tensor, " n"]

    @classmethod
    def of(cls, logits: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> "Outcome":
        """Predicted class, cross-entropy and margin."""
        return cls(logits.argmax(1), cross_entropy(logits, y), probabilistic_margin(logits.softmax(1), y))

    @classmethod
    def joined(cls, parts: "Iterable[Outcome]") -> "Outcome":
        """Of several batches, one after the other."""
        columns = zip(*((part.prediction, part.loss, part.margin) for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))


def of_each(run: Run, outcome: Outcome) -> dict[str, Any]:  # Any: a column of numbers or of users' ids
    """One row per example, as columns, with what the classifier makes of each: what samples.parquet holds."""
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
