"""What the main job costs, beside what it should: one Markdown table.

    python benchmarks/main_job.py [--part demo|ratio|split|memory|loop|all] [--out docs/results/main-job.md]

demo     the whole of `molere demo`, as a user types it
ratio    seconds per classifier update of each method over ERM's: ResNet-20, images of CIFAR's shape, Q = 5
split    time LRWOpt spends on new splits, as a share of its epochs
memory   peak resident memory of a process that trains, over that of one that trains by ERM
loop     throughput of ERM through molere over that of a loop written by hand

Trainings that are compared take turns in one process, on one thread, so that a change of the machine's pace meets all
of them; a ratio is taken within each turn. CPU time is that of the process and suffers less from other processes than
wall time does; the machine should be quiet all the same. Images and their labels are random: only time is looked at.
Linux only (/proc).
"""

import argparse
import datetime
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from molere.data.augment import augmented, normalisation
from molere.data.pool import Data, TensorPool
from molere.data.sources import SOURCES, load
from molere.ledger import machine
from molere.method import Method, Run
from molere.methods.lrwopt import LRWOpt, LRWOptState
from molere.models import build
from molere.recipe import Recipe
from molere.run import fit
from molere.split import Split
from molere.steps import chunks
from molere.storage import environment

Times = npt.NDArray[np.float64]
"""Seconds by clock, CLOCKS along the last axis."""
CLOCKS = ("CPU time", "wall time")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    images: int = 640
    epochs: int = 4
    digits_epochs: int = 60
    demo_epochs: int | None = None
    repeats: Mapping[str, int]


FULL = Size(repeats={"demo": 3, "ratio": 5, "split": 5, "memory": 3, "loop": 7})
QUICK = Size(images=128, epochs=3, digits_epochs=3, demo_epochs=1, repeats=dict.fromkeys(("ratio", "split", "loop"), 2))


@dataclass(frozen=True)
class Row:
    """One line of the table: all samples of a quantity, and the most or least its median may be."""

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
        if self.most is None and self.least is None:
            return ""
        sign, bound = ("<=", self.most) if self.most is not None else (">=", self.least or 0.0)
        reached = median(self.samples) <= bound if sign == "<=" else median(self.samples) >= bound
        return f"{sign} {self.form.format(bound)}: {'reached' if reached else 'missed'}"


def by_clock(
    what: str, samples: Sequence[Times], form: str = "{:.2f}", most: float | None = None, least: float | None = None
) -> list[Row]:
    """A row for each clock."""
    return [
        Row(f"{what}, {clock}", [float(s[i]) for s in samples], form, most, least) for i, clock in enumerate(CLOCKS)
    ]


def now() -> Times:
    """What the clocks show."""
    return np.array([time.process_time(), time.perf_counter()])


def taking_turns(jobs: Mapping[str, Callable[[], Times]], turns: int) -> dict[str, list[Times]]:
    """What every job measured, each in turn, `turns` times."""
    found: dict[str, list[Times]] = {name: [] for name in jobs}
    for turn in range(turns):
        for name, job in jobs.items():
            print(f"turn {turn + 1} of {turns}: {name}", file=sys.stderr)
            found[name].append(job())
    return found


def seconds_of_epochs(method: str | Method[LRWOptState], data: Data, model: str, recipe: Recipe) -> Times:
    """Seconds of each epoch of one training [epochs, clock]; the first includes the set-up."""
    marks = [now()]
    fit(method, data=data, model=model, recipe=recipe, observers=[lambda _: marks.append(now())])
    return np.diff(marks, axis=0)


# ---- data


def cifar_shaped(images: int) -> Data:
    """Random images with random labels, as CIFAR-100 in all but content: crops, flips, 100 classes, its recipe."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    y = torch.randint(0, 100, (images,), generator=generator)
    pool = TensorPool(x, y, num_classes=100, **SOURCES["cifar100"].pixels)
    return Data("CIFAR-shaped", pool, None, {"test": pool.subset(torch.arange(64))})


def digits() -> Data:
    """The embedded digits, without the part that the best update is selected by."""
    return replace(load("digits", scenario="clean"), select=None)


def recipe_of(source: str, epochs: int) -> Recipe:
    """The recipe that suits a data set."""
    return Recipe(**{**SOURCES[source].recipe, "epochs": epochs, "device": "cpu"})  # pyright: ignore[reportArgumentType]


# ---- the five parts


def demo(size: Size) -> list[Row]:
    """Processes that run `molere demo` from start to end, each in a new folder."""
    arguments = [] if size.demo_epochs is None else ["--epochs", str(size.demo_epochs)]
    samples = [_seconds_of_demo(arguments) for _ in range(size.repeats.get("demo", 1))]
    return [
        Row("`molere demo`, seconds, wall time", [float(s[1]) for s in samples], "{:.1f}", most=60),
        Row("`molere demo`, seconds, CPU time of all its processes", [float(s[0]) for s in samples], "{:.1f}"),
    ]


def _seconds_of_demo(arguments: Sequence[str]) -> Times:
    command = [sys.executable, "-c", "import sys; from molere.cli import main; sys.exit(main())", "demo", "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        started = _children_and_wall()
        subprocess.run([*command, "--out", f"{folder}/demo", *arguments], check=True, stdout=subprocess.DEVNULL)
        return _children_and_wall() - started


def _children_and_wall() -> Times:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([used.ru_utime + used.ru_stime, time.perf_counter()])


COMPARED = ("lrwopt[warmup=0.0]", "lrwopt", "lrw-random", "molere")


def ratio(size: Size) -> list[Row]:
    """Methods over ERM at equal updates; LRWOpt without its warm-up too, which is cheaper than what follows it."""
    data, recipe = cifar_shaped(size.images), recipe_of("cifar100", size.epochs)
    jobs = {m: partial(seconds_of_epochs, m, data, "resnet20", recipe) for m in ("erm", *COMPARED)}
    found = taking_turns(jobs, size.repeats["ratio"])
    updates = (size.epochs - 1) * (size.images // recipe.batch_size)
    rows = by_clock("ResNet-20, ERM, seconds per update", [t[1:].sum(0) / updates for t in found["erm"]], "{:.3f}")
    for method in COMPARED:
        limit = 1.6 if method.startswith("lrwopt") else None
        first = 0 if method == "lrwopt" else 1
        which = "whole run" if first == 0 else "all epochs but the first"
        over = [m[first:].sum(0) / e[first:].sum(0) for m, e in zip(found[method], found["erm"], strict=True)]
        rows += by_clock(f"ResNet-20, `{method}` over ERM, {which}", over, most=limit)
    return rows


class TimedLRWOpt(LRWOpt):
    """LRWOpt that notes what each new split takes."""

    spent: ClassVar[list[Times]] = []

    def generate_split(self, run: Run, state: LRWOptState) -> Split:
        """As LRWOpt's."""
        started = now()
        split = super().generate_split(run, state)
        self.spent.append(now() - started)
        return split


def split(size: Size) -> list[Row]:
    """The share of the split pass, from the bank and as a fresh pass over the pool."""
    data, recipe = cifar_shaped(size.images), recipe_of("cifar100", size.epochs)
    jobs = {
        name: partial(_share_of_splits, TimedLRWOpt(warmup=0.0, exact_pass=exact), data, recipe)
        for name, exact in (("bank", False), ("`exact_pass`", True))
    }
    found = taking_turns(jobs, size.repeats["split"])
    what = "ResNet-20, LRWOpt, split pass as a share of an epoch"
    return by_clock(f"{what}, bank", found["bank"], "{:.2%}", most=0.03) + by_clock(
        f"{what}, `exact_pass`", found["`exact_pass`"], "{:.2%}"
    )


def _share_of_splits(method: TimedLRWOpt, data: Data, recipe: Recipe) -> Times:
    method.spent.clear()
    epochs = seconds_of_epochs(method, data, "resnet20", recipe)
    return np.sum(method.spent[1:], axis=0) / epochs[1:].sum(0)  # the bank is empty when the first split is made


MEASURED = ("erm", "lrwopt", "lrwopt[exact_pass=true]", "lrw-random", "molere")


def memory(size: Size) -> list[Row]:
    """Peaks of processes that train one method each."""
    command = [sys.executable, __file__, "--images", str(size.images), "--epochs", str(size.epochs), "--memory-of"]
    peak: dict[str, list[float]] = {m: [] for m in MEASURED}
    growth: dict[str, list[float]] = {m: [] for m in MEASURED}
    for _ in range(size.repeats.get("memory", 1)):
        for method in MEASURED:
            done = subprocess.run([*command, method], check=True, stdout=subprocess.PIPE)
            before, most = json.loads(done.stdout)
            peak[method].append(most)
            growth[method].append(most - before)
    rows = [Row("ResNet-20, ERM, peak memory, MiB", peak["erm"], "{:.0f}")]
    rows += [Row("ResNet-20, ERM, growth of memory while training, MiB", growth["erm"], "{:.0f}")]
    for method in MEASURED[1:]:
        limit = 1.3 if method == "lrwopt" else None
        for what, of in ("peak memory", peak), ("growth of memory while training", growth):
            over = [m / e for m, e in zip(of[method], of["erm"], strict=True)]
            rows.append(Row(f"ResNet-20, `{method}` over ERM, {what}", over, most=limit))
    return rows


def report_memory(method: str, size: Size) -> None:
    """In a process of its own: print memory before training and the peak until its last update, in MiB."""
    data, recipe = cifar_shaped(size.images), recipe_of("cifar100", size.epochs)
    before, peaks = resident("VmRSS"), list[float]()  # the tests at the end of a run are not counted
    fit(method, data=data, model="resnet20", recipe=recipe, observers=[lambda _: peaks.append(resident("VmHWM"))])
    print(json.dumps([before, peaks[-1]]))


def resident(what: str) -> float:
    """VmRSS (now) or VmHWM (the most so far) of this process, in MiB."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float("nan") if found is None else int(found[1]) / 1024


def loop(size: Size) -> list[Row]:
    """ERM through molere and by hand, on images and on digits, the first epochs left out."""
    images = partial(_throughput, cifar_shaped(size.images), "resnet20", recipe_of("cifar100", size.epochs))
    table = partial(_throughput, digits(), "mlp", recipe_of("digits", size.digits_epochs))
    turns = size.repeats["loop"]
    return images("ResNet-20, CIFAR-shaped", turns) + table("MLP, digits", turns)


def _throughput(data: Data, model: str, recipe: Recipe, what: str, turns: int) -> list[Row]:
    assert isinstance(data.train, TensorPool), "the hand-written loop reads its tensors"
    jobs = {
        "molere": partial(seconds_of_epochs, "erm", data, model, recipe),
        "by hand": partial(by_hand, data.train, model, recipe),
        "by hand, fused": partial(by_hand, data.train, model, recipe, fused=True),
    }
    found = {name: [t[1:].sum(0) for t in times] for name, times in taking_turns(jobs, turns).items()}
    rows: list[Row] = []
    for name, limit in ("by hand", 0.95), ("by hand, fused", None):
        over = [hand / ours for hand, ours in zip(found[name], found["molere"], strict=True)]
        optimizer = "fused `torch.optim.SGD`" if "fused" in name else "`torch.optim.SGD`"
        rows += by_clock(f"{what}, throughput over a bare loop with {optimizer}", over, least=limit)
    return rows


def by_hand(pool: TensorPool, model: str, recipe: Recipe, *, fused: bool | None = None) -> Times:
    """Seconds of each epoch [epochs, clock] of a loop without schedule, records or anything else."""
    net = _channels_last(build(model, num_classes=pool.num_classes, input_shape=pool.shape), recipe)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused
    )
    scale, shift = normalisation(pool.x, pool.mean, pool.std)
    generator, updates = torch.Generator().manual_seed(0), len(pool) // recipe.batch_size
    marks = [now()]
    for _ in range(recipe.epochs):
        order = torch.randperm(len(pool), generator=generator)
        for index in chunks(order, recipe.batch_size)[:updates]:
            x, y = pool.x[index], pool.y[index]
            if scale is not None and shift is not None:
                x = augmented(x, pool.augment, pool.crop_padding, generator)
                x = x.to(torch.float32).mul_(scale).add_(shift)
            if recipe.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        marks.append(now())
    return np.diff(marks, axis=0)


def _channels_last(net: nn.Module, recipe: Recipe) -> nn.Module:
    return net.to(memory_format=torch.channels_last) if recipe.channels_last else net  # pyright: ignore


# ---- the table

PARTS: Mapping[str, Callable[[Size], list[Row]]] = {
    "demo": demo,
    "ratio": ratio,
    "split": split,
    "memory": memory,
    "loop": loop,
}
HEAD = """# Cost of the main job

{date}; {machine}; load at the start {load:.2f}. Command: `{command}`

| what | median | min - max | n | target |
|---|---|---|---|---|
"""


def main() -> None:
    """Measure what was asked for; print it, and write it down."""
    arguments = _arguments()
    size = QUICK if arguments.quick else FULL
    size = replace(size, images=arguments.images or size.images, epochs=arguments.epochs or size.epochs)
    if arguments.repeat:
        size = replace(size, repeats=dict.fromkeys(PARTS, arguments.repeat))
    torch.set_num_threads(1)
    if arguments.memory_of:
        report_memory(arguments.memory_of, size)
        return
    head = HEAD.format(
        date=datetime.date.today(),
        machine=machine(environment()),
        load=os.getloadavg()[0],
        command=shlex.join(["python", *sys.argv]),
    )
    rows = [row for part in (PARTS if arguments.part == "all" else [arguments.part]) for row in PARTS[part](size)]
    table = head + "\n".join(map(str, rows)) + "\n"
    print(table)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What the main job costs.")
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all", help="what to measure (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file that the table is written to")
    parser.add_argument("--repeat", type=int, metavar="N", help="measure everything N times")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--images", type=int, metavar="N", help="CIFAR-shaped images to train on")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over them, two or more")
    parser.add_argument("--memory-of", metavar="METHOD", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
