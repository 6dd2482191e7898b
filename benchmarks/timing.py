"""Timing for benchmarks: trainings side by side on one machine, and a table of what was measured."""

import datetime
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt
import torch

from molere.ledger import machine
from molere.storage import environment

Times = npt.NDArray[np.float64]
"""Seconds, with one number for each of CLOCKS along the last axis."""
CLOCKS = ("CPU time", "wall time")

Training = Callable[[Callable[[], None]], object]
"""What calls its argument at the end of each epoch."""


def now() -> Times:
    """What the clocks show; CPU time is that of this process."""
    return np.array([time.process_time(), time.perf_counter()])


def side_by_side(trainings: Mapping[str, Training]) -> dict[str, Times]:
    """Seconds of each epoch of each training [epochs, clock], run by turns on one thread, an epoch each.

    A change of the machine's pace therefore meets all of them. The first epoch includes the set-up, the last one
    nothing that comes after it.
    """
    steppers = {name: Stepper(training) for name, training in trainings.items()}
    going = list(steppers.values())
    while going:
        going = [stepper for stepper in going if stepper.advance()]
    return {name: np.array(stepper.epochs) for name, stepper in steppers.items()}


class Stepper:
    """A training in a thread of its own, which goes on for an epoch when told to and notes how long that took."""

    def __init__(self, training: Training) -> None:
        self.epochs: list[Times] = []
        self._training = training
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._over, self._error = False, None
        threading.Thread(target=self._run, daemon=True).start()

    def advance(self) -> bool:
        """Go on to the end of the next epoch, or of all; whether there is more to come."""
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error
        return not self._over

    def _run(self) -> None:
        torch.set_num_threads(1)  # a setting of each thread
        try:
            self._wait()
            self._training(self._pause)
        except BaseException as error:
            self._error = error
        self._over = True
        self._stopped.release()

    def _wait(self) -> None:
        self._go.acquire()
        self._resumed = now()

    def _pause(self) -> None:
        self.epochs.append(now() - self._resumed)
        self._stopped.release()
        self._wait()


def repeated(times: int, what: str, measure: Callable[[], Mapping[str, Times]]) -> dict[str, list[Times]]:
    """All results of a measurement, by name."""
    found: dict[str, list[Times]] = {}
    for turn in range(times):
        print(f"{what}: {turn + 1} of {times}", file=sys.stderr)
        for name, result in measure().items():
            found.setdefault(name, []).append(result)
    return found


@dataclass(frozen=True)
class Row:
    """One line of the table: all samples of a quantity, and the most or least its median should be."""

    what: str
    samples: Sequence[float]
    form: str = "{:.2f}"
    most: float | None = None
    least: float | None = None

    def __str__(self) -> str:
        middle, low, high = (self.form.format(f(self.samples)) for f in (median, min, max))
        return f"| {self.what} | {middle} | {low} - {high} | {len(self.samples)} | {self.target} |"

    @property
    def target(self) -> str:
        """The target, and whether it was reached; empty if there is none."""
        middle = median(self.samples)
        if self.most is not None:
            return f"<= {self.form.format(self.most)}: {'reached' if middle <= self.most else 'missed'}"
        if self.least is not None:
            return f">= {self.form.format(self.least)}: {'reached' if middle >= self.least else 'missed'}"
        return ""


def by_clock(
    what: str, samples: Sequence[Times], form: str = "{:.2f}", most: float | None = None, least: float | None = None
) -> list[Row]:
    """A row for each clock."""
    return [
        Row(f"{what}, {clock}", [float(s[i]) for s in samples], form, most, least) for i, clock in enumerate(CLOCKS)
    ]


def table(title: str, rows: Sequence[Row], load: float) -> str:
    """The rows as Markdown, with date, machine, load average before the measurements, and command."""
    command = shlex.join(["python", *sys.argv])
    lines = [
        f"# {title}",
        "",
        f"{datetime.date.today()}; {machine(environment())}, one thread; load before {load:.2f}.",
        f"Command: `{command}`",
        "",
        "| what | median | min - max | n | target |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(str, rows), ""])


def load_average() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]
