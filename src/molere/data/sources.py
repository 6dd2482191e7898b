"""Data by name, from a folder or embedded, and data of one's own, as the pools of one experiment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from molere.corruption import Scenario, canonical, scenario_of, scenarios
from molere.data.bypath import load_path
from molere.data.classnames import NAMES
from molere.data.corrections import corrected
from molere.data.corrupt import stratified_split, stratified_subset
from molere.data.decided import digest
from molere.data.embedded import digits
from molere.data.files import read
from molere.data.given import check_request, from_arrays, from_datasets
from molere.data.named.about import available
from molere.data.named.catalog import IMAGE_SETS, image_data, variant_of
from molere.data.named.cifars import HUMAN, check_right, cifar10_1, human_labels
from molere.data.pool import Data, TensorPool
from molere.data.scenarios import Part, corrupted, in_both_groups, shifted
from molere.errors import DataError
from molere.fields import refuse, unknown_key
from molere.names import pick
from molere.paths import OWN_ONLY, is_own, mistakes
from molere.rng import key
from molere.superclasses import SUPERCLASSES

__all__ = ["SOURCES", "Source", "available", "from_arrays", "from_datasets", "load"]

Parts = tuple[Part, Part | None, Part]  # train, select, test


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set by name: how it is split, and what suits it."""

    split: Callable[[str, str | Path | None, int | None, int, float], Parts]
    classes: int
    model: str
    recipe: Mapping[str, object]
    pixels: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: settings of TensorPool
    images: str = ""
    """The data set whose images these are; none: its own."""
    beside: Callable[[str | Path | None], Mapping[str, Part]] | None = None
    """Further tests, by name."""


def load(
    name: str,
    *,
    root: str | Path | None = None,
    scenario: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    select: float = 0.1,
    noise_seed: int | None = None,
    image_size: int | None = None,
    on_bad: str | None = None,
    labels: str | Path | None = None,
    weights: str | Path | None = None,
    drop: str | Path | None = None,
    corrections: str | None = None,
    **own: Any,  # settings of one's own data
) -> Data:
    """A named data set under a scenario, or one's own by path, as pools.

    The seed decides split, subset, rotations and label noise.

    `scenario`: NAME or NAME[key=value,...] (`molere.corruption`). `noise_seed` decides label noise instead of the
    seed; an image then has the same label whatever the seed and its split.
    `limit`: a stratified subset of the training images, counted before a long tail thins them. `select`: the
    share of the official training images kept apart to pick the best update (with a limit at most 1,000
    images; for digits its 197 spare ones; 0: none). Pools carry positions in the source as ids, true labels
    and flip probabilities where noise was added, groups where images were rotated. `labels`, `weights`, `drop`: files
    of corrections, see `molere.data.corrections`; `corrections`: what `digest` of them has to be. Raises ConfigError
    for unknown names, DataError for missing files.
    """
    files = {"labels": labels, "weights": weights, "drop": drop}
    if corrections is not None and digest(files) != corrections:
        raise DataError("labels, weights or drop have changed since this was begun; give them back, or begin anew")
    common: dict[str, Any] = {"scenario": scenario, "limit": limit, "seed": seed, "select": select}
    read: dict[str, Any] = {"noise_seed": noise_seed, "image_size": image_size, "on_bad": on_bad}
    if is_own(name):
        data = load_path(name, root=root, **common, **read, **own)
    else:
        refuse([unknown_key("data", key, (*OWN_ONLY, "root")) for key in own if key not in OWN_ONLY])
        refuse(mistakes({"name": name, **own}))
        data = _named(name, root, **common, **read)
    return corrected(data, **files) if any(files.values()) else data


def _named(
    name: str,
    root: str | Path | None,
    *,
    scenario: str | None,
    limit: int | None,
    seed: int,
    select: float,
    noise_seed: int | None,
    image_size: int | None,
    on_bad: str | None,
) -> Data:
    if name in IMAGE_SETS:
        return image_data(
            name, root, scenario, limit, seed, select, noise_seed=noise_seed, image_size=image_size, on_bad=on_bad
        )
    source = pick("data set", name, SOURCES)
    chosen = canonical(scenario) if scenario is not None else next(iter(scenarios(name)))
    setting = scenario_of(name, chosen)
    check_request(limit, select)
    train, selection, test = source.split(source.images or name, root, limit, seed, select)
    clean = [train] if selection is None else [train, selection]
    labelled = _with_human_labels(name, root, variant_of(chosen), clean) if name in HUMAN else clean
    above = SUPERCLASSES.get(source.images or name)
    parts = corrupted(labelled, setting, source.classes, seed, noise_seed=noise_seed, superclasses=above)
    pools = [_pool(part, source) for part in parts]
    others: Mapping[str, Part] = {} if source.beside is None else source.beside(root)
    return Data(
        name=name,
        scenario=chosen,
        train=pools[0],
        select=pools[1] if len(pools) > 1 else None,
        tests={where: _pool(part, source) for where, part in {**_tests(test, setting), **others}.items()},
        group_names=setting.groups,
        headline=(*_headline(setting), *(f"{other}/accuracy" for other in others)),
        default_model=source.model,
        recipe=source.recipe,
        class_names=NAMES.get(source.images or name, ()),
    )


def _with_human_labels(name: str, root: str | Path | None, variant: str, parts: Sequence[Part]) -> list[Part]:
    """The parts with the labels that people gave, and the right ones as such."""
    human, right = (torch.from_numpy(labels) for labels in human_labels(name, root, variant))
    for part in parts:
        check_right(name, part.y.numpy(), right[part.ids].numpy())
    return [replace(part, y=human[part.ids], clean_y=part.y) for part in parts]


def _tests(test: Part, scenario: Scenario) -> dict[str, Part]:
    """The test set, with each image as either group has it, and the shifted one, if the scenario has one."""
    other = shifted(test, scenario)
    return {"test": in_both_groups(test, scenario), **({} if other is None else {"shifted": other})}


def _pool(part: Part, source: Source) -> TensorPool:
    known = {"group": part.group, "clean_y": part.clean_y, "flip_probability": part.flip_probability}
    x = cast(Tensor, part.x)
    return TensorPool(x, part.y, num_classes=source.classes, ids=part.ids.numpy(), **known, **source.pixels)


def _headline(scenario: Scenario) -> tuple[str, ...]:
    if scenario.groups:
        return tuple(f"accuracy[{group}]" for group in reversed(scenario.groups))
    return ("accuracy", "worst_class") if scenario.tail > 1 else ("accuracy",)


def _split_digits(name: str, root: str | Path | None, limit: int | None, seed: int, select: float) -> Parts:
    """scikit-learn's 1,797 digits: 400 test, 1,200 training and 197 selection images, new for each seed."""
    x, y = digits()
    rest, test = stratified_split(y, 400, key(seed, "digits-test"))
    spare, train = stratified_split(y[rest], 1200, key(seed, "digits-train"))
    whole = Part(x, y, torch.arange(len(y)))
    return (
        _limited(whole.take(rest[train]), limit, seed),
        whole.take(rest[spare]) if select else None,
        whole.take(test),
    )


def _split_folder(name: str, root: str | Path | None, limit: int | None, seed: int, select: float) -> Parts:
    """The official training part, less a stratified selection part, then limited; the official test part."""
    train, test = (Part(torch.from_numpy(x), torch.from_numpy(y), torch.arange(len(y))) for x, y in read(name, root))
    held = round(select * len(train.y))
    held = held if limit is None else min(1000, held)
    rest, kept = stratified_split(train.y, held, key(seed, "select"))
    return _limited(train.take(rest), limit, seed), train.take(kept) if held else None, test


def _cifar10_1(root: str | Path | None) -> dict[str, Part]:
    x, y = cifar10_1(root)
    return {"cifar10.1": Part(torch.from_numpy(x), torch.from_numpy(y), torch.arange(len(y)))}


def _limited(part: Part, limit: int | None, seed: int) -> Part:
    if limit is None or limit >= len(part.y):
        return part
    return part.take(stratified_subset(part.y, limit, key(seed, "limit")))


_CIFAR = {"epochs": 30, "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4, "channels_last": True}
_CROP_FLIP = {"augment": "crop-flip", "crop_padding": 4}
_CIFAR10_PIXELS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616), **_CROP_FLIP}
_CIFAR100_PIXELS = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762), **_CROP_FLIP}

SOURCES: Mapping[str, Source] = {
    "digits": Source(
        split=_split_digits,
        classes=10,
        model="mlp",
        recipe={"epochs": 30, "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4},
    ),
    "fashion-mnist": Source(
        split=_split_folder,
        classes=10,
        model="cnn",
        recipe={"epochs": 10, "batch_size": 64, "lr": 0.05, "weight_decay": 5e-4, "channels_last": True},
        pixels={"mean": (0.2860,), "std": (0.3530,), "augment": "flip"},
    ),
    "cifar10": Source(
        split=_split_folder,
        classes=10,
        model="resnet20",
        recipe=_CIFAR,
        pixels=_CIFAR10_PIXELS,
    ),
    "cifar10n": Source(
        split=_split_folder,
        classes=10,
        model="resnet20",
        recipe=_CIFAR,
        pixels=_CIFAR10_PIXELS,
        images="cifar10",
    ),
    "cifar10.1": Source(
        split=_split_folder,
        classes=10,
        model="resnet20",
        recipe=_CIFAR,
        pixels=_CIFAR10_PIXELS,
        images="cifar10",
        beside=_cifar10_1,
    ),
    "cifar100": Source(
        split=_split_folder,
        classes=100,
        model="resnet20",
        recipe=_CIFAR,
        pixels=_CIFAR100_PIXELS,
    ),
    "cifar100n": Source(
        split=_split_folder,
        classes=100,
        model="resnet20",
        recipe=_CIFAR,
        pixels=_CIFAR100_PIXELS,
        images="cifar100",
    ),
}
