"""The meta-gradient against double backward, closed forms, and its own estimators against each other."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import oracles
from molere import rng
from molere.data.pool import Batch, Data, TensorPool
from molere.errors import ConfigError, NumericsError
from molere.kernels import full_float32, is_reduced
from molere.learner import Learner
from molere.losses import trimmed_mean
from molere.metagrad import (
    ESTIMATORS,
    CentralDifference,
    ForwardMode,
    OneSidedDifference,
    gradient,
    weight_gradient,
)
from molere.method import Run
from molere.methods.erm import ERM
from molere.models import build
from molere.networks import WeightNet, mean_one, sigmoid_weights
from molere.opening import Setup, open_run
from molere.optim import Params, make_optimizer
from molere.probe import Choice, probe
from molere.recipe import Recipe
from molere.split import Split
from molere.steps import Seen

# ---- six architectures


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.other = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.other(self.second(torch.relu(self.norm(self.first(x))))))


class _Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 3)
        # The loss does not depend on the bias of the keys. At 0, Adam would divide rounding by rounding there.
        nn.init.normal_(self.block.self_attn.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 12), nn.Tanh(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)
    )


def _resnet() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        _Residual(4), _Residual(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def _dropping() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(25, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 8), nn.Tanh(), nn.Dropout(0.2),
        nn.Linear(8, 3),
    )  # fmt: skip


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "mlp": (_mlp, True),
    "cnn": (_cnn, True),
    "resnet-train": (_resnet, True),
    "resnet-eval": (_resnet, False),
    "dropout": (_dropping, True),
    "transformer": (_Attending, True),
}

SETTINGS = [
    ("sgd", oracles.SGD(lr=0.1)),
    ("sgd", oracles.SGD(lr=0.1, momentum=0.9, weight_decay=0.01)),
    ("sgd", oracles.SGD(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.05)),
    ("sgd", oracles.SGD(lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01)),
    ("adam", oracles.Adam(lr=0.01)),
    ("adam", oracles.Adam(lr=0.01, weight_decay=0.1, eps=1e-3)),
    ("adam", oracles.Adam(lr=0.01, weight_decay=0.02, amsgrad=True, betas=(0.7, 0.6))),
    ("adamw", oracles.Adam(lr=0.01, weight_decay=0.3, decoupled=True)),
    ("adamw", oracles.Adam(lr=0.01, weight_decay=0.3, decoupled=True, amsgrad=True, betas=(0.8, 0.5))),
]


def _named(setting: tuple[str, object]) -> str:
    name, rule = setting
    changed = {k: v for k, v in vars(rule).items() if v != getattr(type(rule)(), k) and k != "decoupled"}
    return "-".join([name, *(f"{k}={v}" for k, v in changed.items())])


def _batches(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(5)
    batch = lambda n: (torch.randn(n, 5, 5, generator=g, dtype=torch.float64).to(dtype), torch.arange(n) % 3)  # noqa: E731
    return [batch(8), batch(8), batch(8), batch(8), batch(6)]


def _learner(name: str, optimizer: str, rule: object, dtype: torch.dtype = torch.float64) -> Learner:
    build, training = ARCHITECTURES[name]
    torch.manual_seed(3)
    model = build().to(dtype).train(training)
    arguments = {k: v for k, v in vars(rule).items() if k != "decoupled"}
    return Learner("classifier", model, make_optimizer(optimizer, model.parameters(), **arguments))


def _losses(learner: Learner, x: Tensor, y: Tensor, stream: int) -> Callable[[Params], Tensor]:
    def losses(theta: Params) -> Tensor:
        with learner.at(theta, stream=stream):
            return F.cross_entropy(learner(x), y, reduction="none")

    return losses


def _train(learner: Learner, batches: list[tuple[Tensor, Tensor]], w: Tensor, trainer: oracles.Trainer | None) -> None:
    for stream, (x, y) in enumerate(batches):
        torch.manual_seed(stream)
        learner.step((w * F.cross_entropy(learner(x), y, reduction="none")).mean())
        if trainer is not None:
            trainer.step(x, y, w, stream)


WEIGHTS = torch.tensor([1.0, 0.3, 2.0, 0.0, 1.5, -0.4, 1.0, 0.8], dtype=torch.float64)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("setting", SETTINGS, ids=_named)
def test_the_weight_gradient_is_that_of_double_backward(name: str, setting: tuple[str, oracles.Rule]) -> None:
    learner = _learner(name, *setting)
    trainer = oracles.Trainer(_learner(name, *setting).model, setting[1])
    *warm, train, val = _batches()
    _train(learner, warm, WEIGHTS, trainer)
    for key, p in learner.params.items():
        torch.testing.assert_close(p.detach(), trainer.theta[key], rtol=1e-8, atol=1e-9)
    truth = trainer.weight_gradient(train, val, WEIGHTS, streams=(71, 72))
    found = weight_gradient(
        learner, _losses(learner, *train, 71), lambda t: _losses(learner, *val, 72)(t).mean(), WEIGHTS
    )
    assert oracles.relative_error(found, truth) < 1e-9


@pytest.mark.parametrize("name", ["mlp", "resnet-train"])
@pytest.mark.parametrize("setting", SETTINGS, ids=_named)
def test_it_is_exact_at_the_very_first_step_too(name: str, setting: tuple[str, oracles.Rule]) -> None:
    learner = _learner(name, *setting)
    trainer = oracles.Trainer(learner.model, setting[1])
    *_, train, val = _batches()
    truth = trainer.weight_gradient(train, val, WEIGHTS)
    found = weight_gradient(
        learner, _losses(learner, *train, 0), lambda t: _losses(learner, *val, 0)(t).mean(), WEIGHTS
    )
    assert oracles.relative_error(found, truth) < 1e-9


@pytest.mark.parametrize("setting", SETTINGS, ids=_named)
def test_clipping_is_differentiated_too(setting: tuple[str, oracles.Rule]) -> None:
    learner = _learner("cnn", *setting)
    learner.grad_clip = 0.05
    trainer = oracles.Trainer(_learner("cnn", *setting).model, setting[1], largest_norm=0.05)
    *warm, train, val = _batches()
    _train(learner, warm, WEIGHTS, trainer)
    truth = trainer.weight_gradient(train, val, WEIGHTS)
    found = weight_gradient(
        learner, _losses(learner, *train, 0), lambda t: _losses(learner, *val, 0)(t).mean(), WEIGHTS
    )
    assert oracles.relative_error(found, truth) < 1e-9
    learner.grad_clip = 1e9
    unclipped = weight_gradient(
        learner, _losses(learner, *train, 0), lambda t: _losses(learner, *val, 0)(t).mean(), WEIGHTS
    )
    assert oracles.relative_error(unclipped, truth) > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_an_unused_parameter_has_no_part_in_it(optimizer: str) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.head = nn.Linear(25, 3), nn.Linear(25, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    model = Idle().double()
    learner = Learner("c", model, make_optimizer(optimizer, model.parameters(), lr=0.01, weight_decay=0.1))
    *warm, train, val = _batches()
    _train(learner, warm, WEIGHTS, None)
    assert model.idle.weight.grad is None
    before, sensitivity = learner.snapshot(), learner.sensitivity()
    _train(learner, [train], WEIGHTS, None)
    direction = learner.pull_back(
        sensitivity, gradient(lambda t: _losses(learner, *val, 0)(t).mean(), before), before=before
    )
    found = ForwardMode()(_losses(learner, *train, 0), before, direction)
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0


# ---- the fixture with closed-form numbers

X = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]], dtype=torch.float64)
Y = torch.tensor([0, 1, 1, 2])
X_VAL, Y_VAL = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64), torch.tensor([0, 1])
H = torch.tensor([-0.080017, 0.044983, -0.079792, -0.035033], dtype=torch.float64)


@pytest.fixture
def zero() -> Learner:
    """A zero linear softmax without bias: every probability is a third."""
    model = nn.Linear(2, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    return Learner("classifier", model, torch.optim.SGD(model.parameters(), lr=1.0))


def _fixture_gradient(learner: Learner, w: Tensor) -> Tensor:
    val = _losses(learner, X_VAL, Y_VAL, 0)
    return weight_gradient(learner, _losses(learner, X, Y, 0), lambda t: val(t).mean(), w)


def test_the_fixture_has_its_published_numbers(zero: Learner) -> None:
    w = torch.full((4,), 0.5, dtype=torch.float64)
    grads = gradient(lambda t: (w * _losses(zero, X, Y, 0)(t)).mean(), {k: p.detach() for k, p in zero.params.items()})
    ahead, _ = zero.lookahead(grads)
    expected = [[1 / 12, -1 / 24], [1 / 12, 1 / 12], [-1 / 6, -1 / 24]]
    torch.testing.assert_close(ahead["weight"], torch.tensor(expected, dtype=torch.float64))
    assert float(_losses(zero, X_VAL, Y_VAL, 0)(ahead).mean()) == pytest.approx(1.019529, abs=5e-7)
    torch.testing.assert_close(_fixture_gradient(zero, w), H, rtol=0, atol=5e-7)


def test_normalised_weights_have_the_normalised_gradient(zero: Learner) -> None:
    raw = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
    w = mean_one(raw)
    w.backward(_fixture_gradient(zero, w))
    expected = torch.tensor([-0.086937, 0.163063, -0.085102, 0.008976], dtype=torch.float64)
    torch.testing.assert_close(raw.grad, expected, rtol=0, atol=5e-7)
    assert abs(float((raw.detach() * raw.grad).sum())) < 1e-15


@pytest.mark.parametrize("lr", [0.01, 1.0, 7.0])
def test_learning_to_reweight_follows_from_the_same_primitive(zero: Learner, lr: float) -> None:
    zero.optimizer.param_groups[0]["lr"] = lr
    u = -_fixture_gradient(zero, torch.zeros(4, dtype=torch.float64))
    w = u.clamp_min(0) / u.clamp_min(0).sum()
    torch.testing.assert_close(w, torch.tensor([0.4, 0, 0.4, 0.2], dtype=torch.float64))


def test_a_weight_that_knows_only_its_bias_learns_nothing_under_mean_one(zero: Learner) -> None:
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    w = sigmoid_weights(b.expand(4))
    w.backward(_fixture_gradient(zero, w))
    assert abs(float(b.grad)) < 1e-16
    w = torch.sigmoid(b.expand(4))
    (slope,) = torch.autograd.grad(w, b, _fixture_gradient(zero, w))
    assert float(slope) == pytest.approx(-0.037465, abs=5e-7)


def test_a_linear_weight_network_cannot_tell_twins_of_different_labels_apart(zero: Learner) -> None:
    net = WeightNet.on_features(2, hidden=0).double()
    for p in net.parameters():
        nn.init.zeros_(p)
    weigher = Learner("weigher", net, torch.optim.SGD(net.parameters(), lr=1.0))
    w = torch.sigmoid(weigher(X, Y))
    weigher.descend(w, _fixture_gradient(zero, w))
    step = {k: -p.detach() for k, p in weigher.params.items()}
    assert float(step["head.bias"]) == pytest.approx(-0.037465, abs=5e-7)
    assert abs(float(step["head.weight"][0, 0])) < 1e-16
    assert float(step["head.weight"][0, 1]) == pytest.approx(-0.019948, abs=5e-7)


def test_differences_work_at_parameters_that_are_all_zero(zero: Learner) -> None:
    theta = {k: p.detach() for k, p in zero.params.items()}
    v = {"weight": torch.randn(3, 2, dtype=torch.float64)}
    exact = ForwardMode()(_losses(zero, X, Y, 0), theta, v)
    for estimator in (OneSidedDifference(), CentralDifference()):
        assert oracles.relative_error(estimator(_losses(zero, X, Y, 0), theta, v), exact) < 1e-4


# ---- estimators


def _meta_step(name: str, dtype: torch.dtype) -> tuple[Callable[[Params], Tensor], Params, Params]:
    """Losses, theta and the direction of a real meta step, after a little training."""
    learner = _learner(name, "sgd", oracles.SGD(lr=0.1, momentum=0.9), dtype)
    *warm, train, val = _batches(dtype)
    _train(learner, warm, WEIGHTS.to(dtype), None)
    theta = learner.snapshot()
    losses = _losses(learner, *train, 71)
    ahead, pull_back = learner.lookahead(gradient(lambda t: losses(t).mean(), theta))
    return losses, theta, pull_back(gradient(lambda t: _losses(learner, *val, 72)(t).mean(), ahead))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_float32_differences_point_where_the_truth_does(name: str) -> None:
    truth = ForwardMode()(*_meta_step(name, torch.float64))
    losses, theta, v = _meta_step(name, torch.float32)
    base = losses(theta)
    found = {e.name: e(losses, theta, v, base=base).double() for e in ESTIMATORS.values()}
    errors = {k: float((p - truth).norm() / truth.norm()) for k, p in found.items()}
    for products in found.values():
        assert float(F.cosine_similarity(products, truth, dim=0)) > 0.999
    assert errors["exact"] < 1e-5
    assert errors["central"] < 1e-2
    assert errors["one-sided"] < 2e-2


def test_on_a_convolutional_network_of_usual_size_differences_reach_their_stated_accuracy() -> None:
    model = build("cnn", num_classes=3, input_shape=(3, 12, 12)).train()
    learner = Learner("c", model, make_optimizer("sgd", model.parameters(), lr=0.1))
    x, y = torch.randn(2, 64, 3, 12, 12), torch.arange(128).view(2, 64) % 3
    theta, losses, val = learner.snapshot(), _losses(learner, x[0], y[0], 0), _losses(learner, x[1], y[1], 0)
    v = gradient(lambda t: val(t).mean(), theta)
    exact, base = ForwardMode()(losses, theta, v), losses(theta)
    assert float((CentralDifference()(losses, theta, v) - exact).norm() / exact.norm()) < 1.5e-3
    assert float((OneSidedDifference()(losses, theta, v, base=base) - exact).norm() / exact.norm()) < 1e-2


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_in_float64_the_error_of_a_difference_is_of_the_order_of_its_step(name: str) -> None:
    losses, theta, v = _meta_step(name, torch.float64)
    exact = ForwardMode()(losses, theta, v)
    one, both = OneSidedDifference()(losses, theta, v), CentralDifference()(losses, theta, v)
    assert 1e-9 < oracles.relative_error(one, exact) < 1e-3
    assert oracles.relative_error(both, exact) < 1e-7
    assert torch.equal(OneSidedDifference()(losses, theta, v, base=losses(theta)), one)


def test_the_products_do_not_depend_on_the_length_of_the_direction() -> None:
    losses, theta, v = _meta_step("cnn", torch.float64)
    for scale in (1e-12, 1e12):
        scaled = {k: t * scale for k, t in v.items()}
        for estimator in ESTIMATORS.values():
            found = estimator(losses, theta, scaled) / scale
            torch.testing.assert_close(found, estimator(losses, theta, v), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_direction_of_zeros_has_products_of_zero(name: str) -> None:
    losses, theta, v = _meta_step("mlp", torch.float32)
    zeros = {k: torch.zeros_like(t) for k, t in v.items()}
    assert torch.equal(ESTIMATORS[name](losses, theta, zeros, base=losses(theta)), torch.zeros(8))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_leave_no_graph_behind(name: str) -> None:
    losses, theta, v = _meta_step("mlp", torch.float32)
    leaves = {k: t.clone().requires_grad_() for k, t in theta.items()}
    found = ESTIMATORS[name](losses, leaves, v, base=losses(leaves))
    assert not found.requires_grad
    assert not torch.autograd.forward_ad.unpack_dual(found).tangent
    assert all(t.grad is None for t in leaves.values())


class _Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.head = cell(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build_it", [_Attending, lambda: _Recurrent(nn.LSTM), lambda: _Recurrent(nn.GRU)])
def test_forward_mode_also_takes_modules_whose_fast_kernels_lack_it(
    build_it: Callable[[], nn.Module], training: bool, dtype: torch.dtype
) -> None:
    model = build_it().to(dtype).train(training)
    learner = Learner("c", model, torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = _batches(dtype)[0]
    losses, theta = _losses(learner, x, y, 0), learner.snapshot()
    v = {k: torch.randn_like(t) for k, t in theta.items()}
    exact, both = ForwardMode()(losses, theta, v), CentralDifference()(losses, theta, v)
    assert oracles.relative_error(both, exact) < (1e-7 if dtype == torch.float64 else 0.05)
    assert torch.backends.mkldnn.enabled
    assert torch.backends.mha.get_fastpath_enabled()


# ---- the probe


def _probe(losses: Callable[[Params], Tensor], theta: Params, v: Params) -> Choice:
    return probe(losses, theta, v, losses(theta).detach())


def test_the_probe_takes_the_cheap_difference_in_float32() -> None:
    assert _probe(*_meta_step("resnet-train", torch.float32)).estimator == OneSidedDifference()


def test_the_probe_takes_the_exact_products_in_float64_and_under_mixed_precision() -> None:
    assert _probe(*_meta_step("mlp", torch.float64)).estimator == ForwardMode()
    assert probe(*_meta_step("mlp", torch.float32), None, differences=False).estimator == ForwardMode()


def test_the_probe_takes_the_central_difference_where_the_training_losses_are_no_base() -> None:
    assert probe(*_meta_step("mlp", torch.float32), None).estimator == CentralDifference()


def test_the_probe_does_not_trust_differences_of_losses_that_cannot_be_reproduced() -> None:
    losses, theta, v = _meta_step("mlp", torch.float32)
    choice = _probe(lambda t: losses(t) + 0.01 * torch.rand(8), theta, v)
    assert choice.estimator == ForwardMode()
    assert "identical passes" in choice.reason


class _NoJvp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # noqa: ANN001, ANN205
        return 2 * x

    @staticmethod
    def backward(ctx, g):  # noqa: ANN001, ANN205
        return 2 * g


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_probe_takes_differences_where_there_are_no_forward_derivatives(dtype: torch.dtype) -> None:
    losses, theta, v = _meta_step("resnet-train", dtype)
    choice = _probe(lambda t: _NoJvp.apply(losses(t)), theta, v)
    assert choice.estimator == (OneSidedDifference() if dtype == torch.float32 else CentralDifference())
    assert probe(lambda t: _NoJvp.apply(losses(t)), theta, v, None).estimator == CentralDifference()


def test_the_probe_takes_two_passes_where_one_is_not_enough() -> None:
    losses, theta, v = _meta_step("resnet-train", torch.float32)
    stale = losses(theta).detach() + 2e-6 * torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1])
    assert probe(losses, theta, v, stale).estimator == CentralDifference()


def test_the_probe_sees_that_the_losses_of_fitted_examples_have_no_digits_left() -> None:
    y = torch.arange(9) % 3
    x = F.one_hot(y).float() + 0.05 * torch.randn(9, 3)
    theta, v = {"weight": 15 * torch.eye(3)}, {"weight": torch.randn(3, 3)}
    choice = _probe(lambda t: F.cross_entropy(x @ t["weight"].T, y, reduction="none"), theta, v)
    assert choice.estimator == ForwardMode()
    assert choice.cosine < 0.999
    assert choice.passes == 6


@pytest.mark.parametrize("scale", [1e-14, 1e-8, 1.0, 1e12])
def test_the_probe_does_not_mind_the_scale_of_the_products(scale: float) -> None:
    losses, theta, v = _meta_step("resnet-train", torch.float32)
    small = {k: t * scale for k, t in v.items()}
    stale = losses(theta).detach() + 2e-6 * torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1])
    assert _probe(losses, theta, small).estimator == OneSidedDifference()
    assert probe(losses, theta, small, stale).estimator == CentralDifference()


def test_products_that_rounding_has_made_zero_do_not_agree_with_the_true_ones() -> None:
    theta, v = {"t": torch.ones(3)}, {"t": torch.tensor([1.0, 1e-6, 0.0])}
    losses = lambda t: torch.stack([t["t"][1] + 50, t["t"][2] + 50, t["t"][2] - 50])  # noqa: E731
    assert not OneSidedDifference()(losses, theta, v).any()
    assert _probe(losses, theta, v).estimator == ForwardMode()


def test_the_probe_is_content_with_differences_where_everything_is_zero() -> None:
    losses, theta, v = _meta_step("mlp", torch.float32)
    choice = _probe(losses, theta, {k: torch.zeros_like(t) for k, t in v.items()})
    assert choice.estimator == OneSidedDifference()


# ---- through a run


def _open_run(name: str, optimizer: Any, rule: oracles.Rule, **recipe: Any) -> tuple[Run, oracles.Trainer]:
    """A run in float64 on 24 training and 16 validation examples, and the oracle at the same parameters."""
    x, y = torch.randn(40, 5, 5, generator=torch.Generator().manual_seed(2)), torch.arange(40) % 3
    data = Data("toy", TensorPool(x, y), None, {"test": TensorPool(x, y)})
    given = {
        k: v for k, v in vars(rule).items() if k not in ("lr", "momentum", "nesterov", "weight_decay", "decoupled")
    }
    known = {k: getattr(rule, k) for k in ("lr", "momentum", "nesterov", "weight_decay") if hasattr(rule, k)}
    chosen = {"optimizer": optimizer, "optimizer_args": given, **known, **recipe}
    settings = Recipe(**{"epochs": 3, "batch_size": 8, "val_batch_size": 6, "precision": "float64", **chosen})
    training = ARCHITECTURES[name][1]

    def build_model() -> nn.Module:
        torch.manual_seed(3)
        return ARCHITECTURES[name][0]()

    job = Setup(ERM(), data, build_model, "own", settings, 0, "toy", torch.device("cpu"))
    run = open_run(job, lambda run, *, on, epochs, method: torch.empty(0, 0))
    run.classifier.model.train(training)
    run.use(Split(torch.arange(24), torch.arange(24, 40)), at=0)
    twin = build_model().double().train(training)
    return run, oracles.Trainer(twin, rule, largest_norm=settings.grad_clip)


def _weights(update: int) -> Tensor:
    return 2 * torch.rand(8, generator=torch.Generator().manual_seed(update), dtype=torch.float64)


def _begin(run: Run, trainer: oracles.Trainer) -> Seen:
    """The next training forward, at the learning rate of this update."""
    run.classifier.schedule.at(run.updates)
    trainer.rule = replace(trainer.rule, lr=run.classifier.schedule.lr)
    return run.forward(run.train_batch())


def _finish(run: Run, trainer: oracles.Trainer, seen: Seen) -> None:
    trainer.step(seen.batch.x, seen.batch.y, _weights(run.updates), seen.stream)
    for key, p in run.classifier.params.items():
        torch.testing.assert_close(p.detach(), trainer.theta[key], rtol=1e-8, atol=1e-9)
    run.updates += 1


def _truth(run: Run, trainer: oracles.Trainer, seen: Seen, val: Batch, **how: Any) -> Tensor:
    streams = (seen.stream, rng.key(run.seed, "dropout-validation", run.updates))
    pairs = (seen.batch.x, seen.batch.y), (val.x, val.y)
    return trainer.weight_gradient(*pairs, _weights(run.updates), streams=streams, **how)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize(
    ("name", "setting"),
    [*(("dropout", s) for s in SETTINGS), ("resnet-train", SETTINGS[3]), ("resnet-train", SETTINGS[6])],
    ids=lambda v: v if isinstance(v, str) else _named(v),
)
def test_in_both_orders_a_run_finds_the_gradient_of_the_step_it_takes(
    name: str, setting: tuple[str, oracles.Rule], clip: float | None
) -> None:
    run, trainer = _open_run(name, *setting, grad_clip=clip)
    for _ in range(3):
        seen = _begin(run, trainer)
        ahead = run.look_ahead(seen, _weights(run.updates))
        truth = _truth(run, trainer, seen, ahead.batch)
        assert oracles.relative_error(run.weight_gradient(ahead), truth) < 1e-9

        taken = run.update(seen, _weights(run.updates), remember=True)
        back = run.look_back(taken)
        truth = _truth(run, trainer, seen, back.batch)
        assert oracles.relative_error(run.weight_gradient(back), truth) < 1e-9
        _finish(run, trainer, seen)
    assert run.chooser.name == "exact"


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_plain_updates_between_the_meta_updates_do_not_matter(name: str) -> None:
    run, trainer = _open_run(name, *SETTINGS[3])
    for update in range(6):
        seen = _begin(run, trainer)
        taken = run.update(seen, _weights(update), remember=update % 3 == 2)
        if update % 3 == 2:
            back = run.look_back(taken)
            truth = _truth(run, trainer, seen, back.batch)
            assert oracles.relative_error(run.weight_gradient(back), truth) < 1e-9
        _finish(run, trainer, seen)


def test_the_memory_order_of_images_does_not_matter() -> None:
    run, trainer = _open_run("resnet-train", *SETTINGS[6], channels_last=True, grad_clip=0.1)
    for _ in range(2):
        seen = _begin(run, trainer)
        back = run.look_back(run.update(seen, _weights(run.updates), remember=True))
        assert oracles.relative_error(run.weight_gradient(back), _truth(run, trainer, seen, back.batch)) < 1e-9
        _finish(run, trainer, seen)


@pytest.mark.parametrize("order", ["fused", "strict"])
def test_any_scalar_of_the_validation_losses_can_be_the_objective(order: str) -> None:
    run, trainer = _open_run("mlp", *SETTINGS[1])
    objective = lambda losses: losses.square().sum() + trimmed_mean(losses, 0.4)  # noqa: E731
    seen, w = _begin(run, trainer), _weights(0)
    if order == "fused":
        look = run.look_back(run.update(seen, w, remember=True), objective)
    else:
        look = run.look_ahead(seen, w, objective)
    truth = _truth(run, trainer, seen, look.batch, objective=objective)
    assert oracles.relative_error(run.weight_gradient(look), truth) < 1e-9


@pytest.mark.parametrize("estimator", ["one-sided", "central"])
def test_a_run_in_float32_comes_close(estimator: str) -> None:
    run, trainer = _open_run("resnet-train", *SETTINGS[1], precision="float32", estimator=estimator)
    seen = _begin(run, trainer)
    taken = run.update(seen, _weights(0).float(), remember=True)
    back = run.look_back(taken)
    truth = _truth(run, trainer, seen, back.batch)
    found = run.weight_gradient(back).double()
    assert float((found - truth).norm() / truth.norm()) < 1e-2
    assert run.cost.virtual_forward == len(back.batch) + len(seen) * ESTIMATORS[estimator].passes


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_weights_that_are_all_zero_take_no_step_and_give_finite_gradients(optimizer: str) -> None:
    run, trainer = _open_run("mlp", optimizer, oracles.Adam(lr=0.01) if optimizer == "adam" else oracles.SGD(0.01))
    for _ in range(2):
        seen, before = _begin(run, trainer), run.classifier.snapshot()
        taken = run.update(seen, torch.zeros(8, dtype=torch.float64), remember=True)
        assert all(torch.equal(before[k], p) for k, p in run.classifier.params.items())
        assert torch.isfinite(run.weight_gradient(run.look_back(taken))).all()
        run.updates += 1


# ---- other ways through a run


@pytest.mark.parametrize("order", ["fused", "strict"])
@pytest.mark.parametrize("name", ["mlp", "dropout", "transformer"])
def test_ghost_products_of_a_run_are_the_gradient_of_its_step(name: str, order: str) -> None:
    run, trainer = _open_run(name, *SETTINGS[3], estimator="ghost")
    for _ in range(3):
        run.classifier.schedule.at(run.updates)
        trainer.rule = replace(trainer.rule, lr=run.classifier.schedule.lr)
        seen = run.forward(run.train_batch(), remember=True)
        if order == "strict":
            look = run.look_ahead(seen, _weights(run.updates))
        truth = _truth(run, trainer, seen, look.batch) if order == "strict" else None
        taken = run.update(seen, _weights(run.updates), remember=order == "fused")
        if order == "fused":
            look = run.look_back(taken)
            truth = _truth(run, trainer, seen, look.batch)
        assert oracles.relative_error(run.weight_gradient(look), truth) < 1e-9
        _finish(run, trainer, seen)


@pytest.mark.parametrize("estimator", ["exact", "central"])
@pytest.mark.parametrize("name", ["mlp", "resnet-train", "transformer"])
def test_the_gradient_of_the_logits_makes_that_of_the_losses(name: str, estimator: str) -> None:
    run, _ = _open_run(name, *SETTINGS[0], estimator=estimator)
    seen = run.forward(run.train_batch(), remember=True)
    look = run.look_back(run.update(seen, _weights(0), remember=True))
    slope = seen.logits.detach().softmax(1) - F.one_hot(seen.batch.y, 3)  # d l_i / d z_i
    expected = (slope * run.logit_gradient(look)).sum(1) / 8
    assert oracles.relative_error(run.weight_gradient(look), expected) < (1e-9 if estimator == "exact" else 1e-4)


def test_ghost_products_take_no_backward_pass_of_their_own_unless_a_weight_is_zero() -> None:
    for least, extra in ((0.1, 0), (0.0, 4)):
        run, trainer = _open_run("mlp", *SETTINGS[3], estimator="ghost")
        seen, w = run.forward(run.train_batch(), remember=True), _weights(0) + 0.1
        w[2] = least
        back = run.look_back(run.update(seen, w, remember=True))
        streams = (seen.stream, rng.key(run.seed, "dropout-validation", 0))
        pairs = (seen.batch.x, seen.batch.y), (back.batch.x, back.batch.y)
        truth = trainer.weight_gradient(*pairs, w, streams=streams)
        assert oracles.relative_error(run.weight_gradient(back), truth) < 1e-9
        assert run.cost.virtual_backward == len(back.batch) + extra


# ---- gradient accumulation


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_a_batch_in_parts_gives_the_same_steps_and_gradients(name: str) -> None:
    run, trainer = _open_run(name, *SETTINGS[3], accumulate=3, grad_clip=0.1)
    for _ in range(3):
        seen = _begin(run, trainer)
        ahead = run.look_ahead(seen, _weights(run.updates))
        assert oracles.relative_error(run.weight_gradient(ahead), _truth(run, trainer, seen, ahead.batch)) < 1e-9
        back = run.look_back(run.update(seen, _weights(run.updates), remember=True))
        assert oracles.relative_error(run.weight_gradient(back), _truth(run, trainer, seen, back.batch)) < 1e-9
        _finish(run, trainer, seen)


@pytest.mark.parametrize("name", ["dropout", "resnet-train"])
def test_with_batch_statistics_and_dropout_the_gradient_is_that_of_the_parts(name: str) -> None:
    def after(w: Tensor) -> tuple[Tensor, Tensor]:
        run, _ = _open_run(name, "sgd", oracles.SGD(lr=0.1), accumulate=2)
        look = run.look_ahead(run.forward(run.train_batch()), w)
        return look.losses.mean(), run.weight_gradient(look)

    w, step = _weights(0), 1e-6
    found = after(w)[1]
    for i in range(8):
        nudge = step * F.one_hot(torch.tensor(i), 8)
        assert float(after(w + nudge)[0] - after(w - nudge)[0]) / (2 * step) == pytest.approx(float(found[i]), rel=1e-4)


def test_parts_cost_one_more_forward_pass_of_each_batch() -> None:
    run, _ = _open_run("mlp", *SETTINGS[0], accumulate=2, estimator="exact")
    seen = run.forward(run.train_batch())
    look = run.look_back(run.update(seen, _weights(0), remember=True))
    run.weight_gradient(look)
    assert (run.cost.forward, run.cost.backward) == (16, 8)
    assert (run.cost.virtual_forward, run.cost.virtual_backward) == (12 + 16, 6)  # validation twice, products


@pytest.mark.parametrize("recipe", [{"estimator": "ghost"}, {"meta_share": 0.5}])
def test_parts_keep_no_activations(recipe: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="use train.accumulate=1"):
        _open_run("cnn", *SETTINGS[0], accumulate=2, **recipe)


# ---- the present parameters instead of the next ones


@pytest.mark.parametrize("name", ["mlp", "dropout"])
def test_looking_here_gives_the_gradient_at_weights_zero(name: str) -> None:
    run, trainer = _open_run(name, "sgd", oracles.SGD(lr=0.1))
    seen = _begin(run, trainer)
    look = run.look_here(seen)
    streams = (seen.stream, rng.key(run.seed, "dropout-validation", 0))
    pairs = (seen.batch.x, seen.batch.y), (look.batch.x, look.batch.y)
    truth = trainer.weight_gradient(*pairs, torch.zeros(8, dtype=torch.float64), streams=streams)
    assert oracles.relative_error(run.weight_gradient(look), truth) < 1e-9


@pytest.mark.parametrize(("optimizer", "rule"), [SETTINGS[3], ("adam", oracles.Adam(lr=0.05))])
def test_a_plain_look_ahead_leaves_momentum_and_decay_out(optimizer: str, rule: oracles.Rule) -> None:
    run, trainer = _open_run("mlp", optimizer, rule)
    for _ in range(2):
        seen = _begin(run, trainer)
        look = run.look_ahead(seen, _weights(run.updates), plain=True)
        streams = (seen.stream, rng.key(run.seed, "dropout-validation", run.updates))
        pairs = (seen.batch.x, seen.batch.y), (look.batch.x, look.batch.y)
        plain = oracles.Trainer(run.classifier.model, oracles.SGD(lr=run.lr))
        truth = plain.weight_gradient(*pairs, _weights(run.updates), streams=streams)
        assert oracles.relative_error(run.weight_gradient(look), truth) < 1e-9
        run.update(seen, _weights(run.updates))
        _finish(run, trainer, seen)


def test_a_step_can_follow_a_gradient_of_the_logits() -> None:
    one, _ = _open_run("resnet-train", *SETTINGS[3])
    two, _ = _open_run("resnet-train", *SETTINGS[3])
    w = _weights(0)
    seen = one.forward(one.train_batch())
    slope = seen.logits.detach().softmax(1) - F.one_hot(seen.batch.y, 3)
    one.update(seen, w, along=w[:, None] * slope / 8)
    two.update(two.forward(two.train_batch()), w)
    for key, p in one.classifier.params.items():
        torch.testing.assert_close(p, two.classifier.params[key], rtol=1e-10, atol=1e-12)


# ---- switches of torch


@pytest.fixture
def reduced() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("reduced")
def test_differences_are_taken_in_full_float32_and_the_setting_comes_back() -> None:
    run, trainer = _open_run("resnet-train", *SETTINGS[1], precision="float32")
    seen = _begin(run, trainer)
    back = run.look_back(run.update(seen, _weights(0).float(), remember=True))
    found = run.weight_gradient(back).double()
    truth = _truth(run, trainer, seen, back.batch)
    assert float((found - truth).norm() / truth.norm()) < 1e-2
    assert run.chooser.name == "central"  # the training losses were rounded, and are no base
    assert is_reduced(torch.device("cpu"))


@pytest.mark.usefixtures("reduced")
def test_an_error_inside_puts_the_switches_back() -> None:
    def fail() -> None:
        with full_float32():
            assert not is_reduced(torch.device("cpu"))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert is_reduced(torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == "high"


# ---- compiled


@pytest.mark.parametrize("estimator", ["exact", "central"])
def test_a_compiled_classifier_finds_the_same_gradients(estimator: str) -> None:
    run, trainer = _open_run("mlp", *SETTINGS[3], compile="aot_eager", estimator=estimator)
    for _ in range(2):
        run.classifier.schedule.at(run.updates)
        trainer.rule = replace(trainer.rule, lr=run.classifier.schedule.lr)
        seen = run.forward(run.train_batch(), remember=True)
        back = run.look_back(run.update(seen, _weights(run.updates), remember=True))
        error = oracles.relative_error(run.weight_gradient(back), _truth(run, trainer, seen, back.batch))
        assert error < (1e-4 if estimator == "central" else 1e-9)
        _finish(run, trainer, seen)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [({"compile": "inductr"}, "did you mean 'inductor'"), ({"compile": "eager", "meta_share": 0.5}, "meta_share=1")],
)
def test_what_cannot_be_compiled_is_said_before_the_first_step(recipe: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        _open_run("cnn", *SETTINGS[0], **recipe)


# ---- what an update must not do in silence


def test_a_weight_that_is_no_number_ends_the_run() -> None:
    run, _ = _open_run("mlp", *SETTINGS[0])
    w = _weights(0)
    w[3] = float("nan")
    with pytest.raises(NumericsError, match="a weight is not finite at update 0"):
        run.update(run.forward(run.train_batch()), w)


def test_after_a_skipped_update_nothing_is_left_of_the_one_before() -> None:
    found: list[Tensor] = []
    for size in (1.0, 50.0):
        run, _ = _open_run("mlp", "sgd", oracles.SGD(0.01), grad_clip=0.05)
        before = run.classifier.snapshot()
        run.update(run.forward(run.train_batch()), torch.full((8,), size, dtype=torch.float64))
        with torch.no_grad():
            for k, p in run.classifier.params.items():
                p.copy_(before[k])
        seen = run.forward(run.train_batch())
        found.append(run.weight_gradient(run.look_back(run.update(seen, torch.zeros_like(seen.losses), remember=True))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)


class _Sum(nn.Module):
    """A layer whose weight is the sum of two parameters, which share one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(4, 25)), nn.Parameter(torch.zeros(4, 25))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.linear(x.flatten(1), self.one + self.two)))


def _run_of(model: type[nn.Module], monkeypatch: pytest.MonkeyPatch, **recipe: Any) -> tuple[Run, oracles.Trainer]:
    monkeypatch.setitem(ARCHITECTURES, "own", (model, True))
    return _open_run("own", "sgd", oracles.SGD(0.1), **recipe)


def test_parameters_that_share_a_gradient_are_clipped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run, trainer = _run_of(_Sum, monkeypatch, estimator="ghost", grad_clip=0.1)
    for _ in range(2):
        run.classifier.schedule.at(run.updates)
        trainer.rule = replace(trainer.rule, lr=run.classifier.schedule.lr)
        seen = run.forward(run.train_batch(), remember=True)
        back = run.look_back(run.update(seen, _weights(run.updates) + 0.1, remember=True))
        run.weight_gradient(back)
        trainer.step(seen.batch.x, seen.batch.y, _weights(run.updates) + 0.1, seen.stream)
        for key, p in run.classifier.params.items():
            torch.testing.assert_close(p.detach(), trainer.theta[key], rtol=1e-8, atol=1e-10)
        run.updates += 1


class _Mixing(nn.Module):
    """Normalises by statistics of its batch, in plain tensor arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(25, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x.flatten(1)))
        return self.head((h - h.mean(0)) / (h.std(0) + 1e-3))


def test_a_run_refuses_ghost_products_of_a_module_that_mixes_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = _run_of(_Mixing, monkeypatch, estimator="ghost")
    seen = run.forward(run.train_batch(), remember=True)
    with pytest.raises(ConfigError, match="no ghost products: examples are mixed"):
        run.update(seen, _weights(0) + 0.1, remember=True)


def test_looking_here_takes_each_parameters_own_learning_rate() -> None:
    def two_rates(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": parameters[:2], "lr": lr}, {"params": parameters[2:], "lr": 3 * lr}])

    run, _ = _open_run("mlp", "sgd", oracles.SGD(0.1))
    other, _ = _open_run("mlp", two_rates, oracles.SGD(0.1), optimizer_args={})
    found = [r.look_here(r.forward(r.train_batch())).direction for r in (run, other)]
    for place, key in enumerate(run.classifier.params):
        torch.testing.assert_close(found[1][key], found[0][key] * (1 if place < 2 else 3), rtol=1e-12, atol=1e-15)
