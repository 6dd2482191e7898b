"""Notes: what is written down during a run, about each example and about each epoch."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molere.steps import effective_sample_size


class Notes:
    """Columns of samples.parquet and the present epoch's row of metrics.

    Attributes:
        weight: the weight each example had when it was last used [N]; NaN if it never was.
        times_in_validation: how many splits had it in their validation part [N].
        columns: what a method notes of each example, by name.
        logged: what a method logged in this epoch, by name.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._device = device
        self.weight: Float[Tensor, " N"] = torch.full((size,), float("nan"), device=device)
        self.times_in_validation: Int[Tensor, " N"] = torch.zeros(size, dtype=torch.int64, device=device)
        self.columns: dict[str, Tensor] = {}
        self.logged: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}

    def validated(self, part: Int[Tensor, " m"]) -> None:
        """A split put these examples into its validation part."""
        self.times_in_validation.index_add_(0, part, torch.ones_like(part))

    def trained(self, index: Int[Tensor, " n"], weights: Float[Tensor, " n"] | None, loss: Float[Tensor, ""]) -> None:
        """An update used these examples with these weights (none: 1), at this plain mean loss."""
        self._add("train_loss", loss)
        if weights is None:
            self.weight.index_fill_(0, index, 1.0)
        else:
            self.weight.index_copy_(0, index, weights.to(self.weight.dtype))
            self._add("effective_sample_size", effective_sample_size(weights))

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = value if name not in self._sums else self._sums[name] + value

    def row(self, updates: int) -> dict[str, float]:
        """The epoch's means over its updates, and what was logged; both are forgotten here."""
        means = {k: float(v) / updates for k, v in self._sums.items()}
        row = {"effective_sample_size": 1.0, **means, **self.logged}
        self._sums, self.logged = {}, {}
        return row

    def state_dict(self) -> dict[str, Any]:  # Any: nested plain data and tensors
        """All that changes, by name."""
        return {
            "weight": self.weight,
            "times_in_validation": self.times_in_validation,
            "columns": self.columns,
            "logged": self.logged,
            "sums": self._sums,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Undo `state_dict`."""
        self.weight, self.times_in_validation = self._here(state["weight"]), self._here(state["times_in_validation"])
        self.columns = {k: self._here(v) for k, v in state["columns"].items()}
        self.logged, self._sums = dict(state["logged"]), {k: self._here(v) for k, v in state["sums"].items()}

    def _here(self, t: Tensor) -> Tensor:
        return t.to(self._device, copy=True)  # a copy is aligned as torch's own tensors are
