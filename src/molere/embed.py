"""Frozen features: what enters the head of a trained classifier, once for each example; heads train in seconds."""

import importlib
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast  # Any: settings of the data, arrays of any element type, torchvision and timm

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from molere import paths
from molere.data.own import NoTestError
from molere.data.pool import Data, Pool
from molere.data.readers import MARK
from molere.data.sources import load
from molere.errors import ConfigError, DataError, ResourceError
from molere.models import build, head_of
from molere.models.weights import is_file
from molere.storage import write_bytes

ENDINGS = (".npz", ".parquet")
SIDE, MEAN, STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen classifier, and the images it expects: side, mean and deviation of each channel."""

    model: nn.Module
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Features:
    """Features x [n, d], and of each row the label and group by name, the id, and the part of the data."""

    x: Float[Tensor, "n d"]
    y: Any
    ids: Any
    split: Any
    group: Any = None


def backbone(name: str, weights: str | None, side: int | None) -> Backbone:
    """A classifier by name with published weights, or those of a file (none: as it is initialised).

    The size and the scale of its images are those its weights were published with. Raises ConfigError, DataError,
    ResourceError as `build` does.
    """
    size, mean, std = _expects(name, weights)
    shape = (3, side or size, side or size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the head of .* starts new")  # it is not used
        try:
            model = build(name, num_classes=2, input_shape=shape, weights=weights)
        except ResourceError as error:
            raise ResourceError(str(error).replace("set train.weights=FILE", "pass --weights FILE")) from error
    return Backbone(model.eval().requires_grad_(False), shape[1], mean, std)


def _expects(name: str, weights: str | None) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Side, mean and deviation of the images that published weights were trained on."""
    if name.startswith("timm:"):
        return _expects_of_timm(name.removeprefix("timm:"))
    if weights is None or is_file(weights):
        return SIDE, MEAN, STD
    from torchvision import models

    try:
        choice = cast(Any, models).get_model_weights(name.removeprefix("torchvision:"))
    except ValueError:
        return SIDE, MEAN, STD
    known = {entry.name: entry for entry in choice}
    preset = known.get(weights.rpartition(".")[2], choice.DEFAULT).transforms()
    return int(preset.crop_size[0]), tuple(preset.mean), tuple(preset.std)


def _expects_of_timm(name: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    try:
        found = cast(Any, importlib.import_module("timm")).get_pretrained_cfg(name)
    except (ImportError, RuntimeError):  # `build` says so, better
        return SIDE, MEAN, STD
    return (SIDE, MEAN, STD) if found is None else (found.input_size[-1], tuple(found.mean), tuple(found.std))


def whole(name: str, **settings: Any) -> tuple[Data, bool]:
    """The data with nothing kept apart to select by; and whether its test is a part of the user's training data."""
    if not paths.is_own(name):
        return load(name, **settings, select=0.0), False
    try:
        return load(name, **settings, select=0.0, test_share=0.0), False
    except NoTestError:
        return load(name, **settings, select=0.0, test_share=0.2), True


def features(data: Data, frozen: Backbone, device: torch.device, batch_size: int, *, joined: bool) -> Features:
    """Features of all examples of the data, unaugmented; joined: the test part was taken from the training data."""
    model = frozen.model.to(device)
    pools: dict[str, Pool] = {
        "train": data.train,
        **({} if data.select is None else {"select": data.select}),
        **data.tests,
    }
    held = getattr(data.train, "validation", None)
    found = list[Features]()
    for part, pool in pools.items():
        split = np.full(len(pool), "train" if joined and part == "test" else part, dtype=object)
        if part == "train" and held is not None:
            split[held.cpu().numpy()] = "holdout"
        ids = np.arange(len(pool)) if pool.ids is None else pool.ids
        group = None if pool.group is None else _named(pool.group, data.group_names)
        y = _named(pool.y, data.class_names)
        found.append(Features(_of_pool(pool, frozen, model, device, batch_size), y, ids, split.astype(np.str_), group))
    return _together(found, sort=joined)


def _of_pool(pool: Pool, frozen: Backbone, model: nn.Module, device: torch.device, batch_size: int) -> Tensor:
    entered = list[Tensor]()
    _, head = head_of(model)
    hook = head.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].flatten(1).float().cpu()))
    try:
        with torch.no_grad():
            for at in range(0, len(pool), batch_size):
                index = torch.arange(at, min(at + batch_size, len(pool)))
                before = len(entered)
                model(_images(pool, index, frozen).to(device))
                if len(entered) != before + 1:
                    raise ConfigError("the head of this model is called more than once; choose another model")
    finally:
        hook.remove()
    return torch.cat(entered)


def _images(pool: Pool, index: Tensor, frozen: Backbone) -> Tensor:
    """A batch of images as the backbone expects them: three channels, its size, its mean and deviation."""
    x = pool.batch(index).x
    if x.ndim != 4 or not x.is_floating_point():
        raise DataError(
            f"x of an example is {list(x.shape[1:])}; features are taken of images [channels, height, width]"
        )
    scale, shift = getattr(pool, "_scale", None), getattr(pool, "_shift", None)  # of pools of 8-bit images
    if scale is not None and shift is not None:
        x = (x - shift) / (scale * 255)
    x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]
    if x.shape[-2:] != (frozen.side, frozen.side):
        x = F.interpolate(x, (frozen.side, frozen.side), mode="bilinear", antialias=True, align_corners=False)
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (frozen.mean, frozen.std))
    return (x - mean) / std


def _named(values: Tensor, names: tuple[str, ...]) -> Any:
    numbers = values.cpu().numpy()
    return np.asarray(names, dtype=np.str_)[numbers] if names else numbers


def _together(parts: list[Features], *, sort: bool) -> Features:
    """The parts one after the other; sorted: by id, where ids are positions, so that the order is the file's."""
    columns = {k: np.concatenate([getattr(p, k) for p in parts]) for k in ("y", "ids", "split")}
    groups = [p.group for p in parts if p.group is not None]
    group = np.concatenate(groups) if len(groups) == len(parts) else None
    x = torch.cat([p.x for p in parts])
    if not sort or columns["ids"].dtype.kind not in "iu":
        return Features(x, columns["y"], columns["ids"], columns["split"], group)
    order = np.argsort(columns["ids"], kind="stable")
    done = {k: v[order] for k, v in columns.items()}
    return Features(
        x[torch.from_numpy(order)], done["y"], done["ids"], done["split"], None if group is None else group[order]
    )


def write(found: Features, out: Path) -> None:
    """An .npz file (x, y, ids, split, group), or a Parquet file that says what its columns are."""
    check_place(out)
    own = _distinct(found)
    buffer = io.BytesIO()
    if out.suffix.lower() == ".npz":
        known: dict[str, Any] = {
            "x": found.x.numpy(),
            "y": found.y,
            "split": found.split,
            "group": found.group,
            "ids": own,
        }
        np.savez_compressed(buffer, **{k: v for k, v in known.items() if v is not None})
    else:
        _parquet(found, own, buffer)
    write_bytes(out, buffer.getvalue())


def check_place(out: Path) -> None:
    """ConfigError for endings that are none of the two."""
    if out.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--out {out}: features are written as {' or '.join(ENDINGS)}; give such a name")


def _distinct(found: Features) -> Any:
    """The ids, if each is there once within its part, as readers ask; else none."""
    several = (found.ids[found.split == part] for part in np.unique(found.split))
    return found.ids if all(len(np.unique(ids)) == len(ids) for ids in several) else None


def _parquet(found: Features, own: Any, buffer: io.BytesIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow, parquet = cast(Any, pa), cast(Any, pq)
    flat = arrow.array(found.x.numpy().reshape(-1))
    columns: Mapping[str, Any] = {
        "features": arrow.FixedSizeListArray.from_arrays(flat, found.x.shape[1]),
        **{k: arrow.array(v) for k, v in (("label", found.y), ("split", found.split)) if v is not None},
        **({} if own is None else {"id": arrow.array(own)}),
        **({} if found.group is None else {"group": arrow.array(found.group)}),
    }
    named = {role: role for role in ("label", "split", "id", "group") if role in columns}
    table = arrow.table(dict(columns)).replace_schema_metadata({MARK: json.dumps(named)})
    parquet.write_table(table, buffer, compression="zstd")
