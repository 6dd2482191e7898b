"""`molere config` and `molere doctor`: settings files shown, checked and compared; what a machine has and lacks."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from commands import Command
from molere.cli import configure, health
from molere.config import parse_yaml
from molere.experiment import experiment

MISTAKES = """\
train: {lrr: 1, epochs: 0}
methods: [lrwop]
train: {lrr: 1, epochs: 0}
seeds: -1
preset: papr
data: {name: digit, limt: 3}
method: {qq: 1}
model: ressnet20
trian: 1
"""


def test_check_tells_all_mistakes_of_a_file_in_one_message(molere: Command, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(MISTAKES)
    code, out, err = molere("config", "check", "my.yaml")
    assert (code, out) == (2, "")
    said = [line.removeprefix("error: my.yaml: ") for line in err.splitlines()]
    assert [s.split(";")[0].split(",")[0] for s in said] == [
        "line 3: 'train' is given twice",
        "unknown method 'lrwop'",
        "seeds must be a number of seeds or a list of them",
        "data.limt: unknown key",
        "trian: unknown key",
        "unknown preset 'papr'",
        "unknown model 'ressnet20'",
        "train.lrr: unknown key",
        "train.epochs must be an int of at least 1",
        "method.qq: unknown key",
    ]


@pytest.mark.parametrize("at", ["train", "method", ""])
def test_of_very_many_unknown_keys_the_first_are_told_and_the_others_counted(tmp_path: Path, at: str) -> None:
    many = [f"unheard_of_{i}: {i}" for i in range(1500)]
    (tmp_path / "a.yaml").write_text("\n".join([f"{at}:", *(f"  {line}" for line in many)] if at else many))
    began = time.process_time()
    told = configure.mistakes_of(tmp_path / "a.yaml")
    assert len(told) == 21
    assert told[0].startswith(f"{tmp_path / 'a.yaml'}: {at + '.' if at else ''}unheard_of_0: unknown key")
    assert told[-1] == f"{tmp_path / 'a.yaml'}: {at or 'settings'}: and 1480 more unknown keys"
    (tmp_path / "b.yaml").write_text("\n".join(f"unheard_of_{i}: {i}" for i in range(20_000)))
    told = configure.mistakes_of(tmp_path / "b.yaml")
    assert told == [f"{tmp_path / 'b.yaml'}: line 2001: more than 2000 keys; that is no settings file"]
    assert time.process_time() - began < 3


def test_training_tells_the_same_mistakes_at_once(molere: Command, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("train: {lrr: 1}\nseeds: x\nseeds: x\n")
    code, _, err = molere("compare", "-c", "my.yaml", "--epochs", "0")
    assert (code, len(err.splitlines())) == (2, 4), err


def test_check_answers_in_a_line_a_file_or_in_json(molere: Command, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("methods: [erm, lrwopt]\nseeds: 3\n")
    (tmp_path / "bad.yaml").write_text("seeds: x\n")
    assert molere("config", "check", "good.yaml")[:2] == (
        0,
        "good.yaml: no mistakes; 2 methods x 3 seeds on digits (hidden-group)\n",
    )
    code, out, err = molere("config", "check", "good.yaml", "bad.yaml", "nowhere.yaml", "--json")
    found = json.loads(out)
    assert (code, err, found["mistakes"]) == (2, "", 2)
    assert {name: len(said) for name, said in found["files"].items()} == {
        "good.yaml": 0,
        "bad.yaml": 1,
        "nowhere.yaml": 1,
    }


def test_what_show_prints_is_a_settings_file_that_says_the_same(molere: Command, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("train: {lr: 0.3}\nmethods: [erm]\n")
    code, out, err = molere("config", "show", "-c", "my.yaml", "--seed", "4", "train.epochs=7")
    assert (code, err) == (0, "")
    assert "  # momentum: 0.9  #" in out
    (tmp_path / "shown.yaml").write_text(out)
    assert experiment(parse_yaml(out)).train == {"lr": 0.3, "epochs": 7}
    assert molere("config", "show", "-c", "shown.yaml")[1] == out
    assert json.loads(molere("config", "show", "-c", "my.yaml", "--for", "train", "--json")[1])["seeds"] == [0]
    assert molere("config", "show", "--for", "sweep")[0] == 2


def test_diff_names_the_settings_that_differ_between_files_and_folders_of_runs(molere: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("train: {lr: 0.3}\nout: run\njobs: 2\n")
    (tmp_path / "b.yaml").write_text("seeds: 2\ndata: {scenario: hidden-group}\n")
    code, out, _ = molere("config", "diff", "run", "b.yaml")
    assert (code, [line.split(maxsplit=1) for line in out.splitlines()]) == (
        0,
        [["seeds", "[0] -> [0, 1]"], ["train.lr", "0.3 -> default"]],
    )
    assert json.loads(molere("config", "diff", "b.yaml", "run", "--json")[1])["train.lr"] == ["default", 0.3]
    assert molere("config", "diff", "run", "run")[1] == "the same settings\n"
    (tmp_path / "empty").mkdir()
    code, _, err = molere("config", "diff", "run", "empty")
    assert (code, err.count("\n")) == (2, 1)


def test_settings_files_need_no_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(MISTAKES)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert len(configure.mistakes_of(tmp_path / "my.yaml")) == 10
    assert configure.show("demo", {}, as_json=True)


# ---- doctor


def test_the_doctor_says_what_is_here(molere: Command, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_text("")
    code, out, err = molere("doctor", "--root", ".", "--json")
    found = json.loads(out)
    assert (code, err, found["problems"]) == (0, "", [])
    assert list(found) == ["environment", "devices", "disk", "data", "back-ends", "problems", "exit_code"]
    assert found["data"]["digits"] == "embedded"
    assert found["data"]["cifar10"].startswith("incomplete: cifar-10-batches-py lacks data_batch_1, ")
    assert found["data"]["cifar100"].startswith("not found: ")
    assert found["back-ends"]["exact"] == "works"
    code, out, _ = molere("doctor")
    assert (code, out.splitlines()[-1]) == (0, "nothing needed is missing")
    assert not list(tmp_path.glob("molere-runs"))


def test_without_torch_the_doctor_says_so_instead_of_failing(molere: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "molere.data.files", raising=False)
    code, out, err = molere("doctor", "--root", ".")
    assert (code, err) == (6, "")
    assert "problem: torch cannot be imported (" in out
    assert "needs torch" in out


def test_what_stands_in_the_way_of_work_is_a_problem_with_exit_code_6(
    molere: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert molere("doctor", "--out", "file")[0] == 6
    code, out, _ = molere("doctor", "--device", "cuda:77")
    assert (code, "problem: device 'cuda:77' is not here; use --device cpu" in out) == (6, True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "problem: molere-runs has 0.0 GiB free" in molere("doctor")[1]
    monkeypatch.setattr(health, "_version", lambda name: None if name == "pyarrow" else "1")
    assert "problem: pyarrow is not installed; type: pip install pyarrow" in molere("doctor")[1]
