"""Means, paired tests and Holm's correction against scipy and brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from molere.statistics import holm, mean_interval, paired, paired_t_test, standard_error

shares = st.floats(0, 1, allow_nan=False)
samples = st.lists(shares, min_size=2, max_size=30)
p_values = st.dictionaries(st.text("abcdefgh", min_size=1), shares, max_size=8)


def spread_enough(values: list[float]) -> bool:
    return float(np.std(values)) > 1e-6


@given(samples)
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    assume(spread_enough(values))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    found = mean_interval(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))


def test_the_interval_of_two_values_is_the_textbooks() -> None:
    assert mean_interval([1.0, 3.0]).half_width == pytest.approx(12.706204736 * 1.0)  # t_{.975, 1} = 12.706


def test_another_level_gives_another_interval() -> None:
    values = [0.1, 0.4, 0.2]
    low, _ = stats.t.interval(0.9, 2, loc=np.mean(values), scale=stats.sem(values))
    assert np.mean(values) - mean_interval(values, level=0.9).half_width == pytest.approx(low)


def test_one_value_has_a_mean_and_no_interval() -> None:
    found = mean_interval([0.5])
    assert (found.n, found.mean) == (1, 0.5)
    assert math.isnan(found.half_width)
    assert math.isnan(standard_error([0.5]))


def test_no_values_have_no_mean() -> None:
    assert mean_interval([]).n == 0
    assert math.isnan(mean_interval([]).mean)


@given(st.lists(st.tuples(shares, shares), min_size=2, max_size=30))
def test_the_paired_test_is_scipys(pairs: list[tuple[float, float]]) -> None:
    a, b = (list(column) for column in zip(*pairs, strict=True))
    assume(spread_enough([x - y for x, y in pairs]))
    found = paired(dict(enumerate(a)), dict(enumerate(b)))
    expected = stats.ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    low, high = expected.confidence_interval(0.95)
    assert found.difference - found.half_width == pytest.approx(low, abs=1e-9)
    assert found.difference + found.half_width == pytest.approx(high, abs=1e-9)
    assert found.se == pytest.approx(stats.sem(np.subtract(a, b)), abs=1e-12)


def test_only_common_seeds_are_compared() -> None:
    found = paired({0: 0.9, 1: 0.8, 7: 0.0}, {0: 0.8, 1: 0.9, 2: 1.0})
    assert (found.n, found.wins, found.ties, found.losses) == (2, 1, 0, 1)
    assert found.difference == pytest.approx(0.0)


def test_the_relative_gain_is_over_the_baseline_of_the_common_seeds() -> None:
    found = paired({0: 0.9, 1: 0.7}, {0: 0.8, 1: 0.4, 2: 100.0})
    assert found.relative == pytest.approx(0.2 / 0.6)


def test_a_baseline_of_zero_has_no_relative_gain() -> None:
    assert math.isnan(paired({0: 0.9, 1: 0.7}, {0: 0.0, 1: 0.0}).relative)


def test_of_losses_the_lower_one_wins() -> None:
    found = paired({0: 0.1, 1: 0.5, 2: 0.3}, {0: 0.2, 1: 0.4, 2: 0.3}, higher_is_better=False)
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)


def test_differences_within_rounding_are_ties() -> None:
    found = paired({0: 0.1 + 0.2, 1: 0.5}, {0: 0.3, 1: 0.5})
    assert (found.wins, found.ties, found.p, found.difference) == (0, 2, 1.0, 0.0)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_common_seeds_give_no_test(n: int) -> None:
    found = paired(dict.fromkeys(range(n), 0.5), dict.fromkeys(range(n), 0.4))
    assert found.n == n
    assert math.isnan(found.p)
    assert math.isnan(found.half_width)


def sign_flip_p(differences: list[float]) -> float:
    """Share of all sign patterns whose mean is at least as far from zero as the observed one."""
    observed = abs(sum(differences))
    patterns = list(itertools.product([-1, 1], repeat=len(differences)))
    return sum(abs(sum(s * d for s, d in zip(p, differences, strict=True))) >= observed for p in patterns) / len(
        patterns
    )


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_equal_differences_have_the_p_of_the_exact_sign_flip_test(n: int) -> None:
    assert paired_t_test([0.25] * n) == sign_flip_p([0.25] * n)
    assert paired_t_test([-0.25] * n) == sign_flip_p([-0.25] * n)


def test_equal_differences_up_to_rounding_are_treated_as_equal() -> None:
    assert paired_t_test([0.3 - 0.2, 0.2 - 0.1, 0.9 - 0.8]) == 0.25


def test_no_difference_at_all_has_p_one() -> None:
    assert paired_t_test([0.0, 0.0, 0.0]) == 1.0


@given(samples)
def test_the_test_is_symmetric_and_a_probability(values: list[float]) -> None:
    p = paired_t_test(values)
    assert 0 <= p <= 1
    assert paired_t_test([-v for v in values]) == p


def test_holm_corrects_a_known_example() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


def holm_by_definition(p: dict[str, float], name: str) -> float:
    """The smallest level at which Holm's step-down procedure rejects, found by trying all candidate levels."""
    m, ordered = len(p), sorted(p.items(), key=lambda item: item[1])
    for level in sorted({min(1.0, (m - k) * v) for k in range(m) for v in p.values()} | {1.0}):
        rejected: set[str] = set()
        for i, (other, value) in enumerate(ordered):
            if min(1.0, (m - i) * value) > level:
                break
            rejected.add(other)
        if name in rejected:
            return level
    return 1.0


@given(p_values)
def test_holm_agrees_with_the_step_down_procedure(p: dict[str, float]) -> None:
    found = holm(p)
    for name in p:
        assert found[name] == pytest.approx(holm_by_definition(p, name))


@given(p_values)
def test_holm_keeps_the_order_and_never_lowers_a_p(p: dict[str, float]) -> None:
    found = holm(p)
    assert found.keys() == p.keys()
    assert all(p[k] <= found[k] <= 1 for k in p)
    assert all(found[a] <= found[b] for a in p for b in p if p[a] <= p[b])


def test_holm_lies_between_no_correction_and_bonferronis() -> None:
    p = {"a": 0.001, "b": 0.02, "c": 0.5}
    found = holm(p)
    assert all(p[k] <= found[k] <= min(1.0, 3 * p[k]) for k in p)


def test_a_test_that_could_not_be_made_does_not_count_for_holm() -> None:
    found = holm({"a": 0.02, "b": math.nan, "c": 0.03})
    assert math.isnan(found["b"])
    assert (found["a"], found["c"]) == pytest.approx((0.04, 0.04))
