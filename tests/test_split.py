import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from molere.errors import ConfigError, DataError, NumericsError
from molere.holdouts import Clean, Easiest, Given, Hardest, Holdout, Random
from molere.settings import make_method
from molere.split import Split, churn, generate_split, lowest, part_size, probabilistic_margin, random_part

labels = st.lists(st.integers(0, 3), min_size=20, max_size=60)
scores = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.7, 1.0]), min_size=60, max_size=60)
deltas = st.sampled_from([0.05, 0.1, 0.25, 0.5])


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def halves(n: int) -> Tensor:
    return torch.arange(n) % 2


def run_of(y: Tensor, margins: Tensor | None = None, seed: int = 0, clean_y: Tensor | None = None) -> SimpleNamespace:
    """What a holdout sees of a run; notes how margins were asked for."""
    asked: list[tuple[str, int, float]] = []

    class Pool:
        def __init__(self) -> None:
            self.y, self.clean_y = y, clean_y

        def __len__(self) -> int:
            return len(y)

    def of(source: str, *, folds: int, epochs: float) -> Tensor:
        asked.append((source, folds, epochs))
        assert margins is not None
        return margins

    def rng(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    logged: dict[str, float] = {}
    return SimpleNamespace(
        note=lambda **columns: None,
        pool=Pool(),
        rng=rng,
        margins=of,
        rankable=lambda scores: torch.arange(len(scores)),
        asked=asked,
        scout_part=ids(0, 1, 39),
        log=logged.update,
        logged=logged,
    )


def counts(y: Tensor) -> dict[int, int]:
    return {c: y.tolist().count(c) for c in set(y.tolist())}


# --- Split


def test_a_split_may_have_no_validation_part() -> None:
    assert Split(ids(0, 1), ids()).is_empty_val
    assert not Split(ids(0), ids(1)).is_empty_val


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (
            ids(0, 1, 2),
            ids(2, 1),
            "2 examples are in both parts of the split: remove them from one, or pass shared=True.",
        ),
        (ids(0, 1, 1), ids(2), "the training part names 1 examples more than once: name each once."),
        (ids(0), ids(2, 2, 2), "the validation part names 2 examples more than once: name each once."),
        (ids(0), ids(-3, 2), "the validation part contains position -3: use positions from 0 on."),
        (ids(), ids(1), "the training part is empty: leave examples to train on, with a smaller delta."),
        (
            ids(0),
            ids(1).int(),
            "the validation part is torch.int32 of (1,): pass flat int64 positions.",
        ),
    ],
)
def test_a_split_that_cannot_be_trained_on_is_refused(train: Tensor, val: Tensor, message: str) -> None:
    with pytest.raises(DataError) as error:
        Split(train, val)
    assert str(error.value) == message


def test_parts_may_overlap_when_shared() -> None:
    assert Split(ids(0, 1), ids(1), shared=True).shared


def test_the_rest_of_the_pool_trains() -> None:
    split = Split.of(ids(4, 1), 6)
    assert split.val.tolist() == [1, 4]
    assert split.train.tolist() == [0, 2, 3, 5]


def test_a_kept_validation_part_also_trains() -> None:
    split = Split.of(ids(4, 1), 6, keep=True)
    assert split.val.tolist() == [1, 4]
    assert split.train.tolist() == [0, 1, 2, 3, 4, 5]
    assert split.shared


@pytest.mark.parametrize("val", [ids(6), ids(-1), ids(1, 1)])
def test_validation_examples_outside_the_pool_are_refused(val: Tensor) -> None:
    with pytest.raises(DataError):
        Split.of(val, 6)


# --- margins and ranking


def test_margin_is_the_labels_probability_minus_the_largest_other() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2]]).expand(3, 3)
    assert probabilistic_margin(probs, ids(0, 1, 2)).tolist() == pytest.approx([0.2, -0.2, -0.3])


def test_margin_of_a_tie_is_zero() -> None:
    assert probabilistic_margin(torch.tensor([[0.4, 0.4, 0.2], [0.5, 0.5, 0.0]]), ids(1, 0)).tolist() == [
        0,
        0,
    ]


@given(st.integers(2, 6), st.integers(0, 1000))
def test_margin_is_negative_exactly_when_misclassified(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(20, classes, generator=generator).softmax(dim=1)
    y = torch.randint(classes, (20,), generator=generator)
    margin = probabilistic_margin(probs, y)
    assert ((margin < 0) == (probs.argmax(dim=1) != y)).all()
    assert (margin.abs() <= 1).all()


def test_lowest_orders_equal_scores_by_index() -> None:
    assert lowest(torch.tensor([0.3, 0.1, 0.3, 0.1, 0.0]), 4).tolist() == [4, 1, 3, 0]


def test_scores_that_are_not_numbers_cannot_be_ranked() -> None:
    with pytest.raises(NumericsError, match="1 of 3 scores are NaN"):
        lowest(torch.tensor([0.1, torch.nan, 0.2]), 1)


# --- size


@pytest.mark.parametrize(
    ("size", "delta", "k"), [(20, 0.1, 2), (29, 0.1, 2), (30, 0.1, 3), (100, 0.29, 29), (1000, 0.001, 1)]
)
def test_part_size_rounds_down(size: int, delta: float, k: int) -> None:
    assert part_size(size, delta) == k


def test_a_share_that_rounds_to_nothing_is_refused_with_advice() -> None:
    with pytest.raises(DataError) as error:
        part_size(6, 0.1)
    assert str(error.value) == (
        "the validation part is empty: delta=0.1 of 6 examples rounds to 0. Use at least 10 examples or a larger delta."
    )


@given(st.floats(0.001, 0.9), st.integers(1, 2000))
def test_the_advised_number_of_examples_is_the_least_that_works(delta: float, size: int) -> None:
    try:
        assert part_size(size, delta) >= 1
    except DataError as error:
        least = int(str(error).split("at least ")[1].split()[0])
        assert part_size(least, delta) == 1
        assert least > size
        with pytest.raises(DataError):
            part_size(least - 1, delta)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 10.0])
def test_a_delta_that_is_no_share_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match="use a number between 0 and 1"):
        part_size(100, delta)


# --- random parts


@given(labels, deltas, st.booleans(), st.integers(0, 100))
def test_a_random_part_has_the_size_asked_and_leaves_each_class_one(
    y: list[int], delta: float, stratified: bool, seed: int
) -> None:
    label = torch.tensor(y)
    part = random_part(label, delta, torch.Generator().manual_seed(seed), stratified)
    split = Split.of(part, len(y))
    room = len(y) - len(set(y))
    assert len(part) == min(part_size(len(y), delta), room)
    assert sorted(split.train.tolist() + split.val.tolist()) == list(range(len(y)))
    assert set(label[split.train].tolist()) == set(y)


@given(labels, deltas, st.integers(0, 100))
def test_a_stratified_part_is_proportional_to_within_one_example(y: list[int], delta: float, seed: int) -> None:
    label = torch.tensor(y)
    part = random_part(label, delta, torch.Generator().manual_seed(seed))
    taken = counts(label[part])
    for c, size in counts(label).items():
        share = len(part) * size / len(y)
        if all(n >= 3 for n in counts(label).values()):
            assert abs(taken.get(c, 0) - share) < 1


def test_a_random_part_depends_on_its_generator_only() -> None:
    def part(seed: int) -> list[int]:
        torch.rand(seed + 1)
        return random_part(halves(100), 0.2, torch.Generator().manual_seed(seed)).tolist()

    assert part(1) == part(1)
    assert part(1) != part(2)


def test_random_parts_do_not_favour_a_class_when_seats_are_few() -> None:
    y = torch.arange(40) % 4
    seen = [y[random_part(y, 0.025, torch.Generator().manual_seed(s))].item() for s in range(200)]
    assert min(seen.count(c) for c in range(4)) > 25


@pytest.mark.parametrize("stratified", [True, False])
def test_a_random_part_is_uniform_over_examples(stratified: bool) -> None:
    y = halves(20)
    hits = torch.zeros(20)
    for seed in range(600):
        hits[random_part(y, 0.2, torch.Generator().manual_seed(seed), stratified)] += 1
    assert (hits - 120).abs().max() < 45  # 600 * .2 = 120, deviation about 10


# --- generated splits


def test_exactly_the_lowest_candidates_validate() -> None:
    a = torch.full((20,), 0.8)
    a[[3, 5, 7, 11, 13]] = torch.tensor([0.4, 0.1, 0.3, 0.2, 0.45])
    decision = generate_split(a, halves(20), 0.1, min_val=1)
    assert decision.split is not None
    assert decision.split.val.tolist() == [5, 11]
    assert (decision.candidates, decision.rejected, decision.returned) == (5, False, 0)


def test_the_split_stays_when_no_example_is_a_candidate(caplog: pytest.LogCaptureFixture) -> None:
    previous = Split.of(ids(0, 1), 20)
    with caplog.at_level(logging.INFO, "molere.split"):
        decision = generate_split(torch.full((20,), 0.8), halves(20), 0.1, min_val=1, previous=previous)
    assert decision.split is previous
    assert (decision.candidates, decision.rejected) == (0, True)
    assert "split rejected: 0 validation examples of at most 2, 1 are needed" in caplog.text
    assert generate_split(torch.full((20,), 0.8), halves(20), 0.1).split is None


def test_a_probability_at_the_threshold_trains() -> None:
    a = torch.full((20,), 0.5)
    a[4] = 0.49
    decision = generate_split(a, halves(20), 0.1, min_val=1)
    assert decision.split is not None
    assert decision.split.val.tolist() == [4]


def test_the_threshold_comes_before_the_cap() -> None:
    a = torch.linspace(0, 0.95, 20)  # steps of .05: four below .2, of which two may validate
    decision = generate_split(a, halves(20), 0.1, threshold=0.19)
    assert decision.candidates == 4
    assert decision.split is not None
    assert decision.split.val.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("classes", "candidates", "accepted"), [(2, 4, True), (4, 4, True), (4, 3, False), (5, 4, True), (5, 3, False)]
)
def test_by_default_as_many_as_classes_must_validate_or_as_many_as_may(
    classes: int, candidates: int, accepted: bool
) -> None:
    a = torch.full((40,), 0.9)
    a[20 : 20 + candidates] = 0.1  # and four may validate
    decision = generate_split(a, torch.arange(40) % classes, 0.1)
    assert decision.rejected is not accepted


def test_one_validation_example_is_too_few_by_default() -> None:
    a = torch.full((40,), 0.9)
    a[7] = 0.1
    assert generate_split(a, halves(40), 0.1).rejected


def test_the_most_probable_example_of_a_vanishing_class_is_put_back(caplog: pytest.LogCaptureFixture) -> None:
    y = torch.zeros(40, dtype=torch.int64)
    y[[2, 9, 30]] = 1
    a = torch.full((40,), 0.9)
    a[[2, 9, 30, 5]] = torch.tensor([0.10, 0.30, 0.20, 0.40])
    with caplog.at_level(logging.INFO, "molere.split"):
        decision = generate_split(a, y, 0.1)
    assert decision.split is not None
    assert decision.split.val.tolist() == [2, 5, 30]
    assert decision.returned == 1
    assert "put 1 examples back into training" in caplog.text


def test_a_class_of_one_example_never_leaves_training() -> None:
    y = torch.zeros(30, dtype=torch.int64)
    y[4] = 1
    a = torch.full((30,), 0.9)
    a[[4, 8, 12]] = 0.1
    decision = generate_split(a, y, 0.1)
    assert decision.split is not None
    assert decision.split.val.tolist() == [8, 12]


def brute_force(a: np.ndarray, y: np.ndarray, k: int) -> list[int]:
    """The same rule, example by example."""
    order = sorted(range(len(a)), key=lambda i: (a[i], i))
    val = [i for i in order if a[i] < 0.5][:k]
    for c in set(y.tolist()):
        members = [i for i in range(len(y)) if y[i] == c]
        if all(i in val for i in members):
            val.remove(max(members, key=lambda i: (a[i], i)))
    return sorted(val)


@given(labels, scores, deltas)
def test_generated_splits_follow_the_rule(y: list[int], a: list[float], delta: float) -> None:
    p, label = torch.tensor(a[: len(y)], dtype=torch.float64), torch.tensor(y)
    decision = generate_split(p, label, delta, min_val=1)
    expected = brute_force(p.numpy(), label.numpy(), part_size(len(y), delta))
    assert decision.candidates == sum(x < 0.5 for x in p.tolist())
    assert decision.rejected == (not expected)
    if decision.split is not None:
        assert decision.split.val.tolist() == expected
        assert len(expected) <= delta * len(y) + 1e-9
        assert sorted(decision.split.train.tolist() + expected) == list(range(len(y)))
        assert set(label[decision.split.train].tolist()) == set(y)


@given(scores, deltas)
def test_a_larger_delta_keeps_all_that_validated(a: list[float], delta: float) -> None:
    p, y = torch.tensor(a), halves(60)
    small, large = (generate_split(p, y, d, min_val=1).split for d in (delta, 1.5 * delta))
    assert (small is None) == (large is None)
    if small is not None and large is not None:
        assert set(small.val.tolist()) <= set(large.val.tolist())


@given(st.permutations(range(30)), deltas)
def test_generated_splits_follow_a_renumbering_of_the_pool(order: list[int], delta: float) -> None:
    p, y = torch.linspace(0.1, 0.7, 30), torch.arange(30) // 10
    plain = generate_split(p, y, delta, min_val=1).split
    mixed = generate_split(p[order], y[order], delta, min_val=1).split
    assert plain is not None
    assert mixed is not None
    assert sorted(order[i] for i in mixed.val.tolist()) == plain.val.tolist()


def test_probabilities_that_are_not_numbers_are_refused() -> None:
    a = torch.full((20,), 0.2)
    a[3] = torch.nan
    with pytest.raises(NumericsError):
        generate_split(a, halves(20), 0.1)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(ids(1, 2), ids(1, 2), 0.0), (ids(1, 2), ids(3, 4), 2.0), (ids(1, 2), ids(2, 3), 1.0)],
)
def test_churn_is_the_share_of_examples_that_changed_sides(before: Tensor, after: Tensor, expected: float) -> None:
    assert churn(before, after) == expected
    assert churn(before, after, size=4) == expected / 2


def test_churn_of_empty_parts_is_zero() -> None:
    assert churn(ids(), ids()) == 0


# --- holdouts


@pytest.mark.parametrize("rule", [Random(), Easiest(), Hardest(), Given([1])])
def test_every_holdout_returns_disjoint_parts_that_cover_the_pool(rule: Holdout) -> None:
    assert isinstance(rule, Holdout)
    split = rule(run_of(halves(40), torch.linspace(-1, 1, 40)), 0.1)
    assert sorted(split.train.tolist() + split.val.tolist()) == list(range(40))


def test_random_holdout_draws_from_the_runs_stream() -> None:
    y = halves(100)
    first, again, other = (Random()(run_of(y, seed=s), 0.1).val.tolist() for s in (1, 1, 2))
    assert first == again != other


@given(st.integers(0, 1000), st.floats(0, 0.5), st.sampled_from([0.05, 0.1, 0.2]))
def test_a_clean_part_holds_right_labels_only_in_proportion_to_their_classes(
    seed: int, noise: float, delta: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    true = torch.arange(90) % 3
    y = torch.where(torch.rand(90, generator=generator) < noise, (true + 1) % 3, true)
    part = Clean().part(run_of(y, seed=seed, clean_y=true), delta)
    assert len(part) == len(set(part.tolist())) == part_size(90, delta)
    assert torch.equal(y[part], true[part])
    right = counts(y[y == true])
    for c, n in counts(y[part]).items():
        assert abs(n - len(part) * right[c] / sum(right.values())) < 1


@pytest.mark.parametrize("per_class", [None, 3])
def test_where_all_labels_are_right_a_clean_part_is_a_random_one(per_class: int | None) -> None:
    y = halves(60)
    clean = Clean(per_class=per_class).part(run_of(y, seed=4, clean_y=y), 0.1)
    assert torch.equal(clean, Random(per_class=per_class).part(run_of(y, seed=4), 0.1))


@pytest.mark.parametrize("rule", [Random(per_class=4), Clean(per_class=4)])
def test_so_many_of_each_class_are_taken_whatever_delta_says_but_never_the_last(rule: Random | Clean) -> None:
    y = torch.tensor([0] * 20 + [1] * 10 + [2] * 3 + [3])
    part = rule.part(run_of(y, clean_y=y), 0.5)
    assert counts(y[part]) == {0: 4, 1: 4, 2: 2}


def test_a_pool_of_single_examples_has_no_balanced_part() -> None:
    with pytest.raises(DataError, match="no class has two examples"):
        Random(per_class=1).part(run_of(torch.arange(20)), 0.1)


@pytest.mark.parametrize(
    ("clean_y", "sentence"),
    [
        (None, "holdout=clean needs true labels and these data have none: pass clean_y or holdout=random."),
        (1 - halves(40), "holdout=clean: no label equals clean_y; check that both are of the same examples."),
        (
            torch.where(torch.arange(40) < 4, halves(40), 1 - halves(40)),
            "8 are to validate and 2 labels to spare are right: use a smaller delta.",
        ),
    ],
    ids=["unknown", "none right", "too few right"],
)
def test_a_clean_part_that_cannot_be_had_is_refused_in_one_sentence(clean_y: Tensor | None, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        Clean().part(run_of(halves(40), clean_y=clean_y), 0.2)
    assert str(error.value) == sentence


def test_a_clean_holdout_is_named_like_the_others() -> None:
    short, long = make_method("mwn[holdout=clean]"), make_method("mwn[holdout.kind=clean,holdout.per_class=5]")
    assert getattr(short, "holdout") == Clean()  # noqa: B009
    assert getattr(long, "holdout") == Clean(per_class=5)  # noqa: B009


@pytest.mark.parametrize("rule", [Easiest, Hardest])
def test_margin_holdouts_ask_for_the_margins_their_fields_name(rule: type[Easiest | Hardest]) -> None:
    run = run_of(halves(40), torch.linspace(-1, 1, 40))
    rule()(run, 0.1)
    assert run.logged == {}
    part = rule(margins="scout", folds=3, epochs=1.0)(run, 0.1).val
    assert run.asked == [("crossfit", 5, 0.5), ("scout", 3, 1.0)]
    assert run.logged == {"validation_unseen_by_scout": sum(int(i) in {0, 1, 39} for i in part) / 4}


def test_hardest_and_easiest_take_the_ends_of_the_margins() -> None:
    run = run_of(halves(40), torch.linspace(1, -1, 40))
    assert Hardest().part(run, 0.1).tolist() == [39, 38, 37, 36]
    assert Easiest().part(run, 0.1).tolist() == [0, 1, 2, 3]


def test_equal_margins_are_taken_in_the_order_of_the_pool() -> None:
    run = run_of(halves(40), torch.zeros(40))
    assert Hardest().part(run, 0.1).tolist() == Easiest().part(run, 0.1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("rule", [Hardest(), Easiest()])
def test_margin_holdouts_leave_one_example_of_each_class_and_take_the_next(rule: Hardest | Easiest) -> None:
    y = torch.zeros(40, dtype=torch.int64)
    y[:3] = 1
    margins = torch.linspace(-1, 0.9, 40) * (1 if isinstance(rule, Hardest) else -1)
    assert rule.part(run_of(y, margins), 0.1).tolist() == [0, 1, 3, 4]


def test_a_stratified_hard_part_has_each_classs_share() -> None:
    y = torch.arange(40) // 20
    run = run_of(y, torch.linspace(-1, 1, 40))
    assert sorted(Hardest(stratified=True).part(run, 0.1).tolist()) == [0, 1, 20, 21]
    assert sorted(Easiest(stratified=True).part(run, 0.1).tolist()) == [18, 19, 38, 39]


def test_negative_only_takes_misclassified_examples_even_if_fewer() -> None:
    margins = torch.full((40,), 0.5)
    margins[[8, 9]] = torch.tensor([-0.1, -0.2])
    margins[10] = 0.0
    assert Hardest(negative_only=True).part(run_of(halves(40), margins), 0.1).tolist() == [9, 8]


def test_negative_only_without_errors_is_refused() -> None:
    with pytest.raises(DataError) as error:
        Hardest(negative_only=True)(run_of(halves(40), torch.ones(40)), 0.1)
    assert str(error.value) == ("nothing is left to validate: use more examples, less trim or negative_only=false.")


def test_trimming_leaves_the_very_lowest_margins_in_training() -> None:
    split = Hardest(trim=0.05)(run_of(halves(40), torch.linspace(-1, 1, 40)), 0.1)
    assert split.val.tolist() == [2, 3, 4, 5]
    assert {0, 1} <= set(split.train.tolist())


def test_a_pool_of_single_examples_has_nothing_to_validate() -> None:
    with pytest.raises(DataError):
        Random()(run_of(torch.arange(20)), 0.1)


@given(st.permutations(range(30)), st.booleans())
def test_the_hard_part_follows_a_renumbering_of_the_pool(order: list[int], stratified: bool) -> None:
    margins, y = torch.linspace(-1, 1, 30), torch.arange(30) % 3
    plain = Hardest(stratified=stratified).part(run_of(y, margins), 0.2)
    mixed = Hardest(stratified=stratified).part(run_of(y[order], margins[order]), 0.2)
    assert [order[i] for i in mixed.tolist()] == plain.tolist()


@pytest.mark.parametrize("index", [[3, 1], (3, 1), ids(3, 1)])
def test_given_examples_validate_whatever_delta_says(index: list[int] | tuple[int, ...] | Tensor) -> None:
    assert Given(index)(run_of(halves(10)), 0.9).val.tolist() == [1, 3]


def test_given_examples_must_be_in_the_pool() -> None:
    with pytest.raises(DataError) as error:
        Given([10])(run_of(halves(10)), 0.1)
    assert str(error.value) == "validation example 10 is not in the pool: use positions below 10."
