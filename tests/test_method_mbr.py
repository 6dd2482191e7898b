"""MBR: the weights of its oracle, margins of a finished model, and weights of each batch as in MAIL."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from molere.errors import ConfigError
from molere.methods.mbr import MBR
from molere.run import fit
from molere.testing import check_method, rare_region
from stepping import PLAIN, assert_same_parameters, batch_norm, begun, turn, twin_of, two_layers

MARGINS = torch.tensor([-1, -0.5, 0, 0.5, 1], dtype=torch.float64)
RECIPE = {"epochs": 4, "batch_size": 16, "device": "cpu"}

# ---- the function


@pytest.mark.parametrize(
    ("gamma", "beta", "weights"),
    [
        (2.0, 0.0, [0.880797, 0.731059, 0.5, 0.268941, 0.119203]),
        (10.0, -0.5, [0.993307, 0.5, 0.006693, 4.54e-5, 3.06e-7]),
    ],
)
def test_margins_become_weights_as_computed_by_hand(gamma: float, beta: float, weights: list[float]) -> None:
    found = MBR(gamma=gamma, beta=beta).raw(MARGINS)
    torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float64), rtol=2e-3, atol=5e-7)


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 20), st.floats(-1, 1))
def test_the_lower_the_margin_the_larger_the_weight(a: float, b: float, gamma: float, beta: float) -> None:
    low, high = MBR(gamma=gamma, beta=beta).raw(torch.tensor(sorted([a, b]), dtype=torch.float64))
    assert 0 < float(high) <= float(low) < 1 or gamma == 0


def test_a_slope_of_zero_is_erm() -> None:
    ours, erm = (fit(m, data=rare_region(), recipe=RECIPE) for m in ("mbr[gamma=0]", "erm"))
    theirs: dict[str, Tensor] = dict(erm.classifier.state_dict())
    assert all(torch.equal(v, theirs[k]) for k, v in ours.classifier.state_dict().items())


# ---- margins of a finished model


def test_weights_follow_from_the_margins_of_erm_and_stay() -> None:
    result = fit("mbr", data=rare_region(), model=two_layers, recipe=RECIPE)
    erm = fit("erm", data=rare_region(), model=two_layers, recipe=RECIPE)
    margins = erm.samples["margin"]
    np.testing.assert_allclose(result.samples["erm_margin"], margins, atol=1e-6)
    raw = np.array([1 / (1 + math.exp(2 * m)) for m in margins])
    used = ~np.isnan(result.samples["weight"])
    np.testing.assert_allclose(result.samples["weight"][used], (raw / raw.mean())[used], rtol=1e-5)
    assert result.history[0]["erm_errors"] == pytest.approx((margins < 0).mean())
    assert not result.samples["in_validation"].any()


@pytest.mark.parametrize("margins", ["erm", "crossfit"])
def test_it_costs_two_trainings(margins: str) -> None:
    result = fit(f"mbr[margins={margins},epochs=1.0,folds=2]", data=rare_region(), model=two_layers, recipe=RECIPE)
    cost = result.cost
    assert (cost.forward, cost.backward) == (24 * 16, 24 * 16)
    assert cost.virtual_forward == cost.virtual_backward == 0
    assert cost.scout_backward == 4 * 96  # a whole training, or two of half the pool
    assert cost.scout_forward == 4 * 96 + (96 if margins == "erm" else 2 * 96)


def test_twenty_updates_are_those_of_fixed_weights() -> None:
    training = begun("mbr", **PLAIN)
    twin, weights = twin_of(training), training.state.weights
    for _ in range(20):
        batch = turn(training).seen.batch
        twin.step(batch.x, batch.y, weights[batch.index])
        assert_same_parameters(training, twin)


# ---- margins of the present model


def test_twenty_updates_with_present_margins_are_those_of_a_plain_restatement() -> None:
    training = begun("mbr[margins=present,gamma=10,beta=-0.5,warmup=0.25]", **PLAIN)
    twin = twin_of(training)
    for update in range(20):
        taken = turn(training)
        x, y = taken.seen.batch.x.double(), taken.seen.batch.y
        p = torch.softmax(torch.relu(x @ twin.theta["0.weight"].T + twin.theta["0.bias"]) @ twin.theta["2.weight"].T
                          + twin.theta["2.bias"], dim=1)  # fmt: skip
        weights = torch.ones(16, dtype=torch.float64)
        if update >= 6:
            for i in range(16):
                second = max(float(p[i, c]) for c in range(2) if c != int(y[i]))
                weights[i] = 3 / (1 + math.exp(-10 * (second - float(p[i, y[i]]) - 0.5)))
            weights = 16 * weights / weights.sum()
            assert taken.weights is not None
            torch.testing.assert_close(taken.weights, weights, rtol=0, atol=1e-10)
        else:
            assert taken.weights is None
        twin.step(x, y, weights)
        assert_same_parameters(training, twin, tolerance=1e-10)


def test_present_margins_take_no_first_model() -> None:
    result = fit("mbr[margins=present]", data=rare_region(), model=two_layers, recipe=RECIPE)
    assert result.cost.scout_forward == result.cost.virtual_forward == 0
    assert [row["effective_sample_size"] < 1 for row in result.history] == [False, False, False, True]


@pytest.mark.parametrize("settings", ["margins=present,warmup=0.3", "margins=crossfit,folds=2,gamma=10,beta=-0.5"])
def test_variants_keep_the_contract(settings: str) -> None:
    check_method(f"mbr[{settings}]", model=batch_norm)


@pytest.mark.parametrize("settings", ["gamma=-1", "beta=2", "margins=none", "folds=1", "warmup=1"])
def test_settings_outside_their_limits_are_refused(settings: str) -> None:
    with pytest.raises(ConfigError, match=f"mbr.{settings.partition('=')[0]} must be"):
        fit(f"mbr[{settings}]", data=rare_region())
