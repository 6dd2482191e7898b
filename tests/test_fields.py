"""Dataclasses of settings: limits, sentences, and building from plain mappings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt
from hypothesis import given
from hypothesis import strategies as st

from molere.errors import ConfigError
from molere.fields import build, check_fields, field_limits
from molere.limits import Limits
from molere.recipe import Recipe


@dataclass(frozen=True)
class Net:
    """Nested settings."""

    hidden: Annotated[int, Ge(0)] = 64
    lr: Annotated[float, Gt(0)] = 0.01

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Random:
    stratified: bool = True


@dataclass(frozen=True)
class Hardest:
    trim: Annotated[float, Interval(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class Given:
    index: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Toy:
    delta: Annotated[float, Interval(gt=0, le=0.5)] = 0.1
    q: Annotated[int, Ge(1)] | None = None
    keep: bool = False
    order: Literal["fused", "strict"] = "fused"
    optimizer: str | Callable[..., object] = "sgd"
    sizes: tuple[int, ...] = (1, 2)
    extra: Mapping[str, object] = field(default_factory=dict[str, object])
    net: Net = Net(hidden=8)
    other: Net | None = None
    holdout: Random | Hardest | Given = Hardest(trim=0.2)

    def __post_init__(self) -> None:
        check_fields(self)


def mistakes(settings: Mapping[str, object], where: str = "method") -> list[str]:
    with pytest.raises(ConfigError) as error:
        build(Toy, settings, where)
    return str(error.value).splitlines()


def test_nothing_stated_gives_the_defaults() -> None:
    assert build(Toy, {}) == Toy()


def test_a_nested_mapping_changes_what_it_names_and_keeps_the_field_default_otherwise() -> None:
    assert build(Toy, {"net": {"lr": 1}}).net == Net(hidden=8, lr=1.0)
    assert build(Toy, {"other": {"lr": 1}}).other == Net(lr=1.0)
    assert build(Toy, {"other": "none"}).other is None


@pytest.mark.parametrize(
    ("given_", "holdout"),
    [
        ({"kind": "random"}, Random()),
        ("random", Random()),
        ({"kind": "hardest"}, Hardest(trim=0.2)),
        ({"trim": 0.3}, Hardest(trim=0.3)),
        ({"kind": "given", "index": [1, 2]}, Given((1, 2))),
        (Hardest(trim=0.4), Hardest(trim=0.4)),
    ],
)
def test_the_key_kind_chooses_among_several_classes(given_: object, holdout: object) -> None:
    assert build(Toy, {"holdout": given_}).holdout == holdout


def test_lists_become_tuples_and_whole_numbers_floats() -> None:
    toy = build(Toy, {"sizes": [3, 4], "net": {"lr": 1}})
    assert toy.sizes == (3, 4)
    assert type(toy.net.lr) is float


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"delta": 10}, "method.delta must be a float in (0, 0.5]; got 10. It is a fraction, not a percentage."),
        ({"delta": 0}, "method.delta must be a float in (0, 0.5]; got 0."),
        ({"delta": float("nan")}, "method.delta must be a float in (0, 0.5]; got nan."),
        ({"delta": "0.1"}, "method.delta must be a float in (0, 0.5]; got '0.1'."),
        ({"delta": True}, "method.delta must be a float in (0, 0.5]; got true."),
        ({"delta": None}, "method.delta must be a float in (0, 0.5]; got none."),
        ({"q": 0}, "method.q must be an int of at least 1 (or none); got 0."),
        ({"q": 2.5}, "method.q must be an int of at least 1 (or none); got 2.5."),
        ({"keep": "yes"}, "method.keep must be true or false; got 'yes'."),
        ({"keep": 1}, "method.keep must be true or false; got 1."),
        ({"order": "fusd"}, "method.order must be one of fused, strict; got 'fusd'."),
        ({"optimizer": 3}, "method.optimizer must be text; got 3."),
        ({"sizes": 3}, "method.sizes must be a list; got 3."),
        ({"extra": []}, "method.extra must be a mapping; got []."),
        ({"net": 3}, "method.net must be a mapping of Net's settings; got 3."),
        ({"net": {"lrr": 3}}, "method.net.lrr: unknown key; did you mean method.net.lr?"),
        ({"holdout": "hardst"}, "method.holdout.kind must be one of random, hardest, given; got 'hardst'."),
        ({"holdout": 3}, "method.holdout.kind must be one of random, hardest, given; got 3."),
        ({"holdout": {"kind": "random", "trim": 1}}, "method.holdout.trim: unknown key; known: stratified"),
        ({"holdout": {"kind": "given"}}, "method.holdout.index must be given."),
        ({"detla": 1}, "method.detla: unknown key; did you mean method.delta?"),
    ],
)
def test_each_mistake_is_one_sentence_that_names_key_value_and_limits(settings: dict[str, object], said: str) -> None:
    assert mistakes(settings) == [said]


def test_all_mistakes_are_told_together() -> None:
    assert len(mistakes({"delta": 10, "q": 0, "net": {"lr": -1, "x": 1}, "y": 2})) == 5


def test_python_says_the_same_as_a_file_with_the_name_of_the_class() -> None:
    with pytest.raises(ConfigError) as error:
        Toy(delta=10)
    assert str(error.value) == "Toy: delta must be a float in (0, 0.5]; got 10. It is a fraction, not a percentage."


def test_python_is_told_which_class_a_field_takes() -> None:
    with pytest.raises(ConfigError, match=r"^Toy: net must be Net\(...\); got \{\}\.$"):
        Toy(net={})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^Toy: holdout must be Random\(...\) or Hardest\(...\) or Given"):
        Toy(holdout="random")  # type: ignore[arg-type]
    assert Toy(other=None).other is None


def test_an_int_for_a_float_becomes_one_in_python_too() -> None:
    assert type(Net(lr=1).lr) is float


def test_classes_by_name_serve_fields_of_a_protocol() -> None:
    kinds = {"int": {"random": lambda: Random}}  # the field's type is called `int` here

    @dataclass(frozen=True)
    class Open:
        part: int = 0

    assert build(Open, {"part": {"kind": "random", "stratified": False}}, "", kinds).part == Random(stratified=False)


def test_the_recipe_reads_from_plain_settings() -> None:
    recipe = build(Recipe, {"epochs": 3, "lr": 1, "optimizer_args": {"foreach": False}, "q": "none"}, "train")
    assert recipe == Recipe(epochs=3, lr=1.0, optimizer_args={"foreach": False})


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[int, Ge(1)], "an int of at least 1"),
        (Annotated[float, Gt(0)], "a float above 0"),
        (Annotated[float, Lt(1)], "a float below 1"),
        (Annotated[float, Le(1)], "a float of at most 1"),
        (Annotated[float, Interval(ge=0, lt=1)], "a float in [0, 1)"),
        (int | str, "an int or text"),
        (Literal["a", 1], "one of a, 1"),
        (Literal["auto"] | int, "one of auto or an int"),
        (list[int] | None, "a list (or none)"),
        (object, "any value"),
        (Callable[..., object], "a function"),
        (Net, "any value"),
    ],
)
def test_limits_are_said_in_words_and_survive_storage(annotation: object, words: str) -> None:
    limits = Limits.of(annotation)
    assert str(limits) == words
    assert Limits.read(limits.plain()) == limits


@given(st.floats() | st.integers())
def test_an_interval_accepts_exactly_what_lies_in_it(value: float) -> None:
    limits = field_limits(Toy)["delta"]
    inside = 0 < value <= 0.5
    assert (limits.mistake("delta", value) is None) == inside
