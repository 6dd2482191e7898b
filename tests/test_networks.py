"""Weight maps, weight networks and the splitter of molere.networks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from molere.errors import ConfigError
from molere.models import build
from molere.networks import Splitter, WeightNet, bounded, mean_one, sigmoid_weights

scores = st.lists(st.floats(-30, 30), min_size=1, max_size=40).map(lambda s: torch.tensor(s, dtype=torch.float64))
strengths = st.floats(0, 3)


# ---- maps


@given(scores.map(lambda s: torch.exp(s / 2)))
def test_mean_one_is_n_times_the_share(w: torch.Tensor):
    values = w.tolist()
    expected = [len(values) * v / math.fsum(values) for v in values]
    assert mean_one(w).tolist() == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 200), st.floats(1e-6, 1e6), st.sampled_from([torch.float32, torch.float64]))
def test_equal_weights_become_exactly_one(n: int, value: float, dtype: torch.dtype):
    w = torch.full((n,), value, dtype=dtype)
    assert torch.equal(mean_one(w), torch.ones(n, dtype=dtype))


@given(st.integers(1, 200), st.floats(-20, 20), strengths)
def test_equal_scores_give_exactly_equal_weights(n: int, value: float, c: float):
    s = torch.full((n,), value)
    assert torch.equal(bounded(s, c), torch.ones(n))
    assert torch.equal(sigmoid_weights(s), torch.ones(n))


@given(st.floats(-1e6, 1e6), strengths)
def test_a_batch_of_one_has_weight_one(value: float, c: float):
    assert bounded(torch.tensor([value]), c).item() == 1.0
    assert mean_one(torch.tensor([value]).abs() + 1e-9).item() == 1.0


@pytest.mark.parametrize("value", [0.0, 1e-14])
def test_a_vanishing_sum_gives_zeros_and_a_zero_gradient(value: float):
    w = torch.full((5,), value, requires_grad=True)
    result = mean_one(w)
    result.square().sum().backward()
    assert torch.equal(result, torch.zeros(5))
    assert torch.equal(w.grad, torch.zeros(5))


@given(scores.filter(lambda s: len(s) > 1))
def test_the_gradient_of_mean_one_is_orthogonal_to_the_weights(s: torch.Tensor):
    w = torch.exp(s / 10).requires_grad_()
    h = torch.linspace(-1, 2, len(w), dtype=w.dtype)
    (gradient,) = torch.autograd.grad((mean_one(w) * h).sum(), w)
    total, raw = w.sum().item(), w.detach()
    expected = len(raw) / total * (h - (raw * h).sum() / total)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    assert abs((gradient * raw).sum().item()) < 1e-8 * len(raw)


@given(scores, strengths, st.floats(-10, 10))
def test_bounded_weights_have_mean_one_a_bounded_ratio_and_ignore_shifts(s: torch.Tensor, c: float, shift: float):
    w = bounded(s, c)
    assert w.mean().item() == pytest.approx(1, abs=1e-12)
    assert (w.max() / w.min()).item() <= math.exp(2 * c) * (1 + 1e-9)
    torch.testing.assert_close(bounded(s + shift, c), w, rtol=1e-9, atol=1e-9)


@given(scores, strengths)
def test_bounded_weights_follow_the_formula(s: torch.Tensor, c: float):
    values = s.tolist()
    centre = math.fsum(values) / len(values)
    e = [math.exp(c * math.tanh(v - centre)) for v in values]
    assert bounded(s, c).tolist() == pytest.approx([len(e) * v / math.fsum(e) for v in e], rel=1e-9)


@given(scores)
def test_higher_scores_never_weigh_less(s: torch.Tensor):
    ordered = s.sort().values
    for w in (bounded(ordered, 1.0), sigmoid_weights(ordered)):
        assert (w.diff() >= -1e-12).all()


@pytest.mark.parametrize("weigh", [lambda s: bounded(s, 0.7), sigmoid_weights, lambda s: mean_one(s.exp())])
def test_the_maps_are_differentiable(weigh):
    s = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(weigh, (s,))


# ---- weight networks


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "resnet20", "wrn-10-1", "mobilenet_v3_small"])
def test_a_full_weight_network_is_the_classifier_with_a_small_scalar_head(name: str, classes: int):
    model = build(name, num_classes=3, input_shape=(3, 16, 16))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    net = WeightNet.full(model, num_classes=classes)
    s = net(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 1]))
    assert s.shape == (4,)
    assert net.head.bias.item() == 0
    assert 0 < net.head.weight.abs().max() <= 0.01 / math.sqrt(net.head.in_features)
    s.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_full_weight_network_computes_its_head_of_the_classifiers_features():
    model = build("cnn", num_classes=3, input_shape=(1, 8, 8), dropout=0.5)
    net = WeightNet.full(model, num_classes=3)
    x, y = torch.randn(4, 1, 8, 8), torch.tensor([2, 0, 1, 1])
    features = model.eval().features(x)
    width = features.shape[1]
    by_hand = features @ net.head.weight[0, :width] + net.head.weight[0, width + y] + net.head.bias
    torch.testing.assert_close(net(x, y), by_hand)


def test_the_score_of_an_example_does_not_depend_on_its_batch_or_on_the_mode():
    model = build("cnn", num_classes=3, input_shape=(1, 8, 8), dropout=0.5).train()
    net = WeightNet.full(model).train()
    x = torch.randn(6, 1, 8, 8)
    buffers = [b.clone() for b in net.buffers()]
    together = net(x)
    torch.testing.assert_close(together, torch.cat([net(one[None]) for one in x]))
    assert torch.equal(together, net.eval()(x))
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))
    assert model.training


def test_a_copied_recurrent_layer_follows_the_mode():
    model = nn.Module()
    model.features, model.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)
    net = WeightNet.full(model)
    assert net.body.features.training
    assert not net.eval().body.features.training


def test_a_bare_linear_classifier_gives_a_linear_weight_network():
    net = WeightNet.full(nn.Linear(5, 3).double())
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(net(x), x @ net.head.weight[0])


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("hidden", [0, 8])
def test_a_weight_network_on_features_starts_near_equal_weights(hidden: int, classes: int):
    net = WeightNet.on_features(5, hidden=hidden, num_classes=classes)
    first = 5 + classes
    assert sum(p.numel() for p in net.parameters()) == (first * hidden + hidden + hidden + 1 if hidden else first + 1)
    s = net(torch.randn(6, 5), torch.arange(6) % 3)
    assert s.shape == (6,)
    assert s.abs().max() < 0.1
    s.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_labels_matter_only_if_asked_for():
    x = torch.randn(3, 5)
    plain, labelled = WeightNet.on_features(5), WeightNet.on_features(5, num_classes=3)
    assert torch.equal(plain(x), plain(x, torch.tensor([0, 1, 2])))
    assert not torch.equal(labelled(x, torch.tensor([0, 0, 0])), labelled(x, torch.tensor([1, 1, 1])))
    with pytest.raises(ConfigError, match=r"needs labels: call it as g\(x, y\)"):
        labelled(x)


# ---- splitter


@pytest.mark.parametrize("hidden", [0, 16])
def test_the_splitter_gives_probabilities_and_leaves_the_features_alone(hidden: int):
    splitter = Splitter(5, 3, hidden=hidden)
    features = torch.randn(6, 5, requires_grad=True)
    p = splitter(features, torch.arange(6) % 3)
    assert p.shape == (6,)
    assert ((p > 0) & (p < 1)).all()
    p.log().sum().backward()
    assert features.grad is None
    assert all(q.grad is not None for q in splitter.parameters())


def test_a_linear_splitter_is_logistic_regression_on_features_and_label():
    splitter = Splitter(2, 3, hidden=0)
    weight, bias = splitter.mlp.weight[0].tolist(), splitter.mlp.bias.item()
    p = splitter(torch.tensor([[0.5, -2.0]]), torch.tensor([1]))
    expected = 1 / (1 + math.exp(-(0.5 * weight[0] - 2 * weight[1] + weight[3] + bias)))
    assert p.item() == pytest.approx(expected, rel=1e-5)
