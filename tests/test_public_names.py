"""The names that users import."""

import importlib

import pytest

import molere


def test_the_table_of_homes_and_the_list_of_names_agree() -> None:
    assert set(molere._HOME) == set(molere.__all__)
    assert len(set(molere.__all__)) == len(molere.__all__)


@pytest.mark.parametrize("name", molere.__all__)
def test_every_public_name_resolves_to_something_documented(name: str) -> None:
    assert getattr(molere, name).__doc__


@pytest.mark.parametrize("name", molere.__all__)
def test_a_public_name_is_never_hidden_by_a_module_of_the_same_name(name: str) -> None:
    home = importlib.import_module(molere._HOME[name])
    assert getattr(molere, name) is getattr(home, name)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="module 'molere' has no attribute 'Nonsense'"):
        molere.Nonsense  # noqa: B018


def test_names_not_yet_loaded_are_listed() -> None:
    assert set(molere.__all__) <= set(dir(molere))
