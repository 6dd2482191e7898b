"""Rows N1, N2 and N6: numbers that are no longer finite, weights that collapse, memory that does not grow."""

import importlib
import inspect
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from molere import models, registry
from molere.data.pool import Batch, Data, DatasetPool, TensorPool
from molere.errors import NumericsError
from molere.metaweights import MetaWeights
from molere.method import Run
from molere.methods.erm import ERM
from molere.methods.lrwopt import LRWOpt
from molere.opening import Setup, open_run
from molere.recipe import Recipe
from molere.run import fit
from molere.split import Split
from molere.steps import Taken
from molere.storage.checkpoint import load_latest
from molere.weighting import Weights
from reliability import counted

pytestmark = pytest.mark.faults

SIZE, BATCH, EPOCHS = 96, 16, 4
PER_EPOCH = SIZE // BATCH
AT = 14
"""The update at which something breaks, in the third epoch."""


def points() -> tuple[Tensor, Tensor]:
    y = torch.arange(SIZE) % 3
    return torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(0)) + y[:, None], y


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def recipe(**more: Any) -> Recipe:
    return Recipe(**{"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.05, "device": "cpu", "save_every": 7, **more})


# ---- N1


@dataclass(frozen=True, kw_only=True)
class Broken(LRWOpt):
    """LRWOpt in which a value that is not finite gets into something once."""

    what: str = "classifier"
    value: str = "nan"

    def step(self, run: Run, state: Any, batch: Batch) -> Taken:
        left = self.__dict__.setdefault("left", [1])
        if run.updates >= AT and left[0] > 0 and self.what in ("classifier", "weigher", "splitter"):
            left[0] -= 1
            with torch.no_grad():
                next(run.learners[self.what].model.parameters()).view(-1)[0] = float(self.value)
        if run.updates == AT and left[0] > 0 and self.what == "gradient":
            left[0] -= 1
            seen = run.forward(batch)
            return run.update(seen, along=torch.full_like(seen.logits.detach(), float(self.value)))
        return super().step(run, state, batch)


class Items(Dataset[tuple[Tensor, int]]):
    """Examples of which one, number 17, is not finite the first `times` times it is read after the first reading."""

    def __init__(self, value: float, times: int) -> None:
        (self.x, self.y), self.value, self.left = points(), value, times
        self.targets = self.y

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        x = self.x[at].clone()
        if at == 17 and self.left > 0:
            self.left -= 1
            x[2] = float(self.value)
        return x, int(self.y[at])


BLAMED = {
    "classifier": ("of the classifier",),
    "weigher": ("of the weigher",),
    "splitter": ("of the splitter",),
    "gradient": ("the gradient of the classifier", "parameter 0.weight of the classifier"),
    "data": ("the data of example 17",),
}
N1 = [
    (what, value, policy)
    for what in BLAMED
    for value in (math.nan, math.inf)
    for policy in ("stop", "skip", "rollback")
]


def broken_data(value: float, times: int) -> Data:
    x, y = points()
    pool = DatasetPool(Items(value, times), ids=np.arange(SIZE))
    return Data("points", pool, None, {"test": TensorPool(x, y)})


def withstands(what: str, value: float, policy: str, folder: Path) -> str | None:
    """What was wrong about a run in which something breaks; None if all was as it should be."""
    x, y = points()
    pool = TensorPool(x, y)
    given = broken_data(value, 2) if what == "data" else Data("points", pool, None, {"test": pool})
    method: Any = "erm" if what == "data" else Broken(what=what, value=str(value), q=2, delta=0.2)
    problem: str | None = None
    try:
        found = fit(method, data=given, model=net, recipe=recipe(on_nonfinite=policy), out=folder, label="broken")
    except NumericsError as error:
        problem = str(error)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    told = [e for e in events if e["event"] in ("skipped", "rolled back")]
    said = [problem or "", *(e["error"] for e in told)]
    if not any(blamed in s for blamed in BLAMED[what] for s in said):
        return f"the culprit is not named: {said}"
    if "\n" in "".join(said):
        return "more than one line"
    if policy == "stop":
        return None if problem is not None and not told and is_good(folder) else f"did not stop well: {problem}"
    if problem is not None:  # a parameter that stays broken ends a run that only skips
        skips = policy == "skip" and what in ("classifier", "weigher", "splitter")
        ends = "in a row were skipped" in problem or f"of the {what} is not finite" in problem  # not to be saved
        return None if skips and ends and is_good(folder) else problem
    finite = all(bool(torch.isfinite(p).all()) for p in found.classifier.parameters())
    return None if finite and told and found.updates == EPOCHS * PER_EPOCH else "did not recover"


def is_good(folder: Path) -> bool:
    """Whether the newest checkpoint can be loaded and is of before the fault, all of its networks finite."""
    loaded = load_latest(folder / "checkpoints")
    return loaded is None or all(bool(torch.isfinite(t).all()) for t in tensors(loaded[1]["run"]["learners"]))


def tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(inner)


def test_what_stops_being_finite_is_named_and_the_policy_followed(tmp_path: Path, row: Any) -> None:
    wrong = [(case, found) for i, case in enumerate(N1) if (found := withstands(*case, tmp_path / str(i)))]
    row.judge("N1", wrong, len(N1))


METHODS = [
    *registry.METHODS, "lrw-random[order=strict]", "lrwopt[exact_pass=true]", "molere[mode=learned]",
    "molere[expect=noise]", "bilaw[adversarial=true]", "fsr[mixup=true]", "jtt[mode=weight]", "mbr[margins=present]",
]  # fmt: skip
N1_DATA = [
    (method, value, policy)
    for value in (math.nan, math.inf)
    for policy in ("skip", "stop", "rollback")
    for method in METHODS
]


def names_the_example(method: str, value: float, policy: str, folder: Path) -> str | None:
    """What was wrong about a run of a method with an example that is never finite."""
    given = broken_data(value, 10**9)
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "save_every": None}
    problem = ""
    try:
        found = fit(
            method, data=given, model=net, out=folder, label="broken", report=False,
            recipe=recipe(**settings, on_nonfinite=policy),
        )  # fmt: skip
    except NumericsError as error:
        problem = str(error)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    told = [e["error"] for e in events if e["event"] in ("skipped", "rolled back", "left out")]
    said = [*told, *([problem] if problem else [])]
    if not said or not all(s.startswith("the data of example 17 are not finite") and "\n" not in s for s in said):
        return f"other than example 17 is named: {said}"
    if policy != "skip":
        return None if problem else "went on"
    if problem:
        return f"ended: {problem}"
    finite = all(bool(torch.isfinite(t).all()) for t in found.classifier.state_dict().values())
    return None if finite and found.updates == 3 * SIZE // 8 else "a classifier that is not finite"


@counted(6, len(N1_DATA), dear=True)
def test_every_method_names_an_example_that_is_not_finite(count: int, tmp_path: Path, row: Any) -> None:
    tried = N1_DATA[:: max(1, len(N1_DATA) // count)][:count]
    found = [(case, names_the_example(*case, tmp_path / str(i))) for i, case in enumerate(tried)]
    row.judge("N1", [(case, said) for case, said in found if said], len(tried))


# ---- N2

FALL_BACK = ("lrw-easy", "lrw-random", "lrw-hard", "lrwopt", "molere", "mwn", "mwn-imbalance", "bilaw")
"""Methods with a fallback; molere where its weights are learned."""
ONE = ("none", *range(9))
N2 = [(method, given) for given in ONE for method in FALL_BACK]


def collapsed(like: Tensor, given: str | int) -> Tensor:
    """All weight on one example, or none on any, on the graph of the weights they replace."""
    w = torch.zeros_like(like)
    if given != "none":
        w[int(given) % len(w)] = float(len(w))
    return w + 0 * like


def test_all_methods_that_can_fall_back_are_tried_and_the_page_names_them() -> None:
    asks = {m for m, entry in registry.METHODS.items() if "run.trusted(" in source(entry)}
    assert asks == {*FALL_BACK}
    page = (Path(__file__).parents[1] / "docs" / "faults.md").read_text("utf-8")
    assert all(f"`{m}`" in page for m in (*FALL_BACK, "l2r", "fsr", "gdw", "maple", "stablenet"))


def source(entry: registry.Entry) -> str:
    kind = getattr(importlib.import_module(entry.module), entry.attribute)
    return "".join(inspect.getsource(c) for c in kind.__mro__ if c.__module__.startswith("molere.m"))


@counted(8, len(N2))
def test_weights_that_collapse_are_equal_ones_and_logged(count: int, row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = points()
    pool = TensorPool(x, y)
    now: list[str | int] = ["none"]
    for owner, name in ((Weights, "__call__"), (MetaWeights, "weights")):
        whole = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, whole=whole: collapsed(whole(*given), now[0]))
    wrong = list[tuple[object, object]]()
    tried = (N2 if count == len(N2) else [(m, ONE[i % 3]) for i, m in enumerate(FALL_BACK)])[:count]
    for method, one in tried:
        now[0] = one
        said = {"lrwopt": "lrwopt[warmup=0]", "molere": "molere[mode=learned,warmup=0]"}.get(method, method)
        settings = recipe(epochs=3, save_every=None)
        found = fit(said, data=Data("points", pool, None, {"test": pool}), model=net, recipe=settings, label="c")
        logged = [(r.get("weights_fallback"), r.get("effective_sample_size")) for r in found.history]
        learned = logged[1:] if method == "molere" else logged  # it warms up for an epoch
        if any(fallback != PER_EPOCH or size is None or abs(size - 1) > 1e-5 for fallback, size in learned):
            wrong.append(((method, one), logged))
    row.judge("N2", wrong, len(tried))


# ---- N6


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_over_two_thousand_updates(row: Any) -> None:
    x, y = points()
    pool = TensorPool(x, y)
    taken: list[float] = []
    epochs = 2400 // PER_EPOCH

    def watch(_: Any) -> None:
        taken.append(resident())

    method = LRWOpt(q=5, delta=0.2)
    fit(
        method, data=Data("points", pool, None, {"test": pool}), model=net, label="long",
        recipe=recipe(epochs=epochs, save_every=None), observers=(watch,),
    )  # fmt: skip
    first, last = taken[len(taken) // 6], taken[-1]
    row("N6", int(last - first <= 1.0), 1, [f"{last - first:.2f} MiB more"])


@pytest.mark.slow
def test_the_peak_is_at_most_a_third_above_plain_training(row: Any) -> None:
    plain, meta = (peak(remember=remember) for remember in (False, True))
    row("N6", int(meta <= 1.3 * plain), 1, [f"{meta / plain:.2f} times that of plain updates"])


def peak(*, remember: bool) -> int:
    """Bytes of all tensors at the highest point of an update, parameters and momentum included."""
    x, y = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    pool = TensorPool(x, y)
    device = torch.device("cpu")
    build = partial(models.build, "resnet20", num_classes=10, input_shape=(3, 32, 32))
    given = Data("images", pool, None, {"test": pool})
    run = open_run(Setup(ERM(), given, build, "own", Recipe(batch_size=64, device="cpu"), 0, "peak", device), no_scouts)
    everything = torch.arange(64)
    run.use(Split(everything, everything, shared=True), at=0)
    for _ in range(2):
        update(run, remember)
    held = sum(2 * p.nbytes for p in run.classifier.params.values()) + x.nbytes
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        update(run, remember)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    steps = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return held + max(accumulate(steps))


def update(run: Run, remember: bool) -> None:
    """A plain update, or one with its meta-gradient."""
    seen = run.forward(run.train_batch(), remember=remember)
    taken = run.update(seen, torch.ones(len(seen)), remember=remember)
    if remember:
        run.weight_gradient(run.look_back(taken))
    run.updates += 1


def no_scouts(run: object, wanted: object) -> list[Tensor]:
    raise AssertionError("no scouts here")
