"""The state of a lent run in a checkpoint: all that changes, without the owner's module and optimiser."""

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from molere.borrowed import Borrowed
from molere.errors import ConfigError
from molere.method import restore, state_of


def saved(run: Borrowed, state: object) -> dict[str, Any]:  # Any: nested plain data and tensors
    """How the run was made, what it holds, and the method's state."""
    with _without_classifier(run):
        held = run.state_dict()
    made = {"classes": run.pool.num_classes, "batch_size": run.batch_size, "packed": run.unpacks}
    method = {"state": state_of(state), "micro": run.micro, "began": run.began}
    return copy.deepcopy({"made": made, "run": held, "method": method})


def check_saved(given: Mapping[str, Any], label: str) -> None:  # Any: as above
    """ConfigError unless `saved` made this, for the method of this name."""
    if not {"made", "run", "method", "validation"} <= set(given):
        raise ConfigError("this is no state of a Reweighter; pass what its state_dict() gave")
    if (of := given.get("of", label)) != label:
        raise ConfigError(f"the state is of {of!r}, this Reweighter is of {label!r}; make it as the saved one was")


def put_back(run: Borrowed, state: object, given: Mapping[str, Any]) -> None:  # Any: as above
    """Undo `saved`, on a run that was made so and its method's state."""
    given = copy.deepcopy(dict(given))
    with _without_classifier(run):
        run.load_state_dict(given["run"])
    restore(state, given["method"]["state"])
    run.micro, run.began = int(given["method"]["micro"]), int(given["method"]["began"])


@contextmanager
def _without_classifier(run: Borrowed) -> Generator[None]:
    classifier = run.learners.pop("classifier")
    try:
        yield
    finally:
        run.learners = {"classifier": classifier, **run.learners}
