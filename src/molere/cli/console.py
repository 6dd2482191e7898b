"""What a command says while it works: lines on standard error, bars on a terminal, results on standard output."""

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

EVERY = 10.0
"""Seconds between two lines of progress without a terminal."""


class Console:
    """News go to standard error, results to standard output; quiet drops the news."""

    def __init__(self, *, quiet: bool = False, progress: bool = True) -> None:
        self.quiet, self.shows_progress = quiet, progress and not quiet

    def say(self, line: str) -> None:
        """A line of news, at once."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def result(self, text: str) -> None:
        """A result."""
        print(text, flush=True)

    def meter(self, total: int) -> "Meter":
        """Progress of so many runs."""
        return Meter(total, shows=self.shows_progress, bars=sys.stderr.isatty())


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


def summary(result: Mapping[str, object]) -> str:
    """A single run in a few lines: metrics at the last update and at the best by validation."""
    last, best = (cast(Mapping[str, float], result[k]) for k in ("last", "best"))
    cost = cast(Mapping[str, float], result["cost"])
    seconds = f" in {cost['seconds']:.1f} s" if "seconds" in cost else ""
    head = f"{result['label']}, seed {result['seed']}: {result['updates']:,} updates{seconds} ({result['stopped']})"
    width = max([len(name) for name in last], default=0)
    rows = [f"{'':<{width}}  {'last':>8}  {'best':>8}  (best: epoch {result['best_epoch']} by validation)"]
    rows += [f"{name:<{width}}  {_number(name, last[name])}  {_number(name, best.get(name))}" for name in last]
    return "\n".join([head, *rows])


def _number(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return f"{'-':>8}"
    fraction = name.split("/")[-1].split("[")[0] in ("accuracy", "balanced_accuracy", "worst_class", "worst_group")
    return f"{100 * value:>6.2f} %" if fraction else f"{value:>8.4f}"


def finite(value: object) -> object:
    """A value for JSON: what is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in cast(list[object], value)]
    return value
