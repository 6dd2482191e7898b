"""Pools: labelled examples addressed by position, which is their id for ever; a split is two index tensors.

`TensorPool` holds all examples in one tensor on the device: uint8 images are scaled, normalised and augmented
there, a batch at a time; float arrays are used as they are. `DatasetPool` reads any map-style torch `Dataset`
item by item. `Data` names the pools of one experiment: what trains, what selects, what tests.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from molere.data.augment import augmented, check_augmentation, normalisation
from molere.data.items import fetch, labels_of
from molere.data.labels import (
    Array,
    checked_flips,
    checked_inputs,
    checked_weights,
    columns,
    count_classes,
    labelled,
)
from molere.errors import DataError

Device = torch.device | str


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples ready for the model: inputs, labels, positions in the pool, evaluation groups where known."""

    x: Shaped[Tensor, "n ..."]
    y: Int[Tensor, " n"]
    index: Int[Tensor, " n"]
    group: Int[Tensor, " n"] | None = None

    def __len__(self) -> int:
        return len(self.y)


@runtime_checkable
class Pool(Protocol):
    """Labelled examples by position: labels, groups and true labels as whole tensors, inputs in batches."""

    y: Int[Tensor, " pool"]
    group: Int[Tensor, " pool"] | None
    clean_y: Int[Tensor, " pool"] | None
    num_classes: int
    ids: npt.NDArray[np.generic] | None

    def __len__(self) -> int: ...

    @property
    def augments(self) -> bool:
        """Whether a generator given to `batch` changes anything."""
        ...

    def batch(self, index: Int[Tensor, " n"], *, augment: torch.Generator | None = None) -> Batch:
        """The examples at these positions; with a generator also augmented, by draws from it alone."""
        ...

    def fingerprint(self) -> str:
        """Hash of the content: equal for equal pools in every process, different where a model could tell."""
        ...

    def to(self, device: Device) -> "Pool":
        """The same pool with its tensors on a device."""
        ...


class TensorPool:
    """A pool in memory: x [N, ...], y [N], tensors or numpy arrays; shared with the caller, never written to.

    uint8 x [N, C, H, W] (or [N, H, W]) are images: batches are float32, (x / 255 - mean) / std per channel.
    Other numbers are used as they are: floats as float32, integers (token ids) as int64. `augment` names
    what a generator given to `batch` does. `ids` is the user's own id column, `flip_probability` [N] the one with which
    known noise was to change a label; `weight` is what each example counts in training, relative to the mean and
    whatever the method. Raises DataError, naming position and value, for labels that are no class index, unequal
    lengths and inputs that are not finite.
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        *,
        group: Array | None = None,
        clean_y: Array | None = None,
        num_classes: int | None = None,
        ids: Array | None = None,
        flip_probability: Float[Tensor, " n"] | None = None,
        weight: Array | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: str = "none",
        crop_padding: int = 4,
    ) -> None:
        self.x = checked_inputs(x)
        self.y, self.num_classes = labelled(y, num_classes, len(self.x))
        self.group, self.clean_y, self.ids = columns(group, clean_y, ids, self.num_classes, len(self.x))
        self.flip_probability = checked_flips(flip_probability, len(self.x))
        self.weight = checked_weights(weight, len(self.x))
        self.augment, self.crop_padding = augment, crop_padding
        self.mean, self.std = _numbers(mean), _numbers(std)
        self._scale, self._shift = normalisation(self.x, self.mean, self.std)
        self._fingerprint: str | None = None
        check_augmentation(self.x, augment, crop_padding)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def augments(self) -> bool:
        return self.augment != "none"

    def batch(self, index: Int[Tensor, " n"], *, augment: torch.Generator | None = None) -> Batch:
        index = index.to(self.x.device, non_blocking=True)
        x = self.x.index_select(0, index)
        if augment is not None and self.augments:
            x = augmented(x, self.augment, self.crop_padding, augment)
        if self._scale is not None and self._shift is not None:
            x = x.to(torch.float32).mul_(self._scale).add_(self._shift)
        group = None if self.group is None else self.group.index_select(0, index)
        return Batch(x, self.y.index_select(0, index), index, group)

    def subset(self, index: Int[Tensor, " n"]) -> "TensorPool":
        """A new pool of copies of these examples, at positions 0..n-1; the number of classes stays."""
        at = index.to(self.x.device)
        ids = None if self.ids is None else self.ids[at.numpy(force=True)]
        flips = None if self.flip_probability is None else self.flip_probability[at.cpu()]
        return self._with(self.x[at], self.y[at], _at(self.group, at), _at(self.clean_y, at), ids, flips, at)

    def to(self, device: Device) -> "TensorPool":
        if torch.device(device) == self.x.device:
            return self
        group = None if self.group is None else self.group.to(device)
        clean_y = None if self.clean_y is None else self.clean_y.to(device)
        moved = self._with(self.x.to(device), self.y.to(device), group, clean_y, self.ids, self.flip_probability)
        moved._fingerprint = self._fingerprint
        return moved

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            settings = (self.num_classes, self.mean, self.std, self.augment, self.crop_padding)
            given = () if self.weight is None else (self.weight,)
            self._fingerprint = content_hash((self.x, self.y, self.group, *given), repr(settings))
        return self._fingerprint

    def _with(
        self,
        x: Shaped[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        group: Int[Tensor, " n"] | None,
        clean_y: Int[Tensor, " n"] | None,
        ids: npt.NDArray[np.generic] | None,
        flips: Float[Tensor, " n"] | None,
        at: Int[Tensor, " n"] | None = None,
    ) -> "TensorPool":
        names = ("num_classes", "mean", "std", "augment", "crop_padding")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}  # Any: five unlike types
        weight = None if self.weight is None else (self.weight if at is None else self.weight[at]).to(x.device)
        known: dict[str, Any] = {
            "group": group,
            "clean_y": clean_y,
            "ids": ids,
            "flip_probability": flips,
            "weight": weight,
        }
        return TensorPool(x, y, **known, **settings)


class DatasetPool:
    """A pool over a map-style torch `Dataset` of (x, y), read item by item with its own transforms.

    Every item is fetched with torch's, numpy's and Python's global generators set for it and restored after,
    so random transforms are reproducible: without a generator an item looks the same each time, with one it
    changes from batch to batch. x may be a tensor, an array or a PIL image (8-bit images become floats).
    `y` gives labels that differ from the dataset's own, or that are known without reading all items.
    """

    def __init__(
        self,
        dataset: Dataset[Any],  # Any: whatever the dataset yields
        *,
        y: Array | None = None,
        group: Array | None = None,
        clean_y: Array | None = None,
        num_classes: int | None = None,
        ids: Array | None = None,
        weight: Array | None = None,
    ) -> None:
        self.dataset = dataset
        length = len(cast(Sized, dataset))
        self.y, self.num_classes = labelled(labels_of(dataset) if y is None else y, num_classes, length)
        self.group, self.clean_y, self.ids = columns(group, clean_y, ids, self.num_classes, length)
        self.weight = checked_weights(weight, length)
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def augments(self) -> bool:
        """Always: what the dataset's own transforms draw cannot be known."""
        return True

    def batch(self, index: Int[Tensor, " n"], *, augment: torch.Generator | None = None) -> Batch:
        at = index.to(self.y.device)
        stream = 0 if augment is None else int(torch.randint(1, 2**62, (), generator=augment))
        x = fetch(self.dataset, cast(list[int], at.tolist()), stream).to(self.y.device, non_blocking=True)
        return Batch(x, self.y[at], at, _at(self.group, at))

    def to(self, device: Device) -> "DatasetPool":
        """The same pool with batches delivered on a device; the dataset stays where it is."""
        moved = copy.copy(self)
        moved.y = self.y.to(device)
        moved.group = None if self.group is None else self.group.to(device)
        moved.clean_y = None if self.clean_y is None else self.clean_y.to(device)
        moved.weight = None if self.weight is None else self.weight.to(device)
        return moved

    def fingerprint(self) -> str:
        """Hash of all labels and groups and of up to 64 items spread evenly, unaugmented."""
        if self._fingerprint is None:
            some = torch.linspace(0, len(self) - 1, min(len(self), 64)).long()
            x = fetch(self.dataset, cast(list[int], some.tolist()), 0)
            given = () if self.weight is None else (self.weight,)
            self._fingerprint = content_hash((x, self.y, self.group, *given), repr((self.num_classes, len(self))))
        return self._fingerprint


@dataclass(frozen=True)
class Data:
    """The pools of one experiment; `select` is like `train`, held out to pick the best update."""

    name: str
    train: Pool
    select: Pool | None
    tests: Mapping[str, Pool]  # the first one is the main test
    group_names: tuple[str, ...] = ()
    headline: tuple[str, ...] = ("accuracy",)  # the metrics that a table leads with
    default_model: str = "mlp"
    recipe: Mapping[str, object] = field(default_factory=dict[str, object])
    scenario: str = ""
    answers: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """By test: the classes among which its answers are looked for; all of them where it is not named."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, in order, where they are known."""
    texts: Mapping[Any, str] | None = None
    """What an example reads, by its id; for people to look at."""

    def __post_init__(self) -> None:
        count_classes(self.train.y, None)
        if not self.tests:
            raise DataError(f"{self.name}: no test data; pass at least one pool, e.g. tests={{'test': pool}}")
        classes = self.train.num_classes
        for part, pool in {"select": self.select, **self.tests}.items():
            if pool is not None and pool.num_classes != classes:
                given = f"{part} has {pool.num_classes} classes but train has {classes}"
                raise DataError(f"{self.name}: {given}; give every pool the same num_classes")


def content_hash(tensors: Sequence[Shaped[Tensor, "..."] | None], settings: str) -> str:
    """SHA-256 over kind, shape and bytes of each tensor and over the settings, as 64 hexadecimal digits."""
    digest = hashlib.sha256(settings.encode())
    for tensor in tensors:
        host = np.zeros(0) if tensor is None else tensor.numpy(force=True)
        digest.update(f"{host.dtype.str}{host.shape}".encode())
        digest.update(np.ascontiguousarray(host).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _at(column: Int[Tensor, " pool"] | None, index: Int[Tensor, " n"]) -> Int[Tensor, " n"] | None:
    return None if column is None else column[index]


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)
