"""StableNet: its penalty by hand, its gradient, and twenty updates against a plain restatement."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from molere import rng
from molere.data.pool import Data
from molere.errors import ConfigError
from molere.methods.stablenet import StableNet, dependence, dependence_gradient, fourier, through_softmax
from molere.run import fit
from molere.testing import check_method, rare_region
from stepping import PLAIN, assert_same_parameters, batch_norm, begun, turn, twin_of, two_layers

# ---- by hand


@pytest.mark.parametrize(("q", "penalty"), [(0.5, 0.125), (0.3, 0.0882)])
def test_the_penalty_of_two_equal_features_is_twice_the_square_of_their_covariance(q: float, penalty: float) -> None:
    functions = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    u = torch.tensor([1 - q, q], dtype=torch.float64)
    assert float(dependence(functions, u)) == pytest.approx(penalty, abs=1e-12)  # 2 q^2 (1 - q)^2


def learned(method: StableNet, features: Tensor) -> Tensor:
    """Weights of a batch of 16 in its first update, sum 1."""
    training = begun(method)
    training.state.features = torch.zeros(16, features.shape[1])
    return method.learn(training.run, training.state, features).softmax(0)


def test_constant_features_leave_the_weights_equal() -> None:
    weights = learned(StableNet(), torch.full((16, 6), 0.7))
    torch.testing.assert_close(weights, torch.full((16,), 1 / 16), rtol=0, atol=1e-7)


def test_other_features_do_not_and_the_larger_lambda_the_less() -> None:
    features = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    spread = [float(learned(StableNet(strength=s), features).std()) for s in (1.0, 70.0, 1e9)]
    assert spread[0] > spread[1] > spread[2]
    assert spread[2] < 1e-8


def test_one_feature_has_nothing_to_depend_on() -> None:
    functions = fourier(torch.randn(5, 1), torch.randn(2), torch.rand(2, 1), "concat")
    assert functions.isfinite().all()  # its range over the features is 0
    assert float(dependence(functions, torch.full((5,), 0.2))) == 0


# ---- random functions and the gradient


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 7))
def test_random_functions_are_cosine_and_sine_of_angles_stretched_over_each_row(seed: int, k: int, d: int) -> None:
    g = torch.Generator().manual_seed(seed)
    z, w, b = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((6, d), (k,), (k, d)))
    cos, sin = fourier(z, w, b, "concat").chunk(2)
    torch.testing.assert_close(cos.square() + sin.square(), torch.full_like(cos, 2 / k))
    angles = torch.atan2(sin, cos)
    torch.testing.assert_close(angles.amin(2), torch.zeros(k, 6, dtype=torch.float64))
    torch.testing.assert_close(angles.amax(2), torch.full((k, 6), math.pi / 2, dtype=torch.float64))
    torch.testing.assert_close(fourier(z, w, b, "sum"), cos + sin)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 5))
def test_the_written_out_gradient_is_that_of_the_penalty(seed: int, f: int, d: int) -> None:
    g = torch.Generator().manual_seed(seed)
    functions = torch.randn(f, 7, d, generator=g, dtype=torch.float64)
    v = torch.randn(7, generator=g, dtype=torch.float64, requires_grad=True)
    u = v.softmax(0)
    (expected,) = torch.autograd.grad(dependence(functions, u), v)
    found = through_softmax(u.detach(), dependence_gradient(functions, u.detach()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# ---- twenty updates


class Published:
    """The published order of operations, with loops where they are clearer and torch's SGD for v."""

    def __init__(self, n: int, d: int, k: int, combine: str, strength: float, decay: tuple[int, float]) -> None:
        self.n, self.d, self.k, self.combine, self.strength, self.decay = n, d, k, combine, strength, decay
        self.memory = torch.zeros(n, d, dtype=torch.float64)
        self.memory_scores = torch.ones(n, 1, dtype=torch.float64)

    def functions(self, a: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        slices: list[Tensor] = []
        for j in range(self.k):
            angle = a * w[j] + b[j]
            rows = [(row - row.min()) / (row.max() - row.min()) * math.pi / 2 for row in angle]
            slices.append(torch.stack(rows))
        scale = (2 / self.k) ** 0.5
        if self.combine == "sum":
            return [scale * (s.cos() + s.sin()) for s in slices]
        return [scale * s.cos() for s in slices] + [scale * s.sin() for s in slices]

    def penalty(self, slices: list[Tensor], u: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for r in slices:
            mean = (u * r).sum(0, keepdim=True)
            covariance = (u * r).T @ r - mean.T @ mean
            total = total + covariance.square().sum() - covariance.diagonal().square().sum()
        return total

    def weights(self, features: Tensor, update: int, epoch: int) -> Tensor:
        generator = rng.generator(0, "fourier", update)
        w = torch.randn(20, self.k, generator=generator).double()
        b = torch.rand(20, self.k, self.d, generator=generator).double() * 2 * math.pi
        v = torch.ones(self.n, 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([v], lr=1.0, momentum=0.9)
        every, rate = self.decay
        strength = self.strength * max(rate ** (epoch // every), 0.01)
        both = torch.cat([features, self.memory])
        for i in range(20):
            optimizer.param_groups[0]["lr"] = 1.0 if i < 10 else 0.1
            optimizer.zero_grad()
            u = torch.cat([v, self.memory_scores]).softmax(0)
            loss = self.penalty(self.functions(both, w[i], b[i]), u) / strength + (v.softmax(0) ** 2).sum()
            loss.backward()
            optimizer.step()
        scores = v.detach()
        if epoch == 0 and update < 10:
            self.memory = (self.memory * update + features) / (update + 1)
            self.memory_scores = (self.memory_scores * update + scores) / (update + 1)
        else:
            self.memory = 0.9 * self.memory + 0.1 * features
            self.memory_scores = 0.9 * self.memory_scores + 0.1 * scores
        return scores.softmax(0).squeeze(1)


@pytest.mark.parametrize(
    ("settings", "k", "combine", "strength", "decay"),
    [
        ("", 1, "concat", 70.0, (5, 1.0)),
        ("[functions=3,combine=sum,strength=0.5,decay_every=2,decay_rate=0.5]", 3, "sum", 0.5, (2, 0.5)),
    ],
    ids=["as published", "strong"],
)
@pytest.mark.parametrize("per_epoch", [6, 12], ids=["six an epoch", "twelve an epoch"])
def test_twenty_updates_are_those_of_a_plain_restatement(
    settings: str, k: int, combine: str, strength: float, decay: tuple[int, float], per_epoch: int
) -> None:
    training = begun(f"stablenet{settings}", epochs=4, batch_size=96 // per_epoch, **PLAIN)
    twin = twin_of(training)
    n = 96 // per_epoch
    published = Published(n, 6, k, combine, strength, decay)
    for update in range(20):
        taken = turn(training)
        x, y = taken.seen.batch.x.double(), taken.seen.batch.y
        features = F.relu(x @ twin.theta["0.weight"].T + twin.theta["0.bias"])
        weights = published.weights(features, update, update // per_epoch)
        twin.step(x, y, n * weights)
        assert taken.weights is not None
        torch.testing.assert_close(taken.weights, n * weights, rtol=0, atol=1e-12)
        assert_same_parameters(training, twin)
    assert float(taken.weights.std()) > 1e-6  # they were not equal all along
    torch.testing.assert_close(training.state.features, published.memory, rtol=0, atol=1e-12)


# ---- in a run


def test_it_costs_what_erm_costs_in_passes() -> None:
    training = begun("stablenet")
    for _ in range(24):
        turn(training)
    cost = training.run.cost
    assert (cost.forward, cost.backward) == (24 * 16, 24 * 16)
    assert cost.virtual_forward == cost.virtual_backward == cost.scout_forward == 0


def test_weights_have_mean_one_and_validate_on_nothing() -> None:
    result = fit(
        "stablenet[strength=0.01]", data=rare_region(), model=two_layers, recipe={"epochs": 2, "device": "cpu"}
    )
    assert not result.samples["in_validation"].any()
    assert all(row["dependence"] < row["dependence_unweighted"] for row in result.history)
    assert all(row["effective_sample_size"] < 0.999 for row in result.history)


def test_a_feature_and_a_random_copy_of_it_become_less_dependent() -> None:
    g = torch.Generator().manual_seed(1)
    shared = torch.randn(16, 1, generator=g)
    features = shared + 0.1 * torch.randn(16, 2, generator=g)
    weights = 16 * learned(StableNet(strength=0.01, iterations=200), features)
    z = features - features.mean(0)
    before = float((z[:, 0] * z[:, 1]).mean())
    z = features - (weights[:, None] * features).mean(0)
    assert float((weights * z[:, 0] * z[:, 1]).mean()) < 0.9 * before


@pytest.mark.parametrize("settings", ["functions=2,combine=sum,decay_rate=0.5,decay_every=1", "iterations=1,memory=0"])
def test_variants_keep_the_contract(settings: str) -> None:
    check_method(f"stablenet[{settings}]", model=batch_norm)


def test_a_model_without_a_head_is_refused() -> None:
    class Headless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    with pytest.raises(ConfigError, match=r"Headless has no nn\.Linear layer to take as its head"):
        fit("stablenet", data=rare_region(), model=Headless, recipe={"device": "cpu"})


@pytest.mark.parametrize("settings", ["functions=0", "strength=0", "decay_rate=2", "memory=1", "combine=both"])
def test_settings_outside_their_limits_are_refused(settings: str) -> None:
    data: Data = rare_region()
    with pytest.raises(ConfigError, match=f"stablenet.{settings.partition('=')[0]} must be"):
        fit(f"stablenet[{settings}]", data=data)


def test_the_memory_is_kept_in_the_precision_of_the_classifier() -> None:
    kinds: dict[str, Any] = {"float64": torch.float64, "bfloat16": torch.float32}
    for precision, dtype in kinds.items():
        training = begun("stablenet", precision=precision)
        turn(training)
        assert training.state.features.dtype == dtype
