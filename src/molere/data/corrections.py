"""Corrections laid over data: labels, weights and dropped examples that a person has decided on.

Ids are those of `Result.ids`: the user's own, or positions in what was given. Labels and dropping concern the training
data, and the selection data where these have ids; weights concern the training data; test data are never touched. Ids
that are not among them (those of other seeds' test images, or outside a subset) are counted in a warning; if none is
among them, that is an error. An example that the weights do not name, or that has none (it never trained), counts 1.
Weights are relative to their mean.
"""

import copy
import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from molere.data.decided import Given, read_ids, read_labels, read_weights
from molere.data.imagepool import ImagePool
from molere.data.labels import checked_weights
from molere.data.overlaid import OverlaidPool
from molere.data.pool import Data, DatasetPool, Pool, TensorPool
from molere.data.view import PoolView
from molere.errors import DataError

logger = logging.getLogger(__name__)


def corrected(data: Data, *, labels: Given = None, weights: Given = None, drop: Given = None) -> Data:
    """The data with the corrections in these files; raises DataError naming file, id and value."""
    known = {*names_of(data.train), *(names_of(data.select) if _has_ids(data.select) else ())}
    if labels is not None:
        new = read_labels(Path(labels), data.train.num_classes, data.class_names)
        _check_known(labels, new, known)
        data = _over(data, lambda pool: _relabelled(pool, new))
    if weights is not None:
        given = read_weights(Path(weights))
        _check_known(weights, given, known)
        data = replace(data, train=_weighted(data.train, given))
    if drop is not None:
        gone = dict.fromkeys(read_ids(Path(drop)))
        _check_known(drop, gone, known)
        data = _over(data, lambda pool: _without(pool, gone, drop))
    return data


def names_of(pool: Pool) -> list[str]:
    """The ids of a pool's examples as text: the user's own, or their positions."""
    return list(map(str, range(len(pool)) if pool.ids is None else pool.ids.tolist()))


def _has_ids(select: Pool | None) -> TypeGuard[Pool]:
    """Whether the selection data are named as the training data are; positions of their own would be other examples."""
    return select is not None and select.ids is not None


def _over(data: Data, change: Callable[[Pool], Pool]) -> Data:
    return replace(data, train=change(data.train), select=change(data.select) if _has_ids(data.select) else data.select)


def _check_known(file: str | Path, ids: Collection[str], known: Collection[str]) -> None:
    """DataError if no id is among the examples, a warning if some are not."""
    strangers = [name for name in ids if name not in known]
    if len(strangers) == len(ids):
        given = f"{file} names {strangers[0]} and no other" if len(ids) == 1 else f"{file} names {len(ids)} ids"
        raise DataError(f"{given}, none of them of a training example; use the ids of `molere samples RUN`")
    if strangers:
        some = ", ".join(strangers[:3])
        logger.warning("%d of %d ids in %s are of no training example (%s)", len(strangers), len(ids), file, some)


def _relabelled(pool: Pool, labels: dict[str, int]) -> Pool:
    y = pool.y.clone()
    for place, name in enumerate(names_of(pool)):
        if name in labels:
            y[place] = labels[name]
    return _changed(pool, y, None)


def _weighted(pool: Pool, weights: dict[str, float]) -> Pool:
    values = torch.tensor([weights.get(name, float("nan")) for name in names_of(pool)]).nan_to_num(nan=1.0)
    return _changed(pool, pool.y, checked_weights(values, len(pool)))


def _changed(pool: Pool, y: Tensor, weight: Tensor | None) -> Pool:
    """The same inputs with other labels, and other weights unless None."""
    known: Tensor | None = getattr(pool, "weight", None)  # a pool of the user's own may know of none
    weight = known if weight is None else weight.to(y.device)
    if not isinstance(pool, TensorPool | DatasetPool | ImagePool):
        return OverlaidPool(pool, y, weight)
    changed = copy.copy(pool)
    changed.y, changed._fingerprint = y, None  # pyright: ignore[reportPrivateUsage]  # a kept hash of the old content
    changed.weight = weight
    return changed


def _without(pool: Pool, gone: Collection[str], file: str | Path) -> Pool:
    stays = np.array([name not in gone for name in names_of(pool)])
    if not stays.any():
        raise DataError(f"{file} drops all {len(pool)} examples; keep some")
    index = torch.from_numpy(np.flatnonzero(stays)).to(pool.y.device)
    if pool.ids is None:
        pool = copy.copy(pool)
        pool.ids = np.arange(len(pool))
    return pool.subset(index) if isinstance(pool, TensorPool) else PoolView(pool, index)
