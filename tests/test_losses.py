import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from molere.losses import (
    cross_entropy,
    difficulty_aware,
    label_penalty,
    share_penalty,
    soft_validation_objective,
    split_loss,
    trimmed_mean,
)


def vector(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def near(value: Tensor, expected: float | list[float], tolerance: float = 1e-6) -> bool:
    return value.detach().numpy() == pytest.approx(expected, abs=tolerance)


probabilities = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=2, max_size=20)


def test_cross_entropy_is_the_negative_log_softmax_of_the_label(generator: torch.Generator) -> None:
    logits = 3 * torch.randn(7, 5, generator=generator)
    y = torch.randint(5, (7,), generator=generator)
    exp = np.exp(logits.double().numpy())
    expected = -np.log(exp[np.arange(7), y.numpy()] / exp.sum(axis=1))
    assert cross_entropy(logits, y).numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("given_type", "wide"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_cross_entropy_is_never_taken_in_half_precision(given_type: torch.dtype, wide: torch.dtype) -> None:
    assert cross_entropy(torch.zeros(2, 3, dtype=given_type), torch.tensor([0, 1])).dtype == wide


@pytest.mark.parametrize(("correct", "loss"), [(True, 0.223144), (False, 1.609438)])
def test_split_loss_of_a_probability_of_four_fifths(correct: bool, loss: float) -> None:
    assert near(split_loss(vector(0.8), torch.tensor([correct])), [loss])


def test_split_loss_has_the_gradient_of_plain_cross_entropy_through_a_sigmoid() -> None:
    logits = vector(-3, -0.5, 0, 2, 4, grad=True)
    correct = torch.tensor([True, False, True, False, True])
    split_loss(logits.sigmoid(), correct).mean().backward()
    expected = (logits.detach().sigmoid() - correct.double()) / 5
    assert torch.allclose(logits.grad, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("a", [0.0, 1.0])
@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_split_loss_is_finite_with_a_gradient_at_certainty(a: float, correct: bool, dtype: torch.dtype) -> None:
    p = torch.tensor([a], dtype=dtype, requires_grad=True)
    loss = split_loss(p, torch.tensor([correct]))
    loss.sum().backward()
    assert 0 <= loss.item() < 20
    assert p.grad is not None
    assert p.grad.isfinite().all()
    assert p.grad.item() != 0


def test_soft_validation_objective_and_its_gradient_on_two_examples() -> None:
    a, losses = vector(0.2, 0.4, grad=True), vector(2, 1)
    value = soft_validation_objective(a, losses)
    value.backward()
    assert near(value, 1.571429)
    assert near(a.grad, [-0.306122, 0.408163])
    assert ((1 - a.detach()) * a.grad).sum().item() == pytest.approx(0, abs=1e-7)


def test_soft_validation_objective_treats_losses_as_constants() -> None:
    losses = vector(2, 1, grad=True)
    soft_validation_objective(vector(0.2, 0.4, grad=True), losses).backward()
    assert losses.grad is None


@given(probabilities, st.floats(0.01, 1))
def test_soft_validation_objective_ignores_the_size_of_the_validation_part(p: list[float], scale: float) -> None:
    membership = vector(*p).clamp_min(0.01)
    losses = torch.arange(len(p), dtype=torch.float64)
    whole = soft_validation_objective(1 - membership, losses)
    assert soft_validation_objective(1 - scale * membership, losses).item() == pytest.approx(whole.item(), rel=1e-4)


@pytest.mark.parametrize("a", [0.0, 1.0])
def test_soft_validation_objective_is_finite_when_all_examples_are_on_one_side(a: float) -> None:
    p = torch.full((4,), a, requires_grad=True)
    value = soft_validation_objective(p, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    value.backward()
    assert value.item() == pytest.approx(2.5)
    assert p.grad is not None
    assert p.grad.isfinite().all()
    assert (p.grad != 0).all()


def test_standardised_losses_have_mean_zero_and_deviation_one() -> None:
    value = soft_validation_objective(vector(0, 1, 1, 1), vector(5, 1, 1, 1), stabilise="standardise")
    assert near(value, math.sqrt(3), tolerance=1e-5)  # (5 - 2) / sqrt(3)


def test_standardising_equal_losses_gives_zero() -> None:
    assert near(soft_validation_objective(vector(0.1, 0.7), vector(3, 3), stabilise="standardise"), 0)


def test_clipped_losses_stop_at_their_95_percent_quantile() -> None:
    losses = torch.arange(1, 22, dtype=torch.float64)  # 1..21: the quantile is the 20
    only_last = torch.ones(21, dtype=torch.float64)
    only_last[-1] = 0
    assert near(soft_validation_objective(only_last, losses, stabilise="clip"), 20, tolerance=1e-4)


@pytest.mark.parametrize(("r", "penalty"), [(0.9, 0.0), (0.5, 0.368064)])
def test_share_penalty_is_the_divergence_of_the_current_share_from_the_prior(r: float, penalty: float) -> None:
    assert near(share_penalty(vector(r, r, r), delta=0.1), penalty)
    assert near(share_penalty(vector(r - 0.1, r + 0.1), delta=0.1), penalty)


@given(probabilities, st.floats(0.01, 0.99))
def test_share_penalty_is_never_negative(p: list[float], delta: float) -> None:
    assert share_penalty(vector(*p), delta).item() >= -1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [0.0, 1.0])
def test_share_penalty_pushes_a_collapsed_splitter_back(a: float, dtype: torch.dtype) -> None:
    p = torch.full((8,), a, dtype=dtype, requires_grad=True)
    penalty = share_penalty(p, delta=0.1)
    penalty.backward()
    assert 1 < penalty.item() < 20
    assert p.grad is not None
    assert p.grad.isfinite().all()
    assert (p.grad * (1 if a == 1 else -1) > 0).all()


def test_label_penalty_of_four_examples() -> None:
    a, y = vector(0.9, 0.9, 0.5, 0.5), torch.tensor([0, 0, 1, 1])
    train = 0.5 * math.log(0.5 / (1.8 / 2.8)) + 0.5 * math.log(0.5 / (1.0 / 2.8))
    val = 0.5 * math.log(0.5 / (0.2 / 1.2)) + 0.5 * math.log(0.5 / (1.0 / 1.2))
    assert train == pytest.approx(0.042579, abs=1e-6)
    assert val == pytest.approx(0.293893, abs=1e-6)
    assert near(label_penalty(a, y, 2), 0.336472)
    assert near(label_penalty(a, y, 2), train + val)


def test_label_penalty_ignores_classes_that_are_not_in_the_batch() -> None:
    a = vector(0.9, 0.9, 0.5, 0.5)
    assert near(label_penalty(a, torch.tensor([3, 3, 97, 97]), 100), 0.336472)


@given(probabilities)
def test_label_penalty_of_equal_probabilities_is_zero(p: list[float]) -> None:
    y = torch.arange(len(p)) % 3
    assert label_penalty(torch.full((len(p),), p[0], dtype=torch.float64), y, 3).item() == pytest.approx(0, abs=1e-6)
    assert label_penalty(vector(*p), y, 3).item() >= -1e-9


@pytest.mark.parametrize("a", [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
def test_label_penalty_is_finite_when_a_part_is_empty_or_lacks_a_class(a: list[float]) -> None:
    p = torch.tensor(a, requires_grad=True)
    value = label_penalty(p, torch.tensor([0, 0, 1, 1]), 3)
    value.backward()
    assert value.isfinite()
    assert p.grad is not None
    assert p.grad.isfinite().all()


@pytest.mark.parametrize(
    ("loss", "eta", "expected"),
    [(0.2, 1.0, 0.044629), (0.2, 2.0, 0.008926), (0.9, 1.0, 2.072327), (2.0, 1.0, 27.631021)],
)
def test_difficulty_aware_loss_of_a_batch(loss: float, eta: float, expected: float) -> None:
    batch = vector(loss - 0.1, loss + 0.1)
    assert near(difficulty_aware(batch, eta), expected)
    if eta == 1:
        assert near(difficulty_aware(batch), expected)


def test_difficulty_aware_loss_of_examples_is_the_focal_loss() -> None:
    p = vector(0.05, 0.3, 0.5, 0.99)
    focal = [-((1 - q) ** 2) * math.log(q) for q in p.tolist()]
    assert near(difficulty_aware(-p.log(), level="example"), focal)
    assert near(difficulty_aware(-p.log(), level="example", p_true=p), focal)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("level", ["batch", "example"])
@pytest.mark.parametrize("loss", [0.0, 1.0, 50.0, 500.0])
def test_difficulty_aware_loss_and_gradient_are_finite(loss: float, level: str, eta: float) -> None:
    losses = torch.tensor([loss, loss], requires_grad=True)
    value = difficulty_aware(losses, eta, level=level).sum()  # pyright: ignore[reportArgumentType]
    value.backward()
    assert value.isfinite()
    assert losses.grad is not None
    assert losses.grad.isfinite().all()


@pytest.mark.parametrize(("share", "expected"), [(0.0, 5.5), (0.05, 5.5), (0.1, 5.0), (0.3, 4.0), (0.99, 1.0)])
def test_trimmed_mean_drops_the_largest_losses(share: float, expected: float) -> None:
    assert near(trimmed_mean(vector(7, 2, 10, 1, 3, 9, 8, 4, 6, 5), share), expected)


def test_trimmed_mean_rounds_a_share_as_a_person_would() -> None:
    assert 0.29 * 100 < 29
    assert near(trimmed_mean(torch.arange(1, 101, dtype=torch.float64), 0.29), 36.0)  # mean of 1..71


def test_trimmed_mean_of_equal_losses_is_that_loss() -> None:
    assert near(trimmed_mean(vector(3, 3, 3, 3), 0.5), 3)


def test_gradient_of_the_trimmed_mean_reaches_only_the_kept_losses() -> None:
    losses = vector(1, 9, 2, 9, grad=True)
    trimmed_mean(losses, 0.25).backward()
    assert near(losses.grad, [1 / 3, 1 / 3, 1 / 3, 0])
