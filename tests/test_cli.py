"""The command line: plans, listings, errors in one line with an exit code, and short real runs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import Command
from molere import __version__, cli, registry
from molere.cli.console import EVERY, Meter, finite, summary
from molere.cli.plan import check_folder
from molere.config import parse_yaml
from molere.errors import StorageError
from molere.experiment import experiment


def test_molere_alone_prints_eight_lines(molere: Command) -> None:
    said = molere()
    assert (said.code, len(said.out.splitlines())) == (0, 8)
    assert "molere demo" in said.out


# ---- listings


def test_methods_are_listed_with_a_line_each(molere: Command) -> None:
    said = molere("methods")
    assert all(re.search(rf"^{name} +\S", said.out, re.MULTILINE) for name in registry.METHODS)


def test_a_method_is_listed_with_type_default_and_help_of_its_settings(molere: Command) -> None:
    out = molere("methods", "lrw-hard").out
    assert "delta=0.1\n    a float in (0, 0.5]. Its share of the pool." in out
    assert "holdout=hardest" in out
    assert "Preset paper: " in out


def test_models_and_data_are_listed(molere: Command, tmp_path: Path) -> None:
    assert all(name in molere("models").out for name in registry.MODELS)
    assert all(name in molere("data", "list").out for name in registry.DATASETS)
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / "cifar-10-batches-py" / name).touch()
    found = json.loads(molere("data", "list", "--root", str(tmp_path), "--json").out)["data"]
    assert found["cifar10"]["found"] == f"found: {tmp_path}/cifar-10-batches-py"
    assert found["cifar100"]["found"] == f"not found: {tmp_path}/cifar-100-python"


@pytest.mark.parametrize("arguments", ["methods", "methods lrwopt", "models", "data list", "demo --dry-run"])
def test_json_is_one_object_and_nothing_else(molere: Command, arguments: str) -> None:
    said = molere(*arguments.split(), "--json")
    assert isinstance(json.loads(said.out), dict)
    assert said.err == ""


# ---- plans


def test_the_demonstration_is_nine_methods_on_five_seeds(molere: Command) -> None:
    plan = json.loads(molere("demo", "--dry-run", "--json").out)
    assert (len(plan["methods"]), plan["seeds"], plan["runs"]) == (9, [0, 1, 2, 3, 4], 45)
    assert plan["data"]["scenario"] == "hidden-group"
    assert plan["folder"] == "molere-runs/demo-hidden-group"


def test_more_seeds_and_another_scenario_keep_the_plain_folder_name(molere: Command) -> None:
    plan = json.loads(molere("demo", "--seeds", "20", "--scenario", "noise", "--dry-run", "--json").out)
    assert (plan["folder"], len(plan["seeds"])) == ("molere-runs/demo-noise", 20)


def test_other_settings_go_to_another_folder(molere: Command) -> None:
    folders = {
        json.loads(molere("demo", "--dry-run", "--json", *more).out)["folder"]
        for more in ([], ["--epochs", "3"], ["train.lr=1"], ["--model", "cnn"], ["--data", "cifar10"])
    }
    assert len(folders) == 5


def test_arguments_may_come_in_any_order(molere: Command) -> None:
    one = molere("compare", "train.lr=0.05", "--methods", "erm,lrwopt", "method.delta=0.2", "--dry-run")
    other = molere("compare", "--dry-run", "method.delta=0.2", "--methods", "erm,lrwopt", "train.lr=0.05")
    assert one == other
    assert '[erm, "lrwopt[delta=0.2]"]' in one.out


def test_a_split_replaces_the_holdout_of_the_methods_that_have_one(molere: Command) -> None:
    plan = "compare --methods erm,lrw-hard,lrw-random@paper --split learned method.holdout.rounds=7 --dry-run --json"
    learned = "holdout.kind=learned,holdout.rounds=7"
    labels = ["erm", f"lrw-hard[{learned}]", f"lrw-random@paper[{learned}]"]
    assert json.loads(molere(*plan.split()).out)["methods"] == labels


def test_a_dry_run_writes_nothing(molere: Command, tmp_path: Path) -> None:
    assert molere("demo", "--dry-run").code == 0
    assert list(tmp_path.iterdir()) == []


def test_flags_win_over_a_file_and_a_file_over_defaults(molere: Command, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("seeds: 3\ntrain: {lr: 0.2, epochs: 7}\nmethods: [erm, lrwopt]\n")
    said = molere("compare", "-c", "my.yaml", "--epochs", "2", "--dry-run", "--json")
    plan = json.loads(said.out)
    assert (plan["seeds"], plan["train"], plan["methods"]) == ([0, 1, 2], {"epochs": 2, "lr": 0.2}, ["erm", "lrwopt"])


def test_the_printed_config_is_a_valid_settings_file(molere: Command, tmp_path: Path) -> None:
    text = molere("compare", "--print-config", "train.lr=0.2", "--preset", "paper").out
    (tmp_path / "again.yaml").write_text(text)
    assert molere("compare", "-c", "again.yaml", "--print-config").out == text
    assert experiment(parse_yaml(text)).train == {"lr": 0.2}


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train --method lrw-opt", "unknown method 'lrw-opt'; did you mean 'lrwopt'? Known: "),
        ("train --data digit", "unknown data set 'digit'; did you mean 'digits'? Known: "),
        ("train --model ressnet20", "unknown model 'ressnet20'; did you mean 'resnet20'? Known: "),
        ("train --preset papr", "unknown preset 'papr'; did you mean 'paper'? Known: "),
        ("train --scenario nois", "unknown scenario of digits 'nois'; did you mean 'noise'? Known: "),
        ("train train.lrr=1", "train.lrr: unknown key; did you mean train.lr?"),
        (
            "train method.delta=10",
            "molere.delta must be a float in (0, 0.5]; got 10. It is a fraction",
        ),
        ("train --epochs 0", "train.epochs must be an int of at least 1; got 0."),
        ("train --epochs 3 train.epochs=4", "train.epochs: given twice (4 and 3); keep one"),
        ("train --seed 3 --seeds 4", "--seed and --seeds are given together; keep one"),
        ("train --seeds 4", "train runs one method on one seed"),
        ("train --methods erm,molere", "train runs one method on one seed"),
        ("train --seed -1", "seeds must be a number of seeds or a list of them"),
        ("train bla", "'bla' is not an option nor an override; write key=value"),
        ("train --epoch 3", "No such option: --epoch"),
        ("train --epochs x", "Invalid value for '--epochs'"),
        ("trian", "No such command 'trian'."),
        ("train -c nowhere.yaml", "nowhere.yaml: cannot be read (no such file or directory)"),
        ("train --name a/b", "--name 'a/b': a folder's name has no slash; use --out for a path"),
        ("train --method erm --split learned", "--split learned: no holdout in erm to choose; use a method such as "),
        ("compare --split learned", "--split learned: no holdout in erm, molere to choose; use a method such as "),
        ("train --method lrw-hard --split learnd", "unknown split 'learnd'; did you mean 'learned'? Known: "),
        ("compare --jobs 0", "jobs must be one of auto or an int of at least 1; got 0."),
        ("methods lrw-opt", "unknown method 'lrw-opt'; did you mean 'lrwopt'?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(molere: Command, arguments: str, said: str) -> None:
    found = molere(*arguments.split())
    assert found.err.startswith(f"error: {said}")
    assert len(found.err.splitlines()) == 1
    assert (found.code, found.out) == (2, "")


FILES = {
    "unknown": "trian: {lr: 1}",
    "nested": "train: {lrr: 1}",
    "duplicate": "train: {lr: 1}\ntrain: {lr: 2}",
    "type": "train: {lr: fast}",
    "bool": "train: {lr: true}",
    "tab": "train:\n\tlr: 1",
    "empty": "",
    "list": "- 1",
    "tag": "out: !!python/object/apply:os.system [touch pwned]",
    "anchor": "train: {lr: &a 1, lr_head: *a}",
    "nan": "train: {lr: .nan}",
    "inf": "train: {lr: .inf}",
    "negative": "train: {lr: -1}",
    "zero": "train: {epochs: 0}",
    "binary": "\x00\x01\x02",
    "deep": "a: " + "[" * 9000,
    "huge": "train: {epochs: " + "9" * 9999 + "}",
    "open": "a: [1",
    "two": "a: 1\n---\na: 2",
    "value": "train: 3",
    "method": "methods: [lrwop]",
    "seed": "seeds: [1, 1]",
    "null": "train: {lr: null}",
    "quote": "a: 'x",
    "key": "? {a: 1}\n: 2",
    "directive": "%YAML 1.1\n---\na: 1",
    "method setting": "methods: [lrwopt]\nmethod: {delta: 3}",
}


MISTAKES = {"tag": 2}  # what the tag stands before is no text, either


@pytest.mark.parametrize("name", FILES)
def test_a_malformed_file_is_a_line_for_each_mistake_and_exit_code_2(
    molere: Command, tmp_path: Path, name: str
) -> None:
    (tmp_path / "my.yaml").write_text(FILES[name])
    said = molere("train", "-c", "my.yaml")
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", MISTAKES.get(name, 1)), said
    assert said.err.startswith("error: ")
    assert not (tmp_path / "pwned").exists()


def test_no_mistake_in_a_file_or_a_name_needs_torch(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    code = """
import sys
from molere.cli import main
for arguments in [["-c", f] for f in sys.argv[1:]] + [["--method", "lrw-opt"], ["method.delta=3"], ["--dry-run"]]:
    sys.argv = ["molere", "train", *arguments]
    assert main() == (0 if arguments == ["--dry-run"] else 2)
assert not {"torch", "numpy", "rich"} & set(sys.modules), {"torch", "numpy", "rich"} & set(sys.modules)"""
    files = [str(tmp_path / f"{name}.yaml") for name in FILES]
    done = subprocess.run(
        [sys.executable, "-c", code, *files], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_several_mistakes_are_a_line_each(molere: Command) -> None:
    said = molere("compare", "--methods", "erm,lrwop", "train.lrr=1", "--data", "digit")
    assert said.code == 2
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["error"] * len(said.err.splitlines())
    assert "lrwop" in said.err


def test_a_traceback_is_shown_only_when_asked_for(molere: Command) -> None:
    assert "Traceback" not in molere("train", "train.lrr=1").err
    assert "Traceback" in molere("train", "train.lrr=1", "-v").err


def test_an_unexpected_error_is_one_line_too(molere: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molere.cli.plan.experiment", lambda *_, **__: 1 / 0)
    said = molere("demo")
    assert (said.code, said.err) == (
        1,
        "error: ZeroDivisionError: division by zero (a fault of molere; -v shows where)\n",
    )


# ---- folders


def test_a_folder_that_cannot_be_used_is_found_before_anything_else(molere: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    for folder, said in (
        ("file", "file is a file; choose another folder with --out"),
        ("file/below", "file is a file; choose another with --out"),
        ("full", "full is not empty and no run of molere; choose a new folder with --out"),
    ):
        found = molere("train", "--out", folder)
        assert (found.code, found.out) == (4, "")
        assert found.err.startswith("error: ")
        assert found.err.endswith(f"{said}\n")


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match="cannot be written to"):
        check_folder(tmp_path / "new")


def test_resume_needs_the_folder_of_a_run(molere: Command, tmp_path: Path) -> None:
    for arguments in (("resume", "nowhere"), ("resume", str(tmp_path)), ("train", "--resume", "nowhere")):
        found = molere(*arguments)
        assert found.code == 4
        assert len(found.err.splitlines()) == 1


# ---- short real runs

TRAIN = ("train", "--method", "erm", "--epochs", "1", "--limit", "200", "--out", "run", "train.batch_size=50")


def test_train_writes_a_run_prints_a_summary_and_goes_on_from_its_folder(molere: Command, tmp_path: Path) -> None:
    said = molere(*TRAIN)
    assert said.code == 0, said.err
    assert said.err.splitlines()[0] == "train: erm on digits (hidden-group) -> run"
    assert said.out.splitlines()[0].startswith("erm, seed 0: 4 updates in ")
    assert said.out.splitlines()[-1] == "run"
    stored = experiment(parse_yaml((tmp_path / "run" / "config.yaml").read_text()))
    assert stored.train == {"epochs": 1, "batch_size": 50}
    again = json.loads(molere("resume", "run", "--json").out)
    assert (again["folder"], again["updates"]) == ("run", 4)
    other = molere(*TRAIN, "train.lr=0.05")
    assert other.code == 4
    assert experiment(parse_yaml((tmp_path / "run" / "config.yaml").read_text())) == stored
    assert molere(*TRAIN, "train.lr=0.05", "--resume", "never", "-q").err == ""


def test_compare_prints_the_table_and_the_folder_and_continues(molere: Command, tmp_path: Path) -> None:
    sizes = ("--epochs", "1", "--limit", "200", "--out", "cmp", "train.batch_size=50", "--jobs", "1")
    said = molere("compare", "--methods", "erm,lrw-random", "--seeds", "2", *sizes)
    assert said.code == 0, said.err
    assert "lrw-random" in said.out
    assert "cmp" in said.out.splitlines()[-1]
    more = json.loads(molere("compare", "--methods", "erm,lrw-random", "--seeds", "3", *sizes, "--json").out)
    assert more["folder"] == "cmp"
    resumed = molere("resume", "cmp", "--json")
    assert (resumed.code, resumed.err) == (0, "")
    assert "lrw-random" in (tmp_path / "cmp" / "table.md").read_text()


def environment() -> dict[str, str]:
    source = str(Path(cli.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    call = [sys.executable, "-c", "import sys; from molere.cli import main; sys.exit(main())"]
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143}
    started = {
        number: subprocess.Popen(
            [*call, "train", "--method", "erm", "--epochs", "100000", "--out", number.name],
            cwd=tmp_path,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in expected
    }
    for number, process in started.items():
        deadline = time.monotonic() + 120
        while not (tmp_path / number.name / "checkpoints" / "LATEST").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == expected[number]
        assert err.splitlines()[-1] == f"interrupted; go on with: molere resume {number.name}"


# ---- what is shown on the way


def test_without_a_terminal_progress_is_a_line_in_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Meter(2, shows=True, bars=False) as meter:
        for step in range(100):
            now = step * 0.5
            meter.update("a", "running", step / 100, {"accuracy": 0.5}, "erm seed 0")
        meter.update("a", "done", 1.0, {}, "erm seed 0")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == int(49.5 / EVERY)
    assert lines[0] == " 10% 1:30 left, 0/2 runs, erm seed 0 accuracy 50.0 %"


def test_runs_kept_from_before_do_not_count_for_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = Meter(4, shows=False, bars=False)
    meter.update("a", "kept", 1.0, {}, "")
    meter.update("b", "kept", 1.0, {}, "")
    now = 10.0
    meter.update("c", "done", 1.0, {}, "")
    assert (meter.fraction, meter.left, meter.ended) == (0.75, 10.0, 3)


def test_bars_are_drawn_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter(1, shows=True, bars=True) as meter:
        meter.update("a", "running", 0.5, {}, "erm seed 0")
    assert meter.fraction == 0.5


def test_a_summary_shows_last_and_best_side_by_side() -> None:
    result: dict[str, object] = {
        **{"label": "erm", "seed": 0, "updates": 1200, "stopped": "budget spent", "best_epoch": 3},
        "cost": {"seconds": 1.25},
        "last": {"accuracy": 0.5, "nll": float("nan")},
        "best": {"accuracy": 0.75, "nll": 1.0},
    }
    assert summary(result).splitlines() == [
        "erm, seed 0: 1,200 updates in 1.2 s (budget spent)",
        "              last      best  (best: epoch 3 by validation)",
        "accuracy   50.00 %   75.00 %",
        "nll              -    1.0000",
    ]


def test_json_holds_null_where_a_number_is_not_finite() -> None:
    assert finite({"a": [1.0, float("nan")], "b": float("inf"), "c": (1,)}) == {"a": [1.0, None], "b": None, "c": [1]}


# ---- doctor


OWN = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
"""


def test_the_doctor_examines_a_class_of_the_working_folder(molere: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    said = molere("doctor", "--model", "mine:net", "--shape", "6", "--classes", "3", "--batch-size", "8", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["parameters"] == 6 * 5 + 5 + 5 * 3 + 3
    assert found["chosen"] == "one-sided"
    assert all(f["refused"] or f["times"] > 0 for f in found["findings"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "resne20"], "unknown model 'resne20'; did you mean 'resnet20'?"),
        (["--model", "nowhere:Net"], "--model nowhere:Net: No module named 'nowhere'; write FILE:CLASS"),
        (["--shape", "3xx"], "--shape 3xx: give the size of one example, as in 3x32x32"),
        (["data.name=digits"], "data: a doctor knows settings of training only"),
        (["train.lrr=1"], "train.lrr: unknown key; did you mean train.lr?"),
    ],
)
def test_the_doctor_refuses_what_it_cannot_examine_in_one_line(
    arguments: list[str], sentence: str, molere: Command
) -> None:
    said = molere("doctor", *arguments)
    assert said.code == 2
    assert said.err.startswith(f"error: {sentence}")
    assert len(said.err.splitlines()) == 1


def test_the_package_runs_as_a_module() -> None:
    call = [sys.executable, "-m", "molere", "--version"]
    ran = subprocess.run(call, capture_output=True, text=True, check=True, env=environment())
    assert ran.stdout.strip() == __version__
