"""Result: what one run produced."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from molere.steps import Cost
from molere.summary import summary

if TYPE_CHECKING:
    from molere.show.plots import OfRun


@dataclass(frozen=True, repr=False)
class Result:
    """What a run produced: the trained classifier, metrics at the last update and at the best by validation, cost."""

    method: str
    label: str
    seed: int
    data: str
    scenario: str
    classifier: nn.Module
    updates: int
    stopped: str
    last: Mapping[str, float]
    best: Mapping[str, float]
    best_epoch: int
    history: list[dict[str, float]]
    samples: Mapping[str, object]
    cost: Cost
    logged: Mapping[str, float] = field(default_factory=dict[str, float])
    """What was logged along the way (size and noise of the validation part, churn, ...), means over the epochs."""
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    predictions: Mapping[str, object] = field(default_factory=dict[str, object])
    """Columns of predictions.parquet: one row per test example, at the last update."""
    out_of_fold: Mapping[str, object] = field(default_factory=dict[str, object])
    """Columns of out_of_fold.parquet: probabilities of each training example under models that have not seen it."""

    @property
    def weights(self) -> Tensor:
        """The weight each training example had when it was last used [N]; NaN if it never was (it only validated)."""
        return torch.as_tensor(self.samples["weight"])

    @property
    def ids(self) -> npt.NDArray[np.generic]:
        """Which example each weight and each row of samples is of [N]: your own ids, or positions in what you gave.

        The training part of arrays is smaller than what was given, as some examples are held out to select the best
        update: weights[k] is that of example ids[k].
        """
        return np.asarray(self.samples.get("id", self.samples["sample_id"]))

    @property
    def plot(self) -> "OfRun":
        """Figures by name: `result.plot.margins()`, `result.plot.weights()`."""
        return importlib.import_module("molere.show.plots").OfRun(self)  # drawing comes long after results

    def __str__(self) -> str:
        """What the run came to, in a few lines."""
        return summary(self.as_dict())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.plot.html()

    def as_dict(self) -> dict[str, object]:
        """The part that is stored as result.json."""
        names = ("method", "label", "seed", "data", "scenario", "updates", "stopped", "best_epoch")
        return {
            **{n: getattr(self, n) for n in names},
            "last": dict(self.last),
            "best": dict(self.best),
            "cost": self.cost.as_dict(),
            "logged": dict(self.logged),
            "settings": dict(self.settings),
        }
