"""MWN and BiLAW, one step with two networks: numbers worked out by hand, and the published order of operations."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from molere.data.pool import Batch, Data, TensorPool
from molere.errors import ConfigError
from molere.holdouts import Given
from molere.metaweights import MetaWeights
from molere.methods.bilaw import BiLAW, ascended, class_margins, in_order
from molere.methods.mwn import MWN
from molere.networks import LossNet, MarginNet
from molere.settings import make_method
from molere.split import Split, probabilistic_margin
from molere.testing import check_method
from molere.training import Training
from oracles import SGD, Adam, Trainer
from stepping import assert_same_parameters, batch_norm, begun, turn, two_layers
from test_methods import BY_HAND, FIXTURE, Zero

SIX = {"batch_size": 4, "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0, "scheduler": "constant"}


def six_points(spec: str) -> Training:
    method = replace(make_method(spec), holdout=Given([4, 5]))
    training = begun(method, data=FIXTURE, model=Zero, precision="float64", estimator="exact", **SIX)
    training.run.use(Split(torch.arange(4), torch.tensor([4, 5])), at=0)
    return training


def by_hand(index: Tensor) -> Tensor:
    return torch.tensor([BY_HAND[int(i)] for i in index], dtype=torch.float64)


def phi_gradient(training: Training) -> tuple[dict[str, Tensor], Batch]:
    """What the weight function descends along in one step, and on which batch."""
    batch = training.run.train_batch()
    training.setup.method.step(training.run, training.state, batch)
    return training.state.weigher.grads(), batch


def constant_half(training: Training) -> nn.Module:
    """Its weight function with a last layer of zeros: all weights .5."""
    net = training.state.weigher.model
    with torch.no_grad():
        for p in net.mlp[-1].parameters():
            p.zero_()
    return net


# ---- six points


class Free(nn.Module):
    """A weight for each example of a batch of four, whatever is read."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((4,), 0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.w + 0 * inputs.detach()


def test_free_weights_of_six_points_descend_along_the_gradient_computed_by_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MWN, "network", lambda self, run: Free())
    grads, batch = phi_gradient(training := six_points("mwn[optimizer=sgd,momentum=0.0,weight_decay=0.0,lr=1.0]"))
    torch.testing.assert_close(grads["w"], by_hand(batch.index), rtol=0, atol=1e-6)
    down = training.state.weigher.params["w"].detach() < 0.5
    assert down.tolist() == [int(i) == 1 for i in batch.index]  # the mislabelled twin alone


def test_free_weights_over_their_sum_descend_along_the_gradient_computed_by_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MWN, "network", lambda self, run: Free())
    grads, batch = phi_gradient(six_points("mwn-imbalance[optimizer=sgd,weight_decay=0.0]"))
    expected = {0: -0.086937, 1: 0.163063, 2: -0.085102, 3: 0.008976}
    wanted = torch.tensor([expected[int(i)] for i in batch.index], dtype=torch.float64)
    torch.testing.assert_close(grads["w"], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["mwn", "bilaw", "bilaw[sorted=true]"])
def test_where_all_weights_are_equal_the_bias_learns_by_their_common_gradient(method: str) -> None:
    training = six_points(method)
    net = constant_half(training)
    grads, _ = phi_gradient(training)
    name = f"mlp.{len(net.mlp) - 1}.bias"
    assert float(grads[name]) == pytest.approx(-0.149859 / 4, abs=1e-6)  # sum_i h_i sigmoid'(0)


@pytest.mark.parametrize("method", ["mwn", "mwn-imbalance", "bilaw", "bilaw[sorted=true]"])
def test_the_weight_functions_gradient_is_that_of_the_validation_loss_through_the_step(method: str) -> None:
    training = begun(method, precision="float64", estimator="exact", momentum=0.9)
    for _ in range(3):
        turn(training)
    made, run = training.setup.method, training.run
    net, twin = copy.deepcopy(training.state.weigher.model), Trainer(run.classifier.model, SGD(lr=run.lr))
    val: list[Batch] = []
    val_batch = run.val_batch
    run.val_batch = lambda: val.append(val_batch()) or val[0]
    batch = run.train_batch()
    wanted, _ = unrolled(twin, net, made, (batch.x, batch.y), None, run.lr)
    assert wanted is None
    made.step(run, training.state, batch)
    wanted, _ = unrolled(twin, net, made, (batch.x, batch.y), (val[0].x, val[0].y), run.lr)
    assert wanted is not None
    for name, grad in training.state.weigher.grads().items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-6, atol=1e-13)


# ---- the published order of operations


def read_by(method: MetaWeights, logits: Tensor, y: Tensor) -> Tensor:
    """What the weight function reads, said once more."""
    if isinstance(method, MWN):
        return F.cross_entropy(logits, y, reduction="none")
    p = logits.softmax(1)
    rows = [p[i, y[i]] - p[i] for i in range(len(y))]
    if not method.sorted:
        return torch.stack(rows)
    return torch.stack([torch.cat([r[: y[i]], r[y[i] + 1 :]]).sort().values for i, r in enumerate(rows)])


def unrolled(
    twin: Trainer,
    net: nn.Module,
    method: Any,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor] | None,
    lr: float,
) -> tuple[dict[str, Tensor] | None, Tensor]:
    """Gradient of phi by double backward through one plain step, and the weights under phi; both by autograd alone."""
    phi = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
    theta = {k: t.detach().requires_grad_() for k, t in twin.theta.items()}
    fixed = {k: b.clone() for k, b in twin.fixed.items()}
    logits = functional_call(twin.model, {**theta, **fixed}, (train[0].double(),))
    losses = F.cross_entropy(logits, train[1], reduction="none")
    w = functional_call(net, phi, (read_by(method, logits.detach(), train[1]),))
    summed = method.normalize == "sum1"
    share = w / w.sum() if summed else w / len(w)
    weights = (len(w) * share).detach()
    if val is None:
        return None, weights
    grads = torch.autograd.grad((share * losses).sum(), list(theta.values()), create_graph=True)
    ahead = {k: t - lr * g for (k, t), g in zip(theta.items(), grads, strict=True)}
    found = torch.autograd.grad(twin.losses(ahead, *val).mean(), list(phi.values()))
    return dict(zip(phi, found, strict=True)), weights


VARIANTS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("mwn", two_layers),
    ("mwn", batch_norm),
    ("mwn-imbalance", two_layers),
    ("mwn-imbalance[optimizer=sgd,nesterov=true,lr=0.01,weight_decay=0.0005]", batch_norm),
    ("mwn[q=3]", batch_norm),
    ("bilaw", batch_norm),
    ("bilaw[sorted=true]", two_layers),
]


@pytest.mark.parametrize(("spec", "model"), VARIANTS, ids=[f"{s}-{m.__name__}" for s, m in VARIANTS])
def test_twenty_steps_agree_with_the_published_order_of_operations(spec: str, model: Callable[[], nn.Module]) -> None:
    training = begun(spec, model=model, precision="float64", estimator="exact", lr=0.1, scheduler="cosine")
    run, made = training.run, training.setup.method
    net = copy.deepcopy(training.state.weigher.model)
    phi, memory = (
        {k: p.detach().clone() for k, p in net.named_parameters()},
        {k: {} for k in training.state.weigher.params},
    )
    rule: Any = Adam(lr=1e-3, weight_decay=1e-4)
    if made.optimizer == "sgd":
        rule = SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    twin = Trainer(run.classifier.model, SGD())
    vals: list[Batch] = []
    val_batch = run.val_batch
    run.val_batch = lambda: vals.append(val_batch()) or vals[-1]
    for update in range(20):
        taken = turn(training)
        train = (taken.seen.batch.x, taken.seen.batch.y)
        if update % made.q == 0:
            val = vals.pop()
            grads, _ = unrolled(twin, net, made, train, (val.x, val.y), run.lr)
            assert grads is not None
            for k in phi:
                phi[k], memory[k] = rule(phi[k], grads[k], memory[k])
            net.load_state_dict(phi)
        assert not vals
        _, w = unrolled(twin, net, made, train, None, run.lr)
        twin.rule = SGD(lr=run.lr, momentum=0.9, weight_decay=5e-4)
        twin.step(*train, w)
        assert taken.weights is not None
        torch.testing.assert_close(taken.weights, w, rtol=0, atol=1e-9)
    assert_same_parameters(training, twin, 1e-9)
    for k, p in training.state.weigher.params.items():
        torch.testing.assert_close(p.detach(), phi[k], rtol=0, atol=1e-9)
    assert float((w.max() - w.min()).abs()) > 1e-3


# ---- margins


def test_margins_of_three_classes_are_the_ones_computed_by_hand() -> None:
    p, y = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([1])
    torch.testing.assert_close(class_margins(p, y), torch.tensor([[-0.2, 0.0, 0.1]]))
    torch.testing.assert_close(in_order(class_margins(p, y), y), torch.tensor([[-0.2, 0.1]]))


@given(st.integers(2, 6), st.integers(0, 10_000))
def test_the_least_margin_to_another_class_is_the_probabilistic_margin(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(5, classes, generator=generator).softmax(1)
    y = torch.randint(classes, (5,), generator=generator)
    margins = class_margins(probs, y)
    assert bool((margins.gather(1, y[:, None]) == 0).all())
    found = in_order(margins, y)
    assert found.shape == (5, classes - 1)
    assert torch.equal(found[:, 0], probabilistic_margin(probs, y))
    order = torch.randperm(classes, generator=generator)
    renamed = in_order(class_margins(probs[:, order], order.argsort()[y]), order.argsort()[y])
    assert torch.equal(renamed, found)


def test_networks_are_as_wide_as_published() -> None:
    assert [tuple(p.shape) for p in LossNet().parameters()] == [(100, 1), (100,), (1, 100), (1,)]
    assert [tuple(p.shape) for p in MarginNet(10).parameters()] == [(128, 10), (128,), (1, 128), (1,)]


# ---- adversarial training


def test_an_attack_on_a_linear_loss_moves_each_entry_as_far_as_it_may(generator: torch.Generator) -> None:
    x, slope = torch.rand(6, 3, generator=generator), torch.tensor([1.0, -1.0, 0.0])
    moved = ascended(lambda x: (x @ slope).sum(), x, torch.zeros(6, 3), epsilon=0.2, step_size=0.15, steps=2)
    low, high = x.amin(0), x.amax(0)
    expected = torch.stack([x[:, 0] + 0.2 * (high - low)[0], x[:, 1] - 0.2 * (high - low)[1], x[:, 2]], dim=1)
    torch.testing.assert_close(moved, expected.clamp(low, high))


@given(st.integers(0, 1000), st.floats(0.01, 0.5), st.integers(1, 4))
def test_an_attack_stays_near_and_within_the_range_of_its_channel(seed: int, epsilon: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 2, 3, 3, generator=generator) * torch.tensor([1.0, 10.0])[:, None, None]
    start = 2 * torch.rand(x.shape, generator=generator) - 1
    moved = ascended(lambda x: x.sin().sum(), x, start, epsilon=epsilon, step_size=0.3, steps=steps)
    low, high = x.amin((0, 2, 3)), x.amax((0, 2, 3))
    within = (x - moved).abs() <= (epsilon * (high - low) * (1 + 1e-5))[:, None, None]
    assert bool(within.all())
    assert bool(((moved >= low[:, None, None]) & (moved <= high[:, None, None])).all())


def test_adversarial_training_trains_and_validates_on_examples_of_larger_loss() -> None:
    training = begun("bilaw[adversarial=true,epsilon=0.2,step_size=0.1,steps=3]", model=batch_norm)
    for _ in range(5):
        turn(training)
    run, made = training.run, training.setup.method
    plain, val = run.train_batch(), run.val_batch()
    before = run.classifier.model.state_dict()
    attacked = made.attacked(run, plain, "attack")
    assert all(torch.equal(v, before[k]) for k, v in run.classifier.model.state_dict().items())
    assert float(run.losses(attacked, "eval").mean()) > float(run.losses(plain, "eval").mean()) + 0.05
    run.val_batch = lambda: val
    looks: list[Batch] = []
    look_ahead = run.look_ahead
    run.look_ahead = lambda *a, batch, **k: looks.append(batch) or look_ahead(*a, batch=batch, **k)
    taken = made.step(run, training.state, plain)
    assert torch.equal(taken.seen.batch.x, attacked.x)
    assert torch.equal(looks[0].index, val.index)
    assert not torch.equal(looks[0].x, val.x)


def test_attacks_are_charged() -> None:
    plain, attacked = begun("bilaw", estimator="exact"), begun("bilaw[adversarial=true,steps=3]", estimator="exact")
    turn(plain)
    turn(attacked)
    a, b = plain.run.cost, attacked.run.cost
    assert b.virtual_forward - a.virtual_forward == b.virtual_backward - a.virtual_backward == 3 * (16 + 9)
    assert (a.forward, a.backward) == (b.forward, b.backward)


def test_inputs_that_are_integers_cannot_be_attacked() -> None:
    y = torch.arange(96) % 2
    tokens = TensorPool(torch.randint(5, (96, 4)), y)
    with pytest.raises(ConfigError) as error:
        begun("bilaw[adversarial=true]", data=Data("tokens", tokens, None, {"test": tokens}), model=Words)
    assert str(error.value) == "adversarial=true needs inputs that can move and these are integers; leave it out"


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x))


# ---- cost, contract


@pytest.mark.parametrize("spec", ["mwn", "mwn-imbalance", "bilaw"])
def test_a_step_costs_ten_forward_passes(spec: str) -> None:
    training = begun(spec, estimator="exact")
    turn(training)
    cost, n, m = training.run.cost, 16, 9
    assert (cost.forward, cost.backward) == (n, n)
    assert (cost.virtual_forward, cost.virtual_backward) == (m + 2 * n, n + m)  # with m = n: 3 F + 3 F + 4 F


def test_between_updates_of_the_weight_function_a_step_costs_as_much_as_erms() -> None:
    training = begun("mwn[q=5]", estimator="exact")
    for _ in range(5):
        turn(training)
    assert training.run.cost.virtual_forward == 9 + 2 * 16
    assert training.run.cost.forward == training.run.cost.backward == 5 * 16


@pytest.mark.parametrize("method", [MWN(normalize="sum1"), BiLAW(normalize="sum1")])
def test_weights_over_their_sum_have_mean_one_and_others_are_as_the_network_gives_them(method: MetaWeights) -> None:
    summed, plain = begun(method), begun(type(method)())
    w, raw = turn(summed).weights, turn(plain).weights
    assert w is not None
    assert raw is not None
    assert float(w.mean()) == pytest.approx(1, abs=1e-6)
    assert bool((raw < 1).all())


@pytest.mark.parametrize(
    "spec",
    [
        "mwn[q=3,keep=true,normalize=sum1]",
        "mwn-imbalance@paper",
        "bilaw[sorted=true]",
        "bilaw[adversarial=true,steps=2,q=2]",
    ],
)
def test_variants_keep_the_contract(spec: str) -> None:
    check_method(spec, model=batch_norm)


def separable_with_wrong_labels() -> Data:
    """240 points in two clusters well apart, three in ten labels wrong and known to be."""
    clean = torch.arange(240) % 2
    x = torch.randn(240, 4, generator=torch.Generator().manual_seed(3))
    x[:, 0] += 4.0 * clean - 2
    y = torch.where(torch.arange(240) % 10 < 3, 1 - clean, clean)
    return Data("noisy", TensorPool(x, y, clean_y=clean), None, {"test": TensorPool(x, clean)})


@pytest.mark.parametrize("spec", ["bilaw@paper[lr=0.01]", "mwn-imbalance[holdout=clean,lr=0.01]"])
def test_learned_weights_tell_wrong_labels_from_right_ones_where_clean_examples_validate(spec: str) -> None:
    training = begun(spec, data=separable_with_wrong_labels(), model="linear", batch_size=40, epochs=20)
    for update in range(120):
        turn(training)
        if update == 59:
            training.run.notes.row(60)
    row = training.run.notes.row(60)
    assert row["weight_flipped"] < 0.2 * row["weight_clean"]
    assert row["weights_mean"] == pytest.approx(1) if "sum1" in str(training.setup.method) else row["weights_mean"] < 1


def test_weights_without_a_fixed_mean_may_rise_together_and_tell_nothing_apart() -> None:
    training = begun("mwn@paper[lr=0.01]", data=separable_with_wrong_labels(), model="linear", batch_size=40, epochs=10)
    for _ in range(60):
        turn(training)
    row = training.run.notes.row(60)
    assert row["weights_mean"] > 0.8
    assert row["weight_flipped"] == pytest.approx(row["weight_clean"], abs=0.05)
