"""RHO-Loss: what it selects by hand, twenty updates against a plain restatement, and its model of the holdout."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from molere.data.pool import Data
from molere.data.view import PoolView
from molere.errors import ConfigError, DataError
from molere.methods.rho_loss import class_shares, largest, some_of
from molere.run import fit
from molere.testing import check_method, rare_region
from stepping import PLAIN, assert_same_parameters, batch_norm, begun, turn, twin_of, two_layers

LOSSES = torch.tensor([2.0, 1.0, 0.5, 3.0])
IRREDUCIBLE = torch.tensor([1.9, 0.2, 0.6, 0.5])
IDS = torch.arange(4)

# ---- selection by hand


def test_the_largest_reducible_losses_are_selected() -> None:
    rho = LOSSES - IRREDUCIBLE
    torch.testing.assert_close(rho, torch.tensor([0.1, 0.8, -0.1, 2.5]))
    assert largest(rho, IDS, 2).tolist() == [3, 1]


def test_a_constant_irreducible_loss_selects_the_largest_losses() -> None:
    for k in range(1, 5):
        assert torch.equal(largest(LOSSES - 0.7, IDS, k), LOSSES.argsort(descending=True)[:k])


def test_equal_ones_are_taken_by_the_smaller_position_in_the_pool() -> None:
    index = torch.tensor([7, 3, 9, 1])
    assert index[largest(torch.zeros(4), index, 3)].tolist() == [1, 3, 7]


def test_an_example_that_is_offered_twice_is_taken_once() -> None:
    index, rho = torch.tensor([5, 2, 5, 8]), torch.tensor([3.0, 1.0, 3.0, 2.0])
    assert index[largest(rho, index, 3)].tolist() == [5, 8, 2]
    assert sorted(index[largest(rho, index, 4)].tolist()) == [2, 5, 5, 8]  # unless nobody else is left


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_nobody_who_is_left_out_has_a_larger_reducible_loss(values: list[float], k: int, random: Any) -> None:
    rho, index = torch.tensor(values), torch.tensor(random.sample(range(100), len(values)))
    chosen = largest(rho, index, k)
    assert len(set(chosen.tolist())) == len(chosen) == min(k, len(rho))
    rest = torch.ones(len(rho), dtype=torch.bool)
    rest[chosen] = False
    if rest.any():
        last = (float(rho[chosen].min()), -int(index[chosen[rho[chosen] == rho[chosen].min()]].max()))
        first = (float(rho[rest].max()), -int(index[rest][rho[rest] == rho[rest].max()].min()))
        assert last > first


def test_shares_of_classes_are_of_those_selected_and_relative_to_those_offered() -> None:
    logged = class_shares(torch.tensor([50, 30, 20, 0]), torch.tensor([2, 6, 2, 0]))
    assert logged["selected_class_1"] == pytest.approx(0.6)
    assert (logged["selected_least"], logged["selected_most"]) == pytest.approx((0.4, 2.0))
    assert set(class_shares(torch.arange(1, 22), torch.arange(1, 22))) == {"selected_least", "selected_most"}


# ---- twenty updates


@pytest.mark.parametrize(
    ("model", "mode"),
    [(two_layers, "train"), (batch_norm, "train"), (batch_norm, "moving"), (batch_norm, "eval")],
    ids=["mlp", "statistics kept", "statistics moved", "evaluation mode"],
)
def test_twenty_updates_are_those_of_a_plain_restatement(model: Any, mode: str) -> None:
    training = begun(f"rho-loss[share=0.25,mode={mode}]", model=model, **PLAIN)
    run, twin = training.run, twin_of(training)
    irreducible, pool = training.state.irreducible.double(), run.pool
    offered: list[Tensor] = []
    candidates = run.candidates
    run.candidates = lambda size: (offered.append((batch := candidates(size)).index), batch)[1]
    for _ in range(20):
        taken = turn(training)
        many = offered[-1]
        x, y = pool.batch(many).x.double(), pool.y[many]
        if mode == "eval":
            twin.model.eval()
        with torch.no_grad():
            losses = twin.losses(twin.theta, x, y, real=mode == "moving")
        twin.model.train()
        rho = losses - irreducible[many]
        seen: set[int] = set()
        order: list[int] = []
        for i in sorted(range(len(many)), key=lambda i: (-float(rho[i]), int(many[i]))):
            if int(many[i]) not in seen:
                order.append(i)
            seen.add(int(many[i]))
        chosen = torch.tensor(order[:16])
        assert torch.equal(taken.seen.batch.index, many[chosen])
        assert taken.weights is None
        twin.step(x[chosen], y[chosen], torch.ones(16))
        assert_same_parameters(training, twin)
        training.run.classifier.model.train()
    assert len(offered[0]) == 64
    assert len(training.run.split.train) == 87


@pytest.mark.parametrize("mode", ["train", "moving", "eval"])
def test_only_the_moving_mode_moves_running_statistics(mode: str) -> None:
    training = begun("rho-loss", model=batch_norm)
    run = training.run
    before = {k: v.clone() for k, v in run.classifier.model.state_dict().items()}
    run.losses(run.pool.batch(torch.arange(32)), mode)
    changed = [k for k, v in run.classifier.model.state_dict().items() if not torch.equal(v, before[k])]
    assert bool(changed) is (mode == "moving")
    assert all("running" in k or "batches" in k for k in changed)
    assert run.classifier.model.training


def test_losses_in_training_mode_are_those_of_a_training_pass() -> None:
    training = begun("rho-loss", model=batch_norm)
    run, batch = training.run, training.run.pool.batch(torch.arange(32))
    for mode in ("train", "moving"):
        found = run.losses(batch, mode)
        assert not found.requires_grad
        torch.testing.assert_close(found, run.forward(batch).losses.detach())
    assert not torch.allclose(run.losses(batch, "eval"), found)


# ---- the model of irreducible losses


def holdout_of(training: Any) -> tuple[Tensor, Tensor | None]:
    return training.setup.method.parts(training.run, training.state.part)


@pytest.mark.parametrize("select", [0.0, 0.3])
def test_irreducible_losses_are_those_of_the_best_epoch_on_a_part_of_the_holdout(select: float) -> None:
    training = begun(f"rho-loss[delta=0.4,select={select},epochs=2]", lr=0.5, epochs=6)
    fitted, chosen = holdout_of(training)
    pool, data = training.run.pool, rare_region()
    alone = begun("erm", data=dataclasses.replace(data, train=PoolView(pool, fitted)), lr=0.5, epochs=12)
    kept: list[tuple[float, Tensor]] = []
    while alone.run.updates < alone.run.budget:
        turn(alone)
        if alone.run.updates % alone.run.per_epoch == 0:
            with torch.no_grad():
                logits = alone.run.classifier.model(pool.batch(torch.arange(96)).x)
            losses = F.cross_entropy(logits, pool.y, reduction="none")
            kept.append((math.inf if chosen is None else float(losses[chosen].mean()), losses))
    expected = kept[-1] if chosen is None else min(kept, key=lambda pair: pair[0])
    torch.testing.assert_close(training.state.irreducible, expected[1], rtol=0, atol=1e-6)
    if chosen is not None:
        assert expected is not kept[-1]
        assert not set(chosen.tolist()) & set(fitted.tolist())
        assert sorted([*chosen.tolist(), *fitted.tolist()]) == training.state.part.tolist()


def test_the_holdout_trains_the_first_model_and_nothing_else() -> None:
    result = fit(
        "rho-loss", data=rare_region(), model=two_layers, recipe={"epochs": 4, "batch_size": 16, "device": "cpu"}
    )
    inside = result.samples["in_validation"]
    assert inside.sum() == 9
    assert np.isnan(result.samples["weight"][inside]).all()
    assert (result.samples["times_selected"][inside] == 0).all()
    assert result.samples["times_selected"].sum() == 24 * 16
    assert np.isfinite(result.samples["irreducible_loss"]).all()


def test_the_class_that_the_first_model_cannot_learn_is_selected_less_and_the_log_says_so() -> None:
    data = rare_region()
    training = begun("rho-loss[share=0.25]", data=data)
    training.state.irreducible = torch.where(training.run.pool.y == 1, 9.0, 0.0)
    for _ in range(6):
        turn(training)
    logged = training.run.notes.logged
    assert logged["selected_class_1"] == logged["selected_least"] == 0
    assert logged["selected_class_0"] == 1
    assert not training.state.offered_classes.any()


def test_a_holdout_of_single_examples_of_many_classes_still_gives_some_to_choose_the_epoch_by() -> None:
    draws = torch.Generator().manual_seed(0)
    alone = some_of(torch.arange(50), 0.2, draws)
    assert len(set(alone.tolist())) == 10
    assert all(0 <= i < 50 for i in alone.tolist())
    by_class = some_of(torch.arange(50) % 5, 0.2, draws)
    assert (by_class % 5).bincount().tolist() == [2] * 5


# ---- costs and limits


@pytest.mark.parametrize(("settings", "offered"), [("share=0.25", 64), ("share=0.1", 87), ("share=1", 16)])
def test_an_update_costs_a_forward_pass_over_the_candidates_and_a_training_pass(settings: str, offered: int) -> None:
    training = begun(f"rho-loss[{settings},delta=0.1,select=0.25,epochs=1]", batch_size=16)
    scouts = training.run.cost.scout_forward, training.run.cost.scout_backward
    assert scouts == (4 * 7 + 4 * 2 + 96, 4 * 7)  # seven train in one batch an epoch, two select, then a pass over all
    for _ in range(24):
        turn(training)
    cost = training.run.cost
    assert (cost.virtual_forward, cost.virtual_backward) == (24 * offered, 0)
    assert (cost.forward, cost.backward) == (24 * 16, 24 * 16)


@pytest.mark.parametrize("settings", ["mode=moving,share=0.25", "mode=eval,select=0,share=1"])
def test_variants_keep_the_contract(settings: str) -> None:
    check_method(f"rho-loss[{settings}]", model=batch_norm)


def test_a_holdout_too_small_to_select_on_is_refused() -> None:
    data: Data = rare_region()
    with pytest.raises(DataError, match=r"^select=0.1 of a holdout of 9 is nobody: use a larger delta or select=0$"):
        fit("rho-loss[select=0.1]", data=data, recipe={"device": "cpu"})
    fit("rho-loss[select=0]", data=data, recipe={"device": "cpu", "epochs": 1})


@pytest.mark.parametrize("settings", ["share=0", "share=1.5", "mode=both", "select=0.7", "delta=0.9"])
def test_settings_outside_their_limits_are_refused(settings: str) -> None:
    with pytest.raises(ConfigError, match=f"rho-loss.{settings.partition('=')[0]} must be"):
        fit(f"rho-loss[{settings}]", data=rare_region())
