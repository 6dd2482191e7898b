"""A method under watch: what it does to a run, step by step, and whether it may."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from molere.data.pool import Batch
from molere.method import Method, Run
from molere.result import Result
from molere.split import Split
from molere.steps import Seen, Taken

AnyMethod = Method[Any]  # Any: of whatever state


def demand(holds: bool, sentence: str) -> None:
    """AssertionError with this sentence unless it holds; unlike a bare assert it also works under `python -O`."""
    if not holds:
        raise AssertionError(sentence)


def same(a: object, b: object) -> bool:
    """Equal to the last bit, at any depth of mappings and sequences."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        one, two = cast(Mapping[object, object], a), cast(Mapping[object, object], b)
        return list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        first, second = cast(Sequence[object], a), cast(Sequence[object], b)
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(a, Tensor | np.ndarray) and isinstance(b, Tensor | np.ndarray):
        x, y = _array(cast(object, a)), _array(cast(object, b))
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    return repr(cast(object, a)) == repr(b)


def _array(value: object) -> npt.NDArray[np.generic]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


class Stopped(Method[Any]):  # Any: of whatever state
    """A method whose run ends in an `Interruption` before the step of some update (-1: never)."""

    def __init__(self, method: AnyMethod, stop: int) -> None:
        self.method, self.stop = method, stop

    def init(self, run: Run) -> object:
        return self.method.init(run)

    def split(self, run: Run, state: object) -> Split | None:
        return self.method.split(run, state)

    def step(self, run: Run, state: object, batch: Batch) -> Taken:
        if run.updates == self.stop:
            raise Interruption
        return self.method.step(run, state, batch)


class Interruption(Exception):
    """Stands for whatever ends a process."""


class Watched(Method[Any]):  # Any: as above
    """A method that passes every call on and watches what it does to the run."""

    def __init__(self, name: str, method: AnyMethod) -> None:
        self.name, self.method = name, method

    def init(self, run: Run) -> object:
        self.watch = _Watch(self.name, run)
        state = self.method.init(run)
        fits = state is None or (dataclasses.is_dataclass(state) and not isinstance(state, type))
        demand(fits, f"{self.name}: init returned {_kind(state)}; return a dataclass, or None where nothing changes.")
        return state

    def split(self, run: Run, state: object) -> Split | None:
        split = self.method.split(run, state)
        fits = split is None or isinstance(cast(object, split), Split)
        demand(fits, f"{self.name}: split returned {_kind(split)}; return a Split, or None to end the run.")
        return split

    def step(self, run: Run, state: object, batch: Batch) -> Taken:
        self.watch.begin()
        taken = self.method.step(run, state, batch)
        self.watch.end()
        fits = isinstance(cast(object, taken), Taken)
        demand(fits, f"{self.name}: step returned {_kind(taken)}; return what run.update returned.")
        return taken

    def check(self, result: Result) -> None:
        """The budget was met and every weight that was used is in the samples."""
        met = result.updates == self.watch.run.budget or result.stopped == "the method stopped"
        demand(met, f"{self.name}: {result.updates} updates were done instead of {self.watch.run.budget}.")
        recorded = torch.as_tensor(result.samples["weight"]).nan_to_num(nan=-1.0)
        told = torch.equal(recorded, self.watch.weights.nan_to_num(nan=-1.0))
        demand(
            told, f"{self.name}: the samples hold other weights than were used; leave run.notes.weight to run.update."
        )


def _kind(value: object) -> str:
    return type(value).__name__


class _Watch:
    """Counts updates, and compares the classifier before and after everything that may change it."""

    def __init__(self, name: str, run: Run) -> None:
        self.name, self.run = name, run
        self.weights = torch.full((len(run.pool),), float("nan"))
        self.updates = self.steps = 0
        self.idle = self.stepping = False
        self.known: Mapping[str, Tensor] = {}
        for owner, calls in ((run, ("forward", "update", "use", "losses")), (run.classifier, ("step", "descend"))):
            for called in calls:
                setattr(owner, called, self.around(getattr(owner, called), called))

    @property
    def where(self) -> str:
        return f"{self.name}: the step at update {self.run.updates}"

    def begin(self) -> None:
        """A step begins: from here on the classifier changes by the calls below or not at all."""
        self.updates = self.steps = 0
        self.idle, self.stepping = False, True
        self.known = _copy(self.run.classifier.model)

    def end(self) -> None:
        one = self.updates == 1 and self.steps == (0 if self.idle else 1)
        made = f"called run.update {self.updates} times and updated the classifier {self.steps} times"
        demand(one, f"{self.where} {made}; call run.update exactly once, which makes one update.")
        self.unchanged()
        self.stepping = False

    def around(self, call: Callable[..., Any], called: str) -> Callable[..., Any]:  # Any: passed on as it is
        """The call, noted; what it does to the classifier is its right, what was done before it is not."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            if self.stepping:
                self.unchanged()
            if called == "use":
                self.before_use(args[0])
            out = call(*args, **kwargs)
            if called in ("step", "descend"):
                self.steps += 1
            if called == "update":
                self.after_update(*args, **kwargs)
            if self.stepping:
                self.known = _copy(self.run.classifier.model)
            return out

        return noted

    def unchanged(self) -> None:
        now = cast(Mapping[str, Tensor], self.run.classifier.model.state_dict())
        for name, tensor in self.known.items():
            demand(
                same(now[name], tensor),
                f"{self.where} changed {name} of the classifier besides its one update; look at the classifier through "
                "run.look, run.look_back, run.look_ahead or run.predict.",
            )

    def after_update(
        self, seen: Seen, weights: Tensor | None = None, *, remember: bool = False, along: Tensor | None = None
    ) -> None:
        """One update was asked for; all-zero weights make it one that changes nothing."""
        self.updates += 1
        w = torch.ones(len(seen)) if weights is None else weights.detach().cpu()
        legal = bool((w.isfinite() & (w >= 0)).all())
        demand(legal, f"{self.where} used a weight that is negative or not finite (least {float(w.min())}).")
        self.idle = along is None and float(w.sum()) <= 1e-12
        self.weights[seen.batch.index.cpu()] = w.to(self.weights.dtype)

    def before_use(self, split: Split) -> None:
        """The parts are disjoint by construction; they must also fit the pool."""
        size, last = len(self.run.pool), int(torch.cat((split.train, split.val)).max())
        demand(last < size, f"{self.name}: its split names example {last} of a pool of {size}.")


def _copy(model: nn.Module) -> dict[str, Tensor]:
    state = cast(Mapping[str, Tensor], model.state_dict())
    return {k: v.detach().clone() for k, v in state.items()}
