"""FSR: the head's step against numbers worked out by hand and an unrolled one; the buffer; what its options change."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import oracles
from molere.data.pool import Data, TensorPool
from molere.errors import ConfigError
from molere.methods.fsr import FSR, Head
from molere.settings import make_method
from molere.testing import check_method, rare_region
from molere.training import Training
from test_methods import FIXTURE, Zero, assert_same_training, started, step, train, validates


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 2))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.25), nn.Linear(12, 2))


# ---- numbers worked out by hand


def of_six_points(**settings: Any) -> Training:
    """The head alone, at zero, with the two validation points as the buffer."""
    recipe = {"batch_size": 4, "momentum": 0.0, "weight_decay": 0.0, "scheduler": "constant", "precision": "float64"}
    training = started(
        FSR(meta_momentum=0.0, warmup=0.0, buffer=3, probe=3, **settings), data=FIXTURE, model=Zero, **recipe
    )
    training.run.use(training.setup.method.split(training.run, training.state), at=0)
    training.state.buffer = torch.tensor([[4], [5]])
    return training


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("clip", [0.401978, 0, 0.401935, 0.195965]), ("shift", [0.264769, 0.220641, 0.264766, 0.249816])],
)
def test_weights_and_scores_of_six_points_are_those_computed_by_hand(mode: str, expected: list[float]) -> None:
    training = of_six_points(mode=mode)
    run, state, method = training.run, training.state, training.setup.method
    batch = run.pool.batch(torch.arange(4))
    head = Head.of(run)
    losses = head.losses(batch.x.double(), F.one_hot(batch.y, 3).double())
    probe = head.losses(run.pool.batch(torch.tensor([4, 5])).x.double(), torch.eye(3, dtype=torch.float64)[:2])
    q = method.weight_gradient(head, losses, probe, method.ahead(head, losses))
    by_hand = torch.tensor([0.033058, -0.016942, 0.033054, 0.016116], dtype=torch.float64)
    torch.testing.assert_close(-q, by_hand, atol=1e-6, rtol=0)
    taken = method.step(run, state, batch)
    assert taken.weights is not None
    by_hand = 4 * torch.tensor(expected, dtype=torch.float64)  # they enter a mean
    torch.testing.assert_close(taken.weights, by_hand, atol=8e-6, rtol=0)
    margins = torch.tensor([0.016390, 0.016390, 0.016597, 0.033054, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(state.scores, -0.1 * margins, atol=1e-7, rtol=0)
    assert state.visited.tolist() == [True] * 4 + [False] * 2


@given(q=st.lists(st.floats(-1e-3, 1e-3), min_size=1, max_size=30))
def test_clipped_weights_are_zero_where_the_probe_loss_would_rise_and_shifted_ones_nowhere(q: list[float]) -> None:
    gradient = torch.tensor(q, dtype=torch.float64)
    clip, shift = FSR(mode="clip").weights(gradient), FSR(mode="shift").weights(gradient)
    assert torch.equal(clip > 0, gradient < 0)
    assert float(clip.sum()) <= 1
    assert float(shift.min()) > 0
    assert 1 - 2e-5 < float(shift.sum()) < 1
    order = gradient.argsort()
    assert bool((clip[order].diff() <= 0).all())
    assert bool((shift[order].diff() <= 0).all())


# ---- the published order of operations, restated


@dataclass
class Restated:
    """Weights of the batch as a leaf, the head's step with its graph, backward through it; no import from molere."""

    model: nn.Module
    updates: int
    shift: bool
    pseudo: float = 0.0
    lr: float = 0.05
    decay: float = 0.01
    done: int = 0
    scores: dict[int, float] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.theta = {k: p.detach().clone() for k, p in self.model.named_parameters()}
        self.fixed = {k: b.clone() for k, b in self.model.named_buffers()}
        self.velocity: dict[str, oracles.State] = {k: {} for k in self.theta}
        self.names = list(self.theta)[-2:]  # weight and bias of the last layer

    def features(self, x: Tensor, stream: int, theta: oracles.Tensors, *, real: bool = False) -> Tensor:
        """What enters the last layer."""
        found: list[Tensor] = []
        last = list(self.model.children())[-1]
        handle = last.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        fixed = self.fixed if real else {k: b.clone() for k, b in self.fixed.items()}
        with oracles.replayed(stream):
            functional_call(self.model, {**theta, **fixed}, (x.double(),))
        handle.remove()
        return found[0]

    @staticmethod
    def costs(head: list[Tensor], features: Tensor, target: Tensor) -> Tensor:
        return -(target.double() * (features @ head[0].T + head[1]).log_softmax(1)).sum(1)

    def penalty(self, head: list[Tensor]) -> Tensor:
        return torch.stack([self.decay / 2 * t.square().sum() for t in head]).sum()

    def step(self, ids: list[int], mixed: Any, plain: Any, probe: Any, streams: tuple[int, int], warm: bool) -> Tensor:
        """One update on (inputs, soft labels); the weights, of sum one."""
        n, lr = len(ids), self.lr * 0.5 * (1 + math.cos(math.pi * self.done / self.updates))
        theta = {k: t.detach().requires_grad_() for k, t in self.theta.items()}
        features = self.features(mixed[0], streams[0], theta, real=True)
        head = [theta[k] for k in self.names]
        eps = torch.full((n,), 1 / n, dtype=torch.float64, requires_grad=True)
        inner = (eps * self.costs(head, features.detach(), mixed[1])).sum() + self.penalty(head)
        grads = torch.autograd.grad(inner, head, create_graph=True)
        buffers = [self.velocity[k].get("velocity", torch.zeros_like(theta[k])) for k in self.names]
        ahead = [t - 0.1 * (0.9 * b + g) for t, b, g in zip(head, buffers, grads, strict=True)]
        outer = self.costs(ahead, self.features(probe[0], streams[1], self.theta), probe[1]).mean() + self.penalty(
            ahead
        )
        q = torch.autograd.grad(outer, eps)[0]
        raw = (eps - q) - (eps - q).min() + 1 / n if self.shift else torch.clamp(-q, min=0)
        w = torch.full((n,), 1 / n, dtype=torch.float64) if warm else (raw / (raw.sum() + 1e-5)).detach()

        z = features @ head[0].T + head[1]
        loss = (w * self.costs(head, features, mixed[1])).sum()
        if self.pseudo:
            known = torch.stack([self.logits.get(i, torch.zeros_like(z[0])).detach() for i in ids])
            known = known / (known.square().mean() + 1e-8).sqrt()
            if not warm:
                loss = loss + self.pseudo * -(known.softmax(1) * z.log_softmax(1)).sum(1).mean()
            for i, old, new in zip(ids, known, z.detach(), strict=True):
                self.logits[i] = 0.1 * old + 0.9 * new
        with torch.no_grad():
            still = features if plain is mixed else self.features(plain[0], streams[1], self.theta)
            margins = self.costs(head, still, plain[1]) - self.costs(ahead, still, plain[1])
        for i, margin in zip(ids, margins.tolist(), strict=True):
            self.scores[i] = 0.9 * self.scores.get(i, 0.0) - 0.1 * margin
        rule = oracles.SGD(lr=lr, momentum=0.9, weight_decay=self.decay)
        for (k, t), g in zip(theta.items(), torch.autograd.grad(loss, list(theta.values())), strict=True):
            self.theta[k], self.velocity[k] = rule(t.detach(), g, self.velocity[k])
        self.done += 1
        return w

    def best(self, label: int, y: Tensor, k: int) -> list[int]:
        """Of those that have trained, the k of smallest score."""
        return sorted((i for i in self.scores if int(y[i]) == label), key=lambda i: (self.scores[i], i))[:k]


@pytest.mark.parametrize("model", [smooth, with_batch_norm])
@pytest.mark.parametrize(
    "spec", ["fsr[buffer=20,probe=8]", "fsr-imbalance[buffer=40]", "fsr[mixup=true,pseudo=2.0,buffer=30,probe=30]"]
)
def test_twenty_updates_are_those_of_the_published_order_of_operations(
    spec: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = started(spec, model=model, precision="float64", lr=0.05, weight_decay=0.01)
    run, state, method = training.run, training.state, training.setup.method
    copy = model().double()
    copy.load_state_dict(run.classifier.model.state_dict())
    oracle = Restated(copy, run.budget, method.mode == "shift", method.pseudo)
    passes: list[tuple[Tensor, int]] = []
    virtual, mixture = run._passes.virtual, type(method).mixture

    def noted(x: Tensor, theta: Any, *, stream: int, grad: bool) -> Any:
        passes.append((x, stream))
        return virtual(x, theta, stream=stream, grad=grad)

    targets: list[Tensor] = []

    def mixing(self: FSR, *args: Any) -> Any:
        out = mixture(self, *args)
        targets.append(out[1])
        return out

    monkeypatch.setattr(run._passes, "virtual", noted)
    monkeypatch.setattr(type(method), "mixture", mixing)
    y, k = run.pool.y, method.sizes(run)[0]
    worst = 0.0
    for update in range(20):
        if update in (6, 12, 18):
            expected = [oracle.best(label, y, k) for label in range(2)]
        taken = step(training)
        if update in (6, 12, 18):
            assert state.buffer.tolist() == expected
        probed = passes[-1 - method.mixup]  # the batch as it is comes after the probe batch
        labels = torch.tensor([int(y[(run.pool.x == row).all(1)].item()) for row in probed[0]])
        per_class = method.sizes(run)[1]
        assert labels.bincount().tolist() == [per_class] * 2
        batch = taken.seen.batch
        plain = (run.pool.x[batch.index], F.one_hot(batch.y, 2))
        mixed = (batch.x, targets[-1]) if method.mixup else plain
        ids = batch.index.tolist()
        w = oracle.step(
            ids,
            mixed,
            plain if method.mixup else mixed,
            (probed[0], F.one_hot(labels, 2)),
            (taken.seen.stream, probed[1]),
            update < 6,
        )
        assert (taken.weights is None) is (update < 6)  # a quarter of four epochs
        if taken.weights is not None:
            worst = max(worst, oracles.relative_error(taken.weights, 16 * w))
        for name, p in run.classifier.params.items():
            worst = max(worst, oracles.relative_error(p.detach(), oracle.theta[name]))
    scores = torch.tensor([oracle.scores.get(i, 0.0) for i in range(96)], dtype=torch.float64)
    worst = max(worst, oracles.relative_error(state.scores, scores))
    for name, b in run.classifier.model.named_buffers():
        torch.testing.assert_close(b, oracle.fixed[name], msg=name)
    assert worst < 1e-9, worst


# ---- the buffer


def test_a_class_with_too_few_examples_repeats_them_and_what_has_not_trained_is_left_out() -> None:
    x, y = torch.randn(20, 4), torch.tensor([0] * 14 + [2] * 6)  # class 1 has none
    data = Data("uneven", TensorPool(x, y, num_classes=3), None, {"test": TensorPool(x, y, num_classes=3)})
    training = started("fsr[buffer=12,probe=12]", data=data, model="linear", batch_size=8)
    run, method = training.run, training.setup.method
    assert training.state.buffer.shape == (2, 4)
    scores = torch.arange(20, 0, -1).double()
    visited = torch.ones(20, dtype=torch.bool)
    assert method.best(run, scores, visited).tolist() == [[13, 12, 11, 10], [19, 18, 17, 16]]
    visited[[13, 11]] = False
    visited[16:] = False
    assert method.best(run, scores, visited).tolist() == [[12, 10, 9, 8], [15, 14, 15, 14]]
    visited[14:] = False  # none of class 2 has trained
    assert method.best(run, scores, visited)[1].tolist() == [14, 15, 16, 17]


def test_a_probe_batch_has_as_many_of_each_class_none_twice_and_changes() -> None:
    training = started("fsr[buffer=40,probe=16]")
    run, method = training.run, training.setup.method
    step(training)
    first = method.probe_index(run, training.state)
    assert run.pool.y[first].bincount().tolist() == [8, 8]
    assert len(first.unique()) == 16
    assert bool(torch.isin(first, training.state.buffer).all())
    run.updates += 1
    assert not torch.equal(first, method.probe_index(run, training.state))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("fsr[buffer=15]", "^buffer=15 is not the same for all 2 classes; use a multiple of 2$"),
        ("fsr[probe=5]", "^probe=5 is not the same for all 2 classes; use a multiple of 2$"),
        ("fsr[buffer=8,probe=10]", "^probe=10 is more than the buffer holds; use at most 8, or a larger buffer$"),
    ],
)
def test_a_buffer_that_does_not_come_out_even_is_refused(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train(spec)


def noisy(size: int = 240) -> Data:
    """Two clusters, a fifth of the labels wrong."""
    y = torch.arange(size) % 2
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))
    x[:, 0] += 4.0 * y - 2
    wrong = torch.rand(size, generator=torch.Generator().manual_seed(2)) < 0.2
    pool = TensorPool(x, torch.where(wrong, 1 - y, y), clean_y=y)
    return Data("noisy", pool, None, {"test": TensorPool(x, y)})


def test_under_label_noise_the_buffer_becomes_pure_and_wrong_labels_get_less_weight() -> None:
    result = train("fsr", data=noisy(), epochs=8, batch_size=40, lr=0.01)
    purity = [row["buffer_purity"] for row in result.history]
    assert purity[0] < 0.85  # at random, a fifth being wrong
    assert min(purity[1:]) > 0.95
    for row in result.history[2:]:  # the first two of eight epochs are warm-up
        assert row["weight_flipped"] < 0.3 * row["weight_clean"]
        assert 0.5 < row["weights_nonzero"] < 0.9
    assert int(validates(result).sum()) == 40


# ---- warm-up and options


@pytest.mark.parametrize("model", ["mlp", with_batch_norm])
def test_during_its_warm_up_it_trains_exactly_like_erm(model: Any) -> None:
    warm = train("fsr[warmup=0.6]", model=model)  # two of four epochs
    erm = train("erm", model=model)
    same = [a["train_loss"] == b["train_loss"] for a, b in zip(warm.history, erm.history, strict=True)]
    assert same == [True, True, False, False]


def test_mixtures_keep_at_least_half_of_each_example_and_of_its_label() -> None:
    training = started("fsr[mixup=true,buffer=20,probe=20]")
    run, method = training.run, training.setup.method
    batch = run.train_batch()
    mixed, target = method.mixture(run, batch)
    own = target.gather(1, batch.y[:, None]).squeeze(1)
    assert bool((own >= 0.5).all())
    torch.testing.assert_close(target.sum(1), torch.ones(16))
    assert torch.equal(mixed.y, batch.y)
    moved = ~torch.isclose(mixed.x, batch.x).all(1)
    assert int(moved.sum()) > 8
    for i in torch.arange(16)[moved]:  # on the way to another example of the batch, not past the middle
        shares = [
            float(s.mean())
            for other in batch.x
            if bool(((s := (mixed.x[i] - batch.x[i]) / (other - batch.x[i])) - s.mean()).abs().max() < 1e-3)
        ]
        assert any(0 < s <= 0.5 + 1e-6 for s in shares)


def test_integer_inputs_have_no_mixtures() -> None:
    y = torch.arange(40) % 2
    tokens = TensorPool(torch.randint(0, 9, (40, 3)), y)
    data = Data("tokens", tokens, None, {"test": tokens})
    model = lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))  # noqa: E731
    with pytest.raises(ConfigError, match="^mixup=true: inputs are integers"):
        train("fsr[mixup=true]", data=data, model=model, batch_size=8)
    train("fsr", data=data, model=model, batch_size=8, epochs=1)


def test_its_options_keep_the_contract() -> None:
    check_method("fsr[mixup=true,pseudo=1.0,mode=shift]", model=with_batch_norm)


def test_without_pseudo_labels_and_mixtures_neither_changes_anything() -> None:
    assert_same_training(train("fsr"), train("fsr[temperature=3.0,logit_share=0.5,mixup_alpha=2.0]"))


# ---- the head


class Scaled(nn.Module):
    """What the head gives is not what the model gives."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.head(self.features(x).relu())


def frozen_head() -> nn.Module:
    model = smooth()
    for p in list(model.parameters())[-2:]:
        p.requires_grad_(False)
    return model


class Tall(nn.Module):
    """A head of two layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def test_a_head_that_is_not_the_end_of_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="^fsr needs the logits to be what the head gives; let the model end in"):
        train("fsr", model=Scaled)


def test_a_head_that_is_not_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="^fsr needs a last layer that is trained; unfreeze it"):
        train("fsr", model=frozen_head)


def test_a_head_of_several_layers_will_do() -> None:
    result = train("fsr[warmup=0.0]", model=Tall, epochs=2)
    assert all(0 < row["weights_nonzero"] < 1 for row in result.history)


@pytest.mark.parametrize(
    "recipe",
    [
        {"precision": "bfloat16"},
        {"precision": "float64"},
        {"meta_bn": "eval"},
        {"optimizer": "adamw", "lr": 1e-3},  # without a momentum buffer
        {"momentum": 0.0},
        {"grad_clip": 0.5},
    ],
)
def test_other_recipes_train(recipe: dict[str, Any]) -> None:
    result = train("fsr", model=with_batch_norm, epochs=2, warmup=0.0, **recipe)
    assert all(np.isfinite(row["train_loss"]) for row in result.history)
    assert not np.isnan(result.samples["fsr_score"]).any()


# ---- costs, settings


def test_an_update_costs_a_forward_pass_of_the_probe_batch_and_mixtures_one_of_the_batch() -> None:
    updates, n = 24, 16
    cost = train("fsr[buffer=40,probe=24]").cost
    assert (cost.forward, cost.backward) == (updates * n, updates * n)
    assert cost.virtual_forward == updates * 24 + 2  # and two examples at the start, to see what the head gives
    assert cost.virtual_backward == 0
    mixing = train("fsr[buffer=40,probe=24,mixup=true]").cost
    assert mixing.virtual_forward == updates * (24 + n) + 2


def test_with_ten_classes_and_a_batch_of_64_an_update_costs_less_than_two_of_erm() -> None:
    y = torch.arange(640) % 10
    pool = TensorPool(torch.randn(640, 4), y)
    data = Data("ten", pool, None, {"test": pool})
    fsr, erm = (train(m, data=data, batch_size=64, epochs=1).cost for m in ("fsr", "erm"))
    passes = [c.forward + c.virtual_forward + 2 * (c.backward + c.virtual_backward) for c in (fsr, erm)]
    assert 1.6 < passes[0] / passes[1] < 2


def test_settings_that_have_limits_are_checked() -> None:
    assert make_method("fsr-imbalance").mode == "shift"
    with pytest.raises(ConfigError, match="fsr.beta must be a float in"):
        make_method("fsr[beta=1.0]")
    assert replace(FSR(), beta=0.5).beta == 0.5


def test_an_example_that_was_never_drawn_has_no_score_of_its_own() -> None:
    data = rare_region(100)
    result = train("fsr", data=data, epochs=1, batch_size=16)
    never = np.isnan(result.samples["weight"])
    assert never.sum() == 4
    assert (result.samples["fsr_score"][never] == 0).all()
