"""Learning curves of weights: what every run writes down of them, in metrics, samples and reports."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from molere import registry, report
from molere.data.pool import Batch, Data, TensorPool
from molere.method import Method, Run
from molere.notes import Notes
from molere.recipe import Recipe
from molere.report import About
from molere.result import Result
from molere.run import fit
from molere.split import Split
from molere.steps import Taken
from molere.storage import MetricsFile, read_samples
from molere.table import tabulate
from molere.testing import rare_region

RECIPE = Recipe(epochs=3, batch_size=16, device="cpu")


def noisy(flipped: int = 12) -> Data:
    """96 points, the first few of them with wrong labels; which ones is known."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.arange(96) % 2
    x = torch.randn(96, 4, generator=generator) + 2.0 * clean[:, None]
    y = clean.clone()
    y[:flipped] = 1 - y[:flipped]
    test = TensorPool(x, clean)
    return Data("noisy", TensorPool(x, y, clean_y=clean), test, {"test": test})


class Noting(Method[Any]):
    """A method on the whole pool that weighs each example by a table, and keeps what it used."""

    def __init__(self, table: Tensor, *, equal_at: int = -1) -> None:
        self.table, self.equal_at = table, equal_at
        self.used: list[tuple[Tensor, Tensor]] = []

    def init(self, run: Run) -> None:
        return None

    def split(self, run: Run, state: None) -> Split:
        return Split.of(torch.arange(0), len(run.pool))

    def step(self, run: Run, state: None, batch: Batch) -> Taken:
        weights = None if run.updates == self.equal_at else self.table[batch.index]
        self.used.append((batch.index.clone(), torch.ones(len(batch)) if weights is None else weights.clone()))
        return run.update(run.forward(batch), weights)


def epochs(method: Noting, per_epoch: int = 6) -> list[list[tuple[Tensor, Tensor]]]:
    return [method.used[i : i + per_epoch] for i in range(0, len(method.used), per_epoch)]


def table() -> Tensor:
    values = torch.rand(96, generator=torch.Generator().manual_seed(2)) * 2
    values[torch.arange(96) % 5 == 0] = 0
    return values


def run_of(method: Any, **arguments: Any) -> Result:
    return fit(method, **{"data": noisy(), "model": "mlp", "recipe": RECIPE, **arguments})


# ---- the figures


@pytest.mark.parametrize("equal_at", [-1, 2], ids=["all weighted", "one update of equal weights"])
def test_each_epochs_row_has_the_means_over_its_updates(equal_at: int) -> None:
    method = Noting(table(), equal_at=equal_at)
    result = run_of(method)
    flipped = torch.arange(96) < 12
    for row, updates in zip(result.history, epochs(method), strict=True):
        index, weights = (torch.cat(parts) for parts in zip(*updates, strict=True))
        assert row["weights_nonzero"] == pytest.approx(
            float(np.mean([float((w > 0).float().mean()) for _, w in updates]))
        )
        sizes = [float(w.sum() ** 2 / (len(w) * (w**2).sum())) for _, w in updates]
        assert row["effective_sample_size"] == pytest.approx(np.mean(sizes))
        assert row["weight_flipped"] == pytest.approx(float(weights[flipped[index]].mean()))
        assert row["weight_clean"] == pytest.approx(float(weights[~flipped[index]].mean()))


def test_the_samples_hold_the_mean_weight_over_all_uses(tmp_path: Path) -> None:
    method = Noting(table(), equal_at=0)
    run_of(method, out=tmp_path)
    sums, uses = torch.zeros(96), torch.zeros(96)
    for index, weights in method.used:
        sums[index] += weights
        uses[index] += 1
    found = read_samples(tmp_path / "samples.parquet")["weight_mean"]
    np.testing.assert_allclose(found, (sums / uses).numpy(), rtol=1e-6)
    assert "weights_nonzero" in MetricsFile(tmp_path / "metrics.csv").read()[0]


def test_examples_that_were_never_used_have_no_mean_weight() -> None:
    result = fit("drop-random", data=rare_region(), model="mlp", recipe=RECIPE)
    held = np.asarray(result.samples["in_validation"])
    mean = np.asarray(result.samples["weight_mean"])
    assert held.any()
    assert np.isnan(mean[held]).all()
    assert (mean[~held] == 1).all()


def test_plain_training_weighs_flipped_and_clean_labels_alike() -> None:
    result = run_of("erm")
    names = ("effective_sample_size", "weights_nonzero", "weight_flipped", "weight_clean")
    assert [result.logged[name] for name in names] == [1.0] * 4


@pytest.mark.parametrize("data", [rare_region(), noisy(flipped=0)], ids=["labels not known", "no label wrong"])
def test_without_known_wrong_labels_there_is_no_such_figure(data: Data) -> None:
    result = run_of("erm", data=data)
    assert "weight_flipped" not in result.logged
    assert "weight_clean" not in result.logged
    assert result.logged["weights_nonzero"] == 1


def test_a_method_that_leaves_examples_out_says_so() -> None:
    result = run_of("trimmed[share=0.25]")
    assert result.logged["weights_nonzero"] == pytest.approx(0.75)
    assert result.logged["effective_sample_size"] == pytest.approx(0.75)


@pytest.mark.parametrize("name", registry.METHODS)
def test_every_method_writes_its_curves(name: str) -> None:
    data = noisy()
    train = data.train
    assert isinstance(train, TensorPool)
    with_groups = TensorPool(train.x, train.y, clean_y=train.clean_y, group=torch.arange(96) % 2)
    result = fit(name, data=Data("noisy", with_groups, data.select, data.tests), model="mlp", recipe=RECIPE)
    for row in result.history:
        assert 0 <= row["weights_nonzero"] <= 1
        assert row.get("weight_clean", 1.0) >= 0
    assert "weight_flipped" in result.logged or bool(np.isnan(np.asarray(result.samples["weight_mean"])[:12]).all())
    used = ~np.isnan(np.asarray(result.samples["weight"]))
    assert (np.isnan(np.asarray(result.samples["weight_mean"])) == ~used).all()


def test_nothing_waits_for_the_device_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes(8, torch.device("cpu"), torch.arange(8) < 2)
    index, weights, loss = torch.arange(4), torch.rand(4), torch.tensor(1.0)

    def refused(*_: object) -> Any:
        raise AssertionError("a value was read")

    with monkeypatch.context() as patch:
        for reading in ("item", "__float__", "__bool__", "__int__", "tolist", "cpu", "numpy"):
            patch.setattr(Tensor, reading, refused)
        notes.trained(index, weights, loss)
        notes.trained(index, None, loss)
        notes.presented(index, weights > 0.5)
    assert notes.row(2)["train_loss"] == 1.0


# ---- the report


def stored(label: str, **logged: float) -> dict[str, Any]:
    metrics = {"accuracy": 0.5}
    return {"method": label, "label": label, "seed": 0, "updates": 1, "last": metrics, "best": metrics,
            "cost": {"seconds": 1.0, "forward": 1.0}, "logged": logged}  # fmt: skip


def logged_section(*results: dict[str, Any]) -> str:
    return report.markdown(tabulate(results), About()).partition("## Logged along the way")[2]


def test_the_report_shows_curves_only_where_weights_vary() -> None:
    equal = {"effective_sample_size": 0.9999999, "weights_nonzero": 1.0}
    assert logged_section(stored("erm", **equal), stored("drop", **equal)) == ""
    text = logged_section(stored("erm", **equal), stored("lrw", effective_sample_size=0.9, weights_nonzero=1.0))
    assert "| method | effective_sample_size |" in text
    assert "| erm | 1 |" in text
    assert "| lrw | 0.9 |" in text


def test_the_report_shows_weights_of_flipped_labels_where_a_method_tells_them_apart() -> None:
    erm = stored("erm", weight_flipped=1.0, weight_clean=1.0)
    text = logged_section(erm, stored("trimmed", weight_flipped=0.2, weight_clean=1.1))
    assert "| method | weight_flipped | weight_clean |" in text
    assert logged_section(erm) == ""
