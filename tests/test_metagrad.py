"""The meta-gradient against double backward, closed forms, and its own estimators against each other."""

import warnings
from collections.abc import Callable

import oracles
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from molere.learner import Learner
from molere.metagrad import (
    ESTIMATORS,
    CentralDifference,
    Choice,
    ForwardMode,
    OneSidedDifference,
    gradient,
    probe,
    weight_gradient,
)
from molere.networks import WeightNet, mean_one, sigmoid_weights
from molere.optim import Params, make_optimizer
from molere.steps import mean
from molere.weighting import Weights

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
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
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
        nn.Unflatten(1, (1, 5)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), _Residual(4), _Residual(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
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


def test_an_unused_parameter_has_no_part_in_it() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.head = nn.Linear(25, 3), nn.Linear(25, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    for optimizer in ("sgd", "adam", "rmsprop"):
        model = Idle().double()
        learner = Learner("c", model, make_optimizer(optimizer, model.parameters(), lr=0.01, weight_decay=0.1))
        *warm, train, val = _batches()
        _train(learner, warm, WEIGHTS, None)
        assert model.idle.weight.grad is None
        found = weight_gradient(
            learner, _losses(learner, *train, 0), lambda t: _losses(learner, *val, 0)(t).mean(), WEIGHTS
        )
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
    Weights(scaled=False).learn(None, weigher, w, _fixture_gradient(zero, w))  # type: ignore[arg-type]  # reads no run
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


def _of_network(h):
    torch.manual_seed(0)
    net = WeightNet.on_features(25).double()
    x, _ = _batches()[3]
    w = sigmoid_weights(net(x.flatten(1)))
    g = torch.autograd.grad(w, list(net.parameters()), h, allow_unused=True)
    return torch.cat([t.flatten() for t in g if t is not None])



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
    print(name, errors)
    phi = {k: _of_network(h) for k, h in {**found, "truth": truth}.items()}
    print("phi", {k: float((p - phi["truth"]).norm() / phi["truth"].norm()) for k, p in phi.items()})
    for products in found.values():
        assert float(F.cosine_similarity(products, truth, dim=0)) > 0.999
    assert errors["exact"] < 1e-4
    assert errors["central"] < 1e-2
    assert errors["one-sided"] < 4e-2
