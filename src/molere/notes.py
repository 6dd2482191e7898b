"""Notes: what is written down during a run, about each example and about each epoch."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molere.steps import effective_sample_size


class Notes:
    """Columns of samples.parquet and the present epoch's row of metrics.

    Attributes:
        weight: the weight each example had when it was last used [N]; NaN if it never was.
        times_in_validation: how many splits had it in their validation part [N].
        forgetting: how often each example was right when it was used, and wrong at its next use [N].
        learnt: whether it was ever right when it was used [N].
        columns: what a method notes of each example, by name.
        logged: what a method logged in this epoch, by name.
        flipped: which labels are wrong [N], where clean ones are known and some differ.
    """

    def __init__(self, size: int, device: torch.device, flipped: Bool[Tensor, " N"] | None = None) -> None:
        self._device = device
        self.weight: Float[Tensor, " N"] = torch.full((size,), float("nan"), device=device)
        self.times_in_validation: Int[Tensor, " N"] = torch.zeros(size, dtype=torch.int64, device=device)
        self.forgetting: Int[Tensor, " N"] = torch.zeros(size, dtype=torch.int64, device=device)
        self.learnt: Bool[Tensor, " N"] = torch.zeros(size, dtype=torch.bool, device=device)
        self._right: Bool[Tensor, " N"] = torch.zeros(size, dtype=torch.bool, device=device)
        self.columns: dict[str, Tensor] = {}
        self.logged: dict[str, float] = {}
        self.flipped = flipped.to(device) if flipped is not None and bool(flipped.any()) else None
        self._total: Float[Tensor, " N"] = torch.zeros(size, device=device)
        self._uses: Int[Tensor, " N"] = torch.zeros(size, dtype=torch.int64, device=device)
        self._sums: dict[str, Tensor] = {}
        self._equal = 0
        """Updates of this epoch with equal weights."""

    @property
    def weight_mean(self) -> Float[Tensor, " N"]:
        """The mean of the weights that each example had whenever it was used [N]; NaN if it never was."""
        return self._total / self._uses

    def validated(self, part: Int[Tensor, " m"]) -> None:
        """A split put these examples into its validation part."""
        self.times_in_validation.index_add_(0, part, torch.ones_like(part))

    def presented(self, index: Int[Tensor, " n"], right: Bool[Tensor, " n"]) -> None:
        """A training pass saw these examples, and the classifier was right or not.

        A forgetting event is right at one use and wrong at the next (Toneva et al. 2019, definition 1, algorithm 1):
        f_i <- f_i + 1[right_i before] 1[not right_i now], judged in training passes, as they come.
        """
        forgot = self._right[index] & ~right
        self.forgetting.index_add_(0, index, forgot.to(torch.int64))
        self._right.index_copy_(0, index, right)
        self.learnt.index_copy_(0, index, self.learnt[index] | right)

    def trained(self, index: Int[Tensor, " n"], weights: Float[Tensor, " n"] | None, loss: Float[Tensor, ""]) -> None:
        """An update used these examples with these weights (none: 1), at this plain mean loss."""
        self._add("train_loss", loss)
        if weights is None:
            self._equal += 1
        else:
            self._add("effective_sample_size", effective_sample_size(weights))
            self._add("weights_nonzero", (weights != 0).float().mean())
            self._add("weights_mean", weights.mean())
        used = self.weight.new_ones(len(index)) if weights is None else weights.to(self.weight.dtype)
        self.weight.index_copy_(0, index, used)
        self._total.index_add_(0, index, used)
        self._uses.index_add_(0, index, torch.ones_like(index))
        if self.flipped is not None:
            flipped = self.flipped[index].float()
            self._add("flipped", torch.stack([used @ flipped, flipped.sum()]))
            self._add("clean", torch.stack([used @ (1 - flipped), (1 - flipped).sum()]))

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = value if name not in self._sums else self._sums[name] + value

    def row(self, updates: int) -> dict[str, float]:
        """The epoch's means over its updates, and what was logged; both are forgotten here.

        weight_flipped, weight_clean: mean weights over all uses of examples whose label is wrong, and right.
        """
        zero = torch.zeros(())
        row = {"train_loss": float(self._sums.get("train_loss", zero)) / updates}
        for name in ("effective_sample_size", "weights_nonzero", "weights_mean"):
            row[name] = (float(self._sums.get(name, zero)) + self._equal) / updates
        for name in ("flipped", "clean"):
            weight, uses = self._sums.get(name, torch.zeros(2)).unbind()
            row |= {f"weight_{name}": float(weight) / float(uses)} if uses else {}
        row |= self._spread(updates) | self.logged
        self._sums, self.logged, self._equal = {}, {}, 0
        return row

    def _spread(self, updates: int) -> dict[str, float]:
        """Quantiles of the weights that examples had when they were last used, unless all of this epoch were 1."""
        known = self.weight[~self.weight.isnan()]
        if self._equal >= updates or not len(known):
            return {}
        ordered = known.sort().values
        return {f"weight_p{q:02}": float(ordered[round(q / 100 * (len(ordered) - 1))]) for q in (5, 25, 50, 75, 95)}

    def state_dict(self) -> dict[str, Any]:  # Any: nested plain data and tensors
        """All that changes, by name."""
        return {
            "weight": self.weight,
            "times_in_validation": self.times_in_validation,
            "forgetting": self.forgetting,
            "learnt": self.learnt,
            "right": self._right,
            "columns": self.columns,
            "logged": self.logged,
            "total": self._total,
            "uses": self._uses,
            "sums": self._sums,
            "equal": self._equal,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Undo `state_dict`."""
        self.weight, self.times_in_validation = self._here(state["weight"]), self._here(state["times_in_validation"])
        self._total, self._uses = self._here(state["total"]), self._here(state["uses"])
        self.forgetting, self.learnt = self._here(state["forgetting"]), self._here(state["learnt"])
        self._right = self._here(state["right"])
        self.columns = {k: self._here(v) for k, v in state["columns"].items()}
        self.logged, self._sums = dict(state["logged"]), {k: self._here(v) for k, v in state["sums"].items()}
        self._equal = int(state["equal"])

    def _here(self, t: Tensor) -> Tensor:
        return t.to(self._device, copy=True)  # a copy is aligned as torch's own tensors are
