"""Bank: what the last training pass saw of every example, so that nobody has to ask again."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Bank:
    """Penultimate features [N, d], logits [N, c] and losses [N] by pool index, as of the last pass over each example.

    `seen` [N] is the number of classifier updates done when an example's row was written, -1 if never. Rows of
    training examples are at most one epoch old and of the augmented view.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._size, self._device = size, device
        self.seen: Int[Tensor, " N"] = torch.full((size,), -1, dtype=torch.int64, device=device)
        self.losses: Float[Tensor, " N"] = torch.zeros(size, device=device)
        self._features: Tensor | None = None
        self._logits: Tensor | None = None

    @property
    def features(self) -> Float[Tensor, "N d"]:
        """Penultimate features; zeros where never seen."""
        assert self._features is not None, "nothing was written yet"
        return self._features

    @property
    def logits(self) -> Float[Tensor, "N c"]:
        """Logits; zeros where never seen."""
        assert self._logits is not None, "nothing was written yet"
        return self._logits

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
        if self._features is None or self._logits is None:
            self._features = self._table(features)
            self._logits = self._table(logits)
        self._features.index_copy_(0, index, features.detach().to(self._features.dtype))
        self._logits.index_copy_(0, index, logits.detach().to(self._logits.dtype))
        self.losses.index_copy_(0, index, losses.detach().float())
        self.seen.index_fill_(0, index, update)

    def _table(self, rows: Tensor) -> Tensor:
        wide = rows.dtype if rows.dtype == torch.float64 else torch.float32
        return torch.zeros(self._size, rows.shape[1], dtype=wide, device=self._device)

    def stale(self, since: int) -> Int[Tensor, " k"]:
        """Indices of the examples not seen since an update number, those never seen included."""
        old: Bool[Tensor, " N"] = self.seen < max(since, 0)
        return old.nonzero().flatten()

    @property
    def known(self) -> Int[Tensor, " k"]:
        """Indices of the examples that were seen at all."""
        return (self.seen >= 0).nonzero().flatten()

    def state_dict(self) -> dict[str, object]:
        """Everything in it."""
        return {"seen": self.seen, "losses": self.losses, "features": self._features, "logits": self._logits}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Undo `state_dict`."""
        seen, losses = state["seen"], state["losses"]
        assert seen is not None, "a bank's state has `seen`"
        assert losses is not None, "a bank's state has `losses`"
        self.seen, self.losses = seen.to(self._device, copy=True), losses.to(self._device, copy=True)
        self._features, self._logits = (
            None if t is None else t.to(self._device, copy=True) for t in (state["features"], state["logits"])
        )
