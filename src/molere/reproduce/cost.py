"""Appendix E: what each method takes in time, floating-point operations and memory, as multiples of ERM.

Every method trains for the same number of classifier updates. Operations are counted by torch.utils.flop_counter in a
run of their own, first stages included; times are of further runs, the methods in turn, and their medians are compared.
Memory is what tensors hold at their peak in a short run, added up from the profiler's events on a CPU, where the size
of the process says nothing about a method; on a GPU it is the device's own count.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Any, cast  # Any: a Data, whose module brings torch

from molere.errors import MolereError
from molere.reproduce.page import NONE, grid

METHODS = (
    "erm",
    "lrw-random@paper",
    "lrw-hard@paper",
    "lrwopt@paper",
    "lrw-hard",
    "lrwopt",
    "molere",
    "mwn",
    "l2r",
    "fsr",
    "gdw",
    "bilaw",
    "maple",
    "mbr",
    "rho-loss",
    "stablenet",
)
PRINTED: Mapping[str, tuple[float | None, float | None]] = {
    "lrwopt@paper": (1.6, 1.7),
    "lrw-hard@paper": (2.4, 2.3),
    "mwn": (1.4, None),
    "l2r": (1.4, None),
}
"""Multiples of ERM that are printed: time and operations."""
BASE = "erm"
SHORT = 2
"""Epochs of the run in which memory is measured; the profiler keeps every event."""


@dataclass(frozen=True)
class Spent:
    """What one method took: seconds of each repetition, operations of one run, tensors at their peak in MiB."""

    method: str
    seconds: tuple[float, ...]
    flops: float
    peak_mib: float


@dataclass(frozen=True)
class Setting:
    """What is trained: data, classifier, and how."""

    data: Any
    model: str
    train: Mapping[str, Any]
    words: str


def measured(
    methods: Sequence[str], setting: Setting, repeats: int, say: Callable[[str], None] = lambda _: None
) -> tuple[list[Spent], dict[str, str]]:
    """What each method takes, and why some have no figures. The first of all runs, uncounted, warms up."""
    seconds: dict[str, list[float]] = {m: [] for m in methods}
    flops, failed, peaks = dict[str, float](), dict[str, str](), dict[str, float]()
    for m in methods:
        say(f"operations and memory of {m}")
        try:
            flops[m], peaks[m] = _operations(m, setting), _peak(m, setting)
        except MolereError as error:
            failed[m] = str(error)
    for turn in range(repeats):
        say(f"times, turn {turn + 1} of {repeats}")
        for m in flops:
            seconds[m].append(_once(m, setting)[0])
    return [Spent(m, tuple(seconds[m]), flops[m], peaks[m]) for m in flops], failed


def _operations(method: str, setting: Setting) -> float:
    """Floating-point operations of a run, first stages included (a multiplication and an addition are two)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _once(method, setting)
    return float(counter.get_total_flops())


def _peak(method: str, setting: Setting) -> float:
    """The most that tensors hold beyond what they held before, in MiB, in a run of a few epochs."""
    from torch.profiler import ProfilerActivity, profile

    short = Setting(setting.data, setting.model, {**setting.train, "epochs": SHORT}, setting.words)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        on_device = _once(method, short)[1]
    if on_device == on_device:
        return on_device
    events = cast(Any, profiled).profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(change for _, change in changes)) / 2**20


def _once(method: str, setting: Setting) -> tuple[float, float]:
    """Seconds of a run with its first stages, and the peak memory of the device; NaN on a CPU."""
    from molere.run import fit

    started = time.perf_counter()
    result = fit(method, data=setting.data, model=setting.model, recipe=setting.train)
    seconds, device = time.perf_counter() - started, next(result.classifier.parameters()).device
    return seconds, float("nan") if device.type == "cpu" else float(result.cost.peak_mib)


def markdown(spent: Sequence[Spent], failed: Mapping[str, str], setting: Setting, about: Mapping[str, str]) -> str:
    """The page."""
    base = next((s for s in spent if s.method == BASE), None)
    rows = [_row(s, base) for s in spent]
    heads = ["method", "time x ERM", "printed", "operations x ERM", "printed", "peak memory x ERM", "seconds", "GFLOP"]
    parts = [
        "# Cost of each method over ERM (appendix E)",
        "\n".join(f"- {name}: {text}" for name, text in about.items() if text),
        f"{setting.words}. All methods make the same number of classifier updates; times and operations are of whole "
        "runs with their first stages and the test at the end. Times are medians, with the range of all repetitions.",
        grid(heads, rows),
        "Operations are those of matrix products and convolutions, as torch counts them. The printed figures are means "
        "over the data sets of figure 1; the printed times of MWN and L2R fit a weight update every 5 updates (Q = 5). "
        f"Memory is what tensors hold at their peak in {SHORT} epochs, beyond the data; on a GPU, the device's peak.",
        *(["Not measured: " + "; ".join(f"{m} ({why})" for m, why in failed.items())] if failed else []),
        "## Claims",
        "\n".join(f"- {line}" for line in verdicts(spent)),
    ]
    return "\n\n".join(parts) + "\n"


def _row(s: Spent, base: Spent | None) -> list[str]:
    time_printed, flops_printed = PRINTED.get(s.method, (None, None))
    low, high = min(s.seconds, default=float("nan")), max(s.seconds, default=float("nan"))
    return [
        f"`{s.method}`",
        _times(_middle(s), None if base is None else _middle(base)),
        _shown(time_printed),
        _times(s.flops, None if base is None else base.flops),
        _shown(flops_printed),
        _times(s.peak_mib, None if base is None else base.peak_mib),
        f"{_middle(s):.2f} ({low:.2f} to {high:.2f})",
        f"{s.flops / 1e9:.2f}",
    ]


def _middle(s: Spent) -> float:
    return median(s.seconds) if s.seconds else float("nan")


def _times(value: float, base: float | None) -> str:
    return NONE if not base or value != value else f"{value / base:.2f}"


def _shown(printed: float | None) -> str:
    return NONE if printed is None else f"{printed:g}"


def verdicts(spent: Sequence[Spent]) -> list[str]:
    """The printed orders: LRWOpt costs less than LRW-Hard, more than ERM."""
    by = {s.method: s for s in spent}
    found = list[str]()
    for cheap, dear in (("erm", "lrwopt@paper"), ("lrwopt@paper", "lrw-hard@paper"), ("mwn", "lrw-hard@paper")):
        if cheap in by and dear in by:
            pair = (by[cheap], by[dear])
            found.append(f"{cheap} takes less than {dear}: time **{_order(*pair)}**, operations **{_flops(*pair)}**")
    return found


def _order(cheap: Spent, dear: Spent) -> str:
    """By all repetitions: held if every one of the cheap is below every one of the dear."""
    if not cheap.seconds or not dear.seconds:
        return "not run"
    if max(cheap.seconds) < min(dear.seconds):
        return "held"
    return "reversed" if min(cheap.seconds) > max(dear.seconds) else "undecided"


def _flops(cheap: Spent, dear: Spent) -> str:
    return "held" if cheap.flops < dear.flops else "reversed"
