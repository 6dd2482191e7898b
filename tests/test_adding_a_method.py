"""A stranger adds a method with one file and one line, as docs/adding-a-method.md says."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from molere import cli, registry
from molere.errors import ConfigError
from molere.recipe import Recipe
from molere.run import fit
from molere.testing import check_method, rare_region

PAGE = (Path(__file__).parents[1] / "docs" / "adding-a-method.md").read_text("utf-8")
FILE, *_ = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
(LINE,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
NAME = re.findall(r"as\n?\s?`(\w+)\.py`", PAGE)[0]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The page's file, where Python finds it."""
    (tmp_path / f"{NAME}.py").write_text(FILE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(NAME)
    del sys.modules[NAME]


@pytest.fixture
def named(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's line, in the table."""
    ((name, entry),) = eval(f"{{{LINE.strip()}}}", {"Entry": registry.Entry}).items()
    monkeypatch.setitem(registry.METHODS, name, entry)
    assert getattr(module, entry.attribute)
    return name


def test_the_file_alone_passes_the_contract(module: ModuleType) -> None:
    check_method(module.SlowLoss())


def test_one_line_gives_it_a_name_with_settings(named: str, module: ModuleType) -> None:
    recipe = Recipe(epochs=2, batch_size=16, device="cpu")
    by_name = fit(f"{named}[c=1.0,k=0.2]", data=rare_region(), recipe=recipe)
    by_hand = fit(module.SlowLoss(c=1.0, k=0.2), data=rare_region(), recipe=recipe)
    assert torch.equal(by_name.weights, by_hand.weights)
    assert by_name.label == f"{named}[c=1.0,k=0.2]"


def test_the_contract_is_checked_by_name(named: str) -> None:
    check_method(named, model="linear")


def test_its_settings_are_checked_like_ours(named: str) -> None:
    with pytest.raises(ConfigError, match=r"slow-loss.c must be a float of at least 0; got -1.0"):
        fit(f"{named}[c=-1.0]", data=rare_region())


def test_the_command_line_lists_and_understands_it(
    named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["molere", "methods"])
    assert cli.main() == 0
    assert named in capsys.readouterr().out
    monkeypatch.setattr(
        sys, "argv", ["molere", "train", "--method", f"{named}[c=1.0]", "--data", "digits", "--dry-run"]
    )
    assert cli.main() == 0
