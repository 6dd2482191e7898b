"""A pool with examples to validate on: two pools addressed as one, the second part known as such."""

import hashlib

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from molere.data.pool import Batch, Device, Pool
from molere.errors import DataError


class JoinedPool:
    """All examples of one pool, then all of another; `validation` are the positions of the second.

    The holdout `given` validates on them. Groups, true labels and ids are known where both pools know them; true
    labels of a pool that has none are its labels. Raises DataError for pools of unlike classes or inputs.
    """

    def __init__(self, train: Pool, validation: Pool) -> None:
        if train.num_classes != validation.num_classes:
            given = f"{train.num_classes} classes to train on, {validation.num_classes} to validate on"
            raise DataError(f"{given}; give both pools the same num_classes")
        self._parts = (train, validation)
        self._size = len(train)
        self.num_classes = train.num_classes
        self.y = torch.cat((train.y, validation.y))
        self.validation = torch.arange(len(train), len(self.y), device=self.y.device)
        self.group = _both(train.group, validation.group)
        known = train.clean_y is not None or validation.clean_y is not None
        clean = [pool.y if pool.clean_y is None else pool.clean_y for pool in self._parts]
        self.clean_y = torch.cat(clean) if known else None
        flips = getattr(train, "flip_probability", None)  # labels of the second part are as they were given
        added = torch.zeros(len(validation), dtype=torch.float64)
        self.flip_probability = None if flips is None else torch.cat((flips, added.to(flips)))
        both = None if train.ids is None or validation.ids is None else (train.ids, validation.ids)
        self.ids = None if both is None else np.concatenate(both)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def parts(self) -> tuple[Pool, Pool]:
        """The two pools: what trains, what is validated on."""
        return self._parts

    @property
    def augments(self) -> bool:
        """As the pool that trains."""
        return self._parts[0].augments

    def batch(self, index: Int[Tensor, " n"], *, augment: torch.Generator | None = None) -> Batch:
        """The examples at these positions, in this order, each read from its own pool."""
        at = index.to(self.y.device)
        there = at >= self._size
        if not bool(there.any()):
            return self._parts[0].batch(at, augment=augment)
        if bool(there.all()):
            batch = self._parts[1].batch(at - self._size, augment=augment)
            return Batch(batch.x, batch.y, at, batch.group)
        order = torch.cat(((~there).nonzero().flatten(), there.nonzero().flatten()))
        rows = (at[~there], at[there] - self._size)
        batches = [pool.batch(i, augment=augment) for pool, i in zip(self._parts, rows, strict=True)]
        x = torch.cat([batch.x for batch in batches])[order.argsort()]
        return Batch(x, self.y[at], at, None if self.group is None else self.group[at])

    def fingerprint(self) -> str:
        """Hash of both pools' fingerprints."""
        return hashlib.sha256("".join(pool.fingerprint() for pool in self._parts).encode()).hexdigest()

    def to(self, device: Device) -> "JoinedPool":
        """The same two pools on a device."""
        train, validation = self._parts
        return JoinedPool(train.to(device), validation.to(device))


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat((a, b))
