"""What the main job costs, beside what it should: one Markdown table.

    python benchmarks/main_job.py [--part demo|ratio|split|memory|loop|all] [--out docs/results/main-job.md]

demo     the whole of `molere demo`, as a user types it
ratio    seconds per classifier update of each method over ERM's: ResNet-20, images of CIFAR's shape, Q = 5
split    time LRWOpt spends on new splits, as a share of its epochs
memory   peak resident memory of a process that trains, over that of one that trains by ERM
loop     throughput of ERM through molere over that of a loop written by hand

Trainings that are compared advance by turns in one process, an epoch each; n counts such sets of trainings, and a ratio
is taken within each. CPU time is that of the process and suffers less from other processes than wall time does; the
machine should be quiet all the same. Images and their labels are random: only time is looked at. Linux only (/proc).
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from timing import Row, Times, Training, by_clock, load_average, now, repeated, side_by_side, table
from torch import nn
from torch.nn import functional as F

from molere.data.augment import augmented, normalisation
from molere.data.pool import Data, TensorPool
from molere.data.sources import SOURCES, load
from molere.method import Method, Run
from molere.methods.lrwopt import LRWOpt, LRWOptState
from molere.models import build
from molere.recipe import Recipe
from molere.run import fit
from molere.split import Split
from molere.steps import chunks


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    images: int = 640
    epochs: int = 4
    digits_epochs: int = 60
    demo: Sequence[str] = ()
    repeats: Mapping[str, int]


FULL = Size(repeats={"demo": 3, "ratio": 5, "split": 3, "memory": 3, "loop": 7})
QUICK = Size(
    images=128,
    epochs=3,
    digits_epochs=3,
    demo=("--epochs", "1"),
    repeats={"demo": 1, "ratio": 1, "split": 1, "memory": 1, "loop": 2},
)


# ---- data and trainings


def cifar_shaped(images: int) -> Data:
    """Random images with random labels, as CIFAR-100 in all but content: crops, flips, 100 classes, its recipe."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    y = torch.randint(0, 100, (images,), generator=generator)
    pool = TensorPool(x, y, num_classes=100, **SOURCES["cifar100"].pixels)
    return Data("CIFAR-shaped", pool, None, {"test": pool.subset(torch.arange(64))}, default_model="resnet20")


def digits() -> Data:
    """The embedded digits, without the part that the best update is selected by."""
    return replace(load("digits", scenario="clean"), select=None)


def recipe_of(source: str, epochs: int) -> Recipe:
    """The recipe that suits a data set."""
    return Recipe(**{**SOURCES[source].recipe, "epochs": epochs, "device": "cpu"})  # pyright: ignore[reportArgumentType]


def training(method: str | Method[LRWOptState], data: Data, recipe: Recipe) -> Training:
    """A training by a method, through molere."""
    return lambda tick: fit(method, data=data, recipe=recipe, observers=[lambda _: tick()])


def by_hand(data: Data, recipe: Recipe, *, fused: bool | None = None) -> Training:
    """The same by ERM in a bare loop, without schedule, records or anything else."""
    pool = data.train
    assert isinstance(pool, TensorPool), "a bare loop reads tensors"

    def loop(tick: Callable[[], None]) -> None:
        net = build(data.default_model, num_classes=pool.num_classes, input_shape=pool.shape)
        net = _channels_last(net) if recipe.channels_last else net
        optimizer = torch.optim.SGD(
            net.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused
        )
        scale, shift = normalisation(pool.x, pool.mean, pool.std)
        generator, updates = torch.Generator().manual_seed(0), len(pool) // recipe.batch_size
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
            tick()

    return loop


def _channels_last(net: nn.Module) -> nn.Module:
    return net.to(memory_format=torch.channels_last)  # pyright: ignore  # torch's stubs know no keyword form


# ---- the five parts


def demo(size: Size) -> list[Row]:
    """Processes that run `molere demo` from start to end, each in a new folder."""
    found = repeated(size.repeats["demo"], "demo", lambda: {"demo": _seconds_of_demo(size.demo)})["demo"]
    return [
        Row("`molere demo`, seconds, wall time", [float(s[1]) for s in found], "{:.1f}", most=60),
        Row("`molere demo`, seconds, CPU time of all its processes", [float(s[0]) for s in found], "{:.1f}"),
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
    """Methods over ERM at equal updates; LRWOpt also without its warm-up, which is cheaper than what follows it.

    The estimator is one-sided: the probe of `auto` takes two ERM steps four times a run, much in one so short.
    """
    data = cifar_shaped(size.images)
    short, recipe = (replace(recipe_of("cifar100", n), estimator="one-sided") for n in (2, size.epochs))
    side_by_side({m: training(m, data, short) for m in ("erm", *COMPARED)})  # what torch does once in a process
    methods = {m: training(m, data, recipe) for m in ("erm", *COMPARED)}
    found = repeated(size.repeats["ratio"], "ratio", lambda: side_by_side(methods))
    an_epoch = size.images // recipe.batch_size
    each = [t[1:].sum(0) / ((size.epochs - 1) * an_epoch) for t in found["erm"]]
    rows = by_clock("ResNet-20, ERM, seconds per update", each, "{:.3f}")
    whole = f"whole run of {size.epochs * an_epoch} updates, set-up included"
    for method in COMPARED:
        first, which = (0, whole) if method == "lrwopt" else (1, "all epochs but the first")
        over = [m[first:].sum(0) / e[first:].sum(0) for m, e in zip(found[method], found["erm"], strict=True)]
        limit = 1.6 if method.startswith("lrwopt") else None
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
    methods = {"bank": TimedLRWOpt(warmup=0.0), "`exact_pass`": TimedLRWOpt(warmup=0.0, exact_pass=True)}
    shares = {name: partial(_share_of_splits, training(m, data, recipe)) for name, m in methods.items()}
    found = repeated(size.repeats["split"], "split", lambda: {name: share() for name, share in shares.items()})
    what = "ResNet-20, LRWOpt, split pass as a share of an epoch"
    of_bank = by_clock(f"{what}, bank", found["bank"], "{:.2%}", most=0.03)
    return of_bank + by_clock(f"{what}, `exact_pass`", found["`exact_pass`"], "{:.2%}")


def _share_of_splits(training: Training) -> Times:
    spent = TimedLRWOpt.spent
    spent.clear()
    epochs = side_by_side({"": training})[""]
    return np.sum(spent[1:], axis=0) / epochs[1:].sum(0)  # the bank is empty when the first split is made


MEASURED = ("erm", "lrwopt", "lrwopt[exact_pass=true]", "lrw-random", "molere")


def memory(size: Size) -> list[Row]:
    """Peaks of processes that train one method each, and by how much they exceed what was in use before training."""
    command = [sys.executable, __file__, "--images", str(size.images), "--epochs", str(size.epochs), "--memory-of"]

    def measure() -> dict[str, Times]:
        return {m: np.array(json.loads(subprocess.check_output([*command, m]))) for m in MEASURED}

    found = {name: np.array(both) for name, both in repeated(size.repeats["memory"], "memory", measure).items()}
    rows: list[Row] = []
    for i, what in enumerate(("peak memory", "growth of memory while training")):
        rows.append(Row(f"ResNet-20, ERM, {what}, MiB", found["erm"][:, i].tolist(), "{:.0f}"))
        for method in MEASURED[1:]:
            over = found[method][:, i] / found["erm"][:, i]
            limit = 1.3 if method == "lrwopt" and what == "peak memory" else None
            rows.append(Row(f"ResNet-20, `{method}` over ERM, {what}", over.tolist(), most=limit))
    return rows


def report_memory(method: str, size: Size) -> None:
    """In a process of its own: print the peak until the last update and its excess over the state before, in MiB."""
    data, recipe = cifar_shaped(size.images), recipe_of("cifar100", size.epochs)
    before, peaks = resident("VmRSS"), list[float]()
    fit(method, data=data, recipe=recipe, observers=[lambda _: peaks.append(resident("VmHWM"))])
    print(json.dumps([peaks[-1], peaks[-1] - before]))  # the tests at the end of a run come after the last event


def resident(what: str) -> float:
    """VmRSS (now) or VmHWM (the most so far) of this process, in MiB."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float("nan") if found is None else int(found[1]) / 1024


def loop(size: Size) -> list[Row]:
    """ERM through molere and by hand, on images and on digits, the first epochs left out."""
    images = _throughput("ResNet-20, CIFAR-shaped", cifar_shaped(size.images), recipe_of("cifar100", size.epochs), size)
    return images + _throughput("MLP, digits", digits(), recipe_of("digits", size.digits_epochs), size)


def _throughput(what: str, data: Data, recipe: Recipe, size: Size) -> list[Row]:
    loops = {
        "molere": training("erm", data, recipe),
        "`torch.optim.SGD`": by_hand(data, recipe),
        "fused `torch.optim.SGD`": by_hand(data, recipe, fused=True),
    }
    found = repeated(size.repeats["loop"], f"loop, {what}", lambda: side_by_side(loops))
    seconds = {name: [t[1:].sum(0) for t in times] for name, times in found.items()}
    rows: list[Row] = []
    for name, limit in ("`torch.optim.SGD`", 0.95), ("fused `torch.optim.SGD`", None):
        over = [hand / ours for hand, ours in zip(seconds[name], seconds["molere"], strict=True)]
        rows += by_clock(f"{what}, throughput over a bare loop with {name}", over, least=limit)
    return rows


PARTS: Mapping[str, Callable[[Size], list[Row]]] = {
    "demo": demo,
    "ratio": ratio,
    "split": split,
    "memory": memory,
    "loop": loop,
}


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
    load, parts = load_average(), PARTS if arguments.part == "all" else [arguments.part]
    text = table("Cost of the main job", [row for part in parts for row in PARTS[part](size)], load)
    print(text)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


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
