"""The learned split: its rounds, its splitter, and the methods that use it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from molere import rng
from molere.errors import ConfigError
from molere.holdouts import Holdout
from molere.learned import Learned, Splitting, drawn
from molere.method import Run, Scouting
from molere.outcome import Outcome
from molere.settings import MethodSpec, applicable, make_method
from molere.split import Split, part_size, random_part
from molere.testing import check_method
from stepping import batch_norm, begun, two_layers
from test_methods import MIXTURE, train, validates

QUICK = "holdout.kind=learned,holdout.rounds=3,holdout.batches=3,holdout.epochs=0.25"


# ---- rounds


class Told:
    """Stands for `run.scout`: predictors whose mistakes are chosen here."""

    def __init__(self, y: Tensor, wrong: list[float]) -> None:
        self.y, self.wrong, self.asked = y, wrong, list[Scouting]()

    def __call__(self, wanted: Scouting) -> list[Outcome]:
        """Wrong on a share of what it has not seen; right on what it was trained and selected on."""
        self.asked.append(wanted)
        assert wanted.select is not None
        held = torch.ones(len(self.y), dtype=torch.bool)
        held[torch.cat([wanted.on, wanted.select])] = False
        test = held.nonzero().flatten()
        label = self.y.clone()
        some = test[: round(self.wrong[len(self.asked) - 1] * len(test))]
        label[some] = 1 - label[some]
        return [Outcome.of(F.one_hot(label, 2).float(), self.y)]


def told(wrong: list[float], monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Told]:
    run = begun("erm", model=two_layers).run
    scout = Told(run.pool.y, wrong)
    monkeypatch.setattr(run, "scout", scout)
    return run, scout


def test_the_first_split_is_random_and_its_predictor_sees_two_thirds_of_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, scout = told([0.5], monkeypatch)
    part = Learned(rounds=1)(run, 0.1).val
    expected = random_part(run.pool.y, 0.1, rng.generator(0, "learned split: first", 0), stratified=False)
    assert torch.equal(part, expected.sort().values)
    (asked,) = scout.asked
    assert asked.select is not None
    assert (len(asked.on), len(asked.select), asked.epochs) == (58, 29, 0.5)
    assert sorted(torch.cat([asked.on, asked.select, part]).tolist()) == list(range(96))


def test_the_split_of_the_largest_gap_is_kept_and_patience_ends_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    run, scout = told([0.2, 0.6, 0.9, 0.3, 0.9, 0.1, 1.0], monkeypatch)
    holdout = Learned(patience=3, batches=2)
    part = holdout.part(run, 0.2)
    assert len(scout.asked) == 6  # the third is the best; an equal gap is no larger one
    third = scout.asked[2]
    assert third.select is not None
    assert sorted(torch.cat([third.on, third.select, part]).tolist()) == list(range(96))
    assert run.notes.logged["split_rounds"] == 6
    assert run.notes.logged["split_gap"] == pytest.approx(0.9, abs=0.05)
    assert float(run.notes.columns["train_probability"][part].mean()) < 1


@given(st.integers(0, 1000), st.floats(0, 1), st.sampled_from([0.1, 0.3, 0.5]))
def test_drawn_splits_respect_the_share_and_the_classes(seed: int, middle: float, delta: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(40) % 4
    p = (middle + 0.3 * torch.randn(40, generator=draws)).clamp(0, 1)
    before = Split.of(torch.tensor([0, 1, 2, 3]), 40)
    split = drawn(p, y, delta, draws, before)
    assert 0 < len(split.val) <= part_size(40, delta)
    assert len(y[split.train].unique()) == 4
    if split is not before:
        assert float(p[split.val].max()) < 1
        assert len(split.val) >= 4


def test_an_example_validates_as_often_as_its_probability_says() -> None:
    p, y = torch.full((100,), 0.8), torch.arange(100) % 2
    before = Split.of(torch.tensor([0, 1]), 100)
    counts = torch.tensor([len(drawn(p, y, 0.5, torch.Generator().manual_seed(i), before).val) for i in range(200)])
    assert float(counts.float().mean()) == pytest.approx(20, abs=4 * (16 / 200) ** 0.5)


# ---- the splitter


def test_the_splitter_reads_features_and_label() -> None:
    model = two_layers()
    net = Splitting(model, 2)
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 1, 0, 1])
    with torch.no_grad():
        features = model[1](model[0](x))
        label = torch.stack([1 - y, y], dim=1).float()
        expected = torch.cat([features, label], dim=1) @ net.head.weight[0] + net.head.bias
        torch.testing.assert_close(net(x, y), expected)
        assert not torch.allclose(net(x, y), net(x, 1 - y))


@pytest.mark.parametrize("model", [two_layers, batch_norm])
def test_an_update_of_the_splitter_follows_the_mean_of_its_three_terms(model: Any) -> None:
    run = begun("erm", model=model, precision="float64").run
    holdout = Learned(batch_size=30, grad_clip=1e9)
    splitter = holdout.splitter(run)
    split = Split.of(torch.arange(90, 96), 96)
    right = torch.arange(96) % 3 > 0
    draws = torch.Generator().manual_seed(5)
    val = split.val[torch.randint(6, (30,), generator=draws)]
    some = torch.randint(96, (30,), generator=draws)
    x, y = run.pool.x.double(), run.pool.y
    net = splitter.model
    a = torch.sigmoid(net(x[val], y[val]))
    ce = F.binary_cross_entropy(a, right[val].double())
    a = torch.sigmoid(net(x[some], y[some]))
    r = a.mean()
    share = 0.9 * torch.log(0.9 / r) + 0.1 * torch.log(0.1 / (1 - r))
    labels = torch.zeros((), dtype=torch.float64)
    for side in (a, 1 - a):
        for c in (0, 1):
            prior, conditional = (y[some] == c).double().mean(), side[y[some] == c].sum() / side.sum()
            labels = labels + prior * torch.log(prior / conditional)
    loss = (ce + share + labels) / 3
    expected = torch.autograd.grad(loss, list(net.parameters()))
    found = holdout.update(run, splitter, split, right, 0.1, torch.Generator().manual_seed(5))
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, grad), truth in zip(splitter.grads().items(), expected, strict=True):
        torch.testing.assert_close(grad, truth, rtol=1e-4, atol=1e-7, msg=name)
    assert (run.cost.virtual_forward, run.cost.virtual_backward) == (60, 60)


def test_the_splitter_stops_when_five_epochs_have_not_helped(monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun("erm").run
    losses = iter([5.0, 4.0, 3.0, 2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.8, 0.7999, 0.0])
    asked = list[float]()

    def update(*_: Any) -> Tensor:
        asked.append(next(losses))
        return torch.tensor(asked[-1])

    monkeypatch.setattr(Learned, "update", update)
    holdout = Learned(batches=1)
    holdout.learn(run, holdout.splitter(run), Split.of(torch.arange(9), 96), torch.ones(96, dtype=torch.bool), 0.1)
    means = [sum(asked[i - 5 : i]) / 5 - asked[i] for i in range(5, len(asked))]
    assert all(gain >= 1e-3 for gain in means[:-1])
    assert means[-1] < 1e-3


# ---- with the methods


@pytest.mark.parametrize("name", ["drop-hard", "lrw-random", "mwn"])
def test_methods_with_a_holdout_train_on_a_learned_split(name: str) -> None:
    check_method(f"{name}[{QUICK}]", model=batch_norm)


def test_the_learned_split_finds_what_the_rest_does_not_prepare_for() -> None:
    """A tenth of the pool is a region where the label is a coin: no predictor generalises to it."""
    learned = train(
        "erm-part[holdout.kind=learned,holdout.rounds=8,holdout.lr=0.01,holdout.epochs=1.0]",
        data=MIXTURE, epochs=8, batch_size=40, lr=0.05,
    )  # fmt: skip
    groups = torch.as_tensor(learned.samples["group"]).double()
    assert float(groups[validates(learned)].mean()) > 0.4  # by chance .1
    assert learned.history[0]["split_gap"] > 0.2


def test_scouts_and_splitter_are_charged_as_scouts() -> None:
    result = train(f"erm-part[{QUICK},holdout.batch_size=10]", epochs=4)
    plain = train("erm-part", epochs=4)
    assert (result.cost.forward, result.cost.backward) == (plain.cost.forward, plain.cost.backward)
    assert result.cost.virtual_forward == result.cost.virtual_backward == 0
    trained = 3 * (58 // 16) * 16  # three rounds of one epoch on two thirds of 87 examples
    taught = result.cost.scout_backward - trained
    assert taught > 0
    assert taught % (3 * 20) == 0  # epochs of three updates on two batches of ten
    passes = 3 * 29 + 3 * 96 + 2 * 96  # to choose the epoch, to score the pool, to draw the next split
    assert result.cost.scout_forward == pytest.approx(result.cost.scout_backward + passes, abs=3 * 2 * 16)


def test_a_learned_split_is_the_same_for_the_same_seed_and_learned_once() -> None:
    first, again = (validates(train(f"erm-part[{QUICK}]")) for _ in range(2))
    other = validates(train(f"erm-part[{QUICK}]", seed=1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_learned_split_is_chosen_by_name() -> None:
    made = make_method("lrw-hard@paper[holdout.kind=learned,holdout.patience=2]")
    assert made.holdout == Learned(patience=2)
    assert isinstance(made.holdout, Holdout)
    assert applicable(MethodSpec.parse("erm"), {"holdout": {"kind": "learned"}}) == {}
    with pytest.raises(ConfigError, match="holdout.patience must be an int of at least 1; got 0"):
        make_method("lrw-hard[holdout.kind=learned,holdout.patience=0]")


def test_a_collapsed_splitter_is_pulled_back() -> None:
    """P = 1 for all: the penalties stay finite, and their gradient is not zero."""
    run = begun("erm").run
    holdout = Learned(batch_size=30)
    splitter = holdout.splitter(run)
    with torch.no_grad():
        nn.init.zeros_(splitter.model.head.weight)
        nn.init.constant_(splitter.model.head.bias, 8.0)
    right = torch.ones(96, dtype=torch.bool)
    loss = holdout.update(run, splitter, Split.of(torch.arange(9), 96), right, 0.1, torch.Generator().manual_seed(0))
    assert math.isfinite(float(loss))
    assert float(loss) > 0.15
    assert float(splitter.grads()["head.bias"].abs()) > 1e-3
