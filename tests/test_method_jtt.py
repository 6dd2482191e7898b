"""JTT: its oracle by hand, laps with repeated examples, and twenty updates against a plain restatement."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from molere.batches import Batches
from molere.errors import ConfigError, DataError
from molere.methods.jtt import JTT, repeated
from molere.run import fit
from molere.split import Split
from molere.testing import check_method, rare_region
from stepping import PLAIN, assert_same_parameters, batch_norm, begun, turn, twin_of, two_layers

CPU = torch.device("cpu")
WRONG = torch.zeros(10, dtype=torch.bool)
WRONG[[2, 5]] = True

# ---- by hand


def test_errors_repeated_three_times_train_four_times_as_often() -> None:
    split = repeated(WRONG, 3)
    assert len(split.train) == 16
    assert Counter(split.train.tolist()) == {i: 4 if i in (2, 5) else 1 for i in range(10)}
    assert split.is_empty_val


@pytest.mark.parametrize(("normalise", "over"), [(False, 10), (True, 14)])
def test_weighted_errors_count_three_times_in_the_expected_loss(normalise: bool, over: int) -> None:
    losses = torch.arange(1.0, 11)
    weights = JTT(mode="weight", factor=3.0, normalise=normalise).weights(WRONG)
    expected = float(losses.sum() + 2 * losses[2] + 2 * losses[5]) / over
    assert float((weights * losses).mean()) == pytest.approx(expected)


# ---- laps with repeated examples


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 12))
def test_each_lap_has_every_item_of_a_repeated_part_once(size: int, times: int, count: int) -> None:
    wrong = torch.zeros(size, dtype=torch.bool)
    wrong[0] = True
    split = repeated(wrong, times)
    batches, lap = Batches(size, 0, CPU), len(split.train)
    batches.use(split, at=0)
    drawn = torch.cat([batches.train(update, count) for update in range(3 * lap)])
    for start in range(0, 3 * lap, lap):
        assert sorted(drawn[start : start + lap].tolist()) == sorted(split.train.tolist())


def test_the_split_in_force_goes_on_and_an_equal_one_begins_anew() -> None:
    split = repeated(WRONG, 3)
    through, anew = Batches(10, 0, CPU), Batches(10, 0, CPU)
    through.use(split, at=0)
    anew.use(split, at=0)
    uninterrupted = [through.train(update, 4) for update in range(8)]
    through.use(through.split, at=2)
    assert all(map(torch.equal, uninterrupted, [through.train(update, 4) for update in range(8)]))
    anew.use(repeated(WRONG, 3), at=2)
    assert not all(torch.equal(uninterrupted[u], anew.train(u, 4)) for u in range(2, 6))


def test_batches_of_a_repeated_part_go_on_after_saving_and_loading() -> None:
    batches, loaded = Batches(10, 0, CPU), Batches(10, 0, CPU)
    batches.use(repeated(WRONG, 3), at=0)
    loaded.load_state_dict(batches.state_dict())
    assert loaded.split.repeated
    loaded.use(loaded.split, at=3)
    assert all(torch.equal(batches.train(u, 4), loaded.train(u, 4)) for u in range(3, 9))


def test_a_part_names_an_example_twice_only_where_that_is_meant() -> None:
    twice, other = torch.tensor([0, 1, 1]), torch.tensor([2])
    assert Split(twice, other, repeated=True).repeated
    with pytest.raises(DataError, match="names 1 examples more than once"):
        Split(twice, other)
    with pytest.raises(DataError, match="the validation part names 1 examples more than once"):
        Split(other, twice, repeated=True)
    with pytest.raises(DataError, match="1 examples are in both parts"):
        Split(twice, torch.tensor([1]), repeated=True)
    assert Split(twice, torch.tensor([1]), repeated=True, shared=True).shared


def test_two_epochs_of_updates_go_through_a_lap_of_two_epochs_once() -> None:
    training = begun("jtt[factor=3]", batch_size=16)
    wrong = torch.zeros(96, dtype=torch.bool)
    wrong[:32] = True
    training.state.wrong = wrong
    index = torch.cat([turn(training).seen.batch.index for _ in range(12)])
    assert Counter(index.tolist()) == {i: 4 if i < 32 else 1 for i in range(96)}
    assert training.run.budget == 24


# ---- twenty updates


@pytest.mark.parametrize("mode", ["repeat", "weight"])
@pytest.mark.parametrize("model", [two_layers, batch_norm], ids=["mlp", "batch-norm"])
def test_twenty_updates_are_those_of_a_plain_restatement(mode: str, model: type) -> None:
    training = begun(f"jtt[mode={mode},factor=4,normalise=false]", model=model, **PLAIN)
    twin, run = twin_of(training), training.run
    first = fit(
        "erm", data=rare_region(), model=model, recipe={**PLAIN, "epochs": 1, "batch_size": 16, "device": "cpu"}
    )
    classifier = first.classifier.eval()
    x, y = run.pool.batch(torch.arange(96)).x.double(), run.pool.y
    with torch.no_grad():
        errors = {i for i in range(96) if int(classifier(x[i : i + 1]).argmax()) != int(y[i])}
    assert 0 < len(errors) < 96
    seen: list[int] = []
    for _ in range(20):
        taken = turn(training)
        index = taken.seen.batch.index
        seen.extend(index.tolist())
        upweighted = [4.0 if mode == "weight" and int(i) in errors else 1.0 for i in index]
        twin.step(x[index], y[index], torch.tensor(upweighted))
        if mode == "weight":
            assert taken.weights is not None
            assert taken.weights.tolist() == upweighted
        else:
            assert taken.weights is None
        assert_same_parameters(training, twin)
    items = [i for i in range(96) for _ in range(5 if mode == "repeat" and i in errors else 1)]
    lap = min(len(items), len(seen))
    assert Counter(seen[:lap]) <= Counter(items)
    assert lap == len(items) or mode == "repeat"


# ---- the first model


@pytest.mark.parametrize(("share", "trained"), [(0.1, 1), (0.5, 2), (0.51, 3), (1.0, 4)])
def test_the_errors_are_those_of_an_erm_model_of_some_epochs_rounded_up(share: float, trained: int) -> None:
    recipe = {"batch_size": 16, "device": "cpu"}
    result = fit(f"jtt[epochs={share}]", data=rare_region(), model=two_layers, recipe={**recipe, "epochs": 4})
    first = fit("erm", data=rare_region(), model=two_layers, recipe={**recipe, "epochs": trained})
    wrong = first.samples["prediction"] != first.samples["label"]
    np.testing.assert_array_equal(result.samples["first_error"], wrong.astype(np.float32))
    assert result.history[0]["error_share"] == pytest.approx(wrong.mean())
    assert result.cost.scout_backward == trained * 96
    assert result.cost.scout_forward == trained * 96 + 96


@pytest.mark.parametrize("mode", ["repeat", "weight"])
def test_the_second_training_costs_what_erm_costs(mode: str) -> None:
    recipe = {"epochs": 4, "batch_size": 16, "device": "cpu"}
    result = fit(f"jtt[mode={mode}]", data=rare_region(), model=two_layers, recipe=recipe)
    assert result.updates == 24
    assert (result.cost.forward, result.cost.backward) == (24 * 16, 24 * 16)
    assert result.cost.virtual_forward == result.cost.virtual_backward == 0


def test_a_factor_of_one_is_erm() -> None:
    recipe = {"epochs": 4, "batch_size": 20, "device": "cpu"}  # 96 is no multiple of it
    ours, erm = (fit(m, data=rare_region(), recipe=recipe) for m in ("jtt[mode=weight,factor=1]", "erm"))
    theirs: dict[str, Tensor] = dict(erm.classifier.state_dict())
    assert all(torch.equal(v, theirs[k]) for k, v in ours.classifier.state_dict().items())


def test_without_errors_every_example_counts_once() -> None:
    assert sorted(repeated(torch.zeros(10, dtype=torch.bool), 5).train.tolist()) == list(range(10))


@pytest.mark.parametrize("settings", ["mode=weight,factor=2.5,normalise=false", "factor=20"])
def test_variants_keep_the_contract(settings: str) -> None:
    check_method(f"jtt[{settings}]", model=batch_norm)


def test_half_a_repetition_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing can be repeated 2.5 times: give a whole factor, or mode=weight"):
        fit("jtt[factor=2.5]", data=rare_region())


@pytest.mark.parametrize("settings", ["factor=0", "epochs=0", "epochs=1.5", "mode=both"])
def test_settings_outside_their_limits_are_refused(settings: str) -> None:
    with pytest.raises(ConfigError, match=f"jtt.{settings.partition('=')[0]} must be"):
        fit(f"jtt[{settings}]", data=rare_region())
