"""The part of a run that looks at its numbers before anything learns from them, and says whose fault it is."""

import logging
import math
from collections.abc import Generator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molere.data.pool import Batch
from molere.errors import NumericsError
from molere.guard import REMEDY, broken, broken_among, culprit, infinite, named
from molere.learner import Learner
from molere.networks import is_collapsed
from molere.rundata import Lent, RunData

logger = logging.getLogger(__name__)


class RunGuard(RunData):
    """The networks of a run, and what their losses, weights and scores must be: finite.

    Attributes:
        left_out: what was said of examples that a ranking leaves out.
    """

    remedy = REMEDY
    """What to do about numbers that grew too large."""

    def __init__(self, lent: Lent) -> None:
        super().__init__(lent)
        self.classifier, self.head = lent.classifier, lent.head
        self.learners: dict[str, Learner] = {"classifier": lent.classifier}
        self.left_out: list[str] = []
        self._unranked = set[int]()
        self._passed: dict[str, Batch] = {}
        """The batches of this step, by what they are for."""

    @property
    def watched(self) -> bool:
        """Whether each batch is looked at; on a GPU, which would have to wait for it, only where a policy asks."""
        return self.device.type != "cuda" or self.recipe.on_nonfinite != "stop"

    # ---- batches

    def look_at(self, batch: Batch) -> None:
        """NumericsError naming examples whose data are not finite, before other examples are mixed with them."""
        if self.watched and (said := self._bad_data(batch, "")):
            raise NumericsError(said)

    def sound(self, batch: Batch) -> Batch:
        """The batch; under `skip` without the examples whose data are not finite, else NumericsError naming them."""
        if not self.watched or not bool((bad := broken(batch.x)).any()):
            return batch
        if self.recipe.on_nonfinite != "skip" or bool(bad.all()):
            raise NumericsError(self._bad_data(batch, ""))
        self._leave_out(batch.index[bad.to(batch.index.device)])
        good = ~bad.to(batch.y.device)
        group = None if batch.group is None else batch.group[good]
        return Batch(batch.x[~bad], batch.y[good], batch.index[good], group)

    def demand(
        self,
        losses: Float[Tensor, " n"],
        batch: Batch,
        *,
        features: Float[Tensor, "n d"] | None = None,
        validates: bool = False,
    ) -> None:
        """NumericsError, with the culprit, for losses or features that are not finite, where batches are looked at."""
        if not self.watched:
            return
        total = losses.detach().sum() if features is None else losses.detach().sum() + 0 * features.sum()
        if not math.isfinite(float(total)):
            odd = ~torch.isfinite(losses.detach())
            odd = odd if features is None else odd | ~torch.isfinite(features).all(1)
            raise NumericsError(self._blame(odd, batch, "validation" if validates else ""))

    def explained(self, error: NumericsError) -> NumericsError:
        """The error; or, where a batch of this step holds data that are not finite, the error that names them."""
        found = (self._bad_data(batch, role) for role, batch in self._passed.items())
        return next((NumericsError(said) for said in found if said), error)

    def ids_of(self, batch: Batch, which: Bool[Tensor, " n"]) -> str:
        """Some examples of a batch, by their ids."""
        return named(self.pool, batch.index[which.to(batch.index.device)])

    def _bad_data(self, batch: Batch, role: str) -> str:
        bad = broken(batch.x)
        when = f"{role} at update {self.updates}" if role else f"update {self.updates}"
        said = f"the data of {self.ids_of(batch, bad)} are not finite ({when})" if bool(bad.any()) else ""
        return said and f"{said}; mend or remove them"

    def _blame(self, odd: Tensor, batch: Batch, role: str) -> str:
        """One sentence on why losses of a batch are not finite: its data, a network's parameters, or its outputs."""
        if said := self._bad_data(batch, role):
            return said
        for learner in self.learners.values():
            if (name := infinite(learner)) is not None:
                return f"{name} of the {learner.name} is not finite at update {self.updates}; {self.remedy}"
        whose = self.ids_of(batch, odd) if bool(odd.any()) else "a batch"
        kind = f"{role} loss" if role else "loss"
        return f"the classifier's {kind} of {whose} is not finite at update {self.updates}; {self.remedy}"

    @contextmanager
    def _sparing(self) -> Generator[None]:
        """Under `skip`, the classifier's buffers (running statistics) as they were if the block raises."""
        skips = self.recipe.on_nonfinite == "skip"
        kept = [(b, b.clone()) for b in self.classifier.model.buffers()] if skips else []
        try:
            yield
        except NumericsError:
            for buffer, before in kept:
                buffer.copy_(before)
            raise

    # ---- scores

    def rankable(self, scores: Float[Tensor, " n"], index: Int[Tensor, " n"] | None = None) -> Int[Tensor, " k"]:
        """Places of the scores that can be ranked, of all examples or of those at `index`.

        A score that is NaN since the data are not finite: left out under `skip`, which is logged once, and else a
        NumericsError that names the example. Other NaN stay, for the ranking itself to refuse.
        """
        everyone = torch.arange(len(scores), device=scores.device)
        odd = scores.isnan().nonzero().flatten()
        if not len(odd):
            return everyone
        at = odd if index is None else index.to(odd.device)[odd]
        bad = broken_among(self.pool, at)
        if not bool(bad.any()):
            return everyone
        if self.recipe.on_nonfinite != "skip":
            whose = named(self.pool, at[bad])
            raise NumericsError(f"the data of {whose} are not finite and cannot be ranked; mend or remove them")
        self._leave_out(at[bad])
        fine = torch.ones_like(everyone, dtype=torch.bool).index_fill(0, odd[bad], False)
        return fine.nonzero().flatten()

    def filled(self, values: Float[Tensor, "N *d"]) -> Float[Tensor, "N *d"]:
        """What a network is to read of every example; zeros where it cannot, as `rankable` says."""
        fine = self.rankable(0 * values.flatten(1).sum(1) if values.ndim > 1 else 0 * values)
        return values if len(fine) == len(values) else torch.zeros_like(values).index_copy(0, fine, values[fine])

    def _leave_out(self, index: Int[Tensor, " k"]) -> None:
        new = sorted({int(i) for i in index} - self._unranked)
        if new:
            self._unranked.update(new)
            whose = named(self.pool, torch.tensor(new))
            self.left_out.append(f"the data of {whose} are not finite: left out where examples are ranked")
            logger.warning("%s", self.left_out[-1])

    # ---- weights

    def trusted(self, weights: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Learned weights, or equal ones where they are all 0 or one example holds most; `weights_fallback` counts."""
        if not is_collapsed(weights):
            return weights
        self.notes.logged["weights_fallback"] = self.notes.logged.get("weights_fallback", 0.0) + 1
        return torch.ones_like(weights.detach())

    def _total(self, w: Tensor) -> float:
        total = float(w.abs().sum())
        if not math.isfinite(total):
            others = {k: v for k, v in self.learners.items() if k != "classifier"}
            where = f"at update {self.updates}{culprit(others)}"
            remedy = "lower the weight network's lr" if others else self.remedy
            raise NumericsError(f"a weight is not finite {where}; {remedy}")
        return total
