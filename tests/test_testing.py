"""check_method passes what keeps the contract, and names in one sentence what breaks it."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from molere.data.pool import Batch
from molere.learner import Learner
from molere.method import Method, Run
from molere.split import Split
from molere.steps import Taken
from molere.testing import check_method, rare_region

NOTHING = torch.empty(0, dtype=torch.int64)


@dataclass
class Sum:
    """State: what was added up, and whatever a test hangs on it."""

    total: Tensor
    other: Any = None


@dataclass(frozen=True, kw_only=True)
class Good(Method[Any]):
    """Keeps the contract: weights from a running sum of losses, kept in the state."""

    def init(self, run: Run) -> Any:
        return Sum(torch.ones(len(run.pool)))

    def split(self, run: Run, state: Any) -> Split | None:
        return Split.of(NOTHING, len(run.pool))

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        seen = run.forward(batch)
        state.total[batch.index] += seen.losses.detach()
        return run.update(seen, state.total[batch.index])


def test_a_method_that_keeps_the_contract_passes() -> None:
    check_method(Good())


def test_what_a_method_draws_from_torchs_global_generator_is_reproducible() -> None:
    check_method(Draws(draw=torch.rand))


def test_names_are_checked_as_fit_understands_them() -> None:
    check_method("erm", model="linear")


def test_the_callers_data_and_model_are_used() -> None:
    seen: list[int] = []

    class Wide(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    check_method(Good(), data=rare_region(40), model=Wide(4, 2))
    assert max(seen) == 40


def breaks(method: Method[Any], sentence: str, *, model: Any = "mlp") -> None:
    with pytest.raises(AssertionError) as caught:
        check_method(method, model=model)
    said = str(caught.value)
    assert sentence in said, said
    assert said.startswith(type(method).__name__)
    assert "\n" not in said


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


class Soft(Method[Any]):
    """Settings that can be changed."""

    init, split, step = Good.init, Good.split, Good.step


@dataclass(frozen=True, kw_only=True)
class Twice(Good):
    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        run.update(run.forward(batch))
        return run.update(run.forward(batch))


@dataclass(frozen=True, kw_only=True)
class Never(Good):
    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        return Taken(run.forward(batch), None)


@dataclass(frozen=True, kw_only=True)
class ByHand(Good):
    """Leaves the library's update out."""

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        seen = run.forward(batch)
        run.classifier.step(seen.losses.mean())
        return Taken(seen, None)


@dataclass(frozen=True, kw_only=True)
class Pushes(Good):
    """Moves a parameter besides the update."""

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        taken = run.update(run.forward(batch))
        with torch.no_grad():
            next(iter(run.classifier.params.values())).add_(1e-6)
        return taken


@dataclass(frozen=True, kw_only=True)
class Peeks(Good):
    """Moves running statistics by a pass of its own."""

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        run.classifier(batch.x)
        return run.update(run.forward(batch))


@dataclass(frozen=True, kw_only=True)
class Weighs(Good):
    """Weights all of one kind."""

    value: float = 1.0

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        return run.update(run.forward(batch), torch.full((len(batch),), self.value))


@dataclass(frozen=True, kw_only=True)
class Hides(Good):
    """Writes its own weights into the run."""

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        taken = run.update(run.forward(batch))
        run.notes.weight[batch.index] = 2.0
        return taken


@dataclass(frozen=True, kw_only=True)
class Beyond(Good):
    def split(self, run: Run, state: Any) -> Split | None:
        return Split(torch.arange(len(run.pool)), torch.tensor([len(run.pool)]))


@dataclass(frozen=True, kw_only=True)
class NoSplit(Good):
    def split(self, run: Run, state: Any) -> Any:
        return torch.arange(len(run.pool))


@dataclass(frozen=True, kw_only=True)
class NoTaken(Good):
    def step(self, run: Run, state: Any, batch: Batch) -> Any:
        return super().step(run, state, batch).weights


@dataclass(frozen=True, kw_only=True)
class Bare(Good):
    """A state that is not a dataclass."""

    def init(self, run: Run) -> Any:
        return {"total": torch.ones(len(run.pool))}


@dataclass(frozen=True, kw_only=True)
class Unsavable(Good):
    def init(self, run: Run) -> Any:
        return Sum(torch.ones(len(run.pool)), other=object())


def from_numpy(size: int) -> Tensor:
    return torch.from_numpy(np.random.rand(size))


def from_python(size: int) -> Tensor:
    return torch.tensor([random.random() for _ in range(size)])


@dataclass(frozen=True, kw_only=True)
class Draws(Good):
    """Random weights from a global generator: in init, in each split, in each step."""

    draw: Callable[[int], Tensor]

    def init(self, run: Run) -> Any:
        return Sum(0.5 + self.draw(len(run.pool)).float())

    def split(self, run: Run, state: Any) -> Split | None:
        state.total += self.draw(len(run.pool)).float()
        return Split.of(NOTHING, len(run.pool))

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        state.total += self.draw(len(run.pool)).float()
        return run.update(run.forward(batch), state.total[batch.index])


@dataclass(frozen=True, kw_only=True)
class Forgets(Good):
    """Keeps what changes in its settings, so that a resumed run starts without it."""

    table: list[Tensor] = field(default_factory=list)

    def init(self, run: Run) -> Any:
        self.table[:] = [torch.ones(len(run.pool))]
        return None

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        seen = run.forward(batch)
        self.table[0][batch.index] += seen.losses.detach()
        return run.update(seen, self.table[0][batch.index])


@dataclass(frozen=True, kw_only=True)
class Late(Good):
    """Makes a network in the middle of the run."""

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        if run.updates == 3:
            state.other = run.learner("late", nn.Linear(4, 1), lr=0.1)
        return run.update(run.forward(batch))


@dataclass(frozen=True, kw_only=True)
class Same(Good):
    """Does not depend on the seed, since it never learns."""

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        return run.update(run.forward(batch), torch.zeros(len(batch)))


@dataclass(frozen=True, kw_only=True)
class Fails(Good):
    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        raise RuntimeError("out of ideas")


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (Soft(), "its settings can be changed; decorate it with @dataclass(frozen=True, kw_only=True)."),
        (Twice(), "the step at update 0 called run.update 2 times"),
        (Never(), "called run.update 0 times and updated the classifier 0 times; call run.update exactly once"),
        (ByHand(), "called run.update 0 times and updated the classifier 1 times"),
        (Pushes(), "of the classifier besides its one update; look at the classifier through run.look"),
        (Weighs(value=-0.1), "used a weight that is negative or not finite (least -0.1"),
        (Weighs(value=float("nan")), "raised NumericsError: a weight is not finite at update 0"),
        (Hides(), "the samples hold other weights than were used; leave run.notes.weight to run.update."),
        (Beyond(), "its split names example 96 of a pool of 96."),
        (NoSplit(), "split returned Tensor; return a Split, or None to end the run."),
        (NoTaken(), "step returned Tensor; return what run.update returned."),
        (Bare(), "init returned dict; return a dataclass, or None where nothing changes."),
        (Unsavable(), "cannot save method/other: object is not a tensor"),
        (Draws(draw=from_numpy), "drew from the global generator of numpy; use run.rng(purpose)."),
        (Draws(draw=from_python), "the same seed gave different parameters, metrics, samples the second time"),
        (Forgets(), "a run that was interrupted and resumed ended with other parameters, metrics, samples"),
        (Late(), "init makes other networks than were saved ('late'); make every network in init"),
        (Fails(), "training mlp raised RuntimeError: out of ideas"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
def test_a_breach_is_named_in_one_sentence(method: Method[Any], sentence: str) -> None:
    breaks(method, sentence)


def test_a_pass_that_moves_running_statistics_is_a_breach() -> None:
    breaks(Peeks(), "changed 1.running_mean of the classifier besides its one update", model=with_batch_norm)


def test_a_method_that_ignores_the_seed_is_noticed() -> None:
    breaks(Same(), "seeds 0 and 1 gave the same parameters.", model=nn.Linear(4, 2))


def test_all_zero_weights_are_an_update_that_changes_nothing() -> None:
    with pytest.raises(AssertionError, match="seeds 0 and 1"):  # all other checks pass
        check_method(Weighs(value=0.0), model=nn.Linear(4, 2))


def test_networks_of_a_methods_own_are_saved_by_the_run_and_not_with_its_state() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Learns(Good):
        """A network of its own in the state."""

        def init(self, run: Run) -> Any:
            return Sum(torch.ones(len(run.pool)), run.learner("net", nn.Linear(2, 1), lr=0.1))

        def step(self, run: Run, state: Any, batch: Batch) -> Taken:
            seen, net = run.forward(batch), state.other
            assert isinstance(net, Learner)
            net.step(net(seen.logits.detach()).square().mean())
            return run.update(seen, net(seen.logits.detach()).detach().squeeze(1).sigmoid())

    check_method(Learns(), model="linear")
