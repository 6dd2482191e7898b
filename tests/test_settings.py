"""Methods by name: specs, stored settings, and the way to a Method."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molere import registry, settings
from molere.config import flatten, read_overrides
from molere.errors import ConfigError
from molere.fields import build, refuse
from molere.holdouts import Easiest, Hardest, Random
from molere.methods.erm import ERM
from molere.methods.lrw import LRW
from molere.methods.lrwopt import LRWOpt
from molere.recipe import Recipe
from molere.settings import MethodSpec, make_method
from molere.weighting import Weights

KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)
SCALARS = st.none() | st.booleans() | st.integers(-999, 999) | st.floats(allow_nan=False) | st.text(max_size=12)
NESTED = st.dictionaries(
    KEYS, SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(KEYS, SCALARS, min_size=1, max_size=2), max_size=4
)


def sentences(spec: str, overrides: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as error:
        make_method(spec, overrides)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("erm", MethodSpec("erm")),
        ("lrwopt@paper", MethodSpec("lrwopt", "paper")),
        ("lrw-hard[keep=true]", MethodSpec("lrw-hard", "", {"keep": True})),
        (" lrw-hard@paper [ q=2 ] ", MethodSpec("lrw-hard", "paper", {"q": 2})),
        ("lrw-hard@paper[q=2, weights.c=1e-1]", MethodSpec("lrw-hard", "paper", {"q": 2, "weights": {"c": 0.1}})),
        ("lrw-hard[]", MethodSpec("lrw-hard")),
        ("lrw-hard[a=[1,2],b='x,]']", MethodSpec("lrw-hard", "", {"a": [1, 2], "b": "x,]"})),
    ],
)
def test_a_spec_is_name_preset_and_settings(text: str, spec: MethodSpec) -> None:
    assert MethodSpec.parse(text) == spec


@given(st.sampled_from([*registry.METHODS]), st.sampled_from(["", *registry.PRESETS]), NESTED)
def test_a_spec_reads_back_from_its_text(name: str, preset: str, stated: dict[str, object]) -> None:
    spec = MethodSpec(name, preset, stated)
    assert MethodSpec.parse(str(spec)) == spec


def test_the_text_of_a_spec_does_not_depend_on_the_order_of_its_settings() -> None:
    assert str(MethodSpec.parse("lrwopt[q=2,delta=0.2]")) == str(MethodSpec.parse("lrwopt[delta=0.2,q=2]"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lrw-opt", "unknown method 'lrw-opt'; did you mean 'lrwopt'?"),
        ("erm@papr", "unknown preset 'papr'; did you mean 'paper'? Known: default, paper"),
        ("erm[", "method 'erm[': write NAME, NAME@PRESET or NAME[key=value,other.key=value]"),
        ("", "method '': write NAME"),
        ("erm[q]", "'q' is not an option nor an override"),
    ],
)
def test_a_spec_that_cannot_be_read_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        MethodSpec.parse(text)
    assert str(error.value).startswith(said)


def test_a_list_of_specs_is_cut_outside_brackets() -> None:
    found = settings.parse_specs("erm,lrw-hard[q=2,delta=0.2],molere")
    assert [s.name for s in found] == ["erm", "lrw-hard", "molere"]


def test_the_mistakes_of_a_list_of_specs_are_told_together() -> None:
    with pytest.raises(ConfigError) as error:
        settings.parse_specs("erm,emr,,erm")
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("name", registry.METHODS)
@pytest.mark.parametrize("preset", registry.PRESETS)
def test_every_name_and_preset_makes_a_method(name: str, preset: str) -> None:
    assert not settings.check_spec(MethodSpec(name), {}, preset)
    assert type(make_method(name, preset=preset)) is settings.load(registry.METHODS[name])


def test_names_fix_settings_of_a_shared_class() -> None:
    holdouts = {name: make_method(name).holdout for name in ("lrw-easy", "lrw-random", "lrw-hard")}  # type: ignore[attr-defined]
    assert holdouts == {"lrw-easy": Easiest(), "lrw-random": Random(), "lrw-hard": Hardest()}


def test_later_settings_win() -> None:
    default, paper = make_method("lrwopt"), make_method("lrwopt@paper")
    assert isinstance(default, LRWOpt)
    assert isinstance(paper, LRWOpt)
    assert (default.splitter_optimizer, paper.splitter_optimizer) == ("adam", "sgd")
    assert make_method("lrwopt", preset="paper") == paper
    assert make_method("lrwopt@default", preset="paper") == default
    spec = "lrwopt@paper[splitter_optimizer=adamw,q=2]"
    made = make_method(spec, {"q": 3, "weights": {"lr": 1}})
    assert isinstance(made, LRWOpt)
    assert (made.splitter_optimizer, made.q, made.weights.lr) == ("adamw", 3, 1.0)
    assert made.weights.network == paper.weights.network


def test_overrides_reach_nested_settings_and_another_holdout() -> None:
    made = make_method("lrw-hard@paper", read_overrides(["holdout.kind=random", "weights.c=2"]))
    assert isinstance(made, LRW)
    assert made.holdout == Random()
    assert made.weights == Weights(network="full", output="sigmoid", optimizer="sgd", lr=1e-3, scaled=False, c=2.0)


@pytest.mark.parametrize(
    ("spec", "overrides", "said"),
    [
        ("lrw-hard", {"delta": 10}, "lrw-hard.delta must be a float in (0, 0.5]; got 10. It is a fraction"),
        ("lrw-hard[detla=0.1]", {}, "lrw-hard.detla: unknown key; did you mean lrw-hard.delta?"),
        ("lrw-hard", {"lr": 0.1}, "lrw-hard.lr: unknown key; did you mean lrw-hard.weights.lr?"),
        ("lrw-hard[weights.network=ful]", {}, "lrw-hard.weights.network must be one of features, full"),
        ("lrw-hard[holdout=harest]", {}, "lrw-hard.holdout.kind must be one of random, easiest, hardest, "),
        ("lrw-hard[holdout.trm=0]", {}, "lrw-hard.holdout.trm: unknown key; did you mean lrw-hard.holdout.trim?"),
        ("erm[q=1]", {}, "erm.q: unknown key; known: none"),
    ],
)
def test_mistakes_are_found_with_and_without_the_class_in_the_same_words(
    spec: str, overrides: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError) as light:
        refuse(settings.check_spec(MethodSpec.parse(spec), overrides))
    assert str(light.value).startswith(said)
    if "weights.lr" not in said:  # the stored settings know more about where a key may belong
        assert sentences(spec, overrides) == str(light.value).splitlines()


def test_overrides_for_all_go_to_the_methods_that_have_them() -> None:
    specs = settings.parse_specs("erm,lrwopt")
    assert settings.applicable(specs[0], {"delta": 0.2}) == {}
    assert settings.applicable(specs[1], {"delta": 0.2}) == {"delta": 0.2}
    assert settings.nobodys(specs, {"delta": 0.2}) == []
    assert settings.nobodys(specs, {"detla": 0.2}) == ["method.detla: unknown key; did you mean method.delta?"]
    assert settings.nobodys(specs[:1], {"delta": 0.2}) == ["method.delta: unknown key; known: none"]


def test_known_settings_show_the_defaults_of_the_name() -> None:
    hard = settings.known_settings("lrw-hard")
    assert hard is not None
    assert hard["holdout"]["default"] == {"kind": "hardest"}
    assert hard["weights"]["fields"]["c"]["help"]
    stated = {k for k in flatten(hard) if k.endswith(".help")}
    assert len(stated) > 20


def test_a_class_that_is_not_stored_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "schema", dict)
    assert settings.known_settings("erm") is None
    assert settings.check_spec(MethodSpec("erm", "", {"nonsense": 1}), {}) == []
    assert isinstance(make_method("erm"), ERM)


@pytest.mark.parametrize("name", ["mlp", "wrn-16-4", "wrn-40-2", "torchvision:resnet18"])
def test_models_that_exist(name: str) -> None:
    settings.check_model(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ressnet20", "did you mean 'resnet20'?"),
        ("wrn-17-2", "6 n + 4"),
        ("wrn-16-0", "6 n + 4"),
        ("wrn-4-1", "6 n + 4"),
    ],
)
def test_models_that_do_not(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?").replace("+", r"\+")):
        settings.check_model(name)


def test_a_recipe_is_checked_at_every_key() -> None:
    with pytest.raises(ConfigError) as error:
        build(Recipe, {"lrr": 1, "epochs": 0}, "train")
    assert str(error.value).splitlines() == [
        "train.lrr: unknown key; did you mean train.lr?",
        "train.epochs must be an int of at least 1; got 0.",
    ]
