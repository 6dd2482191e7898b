"""Who may write to a run folder, and its files."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from molere.errors import StorageError
from molere.storage import (
    FileLock,
    MetricsFile,
    RunFolder,
    append_event,
    read_json,
    save_checkpoint,
    write_bytes,
    write_json,
)

HOLD = """
import sys, time
from pathlib import Path
from molere.storage.lock import FileLock
assert FileLock(Path(sys.argv[1])).try_acquire() is None
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def another_process_holding(path: Path) -> Iterator["subprocess.Popen[str]"]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_run_is_refused_and_told_the_owner_until_that_process_dies(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")
    with another_process_holding(tmp_path / "LOCK") as process:
        with pytest.raises(StorageError, match=rf"in use by process {process.pid} on {socket.gethostname()}"):
            RunFolder(tmp_path).claim()
        process.send_signal(signal.SIGKILL)
        process.wait()
        RunFolder(tmp_path).claim().release()


def test_one_process_cannot_claim_a_folder_twice(tmp_path: Path) -> None:
    with RunFolder(tmp_path):
        with pytest.raises(StorageError, match=f"process {os.getpid()}"):
            RunFolder(tmp_path).claim()
        assert (tmp_path / "LOCK").exists()
    assert not (tmp_path / "LOCK").exists()
    RunFolder(tmp_path).claim().release()


@pytest.mark.parametrize("left", ["", "{", "[1]", '{"pid": 999999999, "host": "HOST"}'])
def test_a_lock_file_left_on_this_machine_is_taken_over(tmp_path: Path, left: str) -> None:
    (tmp_path / "LOCK").write_text(left.replace("HOST", socket.gethostname()))
    with RunFolder(tmp_path):
        assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid()


def test_a_lock_file_of_another_machine_is_respected(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text('{"pid": 1, "host": "elsewhere", "boot": "x"}')
    with pytest.raises(StorageError, match="in use by process 1 on elsewhere.*delete LOCK"):
        RunFolder(tmp_path).claim()


def test_without_file_locks_a_live_process_keeps_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molere.storage.lock.fcntl", None)
    with RunFolder(tmp_path), pytest.raises(StorageError, match="in use"):
        RunFolder(tmp_path).claim()
    (tmp_path / "LOCK").write_text(json.dumps({"pid": 999999999, "host": socket.gethostname()}))
    RunFolder(tmp_path).claim().release()


def test_releasing_what_was_not_claimed_leaves_the_owner_alone(tmp_path: Path) -> None:
    with RunFolder(tmp_path):
        RunFolder(tmp_path).release()
        assert (tmp_path / "LOCK").exists()


FORKED = """
import os, sys, time
from pathlib import Path
from molere.storage.lock import FileLock
path, lock = Path(sys.argv[1]), FileLock(Path(sys.argv[1]))
lock.try_acquire()
readable, writable = os.pipe()
if os.fork() == 0:
    lock.release()  # not the child's to give up
    os.write(writable, b"forked")
    time.sleep(60)
os.read(readable, 1)  # the child has closed its copies
print(path.exists(), flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_lock_ends_with_its_process_though_a_forked_child_lives_on(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    with subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path / "LOCK")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        process.wait()
        try:
            lock = FileLock(tmp_path / "LOCK")
            assert lock.try_acquire() is None
            lock.release()
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("make", ["file", "under a file", "foreign", "device", "too long", "loop"])
def test_a_folder_that_cannot_be_used_is_one_line_before_anything_is_written(tmp_path: Path, make: str) -> None:
    path = tmp_path / "run"
    if make in {"file", "under a file"}:
        path.write_text("mine")
        path = path / "deeper" if make == "under a file" else path
    elif make == "foreign":
        path.mkdir()
        (path / "thesis.tex").write_text("mine")
    elif make == "device":
        path = Path("/proc/molere") if sys.platform == "linux" else Path(os.devnull)
    elif make == "too long":
        path = tmp_path / ("n" * 300)
    elif make == "loop":
        path.symlink_to(path)
    with pytest.raises(StorageError) as caught:
        RunFolder(path).claim()
    assert "\n" not in str(caught.value)
    assert "--out" in str(caught.value)
    if make == "foreign":
        assert [p.name for p in path.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        RunFolder(tmp_path).claim()


def test_a_folder_with_odd_characters_works_and_missing_parents_are_made(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a b" / "ünï → 试" / "run") as run:
        run.save(3, {"w": torch.ones(2)}, fsync=False)
        found = run.load()
        assert found is not None
        assert found[0] == 3


def test_a_run_folder_may_be_claimed_again_and_leftovers_are_removed(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.save(1, {}, fsync=False)
    (tmp_path / "checkpoints" / ".tmp-abc").mkdir()
    (tmp_path / "checkpoints" / ".tmp-abc" / "state.json").write_text("{")
    (tmp_path / ".result.json.77.tmp").write_text("{")
    with RunFolder(tmp_path):
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["LATEST", "step-000001"]
        assert not (tmp_path / ".result.json.77.tmp").exists()


def test_status_marker_and_files_are_written_and_read(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        assert run.read_json("status.json")["state"] == "running"
        run.set_status("interrupted", exit_code=130, updates=7, of=9)
        assert run.read_json("status.json") == {
            "state": "interrupted",
            "exit_code": 130,
            "updates": 7,
            "of": 9,
        }
        run.write_json("result.json", {"nll": float("inf"), "t": (1, {"ü": None})})
        assert run.read_json("result.json") == {"nll": None, "t": [1, {"ü": None}]}
        run.write_yaml("config.yaml", {"b": (1, 2), "a": {"lr": 1e-5, "name": "no"}})
        text = (tmp_path / "config.yaml").read_text()
        assert yaml.safe_load(text) == {"b": [1, 2], "a": {"lr": 1e-5, "name": "no"}}
        assert text.index("b:") < text.index("a:")
        run.write_text("table.md", "| ü |\n")
        assert (tmp_path / "table.md").read_text(encoding="utf-8") == "| ü |\n"
        assert not run.is_done
        run.mark_done()
        assert run.is_done


def test_start_over_removes_what_the_earlier_run_produced(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.metrics.append({"a": 1})
        run.log("started")
        run.save(1, {}, fsync=False)
        run.mark_done()
        run.start_over()
        assert run.load() is None
        assert not run.is_done
        run.metrics.append({"b": 2})
        assert (tmp_path / "metrics.csv").read_bytes() == b"b\n2\n"


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(b"{\xff")
    with pytest.raises(StorageError, match=r"result\.json is damaged"):
        read_json(tmp_path / "result.json")
    with pytest.raises(StorageError, match=r"cannot read .*none\.json"):
        read_json(tmp_path / "none.json")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a.json", 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"no space for .*a\.json: 3 bytes needed"):
        write_bytes(tmp_path / "a.json", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "a.json") == 1


# metrics.csv


def test_metrics_have_a_fixed_column_order_and_all_digits(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append({"epoch": 1, "accuracy": 0.1 + 0.2, "name": "a,b\nc", "ok": True})
    file.append({"accuracy": float("nan"), "epoch": 2, "ok": None})
    file.append({"epoch": 3, "late": 1e-300})
    assert (tmp_path / "metrics.csv").read_text() == (
        'epoch,accuracy,name,ok,late\n1,0.30000000000000004,"a,b c",true,\n2,nan,,,\n3,,,,1e-300\n'
    )
    rows = MetricsFile(tmp_path / "metrics.csv").read()
    assert rows[0] == {"epoch": 1, "accuracy": 0.1 + 0.2, "name": "a,b c", "ok": True, "late": None}
    assert rows[2]["late"] == 1e-300


ROWS = st.lists(
    st.dictionaries(st.sampled_from("abcd"), st.floats() | st.integers() | st.text(max_size=4) | st.none(), min_size=1),
    min_size=1,
    max_size=6,
)


@given(ROWS, st.data())
def test_killed_and_resumed_metrics_have_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, float | str | None]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("metrics")
    whole, resumed = MetricsFile(folder / "whole.csv"), MetricsFile(folder / "resumed.csv")
    for row in rows:
        whole.append(row)
    written = data.draw(st.integers(0, len(rows)), label="rows written")
    kept = data.draw(st.integers(0, written), label="rows in the checkpoint")
    for row in rows[:written]:
        resumed.append(row)
    with (folder / "resumed.csv").open("ab") as file:
        file.write(data.draw(st.sampled_from([b"", b"0.12", b'"x']), label="cut line"))
    again = MetricsFile(folder / "resumed.csv")
    again.truncate_to(kept)
    for row in rows[kept:]:
        again.append(row)
    assert (folder / "resumed.csv").read_bytes() == (folder / "whole.csv").read_bytes()


def test_fewer_rows_than_the_checkpoint_counts_is_an_error(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.append({"a": 1})
    with pytest.raises(StorageError, match=r"metrics\.csv has 1 rows, the checkpoint needs 2"):
        file.truncate_to(2)
    file.truncate_to(1)
    file.sync()


# log.jsonl


def test_events_are_appended_with_the_time_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_event(path, "start", seed=0)
    path.write_bytes(path.read_bytes() + b'{"time": "20')
    append_event(path, "resume", loss=float("nan"))
    first, cut, last = path.read_text().splitlines()
    assert json.loads(first).keys() == {"time", "event", "seed"}
    assert cut == '{"time": "20'
    assert json.loads(last)["loss"] is None


# ---- what survives the machine


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is made durable and renamed, in order: `file` and `folder` by what fsync was called on."""
    seen, sync, replace, rename = list[str](), os.fsync, os.replace, os.rename

    def fsync(fd: int) -> None:
        seen.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        sync(fd)

    def moved(move: Callable[..., None], old: object, new: object) -> None:
        seen.append("rename")
        move(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", partial(moved, replace))
    monkeypatch.setattr(os, "rename", partial(moved, rename))
    return seen


@pytest.mark.skipif(os.name != "posix", reason="folders can be opened on POSIX systems only")
def test_a_file_is_durable_before_it_takes_its_name_and_the_name_after(tmp_path: Path, order: list[str]) -> None:
    write_bytes(tmp_path / "file", b"content")
    assert order == ["file", "rename", "folder"]
    order.clear()
    write_bytes(tmp_path / "file", b"content", fsync=False)
    assert order == ["rename"]
    order.clear()
    save_checkpoint(tmp_path, 1, {"x": torch.zeros(2)})
    assert order[:6] == ["file", "file", "file", "folder", "rename", "folder"]
    order.clear()
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.append({"update": 1, "loss": 0.5})
    order.clear()
    metrics.sync()
    assert order[0] == "file"
