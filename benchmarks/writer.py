"""What checkpoints cost a training: one Markdown table.

    python benchmarks/writer.py [--repeats 3] [--share 1] [--out docs/results/writer.md]

A training waits for its checkpoints while the state is copied, while the save before is still being written, and at its
end; the rest is done by a thread. Two figures for each case:

inside      time spent waiting, taken around each of these places, over the time of the training
whole run   a run that saves over one whose saves do nothing, taken in pairs by turns; the median of the pairs

CPU time is that of the thread that trains: what the writing thread uses is told apart. Wall time includes what the disk
and other processes take. Images and labels are random: only time is looked at.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import Times, load_average

from molere.data.pool import Data, TensorPool
from molere.ledger import machine
from molere.models import build
from molere.recipe import Recipe
from molere.run import fit
from molere.storage import RunFolder, environment
from molere.training import Training


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training: a method on a classifier, and when it saves."""

    name: str
    model: str
    shape: tuple[int, ...]
    method: str
    examples: int
    epochs: int
    save_every: int | None = None

    def data(self) -> Data:
        """Random images of ten classes."""
        x = torch.randn(self.examples, *self.shape, generator=torch.Generator().manual_seed(0))
        pool = TensorPool(x, torch.arange(self.examples) % 10)
        return Data("random", pool, None, {"test": pool.subset(torch.arange(64))})


CASES = (
    Case(name="MLP, as it comes", model="mlp", shape=(64,), method="lrw-random", examples=2048, epochs=110),
    Case(name="MLP, a save every 500 updates", model="mlp", shape=(64,), method="lrw-random", examples=2048, epochs=110,
         save_every=500),
    Case(name="ResNet-20, as it comes", model="resnet20", shape=(3, 32, 32), method="molere", examples=512, epochs=6),
    Case(name="ResNet-20, a save every 8 updates", model="resnet20", shape=(3, 32, 32), method="molere", examples=512,
         epochs=6, save_every=8),
)  # fmt: skip


def now() -> Times:
    """CPU time of this thread, and wall time."""
    return np.array([time.thread_time(), time.perf_counter()])


@dataclass
class Waited:
    """What a training waited for its checkpoints, and how many there were."""

    spent: Times = field(default_factory=lambda: np.zeros(2))
    saves: int = 0
    depth: int = 0

    def timed(self, call: Callable[..., Any], counts: int) -> Callable[..., Any]:
        """The call, its time counted unless it is made by another one that is."""

        def measured(*arguments: Any, **more: Any) -> Any:
            began, self.depth, self.saves = now(), self.depth + 1, self.saves + counts
            try:
                return call(*arguments, **more)
            finally:
                self.depth -= 1
                self.spent += (now() - began) * (self.depth == 0)

        return measured


@contextmanager
def measured(saves: bool) -> Generator[Waited]:
    """Trainings within are measured; without `saves` theirs do nothing."""
    waited, save, flush = Waited(), Training.save, RunFolder.flush
    Training.save = waited.timed(save, 1) if saves else lambda self: None
    RunFolder.flush = waited.timed(flush, 0)
    try:
        yield waited
    finally:
        Training.save, RunFolder.flush = save, flush


@dataclass
class Run:
    """What one training took: both clocks, what it waited, what all of its threads used."""

    took: Times
    waited: Waited
    process: float


def run(case: Case, saves: bool) -> Run:
    """One training in a folder of its own; the time of its loop alone."""
    took, loop = np.zeros(2), Training.loop

    def timed(self: Training) -> None:
        began = now()
        loop(self)
        took[:] = now() - began

    recipe = Recipe(epochs=case.epochs, batch_size=64, lr=0.05, device="cpu", save_every=case.save_every)
    make = partial(build, case.model, num_classes=10, input_shape=case.shape)
    Training.loop = timed
    try:
        with tempfile.TemporaryDirectory() as folder, measured(saves) as waited:
            began = time.process_time()
            fit(case.method, data=case.data(), model=make, recipe=recipe, out=folder, report=False)
            return Run(took, waited, time.process_time() - began)
    finally:
        Training.loop = loop


def pair(case: Case, saves_first: bool) -> tuple[Run, Run]:
    """A run that saves and one that does not, in either order: the machine may get slower or faster."""
    found = {saves: run(case, saves) for saves in (saves_first, not saves_first)}
    return found[True], found[False]


def row(case: Case, repeats: int) -> str:
    """One line of the table."""
    run(replace(case, epochs=2), True)  # what is loaded and built once counts for nobody
    pairs = [pair(case, turn % 2 == 0) for turn in range(repeats)]
    inside = np.median([100 * a.waited.spent / a.took for a, _ in pairs], axis=0)
    ratio = np.median([100 * (a.took / b.took - 1) for a, b in pairs], axis=0)
    seconds, saves = median(float(a.took[1]) for a, _ in pairs), median(a.waited.saves for a, _ in pairs)
    each = median(1000 * float(a.waited.spent[1]) / a.waited.saves for a, _ in pairs)
    figures = f"{inside[0]:.2f} % | {inside[1]:.2f} % | {ratio[0]:+.1f} % | {ratio[1]:+.1f} %"
    return f"| {case.name} | {case.method} | {seconds:.0f} s | {saves:.0f} | {each:.1f} ms | {figures} |"


INTRODUCTION = """\
# Checkpoints

What a training waits for its checkpoints (target: 2 % at most). *inside* is the time around each place where it waits,
over the time of its loop; *whole run* compares it with one whose saves do nothing, medians of pairs taken by turns. CPU
time is that of the training's thread; wall time includes the disk and whatever else runs on the machine.
"""
HEAD = """\
| training | method | wall time | saves | waited each | inside, CPU | inside, wall | whole run, CPU | whole run, wall |
|---|---|---|---|---|---|---|---|---|"""


def page(repeats: int, share: float) -> str:
    """The table, with machine and load."""
    before = load_average()
    rows = [row(replace(case, epochs=max(2, round(share * case.epochs))), repeats) for case in CASES]
    load = f"Load average before {before:.1f}, after {load_average():.1f}."
    command = f"python benchmarks/writer.py --repeats {repeats} --share {share:g}"
    about = [f"- Date: {datetime.now():%Y-%m-%d}", f"- Machine: {machine(environment('cpu'))}; one thread. {load}"]
    about += [f"- Command: `{command}`; {repeats} pairs for each line"]
    return "\n".join([INTRODUCTION, *about, "", HEAD, *rows, ""])


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the epochs")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    text = page(asked.repeats, asked.share)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
