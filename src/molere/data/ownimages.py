"""The user's own image files, in class folders or named by a table, as the pools of one experiment."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from molere.data.build import data_of
from molere.data.index import Index, read_table, scan_folder
from molere.data.joined import JoinedPool
from molere.data.own import Asked, check_classes, gathered, headline, settings_for, test_part
from molere.data.pool import Data
from molere.data.readers import read_sheet, roles
from molere.data.rows import SAME
from molere.errors import DataError
from molere.paths import short

SMALL = 64  # images up to this side stay in memory, and a small network suits them


def load_images(a: Asked) -> Data:
    """Data of image files; other folders and tables have the classes of the first one's training part."""
    parts = _main(a)
    classes = parts["train"].classes
    check_classes(classes, str(a.path))
    others = {name: _index(path, a, classes, main=False) for name, path in a.others.items()}
    parts = _same_groups(gathered(parts, others, str(a.path)))
    train, select, held = parts.pop("train"), parts.pop("select", None), parts.pop("holdout", None)
    if split := test_part(train.y, a, list(parts)):
        train, parts = train.take(split[0]), {"test": train.take(split[1]), **parts}
    size = a.image_size or 224
    data = data_of(
        short(a.name),
        train,
        parts if held is None else {**parts, "holdout": held},
        select=a.select if select is None else select,
        size=size,
        augment=a.augment or ("crop-flip" if size <= SMALL else "imagenet"),
        on_bad=a.on_bad,
        scenario=a.scenario,
        scenario_name=a.scenario_name,
        limit=a.limit,
        seed=a.seed,
        noise_seed=a.noise_seed,
        headline=headline(a, train.group_names, [*parts]),
        model="resnet20" if size <= SMALL else "resnet18",
        recipe={**settings_for(len(train)), "lr": 0.05, "channels_last": True},
    )
    data = replace(data, class_names=classes)
    if held is None:
        return data
    tests = {name: pool for name, pool in data.tests.items() if name != "holdout"}
    return replace(data, train=JoinedPool(data.train, data.tests["holdout"]), tests=tests)


def _main(a: Asked) -> dict[str, Index]:
    """The parts of the first folder or table: folders train, val, test, ... of class folders, or its split."""
    if a.path.is_dir():
        if not (a.path / "train").is_dir():
            return {"train": scan_folder(a.path)}
        inner = sorted(f.name for f in a.path.iterdir() if f.is_dir() and not f.name.startswith("."))
        train = scan_folder(a.path / "train")
        return {SAME.get(n, n): train if n == "train" else scan_folder(a.path / n, train.classes) for n in inner}
    index = _index(a.path, a, None, main=True)
    if index.split is None:
        return {"train": index}
    named = np.asarray([SAME.get(s.lower(), s) if s.lower() != "train" else "train" for s in index.split])
    found = {str(n): index.take(torch.from_numpy(np.flatnonzero(named == n))) for n in np.unique(named)}
    if "train" not in found:
        raise DataError(f"{a.path}: no row is of the split `train`; the split has {', '.join(found)}")
    return found


def _index(path: Path, a: Asked, classes: tuple[str, ...] | None, *, main: bool) -> Index:
    """One folder or table; a table's columns are found by their roles."""
    if path.is_dir():
        return scan_folder(path, classes)
    given = a.roles
    table = read_sheet(path, a.header, given)
    if not main:
        given |= {role: None for role in ("id", "split") if given[role] not in table.column_names}
    found = roles(table, str(path), {"image": "image", **{k: v for k, v in given.items() if v is not None}})
    split = found.get("split") if main else None
    more = {"group": found.get("group"), "id": found.get("id"), "split": split}
    return read_table(
        path, image=found["image"], label=found["label"], **more, root=a.root, classes=classes, on_bad=a.on_bad
    )


def _same_groups(parts: Mapping[str, Index]) -> dict[str, Index]:
    """The parts with one list of groups, that of all their names together."""
    if all(index.group is None for index in parts.values()):
        return dict(parts)
    names = tuple(sorted({name for index in parts.values() for name in index.group_names}))
    return {part: _renamed(part, index, names) for part, index in parts.items()}


def _renamed(part: str, index: Index, names: tuple[str, ...]) -> Index:
    if index.group is None:
        raise DataError(f"the part '{part}' has no groups, but others have; give all of them a group, or none")
    place = torch.tensor([names.index(name) for name in index.group_names])
    return replace(index, group=place[index.group], group_names=names)
