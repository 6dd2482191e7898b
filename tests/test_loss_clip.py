"""Loss clipping: a share of each batch, its largest losses, that no method's update counts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from molere import fit
from molere.losses import clip_factors, trimmed_mean
from molere.recipe import Recipe
from stepping import begun, turn

DATA = {"name": "digits", "scenario": "noise", "limit": 128}


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.floats(0, 0.99))
def test_clipped_losses_have_the_trimmed_mean(values: list[float], share: float) -> None:
    losses = torch.tensor(values, dtype=torch.float64)
    factors = clip_factors(losses, share)
    kept = int((factors > 0).sum())
    assert kept == max(1, len(values) - int(np.floor(share * len(values) + 1e-9)))
    assert float(factors.mean()) == pytest.approx(1)
    assert float((factors * losses).mean()) == pytest.approx(float(trimmed_mean(losses, share)))


def test_clipped_erm_is_trimmed_training() -> None:
    one = fit("erm", data=DATA, recipe={"epochs": 2, "loss_clip": 0.2})
    two = fit("trimmed[share=0.2]", data=DATA, recipe={"epochs": 2})
    for a, b in zip(one.classifier.parameters(), two.classifier.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert one.history[-1]["weights_nonzero"] == pytest.approx(1 - 12 / 64)


@pytest.mark.parametrize("method", ["mwn", "l2r", "gdw", "fsr", "lrwopt", "maple", "upweight"])
def test_every_method_leaves_the_largest_losses_of_a_batch_out(method: str) -> None:
    training = begun(method, loss_clip=0.25)
    for _ in range(8):
        taken = turn(training)
        if taken.weights is not None:
            assert int((taken.weights == 0).sum()) >= 4
            largest = taken.seen.losses.detach().argsort(descending=True)[:4]
            assert float(taken.weights[largest].abs().max()) == 0


@pytest.mark.parametrize("plain", [True, False])
def test_the_weight_gradient_is_that_of_the_clipped_step(plain: bool) -> None:
    training = begun("mwn", loss_clip=0.25, precision="float64", momentum=0.0 if plain else 0.9)
    for _ in range(4):
        turn(training)
    run = training.run
    batch, val = run.train_batch(), run.val_batch()
    w = torch.rand(len(batch), dtype=torch.float64) + 0.5

    def reached(weights: torch.Tensor) -> float:
        seen = run.forward(batch)
        return float(run.look_ahead(seen, weights, plain=plain, batch=val).losses.mean())

    found = run.weight_gradient(run.look_ahead(run.forward(batch, remember=True), w, plain=plain, batch=val))
    step, numeric = 1e-5, []
    for k in range(len(batch)):
        bump = torch.zeros_like(w)
        bump[k] = step
        numeric.append((reached(w + bump) - reached(w - bump)) / (2 * step))
    torch.testing.assert_close(found, torch.tensor(numeric, dtype=torch.float64), rtol=1e-4, atol=1e-7)
    assert int((found == 0).sum()) == 4


def test_a_recipe_without_the_younger_settings_says_what_it_always_said() -> None:
    assert not {"weights", "loss_clip"} & set(Recipe().stated())
    assert Recipe(loss_clip=0.1).stated()["loss_clip"] == 0.1
    assert set(Recipe().stated()) | {"weights", "loss_clip"} == set(vars(Recipe()))
