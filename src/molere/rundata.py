"""The part of a run that says which examples come, and how far the run is: pool, splits, batches, randomness."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molere import rng
from molere.batches import Batches
from molere.data.pool import Batch, Pool
from molere.errors import ConfigError
from molere.learner import Learner
from molere.notes import Notes
from molere.recipe import Recipe
from molere.split import Split
from molere.steps import Cost
from molere.suffix import Suffix


@dataclass(frozen=True, eq=False)
class Lent:
    """What a run is made of; each field is an attribute of `Run`."""

    pool: Pool
    recipe: Recipe
    seed: int
    classifier: Learner
    head: nn.Module | None
    device: torch.device
    budget: int
    per_epoch: int
    batch_size: int
    suffix: Suffix | None = None
    """The last blocks of the classifier, where a meta-gradient asks those alone."""


class RunData:
    """Pool, splits and batches, the draws of a seed, and how much of the budget is spent."""

    def __init__(self, lent: Lent) -> None:
        self.pool, self.recipe, self.seed, self.device = lent.pool, lent.recipe, lent.seed, lent.device
        self.budget, self.per_epoch, self.batch_size = lent.budget, lent.per_epoch, lent.batch_size
        self.epoch: int = 0
        self.updates: int = 0
        self.cost = Cost()
        self.notes = Notes(len(lent.pool), lent.device, _flipped(lent.pool))
        self._batches = Batches(len(lent.pool), lent.seed, lent.device)
        self._augments = lent.recipe.augment and lent.pool.augments

    # ---- randomness and progress

    def rng(self, purpose: str) -> torch.Generator:
        """A generator for one purpose at this update, the same however the run came here."""
        return rng.generator(self.seed, purpose, self.updates)

    def due(self, every: int) -> bool:
        """Whether this update is one of those that come once in `every`, the first of a run included."""
        return self.updates % every == 0

    def passed(self, share: float) -> bool:
        """Whether this share of the budget has been spent, in whole epochs."""
        return self.epoch >= self.epochs_of(share)

    def epochs_of(self, share: float) -> int:
        """This share of the budget in whole epochs, a half counted as one; ConfigError if it is all of them."""
        epochs = self.budget // self.per_epoch
        whole = math.floor(share * epochs + 0.5)
        if whole >= epochs:
            raise ConfigError(f"warmup={share} leaves none of {epochs} epochs; use a smaller one, or more train.epochs")
        return whole

    def ends(self, stretch: int) -> bool:
        """Whether this update is the last of one of those stretches, and not of an epoch, which ends anyway."""
        after = self.updates + 1
        return after % stretch == 0 and after % self.per_epoch != 0

    # ---- batches

    @property
    def split(self) -> Split:
        """The split in force."""
        return self._batches.split

    def resplit(self, split: Split) -> None:
        """Change the split within an epoch, from the next update on."""
        self.use(split, at=self.updates + 1)

    def use(self, split: Split, *, at: int) -> None:
        """Train and validate on this split from update `at` on; both streams of batches begin anew.

        They go on where they are if this is the split in force (`run.split` itself).
        """
        self._batches.use(split, at=at)
        if len(split.val):
            self.notes.validated(self.split.val)

    def train_batch(self) -> Batch:
        """The training batch of this update: without repetition until the training part is used up."""
        augment = self.rng("augment") if self._augments else None
        return self.pool.batch(self._batches.train(self.updates, self.batch_size), augment=augment)

    def val_batch(self) -> Batch:
        """The next validation batch, cycling through the validation part."""
        augment = self.rng("augment-validation") if self._augments else None
        return self.pool.batch(self._batches.val(self.recipe.val_batch_size or self.batch_size), augment=augment)

    def examples(self, index: Int[Tensor, " k"], purpose: str) -> Batch:
        """Some examples as they look in training: augmented by this update's draws for a purpose."""
        return self.pool.batch(index, augment=self.rng(purpose) if self._augments else None)

    def candidates(self, size: int) -> Batch:
        """`size` training examples at once, to choose an update's batch from; they replace `train_batch` in a run."""
        augment = self.rng("augment") if self._augments else None
        return self.pool.batch(self._batches.train(self.updates, size), augment=augment)

    # ---- notes

    def note(self, **columns: Float[Tensor, " N"]) -> None:
        """Per-example values that belong into samples.parquet."""
        self.notes.columns.update({k: v.detach() for k, v in columns.items()})

    def log(self, **metrics: float) -> None:
        """Numbers that belong into this epoch's row of metrics."""
        self.notes.logged.update(metrics)


def _flipped(pool: Pool) -> Tensor | None:
    """Which labels are known to be wrong."""
    return None if pool.clean_y is None else pool.clean_y.to(pool.y.device) != pool.y
