"""Numbers that are no longer finite: the culprit is named, and the run stops, skips the update or goes back."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from molere import run as run_module
from molere import settings
from molere.data.pool import Batch, Data, DatasetPool, TensorPool
from molere.data.view import PoolView
from molere.errors import NumericsError
from molere.guard import named
from molere.holdouts import Given
from molere.method import Method, Run
from molere.methods.erm import ERM
from molere.opening import open_run
from molere.outcome import Outcome
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
        ("weights", r"a weight is not finite at update 8; lower train\.lr"),
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


@dataclass(frozen=True, kw_only=True)
class PoisonsAfter(Breaks):
    """ERM after one of whose updates, the 14th, a parameter is NaN once."""

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        taken = run.update(run.forward(batch))
        if run.updates == 13 and self.__dict__["left"][0] > 0:
            self.__dict__["left"][0] -= 1
            with torch.no_grad():
                run.classifier.params["0.weight"][0, 0] = math.nan
        return taken


@pytest.mark.parametrize("every", [7, None])
def test_a_save_that_finds_nan_follows_the_policy(every: int | None, tmp_path: Path) -> None:
    result = train(PoisonsAfter(times=1), out=tmp_path / "run", on_nonfinite="rollback", save_every=every)
    assert result.updates == 3 * PER_EPOCH
    assert all(torch.isfinite(p).all() for p in result.classifier.parameters())
    assert [e["update"] for e in told(tmp_path, "rolled back")] == [12]


def test_a_save_that_finds_nan_is_left_out_under_skip(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"parameter 0\.weight .*\(10 updates in a row were skipped\)"):
        train(PoisonsAfter(times=1), out=tmp_path / "run", on_nonfinite="skip", save_every=7, epochs=5)
    assert [e["update"] for e in told(tmp_path, "not saved")] == [14, 21]
    assert (tmp_path / "run" / "checkpoints" / "LATEST").read_text() == "step-000007\n"


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_no_run_ends_well_with_a_classifier_that_holds_nan(policy: str) -> None:
    with pytest.raises(NumericsError, match=r"parameter 0\.weight of the classifier is not finite at update 14"):
        fit(
            PoisonsAfter(times=1), data=data(), model=net, label="breaks",
            recipe=recipe(batch_size=48, epochs=7, on_nonfinite=policy),
        )  # fmt: skip


def told(folder: Path, event: str) -> list[Any]:
    events = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [e for e in events if e["event"] == event]


# ---- an example whose data are not finite


def items(at: int = 17, value: float = math.nan) -> Data:
    x = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(0))
    x[at, 2] = value
    y = torch.arange(SIZE) % 3
    return Data("points", DatasetPool(TensorDataset(x, y), ids=np.arange(1000, 1000 + SIZE)), None, data().tests)


@pytest.mark.parametrize("method", ["mwn", "bilaw[adversarial=true]", "fsr[mixup=true]"])
def test_no_network_learns_from_a_batch_that_is_skipped(method: str, tmp_path: Path) -> None:
    train(method, out=tmp_path / "run", given=items(), on_nonfinite="skip")
    errors = [e["error"] for e in told(tmp_path, "skipped")]
    assert errors
    assert all(error.startswith("the data of example 1017 are not finite (") for error in errors)


def test_running_statistics_are_as_before_an_update_that_is_skipped(tmp_path: Path) -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    result = fit("erm", data=items(), model=normed, recipe=recipe(on_nonfinite="skip"), out=tmp_path / "run")
    assert len(told(tmp_path, "skipped")) == 3
    assert not told(tmp_path, "not saved")
    assert all(torch.isfinite(b).all() for b in result.classifier.buffers())
    assert int(result.classifier.get_buffer("1.num_batches_tracked")) == 3 * PER_EPOCH - 3


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "method",
    [
        "lrw-hard",
        "molere",
        "lrw-random[weights.network=frozen]",
        "lrwopt[exact_pass=true,patience=9]",
        *(pytest.param(m, marks=SLOW) for m in ("mbr", "lrwopt", "rho-loss", "lrw-easy", "molere[expect=noise]")),
    ],
)
def test_an_example_that_cannot_be_ranked_is_named_and_left_out(method: str, tmp_path: Path) -> None:
    method = method.replace("lrwopt[", "lrwopt[warmup=0.3,")
    result = train(method, out=tmp_path / "run", given=items(), on_nonfinite="skip")
    left_out = told(tmp_path, "left out")
    assert [e["error"] for e in left_out] == [
        "the data of example 1017 are not finite: left out where examples are ranked"
    ]
    assert all(e["error"].startswith("the data of example 1017") for e in told(tmp_path, "skipped"))
    assert all(torch.isfinite(p).all() for p in result.classifier.parameters())
    assert result.samples["times_in_validation"][17] == 0
    assert not math.isfinite(result.samples["loss"][17])


def no_scouts(run: object, wanted: object) -> list[Outcome]:
    raise AssertionError("no scouts here")


def test_others_are_ranked_as_if_the_example_were_not_there() -> None:
    setup = {"model": net, "label": "ranks", "recipe": recipe(epochs=1)}
    run = open_run(run_module._setup("erm", items(), **setup, seed=0), no_scouts)
    scores = torch.arange(SIZE, dtype=torch.float32)
    assert run.rankable(scores).tolist() == [*range(SIZE)]
    scores[17] = math.nan
    with pytest.raises(NumericsError, match=r"^the data of example 1017 are not finite and cannot be ranked; mend"):
        run.rankable(scores)
    scores[17], scores[3] = 17, math.nan  # its data are finite: the ranking itself says what to do
    assert run.rankable(scores).tolist() == [*range(SIZE)]


@pytest.mark.parametrize("method", ["mwn", "bilaw", "lrw-random", "gdw", "l2r", "maple", "lrw-random[order=strict]"])
def test_an_example_that_validates_is_named(method: str) -> None:
    with pytest.raises(NumericsError, match=r"^the data of example 1017 are not finite \(validation at update \d\);"):
        train(validating(method), given=items())


def validating(method: str) -> Any:
    """The method with the example in its validation part."""
    made: Any = settings.method_of(method)
    if hasattr(made, "holdout"):
        return replace(made, holdout=Given([*range(14, 22)]))
    return made


def test_on_a_gpu_where_batches_are_not_looked_at_data_are_named_once_numbers_are_found_bad(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Run, "watched", False)
    for method in ("mwn", "l2r"):
        with pytest.raises(
            NumericsError, match=r"^the data of example 1017 are not finite \(validation at update \d\);"
        ):
            train(validating(method), given=items())


def test_an_example_of_a_part_is_named_by_its_id_in_the_whole() -> None:
    view = PoolView(PoolView(items().train, torch.arange(10, 90)), torch.arange(5, 40))
    assert named(view, torch.tensor([2])) == "example 1017"


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
