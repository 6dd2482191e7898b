"""Numbers that are no longer finite: the culprit is named, and the run stops, skips the update or goes back."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from molere.data.pool import Batch, Data, TensorPool
from molere.errors import NumericsError
from molere.method import Method, Run
from molere.methods.erm import ERM
from molere.recipe import Recipe
from molere.run import fit
from molere.steps import Taken

SIZE, BATCH, PER_EPOCH = 96, 16, 6


def data(**more: Any) -> Data:
    x = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(0))
    pool = TensorPool(x, torch.arange(SIZE) % 3, ids=np.arange(1000, 1000 + SIZE), **more)
    return Data("points", pool, None, {"test": pool})


def recipe(**more: Any) -> Recipe:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": BATCH, "lr": 0.1, "device": "cpu", "save_every": 2}
    return Recipe(**{**settings, **more})


@dataclass(frozen=True, kw_only=True)
class Breaks(Method[Any]):
    """ERM that puts NaN into something at one update: as often as it comes there, or once in a process."""

    what: str = "classifier"
    at: int = 8
    learner: str = "splitter"
    times: int = 10**6

    def init(self, run: Run) -> Any:
        self.__dict__.setdefault("left", [self.times])
        if self.what == "other":
            return ERMState(run.learner(self.learner, nn.Linear(4, 1), lr=0.1))
        return None

    def split(self, run: Run, state: Any) -> Any:
        return ERM().split(run, None)

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        seen = run.forward(batch)
        w = torch.ones(len(batch))
        if run.updates == self.at and self.__dict__["left"][0] > 0:
            self.__dict__["left"][0] -= 1
            if self.what == "classifier":
                with torch.no_grad():
                    run.classifier.params["0.weight"][0, 0] = math.nan
                seen = run.forward(batch)
            elif self.what == "weights":
                w[3] = math.nan
            elif self.what == "other":
                state.net.step((state.net(batch.x) * math.inf).sum())
            elif self.what == "gradient":
                return run.update(seen, along=torch.full_like(seen.logits.detach(), math.inf))
        return run.update(seen, w)


@dataclass
class ERMState:
    net: Any


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def train(method: Any, *, out: Path | None = None, given: Data | None = None, **more: Any) -> Any:
    return fit(method, data=given or data(), model=net, recipe=recipe(**more), out=out, label="breaks")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("classifier", r"parameter 0\.weight of the classifier is not finite at update 8; lower train\.lr"),
        ("weights", r"a weight is not finite at update 8; lower the weight network's lr"),
        ("other", r"the loss of the splitter is not finite; lower its lr"),
    ],
)
def test_the_culprit_is_named_and_the_last_good_checkpoint_stays(what: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=said):
        train(Breaks(what=what), out=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "LATEST").read_text() == "step-000008\n"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 5)


def test_a_classifier_that_holds_nan_is_not_saved(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Poisons(Breaks):
        def step(self, run: Run, state: Any, batch: Batch) -> Taken:
            taken = run.update(run.forward(batch))
            if run.updates == 7:
                with torch.no_grad():
                    run.classifier.params["2.bias"][1] = math.inf
            return taken

    with pytest.raises(NumericsError, match=r"parameter 2\.bias of the classifier is not finite at update 8"):
        train(Poisons(), out=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "LATEST").read_text() == "step-000006\n"


def test_inputs_that_overflow_are_blamed_on_their_examples() -> None:
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.where(x.abs() > 900, x * math.inf, x))

    x = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(0))
    x[5] = 1000.0
    pool = TensorPool(x, torch.arange(SIZE) % 3, ids=np.arange(1000, 1000 + SIZE))
    with pytest.raises(NumericsError, match=r"the classifier's loss of example 1005 is not finite at update \d+"):
        fit("erm", data=Data("points", pool, None, {"test": pool}), model=Overflows, recipe=recipe())


@pytest.mark.parametrize("what", ["weights", "gradient", "other"])
def test_skip_leaves_the_update_out_and_goes_on(what: str, tmp_path: Path) -> None:
    result = train(Breaks(what=what, at=8), out=tmp_path / "run", on_nonfinite="skip")
    assert result.updates == 3 * PER_EPOCH
    assert all(torch.isfinite(p).all() for p in result.classifier.parameters())
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e["update"] for e in events if e["event"] == "skipped"] == [8]
    assert sum(row.get("skipped_updates", 0) for row in result.history) == 1


def test_a_run_that_skips_more_than_ten_updates_in_a_row_ends() -> None:
    with pytest.raises(NumericsError, match=r"\(10 updates in a row were skipped\)"):
        train(Breaks(what="classifier"), on_nonfinite="skip", epochs=4)


def test_rollback_goes_on_from_the_last_epoch_at_half_the_learning_rate(tmp_path: Path) -> None:
    result = train(Breaks(what="classifier", times=2), out=tmp_path / "run", on_nonfinite="rollback", scheduler=None)
    assert result.updates == 3 * PER_EPOCH
    assert [row["lr"] for row in result.history] == [0.1, 0.025, 0.025]
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 4
    assert all(torch.isfinite(p).all() for p in result.classifier.parameters())


def test_rollback_gives_up_after_three_times() -> None:
    with pytest.raises(NumericsError, match=r"\(went back 3 times\)"):
        train(Breaks(what="classifier"), on_nonfinite="rollback")


@pytest.mark.parametrize("weights", [torch.zeros(BATCH), torch.tensor([100.0, *[0.1] * (BATCH - 1)])])
def test_weights_that_collapse_give_way_to_equal_ones_and_are_counted(weights: Tensor) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Collapses(Breaks):
        def step(self, run: Run, state: Any, batch: Batch) -> Taken:
            return run.update(run.forward(batch), run.trusted(weights))

    found, plain = train(Collapses()), train(Breaks(at=-1))
    for a, b in zip(found.classifier.parameters(), plain.classifier.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert [row["weights_fallback"] for row in found.history] == [PER_EPOCH] * 3
    assert all(row["effective_sample_size"] == pytest.approx(1) for row in found.history)
