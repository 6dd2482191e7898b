"""Comparisons: which runs are made, in which order, what survives failures and interruptions."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stub_training
from molere.compare import compare
from molere.errors import ConfigError, DataError, NumericsError, ResourceError, StorageError
from molere.jobs import Progress
from molere.ledger import LONGEST, Ledger, differences, folder_name
from molere.request import call, label_of, request, side_by_side
from stub_training import noted

HERE = Path(__file__).parent
STUB = {"fit": "stub_training:fit", "load": "stub_training:load", "store": "stub_training:store"}
STUB |= {"report": "stub_training:store"}  # which does nothing


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Training is a stand-in that notes its runs, unless a test says otherwise."""
    monkeypatch.setattr(sys.modules["molere.compare"], "PARTS", STUB)
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "stub.log"))


def runs() -> list[tuple[str, int]]:
    return [(line[0], int(line[1])) for line in noted()]


# ---- what is run


def test_jobs_go_seed_by_seed_so_that_methods_share_what_a_seed_needs() -> None:
    compare(["erm", "molere"], seeds=2)
    assert runs() == [("erm", 0), ("molere", 0), ("erm", 1), ("molere", 1)]


def test_named_data_are_split_anew_for_each_seed() -> None:
    compare(["erm", "molere"], data={"name": "digits", "scenario": "noise"}, seeds=[3, 8])
    assert [int(line[2]) for line in noted()] == [3, 3, 8, 8]


def test_results_become_a_table_against_erm() -> None:
    found = compare(["erm", "molere", "lrw-hard"], seeds=5)
    assert len(found.results) == 15
    assert found.table.headline == ("accuracy[rotated]",)
    assert [c.verdict for c in found.table.column("accuracy[rotated]", "last")] == ["untested", "better", "worse"]
    assert found.about.title == "digits (hidden-group), mlp, 10 updates, 5 seeds"
    assert (found.exit_code, found.folder) == (0, None)


def test_a_comparison_prints_itself_everywhere() -> None:
    found = compare(["erm", "molere"], seeds=2)
    assert "molere" in str(found)
    assert "<table>" in found._repr_html_()
    assert found.to_markdown().startswith("# digits (hidden-group)")
    assert json.loads(found.to_json())["results"] == found.results
    assert next(csv.DictReader(found.to_csv().splitlines()))["method"] == "erm"
    assert found.__rich__() is not None


def test_progress_tells_of_each_run_from_start_to_end() -> None:
    seen: list[Progress] = []
    compare(["erm", "molere"], seeds=1, progress=seen.append)
    assert [(p.job.label, p.state, p.fraction) for p in seen if p.state != "running"] == [
        ("erm", "done", 1.0),
        ("molere", "done", 1.0),
    ]
    during = [p for p in seen if p.state == "running" and p.metrics]
    assert during[0].metrics == {"train_loss": 1.0}
    assert all(0 <= p.fraction <= 1 for p in seen)


# ---- what is refused


def test_all_mistakes_of_a_request_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as told:
        compare(["erm", "lrw-hrd"], data={"name": "digitz"}, model="mpl", recipe={"epochz": 3}, seeds=[1, 1])
    lines = str(told.value).splitlines()
    assert len(lines) == 5
    assert any("did you mean 'lrw-hard'?" in line for line in lines)
    assert any("unknown data set 'digitz'; did you mean 'digits'?" in line for line in lines)
    assert any("did you mean 'mlp'?" in line for line in lines)
    assert any("epochz" in line for line in lines)
    assert any(line.startswith("seeds must be") for line in lines)
    assert noted() == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"methods": "erm"}, r"methods must be a list such as \['erm', 'molere'\]; got 'erm'"),
        ({"methods": []}, "methods must be a list"),
        ({"methods": ["erm", "erm "]}, "method erm is given twice; keep one"),
        ({"data": {"scenario": "noise"}}, "the data have no name"),
        ({"data": {"name": "digits", "scenario": "nois"}}, "unknown scenario of digits 'nois'; did you mean 'noise'"),
        ({"seeds": 0}, "seeds must be a number of seeds"),
        ({"jobs": 0}, "jobs must be auto or at least 1; got 0"),
        ({"data": object(), "jobs": 2}, "jobs=2 needs methods, data and model by name"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_run(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ConfigError, DataError), match=sentence):
        compare(**{"methods": ["erm"], "seeds": 1, **arguments})
    assert noted() == []


def test_data_that_cannot_be_loaded_end_the_comparison_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STUB", "data")
    with pytest.raises(DataError, match="digits is not there; give --root"):
        compare(["erm", "molere"], seeds=5, out=tmp_path / "out")
    assert noted() == []
    assert json.loads((tmp_path / "out/status.json").read_text())["state"] == "failed"


# ---- failures


def test_a_run_that_fails_is_listed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STUB", "fail:molere:1")
    found = compare(["erm", "molere"], seeds=3, out=tmp_path)
    assert len(runs()) == 6
    assert found.exit_code == NumericsError.exit_code
    assert [(m.label, m.seed, m.reason) for m in found.table.missing] == [
        ("molere", 1, "the loss of molere is no longer finite")
    ]
    assert "the loss of molere is no longer finite" in (tmp_path / "table.md").read_text()
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["runs"], status["of"], status["exit_code"]) == ("failed", 5, 6, 5)


def test_if_every_run_fails_the_first_failure_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB", "fail:erm:0 fail:molere:0")
    with pytest.raises(NumericsError, match="the loss of erm is no longer finite"):
        compare(["erm", "molere"], seeds=1)


def test_a_failed_run_is_tried_again_when_the_comparison_continues(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STUB", "fail:molere:1")
    compare(["erm", "molere"], seeds=2, out=tmp_path)
    monkeypatch.setenv("STUB", "")
    found = compare(["erm", "molere"], seeds=2, out=tmp_path)
    assert runs()[4:] == [("molere", 1)]
    assert (found.exit_code, found.table.missing) == (0, ())


# ---- the folder


def test_the_folder_holds_settings_status_and_tables(tmp_path: Path) -> None:
    compare(["erm", "lrw-hard@paper[keep=true]"], recipe={"epochs": 3}, seeds=2, out=tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    names = {p.name for p in out.iterdir()}
    assert {"config.yaml", "status.json", "table.md", "table.csv", "table.json", "runs"} <= names
    assert "LOCK" not in names
    assert (out / "runs/lrw-hard@paper[keep=true]/seed-1/DONE").exists()
    assert json.loads((out / "status.json").read_text())["state"] == "done"


def test_finished_runs_are_not_made_again(tmp_path: Path) -> None:
    first = compare(["erm", "molere"], seeds=2, out=tmp_path)
    seen: list[Progress] = []
    again = compare(["erm", "molere"], seeds=2, out=tmp_path, progress=seen.append)
    assert len(runs()) == 4
    assert {p.state for p in seen} == {"kept"}
    assert again.table == first.table


def test_methods_and_seeds_may_be_added(tmp_path: Path) -> None:
    compare(["erm"], seeds=2, out=tmp_path)
    compare(["erm", "molere"], seeds=3, out=tmp_path)
    assert runs()[2:] == [("molere", 0), ("molere", 1), ("erm", 2), ("molere", 2)]


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path: Path) -> None:
    compare(["erm", "molere"], recipe={"lr": 0.1}, seeds=2, out=tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(StorageError) as told:
        compare(["erm"], data={"name": "digits", "limit": 50}, recipe={"lr": 0.05}, seeds=1, out=tmp_path)
    assert str(told.value) == (
        f"{tmp_path} holds a comparison with other settings: methods (without molere); seeds (without 1); "
        "train.lr (0.1 there, 0.05 here); data.limit (default there, 50 here). "
        "Give the same ones to continue it, choose another folder with --out, or mix both with --force "
        "(runs that have ended keep theirs)"
    )
    assert (tmp_path / "config.yaml").read_text() == before
    assert len(runs()) == 4


def test_data_that_have_moved_are_the_same_data() -> None:
    one = request(["erm"], {"name": "cifar10", "root": "/a"}, None, None, 1).config()
    other = request(["erm"], {"name": "cifar10", "root": "/b"}, None, None, 1).config()
    assert differences(one, other) == []


def test_without_resume_every_run_is_made_anew(tmp_path: Path) -> None:
    compare(["erm"], recipe={"lr": 0.1}, seeds=2, out=tmp_path)
    compare(["erm"], recipe={"lr": 0.05}, seeds=2, out=tmp_path, resume=False)
    assert [line[3] for line in noted()] == ["auto", "auto", "never", "never"]


def test_a_result_that_does_not_belong_to_the_job_is_not_used(tmp_path: Path) -> None:
    compare(["erm"], seeds=1, out=tmp_path)
    path = tmp_path / "runs/erm/seed-0/result.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    compare(["erm"], seeds=1, out=tmp_path)
    path.write_text('{"label": "er')
    compare(["erm"], seeds=1, out=tmp_path)
    assert runs() == [("erm", 0)] * 3


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StorageError, match="is not empty and no comparison; choose a new folder with --out"):
        compare(["erm"], seeds=1, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_folder_of_a_single_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: erm\n")
    with pytest.raises(StorageError, match="is not empty and no comparison"):
        compare(["erm"], seeds=1, out=tmp_path)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(StorageError, match="out is a file; choose another folder with --out"):
        compare(["erm"], seeds=1, out=tmp_path / "out")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(StorageError, match=f"is in use by process {os.getpid()}"):
        compare(["erm"], seeds=1, out=tmp_path)
    compare(["erm"], seeds=1, out=tmp_path)


def test_ctrl_c_leaves_an_interrupted_comparison_that_continues(tmp_path: Path) -> None:
    def interrupt(news: Progress) -> None:
        if (news.job.label, news.state) == ("molere", "running"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(["erm", "molere"], seeds=1, out=tmp_path, progress=interrupt)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"
    assert len(compare(["erm", "molere"], seeds=1, out=tmp_path).results) == 2
    assert runs() == [("erm", 0), ("molere", 0)]


@pytest.mark.parametrize("label", ["erm", "lrw-hard@paper[keep=true,q=2]"])
def test_plain_labels_are_folder_names(label: str) -> None:
    assert folder_name(label) == label


@pytest.mark.parametrize("label", ["a/b", "../up", "a b", "x" * 300, ".hidden", "a\nb"])
def test_other_labels_become_safe_and_stay_apart(label: str) -> None:
    name = folder_name(label)
    assert len(name) <= LONGEST + 9
    assert not set(name) & set("/ \n")
    assert not name.startswith(".")
    assert name != folder_name(label + "x")


# ---- objects instead of names


@dataclasses.dataclass(frozen=True)
class Hardest:
    share: float = 0.1


@dataclasses.dataclass(frozen=True)
class Mine:
    q: int = 5
    holdout: Hardest = dataclasses.field(default_factory=Hardest)


def test_a_method_object_is_labelled_by_its_class_and_what_it_changes() -> None:
    assert label_of(Mine()) == "mine"
    assert label_of(Mine(q=2, holdout=Hardest(share=0.2))) == "mine[q=2,holdout=hardest[share=0.2]]"
    assert list(request([Mine(), Mine(q=1)], "digits", None, None, 1).methods) == ["mine", "mine[q=1]"]


def test_two_methods_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match="method mine is given twice; keep one"):
        compare([Mine(), Mine()], seeds=1)


def test_a_method_may_be_given_as_a_mapping() -> None:
    asked = request([{"name": "lrw-hard", "preset": "paper", "settings": {"keep": True}}], "digits", None, None, 1)
    assert list(asked.methods.values()) == ["lrw-hard@paper[keep=true]"]
    with pytest.raises(ConfigError, match="unknown key of a method 'nam'; did you mean 'name'?"):
        request([{"nam": "erm"}], "digits", None, None, 1)


def test_given_data_are_the_same_for_every_seed() -> None:
    compare(["erm"], data=stub_training.load("digits", seed=77), seeds=3)
    assert [int(line[2]) for line in noted()] == [77, 77, 77]


def test_the_call_makes_the_same_comparison_again() -> None:
    asked = request(["erm", "molere"], {"name": "digits", "limit": 50}, "mlp", {"lr": 0.1}, 2)
    text = call(asked, 2)
    assert text == (
        "molere.compare(['erm', 'molere'], data={'name': 'digits', 'limit': 50}, model='mlp', "
        "recipe={'lr': 0.1}, seeds=[0, 1], jobs=2)"
    )
    found: list[dict[str, Any]] = []
    eval(text.removeprefix("molere."), {"compare": lambda m, jobs, **rest: found.append(request(m, **rest).config())})
    assert found == [asked.config()]


def test_auto_runs_one_at_a_time_on_a_gpu_and_never_more_than_there_are_runs() -> None:
    def auto(device: str, seeds: int, data: Any = "digits") -> int:
        return side_by_side("auto", request(["erm"], data, None, {"device": device}, seeds))

    assert auto("cuda", 50) == auto("cuda:1", 50) == 1
    assert auto("cpu", 1) == 1
    assert auto("cpu", 5000) == len(os.sched_getaffinity(0))
    assert auto("cpu", 50, data=object()) == 1


# ---- side by side


def test_worker_processes_give_the_same_table_and_share_the_jobs(tmp_path: Path) -> None:
    seen: list[Progress] = []
    alone = compare(["erm", "molere"], seeds=3, out=tmp_path / "alone")
    beside = compare(["erm", "molere"], seeds=3, out=tmp_path / "beside", jobs=2, progress=seen.append)
    assert beside.table == alone.table
    processes = {line[4] for line in noted()[6:]}
    assert str(os.getpid()) not in processes
    assert len(processes) <= 2
    assert sorted(runs()[6:]) == sorted(runs()[:6])
    assert sum(p.state == "done" for p in seen) == 6
    assert any(p.state == "running" and p.metrics for p in seen)


def test_a_worker_that_is_killed_loses_only_its_own_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STUB", "kill:molere:0 fail:molere:1")
    found = compare(["erm", "molere"], seeds=2, out=tmp_path, jobs=2)
    assert sorted((r["label"], r["seed"]) for r in found.results) == [("erm", 0), ("erm", 1)]
    reasons = {(m.label, m.seed): m.reason for m in found.table.missing}
    assert reasons["molere", 0] == (
        "its worker process was lost (SIGKILL); often memory ran out, so try fewer jobs; "
        "run the same command again to continue"
    )
    assert reasons["molere", 1] == "the loss of molere is no longer finite"
    assert found.exit_code in (NumericsError.exit_code, ResourceError.exit_code)


def test_data_that_no_worker_can_load_end_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB", "data")
    with pytest.raises(DataError, match="digits is not there; give --root"):
        compare(["erm", "molere"], seeds=5, jobs=2)


def test_workers_that_cannot_start_are_an_error_not_a_hang(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB", "die")
    with pytest.raises(ResourceError, match=r"a worker process ended \(exit code 1\) before its first job"):
        compare(["erm"], seeds=2, jobs=2)
    assert "cannot be imported" in capfd.readouterr().err


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text() if Path(f"/proc/{pid}").exists() else True


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


SCRIPT = """
import sys
sys.path[:0] = [{src!r}, {tests!r}]
from molere.compare import compare
sys.modules["molere.compare"].PARTS = {stub!r}
{guard}
    found = compare(["erm", "molere"], seeds=2, jobs=2, out={out!r})
    print("torch" in sys.modules, len(found.results))
"""


def script(tmp_path: Path, *, guard: str = "if __name__ == '__main__':") -> list[str]:
    path = tmp_path / "script.py"
    out = str(tmp_path / "out")
    path.write_text(SCRIPT.format(src=str(HERE.parent / "src"), tests=str(HERE), guard=guard, out=out, stub=STUB))
    return [sys.executable, str(path)]


def test_the_parent_of_workers_never_imports_torch(tmp_path: Path) -> None:
    done = subprocess.run(script(tmp_path), capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["False", "4"], done.stderr


def test_a_script_without_a_guard_is_told_what_to_write(tmp_path: Path) -> None:
    done = subprocess.run(script(tmp_path, guard="if True:"), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "call compare(..., jobs=2) below `if __name__ == '__main__':`, or use jobs=1" in done.stderr
    assert noted() == []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent_and_the_comparison_continues(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: signal.Signals
) -> None:
    monkeypatch.setenv("STUB", "slow")
    parent = subprocess.Popen(script(tmp_path), stderr=subprocess.DEVNULL)
    wait_for(lambda: len(noted()) == 2)
    workers = [int(line[4]) for line in noted()]
    parent.send_signal(end)
    parent.wait(30)
    wait_for(lambda: not any(map(alive, workers)), 30)
    monkeypatch.setenv("STUB", "")
    found = compare(["erm", "molere"], seeds=2, out=tmp_path / "out")
    assert len(found.results) == 4


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs signals of POSIX")
def test_a_second_ctrl_c_ends_workers_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C goes to all of them; workers leave it to the parent, and learn from it which signal it was."""
    monkeypatch.setenv("STUB", "stuck")
    parent = subprocess.Popen(script(tmp_path), stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: len(noted()) == 2)
    workers = [int(line[4]) for line in noted()]
    time.sleep(0.5)
    os.killpg(parent.pid, signal.SIGINT)
    time.sleep(1)
    assert all(map(alive, [parent.pid, *workers]))  # they save
    began = time.monotonic()
    os.killpg(parent.pid, signal.SIGINT)
    parent.wait(30)
    assert time.monotonic() - began < 4
    assert not any(map(alive, workers))
    assert [line for line in noted() if line[0] == "ended"] == [["ended", "130"]] * 2


# ---- with real training


REAL = """
import sys
sys.path.insert(0, {src!r})
from molere.compare import compare
if __name__ == "__main__":
    compare(["erm", "lrw-random"], recipe={recipe!r}, seeds=2, jobs=2, out={out!r})
"""


@pytest.mark.slow
def test_a_killed_comparison_continues_and_ends_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.modules["molere.compare"], "PARTS", {})
    recipe, out, path = {"epochs": 8, "lr": 0.05}, tmp_path / "killed", tmp_path / "script.py"
    path.write_text(REAL.format(src=str(HERE.parent / "src"), recipe=recipe, out=str(out)))
    parent = subprocess.Popen([sys.executable, str(path)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(out.glob("runs/*/*/checkpoints/LATEST")))
    finally:
        parent.kill()
        parent.wait()
    early = {p.parent for p in out.glob("runs/*/*/DONE")}
    assert len(early) < 4
    subprocess.run([sys.executable, str(path)], check=True, timeout=300)

    whole = compare(["erm", "lrw-random"], recipe=recipe, seeds=2, out=tmp_path / "whole")
    assert json.loads((out / "status.json").read_text())["state"] == "done"
    for result in whole.results:
        folder = Path("runs") / result["label"] / f"seed-{result['seed']}"
        for name in ("model.safetensors", "samples.parquet", "metrics.csv"):
            assert (out / folder / name).read_bytes() == (tmp_path / "whole" / folder / name).read_bytes(), name
        again = json.loads((out / folder / "result.json").read_text())
        assert (again["last"], again["best"]) == (result["last"], result["best"])


def test_the_table_names_the_machine_and_the_costs_of_real_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.modules["molere.compare"], "PARTS", {})
    found = compare(["erm", "drop-random"], recipe={"epochs": 1}, seeds=2, out=tmp_path)
    assert "cores; torch" in found.about.machine
    assert found.table.cost("drop-random").passes_ratio == 1.0
    assert found.table.updates["erm"] == found.table.updates["drop-random"]
    assert "mlp, " in found.about.title
