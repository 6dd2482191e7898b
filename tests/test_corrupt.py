"""Known corruptions: their probabilities, their realised shares, and the tables of their publications."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import truncnorm
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from molere.data.corrupt import (
    long_tail,
    rare_group,
    stratified_split,
    stratified_subset,
    tail_sizes,
    turned,
)
from molere.data.noise import (
    flip_probabilities,
    flip_transition,
    instance_noise,
    noisy_probabilities,
    sibling_transition,
    transition_noise,
    uniform_noise,
    uniform_transition,
)
from molere.errors import DataError

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)


def balanced(classes: int, each: int) -> Tensor:
    return torch.arange(classes * each) % classes


# ---------------------------------------------------------------------------------------- instance noise


def test_a_flip_goes_to_the_other_classes_by_their_softmax() -> None:
    logits = torch.tensor([[5.0, 0.0, math.log(3.0)]], dtype=torch.float64)
    p = noisy_probabilities(logits, torch.tensor([0.4], dtype=torch.float64), 0)
    torch.testing.assert_close(p, torch.tensor([[0.6, 0.1, 0.3]], dtype=torch.float64))


@pytest.mark.parametrize(("rate", "mean"), [(0.1, 0.1288), (0.2, 0.2055), (0.3, 0.3004), (0.4, 0.4000), (0.5, 0.5)])
def test_flip_probabilities_follow_the_truncated_normal(rate: float, mean: float) -> None:
    q = flip_probabilities(50_000, rate, seed=0)
    law = truncnorm(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
    assert law.mean() == pytest.approx(mean, abs=5e-5)
    assert float(q.mean()) == pytest.approx(mean, abs=4 * law.std() / 50_000**0.5)
    levels = np.linspace(0.01, 0.99, 25)
    assert np.quantile(q.numpy(), levels) == pytest.approx(law.ppf(levels), abs=0.004)
    assert float(q.min()) >= 0
    assert float(q.max()) <= 1


def test_the_realised_rate_of_instance_noise_on_50000_examples() -> None:
    x, y = torch.randint(0, 256, (50_000, 12), dtype=torch.uint8), balanced(10, 5000)
    noisy, q = instance_noise(x, y, 0.3, 10, seed=0)
    flipped = (noisy != y).float()
    assert float(flipped.mean()) == pytest.approx(0.3004, abs=0.006)
    likely, unlikely = q > 0.4, q < 0.2
    assert float(flipped[likely].mean()) == pytest.approx(float(q[likely].mean()), abs=0.03)
    assert float(flipped[unlikely].mean()) == pytest.approx(float(q[unlikely].mean()), abs=0.03)
    assert noisy.min() >= 0
    assert noisy.max() < 10


def test_at_the_published_scale_an_input_has_a_single_wrong_class() -> None:
    one = torch.randint(0, 256, (1, 192), dtype=torch.uint8)
    x, y = one.expand(2000, -1), torch.zeros(2000, dtype=torch.int64)
    noisy, _ = instance_noise(x, y, 0.4, 6, seed=3)
    assert len(noisy.unique()) == 2
    spread, _ = instance_noise(x, y, 0.4, 6, seed=3, input_scale=0.01)
    assert len(spread.unique()) == 6


def test_uint8_images_and_the_same_images_as_floats_get_the_same_noise() -> None:
    x, y = torch.randint(0, 256, (500, 3, 4, 4), dtype=torch.uint8), balanced(5, 100)
    one, _ = instance_noise(x, y, 0.3, 5, seed=1, input_scale=1.0)
    two, _ = instance_noise(x.double() / 255, y, 0.3, 5, seed=1, input_scale=1.0)
    assert torch.equal(one, two)


def test_instance_noise_is_fixed_by_its_seed_and_leaves_its_arguments_alone() -> None:
    x, y = torch.rand(300, 8), balanced(3, 100)
    kept, state = y.clone(), torch.get_rng_state()
    first, q = instance_noise(x, y, 0.3, 3, seed=1)
    again, q_again = instance_noise(x, y, 0.3, 3, seed=1)
    assert torch.equal(first, again)
    assert torch.equal(q, q_again)
    assert not torch.equal(first, instance_noise(x, y, 0.3, 3, seed=2)[0])
    assert torch.equal(y, kept)
    assert torch.equal(torch.get_rng_state(), state)


def test_rate_zero_flips_nothing() -> None:
    y = balanced(3, 10)
    noisy, q = instance_noise(torch.rand(30, 2), y, 0.0, 3, seed=0)
    assert torch.equal(noisy, y)
    assert float(q.sum()) == 0
    assert torch.equal(uniform_noise(y, 0.0, 3, seed=0), y)


# --------------------------------------------------------------------------------------- transition noise


def test_uniform_transition_has_the_published_convention() -> None:
    matrix = uniform_transition(0.4, 10)
    torch.testing.assert_close(matrix.diagonal(), torch.full((10,), 0.64, dtype=torch.float64))
    torch.testing.assert_close(matrix[0, 1:], torch.full((9,), 0.04, dtype=torch.float64))


@pytest.mark.parametrize("targets", [1, 2])
def test_flip_transitions_share_the_rate_among_a_few_other_classes(targets: int) -> None:
    matrix = flip_transition(0.4, 10, targets)
    off = matrix - torch.diag(matrix.diagonal())
    assert (off > 0).sum(1).tolist() == [targets] * 10
    torch.testing.assert_close(off[off > 0], torch.full((10 * targets,), 0.4 / targets, dtype=torch.float64))
    assert torch.equal(matrix, flip_transition(0.4, 10, targets))
    assert not torch.equal(matrix, flip_transition(0.4, 10, targets, seed=2))


def test_sibling_transition_stays_within_the_superclass() -> None:
    matrix = sibling_transition(0.4, [0, 1, 0, 0, 1])
    expected = [
        [0.6, 0, 0.2, 0.2, 0],
        [0, 0.6, 0, 0, 0.4],
        [0.2, 0, 0.6, 0.2, 0],
        [0.2, 0, 0.2, 0.6, 0],
        [0, 0.4, 0, 0, 0.6],
    ]
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64))
    with pytest.raises(DataError, match="class 1 has no sibling"):
        sibling_transition(0.4, [0, 1, 0])


@given(rate=st.floats(0, 0.99), classes=st.integers(3, 12))
def test_rows_of_every_transition_matrix_sum_to_one(rate: float, classes: int) -> None:
    matrices = [
        uniform_transition(rate, classes),
        flip_transition(rate, classes),
        flip_transition(rate, classes, 2),
        sibling_transition(rate, [0] * classes),
    ]
    for matrix in matrices:
        torch.testing.assert_close(matrix.sum(1), torch.ones(classes, dtype=torch.float64))
        assert (matrix >= 0).all()


def test_transition_noise_realises_its_matrix() -> None:
    y = balanced(3, 40_000)
    matrix = torch.tensor([[0.5, 0.0, 0.5], [0.1, 0.9, 0.0], [0.2, 0.3, 0.5]])
    noisy = transition_noise(y, matrix, seed=0)
    for c in range(3):
        shares = torch.bincount(noisy[y == c], minlength=3) / 40_000
        torch.testing.assert_close(shares, matrix[c], atol=0.01, rtol=0)
        assert (shares[matrix[c] == 0] == 0).all()


def test_the_rate_of_uniform_noise_is_the_true_share_of_flips_spread_evenly() -> None:
    y = balanced(10, 5000)
    noisy = uniform_noise(y, 0.2, 10, seed=0)
    assert float((noisy != y).float().mean()) == pytest.approx(0.2, abs=0.006)
    wrong = torch.bincount((noisy - y)[noisy != y] % 10, minlength=10)[1:]
    assert (wrong - 1111).abs().max() < 5 * 1111**0.5
    assert torch.equal(noisy, uniform_noise(y, 0.2, 10, seed=0))


@pytest.mark.parametrize("matrix", [[[0.5, 0.4], [0.0, 1.0]], [[1.2, -0.2], [0.0, 1.0]]])
def test_a_matrix_that_holds_no_probabilities_is_refused(matrix: list[list[float]]) -> None:
    with pytest.raises(DataError, match=r"each row of a transition matrix holds probabilities of sum 1; row 0 is \["):
        transition_noise(torch.tensor([0, 1]), torch.tensor(matrix), seed=0)


# ---------------------------------------------------------------------------------------------- long tail


@pytest.mark.parametrize(
    ("classes", "n_max", "factor", "total", "smallest"),
    [
        (100, 490, 200, 9304, 2),
        (100, 490, 100, 10626, 4),
        (100, 490, 50, 12354, 9),
        (100, 490, 20, 15594, 24),
        (100, 490, 10, 19183, 49),
        (100, 490, 1, 49000, 490),
        (100, 500, 200, 9502, 2),
        (100, 500, 100, 10847, 5),
        (100, 500, 50, 12608, 10),
        (100, 500, 20, 15907, 25),
        (100, 500, 10, 19573, 50),
        (10, 4990, 200, 11177, 24),
        (10, 4990, 50, 13967, 99),
        (10, 4990, 10, 20391, 499),
    ],
)
def test_long_tails_have_the_published_sizes(
    classes: int, n_max: int, factor: float, total: int, smallest: int
) -> None:
    sizes = tail_sizes(float(factor), classes, n_max)
    assert (sum(sizes), sizes[-1], sizes[0]) == (total, smallest, n_max)
    assert sizes == sorted(sizes, reverse=True)


def test_a_long_tail_keeps_its_sizes_in_order_and_the_first_examples_of_each_class() -> None:
    y = balanced(3, 100)
    kept = long_tail(y, 25.0, 3)
    assert torch.bincount(y[kept]).tolist() == [100, 20, 4]
    assert kept.tolist() == sorted(kept.tolist())
    assert (kept[y[kept] == 2]).tolist() == [2, 5, 8, 11]
    drawn = long_tail(y, 25.0, 3, seed=0)
    assert torch.bincount(y[drawn]).tolist() == [100, 20, 4]
    assert not torch.equal(kept, drawn)


def test_a_long_tail_keeps_at_least_one_of_each_class_and_refuses_what_is_not_there() -> None:
    y = balanced(3, 5)
    assert torch.bincount(y[long_tail(y, 1000.0, 3)]).tolist() == [5, 1, 1]
    with pytest.raises(DataError, match="class 0 has 5 examples, its long-tail size is 9; lower n_max=9"):
        long_tail(y, 2.0, 3, 9)
    with pytest.raises(DataError, match="factor is largest class / smallest class, 1 or more; got 0.02"):
        long_tail(y, 0.02, 3)


# -------------------------------------------------------------------------------- groups, subsets, splits


def test_a_rare_group_has_its_share_of_every_class() -> None:
    y = balanced(10, 100)
    mask = rare_group(y, 0.04, seed=0)
    assert torch.bincount(y[mask]).tolist() == [4] * 10
    assert not torch.equal(mask, rare_group(y, 0.04, seed=1))


def test_marked_images_are_turned_and_the_others_left() -> None:
    x = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(2, 1, 2, 2)
    marked = torch.tensor([False, True])
    once = turned(x, marked)
    assert isinstance(once, Tensor)
    assert once[0, 0].tolist() == [[1, 2], [3, 4]]
    assert once[1, 0].tolist() == [[2, 4], [1, 3]]
    assert x[1, 0].tolist() == [[1, 2], [3, 4]]
    assert torch.equal(turned(turned(x, marked, 270), marked), x)
    assert torch.equal(turned(x, marked, 180), turned(once, marked))
    with pytest.raises(DataError, match="only square images can be turned by 90 degrees"):
        turned(torch.zeros(1, 1, 2, 3), torch.tensor([True]))
    with pytest.raises(DataError, match=r"only images can be turned by 90 degrees; got shape \[1, 6\]"):
        turned(torch.zeros(1, 6), torch.tensor([True]))


@pytest.mark.parametrize(("side", "degrees"), [((9, 9), 30), ((8, 12), 200), ((7, 5), 180)])
def test_other_angles_turn_anticlockwise_as_torchvision_does(side: tuple[int, int], degrees: int) -> None:
    x = torch.rand(2, 3, *side, generator=torch.Generator().manual_seed(0))
    expected = rotate(x, degrees, interpolation=InterpolationMode.BILINEAR)
    torch.testing.assert_close(turned(x, torch.tensor([True, True]), degrees), expected, atol=1e-4, rtol=0)
    eight_bit = turned((255 * x).to(torch.uint8), torch.tensor([True, True]), degrees)
    assert isinstance(eight_bit, Tensor)
    assert eight_bit.dtype == torch.uint8


@given(y=labels, share=st.floats(0, 1), seed=st.integers(0, 100))
def test_a_stratified_subset_has_the_asked_size_and_class_shares_within_one(y: Tensor, share: float, seed: int) -> None:
    n = round(share * len(y))
    kept = stratified_subset(y, n, seed)
    assert len(kept) == n
    assert kept.tolist() == sorted(set(kept.tolist()))
    wanted = torch.bincount(y, minlength=5) * n / len(y)
    assert (torch.bincount(y[kept], minlength=5) - wanted).abs().max() < 1


@given(y=labels, share=st.floats(0, 1), seed=st.integers(0, 100))
def test_a_stratified_split_is_a_partition(y: Tensor, share: float, seed: int) -> None:
    n = round(share * len(y))
    rest, part = stratified_split(y, n, seed)
    assert len(part) == n
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(len(y)))
    assert rest.tolist() == sorted(rest.tolist())


def test_more_examples_than_there_are_cannot_be_taken() -> None:
    with pytest.raises(DataError, match=r"cannot take 4 of 3 examples; ask for 0\.\.3"):
        stratified_subset(torch.tensor([0, 1, 1]), 4, 0)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_outside_zero_to_one_is_refused(rate: float) -> None:
    with pytest.raises(DataError, match=r"a rate is a share in \[0, 1\); got"):
        instance_noise(torch.rand(4, 2), torch.tensor([0, 1, 0, 1]), rate, 2, 0)
    with pytest.raises(DataError, match=r"a rate is a share in \[0, 1\); got"):
        uniform_noise(torch.tensor([0, 1, 0, 1]), rate, 2, 0)
