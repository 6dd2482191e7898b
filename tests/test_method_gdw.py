"""GDW: class weights on the gradient of the logits, against numbers worked out by hand and a plain restatement."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import oracles
from molere.errors import ConfigError, DataError
from molere.holdouts import Given
from molere.methods.gdw import GDW, difference, mean_over_others, zero_sum
from molere.settings import make_method
from molere.steps import Look
from molere.testing import check_method
from test_methods import FIXTURE, Zero, started, step, train

PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "lr": 1.0, "scheduler": "constant", "precision": "float64"}
ROWS = st.lists(st.floats(-6, 6), min_size=4, max_size=4)


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 2))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.25), nn.Linear(12, 2))


# ---- numbers worked out by hand


def test_the_labels_weight_is_the_one_that_lets_the_applied_gradient_sum_to_zero() -> None:
    p, y = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([0])
    omega = zero_sum(torch.tensor([[7.0, 1.0, 3.0]]), p, y)
    torch.testing.assert_close(omega, torch.tensor([[1.8, 1.0, 3.0]]))
    torch.testing.assert_close(omega * difference(p, y), torch.tensor([[-0.9, 0.3, 0.6]]))


GAMMA = [
    [-0.053344, -0.014994, -0.011678],
    [0.026672, 0.029989, -0.011678],
    [-0.013299, -0.053195, -0.013299],
    [-0.026672, 0.014994, -0.023355],
]
OMEGA = [
    [0.545489, 0.551146, 0.539833],
    [0.409021, 0.474427, 0.539833],
    [0.545362, 0.545362, 0.545362],
    [0.590979, 0.448854, 0.519916],
]


@pytest.mark.parametrize("estimator", ["exact", "central", "ghost"])
def test_the_class_weights_of_six_points_are_those_computed_by_hand(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**PLAIN, "batch_size": 4, "estimator": estimator}
    method = GDW(eta=1.0, holdout=Given([4, 5]))
    training = started(method, data=FIXTURE, model=Zero, **settings)
    run, state = training.run, training.state
    run.use(method.split(run, state), at=0)
    with torch.no_grad():
        for p in state.weigher.model.parameters():
            p.zero_()  # V = sigmoid(0)
    seen: dict[str, Tensor] = {}
    moved = type(method).moved

    def noted(self: Any, run: Any, omega: Tensor, gamma: Tensor, p: Tensor, y: Tensor) -> Tensor:
        seen.update(before=omega, gamma=gamma, after=moved(self, run, omega, gamma, p, y))
        return seen["after"]

    monkeypatch.setattr(type(method), "moved", noted)
    batch = run.pool.batch(torch.arange(4))
    taken = method.step(run, state, batch)
    expected = torch.tensor(GAMMA, dtype=torch.float64)
    torch.testing.assert_close(seen["before"], torch.full((4, 3), 0.5, dtype=torch.float64))
    torch.testing.assert_close(seen["gamma"], expected, atol=1e-6, rtol=0)
    assert float(seen["gamma"].abs().sum()) == pytest.approx(0.293169, abs=2e-6)
    torch.testing.assert_close(seen["after"], torch.tensor(OMEGA, dtype=torch.float64), atol=2e-6, rtol=0)
    applied = seen["after"] * difference(torch.full((4, 3), 1 / 3, dtype=torch.float64), batch.y)
    head = run.classifier.params["head.weight"]
    torch.testing.assert_close(head, -applied.T @ batch.x.double() / 4)
    assert taken.weights is not None
    torch.testing.assert_close(taken.weights, seen["after"].gather(1, batch.y[:, None])[:, 0])


def test_the_weights_of_all_classes_together_move_as_the_weight_of_the_loss() -> None:
    training = started("gdw", model=smooth, **{**PLAIN, "lr": 0.1})
    run, state = training.run, training.state
    run.use(training.setup.method.split(run, state), at=0)
    seen = run.forward(run.train_batch())
    w = torch.linspace(0.1, 1, 16, dtype=torch.float64)
    look = run.look_ahead(seen, w, plain=True)
    change = difference(seen.logits.detach().softmax(1), seen.batch.y)
    torch.testing.assert_close((change * run.logit_gradient(look)).sum(1) / 16, run.weight_gradient(look))


@pytest.mark.parametrize("model", [smooth, with_batch_norm])
def test_class_weights_that_do_not_move_train_like_weights_of_the_loss(model: Any) -> None:
    frozen = "eta=1e-30,lr=1e-30,weight_decay=0.0"
    alike = train(f"gdw[{frozen}]", model=model, precision="float64")
    plain = train(f"gdw[q=1000,{frozen}]", model=model, precision="float64")  # the first update alone is a meta update
    for name, tensor in alike.classifier.state_dict().items():
        torch.testing.assert_close(tensor, plain.classifier.state_dict()[name], msg=name)
    assert 0 < float(alike.weights.nanmean()) < 1


# ---- the published order of operations, restated


class Restated:
    """Omega as a leaf, a step of the classifier with its graph, backward through both; no import from molere."""

    def __init__(self, model: nn.Module, weigher: nn.Module, *, updates: int, eta: float, lr: float) -> None:
        self.model, self.updates, self.eta, self.lr, self.done = model, updates, eta, lr, 0
        self.theta = {k: p.detach().clone() for k, p in model.named_parameters()}
        self.fixed = {k: b.clone() for k, b in model.named_buffers()}
        self.velocity: dict[str, oracles.State] = {k: {} for k in self.theta}
        self.weigher, self.adam = weigher, torch.optim.Adam(weigher.parameters(), lr=1e-3, weight_decay=1e-4)

    def logits(self, theta: oracles.Tensors, x: Tensor, stream: int, *, real: bool = False) -> Tensor:
        fixed = self.fixed if real else {k: b.clone() for k, b in self.fixed.items()}
        with oracles.replayed(stream):
            return functional_call(self.model, {**theta, **fixed}, (x.double(),))

    def step(self, train: tuple[Tensor, Tensor, int], val: tuple[Tensor, Tensor, int]) -> Tensor:
        """One update; the weights of the labels in Omega'."""
        x, y, stream = train
        n, lr = len(y), self.lr * 0.5 * (1 + math.cos(math.pi * self.done / self.updates))
        theta = {k: t.detach().requires_grad_() for k, t in self.theta.items()}
        logits = self.logits(theta, x, stream, real=True)
        p = logits.detach().softmax(1).clamp(max=0.999)
        error = p.clone()
        error[torch.arange(n), y] -= 1
        losses = F.cross_entropy(logits, y, reduction="none").detach()
        omega = self.label_last(self.weigher(losses[:, None]).expand(n, p.shape[1]).clone(), p, y)
        omega.retain_grad()
        cotangent = omega * error / n
        grads = torch.autograd.grad(logits, list(theta.values()), cotangent, create_graph=True)
        ahead = {k: t - lr * g for (k, t), g in zip(theta.items(), grads, strict=True)}
        self.adam.zero_grad()
        F.cross_entropy(self.logits(ahead, val[0], val[2]), val[1]).backward(retain_graph=True)
        self.adam.step()
        assert omega.grad is not None
        gamma = omega.grad
        moved = omega.detach() - torch.clamp(self.eta * gamma / gamma.abs().sum(), -0.2, 0.2)
        final = self.label_last(moved.clamp(1e-6, 1e6), p, y)
        again = self.logits({k: t.detach().requires_grad_() for k, t in self.theta.items()}, x, stream)
        torch.testing.assert_close(again, logits)
        grads = torch.autograd.grad(logits, list(theta.values()), final * error / n)
        rule = oracles.SGD(lr=lr, momentum=0.9, weight_decay=5e-4)
        for (k, t), g in zip(theta.items(), grads, strict=True):
            after, self.velocity[k] = rule(t.detach(), g, self.velocity[k])
            self.theta[k] = after
        self.done += 1
        return final[torch.arange(n), y]

    @staticmethod
    def label_last(omega: Tensor, p: Tensor, y: Tensor) -> Tensor:
        rows = torch.arange(len(y))
        others = (omega * p).sum(1) - omega[rows, y] * p[rows, y]
        mask = F.one_hot(y, p.shape[1]).bool()
        return torch.where(mask, (others / (1 - p[rows, y]))[:, None], omega)


@pytest.mark.parametrize("model", [smooth, with_batch_norm])
def test_twenty_updates_are_those_of_the_published_order_of_operations(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = started("gdw", model=model, precision="float64", lr=0.05)
    run, state = training.run, training.state
    weigher = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid()).double()
    for mine, theirs in zip(weigher.parameters(), state.weigher.model.parameters(), strict=True):
        mine.data.copy_(theirs)
    copy = model().double()
    copy.load_state_dict(run.classifier.model.state_dict())
    oracle = Restated(copy, weigher, updates=run.budget, eta=20.0, lr=0.05)
    looks: list[Look] = []
    ahead = run.look_ahead

    def noted(*args: Any, **kwargs: Any) -> Look:
        looks.append(ahead(*args, **kwargs))
        return looks[-1]

    monkeypatch.setattr(run, "look_ahead", noted)
    streams: list[int] = []
    virtual = run._passes.virtual
    monkeypatch.setattr(
        run._passes, "virtual", lambda x, theta, *, stream, grad: (
            streams.append(stream), virtual(x, theta, stream=stream, grad=grad)
        )[1]
    )  # fmt: skip
    worst = 0.0
    for _ in range(20):
        taken = step(training)
        seen, val = taken.seen, looks[-1].batch
        expected = oracle.step((seen.batch.x, seen.batch.y, seen.stream), (val.x, val.y, streams[-1]))
        assert taken.weights is not None
        worst = max(worst, oracles.relative_error(taken.weights, expected.detach()))
        for name, p in run.classifier.params.items():
            worst = max(worst, oracles.relative_error(p.detach(), oracle.theta[name]))
    for mine, theirs in zip(weigher.parameters(), state.weigher.model.parameters(), strict=True):
        worst = max(worst, oracles.relative_error(theirs.detach(), mine.detach()))
    for name, b in run.classifier.model.named_buffers():
        torch.testing.assert_close(b, oracle.fixed[name], msg=name)
    assert worst < 1e-9, worst


# ---- properties


@given(z=st.lists(ROWS, min_size=1, max_size=5), v=ROWS, label=st.integers(0, 3))
def test_applied_gradients_sum_to_zero_and_the_label_is_pulled_by_a_mean_of_the_other_weights(
    z: list[list[float]], v: list[float], label: int
) -> None:
    p = torch.tensor(z, dtype=torch.float64).softmax(1).clamp_max(0.999)
    omega = torch.tensor(v, dtype=torch.float64).exp().expand(p.shape)
    y = torch.full((len(p),), label)
    out = zero_sum(omega, p, y)
    applied = out * difference(p, y)
    assert float(applied.sum(1).abs().max()) < 1e-9 * float(applied.abs().max())
    others = omega[0, torch.arange(4) != label]
    weight = out[:, label]
    free = (p.gather(1, y[:, None]) < 0.999).squeeze(1) & (p.max(1).values < 0.999)
    assert bool((weight >= 0).all())
    assert bool((weight[free] <= others.max() * (1 + 1e-9)).all())
    assert bool((weight[free] >= others.min() * (1 - 1e-9)).all())


def test_the_weight_that_is_written_down_is_finite_for_a_fitted_example() -> None:
    training = started("gdw", model="linear")
    with torch.no_grad():
        training.run.classifier.params["head.weight"].mul_(1e4)
    taken = step(training)
    assert taken.weights is not None
    assert bool(taken.weights.isfinite().all())
    fitted = taken.seen.losses.detach() == 0
    assert bool(fitted.any())
    assert float(taken.weights[fitted].min()) > 0


def test_it_is_the_labels_class_weight_unless_the_label_is_certain() -> None:
    training = started("gdw", model=smooth, precision="float64")
    seen = training.run.forward(training.run.pool.batch(torch.arange(8)))
    omega = torch.rand(8, 2, dtype=torch.float64) + 0.1
    p = seen.logits.detach().softmax(1)
    label = zero_sum(omega, p, seen.batch.y).gather(1, seen.batch.y[:, None]).squeeze(1)
    torch.testing.assert_close(mean_over_others(omega, seen), label)


# ---- costs, needs, settings


def test_a_step_costs_what_looking_ahead_costs_once() -> None:
    cost = train("gdw", estimator="exact").cost
    n, m = 24 * 16, 24 * 9
    assert (cost.forward, cost.backward) == (n, n)
    assert cost.virtual_forward == m + 2 * n  # validation, and the products with the logits
    assert cost.virtual_backward == n + m  # the gradient of the step ahead, and that of the validation loss
    passes = cost.forward + cost.virtual_forward + 2 * (cost.backward + cost.virtual_backward)
    assert passes < 12 * n  # those of a second-order graph
    rarely = train("gdw[q=6]", estimator="exact").cost
    assert rarely.virtual_backward * 6 == cost.virtual_backward


def test_as_published_it_needs_true_labels() -> None:
    with pytest.raises(DataError, match="true labels") as caught:
        train("gdw@paper")
    assert "\n" not in str(caught.value)


def test_steps_and_clips_are_positive() -> None:
    for key in ("eta", "clip"):
        with pytest.raises(ConfigError, match=f"gdw.{key} must be a float above 0"):
            make_method(f"gdw[{key}=0.0]")


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        ("gdw", {"precision": "bfloat16"}),
        ("gdw", {"meta_bn": "eval"}),
        ("gdw", {"meta_share": 0.5}),
        ("gdw", {"estimator": "ghost"}),
        ("gdw[keep=true]", {"optimizer": "adamw", "lr": 1e-3, "grad_clip": 1.0}),
    ],
)
def test_other_recipes_train(spec: str, recipe: dict[str, Any]) -> None:
    result = train(spec, model=smooth, epochs=2, **recipe)
    assert all(math.isfinite(row["train_loss"]) for row in result.history)
    assert all(0 <= row["clipped_share"] <= 1 for row in result.history)


def test_rarer_meta_updates_keep_the_contract() -> None:
    check_method("gdw[q=3,keep=true]", model=with_batch_norm)
