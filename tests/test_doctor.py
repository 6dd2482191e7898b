"""The doctor's findings, and the ways it tries taken through a run."""

import math

import pytest
import torch
from torch import nn

from molere.doctor import WAYS, Diagnosis, examine
from molere.models import build


def norm_free() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))


def with_batch_norm() -> nn.Module:
    return build("resnet20", num_classes=3, input_shape=(3, 4, 4), seed=0)


def batch(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 4, 4, generator=g), torch.arange(n) % 3


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return examine(norm_free, *batch(), repeats=1)


def test_exact_ways_agree_with_float64_and_partial_ways_say_how_far_they_are_off(found: Diagnosis) -> None:
    by_way = {f.way: f for f in found.findings}
    assert list(by_way) == list(WAYS)
    assert not any(f.refused for f in found.findings)
    for way, error in {"one-sided": 1e-2, "central": 1e-2, "exact": 1e-5, "ghost": 1e-5}.items():
        assert by_way[way].error < error
        assert by_way[way].cosine > 0.999
    assert by_way["one-sided, head"].error > 0.1
    assert all(f.times > 0 and math.isfinite(f.times) for f in found.findings)


def test_the_choice_is_told_with_its_reason(found: Diagnosis) -> None:
    assert found.chosen == "one-sided"
    assert "cosine" in found.reason
    assert found.parameters == sum(p.numel() for p in norm_free().parameters())
    lines = str(found).splitlines()
    assert lines[0].startswith("Sequential, ")
    assert len(lines) == 4 + len(WAYS)


def test_what_a_module_does_not_allow_is_told_in_its_line() -> None:
    found = {f.way: f for f in examine(with_batch_norm, *batch(), repeats=1).findings}
    assert "BatchNorm in train mode mixes the examples" in found["ghost"].refused
    assert found["exact"].error < 1e-3
    assert math.isnan(found["ghost"].times)
