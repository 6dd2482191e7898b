"""What a meta-gradient costs and how exact it is, beside its peers: Markdown tables and a chart.

    python benchmarks/engine.py [--part steps|runs|growth|floor|all] [--models A,B] [--engines A,B] [--device cpu|cuda]
                                [--quick] [--state FILE] [--out docs/results/engine.md]

steps    per classifier and engine: one meta update and one classifier update over an ERM step, peak memory over an ERM
         step, error and cosine of the per-example products against double backward in float64
runs     LRWOpt, LRW-random and a loss-weight net over ERM at equal updates, ResNet-32, images of CIFAR's shape
growth   by how much a process grows in 2,000 meta updates of a small net
floor    what the passes of an update cost by themselves, in bare torch

Peers are optional: `pip install "molere[bench]"`, and Betty, which declares Python 3.10 at most but runs on later ones,
by `pip install --no-deps --ignore-requires-python betty-ml`. What is not installed or fails is shown with its reason.

Steps are timed in rounds, each engine right after an ERM step, and a ratio is taken of such a pair; CPU time of the
process, or on a GPU synchronised wall time. Peaks are of classifier, batches and what torch allocates. With --state,
each measurement is kept as soon as it is made, and an interrupted benchmark goes on where it was. One thread; on a GPU
also the large classifiers. Reduced precision (TF32) is off.
"""

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory writes to stderr

import torch
from engine_floor import parts_of
from engine_models import ARCHITECTURES, FOR_GPU, Problem, problem_of
from engine_report import write
from engine_runs import report_growth, runs_of_a_set, synchronise
from engine_ways import WAYS, erm, loss_net, oracle, products
from timing import load_average
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from molere.ledger import machine
from molere.storage import environment

Cell = Any  # Any: what JSON holds


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    batch: int = 64
    rounds: int = 3
    model: str = "resnet32"
    images: int = 640
    epochs: int = 3
    sets: int = 1
    growth: int = 2_000


QUICK = Size(batch=8, rounds=1, model="mlp", images=80, epochs=2, growth=40)


class State:
    """Measurements by name, each kept in a file as soon as it is made."""

    def __init__(self, path: Path | None, settings: Mapping[str, Cell]) -> None:
        self._path, self._settings = path, dict(settings)
        self.cells: dict[str, Cell] = {}
        if path is not None and path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != self._settings:
                raise SystemExit(f"{path} was measured with {found['settings']}; give another --state")
            self.cells = found["cells"]

    def cell(self, name: str, measure: Callable[[], Cell], *, fresh: bool = False) -> Cell:
        """What is known, or else what `measure` finds."""
        if name not in self.cells or fresh:
            print(name, file=sys.stderr)
            self.cells[name] = measure()
            if self._path is not None:
                partial_file = self._path.with_suffix(".tmp")
                partial_file.write_text(json.dumps({"settings": self._settings, "cells": self.cells}, indent=1))
                partial_file.replace(self._path)
        return self.cells[name]


# ---- steps


def steps(state: State, models: Sequence[str], ways: Sequence[str], size: Size, device: torch.device) -> None:
    """All engines on all classifiers."""
    for model in models:
        _steps_of(state, model, ways, size, device)
        gc.collect()


def _steps_of(state: State, model: str, ways: Sequence[str], size: Size, device: torch.device) -> None:
    if _is_known(state.cells, model, ways, size.rounds):
        return
    try:
        problem = problem_of(ARCHITECTURES[model], size.batch, device)
    except Exception as error:
        state.cell(f"refused/{model}", partial(reason, error), fresh=True)
        return
    state.cells.pop(f"refused/{model}", None)
    accuracy(state, model, ways, problem)
    able = [way for way in ways if "refused" not in state.cells[f"accuracy/{model}/{way}"]]
    calls = {"erm": partial(erm, problem)} | {way: partial(_step, problem, way) for way in able}
    steppers = {name: Stepper(make) for name, make in calls.items()}
    for name, stepper in steppers.items():
        batches = 2 if name in able and WAYS[name].kind == "peer" else 1  # molere fetches the second one as it goes
        state.cell(f"memory/{model}/{name}", partial(peak, stepper, problem, batches))
    times(state, model, steppers, size.rounds, device)


def _is_known(cells: Mapping[str, Cell], model: str, ways: Sequence[str], rounds: int) -> bool:
    exact = {way: cells.get(f"accuracy/{model}/{way}") for way in ways}
    able = {way for way, found in exact.items() if found is None or "refused" not in found}
    timed = [set[str](cells.get(f"time/{model}/{turn}", ())) for turn in range(rounds)]
    held = all(f"memory/{model}/{way}" in cells for way in ("erm", *able))
    return held and all(able <= turn for turn in timed) and None not in exact.values()


def _step(problem: Problem, way: str) -> Callable[[], object]:
    return WAYS[way].make(problem, loss_net(problem.device))


class Stepper:
    """A way of taking updates, made and called once when it is first needed."""

    def __init__(self, make: Callable[[], Callable[[], object]]) -> None:
        self._make, self._call, self._called = make, None, False

    def made(self) -> Callable[[], object]:
        """The update, which notes that it was called."""
        if self._call is None:
            self._call = self._make()
        self._called = True
        return self._call

    def ready(self) -> Callable[[], object]:
        """The update, which has been called before."""
        if not self._called:
            self.made()()
        return self.made()


def accuracy(state: State, model: str, ways: Sequence[str], problem: Problem) -> None:
    """Error |p - p64| / |p64| and cosine of the products p of one batch, or why there are none."""
    truth: list[Tensor] = []

    def compared(way: str) -> Cell:
        try:
            found = products(problem, WAYS[way].make).double()
        except Exception as error:
            return {"refused": reason(error)}
        if not truth:
            truth.append(_truth(problem))
        return {
            "error": _size(found - truth[0]) / _size(truth[0]),
            "cosine": _cosine(found, truth[0]),
        }

    for way in ways:
        state.cell(f"accuracy/{model}/{way}", partial(compared, way))


def _size(a: Tensor) -> float:
    return float(a.square().sum()) ** 0.5


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum()) / (_size(a) * _size(b))


def _truth(problem: Problem) -> Tensor:
    try:
        return oracle(problem)
    except torch.OutOfMemoryError:
        return torch.full((len(problem.y),), float("nan"), dtype=torch.float64, device=problem.device)


def times(state: State, model: str, steppers: Mapping[str, Stepper], rounds: int, device: torch.device) -> None:
    """For each round and way: [seconds of an update with its meta update, seconds of the ERM step just before]."""
    ways = [name for name in steppers if name != "erm"]

    def measured() -> Cell:
        calls = {name: stepper.ready() for name, stepper in steppers.items()}
        spent: dict[str, list[float]] = {}
        for way in ways:
            over = seconds(calls["erm"], device)
            spent[way] = [seconds(calls[way], device), over]
        return spent

    for turn in range(rounds):
        name = f"time/{model}/{turn}"
        state.cell(name, measured, fresh=not set(ways) <= set(state.cells.get(name, ())))


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """CPU time of a call; on a GPU wall time until all is done."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    synchronise(device)
    started = clock()
    call()
    synchronise(device)
    return clock() - started


def peak(stepper: Stepper, problem: Problem, batches: int) -> float:
    """The most that is held in the first update, in MiB: classifier, batches, and what torch allocates in it."""
    call = stepper.made()
    held = [*problem.model.parameters(), *problem.model.buffers(), *[problem.x] * batches]
    return allocated(call, problem.device) + sum(t.nbytes for t in held) / 2**20


def allocated(work: Callable[[], object], device: torch.device) -> float:
    """The most that torch holds beyond what it holds before, in MiB, while some work is done."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    found: Any = cast(Any, profiled).profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    return max(accumulate(change for _, change in changes)) / 2**20


def reason(error: Exception) -> str:
    """An error in one line, without the paths of a machine."""
    lines = str(error).strip().splitlines() or [""]
    line = re.sub(r"(/[\w.+-]+)+/", "", lines[0])
    return f"{type(error).__name__}: {line}"[:220]


# ---- runs


def runs(state: State, size: Size, device: torch.device) -> None:
    """Seconds of each epoch of each training, all by turns; and the cosines of the two approximations."""
    for turn in range(size.sets):
        state.cell(f"runs/{size.model}/{turn}", partial(runs_of_a_set, size, device))
    partly = ("one-sided", "suffix-2/3", "val-1/2")
    if any(f"accuracy/{size.model}/{way}" not in state.cells for way in partly):
        accuracy(state, size.model, partly, problem_of(ARCHITECTURES[size.model], size.batch, device))


# ---- growth


def growth(state: State, size: Size, device: torch.device) -> None:
    """MiB by which a process of its own grows in so many meta updates, by engine."""
    command = [sys.executable, __file__, "--device", str(device), "--growth-of", str(size.growth)]
    state.cell("growth", lambda: json.loads(subprocess.check_output(command)))


# ---- floor


def floor(state: State, models: Sequence[str], size: Size, device: torch.device) -> None:
    """Seconds of each pass of an update by itself, a list a round."""
    for model in models:
        if f"refused/{model}" not in state.cells:
            state.cell(
                f"floor/{model}",
                lambda model=model: parts_of(problem_of(ARCHITECTURES[model], size.batch, device), size.rounds),
            )


# ---- the command


def main() -> None:
    """Measure what was asked for and is not known yet; write it down."""
    arguments = _arguments()
    size = QUICK if arguments.quick else Size()
    given = {k: getattr(arguments, k) for k in ("batch", "rounds", "images", "epochs", "sets")}
    size = replace(size, **{k: v for k, v in given.items() if v})
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if arguments.growth_of:
        report_growth(arguments.growth_of, device)
        return
    models, ways = _names(arguments, device)
    about = {"machine": machine(environment(device)), "batch": size.batch, "quick": arguments.quick}
    state = State(arguments.state, about)
    load = float(state.cell("load", load_average))  # when the first measurement began
    parts: dict[str, Callable[[], None]] = {
        "steps": lambda: steps(state, models, ways, size, device),
        "runs": lambda: runs(state, size, device),
        "growth": lambda: growth(state, size, device),
        "floor": lambda: floor(state, models, size, device),
    }
    for part in parts if arguments.part == "all" else [arguments.part]:
        parts[part]()
    text = write(state.cells, models, ways, size, about, load, arguments.out)
    print(text)


def _names(arguments: argparse.Namespace, device: torch.device) -> tuple[list[str], list[str]]:
    standard = [m for m in ARCHITECTURES if device.type == "cuda" or m not in FOR_GPU]
    standard = ["mlp", "cnn"] if arguments.quick else standard
    models = arguments.models.split(",") if arguments.models else standard
    ways = arguments.engines.split(",") if arguments.engines else list(WAYS)
    for given, known in (models, ARCHITECTURES), (ways, WAYS):
        if strange := [name for name in given if name not in known]:
            raise SystemExit(f"unknown {strange[0]!r}; use {', '.join(known)}")
    return models, ways


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a meta-gradient costs and how exact it is.")
    parser.add_argument(
        "--part", choices=["steps", "runs", "growth", "floor", "all"], default="all", help="what to measure"
    )
    parser.add_argument("--models", metavar="A,B", help=f"of {', '.join(ARCHITECTURES)}")
    parser.add_argument("--engines", metavar="A,B", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--out", type=Path, metavar="FILE", help="table to write; the chart goes beside it, as .png")
    parser.add_argument("--state", type=Path, metavar="FILE", help="measurements so far, to go on from")
    parser.add_argument("--batch", type=int, metavar="N", help="examples in a batch")
    parser.add_argument("--rounds", type=int, metavar="N", help="timed rounds of each classifier")
    parser.add_argument("--images", type=int, metavar="N", help="images that whole runs train on")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of whole runs, two or more")
    parser.add_argument("--sets", type=int, metavar="N", help="sets of whole runs")
    parser.add_argument("--growth-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
