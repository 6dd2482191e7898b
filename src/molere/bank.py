"""Bank: what the last training pass saw of every example, so that nobody has to ask again."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

MEMORY = 3 * 2**30
"""Bytes that features may take as float32; where they take more they are kept as float16, then as 8-bit numbers."""


class Bank:
    """Features [N, d], predicted classes [N] and losses [N] by pool index, as of the last pass over each example.

    `seen` [N] is the number of classifier updates done when an example's row was written, -1 if never. Rows of
    training examples are at most one epoch old and of the augmented view. Logits are not kept: at a thousand classes
    they would take more than the features. Features are as they were given where all of them take at most `memory`
    bytes; else they are rounded to float16, and where that is too much to 8 bits, with one scale for each row: an error
    of at most 1/254 of the row's largest value.
    """

    def __init__(self, size: int, device: torch.device, memory: int = MEMORY) -> None:
        self._size, self._device, self._memory = size, device, memory
        self.seen: Int[Tensor, " N"] = torch.full((size,), -1, dtype=torch.int64, device=device)
        self.losses: Float[Tensor, " N"] = torch.zeros(size, device=device)
        self.predicted: Int[Tensor, " N"] = torch.zeros(size, dtype=torch.int64, device=device)
        self._features: Tensor | None = None
        self._scale: Tensor | None = None

    @property
    def features(self) -> Float[Tensor, "N d"]:
        """Penultimate features, zeros where never seen; a copy where they are not kept as they were given."""
        table = self._table
        return self.features_of(torch.arange(self._size, device=self._device)) if self._is_rounded(table) else table

    def features_of(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Penultimate features of some examples, zeros where never seen."""
        rows = self._table[index]
        if self._scale is not None:
            return rows.float() * self._scale[index, None]
        return rows.float() if self._is_rounded(rows) else rows

    @property
    def _table(self) -> Shaped[Tensor, "N d"]:
        assert self._features is not None, "nothing was written yet"
        return self._features

    @staticmethod
    def _is_rounded(table: Tensor) -> bool:
        return table.dtype in (torch.float16, torch.int8)

    def write(
        self,
        index: Int[Tensor, " n"],
        *,
        features: Float[Tensor, "n d"],
        logits: Float[Tensor, "n c"],
        losses: Float[Tensor, " n"],
        update: int,
    ) -> None:
        """Store the rows of one pass."""
        if self._features is None:
            self._make_table(features)
        self._write_features(index, features.detach())
        self.predicted.index_copy_(0, index, logits.detach().argmax(1))
        self.losses.index_copy_(0, index, losses.detach().float())
        self.seen.index_fill_(0, index, update)

    def _make_table(self, rows: Tensor) -> None:
        wide = rows.dtype if rows.dtype == torch.float64 else torch.float32
        count = self._size * rows.shape[1]
        fits = count * wide.itemsize <= self._memory
        kind = wide if fits else torch.float16 if count * 2 <= self._memory else torch.int8
        self._features = torch.zeros(self._size, rows.shape[1], dtype=kind, device=self._device)
        self._scale = torch.zeros(self._size, device=self._device) if kind == torch.int8 else None

    def _write_features(self, index: Tensor, rows: Tensor) -> None:
        table = self._table
        if self._scale is not None:
            scale = rows.abs().amax(1).float() / 127
            self._scale.index_copy_(0, index, scale)
            rows = (rows.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
        elif table.dtype == torch.float16:
            rows = rows.clamp(-65504, 65504)
        table.index_copy_(0, index, rows.to(table.dtype))

    def stale(self, since: int) -> Int[Tensor, " k"]:
        """Indices of the examples not seen since an update number, those never seen included."""
        old: Bool[Tensor, " N"] = self.seen < max(since, 0)
        return old.nonzero().flatten()

    @property
    def known(self) -> Int[Tensor, " k"]:
        """Indices of the examples that were seen at all, with a loss that is finite."""
        return ((self.seen >= 0) & self.losses.isfinite()).nonzero().flatten()

    def state_dict(self) -> dict[str, object]:
        """Everything in it."""
        kept = {"seen": self.seen, "losses": self.losses, "predicted": self.predicted}
        return {**kept, "features": self._features, "scale": self._scale}

    def load_state_dict(self, state: Mapping[str, Tensor | None]) -> None:
        """Undo `state_dict`; a state of earlier versions holds logits in place of predicted classes."""
        logits, found = state.get("logits"), {"predicted": self.predicted, **state}
        if logits is not None:
            found["predicted"] = logits.argmax(1)
        for name in ("seen", "losses", "predicted"):
            column = found[name]
            assert column is not None, f"a bank's state has `{name}`"
            setattr(self, name, column.to(self._device, copy=True))
        features, scale = found["features"], found.get("scale")
        self._features = None if features is None else features.to(self._device, copy=True)
        self._scale = None if scale is None else scale.to(self._device, copy=True)
