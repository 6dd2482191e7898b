"""What is virtual changes nothing, bit for bit: parameters, gradients, optimiser, buffers, modes, global randomness."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from molere import rng
from molere.data.pool import Data, TensorPool
from molere.errors import ConfigError
from molere.learner import Learner
from molere.metagrad import ESTIMATORS, gradient, weight_gradient
from molere.method import Run
from molere.methods.erm import ERM
from molere.opening import Setup, open_run
from molere.optim import Params, make_optimizer
from molere.recipe import Recipe
from molere.split import Split

# ---- a dozen architectures


class _Sequence(nn.Module):
    """A recurrent layer over the rows of an image."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.features = layer(24, 6, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.movedim(1, 2).flatten(2))[0][:, -1])


class _Tied(nn.Module):
    """One weight in two places, and a bias in three."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(12, 12) for _ in range(3))
        self.second.weight = self.first.weight
        self.second.bias = self.third.bias = self.first.bias
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(torch.tanh(self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))))


class _Counting(nn.Module):
    """Buffers that a forward pass rebinds, fills and writes to in place, in every mode; one is in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", None)
        self.inner = nn.Identity()
        self.register_buffer("shared", torch.ones(12))
        self.inner.register_buffer("shared", self.shared)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 2).flatten(1) * self.shared.clone()
        self.passes = self.passes + 1
        self.cache = x.detach().sum(0)
        self.inner.shared.mul_(1.01)
        assert self.shared is self.inner.shared
        return self.head(x)


def _vit() -> nn.Module:
    model = zoo.VisionTransformer(
        image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3, dropout=0.1
    )
    nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


def _frozen() -> nn.Module:
    model = _conv(nn.BatchNorm2d(6))
    for p in model[0].parameters():
        p.requires_grad_(False)
    return model


def _conv(norm: nn.Module, *, wrap: Callable[[nn.Module], nn.Module] = lambda m: m, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        wrap(nn.Conv2d(3, 6, 3)), norm, nn.ReLU(), wrap(nn.Conv2d(6, 6, 3)), nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3)),
    "dropout and BatchNorm": lambda: _conv(nn.BatchNorm2d(6), dropout=0.3),
    "GroupNorm": lambda: _conv(nn.GroupNorm(2, 6)),
    "InstanceNorm with statistics": lambda: _conv(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
    "weight_norm": lambda: _conv(nn.Identity(), wrap=parametrizations.weight_norm),
    "spectral_norm": lambda: _conv(nn.BatchNorm2d(6), wrap=parametrizations.spectral_norm),
    "old weight_norm": lambda: _conv(nn.Identity(), wrap=_old_weight_norm),
    "frozen": _frozen,
    "tied": _Tied,
    "counting": _Counting,
    "LSTM": lambda: _Sequence(nn.LSTM),
    "GRU": lambda: _Sequence(nn.GRU),
    "ViT": _vit,
    "mobilenet": lambda: zoo.mobilenet_v3_small(num_classes=3),
    "shufflenet": lambda: zoo.shufflenet_v2_x0_5(num_classes=3),
}


def _old_weight_norm(module: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(module)


NO_FORWARD_MODE = {"weight_norm", "old weight_norm", "spectral_norm"}
OPTIMIZERS = ["sgd", "adam", "rmsprop"]


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(name: str) -> Run:
    """A run after two updates, with gradients and momentum in place."""
    return _run(ARCHITECTURES[name])


def _run(build: Callable[[], nn.Module], **recipe: Any) -> Run:
    torch.manual_seed(1)
    x, y = torch.randn(24, 3, 8, 8), torch.arange(24) % 3
    data = Data("toy", TensorPool(x, y), None, {"test": TensorPool(x, y)})
    settings = Recipe(**{"epochs": 4, "batch_size": 6, "lr": 0.01, **recipe})
    job = Setup(ERM(), data, build, "own", settings, 0, "toy", torch.device("cpu"))
    run = open_run(job, lambda run, *, on, epochs, method: torch.empty(0, 0))
    run.use(Split(torch.arange(15), torch.arange(15, 24)), at=0)
    for _ in range(2):
        run.update(run.forward(run.train_batch()))
        run.updates += 1
    return run


# ---- what must not change


def _tensors_of(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for k, v in value.items():
            yield from _tensors_of(v, f"{where}.{k}")
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            yield from _tensors_of(v, f"{where}[{i}]")
    else:
        yield where, value


def _all_of(learner: Learner) -> dict[str, Any]:
    """Everything that a virtual pass could touch: values, identities, versions, modes, randomness."""
    model, found = learner.model, {}
    for name, p in model.named_parameters(remove_duplicate=False):
        found |= {f"value of {name}": p, f"id of {name}": id(p), f"version of {name}": p._version}
        found |= {f"gradient of {name}": p.grad, f"needs gradient {name}": p.requires_grad}
    for path, module in model.named_modules(remove_duplicate=False):
        found[f"mode of {path}"] = module.training
        for name, b in module._buffers.items():
            found |= {f"buffer {path}.{name}": b, f"id of buffer {path}.{name}": id(b)}
    found |= dict(_tensors_of(learner.optimizer.state_dict(), "optimizer"))
    found["ids of groups"] = [id(p) for g in learner.optimizer.param_groups for p in g["params"]]
    found["ids of states"] = [id(p) for p in learner.optimizer.state]
    found["randomness"] = torch.get_rng_state()
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in found.items()}


@contextmanager
def _unchanged(learner: Learner, *, but: str | None = None) -> Iterator[None]:
    """Everything inside the block leaves the learner as it is, but what has names beginning with `but`."""
    before = _all_of(learner)
    yield
    after = _all_of(learner)
    assert before.keys() == after.keys()
    for k, v in before.items():
        if but is not None and k.startswith(but):
            continue
        same = torch.equal(v, after[k]) if isinstance(v, Tensor) and isinstance(after[k], Tensor) else v == after[k]
        assert same, f"{k} changed"


def _twin(name: str, run: Run) -> nn.Module:
    twin = ARCHITECTURES[name]()
    twin.load_state_dict(run.classifier.model.state_dict(), strict=name != "counting")
    return twin


def _batch(run: Run) -> tuple[Tensor, Tensor]:
    batch = run.pool.batch(torch.arange(6))
    return batch.x, batch.y


def _losses(learner: Learner, x: Tensor, y: Tensor) -> Callable[[Params], Tensor]:
    def losses(theta: Params) -> Tensor:
        with learner.at(theta, stream=11):
            return F.cross_entropy(learner(x), y, reduction="none")

    return losses


def test_a_pass_elsewhere_changes_nothing(run: Run) -> None:
    learner, (x, y) = run.classifier, _batch(run)
    elsewhere = {k: torch.randn_like(p) for k, p in learner.params.items()}
    leaves = {k: t.clone().requires_grad_() for k, t in elsewhere.items()}
    for theta, stream, evaluating in (
        (None, None, None),
        (elsewhere, 3, nn.BatchNorm2d),
        (elsewhere, None, nn.Module),
        (leaves, 3, None),
    ):
        with _unchanged(learner), learner.at(theta, stream=stream, evaluating=evaluating):
            loss = F.cross_entropy(learner(x), y)
    with _unchanged(learner):
        loss.backward()
    with _unchanged(learner), torch.no_grad(), learner.at(elsewhere):
        learner(x)


def test_a_pass_elsewhere_is_that_of_a_module_with_those_parameters(run: Run, name: str) -> None:
    learner, (x, _) = run.classifier, _batch(run)
    twin = _twin(name, run)
    with torch.no_grad():
        for p in twin.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    elsewhere = {k: p.detach() for k, p in twin.named_parameters() if p.requires_grad}
    assert elsewhere.keys() == learner.params.keys()
    torch.manual_seed(7)
    expected = twin(x)
    with torch.no_grad(), learner.at(elsewhere, stream=7):
        torch.testing.assert_close(learner(x), expected.detach())
    torch.manual_seed(7)
    with torch.no_grad(), learner.at(elsewhere):
        torch.testing.assert_close(learner(x), expected.detach())


def test_a_look_ahead_changes_nothing(run: Run) -> None:
    learner, (x, y) = run.classifier, _batch(run)
    theta, losses = {k: p.detach() for k, p in learner.params.items()}, _losses(learner, x, y)
    with _unchanged(learner):
        grads = gradient(lambda t: losses(t).mean(), theta)
        ahead, pull_back = learner.lookahead(grads)
        pull_back({k: torch.ones_like(t) for k, t in ahead.items()})
    assert any(not torch.equal(ahead[k], theta[k]) for k in theta)


def test_a_weight_gradient_changes_nothing(run: Run, name: str) -> None:
    learner, (x, y) = run.classifier, _batch(run)
    losses = _losses(learner, x, y)
    for estimator in ESTIMATORS.values():
        with _unchanged(learner):
            if estimator.name == "exact" and name in NO_FORWARD_MODE:
                with pytest.raises(ConfigError, match="^no exact products for this module; use the central difference"):
                    weight_gradient(learner, losses, lambda t: losses(t).mean(), torch.ones(6), along=estimator)
                continue
            found = weight_gradient(learner, losses, lambda t: losses(t).mean(), torch.ones(6), along=estimator)
        assert found.abs().max() > 0


@pytest.mark.parametrize("meta_bn", ["batch", "eval"])
def test_the_virtual_passes_of_a_run_change_nothing(name: str, meta_bn: str) -> None:
    run = _run(ARCHITECTURES[name], meta_bn=meta_bn)
    learner = run.classifier
    seen = run.forward(run.train_batch())
    w = torch.ones(6)
    with _unchanged(learner):
        run.look(seen)
        ahead = run.look_ahead(seen, w)
        run.weight_gradient(ahead)
        run._passes.losses_of(seen, {})({k: p.detach() for k, p in learner.params.items()})
        run.predict(torch.arange(24))
        run.mean_loss(torch.arange(24))
    taken = run.update(seen, w, remember=True)  # the graph of the training pass is still good
    with _unchanged(learner, but="gradient of "):  # given back where the look-back does not read them
        back = run.look_back(taken)
        assert torch.isfinite(run.weight_gradient(back)).all()


def test_predictions_are_those_of_evaluation_mode(run: Run, name: str) -> None:
    logits, features = run.predict(torch.arange(24))
    twin = _twin(name, run).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits, twin(run.pool.batch(torch.arange(24)).x))
    assert features.shape == (24, run.feature_width)


# ---- exceptions


def test_an_exception_inside_restores_everything(run: Run) -> None:
    learner, (x, _) = run.classifier, _batch(run)
    elsewhere = {k: torch.randn_like(p) for k, p in learner.params.items()}

    def interrupted() -> None:
        with learner.at(elsewhere, stream=5, evaluating=nn.Module):
            learner(x)
            torch.rand(3)
            raise KeyboardInterrupt

    with _unchanged(learner), pytest.raises(KeyboardInterrupt):
        interrupted()


def test_an_unknown_name_is_refused_before_anything_changes(run: Run) -> None:
    learner = run.classifier
    elsewhere = {**{k: torch.randn_like(p) for k, p in learner.params.items()}, "nonsense": torch.ones(1)}
    with _unchanged(learner), pytest.raises(KeyError), learner.at(elsewhere, stream=5, evaluating=nn.Module):
        pass


def test_an_exception_of_the_module_restores_everything(run: Run, name: str) -> None:
    learner, (x, y) = run.classifier, _batch(run)

    def fails(*_: object) -> None:
        raise RuntimeError("broken")

    handle = list(learner.model.modules())[-1].register_forward_hook(fails)
    for estimator in [e for e in ESTIMATORS.values() if e.name != "exact" or name not in NO_FORWARD_MODE]:
        theta = {k: p.detach() for k, p in learner.params.items()}
        with _unchanged(learner), pytest.raises(RuntimeError, match="broken"):
            estimator(_losses(learner, x, y), theta, {k: torch.ones_like(t) for k, t in theta.items()})
    handle.remove()


def test_an_optimiser_that_fails_leaves_everything_as_it_was() -> None:
    run = _run(ARCHITECTURES["dropout and BatchNorm"])
    learner = run.classifier
    step = learner.optimizer.step

    def broken() -> None:
        step()
        raise RuntimeError("broken")

    learner.optimizer.step = broken  # pyright: ignore[reportAttributeAccessIssue]
    with _unchanged(learner), pytest.raises(RuntimeError, match="broken"):
        learner.lookahead({k: torch.ones_like(p) for k, p in learner.params.items()})


# ---- steps


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "adamw", "nadam", "asgd", "adagrad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_look_ahead_ends_where_the_step_ends(optimizer: str, dtype: torch.dtype, clip: float | None) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    made = make_optimizer(optimizer, model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    learner = Learner("c", model, made, grad_clip=clip)
    for _ in range(3):
        loss = learner(torch.randn(5, 4, dtype=dtype)).square().mean()
        grads = torch.autograd.grad(loss, list(learner.params.values()), retain_graph=True)
        with _unchanged(learner):
            ahead, _ = learner.lookahead(dict(zip(learner.params, grads, strict=True)))
        learner.step(loss)  # the look-ahead has not spoilt the graph
        assert all(torch.equal(ahead[k], p) for k, p in learner.params.items())


def test_settings_that_an_optimiser_keeps_in_its_groups_are_not_advanced_by_a_look_ahead() -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                group["steps"] = group.get("steps", 0) + 1
                group["lr"] *= 0.5
            super().step()

    model = nn.Linear(2, 2)
    learner = Learner("c", model, Counting(model.parameters(), lr=1.0))
    with _unchanged(learner):
        learner.lookahead({k: torch.ones_like(p) for k, p in learner.params.items()})
    assert "steps" not in learner.optimizer.param_groups[0]


def test_parameters_that_share_an_optimiser_with_others_are_all_left_alone() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.Adam([*model.parameters(), *other.parameters()], lr=0.1)
    learner = Learner("c", model, optimizer)
    sum(p.sum() for p in optimizer.param_groups[0]["params"]).backward()
    optimizer.step()
    before = [p.detach().clone() for p in other.parameters()]
    with _unchanged(learner):
        learner.lookahead({k: torch.ones_like(p) for k, p in learner.params.items()})
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_to_descend_is_to_step_on_the_product() -> None:
    first = nn.Linear(3, 1)
    second = copy.deepcopy(first)
    x, cotangent = torch.randn(5, 3), torch.randn(5)
    stepping = Learner("a", first, torch.optim.SGD(first.parameters(), lr=0.1))
    descending = Learner("b", second, torch.optim.SGD(second.parameters(), lr=0.1))
    for _ in range(2):
        stepping.step((stepping(x).squeeze(1) * cotangent).sum())
        descending.descend(descending(x).squeeze(1), cotangent)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_scaled_losses_take_the_same_steps_and_none_on_overflow() -> None:
    first = nn.Linear(3, 1)
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    x = torch.randn(5, 3)
    plain = Learner("a", first, torch.optim.SGD(first.parameters(), lr=0.1))
    scaled = Learner("b", second, torch.optim.SGD(second.parameters(), lr=0.1), scaled=True)
    descending = Learner("c", third, torch.optim.SGD(third.parameters(), lr=0.1), scaled=True)
    plain.step(plain(x).sum())
    scaled.step(scaled(x).sum())
    descending.descend(descending(x), torch.ones(5, 1))
    for p, q, r in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(p, r)

    before, sensitivity = scaled.snapshot(), scaled.sensitivity()
    scaled.step(scaled(x).sum() * 1e38)
    assert all(torch.equal(before[k], p) for k, p in scaled.params.items())
    ones = {k: torch.ones_like(p) for k, p in scaled.params.items()}
    assert all(not v.any() for v in scaled.pull_back(sensitivity, ones, before=before).values())
    sensitivity = scaled.sensitivity()
    scaled.step(scaled(x).sum())
    assert all(v.all() for v in scaled.pull_back(sensitivity, ones, before=before).values())


@pytest.mark.parametrize("name", ["dropout and BatchNorm", "tied", "LSTM", "spectral_norm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_learner_goes_on_from_its_saved_state(name: str, optimizer: str) -> None:
    def steps(run: Run, count: int) -> None:
        for _ in range(count):
            run.classifier.schedule.at(run.updates)
            run.update(run.forward(run.train_batch()))
            run.updates += 1

    whole, other = (_run(ARCHITECTURES[name], optimizer=optimizer) for _ in range(2))
    steps(whole, 2)
    saved = copy.deepcopy(whole.classifier.state_dict())
    steps(whole, 3)
    other.classifier.load_state_dict(saved)
    other.updates = 4
    steps(other, 3)
    for (k, a), b in zip(
        whole.classifier.model.state_dict().items(), other.classifier.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), k


def test_running_statistics_in_virtual_passes_leave_dropout_as_it_was() -> None:
    run = _run(ARCHITECTURES["dropout and BatchNorm"], meta_bn="eval")
    seen = run.forward(run.train_batch())
    params = {k: p.detach() for k, p in run.classifier.params.items()}
    twin = _twin("dropout and BatchNorm", run)
    twin[1].eval()
    rng.reseed(seen.stream)
    with torch.no_grad():
        expected = F.cross_entropy(twin(seen.batch.x), seen.batch.y, reduction="none")
        torch.testing.assert_close(run._passes.losses_of(seen, {})(params), expected)
        masked = F.cross_entropy(twin.eval()(seen.batch.x), seen.batch.y, reduction="none")
    assert not torch.allclose(expected, masked)
