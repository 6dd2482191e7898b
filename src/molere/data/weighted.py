"""WeightedPool: a pool whose examples come with weights of their own (scikit-learn's `sample_weight`).

An example's loss is its cross-entropy times its weight, wherever the loss is used: in training, in meta-gradients and
in what methods look at. Weights that a method finds multiply it again.
"""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

from molere.data.pool import Batch, Device, Pool
from molere.errors import DataError


class WeightedPool:
    """Another pool with `weight` [N], divided by its mean; DataError unless finite, not negative and not all zero."""

    def __init__(self, pool: Pool, weight: Float[Tensor, " N"]) -> None:
        if len(weight) != len(pool):
            raise DataError(f"{len(weight)} weights for {len(pool)} examples; pass one weight per example")
        if not bool((weight.isfinite() & (weight >= 0)).all()) or not bool((weight > 0).any()):
            raise DataError("weights of examples must be finite and not negative, and some above 0; mend or omit them")
        self._pool = pool
        self.weight = (weight / weight.mean()).to(pool.y.device, torch.float32)
        self.y, self.group, self.clean_y, self.ids = pool.y, pool.group, pool.clean_y, pool.ids
        self.num_classes = pool.num_classes

    def __len__(self) -> int:
        return len(self._pool)

    @property
    def augments(self) -> bool:
        """As the other pool."""
        return self._pool.augments

    def batch(self, index: Int[Tensor, " n"], *, augment: torch.Generator | None = None) -> Batch:
        """The other pool's batch."""
        return self._pool.batch(index, augment=augment)

    def fingerprint(self) -> str:
        """Hash of the pool's fingerprint and the weights."""
        weights = self.weight.numpy(force=True).tobytes()
        return hashlib.sha256(self._pool.fingerprint().encode() + weights).hexdigest()

    def to(self, device: Device) -> "WeightedPool":
        """The same on a device."""
        return WeightedPool(self._pool.to(device), self.weight.to(device))
