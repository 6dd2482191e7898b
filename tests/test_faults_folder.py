"""Folders of runs and comparisons under faults: full disks, other settings, leftovers, locks, paths, lost workers."""

import dataclasses
import json
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from molere import fit
from molere.cli import main
from molere.compare import compare
from molere.data.pool import Data, TensorPool
from molere.errors import StorageError
from molere.ledger import Ledger
from molere.storage import ContentCache, RunFolder, load_latest
from molere.storage.lock import FileLock
from reliability import Row, counted

SIZE = 48
STUB = {"fit": "stub_training:fit", "load": "stub_training:load", "store": "stub_training:store"}
Wrong = list[tuple[object, object]]


def pool(change: str = "", size: int = SIZE) -> TensorPool:
    """Points in three classes; the change says what is other than usual."""
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(7))
    y = torch.arange(size) % 3
    if change == "one value":
        x[5, 2] += 1e-3
    elif change == "one label":
        y[5] = (y[5] + 1) % 3
    elif change == "order":
        x, y = x.flip(0), y.flip(0)
    elif change == "double":
        x = x.double()
    more: dict[str, Any] = {"groups": {"group": y % 2}, "ids": {"ids": np.arange(size) + 1}}.get(change, {})
    return TensorPool(x, y, **more)


def data(change: str = "", **more: Any) -> Data:
    one = pool(change, **more)
    return Data("points", one, None, {"test": one})


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))


RECIPE: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.1, "device": "cpu", "save_every": 6}


def train(out: Path, method: str = "erm", *, recipe: Mapping[str, Any] = {}, **more: Any) -> Any:  # noqa: B006 (not changed)
    return fit(method, **{"data": data(), "model": net, "out": out, "recipe": {**RECIPE, **recipe}, **more})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "LOCK"}


def refusal(call: Callable[[], object]) -> str:
    """What a call is refused with; empty if it is not."""
    try:
        call()
    except StorageError as error:
        return str(error)
    return ""


class Cut(Exception):
    """Ends a run from outside."""


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A run that was cut after its first of three epochs."""
    out = tmp_path / "half"

    def cut(event: Mapping[str, object]) -> None:
        raise Cut

    with pytest.raises(Cut):
        train(out, recipe={"save_every": 3}, observers=(cut,))
    return out


# ---- P5: other settings or data

OTHERS: dict[str, dict[str, Any]] = {
    "settings": {"method": "erm-part"},
    "settings.holdout": {"method": "drop-hard"},
    "train.epochs": {"recipe": {"epochs": 4}},
    "train.batch_size": {"recipe": {"batch_size": 12}},
    "train.val_batch_size": {"recipe": {"val_batch_size": 4}},
    "train.optimizer": {"recipe": {"optimizer": "AdamW"}},
    "train.lr": {"recipe": {"lr": 0.10001}},
    "train.momentum": {"recipe": {"momentum": 0.8}},
    "train.nesterov": {"recipe": {"nesterov": True}},
    "train.weight_decay": {"recipe": {"weight_decay": 0.0}},
    "train.optimizer_args.dampening": {"recipe": {"optimizer_args": {"dampening": 0.1}}},
    "train.scheduler": {"recipe": {"scheduler": "constant"}},
    "train.scheduler_args": {"recipe": {"scheduler": "step", "scheduler_args": {"milestones": [0.5]}}},
    "train.dropout": {"recipe": {"dropout": 0.1}},
    "train.precision": {"recipe": {"precision": "float64"}},
    "train.accumulate": {"recipe": {"accumulate": 2}},
    "train.channels_last": {"recipe": {"channels_last": True}},
    "train.compile": {"recipe": {"compile": "eager"}},
    "train.q": {"recipe": {"q": 2}},
    "train.warmup": {"recipe": {"warmup": 0.2}},
    "train.augment": {"recipe": {"augment": False}},
    "train.meta_bn": {"recipe": {"meta_bn": "eval"}},
    "train.meta_share": {"recipe": {"meta_share": 0.5}},
    "train.estimator": {"recipe": {"estimator": "central"}},
    "train.grad_clip": {"recipe": {"grad_clip": 1.0}},
    "train.eval_every": {"recipe": {"eval_every": 2}},
    "train.on_nonfinite": {"recipe": {"on_nonfinite": "skip"}},
    "train.save_every": {"recipe": {"save_every": 5}},
    "seed": {"seed": 1},
    "model": {"model": wider},
    "method": {"label": "mine"},
    "data.name": {"data": dataclasses.replace(data(), name="others")},
    "data.scenario": {"data": dataclasses.replace(data(), scenario="noise")},
    "data.content (a value)": {"data": data("one value")},
    "data.content (a label)": {"data": data("one label")},
    "data.content (order)": {"data": data("order")},
    "data.content (groups)": {"data": data("groups")},
    "data.content (fewer)": {"data": data(size=SIZE - 1)},
    "data.content (more)": {"data": data(size=SIZE + 1)},
}


@counted(6, 40)
def test_a_run_with_other_settings_or_data_is_refused_by_their_names(
    half: Path, tmp_path: Path, count: int, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, wrong = contents(half), Wrong()
    for name, other in list(OTHERS.items())[:: max(1, len(OTHERS) // count)][:count]:
        recipe = {"save_every": 3, **other.get("recipe", {})}
        said = refusal(lambda o=other, r=recipe: train(half, **{**o, "recipe": r}))
        if name.split(" (")[0] not in said or "--force" not in said or "\n" in said or contents(half) != before:
            wrong.append((name, said))
    tried = min(count, len(OTHERS))
    if count > tried:
        wrong += compared_with_others(tmp_path, monkeypatch)
        tried += 1
    row.judge("P5", wrong, tried)


def compared_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wrong:
    monkeypatch.setattr(sys.modules["molere.compare"], "PARTS", STUB)
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "stub.log"))
    compare(["erm", "molere"], seeds=2, recipe={"lr": 0.1}, out=tmp_path / "both")
    said = refusal(lambda: compare(["erm"], seeds=2, recipe={"lr": 0.2}, model="cnn", out=tmp_path / "both"))
    named = ("methods (without molere)", "lr (0.1 there, 0.2 here)", "model (default there, cnn here)")
    return [] if all(name in said for name in named) else [("comparison", said)]


@pytest.mark.parametrize("other", ["train.lr", "data.content (a value)"])
def test_forced_runs_go_on_and_say_what_is_given_up(half: Path, other: str) -> None:
    with pytest.warns(UserWarning, match=rf"goes on with other settings: {other.split(' ')[0]} \("):
        found = train(
            half, force=True, **{**OTHERS[other], "recipe": {"save_every": 3, **OTHERS[other].get("recipe", {})}}
        )
    events = [json.loads(line) for line in (half / "log.jsonl").read_text().splitlines()]
    forced = next(event for event in events if event["event"] == "forced")
    assert forced["given_up"] == "one configuration for the whole run"
    assert forced["differences"][0].startswith(other.split(" ")[0])
    assert [event["updates"] for event in events if event["event"] == "resumed"] == [3]
    assert found.updates == 18
    assert refusal(lambda: train(half, recipe={"save_every": 3}))  # it holds the new settings from now on


def test_a_run_that_has_ended_is_kept_even_when_forced(tmp_path: Path) -> None:
    train(tmp_path)
    before = contents(tmp_path)
    train(tmp_path, recipe={"lr": 0.2}, force=True)
    assert contents(tmp_path) == before


def test_a_forced_comparison_warns_and_keeps_what_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["molere.compare"], "PARTS", STUB)
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "stub.log"))
    compare(["erm"], seeds=1, recipe={"lr": 0.1}, out=tmp_path / "both")
    with pytest.warns(UserWarning, match=r"mixes settings: .*lr \(0\.1 there, 0\.2 here\); runs that have ended keep"):
        found = compare(["erm"], seeds=1, recipe={"lr": 0.2}, out=tmp_path / "both", force=True)
    assert len(found.results) == 1
    assert len((tmp_path / "stub.log").read_text().splitlines()) == 1


def test_a_run_saves_at_the_ends_of_epochs_and_within_those_that_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = list[int](), RunFolder.save_soon
    monkeypatch.setattr(RunFolder, "save_soon", lambda f, step, state: (saved.append(step), save(f, step, state)))
    train(tmp_path / "quick", recipe={"save_every": None})
    assert saved == [18]  # an epoch takes milliseconds
    monkeypatch.setattr("molere.training.SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr("molere.training.LEAST_PAUSE", 0.0)
    saved.clear()
    train(tmp_path / "epochs", recipe={"save_every": None})
    assert saved == [6, 12, 18]
    monkeypatch.setattr("molere.training.SECONDS_WITHOUT_SAVE", 0.0)
    saved.clear()
    train(tmp_path / "long", recipe={"save_every": None})
    assert saved == list(range(1, 19))


# ---- S1: a disk that fills during a run


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files can grow to so many bytes, as on a disk that is nearly full."""
    import resource  # which Windows has not

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
@counted(1, 4)
def test_a_run_whose_disk_fills_ends_with_one_line_and_goes_on_when_there_is_room(
    tmp_path: Path, count: int, row: Row
) -> None:
    train(tmp_path / "whole")
    whole, wrong = contents(tmp_path / "whole"), Wrong()
    for case in range(count):
        out, left = tmp_path / str(case), 100 * (case + 3)

        def fills(event: Mapping[str, Any], room: int = left) -> None:
            import resource

            if event["metrics"]["epoch"] == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        with room_for(2**40):
            said = refusal(lambda o=out, f=fills: train(o, observers=(f,)))
        temporary = [p for p in out.rglob("*tmp*")]
        found = load_latest(out / "checkpoints")
        if "bytes needed" not in said or "\n" in said or temporary or found is None or found[0] != 6:
            wrong.append((left, said or temporary))
        train(out)
        if [n for n in ("model.safetensors", "metrics.csv") if (out / n).read_bytes() != whole[n]]:
            wrong.append((left, "other bytes after it went on"))
    row.judge("S1", wrong, count)


# ---- S2, D8: folders


def unusable(root: Path) -> dict[str, Path]:
    """Folders that no results can be written to."""
    (root / "file").write_text("mine")
    (root / "foreign").mkdir()
    (root / "foreign" / "thesis.tex").write_text("mine")
    (root / "loop").symlink_to(root / "loop")
    (root / "to a file").symlink_to(root / "file")
    return {
        "a file": root / "file",
        "below a file": root / "file" / "run",
        "of something else": root / "foreign",
        "a loop": root / "loop",
        "a link to a file": root / "to a file",
        "a name of 300": root / ("n" * 300),
        "not writable": Path("/proc/molere") if sys.platform == "linux" else root / "file" / "a",
        "far below a file": root / "file" / "a" / "b",
    }


@counted(8, 8)
def test_a_folder_that_cannot_be_used_is_found_before_anything_is_loaded(
    tmp_path: Path, count: int, row: Row, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Wrong()
    monkeypatch.setattr("molere.data.sources.load", lambda *_, **__: pytest.fail("data were loaded"))
    for what, folder in list(unusable(tmp_path).items())[:count]:
        for command in ("train", "compare"):
            monkeypatch.setattr(sys, "argv", ["molere", command, "--out", str(folder)])
            began = time.process_time()
            code, seconds = main(), time.process_time() - began
            said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            if code != 4 or len(said) != 1 or "--out" not in said[0] or seconds > 2:
                wrong.append(((command, what), (code, said, seconds)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "foreign", "loop", "to a file"]
    row.judge("S2", wrong, count)


def odd(root: Path) -> dict[str, Path]:
    """Paths that are unusual; those that cannot be used must be refused in one line."""
    (root / "real").mkdir()
    (root / "link").symlink_to(root / "real")
    (root / "a").symlink_to(root / "b")
    (root / "b").symlink_to(root / "a")
    (root / "dangling").symlink_to(root / "nowhere")
    names = {
        "spaces": "a run of  mine",
        "a leading dash": "-out",
        "a leading dot": ".hidden",
        "quotes": 'it\'s "quoted"',
        "shell": "$(touch x);`y`&|<>*?",
        "braces": "{a,b}[1]{}",
        "percent": "%s %d %%",
        "new line": "two\nlines",
        "tab": "a\tb",
        "umlauts": "größe",
        "composed": "e\u0301",
        "other scripts": "训练 обучение تدريب",
        "right to left": "\u202eabc",
        "emoji": "🎯",
        "250 characters": "n" * 250,
    }
    deep = root.joinpath(*("d" * 40 for _ in range(6)))
    return {
        **{what: root / name for what, name in names.items()},
        "deep": deep,
        "a link": root / "link",
        "links in a loop": root / "a",
        "a dangling link": root / "dangling",
        "dots": root / "real" / ".." / "dotted",
    }


@counted(6, 20)
def test_odd_paths_work_or_are_refused_in_one_line(tmp_path: Path, count: int, row: Row) -> None:
    wrong, cases = Wrong(), list(odd(tmp_path).items())
    for what, path in cases[:: len(cases) // count][:count]:
        try:
            train(path, recipe={"epochs": 1, "save_every": 6})
            if not (path / "DONE").exists() or load_latest(path / "checkpoints") is None:
                wrong.append((what, "nothing was written"))
        except StorageError as error:
            if what not in ("links in a loop", "a dangling link") or "\n" in str(error):
                wrong.append((what, str(error)))
        except Exception as error:
            wrong.append((what, repr(error)))
    row.judge("D8", wrong, count)


# ---- S5: leftovers and stale locks

GONE = {"pid": 999_999_999, "host": socket.gethostname()}
LEFT: dict[str, Callable[[Path], object]] = {
    "an empty lock": lambda out: (out / "LOCK").touch(),
    "half a lock": lambda out: (out / "LOCK").write_text('{"pid": 12'),
    "a lock of a process that has gone": lambda out: (out / "LOCK").write_text(json.dumps(GONE)),
    "a lock of a process that has the number now": lambda out: (out / "LOCK").write_text(
        json.dumps({**GONE, "pid": os.getpid()})
    ),
    "a lock that is no object": lambda out: (out / "LOCK").write_text("[1, 2]"),
    "a lock of bytes": lambda out: (out / "LOCK").write_bytes(b"\xff\x00"),
    "an empty temporary checkpoint": lambda out: (out / "checkpoints" / ".tmp-a").mkdir(),
    "half a temporary checkpoint": lambda out: _write(out / "checkpoints" / ".tmp-b" / "state.json", b"{"),
    "a checkpoint put aside": lambda out: shutil.copytree(
        out / "checkpoints" / "step-000003", out / "checkpoints" / ".tmp-c-old"
    ),
    "a temporary pointer": lambda out: _write(out / "checkpoints" / ".LATEST.77.tmp", b"step-"),
    "a pointer to nothing": lambda out: (out / "checkpoints" / "LATEST").write_text("step-000099\n"),
    "half a pointer": lambda out: (out / "checkpoints" / "LATEST").write_text("step-"),
    "no pointer": lambda out: (out / "checkpoints" / "LATEST").unlink(),
    "an empty checkpoint of later": lambda out: (out / "checkpoints" / "step-000009").mkdir(),
    "a temporary result": lambda out: _write(out / ".result.json.77.tmp", b"{"),
    "a temporary model": lambda out: _write(out / ".model.safetensors.77.tmp", b"half"),
    "half a row": lambda out: _append(out / "metrics.csv", b"2.0,12"),
    "rows of later": lambda out: _append(out / "metrics.csv", (out / "metrics.csv").read_bytes().splitlines(True)[-1]),
    "half an event": lambda out: _append(out / "log.jsonl", b'{"time": "20'),
    "results without the marker": lambda out: _write(out / "result.json", b"{"),
}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


@counted(5, 20)
def test_what_a_killed_run_left_is_removed_and_the_run_goes_on(
    half: Path, tmp_path: Path, count: int, row: Row, recwarn: pytest.WarningsRecorder
) -> None:
    train(tmp_path / "whole", recipe={"save_every": 3})
    whole, wrong, cases = contents(tmp_path / "whole"), Wrong(), list(LEFT.items())
    for case, (what, leave) in enumerate(cases[:: len(cases) // count][:count]):
        out = tmp_path / str(case)
        shutil.copytree(half, out)
        leave(out)
        try:
            train(out, recipe={"save_every": 3})
        except Exception as error:
            wrong.append((what, repr(error)))
            continue
        found = contents(out)
        unlike = [n for n in ("model.safetensors", "metrics.csv", "samples.parquet") if found[n] != whole[n]]
        if unlike or set(found) - {"log.jsonl"} != set(whole) - {"log.jsonl"} or (out / "LOCK").exists():
            wrong.append((what, unlike or sorted(set(found) ^ set(whole))))
    row.judge("S5", wrong, count)
    recwarn.clear()


# ---- S6: two in one folder


@counted(4, 10)
def test_a_second_user_of_a_folder_is_refused_and_told_the_owner(tmp_path: Path, count: int, row: Row) -> None:
    wrong, owner = Wrong(), f"in use by process {os.getpid()} on {socket.gethostname()}"
    seconds: dict[str, Callable[[Path], object]] = {
        "claim": lambda out: RunFolder(out).claim(),
        "fit": train,
        "fit anew": lambda out: train(out, resume="never"),
        "forced": lambda out: train(out, recipe={"lr": 0.2}, force=True),
        "a comparison": lambda out: compare(["erm"], seeds=1, out=out),
    }
    for case in range(count):
        what = [*seconds][case % 5]
        out = tmp_path / str(case)
        if what == "a comparison":
            (out / "runs").mkdir(parents=True)
        before: dict[str, bytes] = {}
        with Ledger(out) if what == "a comparison" else RunFolder(out):
            before = contents(out)
            said = refusal(lambda o=out, w=what: seconds[w](o))
            if owner not in said or "\n" in said or contents(out) != before:
                wrong.append((what, said))
            if case >= 5 and FileLock(out / "LOCK").try_acquire() is None:
                wrong.append((what, "the lock was given up"))
    row.judge("S6", wrong, count)


def test_a_run_of_a_comparison_cannot_be_trained_apart_while_it_is_under_way(tmp_path: Path) -> None:
    said: list[str] = []

    def observe(news: Any) -> None:
        if news.state == "running" and news.fraction > 0:
            said.append(refusal(lambda: train(tmp_path / "runs" / "erm" / "seed-0")))

    compare(["erm"], data=data(), model=net, recipe=RECIPE, seeds=1, out=tmp_path, progress=observe)
    assert said
    assert all("in use by process" in one for one in said)


def test_a_first_stage_is_computed_once_though_two_ask_for_it(tmp_path: Path) -> None:
    cache, second = ContentCache(tmp_path), ContentCache(tmp_path)
    with cache.if_free("k") as mine, second.if_free("k") as other:
        assert (mine, other) == (True, False)
        with cache.workshop("k") as room:
            assert room is not None
            assert "in use by" in refusal(lambda: RunFolder(room.path).claim())


# ---- P6: a lost worker


@counted(1, 10, dear=True)
def test_a_worker_that_is_lost_is_named_and_the_others_go_on(
    tmp_path: Path, count: int, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["molere.compare"], "PARTS", STUB)
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "stub.log"))
    wrong, draw = Wrong(), random.Random(0)
    for case in range(count):
        lost, out = (draw.choice(["erm", "molere"]), draw.randrange(3)), tmp_path / str(case)
        monkeypatch.setenv("STUB", f"kill:{lost[0]}:{lost[1]}")
        began = time.monotonic()
        found = compare(["erm", "molere"], seeds=3, jobs=2 + case % 2, out=out)
        seconds, missing = time.monotonic() - began, [(m.label, m.seed) for m in found.table.missing]
        reason = found.table.missing[0].reason if found.table.missing else ""
        if missing != [lost] or "worker process was lost (SIGKILL)" not in reason or found.exit_code != 6:
            wrong.append((lost, (missing, reason)))
        if seconds > 30 or len(found.results) != 5:
            wrong.append((lost, f"{len(found.results)} results after {seconds:.1f} s"))
        monkeypatch.setenv("STUB", "")
        if case == 0 and len(compare(["erm", "molere"], seeds=3, out=out).results) != 6:
            wrong.append((lost, "it did not go on"))
    row.judge("P6", wrong, count)


def test_the_save_of_a_full_disk_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molere.storage.files.free_bytes", lambda _: 0)
    with RunFolder(tmp_path) as folder:
        folder.save_soon(1, {"w": torch.zeros(3)})
        with pytest.raises(StorageError, match="bytes needed, 0 free"):
            folder.save_soon(2, {"w": torch.zeros(3)})
        folder.flush()
        folder.save_soon(3, {"w": torch.zeros(3)})
        with pytest.raises(StorageError, match="bytes needed, 0 free"):
            folder.flush()


def test_a_save_holds_what_was_true_when_it_was_asked_for(tmp_path: Path) -> None:
    state: dict[str, Any] = {"w": torch.zeros(1000), "list": [1]}
    with RunFolder(tmp_path) as folder:
        folder.save_soon(1, state)
        state["w"].fill_(9)
        state["list"].append(2)
        folder.flush()
        found = folder.load()
    assert found is not None
    assert (found[1]["w"].sum(), found[1]["list"]) == (0, [1])
