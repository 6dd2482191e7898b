"""Recovery: what a training does when numbers are not finite: end, skip the update, or go back."""

from collections.abc import Callable, Mapping
from typing import Any, cast

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
        self.rollbacks = self.skipped_in_a_row = self._told = 0
        self._good: Frozen | None = None

    def goes_back(self, error: NumericsError, *, saving: bool = False) -> bool:
        """By the recipe's policy: raise, or skip this update (False), or go back to the last good epoch (True).

        saving: the error is of a training that cannot be saved as it stands; what is skipped is the save, and at the
        last update the error is raised.
        """
        policy = self.run.recipe.on_nonfinite
        if policy == "stop":
            raise error
        if policy == "skip" and saving:
            if self.run.updates == self.run.budget:
                raise error
            if self.folder is not None:
                self.folder.log("not saved", update=self.run.updates, error=str(error))
            return False
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

    def tell_left_out(self) -> None:
        """Log the examples that a ranking has left out since this was last asked."""
        new = self.run.left_out[self._told :]
        self._told += len(new)
        for said in new if self.folder is not None else []:
            cast(RunFolder, self.folder).log("left out", update=self.run.updates, error=said)

    def _tell(self, event: str, error: NumericsError) -> None:
        notes = self.run.notes.logged
        notes[f"{event.replace(' ', '_')}_updates"] = notes.get(f"{event.replace(' ', '_')}_updates", 0.0) + 1
        if self.folder is not None:
            self.folder.log(event, update=self.run.updates, error=str(error))

    def well(self) -> None:
        """An update went well."""
        self.skipped_in_a_row = 0


def unfit(learners: Mapping[str, Learner], update: int) -> NumericsError | None:
    """Why a training is not to be saved: a network of it holds NaN; the checkpoint before is the last good one."""
    found = ((learner.name, infinite(learner)) for learner in learners.values())
    name, what = next(((name, what) for name, what in found if what is not None), ("", ""))
    return NumericsError(f"{what} of the {name} is not finite at update {update}; {REMEDY}") if what else None
