"""Faults that users meet: each one line that names what is wrong, with nothing lost and nothing left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import molere
from molere import fit
from molere.cli import main
from molere.data.sources import from_arrays, from_datasets
from molere.errors import ConfigError, DataError


def _arrays(classes: int = 3) -> tuple[Tensor, Tensor]:
    y = torch.arange(60) % classes
    return torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) + y[:, None], y


def _data(classes: int = 3) -> Any:
    x, y = _arrays(classes)
    return from_arrays(x, y, x, y)


class _Two(nn.Module):
    """Logits beside something else."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.out(x), x


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: nn.Linear(5, 2), "Linear has 2 outputs for 3 classes (example 2 has label 2); give it 3 outputs"),
        (_Two, "_Two returns a tuple, expected logits [n, classes]"),
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Unflatten(1, (3, 1))), "gives [2, 3, 1] for 2 examples"),
    ],
)
def test_a_module_that_gives_no_logits_is_refused_before_the_first_step(model: Any, said: str) -> None:
    with pytest.raises(ConfigError, match="^[^\n]+$") as caught:
        fit("erm", data=_data(), model=model, recipe={"epochs": 1, "batch_size": 8})
    assert said in str(caught.value)


def test_more_outputs_than_classes_are_fine() -> None:
    result = fit("erm", data=_data(), model=lambda: nn.Linear(5, 7), recipe={"epochs": 1, "batch_size": 8})
    assert result.updates == 6


class _Broken(Dataset[tuple[Tensor, int]]):
    """One of its items cannot be read."""

    targets = tuple(i % 2 for i in range(20))

    def __len__(self) -> int:
        return 20

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        if at == 13:
            raise OSError("image file is truncated")
        return torch.full((4,), float(at)), at % 2


def test_an_item_that_cannot_be_read_is_named() -> None:
    with pytest.raises(DataError, match=r"^example 13 of the dataset cannot be read \(OSError: image file is trunc"):
        fit("erm", data=from_datasets(_Broken(), _Broken()), model="mlp", recipe={"epochs": 1, "batch_size": 4})


def test_data_of_another_kind_are_refused_with_what_to_use() -> None:
    code = "from molere import fit; fit('erm', data=([[1.0]], [0]))"  # in a process where nothing checks types first
    here = {**os.environ, "PYTHONPATH": str(Path(molere.__file__).parents[1])}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=here).stderr
    assert "ConfigError: data is a tuple, expected" in said
    assert said.rstrip().endswith("use from_arrays or from_datasets")


def test_weights_are_told_apart_by_the_ids_of_what_was_given() -> None:
    x, y = _arrays()
    result = fit("lrw-random", data=from_arrays(x, y, x, y), model="mlp", recipe={"epochs": 1, "batch_size": 8})
    assert len(result.ids) == len(result.weights) < len(x)
    assert np.array_equal(y.numpy()[result.ids], result.samples["label"])


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": _data(), "model": "mlp", "recipe": {"epochs": 1, "batch_size": 8}}
    first = fit("erm", out=tmp_path / "run", **settings)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "LOCK"}
    again = fit("erm", out=tmp_path / "run", **settings)
    assert {p: p.read_bytes() for p in before} == before
    assert again.as_dict() == first.as_dict()


class _Ending(nn.Module):
    """A classifier that fails where it is first asked without training, as on images of a test that cannot be read."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and len(x) == 7:
            raise RuntimeError("the test cannot be read")
        return self.out(x)


def _status(folder: Path) -> tuple[str, int, int]:
    status = json.loads((folder / "status.json").read_text())
    return status["state"], status["updates"], status["of"]


def test_the_status_of_a_failed_run_says_how_many_updates_were_done(tmp_path: Path) -> None:
    x, y = _arrays()
    settings: Any = {"data": from_arrays(x, y, x[:7], y[:7]), "recipe": {"epochs": 3, "batch_size": 10}}
    for resume in ("auto", "auto", "never"):  # failed at the test; again; begun anew
        with pytest.raises(RuntimeError, match="the test cannot be read"):
            fit("erm", model=_Ending, out=tmp_path, resume=resume, **settings)
        assert _status(tmp_path) == ("failed", 15, 15)


def test_the_status_of_a_run_that_fails_before_it_goes_on_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Any = {"data": _data(), "model": "mlp", "recipe": {"epochs": 3, "batch_size": 10}, "out": tmp_path}

    def stop(event: Any) -> None:
        if event["fraction"] > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit("erm", observers=[stop], **settings)
    assert _status(tmp_path) == ("interrupted", 10, 15)
    monkeypatch.setattr("molere.run.Training", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        fit("erm", **settings)
    assert _status(tmp_path) == ("failed", 10, 15)
    with pytest.raises(MemoryError):
        fit("erm", resume="never", **settings)
    assert _status(tmp_path) == ("failed", 0, 0)


def test_a_refused_continuation_leaves_no_trace_in_the_finished_run(tmp_path: Path) -> None:
    fit("erm", data=_data(), model="mlp", recipe={"epochs": 1, "batch_size": 8}, out=tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes(), (tmp_path / "status.json").read_bytes()
    with pytest.raises(Exception, match="holds another run"):
        fit("erm", data=_data(), model="mlp", recipe={"epochs": 2, "batch_size": 8}, out=tmp_path)
    assert ((tmp_path / "log.jsonl").read_bytes(), (tmp_path / "status.json").read_bytes()) == before


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--data", "cifar10", "--root", "nowhere"], 3),
        (["--data", "digits", "--limit", "20", "train.batch_size=99"], 3),
    ],
)
def test_a_run_that_cannot_begin_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], code: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["molere", "train", "--method", "erm", "--out", str(tmp_path / "run"), *more])
    assert main() == code
    assert not (tmp_path / "run").exists()


def test_a_comparison_that_cannot_begin_says_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--methods", "erm", "--data", "cifar10", "--root", "nowhere", "--jobs", "1"]
    monkeypatch.setattr(sys, "argv", ["molere", "compare", *arguments, "--out", str(tmp_path)])
    assert main() == 3
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3)
