"""The suspect score, confident learning, forgetting events, and the measures of a list. Oracles are plain loops."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cleanlab.filter import find_label_issues
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from molere.errors import DataError
from molere.notes import Notes
from molere.suspects import (
    average_precision,
    confident_joint,
    confident_learning,
    correlation,
    forgotten,
    low_ranks,
    precision_at,
    qualities,
    ranks,
    signals,
    suspect_score,
)

Floats = npt.NDArray[np.float64]
SCORED = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=8)


# ---- measures


@given(SCORED)
def test_average_precision_is_the_area_under_the_steps_of_the_curve(pairs: list[tuple[int, bool]]) -> None:
    score, wrong = [p[0] for p in pairs], [p[1] for p in pairs]
    found = average_precision(np.array(score), np.array(wrong))
    if not any(wrong):
        assert math.isnan(found)
        return
    area, before = 0.0, 0.0
    for least in sorted(set(score), reverse=True):
        named = [w for s, w in pairs if s >= least]
        recall = sum(named) / sum(wrong)
        area, before = area + (recall - before) * sum(named) / len(named), recall
    assert found == pytest.approx(area)
    assert found == pytest.approx(average_precision_score(wrong, score))


@given(SCORED)
def test_precision_at_the_true_number_is_the_mean_over_all_orders_of_ties(pairs: list[tuple[int, bool]]) -> None:
    score, wrong = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    found = precision_at(score, wrong)
    if not wrong.any():
        assert math.isnan(found)
        return
    k = int(wrong.sum())
    parts = [c for c in itertools.combinations(range(len(pairs)), k) if is_top(score, c)]
    assert found == pytest.approx(np.mean([wrong[list(c)].mean() for c in parts]))


def is_top(score: npt.NDArray[np.int64], chosen: tuple[int, ...]) -> bool:
    others = [score[i] for i in range(len(score)) if i not in chosen]
    return not others or min(score[list(chosen)]) >= max(others)


def test_a_perfect_score_has_both_measures_at_one_and_the_reverse_is_far_below() -> None:
    wrong = np.arange(100) < 30
    assert average_precision(wrong, wrong) == precision_at(wrong, wrong) == 1
    assert precision_at(~wrong, wrong) == 0
    assert precision_at(wrong, wrong, k=60) == pytest.approx(0.5)


# ---- confident learning


def joint_by_loops(p: Floats, y: npt.NDArray[np.int64]) -> Floats:
    """Northcutt et al. 2021, equations 1 to 3, an example at a time."""
    n, c = p.shape
    t = [np.mean([p[i, j] for i in range(n) if y[i] == j]) for j in range(c)]
    counts = np.zeros((c, c))
    for i in range(n):
        sure = [j for j in range(c) if p[i, j] >= t[j] - 1e-6]
        if sure:
            counts[y[i], max(sure, key=lambda j: (p[i, j], -j))] += 1
    for k in range(c):
        counts[k] *= sum(y == k) / counts[k].sum()
    return counts


def noisy(n: int = 240, c: int = 3, seed: int = 0) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Probabilities that know the true class well, labels of which a quarter is wrong, and which."""
    draws = np.random.default_rng(seed)
    true = np.arange(n) % c
    logits = draws.normal(size=(n, c)) + 2.5 * np.eye(c)[true]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = draws.random(n) < 0.25
    return p, np.where(wrong, (true + 1 + draws.integers(0, c - 1, n)) % c, true), wrong


def test_the_confident_joint_counts_as_the_equations_say() -> None:
    p, y, _ = noisy()
    np.testing.assert_allclose(confident_joint(p, y), joint_by_loops(p, y))
    np.testing.assert_allclose(confident_joint(p, y).sum(1), np.bincount(y))


def test_pruning_takes_the_largest_gains_of_each_pair_of_classes() -> None:
    p, y, _ = noisy()
    joint, found = joint_by_loops(p, y), confident_learning(p, y)
    expected = set[int]()
    for k, j in itertools.permutations(range(3), 2):
        members = sorted((i for i in range(len(y)) if y[i] == k), key=lambda i: -(p[i, j] - p[i, k]))
        expected |= {i for i in members[: round(joint[k, j])] if p[i].argmax() != k}
    assert set(np.flatnonzero(found.wrong)) == expected
    assert found.score[found.wrong].min() > found.score[~found.wrong].max()
    inside = np.flatnonzero(found.wrong)
    assert (np.argsort(-found.score[inside]) == np.argsort(p[inside, y[inside]])).all()


def test_it_agrees_with_the_package_of_its_authors() -> None:
    for seed in range(3):
        p, y, wrong = noisy(600, 4, seed)
        theirs, ours = find_label_issues(y, p, n_jobs=1), confident_learning(p, y).wrong
        assert (theirs & ours).sum() / (theirs | ours).sum() > 0.97  # they round the joint in another way
        assert precision_at(confident_learning(p, y).score, wrong) > 0.8


def test_a_class_without_labels_is_never_suggested() -> None:
    p, y, _ = noisy(c=3)
    p = np.column_stack([p * 0.9, np.full(len(y), 0.1)])
    joint = confident_joint(p, y)
    assert joint[:, 3].sum() == 0
    assert np.isfinite(confident_learning(p, y).score).all()


# ---- the suspect score


def columns(**more: Floats) -> dict[str, npt.NDArray[np.generic]]:
    p, y, _ = noisy()
    others = np.where(np.eye(3, dtype=bool)[y], -np.inf, p).max(1)
    return {"label": y, "out_of_fold_margin": p[np.arange(len(y)), y] - others, **more}


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_ranks_are_shares_of_the_others_below_ties_half(values: list[int]) -> None:
    expected = [(sum(o < v for o in values) + (values.count(v) - 1) / 2) / (len(values) - 1) for v in values]
    np.testing.assert_allclose(ranks(np.array(values, dtype=float)), expected)


def test_of_the_margin_alone_the_score_is_the_rank_of_a_low_margin() -> None:
    found = columns()
    np.testing.assert_array_equal(suspect_score(found), ranks(-found["out_of_fold_margin"]))


def test_equal_weights_and_missing_probabilities_change_nothing() -> None:
    n = len(columns()["label"])
    same = columns(weight_mean=np.ones(n), train_probability=np.full(n, np.nan))
    np.testing.assert_array_equal(suspect_score(same), suspect_score(columns()))


def test_a_weight_that_means_the_opposite_does_not_count() -> None:
    upweighted = columns(weight_mean=-columns()["out_of_fold_margin"])
    assert [s.share for s in signals(upweighted)] == [1.0, 0.0]
    np.testing.assert_array_equal(suspect_score(upweighted), suspect_score(columns()))


def test_the_classifiers_own_margin_counts_as_far_as_it_agrees() -> None:
    outside = columns()["out_of_fold_margin"]
    inside = np.random.default_rng(4).normal(size=240) + 2 * outside
    both = columns(margin=inside)
    rho = np.corrcoef(ranks(-inside), ranks(-outside))[0, 1]
    assert [s.share for s in signals(both)] == pytest.approx([1, rho])
    np.testing.assert_allclose(suspect_score(both), ranks(ranks(-outside) + rho * ranks(-inside)))
    memorised = columns(margin=np.ones(240))
    np.testing.assert_array_equal(suspect_score(memorised), suspect_score(columns()))


def test_a_signal_that_knows_the_wrong_labels_improves_the_list() -> None:
    _, _, wrong = noisy()
    draws = np.random.default_rng(1)
    told = columns(train_probability=draws.random(len(wrong)) - 0.5 * wrong)
    assert 0 < signals(told)[1].share < 0.25
    assert average_precision(suspect_score(told), wrong) > average_precision(suspect_score(columns()), wrong)


@given(st.sampled_from([np.exp, np.cbrt, lambda v: 3 * v - 7]), st.sampled_from([np.exp, np.tanh]))
def test_only_the_order_of_a_signal_matters(one: np.ufunc, two: np.ufunc) -> None:
    weight = np.random.default_rng(2).normal(size=240) + columns()["out_of_fold_margin"]
    plain = columns(weight_mean=weight)
    bent = {**plain, "out_of_fold_margin": one(plain["out_of_fold_margin"]), "weight_mean": two(weight)}
    np.testing.assert_allclose(suspect_score(bent), suspect_score(plain))


def test_an_example_that_never_trained_has_the_middle_rank_of_its_weight() -> None:
    assert low_ranks(np.array([1.0, np.nan, 3.0, 2.0])).tolist() == [1.0, 0.5, 0.0, 0.5]


def test_the_best_margin_there_is_is_used_and_none_is_an_error() -> None:
    found = {**columns(), "margin": np.zeros(240), "holdout_margin": np.ones(240)}
    assert signals(found)[0].name == "out_of_fold_margin"
    del found["out_of_fold_margin"]
    assert signals(found)[0].name == "holdout_margin"
    with pytest.raises(DataError, match="no margin among label; give"):
        suspect_score({"label": np.zeros(3)})


def test_correlation_is_that_of_numpy_and_zero_for_a_constant() -> None:
    a, b = np.random.default_rng(3).normal(size=(2, 50))
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert correlation(a, np.ones(50)) == 0


def test_scores_are_judged_only_where_wrong_labels_are_known() -> None:
    p, y, wrong = noisy()
    found = columns(out_of_fold_loss=-np.log(p[np.arange(240), y]))
    assert qualities(found) == []
    assert qualities({**found, "clean_label": y}) == []
    judged = qualities({**found, "clean_label": np.where(wrong, (y + 1) % 3, y)}, p)
    assert [q.name for q in judged] == ["suspect score", "confident learning (restated)", "out of fold loss"]
    assert all(0.8 < q.average_precision <= 1 and 0.7 < q.precision <= 1 for q in judged)


# ---- forgetting events


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=4, unique_by=lambda t: t[0]), max_size=12)
)
def test_forgetting_events_are_counted_as_in_algorithm_1(batches: list[list[tuple[int, bool]]]) -> None:
    notes, last = Notes(4, torch.device("cpu")), dict.fromkeys(range(4), 0)
    events, learnt = dict.fromkeys(range(4), 0), dict.fromkeys(range(4), False)
    for batch in batches:
        for i, right in batch:
            events[i] += last[i] > int(right)
            last[i], learnt[i] = int(right), learnt[i] or right
        index = torch.tensor([i for i, _ in batch], dtype=torch.int64)
        notes.presented(index, torch.tensor([right for _, right in batch], dtype=torch.bool))
    assert notes.forgetting.tolist() == list(events.values())
    assert notes.learnt.tolist() == list(learnt.values())


def test_what_was_never_learnt_counts_as_forgotten_most() -> None:
    found = {"forgetting": np.array([0, 3, 0, 1]), "learnt": np.array([True, True, False, True])}
    assert forgotten(found).tolist() == [0, 3, 4, 1]
