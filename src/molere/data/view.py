"""A part of a pool, addressed as a pool of its own: what a scout is trained on."""

import hashlib

import torch
from jaxtyping import Int
from torch import Tensor

from molere.data.pool import Batch, Pool


class PoolView:
    """Examples `index` of another pool; position i here is position index[i] there."""

    def __init__(self, pool: Pool, index: Int[Tensor, " k"]) -> None:
        self._pool, self._index = pool, index
        self.y = pool.y[index]
        self.group = None if pool.group is None else pool.group[index]
        self.clean_y = None if pool.clean_y is None else pool.clean_y[index]
        self.ids = None if pool.ids is None else pool.ids[index.cpu().numpy()]
        self.num_classes = pool.num_classes
        weight: Tensor | None = getattr(pool, "weight", None)  # a pool of the user's own may know of none
        self.weight = None if weight is None else weight[index]
        flips: Tensor | None = getattr(pool, "flip_probability", None)
        self.flip_probability = None if flips is None else flips[index]
        held: Tensor | None = getattr(pool, "validation", None)
        self.validation = None if held is None else torch.isin(index, held.to(index.device)).nonzero().flatten()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def pool(self) -> Pool:
        """The other pool."""
        return self._pool

    @property
    def index(self) -> Int[Tensor, " k"]:
        """Positions there."""
        return self._index

    @property
    def augments(self) -> bool:
        """As the other pool."""
        return self._pool.augments

    def batch(self, index: Int[Tensor, " n"], *, augment: torch.Generator | None = None) -> Batch:
        """The batch of these positions, with positions of the view as its index."""
        there = self._pool.batch(self._index[index.to(self._index.device)], augment=augment)
        return Batch(there.x, there.y, index.to(there.y.device), there.group)

    def fingerprint(self) -> str:
        """Hash of the pool's fingerprint and the positions."""
        return hashlib.sha256(self._pool.fingerprint().encode() + self._index.cpu().numpy().tobytes()).hexdigest()

    def to(self, device: str | torch.device) -> "PoolView":
        """The same view of the pool on a device."""
        return PoolView(self._pool.to(device), self._index.to(device))
