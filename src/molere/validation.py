"""Batches of somebody else's loop, looked at before use, and its validation data: tensors, a dataset, or a loader."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from molere import rng
from molere.adapters import Inputs, packed
from molere.batches import Batches
from molere.borrowed import StreamBatch
from molere.data.items import fetch, labels_of
from molere.data.labels import as_tensor
from molere.data.pool import Batch
from molere.errors import DataError
from molere.split import Split

Labelled = tuple[Inputs, Tensor]
Source = Labelled | Dataset[Any] | Iterable[Labelled]  # Any: items (x, y) of whatever kind


def labelled(x: Inputs | npt.NDArray[Any], y: Tensor) -> StreamBatch:  # Any: numbers of any type
    """Inputs and labels as one batch; DataError unless they are tensors of one length, and labels class indices."""
    x = as_tensor(x, "x") if isinstance(x, np.ndarray) else packed(x)
    y = y if isinstance(cast(object, y), Tensor) else as_tensor(y, "y")
    if y.ndim != 1 or y.is_floating_point() or y.dtype == torch.bool:
        given = f"y is {y.dtype} of shape {list(y.shape)}"
        raise DataError(f"{given}, expected class indices [n]; weigh before labels are mixed")
    if len(x) != len(y):
        raise DataError(f"x has {len(x)} examples and y has {len(y)} labels; give one label for each example")
    return StreamBatch(x, y.long())


def check_classes(y: Tensor, classes: int) -> None:
    """DataError for a label that is no class of the module."""
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= classes):
        at = int(((y < 0) | (y >= classes)).int().argmax())
        given = f"example {at} of the batch has label {int(y[at])}, and the module has outputs 0 to {classes - 1}"
        raise DataError(f"{given}; mend the label, or leave the example out")


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
            return StreamBatch(self._x[at.to(self._x.device)], self._y[at.to(self._y.device)], places=at)
        x = fetch(self._x, cast(list[int], at.tolist()), 0).to(self._y.device)
        return StreamBatch(x, self._y[at], places=at)

    def state_dict(self) -> dict[str, Any]:  # Any: numbers and tensors
        """How far it has come."""
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Undo `state_dict`."""
        self._batches.load_state_dict(state)


class Cycled:
    """Batches of an iterable, which is begun anew when it ends.

    Its state says how far the pass is and what the global generator was when it began, so that a loader goes on with
    the same batches: those of the pass so far are drawn again, and left.
    """

    def __init__(self, batches: Iterable[Labelled]) -> None:
        self._batches, self._now = batches, iter(())
        self._taken, self._began = 0, torch.empty(0, dtype=torch.uint8)

    def __call__(self, size: int) -> Batch:
        """The next batch, whatever its size."""
        for _ in range(2):
            for x, y in self._now:
                self._taken += 1
                return labelled(x, y)
            self._begin(torch.get_rng_state())
        raise DataError("the validation data give no batch; give an iterable that can be gone through again")

    def _begin(self, generator: Tensor) -> None:
        self._taken, self._began = 0, generator
        self._now: Iterator[Labelled] = iter(self._batches)

    def state_dict(self) -> dict[str, Any]:  # Any: numbers and tensors
        """How far the pass is, and how it began."""
        return {"taken": self._taken, "began": self._began}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Undo `state_dict`."""
        if not state or not len(state["began"]):
            return
        with rng.seeded(None):
            torch.set_rng_state(state["began"].cpu())
            self._begin(state["began"].cpu())
            self._taken = sum(1 for _ in itertools.islice(self._now, int(state["taken"])))


def source_of(val: Any, seed: int) -> Drawn | Cycled:  # Any: a Source, told apart here
    """Validation data of any of the three kinds."""
    if isinstance(val, tuple):
        batch = labelled(*cast(Labelled, val))
        return Drawn(batch.x, batch.y, seed)
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
        self._batch = labelled(*val)

    def __call__(self, size: int) -> Batch:
        """That batch."""
        return self._batch


@dataclass(frozen=True)
class Checked:
    """Batches of a source, whose labels are classes of the module; DataError for one that is not."""

    source: Drawn | Cycled | Only
    classes: int

    def __call__(self, size: int) -> Batch:
        """The next batch."""
        batch = self.source(size)
        check_classes(batch.y, self.classes)
        return batch
