"""Recovery: what a training does when numbers are not finite: end, skip the update, or go back."""

from collections.abc import Callable, Mapping
from typing import Any

from molere.errors import NumericsError
from molere.guard import REMEDY, culprit, infinite
from molere.learner import Learner
from molere.method import Run
from molere.storage import RunFolder
from molere.storage.checkpoint import Frozen

MOST_IN_A_ROW = 10
"""Updates that may be skipped one after the other; more end the run."""
MOST_ROLLBACKS = 3
"""Times a run goes back before it ends."""


class Recovery:
    """By `train.on_nonfinite`: the run ends, leaves the update out, or goes back an epoch with smaller steps.

    save, resume: give and take all that changes in the training.
    """

    def __init__(
        self,
        run: Run,
        folder: RunFolder | None,
        *,
        save: Callable[[], dict[str, Any]],  # Any: plain data and tensors
        resume: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.run, self.folder, self._save, self._resume = run, folder, save, resume
        self.rollbacks = self.skipped_in_a_row = 0
        self._good: Frozen | None = None

    def goes_back(self, error: NumericsError) -> bool:
        """By the recipe's policy: raise, or skip this update (False), or go back to the last good epoch (True)."""
        policy = self.run.recipe.on_nonfinite
        if policy == "stop":
            raise error
        if policy == "skip":
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row > MOST_IN_A_ROW:
                raise NumericsError(f"{error} ({MOST_IN_A_ROW} updates in a row were skipped)") from error
            self._tell("skipped", error)
            return False
        if self._good is None or self.rollbacks == MOST_ROLLBACKS:
            raise NumericsError(f"{error} (went back {self.rollbacks} times)") from error
        rollbacks = self.rollbacks + 1
        self._resume(self._good.state())
        self.rollbacks = rollbacks
        self.run.schedule.damp(0.5**rollbacks)
        self._tell("rolled back", error)
        return True

    def keep(self) -> None:
        """Remember this epoch's beginning, where the policy may go back to it."""
        if self.run.recipe.on_nonfinite == "rollback" and not culprit(self.run.learners):
            self._good = Frozen.of(self._save())

    def _tell(self, event: str, error: NumericsError) -> None:
        notes = self.run.notes.logged
        notes[f"{event.replace(' ', '_')}_updates"] = notes.get(f"{event.replace(' ', '_')}_updates", 0.0) + 1
        if self.folder is not None:
            self.folder.log(event, update=self.run.updates, error=str(error))

    def well(self) -> None:
        """An update went well."""
        self.skipped_in_a_row = 0


def demand_finite(classifier: Learner, update: int) -> None:
    """NumericsError for a classifier that holds NaN: not to be saved, the checkpoint before is the last good one."""
    if (name := infinite(classifier)) is not None:
        raise NumericsError(f"{name} of the classifier is not finite at update {update}; {REMEDY}")
