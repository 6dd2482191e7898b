"""L2R against numbers worked out by hand, and against the published order of operations in plain autograd."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from molere.data.pool import Data, TensorPool
from molere.errors import ConfigError, DataError
from molere.holdouts import Given
from molere.methods.l2r import agreeing, last_layer_products, residuals
from molere.settings import make_method
from molere.split import Split
from molere.testing import check_method, rare_region
from molere.training import Training
from oracles import SGD, Trainer
from stepping import assert_same_parameters, batch_norm, begun, turn, two_layers
from test_methods import FIXTURE, Zero

SIX = {"batch_size": 4, "momentum": 0.0, "weight_decay": 0.0, "scheduler": "constant", "precision": "float64"}
BY_HAND = {0: 0.4, 1: 0.0, 2: 0.4, 3: 0.2}
"""Weights of six points, of sum 1: the mislabelled twin gets none."""


def six_points(spec: str, **settings: object) -> Training:
    method = replace(make_method(spec), holdout=Given([4, 5]))
    training = begun(method, data=FIXTURE, model=Zero, **{**SIX, "lr": 1.0, **settings})
    training.run.use(Split(torch.arange(4), torch.tensor([4, 5])), at=0)
    return training


# ---- the weights


@pytest.mark.parametrize("lr", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("spec", ["l2r", "l2r[last_layer_only=true]"])
def test_the_weights_of_six_points_are_the_ones_computed_by_hand_at_any_step_length(spec: str, lr: float) -> None:
    training = six_points(spec, lr=lr)
    taken = training.setup.method.step(training.run, training.state, training.run.train_batch())
    expected = torch.tensor([4 * BY_HAND[int(i)] for i in taken.seen.batch.index], dtype=torch.float64)
    assert taken.weights is not None
    torch.testing.assert_close(taken.weights, expected, rtol=1e-12, atol=1e-12)


def test_the_step_is_one_on_the_sum_over_weights_that_sum_to_one() -> None:
    training = six_points("l2r")
    training.setup.method.step(training.run, training.state, training.run.train_batch())
    x, y = torch.tensor([[1.0, 0], [0, 1], [-1, 0]]), torch.tensor([0, 1, 2])
    w = torch.tensor([[0.4], [0.4], [0.2]], dtype=torch.float64)
    descent = (F.one_hot(y, 3).double() - 1 / 3).T @ (w * x)
    torch.testing.assert_close(training.run.classifier.model.head.weight.detach(), descent, rtol=0, atol=1e-12)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(1e-20, 1e6))
def test_weights_are_agreement_cut_at_zero_of_mean_one_whatever_its_scale(u: list[float], scale: float) -> None:
    agreement = torch.tensor(u, dtype=torch.float64)
    agreement[agreement.abs() < 1e-6] = 0
    w = agreeing(agreement)
    assert bool((w >= 0).all())
    assert bool(((w > 0) == (agreement > 0)).all())
    assert float(w.mean()) == pytest.approx(float((agreement > 0).any()))
    torch.testing.assert_close(agreeing(scale * agreement), w)


def test_a_batch_in_which_nothing_agrees_leaves_the_classifier_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    training = begun("l2r", momentum=0.9)
    turn(training)
    before = training.run.classifier.snapshot()
    monkeypatch.setattr("molere.method.Run.weight_gradient", lambda self, look: torch.ones(len(look.seen)))
    taken = turn(training)
    assert taken.weights is not None
    assert not taken.weights.any()
    assert all(torch.equal(p, before[k]) for k, p in training.run.classifier.params.items())
    assert turn(training).weights is not None


@pytest.mark.parametrize("bias", [True, False])
def test_products_over_the_last_layer_are_those_of_its_gradients(bias: bool, generator: torch.Generator) -> None:
    layer = nn.Linear(5, 3, bias=bias)
    features, y = torch.randn(7, 5, generator=generator), torch.randint(3, (7,), generator=generator)

    def flat(i: int) -> Tensor:
        loss = F.cross_entropy(layer(features[i : i + 1]), y[i : i + 1])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(layer.parameters()))])

    rows = torch.stack([flat(i) for i in range(7)])
    seen = (features, residuals(layer(features).detach(), y))
    found = last_layer_products((seen[0][:4], seen[1][:4]), (seen[0][4:], seen[1][4:]), bias)
    torch.testing.assert_close(found, rows[:4] @ rows[4:].T, rtol=1e-5, atol=1e-6)


def test_over_a_model_that_is_its_last_layer_the_cheap_weights_are_exact() -> None:
    exact, cheap = (
        begun(f"l2r[last_layer_only={v}]", model="linear", precision="float64", estimator="exact")
        for v in ("false", "true")
    )
    for _ in range(6):
        a, b = turn(exact).weights, turn(cheap).weights
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


# ---- the published order of operations


def published_weights(twin: Trainer, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], lr: float) -> Tensor:
    """As published: eps = 0, a virtual step on sum eps l, the validation loss after it, minus its gradient, cut."""
    eps = torch.zeros(len(train[1]), dtype=torch.float64, requires_grad=True)
    theta = {k: t.detach().requires_grad_() for k, t in twin.theta.items()}
    total = (eps * twin.losses(theta, *train)).sum()
    grads = torch.autograd.grad(total, list(theta.values()), create_graph=True)
    ahead = {k: t - lr * g for (k, t), g in zip(theta.items(), grads, strict=True)}
    u = -torch.autograd.grad(twin.losses(ahead, *val).mean(), eps)[0]
    cut = u.clamp_min(0)
    return cut / (cut.sum() + float(cut.sum() == 0))


@pytest.mark.parametrize(
    ("model", "estimator"),
    [(two_layers, "exact"), (two_layers, "ghost"), (batch_norm, "exact")],
    ids=["mlp", "mlp by ghost products", "batch-norm"],
)
def test_twenty_steps_agree_with_the_published_order_of_operations(model: object, estimator: str) -> None:
    training = begun("l2r", model=model, precision="float64", estimator=estimator, lr=0.05, scheduler="cosine")
    twin = Trainer(training.run.classifier.model, SGD(lr=0.05, momentum=0.9, weight_decay=5e-4))
    vals: list[tuple[Tensor, Tensor]] = []
    val_batch = training.run.val_batch

    def noted() -> object:
        batch = val_batch()
        vals.append((batch.x, batch.y))
        return batch

    training.run.val_batch = noted
    some_zero = False
    for _ in range(20):
        taken = turn(training)
        batch, lr = taken.seen.batch, training.run.lr
        w = published_weights(twin, (batch.x, batch.y), vals.pop(), lr)
        twin.rule = SGD(lr=lr, momentum=0.9, weight_decay=5e-4)
        twin.step(batch.x, batch.y, len(w) * w)  # their sum is a mean over n w
        assert taken.weights is not None
        torch.testing.assert_close(taken.weights / len(w), w, rtol=0, atol=1e-10)
        some_zero |= bool((w == 0).any())
    assert some_zero
    assert_same_parameters(training, twin)


# ---- cost, settings, needs


def test_a_step_costs_eight_forward_passes() -> None:
    training = begun("l2r", estimator="exact")
    turn(training)
    cost, n, m = training.run.cost, 16, 9
    assert (cost.forward, cost.backward) == (n, n)
    assert (cost.virtual_forward, cost.virtual_backward) == (m + 2 * n, m)  # with m = n: 3 F + 3 F + 2 F


def test_the_last_layer_alone_costs_a_validation_forward_pass() -> None:
    training = begun("l2r[last_layer_only=true]")
    turn(training)
    cost = training.run.cost
    assert (cost.forward, cost.backward, cost.virtual_forward, cost.virtual_backward) == (16, 16, 9, 0)


def test_between_reweighted_updates_the_step_is_plain() -> None:
    training = begun("l2r[reweight_every=3]")
    assert [turn(training).weights is None for _ in range(6)] == [False, True, True] * 2


def noisy(size: int = 96) -> Data:
    """The rare region with every eighth label wrong, and known to be."""
    pool = rare_region(size).train
    assert isinstance(pool, TensorPool)
    y = torch.where(torch.arange(size) % 8 == 3, 1 - pool.y, pool.y)
    return Data("noisy", TensorPool(pool.x, y, clean_y=pool.y), None, {"test": pool})


def test_wrong_labels_weigh_less_than_right_ones_once_clean_examples_validate() -> None:
    training = begun("l2r@paper", data=noisy(), epochs=6)
    for _ in range(36):
        turn(training)
    row = training.run.notes.row(36)
    assert row["weight_flipped"] < 0.5 * row["weight_clean"]
    assert 0 < row["weights_nonzero"] < 1


def test_without_clean_labels_the_published_settings_say_what_is_missing() -> None:
    with pytest.raises(DataError) as error:
        begun("l2r@paper")
    assert str(error.value) == (
        "holdout=clean needs true labels and these data have none: pass clean_y or holdout=random."
    )


def test_last_layer_weights_need_a_last_layer() -> None:
    class TwoLayersOnTop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = nn.Linear(4, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x))

    with pytest.raises(ConfigError) as error:
        begun("l2r[last_layer_only=true]", model=TwoLayersOnTop)
    assert str(error.value) == (
        "last_layer_only=true needs a model that ends in a linear layer; use last_layer_only=false"
    )


@pytest.mark.parametrize("spec", ["l2r[last_layer_only=true,keep=true]", "l2r[reweight_every=2]"])
def test_variants_keep_the_contract(spec: str) -> None:
    check_method(spec, model=batch_norm)
