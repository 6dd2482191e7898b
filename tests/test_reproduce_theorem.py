"""Theorem 1: every part of a small problem, both orders, and the weights of the proof."""

from itertools import combinations

import numpy as np
import pytest
from scipy import optimize

from molere.reproduce import theorem, theorem_page
from molere.reproduce.theorem import INPUTS, LABELS, RIDGE, K

PARTS = theorem.parts()
VALUES = theorem.least_loss(PARTS.astype(float))


def least(part: np.ndarray) -> float:
    """The same by another solver and another form of the loss."""

    def total(theta: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-INPUTS @ theta))
        own = np.where(LABELS == 1, p, 1 - p)
        return float(part @ (-np.log(own) + RIDGE / 2 * theta @ theta))

    return float(optimize.minimize(total, np.zeros(3), method="BFGS").fun)


def test_parts_are_all_choices_of_k_points() -> None:
    assert {tuple(np.flatnonzero(p)) for p in PARTS} == set(combinations(range(12), K))


@pytest.mark.parametrize("index", range(0, 495, 55))
def test_the_least_loss_of_a_part_is_that_of_another_solver(index: int) -> None:
    assert VALUES[index] == pytest.approx(least(PARTS[index]), abs=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    theta, step = np.array([0.3, -0.7, 0.2]), 1e-6
    moved = [(theorem.losses(theta + step * e) - theorem.losses(theta - step * e)) / (2 * step) for e in np.eye(3)]
    assert np.allclose(theorem.gradients(theta), np.stack(moved, axis=-1), atol=1e-8)


def test_choosing_the_part_first_gives_less_and_the_gap_is_proven() -> None:
    found = theorem.min_max()
    assert VALUES.max() < found.value - 0.01
    assert found.bound == pytest.approx(found.value, abs=1e-6)
    assert found.bound <= found.value + 1e-12
    assert found.mixture.sum() == pytest.approx(K)
    assert (found.mixture >= 0).all()
    assert (found.mixture <= 1).all()


def test_no_classifier_on_a_grid_has_a_smaller_worst_part() -> None:
    found = theorem.min_max()
    near = found.theta + np.random.default_rng(0).normal(0, 0.3, (2000, 3))
    assert min(theorem.worst(theta) for theta in near) >= found.value - 1e-9


def test_the_worst_part_of_a_classifier_is_found_by_trying_all() -> None:
    theta = np.array([1.0, 0.5, -0.2])
    assert theorem.worst(theta) == pytest.approx((PARTS @ theorem.losses(theta)).max())


@pytest.mark.parametrize("index", range(0, 495, 99))
def test_weights_of_inputs_and_labels_reach_the_least_loss(index: int) -> None:
    assert theorem.of_pairs(PARTS[index]) == pytest.approx(VALUES[index], abs=1e-7)


def test_weights_of_one_input_leave_its_shares_where_they_are() -> None:
    grid = np.linspace(0.001, 0.999, 999)
    for weight in (0.1, 1.0, 9.0):
        p = grid[np.argmin(-weight * (0.3 * np.log(grid) + 0.7 * np.log(1 - grid)))]
        assert theorem.one_input(0.3, 0.8)[0] == pytest.approx(-(0.8 * np.log(p) + 0.2 * np.log(1 - p)), abs=1e-2)
    assert theorem.one_input(0.3, 0.3)[0] == pytest.approx(theorem.one_input(0.3, 0.3)[1])


def test_the_page_says_what_holds(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theorem, "of_inputs", lambda part: float(theorem.least_loss(part[None].astype(float))[0]))
    found = theorem_page.found(seeds=[0], epochs=4, stride=60)
    text = theorem_page.markdown(found, {"Command": "`molere reproduce theorem1`", "Date": "today"}, "theorem1.png")
    assert "- Command: `molere reproduce theorem1`\n- Date: today\n" in text
    theorem_page.draw(found, tmp_path / "theorem1.png")
    assert found.max_min == pytest.approx(VALUES.max() / K)
    assert "Weak duality, eq. 3 <= eq. 4: **holds**" in text
    assert "where weights see x and y (theorem 1): **holds**" in text
    assert "they suffice: **does not hold**" in text
    assert "MOLERE, the learned split:" in text
    assert (tmp_path / "theorem1.png").exists()
