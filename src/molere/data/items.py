"""Items of any map-style torch `Dataset`: their labels, and batches of them fetched reproducibly."""

import random
from collections.abc import Generator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from molere.data.labels import Array, as_tensor
from molere.errors import DataError
from molere.rng import key, reseed, seeded

Items = Dataset[Any]  # Any: whatever the dataset yields


def fetch(dataset: Items, positions: Sequence[int], stream: int) -> Shaped[Tensor, "n ..."]:
    """The inputs at these positions, stacked; random transforms depend on (stream, position) alone."""
    with _global_generators():
        inputs = [_input(_item(dataset, at, stream)[0], _given(dataset, at)) for at in positions]
    for at, x in zip(positions, inputs, strict=True):
        if x.shape != inputs[0].shape:
            first = f"example {_given(dataset, positions[0])} {list(inputs[0].shape)}"
            shapes = f"x of example {_given(dataset, at)} is {list(x.shape)}, of {first}"
            raise DataError(f"{shapes}; give the dataset a transform to one shape, e.g. a Resize")
    return torch.stack(inputs)


def labels_of(dataset: Items) -> Array:
    """All labels of a dataset: its `targets`, unless it transforms them or has none, else item by item."""
    if isinstance(dataset, Subset):
        whole = as_tensor(labels_of(dataset.dataset), "labels")
        return whole[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[1]
    listed = getattr(dataset, "targets", None)
    if listed is not None and getattr(dataset, "target_transform", None) is None:
        return cast(Array, listed)
    with _global_generators():
        return [_label(_item(dataset, at, 0)[1]) for at in range(len(cast(Sized, dataset)))]


@contextmanager
def _global_generators() -> Generator[None]:
    """The global generators of torch, numpy and Python may be set inside and come back as they were."""
    state, legacy = random.getstate(), np.random.get_state()
    try:
        with seeded(None):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(legacy)


def _item(dataset: Items, at: int, stream: int) -> tuple[Any, Any]:
    own = key(stream, "item", at)
    reseed(own)
    random.seed(own)
    np.random.seed(own % 2**32)
    try:
        item = cast(Sequence[Any], dataset[at])  # Any: the dataset's own types
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a dataset may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(
            f"example {_given(dataset, at)} of the dataset cannot be read ({reason}); mend or remove it"
        ) from error
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(
            f"example {_given(dataset, at)} of the dataset is a {type(item).__name__}; expected a pair (x, y)"
        )
    return item[0], item[1]


def _given(dataset: Items, at: int) -> int:
    """The position in the dataset that was given, of which this one may be a subset."""
    while isinstance(dataset, Subset):
        at, dataset = int(dataset.indices[at]), dataset.dataset
    return at


def _label(y: Any) -> object:
    return cast(Tensor, y).item() if hasattr(y, "item") else y


def _input(x: Any, at: int) -> Shaped[Tensor, "..."]:
    """One input as a tensor; 8-bit images as floats in 0..1, channels first."""
    is_image = hasattr(x, "getbands")  # PIL, without importing it
    tensor = as_tensor(np.asarray(x) if is_image else x, f"x of example {at}")
    if is_image:
        tensor = tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)
    if tensor.dtype == torch.uint8:
        return tensor.to(torch.float32).div_(255)
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor.to(torch.int64)
