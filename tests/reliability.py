"""The list of faults, how often each was met and withstood: what `pytest tests -m faults --reliability FILE` writes.

A test counts its cases and hands the figure to the fixture `row`; `counted(quick, full)` gives it two versions, a few
cases in every run and the full number under the marks `faults` and `slow`.
"""

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from molere.storage import environment

FAULTS = {
    "P1": ("killed (SIGKILL) at any moment, also while saving", "resumed run has the same bytes", 150),
    "P2": ("SIGINT, SIGTERM, SIGUSR1; a second SIGINT", "saves and ends within 10 s, exit 130, 143, 138", 21),
    "P3": ("ten kills in one run", "same bytes, no row twice", 5),
    "P5": ("resumed with other settings or data", "refused, differences listed", 40),
    "P6": ("a worker of a comparison is killed", "named within 30 s, the others go on", 10),
    "P7": (
        "killed in a first stage, a comparison, a reproduction",
        "goes on from its last checkpoint, same results",
        8,
    ),
    "S1": ("disk full while saving", "last checkpoint good, no part left, bytes needed and free told", 20),
    "S2": ("folder missing, a file, not writable", "found before the first update, within 2 s", 8),
    "S3": ("truncated checkpoint", "found, the one before is used", 100),
    "S4": ("flipped bits in a checkpoint", "found", 200),
    "S5": ("leftovers of a killed run, stale locks", "removed, taken over", 20),
    "S6": ("two runs in one folder", "the second is refused and told the owner", 10),
    "S8": ("six pickles that run code, in each of 22 kinds of files that are read", "refused, nothing runs", 132),
    "S9": ("paths in tables that lead out of their folder: .., absolute, links", "refused, row named", 32),
    "C1": ("malformed settings", "exit 2, one line a mistake, within 1 s, torch not imported", 200),
    "C2": ("settings written out and read back, in any order", "the same experiment", 1000),
    "D1": (
        "corrupt, odd and moving images, no files: 101, in memory and not",
        "file named, or left out; ids stay",
        202,
    ),
    "D2": (
        "labels out of range, -100, negative, NaN, text, missing, in arrays and in files",
        "refused before the first update, with the file and the id",
        120,
    ),
    "D3": ("classes of one example, batches larger than the data, ...", "trains, or one line", 30),
    "D4": ("the splitter sends everything to one side", "guarded and logged, the run ends well", 20),
    "D5": ("inputs that are NaN or infinite", "refused with the id, or left out and logged", 20),
    "D6": ("test examples that are training examples too", "counted exactly", 40),
    "D7": ("downloads cut, altered or empty, hosts gone or silent", "nothing of it is kept; what to do by hand", 39),
    "D8": ("paths with spaces, other scripts, 250 characters, link loops", "work, or one line", 20),
    "N1": (
        "NaN or infinity in a network, a gradient or the data, there with every method",
        "culprit named; stop, skip and rollback",
        240,
    ),
    "N2": (
        "weights all 0, or one example of all weight, in the 8 methods with a fallback",
        "equal weights instead, logged",
        88,
    ),
    "N3": ("meta-gradients of 27 networks and modes, two orders", "double backward's within 1e-9 in float64", 54),
    "N4": ("a look-ahead in 27 networks and modes", "weights, buffers, gradients, random state bit-equal", 27),
    "N6": ("memory over 2,000 updates, at its peak", "grows by 1 MB at most, 1.3 x ERM at most", 2),
    "N7": ("the same seed twice, another seed", "the same bytes; others", None),
    "R2": ("no GPU, a wrong index", "CPU under auto, else one line", 6),
    "O1": ("hostile names in methods, metrics and titles", "the page shows them as text and asks for nothing", 40),
    "O2": ("no terminal, a notebook, NO_COLOR, narrow", "readable, at most a line in 10 s", 6),
    "O3": ("trackers that fail or do not answer", "the run goes on, same results", 20),
    "A1": ("scikit-learn's check_estimator, but for 2 declared checks", "passes", 60),
    "A2": ("stored trajectories of 20 updates", "every method gives the same", None),
    "A3": ("help, without torch", "within 0.5 s of CPU time", 6),
}
"""id -> what happens, what is required, in how many cases (none: one for each method)."""

FIGURE = "reliability"
"""The property under which a test's report carries (row, done, of, test)."""


def counted(quick: int, full: int, *, dear: bool = False) -> pytest.MarkDecorator:
    """The argument `count` of a test: `quick` cases in every run, `full` ones under the marks faults and slow.

    dear: each case takes seconds, so that `--share` may take fewer of them.
    """
    marks = [pytest.mark.faults, pytest.mark.slow, *([pytest.mark.dear] if dear else [])]
    cases = [pytest.param(quick, id="quick"), pytest.param(full, id="full", marks=marks)]
    return pytest.mark.parametrize("count", cases, indirect=True)


@dataclass
class Reached:
    """How many cases of a row were tried and withstood, by which tests."""

    done: int = 0
    of: int = 0
    tests: list[str] = field(default_factory=list[str])


class Reliability:
    """The figures of a session; a plugin of pytest that writes them when it ends."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.reached: dict[str, Reached] = {}

    def add(self, row: str, done: int, of: int, test: str) -> None:
        found = self.reached.setdefault(row, Reached())
        found.done, found.of = found.done + done, found.of + of
        found.tests += [] if test in found.tests else [test]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the figures that a test handed in; with `-n` they come from other processes this way."""
        if report.when == "call":
            properties: list[tuple[str, Any]] = report.user_properties
            for name, value in properties:
                if name == FIGURE:
                    self.add(*value)

    def pytest_sessionfinish(self) -> None:
        path = self.config.getoption("--reliability")
        if path and not hasattr(self.config, "workerinput"):  # a process of `-n` has seen a part only
            Path(path).write_text(self.table(), "utf-8")

    def table(self) -> str:
        """The rows in Markdown, with date, machine and command."""
        here = environment()
        command = shlex.join(["pytest", *map(str, self.config.invocation_params.args)])
        lines = [
            "# Reliability",
            "",
            "Each fault is made on purpose, as often as the column *required* says, and each case must do what stands "
            "there. A figure below the required number of cases was reached on fewer cases, all of which were tried; "
            "*not run* says that no figure was taken. Rows on several GPUs or machines (M1 to M3, P4, R1), on mixed "
            "precision (N5) and on checkpoints of earlier releases (S7) are not in the list yet.",
            "",
            f"- Date: {datetime.now().astimezone():%Y-%m-%d %H:%M %z}",
            f"- Machine: {here['cpu']}, {here['cpu_count']} cores, {platform.system()}; Python "
            f"{platform.python_version()}, torch {torch.__version__}",
            f"- Command: `{command}`",
            "",
            "| id | fault | required | cases | reached | test |",
            "|---|---|---|---|---|---|",
            *(self._line(row) for row in FAULTS),
        ]
        return "\n".join([*lines, ""])

    def _line(self, row: str) -> str:
        fault, required, cases = FAULTS[row]
        found = self.reached.get(row)
        reached = "not run" if found is None else f"{found.done}/{found.of}"
        tests = "" if found is None else ", ".join(f"`{t}`" for t in found.tests)
        return f"| {row} | {fault} | {required} | {cases or 'every method'} | {reached} | {tests} |"


class Row:
    """Hands in the figure of one test; see `__call__`."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._figures: list[tuple[str, Any]] = request.node.user_properties
        self._test = f"{Path(request.node.path).name}::{request.node.originalname}"

    def __call__(self, row: str, done: int, of: int, missed: Sequence[Any] = ()) -> None:
        """`done` of `of` cases of a row withstood the fault; the test fails unless all did."""
        assert row in FAULTS
        self._figures.append((FIGURE, (row, done, of, self._test)))
        assert done == of, f"{row}: {done} of {of}; missed: {list(missed)[:5]}"

    def judge(self, row: str, wrong: Sequence[tuple[object, object]], of: int) -> None:
        """The figure where each case that failed is listed with what was wrong."""
        self(row, of - len(wrong), of, wrong)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("molere")
    group.addoption("--reliability", metavar="FILE", help="write the figures of the fault tests to a Markdown file")
    group.addoption("--share", type=float, default=1.0, help="share of the cases that take seconds each")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Reliability(config), "molere-reliability")


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    return Row(request)


@pytest.fixture
def count(request: pytest.FixtureRequest) -> int:
    """How many cases to try: the number of `counted`, of dear ones in the share that was asked for."""
    share = request.config.getoption("--share") if request.node.get_closest_marker("dear") else 1.0
    return max(1, round(share * request.param))
