"""Strict settings files, overrides, and layers of settings."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from molere.config import dump_value, flatten, merge, merge_all, parse_value, parse_yaml, read_overrides, read_yaml
from molere.errors import ConfigError

KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
SCALARS = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
SETTINGS = st.recursive(
    st.dictionaries(KEYS, SCALARS, min_size=1, max_size=4),
    lambda inner: st.dictionaries(KEYS, inner | SCALARS, min_size=1, max_size=4),
    max_leaves=8,
)


def sentence(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "file")
    return str(error.value)


def refusal(read: Callable[[Any], object], what: object) -> str:
    """What a reader says to what it refuses; empty if it reads a mapping."""
    try:
        assert isinstance(read(what), dict)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e-4", 0.0005),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-2", -2),
        ("+3", 3),
        ("1e5", 1e5),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("none", "none"),
        ("007", "007"),
        ("0x1f", "0x1f"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-01-31", "2026-01-31"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("'1'", "1"),
        ("=", "="),
    ],
)
def test_values_are_read_as_they_were_meant(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "file: line 3: 'a' is given twice; keep one"),
        ("a: {b: 1, b: 2}", "file: line 1: 'b' is given twice; keep one"),
        ("a:\n\tb: 1", "file: line 2: a tab cannot indent; use spaces"),
        ("", "file: empty; write settings such as 'train: {epochs: 10}'"),
        ("# nothing", "file: empty; write settings such as 'train: {epochs: 10}'"),
        ("- 1\n- 2", "file: must be a mapping of keys to values; got [1, 2]"),
        ("a: &x 1", "file: line 1: anchors and aliases (& and *) are not allowed; write the value out"),
        ("a: 1\nb: *x", "file: line 2: anchors and aliases (& and *) are not allowed; write the value out"),
        ("a: !!python/object/apply:os.system [ls]", "file: line 1: tags (!...) are not allowed; write a plain value"),
        ("a: 1\n---\nb: 2", "file: line 2, column 1: one document only, without ---"),
        ("a: \x00", "file: not a text file (it holds characters that text does not)"),
        ("[1]: 2", "file: line 1: a key must be a name"),
        ("{[1]: 2}", "file: line 1: a key must be a name"),
        ("a: " + "9" * 5000, "file: line 1: '99999999999999999999999999... is too large a number"),
        ("a: " + "[" * 5000, "file: nested too deeply"),
    ],
)
def test_mistakes_in_a_file_are_one_sentence(text: str, said: str) -> None:
    assert sentence(text) == said


def test_several_repeated_keys_are_told_together() -> None:
    assert sentence("a: 1\na: 2\nb: 1\nb: 2").splitlines() == [
        "file: line 2: 'a' is given twice; keep one",
        "file: line 4: 'b' is given twice; keep one",
    ]


def test_a_merge_key_is_an_ordinary_key() -> None:
    assert parse_yaml("<<: 1") == {"<<": 1}


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "file.yaml"
    path.write_bytes(content)
    said = refusal(read_yaml, path)
    assert all(line.startswith(f"{path}: ") for line in said.splitlines())


@given(st.text(alphabet="ab:{}[]&*!-?,#|>'\"\\ \n\t0.%@`", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert refusal(parse_yaml, text) is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: a pipe or a device, expected a regular file" in refusal(read_yaml, tmp_path / "pipe")


def test_very_many_repeated_keys_are_counted() -> None:
    *told, last = sentence("a: 1\n" * 501).splitlines()
    assert len(told) == 20
    assert last == "file: and 480 more mistakes"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "no.yaml", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError, match=said):
            read_yaml(path)
    (tmp_path / "big.yaml").write_bytes(b"a" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_yaml(tmp_path / "big.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\xff")
    with pytest.raises(ConfigError, match="not a text file in UTF-8"):
        read_yaml(tmp_path / "latin.yaml")


@given(VALUES)
def test_a_dumped_value_reads_back(value: object) -> None:
    assert parse_value(dump_value(value)) == value


@given(SETTINGS)
def test_settings_written_as_overrides_read_back(settings: dict[str, object]) -> None:
    assert read_overrides([f"{k}={dump_value(v)}" for k, v in flatten(settings).items()]) == settings


@given(SETTINGS, st.randoms(use_true_random=False))
def test_the_order_of_overrides_does_not_matter(settings: dict[str, object], random: Random) -> None:
    arguments = [f"{k}={dump_value(v)}" for k, v in flatten(settings).items()]
    shuffled = random.sample(arguments, len(arguments))
    assert read_overrides(shuffled) == read_overrides(arguments)


def test_overrides_are_nested_by_their_dots() -> None:
    assert read_overrides(["train.lr=0.05", "method.weights.c=1", "model=mlp"]) == {
        "train": {"lr": 0.05},
        "method": {"weights": {"c": 1}},
        "model": "mlp",
    }


def test_all_mistakes_in_overrides_are_told_together() -> None:
    with pytest.raises(ConfigError) as error:
        read_overrides(["a=1", "a=2", "b", "c=", "d.e=1", "d=2", "f=1", "f.g=2", "h..i=1"])
    assert str(error.value).splitlines() == [
        "a: given twice (1 and 2); keep one",
        "'b' is not an option nor an override; write key=value, as in train.lr=0.05",
        "c: no value given; write c=none for none",
        "d: given twice ({'e': 1} and 2); keep one",
        "f.g: f was given the value 1 as well; keep one",
        "'h..i=1' is not an option nor an override; write key=value, as in train.lr=0.05",
    ]


def test_saying_the_same_twice_is_no_mistake() -> None:
    assert read_overrides(["a.b=1", "a.b=1"]) == {"a": {"b": 1}}


def test_later_layers_win_level_by_level() -> None:
    assert merge_all({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"d": 4}) == {"a": {"b": 1, "c": 3}, "d": 4}


def test_settings_of_one_kind_do_not_reach_another() -> None:
    hard = {"holdout": {"kind": "hardest", "trim": 0.1}}
    assert merge(hard, {"holdout": {"kind": "random"}}) == {"holdout": {"kind": "random"}}
    assert merge(hard, {"holdout": "random"}) == {"holdout": {"kind": "random"}}
    assert merge(hard, {"holdout": {"trim": 0.2}}) == {"holdout": {"kind": "hardest", "trim": 0.2}}


@given(SETTINGS, SETTINGS)
def test_merging_leaves_its_arguments_alone(base: dict[str, object], over: dict[str, object]) -> None:
    before = repr((base, over))
    merge(base, over)
    assert repr((base, over)) == before
