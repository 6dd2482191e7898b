"""Data of image files: rows of indexes become the pools of an experiment, in memory where they fit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from molere.data.bad import check_on_bad, good_rows
from molere.data.corrupt import stratified_split, stratified_subset
from molere.data.decoded import decoded
from molere.data.imagefiles import ImageFiles
from molere.data.imagepool import ImagePool
from molere.data.index import Index
from molere.data.pool import Data, Pool, TensorPool
from molere.data.readable import are_many, mistakes
from molere.data.scenarios import Part, Scenario, corrupted, in_both_groups, shifted
from molere.errors import DataError
from molere.rng import key

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEMORY = 2**30  # bytes of 8-bit images that are kept in memory


def data_of(
    name: str,
    train: Index,
    tests: Mapping[str, Index],
    *,
    select: float | Index = 0.1,
    size: int = 224,
    augment: str = "none",
    mean: Sequence[float] | None = IMAGENET_MEAN,
    std: Sequence[float] | None = IMAGENET_STD,
    on_bad: str = "error",
    memory: bool | Literal["auto"] = "auto",
    scenario: Scenario | None = None,
    scenario_name: str = "",
    limit: int | None = None,
    seed: int = 0,
    noise_seed: int | None = None,
    superclasses: Sequence[int] | None = None,
    headline: tuple[str, ...] | None = None,
    model: str = "resnet50",
    recipe: Mapping[str, object] | None = None,
) -> Data:
    """Data of image files as RGB of size x size; every index has the classes of `train`, in its order.

    `select`: rows to pick the best update by, or the share of `train` that is kept apart for that (with a limit
    at most 1,000). `limit`: a stratified subset of the training rows. `memory`: all images are decoded into one
    tensor; "auto": where they take at most 1 GiB and no random resized crops of whole images are asked for
    (augment="imagenet"). Else files are read batch by batch, and all that will be used are looked through beforehand,
    once for as long as they do not change (`molere.data.readable`); of very many (`MANY`, `MUCH`) a bad one is found
    when it is met, unless on_bad="skip" asks to look. Batches and label noise are the same either way.
    Raises DataError for bad images, named and counted, and for unlike classes; with on_bad="skip" these are left out.
    """
    _check(train, tests, select, limit)
    check_on_bad(on_bad)
    if memory is True and augment == "imagenet":
        raise DataError("augment='imagenet' crops whole images, which are not kept in memory; use memory='auto'")
    parts, trained = _parts(train, tests, select, limit, seed)
    in_memory = _fits(parts, size, augment) if memory == "auto" else memory
    parts = _readable(name, parts, size, on_bad, in_memory)
    setting = scenario or Scenario()
    own: dict[str, Any] = {"noise_seed": noise_seed, "superclasses": superclasses}  # Any: two unlike types
    done = corrupted(parts[:trained], setting, len(train.classes), seed, side=size, **own)
    pixels: dict[str, Any] = {"size": size, "mean": mean, "std": std, "augment": augment}  # Any: settings of pools
    owners = [train, select if isinstance(select, Index) else train]
    pools = [_pool(part, owner, pixels) for part, owner in zip(done, owners, strict=False)]
    found = dict[str, Pool]()
    for (where, owner), part in zip(tests.items(), parts[trained:], strict=True):
        found |= {at: _pool(each, owner, pixels) for at, each in _of_test(where, part, setting).items()}
    return Data(
        name=name,
        train=pools[0],
        select=pools[1] if trained == 2 else None,
        tests=found,
        group_names=setting.groups or train.group_names,
        headline=headline or _headline(setting, train),
        default_model=model,
        recipe=dict(recipe or {}),
        scenario=scenario_name,
    )


def _check(train: Index, tests: Mapping[str, Index], select: float | Index, limit: int | None) -> None:
    if limit is not None and limit < 2:
        raise DataError(f"limit is a number of training examples, 2 or more; got {limit}")
    if not isinstance(select, Index) and not 0 <= select <= 0.5:
        raise DataError(f"select is a share of the training data in [0, 0.5]; got {select}")
    others = {**tests, **({"select": select} if isinstance(select, Index) else {})}
    for name, index in others.items():
        if index.classes != train.classes:
            given = f"{name} has {len(index.classes)} classes, train has {len(train.classes)}"
            raise DataError(f"{given}, or in another order; read both with the classes of train")


def _parts(
    train: Index, tests: Mapping[str, Index], select: float | Index, limit: int | None, seed: int
) -> tuple[list[Part], int]:
    """Training, selection (where there is one) and test parts, and how many of them are no test."""
    whole, kept = _part(train), None
    if isinstance(select, Index):
        kept = _part(select)
    elif held := round(select * len(train)):
        rest, part = stratified_split(whole.y, held if limit is None else min(1000, held), key(seed, "select"))
        whole, kept = whole.take(rest), whole.take(part)
    if limit is not None and limit < len(whole.y):
        whole = whole.take(stratified_subset(whole.y, limit, key(seed, "limit")))
    first = [whole] if kept is None else [whole, kept]
    return [*first, *map(_part, tests.values())], len(first)


def _part(index: Index) -> Part:
    return Part(index.files, index.y, torch.arange(len(index)), index.group)


def _fits(parts: Sequence[Part], size: int, augment: str) -> bool:
    return augment != "imagenet" and sum(len(part.y) for part in parts) * 3 * size**2 <= MEMORY


def _readable(name: str, parts: Sequence[Part], size: int, on_bad: str, in_memory: bool) -> list[Part]:
    """The parts without rows that cannot be read; their images decoded where they are kept in memory."""
    many = not in_memory and are_many([cast(ImageFiles, part.x) for part in parts])
    if many and on_bad != "skip":
        return list(parts)
    found = [_tried(cast(ImageFiles, part.x), size, in_memory, many) for part in parts]
    starts = np.cumsum([0, *(len(part.y) for part in parts)])
    bad = {int(start) + row: said for start, (_, b) in zip(starts, found, strict=False) for row, said in b.items()}
    good = np.split(good_rows(int(starts[-1]), bad, name, on_bad), starts[1:-1])
    read = [replace(part, x=x) for part, (x, _) in zip(parts, found, strict=True)]
    return [p if g.all() else p.take(torch.from_numpy(np.flatnonzero(g))) for p, g in zip(read, good, strict=True)]


def _tried(files: ImageFiles, size: int, in_memory: bool, many: bool) -> tuple[Tensor | ImageFiles, dict[int, str]]:
    return decoded(files, size) if in_memory else (files, mistakes(files, by_folder=many))


def _of_test(name: str, part: Part, scenario: Scenario) -> dict[str, Part]:
    """A test set, with each image as either group has it, and the shifted one where the scenario has one."""
    other = shifted(part, scenario)
    more = {} if other is None else {"shifted" if name == "test" else f"{name}-shifted": other}
    return {name: in_both_groups(part, scenario), **more}


def _headline(scenario: Scenario, train: Index) -> tuple[str, ...]:
    if scenario.groups:
        return tuple(f"accuracy[{group}]" for group in reversed(scenario.groups))
    if train.group_names:
        return ("worst_group", "accuracy")
    return ("accuracy", "worst_class") if scenario.tail > 1 else ("accuracy",)


def _pool(part: Part, owner: Index, pixels: Mapping[str, Any]) -> Pool:  # Any: as above
    own = part.ids.numpy() if owner.ids is None else owner.ids[part.ids.numpy()]
    known = {"group": part.group, "clean_y": part.clean_y, "flip_probability": part.flip_probability}
    if isinstance(part.x, ImageFiles):
        return ImagePool(part.x, part.y, ids=own, num_classes=len(owner.classes), **known, **pixels)
    settings = {name: value for name, value in pixels.items() if name != "size"}
    return TensorPool(part.x, part.y, ids=own, num_classes=len(owner.classes), **known, **settings)
