"""Rows D2, D3, D4 and D5: labels, sets of examples and inputs that cannot be trained on, or only just."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from molere.data.pool import Data, DatasetPool, TensorPool
from molere.data.sources import from_arrays, from_datasets
from molere.errors import DataError, MolereError, NumericsError
from molere.method import Run
from molere.methods.lrwopt import LRWOpt, LRWOptState
from molere.recipe import Recipe
from molere.run import fit

pytestmark = pytest.mark.faults

AT = 7
"""The example with the fault."""


def rows(n: int = 30, classes: int = 3) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % classes
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0)) + y[:, None], y


class Pairs(Dataset[tuple[Any, Any]]):
    """Items as they are, labels only in them."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, at: int) -> tuple[Any, Any]:
        return self.x[at], self.y[at]


# ---- D2

BAD: dict[str, Any] = {
    "minus one": -1,
    "ignore index": -100,
    "NaN": math.nan,
    "infinite": math.inf,
    "fraction": 1.5,
    "text": "dog",
    "missing": None,
    "too large": 3,
    "far too large": 2**40,
    "several": [1, 2],
}


def listed(bad: Any) -> list[Any]:
    y: list[Any] = rows()[1].tolist()
    y[AT] = bad
    return y


def as_array(bad: Any) -> Any:
    return np.asarray(listed(bad), object if isinstance(bad, list) else None)


def given_as_arrays(bad: Any) -> object:
    x, y = rows()
    return from_arrays(x, as_array(bad), x, y, num_classes=3)


def given_as_a_list(bad: Any) -> object:
    return TensorPool(rows()[0], listed(bad), num_classes=3)


def given_as_targets(bad: Any) -> object:
    class Targets(Pairs):
        targets = listed(bad)

    x, y = rows()
    return from_datasets(Targets(x, listed(bad)), Pairs(x, y), num_classes=3)


def given_in_items(bad: Any) -> object:
    return DatasetPool(Pairs(rows()[0], listed(bad)), num_classes=3)


def given_in_the_test(bad: Any) -> object:
    x, y = rows()
    return from_arrays(x, y, x, listed(bad), num_classes=3)


WAYS: list[Callable[[Any], object]] = [
    given_as_arrays, given_as_a_list, given_as_targets, given_in_items, given_in_the_test,
]  # fmt: skip


def one_line(error: Exception) -> bool:
    return "\n" not in str(error) and len(str(error)) < 400


def test_bad_labels_are_refused_with_their_id_before_anything_is_trained(row: Any) -> None:
    wrong = list[tuple[object, object]]()
    for kind, bad in BAD.items():
        for way in WAYS:
            try:
                way(bad)
                wrong.append(((kind, way.__name__), "taken"))
            except DataError as error:
                if not one_line(error) or not re.search(rf"\b{AT}\b", str(error)):
                    wrong.append(((kind, way.__name__), str(error)))
            except Exception as error:
                wrong.append(((kind, way.__name__), repr(error)))
    row.judge("D2", wrong, len(BAD) * len(WAYS))


# ---- D3


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def of(y: list[int], **more: Any) -> Data:
    x = torch.randn(len(y), 4, generator=torch.Generator().manual_seed(0))
    test = torch.randn(6, 4), torch.arange(6) % 3
    return from_arrays(x, torch.tensor(y), *test, num_classes=3, **more)


def even(n: int) -> list[int]:
    return [i % 3 for i in range(n)]


SETS: dict[str, tuple[Callable[[], Data], Callable[[], nn.Module], dict[str, Any]]] = {
    "a class of one example": (lambda: of([*even(39), 2], select=0.0), plain, {}),
    "only one example of a class": (lambda: of([0, 1] * 20 + [2]), plain, {}),
    "a class without an example": (lambda: of([0, 1] * 20), plain, {}),
    "a class absent from selection": (
        lambda: of(even(36), select=(torch.randn(4, 4), torch.tensor([0, 0, 1, 1]))), plain, {},
    ),
    "fewer to validate than classes": (lambda: of(even(16), select=0.0), plain, {"batch_size": 4}),
    "a batch larger than the data": (lambda: of(even(12)), plain, {"batch_size": 64}),
    "one example": (lambda: of([1], select=0.0), plain, {"batch_size": 1}),
    "two examples": (lambda: of([0, 1], select=0.0), plain, {"batch_size": 1}),
    "BatchNorm and batches of one": (lambda: of(even(12)), batch_norm, {"batch_size": 1}),
    "BatchNorm and one validation example": (lambda: of(even(12), select=0.0), batch_norm, {"batch_size": 4}),
}  # fmt: skip
METHODS = ("erm", "lrw-random", "molere[mode=learned]")


def test_degenerate_sets_train_or_are_refused_in_one_line(row: Any) -> None:
    wrong = list[tuple[object, object]]()
    for name, (data, model, more) in SETS.items():
        for method in METHODS:
            settings = {"epochs": 2, "batch_size": 8, "lr": 0.05, "device": "cpu", **more}
            try:
                found = fit(method, data=data(), model=model, recipe=settings)
                if not all(bool(torch.isfinite(p).all()) for p in found.classifier.parameters()):
                    wrong.append(((name, method), "not finite"))
            except MolereError as error:
                if not one_line(error):
                    wrong.append(((name, method), str(error)))
            except Exception as error:
                wrong.append(((name, method), repr(error)))
    row.judge("D3", wrong, len(SETS) * len(METHODS))


# ---- D4


@dataclass(frozen=True, kw_only=True)
class OneSided(LRWOpt):
    """LRWOpt whose splitter is sure of one side, and hardly learns."""

    bias: float = 0.0

    def init(self, run: Run) -> LRWOptState:
        state = super().init(run)
        last = [m for m in state.splitter.model.modules() if isinstance(m, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(self.bias * torch.linspace(1, -1, len(last.bias)) if len(last.bias) > 1 else self.bias)
        return state


def test_a_splitter_that_sends_everything_to_one_side_is_guarded_and_logged(tmp_path: Path, row: Any) -> None:
    wrong, total = list[tuple[object, object]](), 0
    x, y = rows(96)
    for seed in range(10):
        for bias in (-30.0, 30.0):
            total += 1
            method = OneSided(bias=bias, lr_splitter=1e-6, delta=0.2, warmup=0.25)
            pool = TensorPool(x, y)
            found = fit(
                method, data=Data("points", pool, None, {"test": pool}), model=plain, seed=seed, label="one side",
                recipe=Recipe(epochs=4, batch_size=16, lr=0.05, device="cpu"),
            )  # fmt: skip
            if problem := misguided(found, y, bias):
                wrong.append(((seed, bias), problem))
    row.judge("D4", wrong, total)


def misguided(found: Any, y: Tensor, bias: float) -> str | None:
    """What the guard let happen: too large a part, a class gone from training, nothing logged."""
    later = [r for r in found.history if "split_candidates" in r]
    inside = torch.as_tensor(np.asarray(found.samples["in_validation"])).bool()
    if found.updates != 4 * 6 or not later:
        return "did not finish"
    if not 0 < int(inside.sum()) <= int(0.2 * len(y)):
        return f"{int(inside.sum())} of {len(y)} validate"
    if len(y[~inside].unique()) < 3:
        return "a class is gone from training"
    everything, nothing = (len(y), 0.0), (0.0, 1.0)
    seen = {(r["split_candidates"], r["split_rejected"]) for r in later}
    return None if seen == {everything if bias < 0 else nothing} else f"logged {seen}"


# ---- D5


def poisoned(value: float, place: int) -> Tensor:
    x = rows()[0].clone()
    x[AT].view(-1)[place] = value
    return x


def refused(make: Callable[[], object]) -> str | None:
    try:
        make()
    except (DataError, NumericsError) as error:
        return None if one_line(error) and re.search(rf"\b{AT}\b", str(error)) else str(error)
    except Exception as error:
        return repr(error)
    return "taken"


def trained_on(train: Tensor, test: Tensor, **more: Any) -> object:
    y = rows()[1]
    data = from_datasets(TensorDataset(train, y), TensorDataset(test, y), select=0.0)
    settings = {"epochs": 2, "batch_size": 5, "device": "cpu", "lr": 0.05, **more}
    return fit("erm", data=data, model=plain, recipe=settings)


def test_inputs_that_are_not_finite_are_refused_with_their_id(row: Any) -> None:
    x, y = rows()
    wrong, total = list[tuple[object, object]](), 0
    for value in (math.nan, math.inf, -math.inf, math.nan):
        bad = poisoned(value, total % 4)
        cases: dict[str, Callable[[], object]] = {
            "train": lambda bad=bad: from_arrays(bad, y, x, y),
            "test": lambda bad=bad: from_arrays(x.numpy(), y.numpy(), bad.numpy(), y.numpy()),
            "select": lambda bad=bad: from_arrays(x, y, x, y, select=(bad.double(), y)),
            "items": lambda bad=bad: trained_on(bad, x),
            "items of the test": lambda bad=bad: trained_on(x, bad),
        }
        for name, make in cases.items():
            total += 1
            if problem := refused(make):
                wrong.append(((name, value), problem))
    row.judge("D5", wrong, total)


def test_examples_that_are_not_finite_can_be_left_out(tmp_path: Path) -> None:
    y = rows()[1]
    data = from_datasets(TensorDataset(poisoned(math.nan, 0), y), TensorDataset(*rows()), select=0.0)
    settings = {"epochs": 2, "batch_size": 5, "device": "cpu", "on_nonfinite": "skip"}
    found = fit("erm", data=data, model=plain, recipe=settings, out=tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len([e for e in events if e["event"] == "skipped" and f"example {AT}" in e["error"]]) == 2
    assert all(bool(torch.isfinite(p).all()) for p in found.classifier.parameters())
