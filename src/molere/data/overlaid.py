"""OverlaidPool: a pool of any kind with other labels, or with weights of its own."""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molere.data.pool import Batch, Device, Pool


class OverlaidPool:
    """The examples of another pool, with labels `y` [N] and weights [N] or none in the place of its own."""

    def __init__(self, pool: Pool, y: Int[Tensor, " N"], weight: Float[Tensor, " N"] | None) -> None:
        self._pool, self.y, self.weight = pool, y, weight
        self.group, self.clean_y, self.ids, self.num_classes = pool.group, pool.clean_y, pool.ids, pool.num_classes
        self.flip_probability: Tensor | None = getattr(pool, "flip_probability", None)  # not every pool has these
        self.validation: Tensor | None = getattr(pool, "validation", None)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def augments(self) -> bool:
        """As the other pool."""
        return self._pool.augments

    def batch(self, index: Int[Tensor, " n"], *, augment: torch.Generator | None = None) -> Batch:
        """The other pool's batch, with these labels."""
        there = self._pool.batch(index, augment=augment)
        return Batch(there.x, self.y[there.index], there.index, there.group)

    def fingerprint(self) -> str:
        """Hash of the other pool's fingerprint, the labels and the weights."""
        given = [self.y] if self.weight is None else [self.y, self.weight]
        content = b"".join(tensor.numpy(force=True).tobytes() for tensor in given)
        return hashlib.sha256(self._pool.fingerprint().encode() + content).hexdigest()

    def to(self, device: Device) -> "OverlaidPool":
        """The same on a device."""
        weight = None if self.weight is None else self.weight.to(device)
        return OverlaidPool(self._pool.to(device), self.y.to(device), weight)
