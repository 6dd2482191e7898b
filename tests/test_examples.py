"""Every example runs, learns, and shows molere's lines; those whose library is not installed are left out."""

import ast
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
NEEDS = {
    "plain_pytorch": (),
    "lightning_manual": ("lightning",),
    "lightning_automatic": ("lightning",),
    "huggingface_trainer": ("transformers", "accelerate"),
    "skorch_net": ("skorch",),
    "timm_train": ("timm",),
}
LEAST = {"timm_train": 0.15, "huggingface_trainer": 0.25}
"""Accuracy that each reaches in the test; a tenth is chance."""


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs_and_learns(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for library in NEEDS[name]:
        pytest.importorskip(library, exc_type=ImportError)
    monkeypatch.syspath_prepend(FOLDER)
    assert importlib.import_module(name).main() > LEAST.get(name, 0.5)


def test_every_example_is_run_and_listed() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*NEEDS, "digits"}
    text = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"({name}.py)" in text for name in NEEDS)


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_marks_its_three_lines_and_explains_itself(name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text("utf-8")
    assert 2 <= source.count("# <-") <= 4
    assert ast.get_docstring(ast.parse(source))
