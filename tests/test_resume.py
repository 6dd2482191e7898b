"""A run that is killed and resumed leaves the same bytes as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

METHODS = ("erm", "lrw-hard[q=2]", "lrwopt[q=2,threshold=0.99]", "molere")
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

    def train(self, method: str, out: Path, kill: tuple[str, int] | None = None) -> list[int]:
        """Train in a fork; its exit code and the signal that ended it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"method": method, "out": str(out), "kill": kill}), file=self.process.stdin, flush=True)
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


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One uninterrupted run of each method."""
    folders = {method: tmp_path_factory.mktemp("whole") / "run" for method in METHODS}
    for method, folder in folders.items():
        assert server.train(method, folder) == [0, 0]
    return folders


def points(method: str) -> list[Any]:
    """Every kind of point once, each at an update drawn from the method's name."""
    draw = random.Random(method)
    return [pytest.param(method, point, draw.randrange(1, UPDATES), id=f"{method}-{point}") for point in POINTS]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.parametrize(("method", "point", "update"), [p for method in METHODS for p in points(method)])
def test_a_killed_and_resumed_run_leaves_the_same_bytes(
    method: str, point: str, update: int, server: Server, whole: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert server.train(method, out, (point, update)) == [0, signal.SIGKILL]
    assert not (out / "DONE").exists()
    assert server.train(method, out) == [0, 0]
    assert (out / "DONE").exists()
    for file in FILES:
        assert (out / file).read_bytes() == (whole[method] / file).read_bytes(), f"{file} after {point} {update}"


def test_a_run_killed_three_times_leaves_the_same_bytes(server: Server, whole: dict[str, Path], tmp_path: Path) -> None:
    method, out = METHODS[2], tmp_path / "run"
    for update in (1, 16, 33):  # the first before there is a checkpoint
        assert server.train(method, out, ("after an update", update)) == [0, signal.SIGKILL]
    assert server.train(method, out) == [0, 0]
    for file in FILES:
        assert (out / file).read_bytes() == (whole[method] / file).read_bytes(), file


def test_a_run_that_has_ended_is_left_as_it_is(server: Server, whole: dict[str, Path]) -> None:
    before = {file: (whole["erm"] / file).read_bytes() for file in FILES}
    assert server.train("erm", whole["erm"]) == [0, 0]
    assert {file: (whole["erm"] / file).read_bytes() for file in FILES} == before
