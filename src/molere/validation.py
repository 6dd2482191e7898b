"""Validation data of somebody else's loop: tensors, a dataset, or batches that come from a loader."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from molere.adapters import Inputs, packed
from molere.batches import Batches
from molere.borrowed import StreamBatch
from molere.data.items import fetch, labels_of
from molere.data.pool import Batch
from molere.errors import DataError
from molere.split import Split

Labelled = tuple[Inputs, Tensor]
Source = Labelled | Dataset[Any] | Iterable[Labelled]  # Any: items (x, y) of whatever kind


class Drawn:
    """Batches of tensors or of a dataset, in an order drawn anew for each pass."""

    def __init__(self, x: Tensor | Dataset[Any], y: Tensor, seed: int) -> None:
        if len(y) == 0:
            raise DataError("the validation data are empty; give at least one example")
        self._x, self._y = x, y
        self._batches = Batches(len(y), seed, torch.device("cpu"))
        self._batches.use(Split.of(torch.arange(len(y)), len(y), keep=True), at=0)

    def __call__(self, size: int) -> Batch:
        """The next batch, of at most this size."""
        at = self._batches.val(size)
        if isinstance(self._x, Tensor):
            return StreamBatch(self._x[at.to(self._x.device)], self._y[at.to(self._y.device)])
        return StreamBatch(fetch(self._x, cast(list[int], at.tolist()), 0).to(self._y.device), self._y[at])

    def state_dict(self) -> dict[str, Any]:  # Any: numbers and tensors
        """How far it has come."""
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Undo `state_dict`."""
        self._batches.load_state_dict(state)


class Cycled:
    """Batches of an iterable, which is begun anew when it ends; where it stood is not saved."""

    def __init__(self, batches: Iterable[Labelled]) -> None:
        self._batches, self._now = batches, iter(())

    def __call__(self, size: int) -> Batch:
        """The next batch, whatever its size."""
        for _ in range(2):
            for x, y in self._now:
                return StreamBatch(packed(x), y)
            self._now: Iterator[Labelled] = iter(self._batches)
        raise DataError("the validation data give no batch; give an iterable that can be gone through again")

    def state_dict(self) -> dict[str, Any]:  # Any: as above
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Nothing was saved."""


def source_of(val: Any, seed: int) -> Drawn | Cycled:  # Any: a Source, told apart here
    """Validation data of any of the three kinds."""
    if isinstance(val, tuple):
        x, y = cast(Labelled, val)
        return Drawn(packed(x), y, seed)
    if isinstance(val, Dataset) and hasattr(cast(object, val), "__len__"):
        dataset = cast(Dataset[Any], val)  # Any: as above
        return Drawn(dataset, torch.as_tensor(labels_of(dataset)), seed)
    if isinstance(val, Iterable):
        return Cycled(cast(Iterable[Labelled], val))
    kind = type(cast(object, val)).__name__
    raise DataError(f"val is a {kind}; give tensors (x, y), a Dataset, or an iterable of batches (x, y)")


class Only:
    """One batch, given at the call."""

    def __init__(self, val: Labelled) -> None:
        self._batch = StreamBatch(packed(val[0]), val[1])

    def __call__(self, size: int) -> Batch:
        """That batch."""
        return self._batch
