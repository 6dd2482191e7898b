"""The bank: rows as of the last pass, rounded where they would take too much memory, and read from older states."""

import pytest
import torch
from torch import Tensor, nn

from molere.bank import Bank
from molere.data.pool import Data, TensorPool
from molere.evaluate import logits_of, predict
from molere.examples import Outcome
from molere.methods import lrwopt
from molere.methods.lrwopt import LRWOpt
from molere.opening import Setup
from molere.recipe import Recipe
from molere.scouts import ScoutTrainer
from molere.storage import ContentCache
from molere.training import Training

CPU = torch.device("cpu")


def rows(n: int = 6, d: int = 8, c: int = 3, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "features": 10 * torch.randn(n, d, generator=g),
        "logits": torch.randn(n, c, generator=g),
        "losses": torch.rand(n, generator=g),
    }


def filled(memory: int, dtype: torch.dtype = torch.float32) -> tuple[Bank, dict[str, Tensor]]:
    """A bank of ten rows, of which positions 8, 1, 4, 0, 9, 2 have been seen."""
    bank, given = Bank(10, CPU, memory), rows()
    given["features"] = given["features"].to(dtype)
    bank.write(torch.tensor([8, 1, 4, 0, 9, 2]), **given, update=7)
    return bank, given


def test_rows_are_kept_as_they_were_given_where_there_is_memory() -> None:
    bank, given = filled(10 * 8 * 4)
    assert torch.equal(bank.features[torch.tensor([8, 1, 4, 0, 9, 2])], given["features"])
    assert torch.equal(bank.features_of(torch.tensor([9, 3])), torch.stack((given["features"][4], torch.zeros(8))))
    assert torch.equal(bank.predicted[torch.tensor([8, 1, 4, 0, 9, 2])], given["logits"].argmax(1))
    assert torch.equal(bank.losses[8], given["losses"][0])
    assert bank.seen.tolist() == [7, 7, 7, -1, 7, -1, -1, -1, 7, 7]
    assert bank.known.tolist() == [0, 1, 2, 4, 8, 9]
    assert bank.stale(8).tolist() == list(range(10))
    assert bank.stale(7).tolist() == [3, 5, 6, 7]


def test_double_precision_stays_where_there_is_memory() -> None:
    bank, given = filled(10 * 8 * 8, torch.float64)
    assert torch.equal(bank.features_of(torch.tensor([8])), given["features"][:1])
    assert bank.features.dtype == torch.float64


@pytest.mark.parametrize(("memory", "kind", "share"), [(319, torch.float16, 2**-11), (159, torch.int8, 1 / 254)])
def test_rows_are_rounded_where_memory_is_short(memory: int, kind: torch.dtype, share: float) -> None:
    bank, given = filled(memory)
    kept = bank.state_dict()["features"]
    assert isinstance(kept, Tensor)
    assert kept.dtype == kind
    found = bank.features_of(torch.tensor([8, 1, 4, 0, 9, 2]))
    assert found.dtype == bank.features.dtype == torch.float32
    error = (found - given["features"]).abs()
    assert bool((error <= share * 1.001 * given["features"].abs().amax(1, keepdim=True)).all())
    assert not bank.features[torch.tensor([3, 5, 6, 7])].any()


def test_rows_of_zeros_and_numbers_beyond_float16_survive_rounding() -> None:
    features = torch.tensor([[0.0, 0.0], [1e6, -1e6]])
    for memory in (31, 15):
        bank = Bank(4, CPU, memory)
        bank.write(torch.tensor([2, 0]), features=features, logits=torch.eye(2), losses=torch.ones(2), update=0)
        found = bank.features_of(torch.tensor([2, 0]))
        assert bool(found.isfinite().all())
        assert found[0].tolist() == [0, 0]
        assert found[1, 0] == -found[1, 1] > 6e4


@pytest.mark.parametrize("memory", [320, 160, 80])
def test_a_bank_comes_back_from_its_state(memory: int) -> None:
    bank, _ = filled(memory)
    again = Bank(10, CPU, memory)
    again.load_state_dict({k: v.clone() if isinstance(v, Tensor) else None for k, v in bank.state_dict().items()})
    assert torch.equal(again.features, bank.features)
    for name in ("seen", "losses", "predicted"):
        assert torch.equal(getattr(again, name), getattr(bank, name))
    for each in (bank, again):
        each.write(torch.tensor([3]), **{k: v[:1] for k, v in rows(seed=1).items()}, update=9)
    assert torch.equal(again.features, bank.features)


def test_a_state_with_logits_as_older_runs_saved_them_is_read() -> None:
    bank, given = filled(320)
    logits = torch.zeros(10, 3)
    logits[torch.tensor([8, 1, 4, 0, 9, 2])] = given["logits"]
    old = {"seen": bank.seen, "losses": bank.losses, "features": bank.features, "logits": logits}
    again = Bank(10, CPU)
    again.load_state_dict(old)
    assert torch.equal(again.predicted, bank.predicted)
    empty = Bank(4, CPU)
    empty.load_state_dict({"seen": empty.seen, "losses": empty.losses, "features": None, "logits": None})
    assert len(empty.known) == 0


# ------------------------------------------------------------------------------- passes that use it


def training_of(method: LRWOpt, rows: int = 60) -> Training:
    g = torch.Generator().manual_seed(0)
    pool = TensorPool(torch.randn(rows, 4, generator=g), torch.arange(rows) % 3)
    data = Data("waves", pool, None, {"test": pool})

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    setup = Setup(method, data, build, "mlp", Recipe(epochs=1, batch_size=10), 0, "lrwopt", torch.device("cpu"))
    return Training(setup, ScoutTrainer(setup, ContentCache()), None, ())


@pytest.mark.parametrize("exact", [False, True])
def test_the_split_pass_gives_the_same_in_small_pieces(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    method = LRWOpt(warmup=0.0, exact_pass=exact)
    training = training_of(method)
    whole = method.train_probability(training.run, training.state)
    monkeypatch.setattr(lrwopt, "NUMBERS", 7 * 11)
    pieces = method.train_probability(training.run, training.state)
    assert whole.shape == pieces.shape == (60,)
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)
    training.run.close()


def test_outcomes_in_batches_are_those_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molere.evaluate.EVAL_BATCH", 7)
    training = training_of(LRWOpt(warmup=0.0))
    classifier, pool = training.run.classifier, training.run.pool
    found = Outcome.joined(Outcome.of(z, pool.y[at]) for at, z in logits_of(classifier, pool))
    logits = predict(classifier, pool).double()
    p = logits.softmax(1)
    right = p[torch.arange(60), pool.y]
    other = p.masked_fill(torch.nn.functional.one_hot(pool.y, 3).bool(), 0).amax(1)
    assert torch.equal(found.prediction, logits.argmax(1))
    torch.testing.assert_close(found.loss.double(), -right.log(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.margin.double(), right - other, atol=1e-6, rtol=0)
    training.run.close()
