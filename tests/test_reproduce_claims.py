"""Claims are chains of columns, and paired differences decide them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from molere.errors import ConfigError
from molere.reproduce.claims import Claim, Step, broken
from molere.reproduce.verdicts import Verdict, judge, tally, whole


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_a_chain_is_a_step_between_each_two_neighbours() -> None:
    assert Claim("Easy < Random < Hard").steps == (Step("Random", "Easy", True), Step("Hard", "Random", True))


def test_a_list_means_each_of_its_names() -> None:
    steps = Claim("OPT >= RHO-Loss, MWN").steps
    assert steps == (Step("OPT", "RHO-Loss", False), Step("OPT", "MWN", False))
    assert Claim("OPT > ERM, MWN").columns == ("OPT", "ERM", "MWN")


def test_a_text_without_a_sign_is_no_claim() -> None:
    with pytest.raises(ConfigError, match="write a chain"):
        _ = Claim("Easy").steps


def test_a_clear_difference_holds_and_its_opposite_is_reversed() -> None:
    values = {"a": seeds(0.5, 0.6, 0.7), "b": seeds(0.6, 0.71, 0.79)}
    assert judge(Claim("a < b"), values, {}).verdict == "held"
    assert judge(Claim("a > b"), values, {}).verdict == "reversed"
    assert judge(Claim("a >= b"), values, {}).verdict == "reversed"
    assert judge(Claim("a < b"), values, {}, higher_is_better=False).verdict == "reversed"


def test_one_seed_decides_nothing() -> None:
    assert judge(Claim("a < b"), {"a": seeds(0.1), "b": seeds(0.9)}, {}).verdict == "undecided"


def test_equal_values_hold_only_where_the_claim_is_not_strict() -> None:
    values = {"a": seeds(0.5, 0.6), "b": seeds(0.5, 0.6)}
    assert judge(Claim("a >= b"), values, {}).verdict == "held"
    assert judge(Claim("a > b"), values, {}).verdict == "undecided"


def test_a_column_that_was_not_run_leaves_the_claim_open() -> None:
    found = judge(Claim("a < b < c"), {"a": seeds(0.1, 0.1), "b": seeds(0.2, 0.21)}, {"a": 1.0, "b": 2.0, "c": 1.0})
    assert [s.verdict for s in found.steps] == ["held", "not run"]
    assert (found.verdict, found.printed) == ("not run", False)


def test_printed_numbers_that_contradict_a_claim_are_named() -> None:
    claim, aircraft = Claim("Easy < Random < Hard"), {"Easy": 80.87, "Hard": 81.28, "Random": 80.69}
    assert broken(claim, aircraft) == ["Random > Easy (80.69, 80.87)"]
    assert judge(claim, {}, aircraft).printed is False
    assert judge(claim, {}, {"Easy": 1.0}).printed is None
    assert judge(Claim("OPT >= MAPLE"), {}, {"OPT": 87.67, "MAPLE": 87.67}).printed is True


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(["held", "held"], "held"), (["held", "undecided"], "undecided"), (["held", "reversed"], "reversed"),
     (["undecided", "not run"], "not run"), (["not run", "reversed"], "reversed"), ([], "not run")],
)  # fmt: skip
def test_a_claim_holds_if_all_its_steps_do(steps: list[Verdict], expected: str) -> None:
    assert whole(steps) == expected


def test_findings_are_counted() -> None:
    values = {"a": seeds(1.0, 2.1, 3.0), "b": seeds(2.0, 3.0, 4.1)}
    found = [judge(Claim(text), values, {}) for text in ("a < b", "a > b", "a < c")]
    assert tally(found) == "1 held, 1 reversed, 1 not run"
    assert tally([]) == "no claims"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8))
def test_a_step_is_decided_just_where_the_interval_of_a_paired_t_test_leaves_out_zero(pairs: list) -> None:
    values = {"a": seeds(*(a for a, _ in pairs)), "b": seeds(*(b for _, b in pairs))}
    differences = [b - a for a, b in pairs]
    if len({round(d, 9) for d in differences}) < 2:
        return  # no spread: t is undefined
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    if min(abs(low), abs(high)) < 1e-9:
        return
    expected = "held" if low > 0 else "reversed" if high < 0 else "undecided"
    assert judge(Claim("b > a"), values, {}).verdict == expected
