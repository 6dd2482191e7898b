"""Batches: which examples come next, as a function of the seed, the split and the number of updates."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from molere import rng
from molere.split import Split


class Batches:
    """Two endless streams of pool positions, shuffled anew each lap: the training part's and the validation part's.

    Both begin anew with each split, and go on with the one in force. What has to be saved is the split and two
    integers: the update at which the streams began and the number of validation examples drawn since.
    """

    def __init__(self, size: int, seed: int, device: torch.device) -> None:
        self.split = Split(torch.arange(size, device=device), torch.empty(0, dtype=torch.int64, device=device))
        self._seed, self._device = seed, device
        self._began, self._drawn = 0, 0
        self._laps: dict[tuple[str, int], Tensor] = {}

    def use(self, split: Split, *, at: int) -> None:
        """Begin both streams anew at update `at`; the very split that is in force goes on instead."""
        if split is self.split:
            return
        train, val = split.train.to(self._device), split.val.to(self._device)
        moved = split if train is split.train and val is split.val else replace(split, train=train, val=val)
        self.split, self._began, self._drawn = moved, at, 0
        self._laps.clear()

    def train(self, update: int, count: int) -> Int[Tensor, " n"]:
        """The training positions of an update."""
        return self._positions("batches", self.split.train, (update - self._began) * count, count)

    def val(self, count: int) -> Int[Tensor, " m"]:
        """The next validation positions, at most the whole part."""
        count = min(count, len(self.split.val))
        drawn, self._drawn = self._drawn, self._drawn + count
        return self._positions("validation", self.split.val, drawn, count)

    def _positions(self, purpose: str, part: Tensor, start: int, count: int) -> Tensor:
        pieces: list[Tensor] = []
        while count > 0:
            lap, offset = divmod(start, len(part))
            pieces.append(self._lap(purpose, part, lap)[offset : offset + count])
            start, count = start + len(pieces[-1]), count - len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _lap(self, purpose: str, part: Tensor, lap: int) -> Tensor:
        if (purpose, lap) not in self._laps:
            self._laps.pop((purpose, lap - 2), None)
            order = torch.randperm(len(part), generator=rng.generator(self._seed, purpose, self._began, lap))
            self._laps[purpose, lap] = part[order.to(part.device)]
        return self._laps[purpose, lap]

    def state_dict(self) -> dict[str, Any]:  # Any: numbers and tensors
        """All that changes."""
        split = {f.name: getattr(self.split, f.name) for f in fields(self.split)}
        return {"split": split, "began": self._began, "drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Undo `state_dict`."""
        self.use(Split(**state["split"]), at=state["began"])
        self._drawn = state["drawn"]
