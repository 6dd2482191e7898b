"""Names typed by a person."""

import pytest

from molere.errors import ConfigError
from molere.names import nearest, one_line, pick

TABLE = {"erm": 1, "lrw-hard": 2, "lrwopt": 3}


def test_a_known_name_gives_its_entry() -> None:
    assert pick("method", "lrwopt", TABLE) == 3


def test_an_unknown_name_is_answered_with_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        pick("method", "lrw-opt", TABLE)
    assert str(error.value) == "unknown method 'lrw-opt'; did you mean 'lrwopt'? Known: erm, lrw-hard, lrwopt"


def test_a_name_like_no_other_gets_no_guess() -> None:
    with pytest.raises(ConfigError) as error:
        pick("method", "xyz", TABLE)
    assert str(error.value) == "unknown method 'xyz'. Known: erm, lrw-hard, lrwopt"


def test_case_does_not_matter_for_the_guess() -> None:
    assert nearest("ERM", TABLE) == "erm"


def test_a_shown_value_is_one_short_line() -> None:
    assert one_line("a\nb" * 1000).count("\n") == 0
    assert len(one_line("a" * 1000)) == 80
