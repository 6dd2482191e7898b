"""A pool of image files, read in batches when they are asked for: data that does not fit into memory."""

import copy
import hashlib
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from molere.data.augment import AUGMENTATIONS, augmented, normalisation
from molere.data.imagefiles import ImageFiles
from molere.data.labels import Array, columns, labelled
from molere.data.pool import Batch, Device, content_hash
from molere.errors import DataError

KINDS = (*AUGMENTATIONS, "imagenet")


class ImagePool:
    """Labelled image files, addressed by position; batches are float32, (x / 255 - mean) / std per channel.

    Without a generator an image is resized (shorter side to size * 256 / 224) and cut to its middle. `augment`
    names what a generator changes: "flip", "crop" (padded by `crop_padding`), "crop-flip" of that middle, or
    "imagenet": a random resized crop of the whole image and a mirror. All draws come from the generator.
    """

    def __init__(
        self,
        files: ImageFiles,
        y: Array,
        *,
        size: int = 224,
        group: Array | None = None,
        clean_y: Array | None = None,
        num_classes: int | None = None,
        ids: Array | None = None,
        flip_probability: Float[Tensor, " n"] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: str = "none",
        crop_padding: int = 4,
    ) -> None:
        if size < 1:
            raise DataError(f"size is a number of pixels, 1 or more; got {size}")
        self.files, self.size, self.augment, self.crop_padding = files, size, augment, crop_padding
        self.y, self.num_classes = labelled(y, num_classes, len(files))
        self.group, self.clean_y, self.ids = columns(group, clean_y, ids, self.num_classes, len(files))
        self.flip_probability = flip_probability
        self.weight: Tensor | None = None
        one = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        self._scale, self._shift = normalisation(one, mean, std)
        self._settings = repr((self.num_classes, size, mean, std, augment, crop_padding))
        self._fingerprint: str | None = None
        if augment not in KINDS:
            raise DataError(f"augment must be one of {', '.join(KINDS)}; got {augment!r}")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return 3, self.size, self.size

    @property
    def augments(self) -> bool:
        return self.augment != "none"

    def batch(self, index: Int[Tensor, " n"], *, augment: torch.Generator | None = None) -> Batch:
        at = index.to(self.y.device, non_blocking=True)
        whole = augment if self.augment == "imagenet" else None
        x = self.files.read(index.cpu(), self.size, whole).to(self.y.device, non_blocking=True)
        if augment is not None and self.augments and whole is None:
            x = augmented(x, self.augment, self.crop_padding, augment)
        assert self._scale is not None, "8-bit images have a scale"
        assert self._shift is not None, "8-bit images have a shift"
        x = x.to(torch.float32).mul_(self._scale).add_(self._shift)
        group = None if self.group is None else self.group.index_select(0, at)
        return Batch(x, self.y.index_select(0, at), at, group)

    def to(self, device: Device) -> "ImagePool":
        """The same pool with batches delivered on a device; the files stay where they are."""
        moved = copy.copy(self)
        for name in ("y", "group", "clean_y", "weight", "_scale", "_shift"):
            column = cast(Tensor | None, getattr(self, name))
            setattr(moved, name, None if column is None else column.to(device))
        return moved

    def fingerprint(self) -> str:
        """Hash of all names below the root, turns, labels and groups, and of the bytes of up to 64 files."""
        if self._fingerprint is None:
            names = hashlib.sha256("\n".join(self.files.paths.tolist()).encode()).hexdigest()
            some = np.linspace(0, len(self) - 1, min(len(self), 64)).astype(np.int64)
            raw = [hashlib.sha256(self.files.bytes(int(row))).hexdigest() for row in some]
            given = () if self.weight is None else (self.weight,)
            columns = (self.files.turned, self.files.patch, self.y, self.group, *given)
            self._fingerprint = content_hash(columns, repr((self._settings, names, raw)))
        return self._fingerprint
