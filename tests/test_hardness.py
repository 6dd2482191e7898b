import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from molere.errors import DataError, NumericsError
from molere.hardness import hardest_share, neighbour_mean, rank01, smr_score, static_weights

values = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0, 7.0, 1e6]), min_size=2, max_size=40)


def cloud(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.rand(n, generator=generator)


@given(values)
def test_ranks_are_scipys_average_ranks_scaled_to_one(v: list[float]) -> None:
    expected = (rankdata(v, method="average") - 1) / (len(v) - 1)
    assert rank01(torch.tensor(v)).numpy() == pytest.approx(expected, abs=1e-6)


def test_ranks_of_equal_values_and_of_a_single_one_are_one_half() -> None:
    assert rank01(torch.full((7,), 3.0)).tolist() == [0.5] * 7
    assert rank01(torch.tensor([3.0])).tolist() == [0.5]


def test_values_that_are_not_finite_cannot_be_ranked() -> None:
    with pytest.raises(NumericsError, match="2 of 3 values are not finite"):
        rank01(torch.tensor([1.0, torch.nan, torch.inf]))


@pytest.mark.parametrize("chunk", [None, 1, 7, 300])
@pytest.mark.parametrize(("n", "d", "k"), [(12, 2, 3), (200, 5, 10), (300, 64, 1)])
def test_neighbour_means_are_scikit_learns(n: int, d: int, k: int, chunk: int | None) -> None:
    x, v = cloud(n, d)
    near = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x.numpy()).kneighbors(return_distance=False)
    assert neighbour_mean(x, v, k, chunk).numpy() == pytest.approx(v.numpy()[near].mean(axis=1), abs=1e-6)


def brute_force(x: np.ndarray, v: np.ndarray, k: int) -> list[float]:
    """Means over the k nearest others, with ties for the last place sharing it, one pair at a time."""
    means = []
    for i in range(len(x)):
        others = sorted((float(((x[i] - x[j]) ** 2).sum()), v[j]) for j in range(len(x)) if j != i)
        last = others[k - 1][0]
        closer = [u for d, u in others if d < last]
        level = [u for d, u in others if d == last]
        means.append((sum(closer) + (k - len(closer)) * np.mean(level)) / k)
    return means


@given(st.lists(st.integers(0, 3), min_size=4, max_size=20), st.integers(1, 3))
def test_neighbour_means_agree_with_brute_force_where_points_coincide(places: list[int], k: int) -> None:
    corners = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 4.0], [32.0, 0.0]])
    x = np.concatenate([corners[places], -corners[places]])  # the mean is zero, so distances are exact
    v = np.arange(len(x), dtype=float)
    found = neighbour_mean(torch.tensor(x), torch.tensor(v), k)
    assert found.tolist() == pytest.approx(brute_force(x, v, k), abs=1e-9)


def test_a_copy_of_an_example_is_its_neighbour_and_the_example_itself_is_not() -> None:
    x = torch.tensor([[0.0], [0.0], [5.0], [5.0], [9.0]])
    v = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert neighbour_mean(x, v, k=1).tolist() == [2.0, 1.0, 4.0, 3.0, 3.5]


@given(st.integers(0, 50))
def test_neighbour_means_of_copies_do_not_depend_on_the_order_of_examples(seed: int) -> None:
    x, v = cloud(15, 3, seed)
    x = torch.cat((x, x, x)).round(decimals=1)
    v = torch.cat((v, v + 1, v + 2))
    order = torch.randperm(45, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(neighbour_mean(x[order], v[order], 2), neighbour_mean(x, v, 2)[order], atol=1e-5)


def test_far_from_the_origin_neighbours_are_still_found() -> None:
    x, v = cloud(100, 4)
    assert torch.allclose(neighbour_mean(x.double() + 1e4, v, 5), neighbour_mean(x, v, 5), atol=1e-6)


def test_with_few_examples_all_others_count() -> None:
    assert neighbour_mean(torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([1.0, 2.0, 6.0])).tolist() == [
        4.0,
        3.5,
        1.5,
    ]


def test_neighbours_need_two_finite_examples() -> None:
    with pytest.raises(DataError, match="use at least 2 examples"):
        neighbour_mean(torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(NumericsError, match="the features of 1 of 2 examples are not finite"):
        neighbour_mean(torch.tensor([[0.0], [torch.nan]]), torch.zeros(2))


def test_smr_ranks_the_neighbours_mean_rank_within_the_predicted_class() -> None:
    x, losses = cloud(80, 3)
    predicted = (x[:, 0] > 0.3).long()
    rank = (rankdata(losses.numpy()) - 1) / 79
    near = NearestNeighbors(n_neighbors=10).fit(x.numpy()).kneighbors(return_distance=False)
    smooth, expected = rank[near].mean(axis=1).round(9), np.zeros(80)  # equal sums are ties
    for c in (0, 1):
        members = predicted.numpy() == c
        expected[members] = (rankdata(smooth[members]) - 1) / (members.sum() - 1)
    assert smr_score(losses, x, predicted).numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("members", "neutral"), [(5, True), (6, False)])
def test_small_predicted_classes_get_one_half(members: int, neutral: bool) -> None:
    x, losses = cloud(40, 3)
    predicted = torch.zeros(40, dtype=torch.int64)
    predicted[:members] = 2
    score = smr_score(losses, x, predicted)
    assert (score[:members] == 0.5).all().item() is neutral
    assert (score[members:].min(), score[members:].max()) == (0, 1)


def test_an_examples_own_loss_plays_no_part_in_its_smr_score() -> None:
    """A lone wrong label in an easy region is not hard, an example of a hard region is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat((torch.randn(90, 2, generator=generator), 20 + torch.randn(10, 2, generator=generator)))
    losses = torch.cat((0.1 * torch.rand(90, generator=generator), 1 + torch.rand(10, generator=generator)))
    losses[4] = 50.0
    score = smr_score(losses, x, torch.zeros(100, dtype=torch.int64), k=5)
    assert score[90:].min() > score[:90].max()
    assert score[4] < 0.9
    assert set(hardest_share(score, 0.1).tolist()) == set(range(90, 100))


def test_a_class_that_is_hard_as_a_whole_is_not_up_weighted() -> None:
    x, losses = cloud(200, 2)
    x[100:] += 50
    losses[100:] += 10
    predicted = torch.arange(200) // 100
    score = smr_score(losses, x, predicted)
    assert score[:100].mean().item() == pytest.approx(0.5, abs=1e-6)
    assert score[100:].mean().item() == pytest.approx(0.5, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 3))
def test_static_weights_have_mean_one_and_a_bounded_ratio(score: list[float], c: float) -> None:
    s = torch.tensor(score, dtype=torch.float64)
    weights = static_weights(s, c)
    assert weights.mean().item() == pytest.approx(1)
    assert weights.max() / weights.min() <= np.exp(2 * c) * (1 + 1e-9)
    assert (weights[s.argsort()].diff() >= 0).all()


def test_static_weights_of_the_two_ends() -> None:
    weights = static_weights(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.5)
    assert weights.tolist() == pytest.approx([2 / (1 + np.e), 2 * np.e / (1 + np.e)])


def test_static_weights_without_strength_are_equal() -> None:
    assert static_weights(torch.rand(5), 0.0).tolist() == [1.0] * 5


def test_the_hardest_share_is_ordered_and_ties_go_to_the_smaller_index() -> None:
    score = torch.full((20,), 0.2)
    score[[4, 9, 17]] = torch.tensor([0.9, 0.7, 0.7])
    assert hardest_share(score, 0.1).tolist() == [4, 9]
    assert hardest_share(score, 0.2).tolist() == [4, 9, 17, 0]


def test_a_hardest_share_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="rounds to 0"):
        hardest_share(torch.rand(6), 0.1)
