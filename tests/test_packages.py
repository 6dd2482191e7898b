"""The wheel holds what it must, and a method of another package is found by its entry point."""

import importlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from molere import check_method, cli, fit, registry, settings
from molere.errors import ConfigError
from molere.recipe import Recipe
from molere.testing import rare_region

pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[1]
PLUGIN = Path(__file__).parent / "plugin"
BUILD = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"


def wheel(project: Path, folder: Path) -> Path:
    """The wheel of a project, built offline in a process of its own, as it must run in the project's folder."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


# ---- ours


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(ours: Path) -> None:
    with zipfile.ZipFile(ours) as file:
        names = {n for n in file.namelist() if ".dist-info/" not in n}
        meta = {
            Path(n).name: file.read(n).decode() for n in file.namelist() if n.endswith(("METADATA", "entry_points.txt"))
        }
    source = ROOT / "src"
    files = {p.relative_to(source).as_posix() for p in (source / "molere").rglob("*") if p.is_file()}
    assert names == {n for n in files if "__pycache__" not in n}
    assert {"molere/schema.json", "molere/estimator.py", "molere/py.typed"} <= names
    assert "molere = molere.cli:main" in meta["entry_points.txt"]
    assert "Requires-Dist: lightning" not in meta["METADATA"].replace("; extra", " extra").split("Provides-Extra")[0]


THREE_LINES = """
from sklearn.datasets import load_digits
from molere import MolereClassifier
x, y = load_digits(return_X_y=True)
clf = MolereClassifier(random_state=0, epochs=2).fit(x[:1200], y[:1200])
import molere; print(molere.__file__); print(clf.score(x[1200:], y[1200:]))
"""


def test_the_wheel_installs_offline_and_three_lines_train_on_digits(ours: Path, tmp_path: Path) -> None:
    """Away from the sources, with nothing but the wheel and the packages that it depends on."""
    site, away = tmp_path / "site", tmp_path / "away"
    away.mkdir()
    quiet = ["--quiet", "--no-compile", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", *quiet, "--target", str(site), str(ours)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MOLERE"))}
    environment |= {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "cwd": away}
    installed = subprocess.run(pip, env=environment, **options)
    assert installed.returncode == 0, installed.stderr
    done = subprocess.run([sys.executable, "-P", "-c", THREE_LINES], env=environment, **options)
    assert done.returncode == 0, done.stderr
    where, accuracy = done.stdout.split()
    assert Path(where).is_relative_to(site)
    assert float(accuracy) > 0.7


# ---- a stranger's


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tiny package, unpacked where Python looks, and the table of names as a new process would read it."""
    with zipfile.ZipFile(wheel(PLUGIN, tmp_path)) as file:
        file.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    found = registry.discovered()
    monkeypatch.setattr(registry, "METHODS", {**registry.METHODS, **found})
    yield
    sys.modules.pop("tiny_weights", None)


def test_a_method_of_another_package_is_a_name_like_ours(
    installed: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = registry.METHODS["by-class"]
    assert "tiny_weights" not in sys.modules  # found, not imported
    assert entry.summary == "weights by how seldom a label is (package tiny-weights)"
    recipe = Recipe(epochs=1, batch_size=16, device="cpu")
    by_name = fit("by-class[power=0]", data=rare_region(), recipe=recipe)
    assert torch.equal(by_name.weights, fit("erm", data=rare_region(), recipe=recipe).weights)
    with pytest.raises(ConfigError, match=r"by-class.power must be a float of at least 0; got -1.0"):
        settings.make_method("by-class[power=-1.0]")
    monkeypatch.setattr(sys, "argv", ["molere", "methods"])
    assert cli.main() == 0
    assert "by-class" in capsys.readouterr().out


def test_it_keeps_the_contract(installed: None) -> None:
    check_method("by-class", model="linear")


def test_a_name_of_ours_stays_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "greedy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[molere.methods]\nerm = greedy:ERM\nmine = greedy:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = registry.discovered()
    assert "erm" not in found
    assert found["mine"].module == "greedy"
