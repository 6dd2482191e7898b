"""The experiment that files, flags and overrides describe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molere import registry
from molere.config import parse_yaml, read_overrides
from molere.errors import ConfigError
from molere.experiment import DataChoice, Experiment, experiment, resolved_yaml

RECIPES = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.integers(1, 1000),
        "lr": st.floats(1e-9, 10),
        "nesterov": st.booleans(),
        "q": st.none() | st.integers(1, 9),
        "precision": st.sampled_from(["float32", "float64"]),
        "optimizer": st.sampled_from(["sgd", "AdamW"]),
        "optimizer_args": st.dictionaries(st.sampled_from(["eps", "foreach"]), st.booleans() | st.floats(0, 1)),
    },
)
EXPERIMENTS = st.fixed_dictionaries(
    {},
    optional={
        "data": st.sampled_from(
            ["digits", "cifar10", {"scenario": "noise"}, {"name": "digits", "limit": 7, "root": "a b/ü #"}]
        ),
        "model": st.none() | st.sampled_from([*registry.MODELS]),
        "methods": st.lists(
            st.sampled_from(["erm", "lrwopt@paper", "lrw-hard[q=2,weights.c=1]", "molere"]), min_size=1, unique=True
        ),
        "seeds": st.integers(1, 9) | st.lists(st.integers(0, 99), min_size=1, unique=True) | st.just("3,5,7"),
        "preset": st.sampled_from([*registry.PRESETS]),
        "train": RECIPES,
        "out": st.none() | st.text(max_size=9),
        "jobs": st.just("auto") | st.integers(1, 4),
    },
)


def sentences(*layers: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        experiment(*layers)
    return str(error.value).splitlines()


@given(EXPERIMENTS)
def test_a_resolved_file_reads_back_as_the_same_experiment(layer: dict[str, object]) -> None:
    e = experiment(layer)
    text = resolved_yaml(e, heading=("made by a test",))
    assert experiment(parse_yaml(text)) == e
    assert experiment(parse_yaml(text)).hash == e.hash


def test_a_resolved_file_has_a_comment_for_every_key_stated_or_not() -> None:
    text = resolved_yaml(experiment({"methods": ["lrwopt"], "train": {"lr": 0.2}, "method": {"delta": 0.2}}))
    lines = [line for line in text.splitlines() if line.strip().removeprefix("# ")]
    assert all("  # " in line for line in lines if not line.strip().startswith("#   "))
    assert "  lr: 0.2  # Initial learning rate of the classifier." in lines
    assert any(line.startswith("  # momentum: 0.9  # ") for line in lines)
    assert any(line.startswith("  #   c: 0.5  # ") for line in lines)
    assert sum("delta:" in line for line in lines) == 1


def test_nothing_stated_is_the_recommended_method_on_the_embedded_data() -> None:
    assert experiment() == Experiment(data=DataChoice(name="digits"), methods=("molere",), seeds=(0,))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"data": "cifar10"}, {"data": {"name": "cifar10"}}),
        ({"methods": "erm,molere"}, {"methods": ["erm", "molere"]}),
        ({"methods": "lrw-hard[q=2,delta=0.2]"}, {"methods": ["lrw-hard[delta=0.2,q=2]"]}),
        ({"seeds": 3}, {"seeds": [0, 1, 2]}),
        ({"seeds": "3"}, {"seeds": [0, 1, 2]}),
        ({"seeds": "3,5,7"}, {"seeds": [3, 5, 7]}),
    ],
)
def test_short_forms_mean_the_long_ones(short: dict[str, object], long: dict[str, object]) -> None:
    assert experiment(short) == experiment(long)


def test_a_short_form_keeps_what_lies_below_it() -> None:
    assert experiment({"data": {"scenario": "noise"}}, {"data": "cifar10"}).data == DataChoice(
        name="cifar10", scenario="noise"
    )


def test_later_layers_win() -> None:
    file = {"train": {"lr": 0.1, "epochs": 3}, "seeds": 3}
    e = experiment({"seeds": 5, "methods": "erm"}, file, read_overrides(["train.lr=0.2"]))
    assert (e.train, len(e.seeds), e.methods) == ({"lr": 0.2, "epochs": 3}, 3, ("erm",))


def test_labels_hold_preset_and_settings_of_the_methods_that_have_them() -> None:
    e = experiment({"methods": "erm,lrwopt[q=2],molere@default", "preset": "paper", "method": {"delta": 0.2}})
    assert e.labels == ["erm", "lrwopt@paper[delta=0.2,q=2]", "molere@default[delta=0.2]"]


def test_the_hash_follows_what_is_trained_only() -> None:
    base = experiment()
    assert experiment({"seeds": 9, "methods": "erm", "out": "x", "jobs": 2}).hash == base.hash
    assert experiment({"data": {"scenario": base.scenario}, "train": {}}).hash != experiment({"train": {"lr": 1}}).hash
    assert len({experiment(x).hash for x in ({}, {"model": "cnn"}, {"train": {"lr": 1}}, {"data": {"limit": 9}})}) == 4


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"data": "digit"}, "unknown data set 'digit'; did you mean 'digits'? Known: digits"),
        (
            {"data": {"scenario": "nois"}},
            "unknown scenario of digits 'nois'; did you mean 'noise'? Known: hidden-group",
        ),
        ({"data": {"nme": "x"}}, "data.nme: unknown key; did you mean data.name?"),
        ({"data": {"limit": 0}}, "data.limit must be an int of at least 1 (or none); got 0."),
        ({"data": 3}, "data must be a mapping of DataChoice's settings; got 3."),
        ({"model": "ressnet20"}, "unknown model 'ressnet20'; did you mean 'resnet20'?"),
        ({"methods": "lrw-opt"}, "unknown method 'lrw-opt'; did you mean 'lrwopt'?"),
        ({"methods": []}, "methods must be a list such as [erm, molere]; got []."),
        ({"methods": [1]}, "methods must be a list such as [erm, molere]; got [1]."),
        ({"methods": ["erm", "erm"]}, "method erm is named twice; keep one"),
        ({"seeds": 0}, "seeds must be a number of seeds or a list of them, as in 5 or 3,5,7; got 0."),
        ({"seeds": "a"}, "seeds must be a number of seeds or a list of them, as in 5 or 3,5,7; got ['a']."),
        ({"seeds": [1, 1]}, "seeds must differ; got [1, 1]."),
        ({"seeds": [-1]}, "seeds must be a number of seeds or a list of them, as in 5 or 3,5,7; got [-1]."),
        ({"seeds": True}, "seeds must be a number of seeds or a list of them, as in 5 or 3,5,7; got true."),
        ({"preset": "papr"}, "unknown preset 'papr'; did you mean 'paper'? Known: default, paper"),
        ({"train": {"lrr": 1}}, "train.lrr: unknown key; did you mean train.lr?"),
        ({"train": {"lr": float("nan")}}, "train.lr must be a float above 0; got nan."),
        ({"train": 3}, "train must be a mapping; got 3."),
        ({"method": {"detla": 1}}, "method.detla: unknown key; did you mean method.delta?"),
        ({"jobs": 0}, "jobs must be one of auto or an int of at least 1; got 0."),
        ({"foo": 1}, "foo: unknown key; known: data, model, methods"),
        ({"metods": "erm"}, "metods: unknown key; did you mean methods?"),
    ],
)
def test_each_mistake_is_one_sentence(layer: dict[str, object], said: str) -> None:
    (sentence,) = sentences(layer)
    assert sentence.startswith(said)


def test_all_mistakes_are_told_together() -> None:
    wrong = {
        "data": "digit",
        "model": "x",
        "train": {"lrr": 1, "lr": -1},
        "method": {"detla": 1},
        "methods": ["lrwopt[q=0]"],
    }
    assert len(sentences(wrong)) == 6
