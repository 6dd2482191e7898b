"""SparsePool: a pool of a sparse matrix, made dense a batch at a time; for words and other wide tables."""

import hashlib
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from jaxtyping import Int
from torch import Tensor

from molere.data.labels import Array, columns, labelled
from molere.data.pool import Batch, Device
from molere.errors import DataError


class SparsePool:
    """x [N, d] of scipy.sparse, kept on the host as float32 rows; batches are dense, on the device of the labels."""

    def __init__(
        self,
        x: Any,  # Any: scipy's matrices and arrays are untyped
        y: Array,
        *,
        group: Array | None = None,
        clean_y: Array | None = None,
        num_classes: int | None = None,
        ids: Array | None = None,
    ) -> None:
        self.x: Any = cast(Any, scipy.sparse).csr_matrix(x, dtype=np.float32)
        length = int(x.shape[0])
        if not np.isfinite(self.x.data).all():
            raise DataError("sparse x holds NaN or infinity; fill or remove them")
        self.y, self.num_classes = labelled(y, num_classes, length)
        self.group, self.clean_y, self.ids = columns(group, clean_y, ids, self.num_classes, length)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def augments(self) -> bool:
        """Never."""
        return False

    def batch(self, index: Int[Tensor, " n"], *, augment: torch.Generator | None = None) -> Batch:
        """Dense rows."""
        at = index.to(self.y.device)
        rows: npt.NDArray[np.float32] = self.x[at.numpy(force=True)].toarray()
        group = None if self.group is None else self.group[at]
        return Batch(torch.from_numpy(rows).to(self.y.device), self.y[at], at, group)

    def fingerprint(self) -> str:
        """Hash of the matrix, the labels and the groups."""
        digest = hashlib.sha256(repr((self.x.shape, self.num_classes)).encode())
        group = [] if self.group is None else [self.group.numpy(force=True)]
        arrays: list[Any] = [self.x.data, self.x.indices, self.x.indptr, self.y.numpy(force=True), *group]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def to(self, device: Device) -> "SparsePool":
        """The same rows with batches on a device."""
        if torch.device(device) == self.y.device:
            return self
        host = (None if t is None else t.cpu() for t in (self.y, self.group, self.clean_y))
        y, group, clean_y = host
        assert y is not None, "labels are there"
        moved = SparsePool(self.x, y, group=group, clean_y=clean_y, num_classes=self.num_classes, ids=self.ids)
        moved.y = moved.y.to(device)
        moved.group = None if moved.group is None else moved.group.to(device)
        moved.clean_y = None if moved.clean_y is None else moved.clean_y.to(device)
        return moved
