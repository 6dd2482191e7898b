"""Data that are handed over in Python: tensors, arrays, and torch's map-style datasets."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Subset

from molere.data.corrupt import stratified_split
from molere.data.labels import Array, checked_labels
from molere.data.pool import Data, DatasetPool, TensorPool
from molere.errors import DataError
from molere.rng import key


def from_arrays(
    x: Array,
    y: Array,
    x_test: Array,
    y_test: Array,
    *,
    select: float | tuple[Array, Array] = 0.1,
    group: Array | None = None,
    test_group: Array | None = None,
    group_names: Sequence[str] = (),
    clean_y: Array | None = None,
    ids: Array | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: str = "none",
    name: str = "arrays",
    model: str | None = None,
    recipe: Mapping[str, object] | None = None,
    class_names: Sequence[str] = (),
    texts: Sequence[str] | None = None,
    seed: int = 0,
) -> Data:
    """Data of tensors or numpy arrays: what `TensorPool` takes, for training and for the test.

    `select` is a pair (x, y) to pick the best update by, or the share of x, y that is kept apart for that.
    ids are the positions in x unless given. class_names, and texts (what each of x reads), are shown in reports.
    """
    more = [select[1]] if isinstance(select, tuple) else []
    classes = _classes(y, y_test, *more) if num_classes is None else num_classes
    pixels: dict[str, Any] = {"mean": mean, "std": std, "augment": augment}  # Any: settings of TensorPool
    pool = TensorPool(x, y, group=group, clean_y=clean_y, ids=ids, num_classes=classes, **pixels)
    pool.ids = np.arange(len(pool)) if pool.ids is None else pool.ids
    if texts is not None and len(texts) != len(pool):
        raise DataError(f"x has {len(pool)} examples but there are {len(texts)} texts; pass one for each")
    read = None if texts is None else dict(zip(cast(list[Any], pool.ids.tolist()), texts, strict=True))
    test = TensorPool(x_test, y_test, group=test_group, num_classes=classes, **pixels)
    if isinstance(select, tuple):
        train, selection = pool, TensorPool(*select, num_classes=classes, **pixels)
    else:
        check_request(None, select)
        rest, part = stratified_split(pool.y, round(select * len(pool)), key(seed, "select"))
        train, selection = (pool.subset(rest), pool.subset(part)) if len(part) else (pool, None)
    return Data(
        name=name,
        train=train,
        select=selection,
        tests={"test": test},
        group_names=tuple(group_names) or _numbered(test.group),
        headline=("accuracy",) if test.group is None else ("worst_group", "accuracy"),
        default_model=model or ("cnn" if len(pool.shape) == 3 else "mlp"),
        recipe=dict(recipe or {}),
        class_names=tuple(class_names),
        texts=read,
    )


def from_datasets(
    train: Dataset[Any],  # Any: whatever the dataset yields
    test: Dataset[Any],
    *,
    select: float | Dataset[Any] = 0.1,
    num_classes: int | None = None,
    name: str = "dataset",
    model: str = "cnn",
    recipe: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Data:
    """Data of map-style torch datasets of (x, y), read item by item with their own transforms.

    `select` is a dataset to pick the best update by, or the share of `train` that is kept apart for that.
    ids are positions in `train`.
    """
    pool, test_pool = DatasetPool(train, num_classes=num_classes), DatasetPool(test, num_classes=num_classes)
    classes = max(pool.num_classes, test_pool.num_classes)
    pool.num_classes = test_pool.num_classes = classes
    pool.ids = np.arange(len(pool))
    if isinstance(select, Dataset):
        selection = DatasetPool(select, num_classes=classes)
    else:
        check_request(None, select)
        rest, part = stratified_split(pool.y, round(select * len(pool)), key(seed, "select"))
        selection = _part(train, pool, part) if len(part) else None
        pool = _part(train, pool, rest) if len(part) else pool
    tests = {"test": test_pool}
    return Data(name, pool, selection, tests, default_model=model, recipe=dict(recipe or {}))


def _part(dataset: Dataset[Any], pool: DatasetPool, index: Tensor) -> DatasetPool:
    subset = Subset(dataset, cast(list[int], index.tolist()))
    return DatasetPool(subset, y=pool.y[index], num_classes=pool.num_classes, ids=index.numpy())


def _classes(*labels: Array) -> int:
    return max(int(checked_labels(y).max()) for y in labels if len(y)) + 1


def _numbered(group: Tensor | None) -> tuple[str, ...]:
    return () if group is None else tuple(f"group {g}" for g in range(int(group.max()) + 1))


def check_request(limit: int | None, select: float) -> None:
    """DataError unless the limit and the share to select by are within bounds."""
    if limit is not None and limit < 2:
        raise DataError(f"limit is a number of training examples, 2 or more; got {limit}")
    if not 0 <= select <= 0.5:
        raise DataError(f"select is a share of the training data in [0, 0.5]; got {select}")
