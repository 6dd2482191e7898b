"""Data by name, from a folder or embedded, and data of one's own, as the pools of one experiment."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from molere.data.corrections import corrected
from molere.data.corrupt import stratified_split, stratified_subset
from molere.data.decided import digest
from molere.data.files import available, read
from molere.data.labels import Array, checked_labels
from molere.data.pool import Data, DatasetPool, TensorPool
from molere.data.scenarios import Part, Scenario, corrupted, in_both_groups
from molere.errors import DataError
from molere.names import pick
from molere.rng import key

__all__ = ["SOURCES", "Source", "available", "from_arrays", "from_datasets", "load"]

Parts = tuple[Part, Part | None, Part]  # train, select, test


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set by name: how it is split, its scenarios (the first is the default), and what suits it."""

    split: Callable[[str, str | Path | None, int | None, int, float], Parts]
    scenarios: Mapping[str, Scenario]
    classes: int
    model: str
    recipe: Mapping[str, object]
    pixels: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: settings of TensorPool


def load(
    name: str,
    *,
    root: str | Path | None = None,
    scenario: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    select: float = 0.1,
    labels: str | Path | None = None,
    weights: str | Path | None = None,
    drop: str | Path | None = None,
    corrections: str | None = None,
) -> Data:
    """A named data set under a scenario, as pools; the seed decides split, subset, rotations and label noise.

    `limit`: a stratified subset of the training images, counted before a long tail thins them. `select`: the
    share of the official training images kept apart to pick the best update (with a limit at most 1,000
    images; for digits its 197 spare ones; 0: none). Pools carry positions in the source as ids, true labels
    where noise was added, groups where images were rotated. `labels`, `weights`, `drop`: files of corrections, see
    `molere.data.corrections`; `corrections`: what `digest` of them has to be. Raises ConfigError for unknown names,
    DataError for missing files.
    """
    files = {"labels": labels, "weights": weights, "drop": drop}
    if corrections is not None and digest(files) != corrections:
        raise DataError("labels, weights or drop have changed since this was begun; give them back, or begin anew")
    source = pick("data set", name, SOURCES)
    chosen = next(iter(source.scenarios)) if scenario is None else scenario
    setting = pick(f"scenario of {name}", chosen, source.scenarios)
    _check_request(limit, select)
    train, selection, test = source.split(name, root, limit, seed, select)
    parts = corrupted([train] if selection is None else [train, selection], setting, source.classes, seed)
    pools = [_pool(part, source) for part in parts]
    data = Data(
        name=name,
        scenario=chosen,
        train=pools[0],
        select=pools[1] if len(pools) > 1 else None,
        tests={"test": _pool(in_both_groups(test, setting), source)},
        group_names=setting.groups,
        headline=_headline(setting),
        default_model=source.model,
        recipe=source.recipe,
    )
    return corrected(data, **files) if any(files.values()) else data


def _pool(part: Part, source: Source) -> TensorPool:
    known = {"group": part.group, "clean_y": part.clean_y, "ids": part.ids.numpy()}
    return TensorPool(part.x, part.y, num_classes=source.classes, **known, **source.pixels)


def _headline(scenario: Scenario) -> tuple[str, ...]:
    if scenario.groups:
        return tuple(f"accuracy[{group}]" for group in reversed(scenario.groups))
    return ("accuracy", "worst_class") if scenario.tail > 1 else ("accuracy",)


def _check_request(limit: int | None, select: float) -> None:
    if limit is not None and limit < 2:
        raise DataError(f"limit is a number of training examples, 2 or more; got {limit}")
    if not 0 <= select <= 0.5:
        raise DataError(f"select is a share of the training data in [0, 0.5]; got {select}")


def _split_digits(name: str, root: str | Path | None, limit: int | None, seed: int, select: float) -> Parts:
    """scikit-learn's 1,797 digits: 400 test, 1,200 training and 197 selection images, new for each seed."""
    x, y = _digits()
    rest, test = stratified_split(y, 400, key(seed, "digits-test"))
    spare, train = stratified_split(y[rest], 1200, key(seed, "digits-train"))
    whole = Part(x, y, torch.arange(len(y)))
    return (
        _limited(whole.take(rest[train]), limit, seed),
        whole.take(rest[spare]) if select else None,
        whole.take(test),
    )


def _digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] in 0..1 and labels, from scikit-learn's table (importing it takes seconds)."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("digits come with scikit-learn, which is not installed; type: pip install scikit-learn")
    table = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    values = np.loadtxt(table, delimiter=",", dtype=np.float32)
    x, y = torch.from_numpy(values[:, :64] / 16), torch.from_numpy(values[:, 64].astype(np.int64))
    return x.view(-1, 1, 8, 8), y


def _split_folder(name: str, root: str | Path | None, limit: int | None, seed: int, select: float) -> Parts:
    """The official training part, less a stratified selection part, then limited; the official test part."""
    train, test = (Part(torch.from_numpy(x), torch.from_numpy(y), torch.arange(len(y))) for x, y in read(name, root))
    held = round(select * len(train.y))
    held = held if limit is None else min(1000, held)
    rest, kept = stratified_split(train.y, held, key(seed, "select"))
    return _limited(train.take(rest), limit, seed), train.take(kept) if held else None, test


def _limited(part: Part, limit: int | None, seed: int) -> Part:
    if limit is None or limit >= len(part.y):
        return part
    return part.take(stratified_subset(part.y, limit, key(seed, "limit")))


_IMAGES = {
    "clean": Scenario(),
    "hidden-group": Scenario(rotated=0.03),
    "hidden-group-noise": Scenario(rotated=0.03, instance=0.15),
    "noise": Scenario(instance=0.3),
    "longtail": Scenario(tail=50.0),
    "spurious": Scenario(conflicting=0.05),
}
_CROP_FLIP = {"augment": "crop-flip", "crop_padding": 4}

SOURCES: Mapping[str, Source] = {
    "digits": Source(
        split=_split_digits,
        scenarios={
            "hidden-group": Scenario(rotated=0.04),
            "hidden-group-noise": Scenario(rotated=0.04, uniform=0.2),
            "noise": Scenario(instance=0.3),
            "longtail": Scenario(tail=50.0),
            "spurious": Scenario(conflicting=0.05),
            "clean": Scenario(),
        },
        classes=10,
        model="mlp",
        recipe={"epochs": 30, "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4},
    ),
    "fashion-mnist": Source(
        split=_split_folder,
        scenarios=_IMAGES,
        classes=10,
        model="cnn",
        recipe={"epochs": 10, "batch_size": 64, "lr": 0.05, "weight_decay": 5e-4, "channels_last": True},
        pixels={"mean": (0.2860,), "std": (0.3530,), "augment": "flip"},
    ),
    "cifar10": Source(
        split=_split_folder,
        scenarios=_IMAGES,
        classes=10,
        model="resnet20",
        recipe={"epochs": 30, "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4, "channels_last": True},
        pixels={"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616), **_CROP_FLIP},
    ),
    "cifar100": Source(
        split=_split_folder,
        scenarios=_IMAGES,
        classes=100,
        model="resnet20",
        recipe={"epochs": 30, "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4, "channels_last": True},
        pixels={"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762), **_CROP_FLIP},
    ),
}


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
        _check_request(None, select)
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
        _check_request(None, select)
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
