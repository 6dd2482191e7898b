"""Identity: equal plain values exactly where the results they lead to must be equal."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from molere.identity import plain


@dataclass(frozen=True)
class Settings:
    rate: float
    shape: tuple[int, ...] = (1, 2)


def scaled(factor: float) -> Callable[[float], float]:
    return lambda x: x * factor


class Rule:
    def __init__(self, factor: float) -> None:
        self.factor = factor


PAIRS: list[tuple[Any, Any]] = [
    (Settings(1.0), Settings(2.0)),
    (torch.ones(3), torch.zeros(3)),
    (np.ones(3), np.ones((3, 1))),
    (np.ones(3), np.ones(3, dtype=np.int64)),
    (lambda x: x, lambda x: -x),
    (lambda x=1: x, lambda x=2: x),
    (scaled(1.0), scaled(2.0)),
    (partial(scaled, 1.0), partial(scaled, 2.0)),
    (nn.Linear(2, 3), nn.Linear(3, 2)),
    (Rule(1.0), Rule(2.0)),
    (Settings, Rule),
    ({"a": [1, 2]}, {"a": [1, 3]}),
]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda v: type(v).__name__)
def test_things_that_do_something_else_differ(one: Any, other: Any) -> None:
    assert plain(one) != plain(other)


def test_things_that_do_the_same_are_equal() -> None:
    assert plain(scaled(2.0)) == plain(scaled(2.0))
    assert plain(Rule(1.0)) == plain(Rule(1.0))
    assert plain(torch.arange(4.0)) == plain(np.arange(4, dtype=np.float32))
    assert plain(Settings(1.0)) == {"kind": "Settings", "rate": 1.0, "shape": [1, 2]}


def test_what_holds_itself_ends() -> None:
    def itself(n: int) -> int:
        return n and itself(n - 1)

    rule = Rule(1.0)
    rule.factor = rule  # pyright: ignore[reportAttributeAccessIssue]
    assert plain(itself) == plain(itself)
    assert plain(rule) == plain(rule)


def test_a_function_is_the_same_in_another_process() -> None:
    said = (
        "import sys; sys.path[:0] = {0!r}; from test_identity import scaled, Rule; from molere.identity import plain;"
    )
    said += "print(plain([scaled(3.0), Rule(2.0), lambda: 0])[:2])"
    found = subprocess.run([sys.executable, "-c", said.format(sys.path)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(plain([scaled(3.0), Rule(2.0)]))
