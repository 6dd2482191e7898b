"""The benchmark of meta-gradients: it ends, goes on where it was, and its oracle is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "benchmarks"
SETTINGS = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent / "src")}


def benchmark(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, FOLDER / "engine.py", "--quick", "--models", "mlp", *arguments]
    return subprocess.run(command, env=os.environ | SETTINGS, check=True, capture_output=True, text=True)


def test_it_ends_writes_table_and_chart_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out, state = tmp_path / "results" / "engine.md", tmp_path / "state.json"
    benchmark("--part", "steps", "--engines", "one-sided,functional", "--state", state)
    first = json.loads(state.read_text())["cells"]
    assert set(first["time/mlp/0"]) == {"one-sided", "functional"}

    again = benchmark("--engines", "one-sided,functional,higher", "--state", state, "--out", out)
    then = json.loads(state.read_text())["cells"]
    measured = [line for line in again.stderr.splitlines() if line in then]
    assert not {"accuracy/mlp/one-sided", "memory/mlp/functional"} & set(measured)
    assert {k: v for k, v in first.items() if k in then and "time" not in k}.items() <= then.items()
    assert {"accuracy/mlp/higher", "runs/mlp/0", "growth"} <= set(measured)

    text = out.read_text()
    assert text == again.stdout.rstrip("\n") or text in again.stdout
    for heading in ("## Targets", "## MLP", "## Whole runs", "## Growth", "## What the passes cost"):
        assert heading in text
    assert "| one-sided difference, fused |" in text
    assert "| higher, fused * |" in text  # measured, or with the reason why not
    assert str(tmp_path) not in text
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_state_of_other_sizes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from engine import State  # pyright: ignore[reportMissingImports]

    state = tmp_path / "state.json"
    State(state, {"batch": 3}).cell("a", lambda: 1)
    assert State(state, {"batch": 3}).cell("a", lambda: 2) == 1
    with pytest.raises(SystemExit, match="another --state"):
        State(state, {"batch": 4})


def test_oracle_is_the_closed_form_of_softmax_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from engine_models import LR, Problem  # pyright: ignore[reportMissingImports]
    from engine_ways import WAYS, oracle, products, some_weights  # pyright: ignore[reportMissingImports]

    generator = torch.Generator().manual_seed(5)
    x, val_x = (torch.randn(7, 4, generator=generator) for _ in range(2))
    y, val_y = torch.arange(7) % 3, (torch.arange(7) + 1) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    problem = Problem(model, x, y, val_x, val_y)

    theta = torch.cat([model[1].weight, model[1].bias[:, None]], dim=1).detach().double().numpy()
    seen, val = (np.hstack([part.double().numpy(), np.ones((7, 1))]) for part in (x, val_x))

    def residuals(at: np.ndarray, inputs: np.ndarray, labels: torch.Tensor) -> np.ndarray:
        e = np.exp(inputs @ at.T)
        return e / e.sum(1, keepdims=True) - np.eye(3)[labels.numpy()]

    w = some_weights(problem).double().numpy()
    r = residuals(theta, seen, y)
    ahead = theta - LR * (w[:, None] * r).T @ seen / 7
    v = residuals(ahead, val, val_y).T @ val / 7
    closed = -LR * np.einsum("nc,cd,nd->n", r, v, seen)  # < grad l_i, v >, grad l_i = r_i x_i^T

    np.testing.assert_allclose(oracle(problem).numpy(), closed, rtol=1e-12)
    for way in ("exact", "exact-strict", "ghost", "functional", "functional-strict", "original"):
        np.testing.assert_allclose(products(problem, WAYS[way].make).numpy(), closed, rtol=1e-4, atol=1e-7)


def test_the_table_of_speed_in_the_readme_is_what_the_script_wrote() -> None:
    written = (FOLDER.parent / "docs" / "results" / "engine.md").read_text()
    table = written.partition("## In short\n\n")[2].partition("\n\n")[0]
    assert table.count("\n") >= 2
    assert table in (FOLDER.parent / "README.md").read_text()
