"""A run that is killed or asked to end, and then resumed, leaves the same bytes as one that was not."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from molere.storage import load_latest
from reliability import Row, counted

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
METHODS = ("lrw-hard[q=2]", "lrwopt[q=2,threshold=0.99]", "molere")
UPDATES = 50
POINTS = (  # of killable.arm
    "before a step",
    "after an update",
    "between metrics and save",
    "within a save",
    "before the pointer",
    "among the last files",
)
FILES = ("model.safetensors", "metrics.csv", "samples.parquet")
FOLD = 16
"""Updates of each of the five first stages of lrw-hard."""
WITHIN = 10.0
"""Seconds from a signal to the end of the process."""


class Server:
    """killable.py in a process of its own."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        path = os.pathsep.join([str(here.parent / "src"), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", here / "killable.py"],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(self, methods: str | Sequence[str], out: Path, kill: tuple[str, int, int] | None = None) -> list[int]:
        """Train in a fork; its exit code and the signal that ended it."""
        return self._ask(methods, out, kill=kill)[:2]

    def signalled(
        self, method: str, out: Path, numbers: Sequence[int], *, at: int, wait: float, stuck: bool = False
    ) -> tuple[int, float]:
        """Train in a fork that is sent signals; its exit code, and the seconds it took to end."""
        sent = {"at": at, "wait": wait, "numbers": [int(n) for n in numbers], "stuck": stuck}
        code, killed, seconds = self._ask(method, out, signals=sent)
        return (-killed if killed else code), seconds

    def _ask(self, methods: str | Sequence[str], out: Path, **more: Any) -> list[Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        named = [methods] if isinstance(methods, str) else list(methods)
        print(
            json.dumps({"methods": named, "out": str(out), "kill": None, **more}), file=self.process.stdin, flush=True
        )
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


Whole = dict[str, Path]


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """One uninterrupted run of each method."""
    folders = {method: tmp_path_factory.mktemp("whole") / "run" for method in ("erm", *METHODS)}
    for method, folder in folders.items():
        assert server.train(method, folder) == [0, 0]
    return folders


def unlike(out: Path, whole: Path) -> list[str]:
    """The files of a run that are not those of the uninterrupted one."""
    return [file for file in FILES if (out / file).read_bytes() != (whole / file).read_bytes()]


def resumed(server: Server, method: str, out: Path, whole: Whole) -> str:
    """What is wrong with a run after it has been resumed; empty if nothing is."""
    if server.train(method, out) != [0, 0] or not (out / "DONE").exists():
        return "it did not end"
    return " ".join(unlike(out, whole[method]))


def newest(out: Path) -> int:
    """The update of the newest checkpoint, which must be whole."""
    damage: list[str] = []
    found = load_latest(out / "checkpoints", on_damage=damage.append)
    assert not damage
    return 0 if found is None else found[0]


@counted(3, 50, dear=True)
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_and_resumed_run_leaves_the_same_bytes(
    method: str, count: int, server: Server, whole: Whole, tmp_path: Path, row: Row
) -> None:
    draw, first = random.Random(method), 2 * METHODS.index(method)
    wrong = list[tuple[object, object]]()
    for case in range(count):
        kill, out = (POINTS[(case + first) % len(POINTS)], draw.randrange(1, UPDATES), 0), tmp_path / str(case)
        ended = server.train(method, out, kill)
        if ended != [0, signal.SIGKILL] or (out / "DONE").exists():
            wrong.append((kill, f"ended as {ended}"))
        elif found := resumed(server, method, out, whole):
            wrong.append((kill, found))
    row.judge("P1", wrong, count)


@counted(1, 5, dear=True)
def test_a_run_killed_ten_times_leaves_the_same_bytes(
    count: int, server: Server, whole: Whole, tmp_path: Path, row: Row, request: pytest.FixtureRequest
) -> None:
    """Ten kills in the whole list of faults; four in every run, to be quick."""
    wrong, kills = list[tuple[object, object]](), 10 if request.node.get_closest_marker("faults") else 4
    for case in range(count):
        method, out, draw = METHODS[case % len(METHODS)], tmp_path / str(case), random.Random(case)
        updates = sorted({1, *draw.sample(range(4, UPDATES), kills - 1)})  # 1: there is no checkpoint yet
        ends = [server.train(method, out, (draw.choice(POINTS[:2]), update, 0)) for update in updates]
        if ends != [[0, signal.SIGKILL]] * len(ends):
            wrong.append((method, f"ended as {ends}"))
        elif found := resumed(server, method, out, whole):
            wrong.append((method, found))
        epochs = [line["epoch"] for line in csv.DictReader((out / "metrics.csv").read_text().splitlines())]
        if epochs != [str(float(epoch)) for epoch in range(1, len(epochs) + 1)]:
            wrong.append((method, f"epochs {epochs}"))
    row.judge("P3", wrong, count)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@counted(3, 14, dear=True)
def test_a_signal_saves_the_run_and_ends_it_with_its_code(
    count: int, server: Server, whole: Whole, tmp_path: Path, row: Row
) -> None:
    wrong, draw = list[tuple[object, object]](), random.Random(0)
    for case in range(count):
        number, method, out = SIGNALS[case % 3], ("erm", *METHODS)[case % 4], tmp_path / str(case)
        at = draw.randrange(1, UPDATES - 20)
        code, seconds = server.signalled(method, out, [number], at=at, wait=draw.uniform(0, 0.05))
        told = json.loads((out / "status.json").read_text())
        if (code, told["exit_code"], told["state"]) != (128 + number, 128 + number, "interrupted"):
            wrong.append((number, f"exit code {code}, status {told}"))
        elif told["updates"] != newest(out) or told["of"] < UPDATES:
            wrong.append((number, f"checkpoint {newest(out)}, status {told}"))
        elif newest(out) <= at or seconds > WITHIN:  # the update that was under way is in it
            wrong.append((number, f"checkpoint {newest(out)} at update {at}, {seconds:.1f} s"))
        elif found := resumed(server, method, out, whole):
            wrong.append((number, found))
    row.judge("P2", wrong, count)


@counted(1, 4)
def test_a_second_interrupt_ends_at_once_and_the_last_checkpoint_stays(
    count: int, server: Server, whole: Whole, tmp_path: Path, row: Row
) -> None:
    wrong, draw = list[tuple[object, object]](), random.Random(1)
    for case in range(count):
        method, out, at = ("erm", *METHODS)[case % 4], tmp_path / str(case), draw.randrange(4, UPDATES)
        numbers = [SIGNALS[case % 3 - 2], signal.SIGINT]  # the first SIGINT comes first
        code, seconds = server.signalled(method, out, numbers, at=at, wait=0.05, stuck=True)
        if code != 130 or seconds > 4:
            wrong.append((numbers, f"exit code {code} after {seconds:.1f} s"))
        elif not at - 6 < newest(out) <= at:
            wrong.append((numbers, f"checkpoint {newest(out)} at update {at}"))
        elif found := resumed(server, method, out, whole):
            wrong.append((numbers, found))
    row.judge("P2", wrong, count)


@pytest.mark.faults
@pytest.mark.slow
def test_an_update_that_never_ends_is_given_up_within_ten_seconds(server: Server, tmp_path: Path, row: Row) -> None:
    code, seconds = server.signalled("erm", tmp_path / "run", [signal.SIGTERM], at=9, wait=0.05, stuck=True)
    row("P2", int((code, newest(tmp_path / "run"), seconds < WITHIN) == (143, 9, True)), 1, [(code, seconds)])


@counted(1, 3, dear=True)
def test_a_first_stage_goes_on_where_it_was_killed(
    count: int, server: Server, whole: Whole, tmp_path: Path, row: Row
) -> None:
    wrong, method = list[tuple[object, object]](), METHODS[0]
    full = int(Path(f"{whole[method]}.updates").read_text())
    for case, (skipped, update) in enumerate(((0, 11), (2, 5), (4, 14))[:count]):
        out = tmp_path / str(case)
        ended = server.train(method, out, ("in a first stage", update, skipped))
        rooms = list((out / "cache").glob("*.run"))
        if ended != [0, signal.SIGKILL] or len(rooms) != 1 or not update - 6 < newest(rooms[0]) <= update:
            wrong.append((update, f"ended as {ended}, left {rooms}"))
        elif found := resumed(server, method, out, whole):
            wrong.append((update, found))
        elif (made := int(Path(f"{out}.updates").read_text())) > full - FOLD * skipped - update + 6 or list(
            out.glob("cache/*.run")
        ):
            wrong.append((update, f"{made} updates of {full}"))
    row.judge("P7", wrong, count)


@counted(1, 3, dear=True)
def test_a_comparison_goes_on_where_it_was_killed(count: int, server: Server, tmp_path: Path, row: Row) -> None:
    methods, whole = ("erm", "molere"), tmp_path / "whole"
    assert server.train(methods, whole) == [0, 0]
    runs = [f"runs/{method}/seed-{seed}" for method in methods for seed in (0, 1)]
    full = int(Path(f"{whole}.updates").read_text())
    wrong = list[tuple[object, object]]()
    for case, (skipped, update) in enumerate(((1, 20), (3, 31), (0, 8))[:count]):
        out = tmp_path / str(case)
        ended = server.train(methods, out, ("after an update", update, skipped))
        again = server.train(methods, out)
        if (ended, again) != ([0, signal.SIGKILL], [0, 0]):
            wrong.append(((skipped, update), f"ended as {ended}, then {again}"))
        elif found := [run for run in runs if unlike(out / run, whole / run)]:
            wrong.append(((skipped, update), found))
        elif (made := int(Path(f"{out}.updates").read_text())) > full - UPDATES * skipped - update + 6:
            wrong.append(((skipped, update), f"{made} updates of {full}"))
    row.judge("P7", wrong, count)


def test_a_run_that_has_ended_is_left_as_it_is(server: Server, whole: Whole) -> None:
    before = {file: (whole["erm"] / file).read_bytes() for file in FILES}
    assert server.train("erm", whole["erm"]) == [0, 0]
    assert {file: (whole["erm"] / file).read_bytes() for file in FILES} == before


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_comparison_with_workers_saves_every_run_when_it_is_asked_to_end(
    number: signal.Signals, tmp_path: Path, row: Row
) -> None:
    """The whole program: a parent and two workers, each with a run of its own under way."""
    out, source = tmp_path / "out", Path(__file__).parents[1] / "src"
    asked = f"compare --methods erm,molere --seeds 1 --jobs 2 --limit 200 --epochs 100000 --out {out}".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "molere", *asked, "train.batch_size=50", "train.save_every=20"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])},
        stderr=subprocess.PIPE,
        text=True,
    )
    runs = [out / "runs" / label / "seed-0" for label in ("erm", "molere")]
    deadline = time.monotonic() + 180
    while not all((run / "checkpoints" / "LATEST").exists() for run in runs) and time.monotonic() < deadline:
        time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    seconds, wrong = time.monotonic() - began, list[tuple[object, object]]()
    if process.returncode != 128 + number or seconds > WITHIN or "go on with: molere resume" not in said:
        wrong.append((number, f"exit code {process.returncode} after {seconds:.1f} s: {said[-300:]}"))
    for run in runs:
        told = json.loads((run / "status.json").read_text())
        if (told["state"], told["exit_code"]) != ("interrupted", 128 + number) or told["updates"] != newest(run):
            wrong.append((run.parent.name, told))
        if newest(run) == 0 or (run / "LOCK").exists():
            wrong.append((run.parent.name, told))
    row("P2", int(not wrong), 1, wrong)
