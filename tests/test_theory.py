"""The two statements behind the method, by brute force and without the library.

Tri-level problem: max over parts S' of a given size of the least summed loss on S'; robust problem: the same
with max and min exchanged, which is never smaller.
"""

from itertools import combinations

import numpy as np
import pytest

TARGETS = np.array([0.0, 0.0, 0.0, 1.0])
CONSTANTS = np.linspace(0, 1, 2001)


def mean_losses(size: int) -> np.ndarray:
    """Mean squared loss of every constant prediction (columns) on every part of a size (rows)."""
    losses = (TARGETS[:, None] - CONSTANTS) ** 2
    return np.array([losses[list(part)].mean(axis=0) for part in combinations(range(4), size)])


def split_then_fit(size: int) -> float:
    return mean_losses(size).min(axis=1).max() * size


def fit_then_split(size: int) -> float:
    return mean_losses(size).max(axis=0).min() * size


@pytest.mark.parametrize(("size", "tri_level", "robust"), [(1, 0.0, 0.25), (2, 0.5, 0.5)])
def test_duality_gap_of_four_targets_and_a_constant(size: int, tri_level: float, robust: float) -> None:
    assert split_then_fit(size) == pytest.approx(tri_level, abs=1e-6)
    assert fit_then_split(size) == pytest.approx(robust, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_choosing_the_part_first_never_exceeds_choosing_the_model_first(size: int) -> None:
    assert split_then_fit(size) <= fit_then_split(size) + 1e-12


def weighted_optimum(positive: float, weight_of_one: float, weight_of_zero: float) -> float:
    """The prediction P(y = 1) of least weighted cross-entropy on one input, on a grid."""
    p = np.linspace(0.0005, 0.9995, 1999)
    risk = -positive * weight_of_one * np.log(p) - (1 - positive) * weight_of_zero * np.log(1 - p)
    return p[risk.argmin()]


def test_weights_of_inputs_and_labels_turn_the_training_optimum_into_the_validation_one() -> None:
    assert weighted_optimum(0.3, 8 / 3, 2 / 7) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("weight", [0.1, 1.0, 7.0])
def test_weights_of_inputs_alone_leave_the_label_distribution_where_it_is(weight: float) -> None:
    assert weighted_optimum(0.3, weight, weight) == pytest.approx(0.3, abs=1e-3)
