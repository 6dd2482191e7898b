"""Metrics against scikit-learn and against loops over single examples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, recall_score
from torch import Tensor

from molere.evaluate import calibration_error, metrics


def example(seed: int, n: int = 200, c: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, c, (n,), generator=g)
    logits = torch.randn(n, c, generator=g)
    logits[torch.arange(n), y] += 1.0
    return logits, y, torch.randint(0, 3, (n,), generator=g)


def probabilities(logits: Tensor) -> np.ndarray:
    z = logits.double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def slow_ece(p: np.ndarray, y: np.ndarray, bins: int) -> float:
    """One bin, then one example, at a time."""
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i in range(len(y)) if low < p[i].max() <= high or (b == 0 and p[i].max() == 0)]
        if inside:
            accuracy = np.mean([p[i].argmax() == y[i] for i in inside])
            confidence = np.mean([p[i].max() for i in inside])
            total += len(inside) / len(y) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_scikit_learn_and_with_loops(seed: int) -> None:
    logits, y, group = example(seed)
    p, truth, predicted = probabilities(logits), y.numpy(), logits.argmax(1).numpy()
    recalls = recall_score(truth, predicted, average=None)
    got = metrics(logits, y, group, ("a", "b", "c"))
    expected = {
        "accuracy": accuracy_score(truth, predicted),
        "balanced_accuracy": recalls.mean(),
        "worst_class": recalls.min(),
        "nll": log_loss(truth, p, labels=range(5)),
        "ece": slow_ece(p, truth, 15),
        "margin": np.mean(
            [row[k] - max(v for j, v in enumerate(row) if j != k) for row, k in zip(p, truth, strict=True)]
        ),
    }
    for g, name in enumerate("abc"):
        inside = group.numpy() == g
        expected[f"accuracy[{name}]"] = accuracy_score(truth[inside], predicted[inside])
    expected["worst_group"] = min(expected[f"accuracy[{name}]"] for name in "abc")
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_classes_and_groups_without_examples_are_ignored() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [2, 0, 0]])
    group = torch.tensor([0, 0, 2, -1])
    got = metrics(logits, torch.tensor([0, 1, 0, 0]), group, ("upright", "none", "rotated"))
    assert got["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["worst_class"] == pytest.approx(2 / 3)
    assert got["accuracy[upright]"] == 1
    assert got["accuracy[rotated]"] == got["worst_group"] == 0
    assert "accuracy[none]" not in got


def test_a_group_without_a_name_is_called_by_its_number() -> None:
    logits, y, group = example(0)
    assert {"accuracy[a]", "accuracy[1]", "accuracy[2]"} <= metrics(logits, y, group, ("a",)).keys()


def test_no_known_group_gives_no_group_metric() -> None:
    logits, y, _ = example(0)
    assert metrics(logits, y, torch.full_like(y, -1)) == metrics(logits, y)


def test_no_examples_give_no_metrics() -> None:
    assert metrics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == {}


def test_certain_and_wrong_gives_an_infinite_loss_but_no_nan() -> None:
    got = metrics(torch.tensor([[0.0, -torch.inf]]), torch.tensor([1]))
    assert got["nll"] == math.inf
    assert (got["ece"], got["margin"], got["accuracy"]) == (1, -1, 0)


def test_long_inputs_are_reduced_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, y, group = example(1)
    whole = metrics(logits, y, group)
    monkeypatch.setattr("molere.evaluate._ROWS", 7)
    assert metrics(logits, y, group) == whole


def test_half_precision_logits_are_reduced_in_float64() -> None:
    logits, y, group = example(2)
    half = logits.bfloat16()
    assert metrics(half, y, group) == metrics(half.double(), y, group)


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=40))
def test_a_confidence_on_an_edge_belongs_to_the_lower_bin(rows: list[tuple[int, bool]]) -> None:
    confidence = torch.tensor([k / 30 for k, _ in rows], dtype=torch.float64)
    correct = torch.tensor([float(ok) for _, ok in rows], dtype=torch.float64)
    total = 0.0
    for b in range(15):  # bin b holds k/30 for k in (2b, 2b + 2], decided in integers
        inside = [(k / 30, ok) for k, ok in rows if 2 * b < k <= 2 * b + 2 or (b == 0 and k == 0)]
        total += abs(sum(ok - c for c, ok in inside)) / len(rows)
    assert calibration_error(confidence, correct) == pytest.approx(total, abs=1e-12)
