"""Meter: how far several runs are; a bar on a terminal, else a line now and then, on standard error. Needs no torch."""

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

EVERY = 10.0
"""Seconds between two lines of progress without a terminal."""


class Meter:
    """Progress of several runs: a bar with the time left on a terminal, else a line in ten seconds at most."""

    def __init__(self, total: int, *, shows: bool, bars: bool) -> None:
        self.total, self.shows, self.draws = total, shows, bars
        self.fractions: dict[object, float] = {}
        self.kept = 0.0
        self.ended = 0
        self.started = self.last = time.monotonic()
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Meter":
        if self.shows and self.draws:
            from rich.console import Console as Screen
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(), TextColumn("left"))
            self._bars = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.description}"),
                console=Screen(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bars.add_task("", total=1.0)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, run: object, state: str, fraction: float, metrics: Mapping[str, float], name: str) -> None:
        """News of one run: kept from before, running, done or failed; the fraction of it that is done."""
        self.fractions[run] = 1.0 if state in ("kept", "done", "failed") else fraction
        self.kept += state == "kept"
        self.ended += state in ("kept", "done", "failed")
        words = f"{self.ended}/{self.total} runs, {name} {_last(metrics)}".rstrip()
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=self.fraction, description=words)
        elif self.shows and time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            print(f"{self.fraction:4.0%} {_left(self.left)} {words}", file=sys.stderr, flush=True)

    @property
    def fraction(self) -> float:
        """Of all runs, in [0, 1]."""
        return min(1.0, sum(self.fractions.values()) / max(1, self.total))

    @property
    def left(self) -> float:
        """Seconds until the end at the present pace; NaN while that is not known."""
        done, todo = sum(self.fractions.values()) - self.kept, self.total - sum(self.fractions.values())
        early = done < 0.02 * self.total  # the first updates say little
        return math.nan if early else (time.monotonic() - self.started) * todo / done


def _left(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left," if hours else f"{minutes}:{rest:02} left,"


def _last(metrics: Mapping[str, float]) -> str:
    for name, word in (("accuracy", "accuracy"), ("select_accuracy", "validation accuracy"), ("train_loss", "loss")):
        if (value := metrics.get(name)) is not None and math.isfinite(value):
            return f"{word} {100 * value:.1f} %" if "accuracy" in word else f"{word} {value:.3f}"
    return ""
