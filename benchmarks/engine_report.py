"""The tables, targets and chart of the engine benchmark, from its measurements."""

import datetime
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol, cast

import engine_floor
from engine_models import ARCHITECTURES
from engine_ways import LR, WAYS

Cells = Mapping[str, Any]  # Any: what JSON holds

SHORT = {
    "molere": "molere",
    "approximate": "molere, less of the gradient",
    "peer": "peers",
}
COLOURS = {"molere": "#1f5fa8", "approximate": "#8fb8de", "peer": "#b0b0b0"}
FLOOR = 7 / 3
"""Seven forward passes over the three of an ERM step: the least that an exact meta-gradient of full batches takes."""


class Size(Protocol):
    """How much was measured."""

    @property
    def batch(self) -> int: ...
    @property
    def model(self) -> str: ...


def write(
    cells: Cells,
    models: Sequence[str],
    ways: Sequence[str],
    size: Size,
    about: Mapping[str, Any],
    load: float,
    out: Path | None,
) -> str:
    """The whole text; in a file, with its chart beside it, if there is one to write to."""
    chart = None if out is None else out.with_suffix(".png")
    drawn = out is not None and chart is not None and draw(cells, models, ways, chart)
    parts = [
        head(size, about, load),
        f"![Cost of each engine]({chart.name})\n" if drawn and chart is not None else "",
        summary(cells, models),
        targets(cells, models),
        floor(cells, models),
        *(steps(cells, model, ways) for model in models),
        runs(cells, size),
        growth(cells),
    ]
    text = "\n".join(part for part in parts if part)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    return text


def head(size: Size, about: Mapping[str, Any], load: float) -> str:
    """Date, machine, command, and how the numbers are to be read."""
    clock = "synchronised wall time" if "cpu" not in str(about.get("device", "cpu")) else "CPU time of the process"
    words = [Path(a).name if a.startswith("/") else a for a in sys.argv[1:]]
    return f"""# Cost and accuracy of a meta-gradient

{datetime.date.today()}; {about["machine"]}, one thread; load before {load:.2f}.
Command: `{shlex.join(["python", "benchmarks/engine.py", *words])}`

Batch {size.batch}, validation batch {size.batch}, float32 without TF32, plain SGD at {LR}; times are {clock}. An ERM
step is forward, backward and SGD in bare torch; "over ERM" is one classifier update with one meta update over the ERM
step timed just before it, the median of some rounds (least - most). "extra" is that less 1, "at Q = 5" is
1 + extra / 5. Memory is the peak of classifier, batches and all else that torch holds, over that of the ERM step. Error
and cosine are those of the per-example products < grad l_i, grad L_val(theta') > of one batch against double backward
in float64; classes are random patterns under noise, after three steps of ERM. Fused order: the real step is the one
looked through. Strict order: a virtual step, then the real one with the new weights (in the peers a second forward and
backward pass).
Ways marked * differentiate twice, which torch's default attention does not allow: they run with the plain ("math")
kernel on every classifier.
"""


# ---- steps


@dataclass(frozen=True)
class Found:
    """What is known of one way on one classifier."""

    ratios: Sequence[float]
    memory: float
    error: float
    cosine: float

    @property
    def over(self) -> float:
        """Median time over ERM."""
        return median(self.ratios)

    @property
    def extra(self) -> float:
        """Median time beyond ERM, in ERM steps."""
        return self.over - 1


def found_of(cells: Cells, model: str, way: str) -> Found | str | None:
    """The measurements, or why there are none; None: not asked for."""
    exact = cells.get(f"accuracy/{model}/{way}")
    if exact is None:
        return cells.get(f"refused/{model}")
    if "refused" in exact:
        return str(exact["refused"])
    rounds = [cells[k] for k in cells if k.startswith(f"time/{model}/")]
    ratios = [r[way][0] / r[way][1] for r in rounds if way in r]
    if not ratios:
        return None
    memory = cells[f"memory/{model}/{way}"] / cells[f"memory/{model}/erm"]
    return Found(ratios, memory, exact["error"], exact["cosine"])


def steps(cells: Cells, model: str, ways: Sequence[str]) -> str:
    """The table of one classifier."""
    title = ARCHITECTURES[model].title
    if (refused := cells.get(f"refused/{model}")) is not None:
        return f"## {title}\n\nNot measured: {refused}\n"
    found = {way: one for way in ways if (one := found_of(cells, model, way)) is not None}
    if not found:
        return ""
    rounds = [one for k, one in cells.items() if k.startswith(f"time/{model}/")]
    plain = [pair[1] for one in rounds for pair in one.values()]
    lines = [
        f"## {title}",
        "",
        f"ERM step: {median(plain) * 1000:.3g} ms, {cells[f'memory/{model}/erm']:.3g} MiB; {len(rounds)} rounds.",
        "",
        "| engine | over ERM | extra | at Q = 5 | memory over ERM | error | cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(way, one) for way, one in found.items()), ""])


def _line(way: str, one: Found | str) -> str:
    name = WAYS[way].title + (" *" if WAYS[way].second else "")
    if isinstance(one, str):
        return f"| {name} | {one.replace('|', '/')} | | | | | |"
    spread = f"{one.over:.2f} ({min(one.ratios):.2f} - {max(one.ratios):.2f})"
    tail = f"{one.memory:.2f} | {one.error:.1e} | {one.cosine:.4f}"
    return f"| {name} | {spread} | {one.extra:.2f} | {1 + one.extra / 5:.2f} | {tail} |"


# ---- whole runs


METHODS = {"lrwopt": "LRWOpt (feature heads, bank)", "lrw-random": "LRW-random", "mwn": "loss-weight net, strict"}
APPROXIMATE = {"suffix-2/3": "LRWOpt, meta_share 2/3", "val-1/2": "LRWOpt, validation batch halved"}


def over_erm(cells: Cells, model: str, name: str) -> list[float]:
    """Seconds of an epoch over ERM's epoch beside it, the first one of each run left out."""
    sets = [cells[k] for k in cells if k.startswith(f"runs/{model}/")]
    return [a / e for one in sets for a, e in zip(one[name][1:], one["erm"][1:], strict=True)]


def runs(cells: Cells, size: Size) -> str:
    """The table of whole runs."""
    if not over_erm_known(cells, size.model):
        return ""
    lines = [
        f"## Whole runs over ERM at equal updates, {size.model}",
        "",
        "Epochs but the first, without warm-up, by turns; images of CIFAR's shape with random labels, 100 classes.",
        "The estimator is one-sided: the probe of `auto`, four times in a run, would weigh much in one so short.",
        f"Each ratio is the median of {len(over_erm(cells, size.model, 'lrwopt/5'))} (least - most).",
        "",
        "| method | Q | over ERM | cosine of its products |",
        "|---|---|---|---|",
    ]
    plain = _cosine(cells, size.model, "one-sided")
    rows = [(title, f"{name}/{q}", q, plain) for name, title in METHODS.items() for q in (1, 5, 10)]
    rows += [(t, f"lrwopt {way}/5", 5, _cosine(cells, size.model, way)) for way, t in APPROXIMATE.items()]
    for title, name, q, cosine in rows:
        over = over_erm(cells, size.model, name)
        lines.append(f"| {title} | {q} | {median(over):.2f} ({min(over):.2f} - {max(over):.2f}) | {cosine} |")
    return "\n".join([*lines, ""])


def over_erm_known(cells: Cells, model: str) -> bool:
    """Whether whole runs were measured."""
    return any(k.startswith(f"runs/{model}/") for k in cells)


def _cosine(cells: Cells, model: str, way: str) -> str:
    found = cells.get(f"accuracy/{model}/{way}", {})
    return f"{found['cosine']:.4f}" if "cosine" in found else ""


def growth(cells: Cells) -> str:
    """The table of growth."""
    found: Mapping[str, float] = cells.get("growth", {})
    if not found:
        return ""
    lines = ["## Growth of a process in 2,000 meta updates of a small MLP", "", "| engine | MiB |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value:.2f} |" for name, value in found.items()), ""])


# ---- in short


COLUMNS = {
    "one-sided": "molere, one-sided",
    "exact": "molere, exact",
    "betty": "Betty",
    "higher": "higher",
    "torchopt": "TorchOpt",
    "functional-strict": "double backward",
    "original": "Meta-Weight-Net's code",
}
"""What the short table compares."""


def summary(cells: Cells, models: Sequence[str]) -> str:
    """Time, and in brackets memory, of a meta update with a classifier update over an ERM step, a row a classifier."""
    rows = [_short(cells, m) for m in models if isinstance(found_of(cells, m, "one-sided"), Found)]
    if not rows:
        return ""
    head = f"| time over ERM (memory over ERM) | {' | '.join(COLUMNS.values())} |"
    return "\n".join(["## In short", "", head, "|---" * (len(COLUMNS) + 1) + "|", *rows, ""])


def _short(cells: Cells, model: str) -> str:
    found = [found_of(cells, model, way) for way in COLUMNS]
    shown = [f"{one.over:.2f} ({one.memory:.2f})" if isinstance(one, Found) else "" for one in found]
    return f"| {ARCHITECTURES[model].title} | {' | '.join(shown)} |"


# ---- targets


def targets(cells: Cells, models: Sequence[str]) -> str:
    """Each target beside what was measured."""
    deep = [m for m in models if ARCHITECTURES[m].deep]
    rows: list[tuple[str, float, float, bool]] = []

    def worst(what: str, value: Callable[[Found], float], way: str, limit: float, among: Sequence[str]) -> None:
        each = {m: value(one) for m in among if isinstance(one := found_of(cells, m, way), Found)}
        each = {m: v for m, v in each.items() if math.isfinite(v)}
        if each:
            at = max(each, key=lambda m: each[m])
            rows.append((f"{what}: worst of {len(each)}, {at}", each[at], limit, True))

    worst("one-sided, fused, over ERM, conv nets and ViT", lambda f: f.over, "one-sided", 2.5, deep)
    worst("ghost, fused, over ERM, where allowed", lambda f: f.over, "ghost", 2.5, deep)
    if over_erm_known(cells, "resnet32"):
        over = median(over_erm(cells, "resnet32", "lrwopt/5"))
        rows.append(("LRWOpt, Q = 5, whole run over ERM, ResNet-32", over, 1.30, True))
        knob = median(over_erm(cells, "resnet32", "lrwopt suffix-2/3/5"))
        cosine = _cosine(cells, "resnet32", "suffix-2/3")
        rows.append((f"LRWOpt, Q = 5, meta_share 2/3 (cosine {cosine}), ResNet-32", knob, 1.25, True))
    ours = found_of(cells, "resnet32", "one-sided")
    for way, limit in PEERS.items():
        theirs = found_of(cells, "resnet32", way)
        if isinstance(theirs, Found) and isinstance(ours, Found):
            what = f"extra cost of {WAYS[way].title} over that of one-sided, ResNet-32"
            rows.append((what, theirs.extra / ours.extra, limit, False))
    worst("one-sided, peak memory over ERM, conv nets and ViT", lambda f: f.memory, "one-sided", 1.10, deep)
    if grown := cells.get("growth"):
        rows.append(("growth in 2,000 meta updates, MiB, worst engine", max(grown.values()), 1.0, True))
    for way in ("exact", "exact-strict"):
        found = {m: (found_of(cells, m, way), found_of(cells, m, "functional")) for m in models}
        each = {m: a.error / b.error for m, (a, b) in found.items() if isinstance(a, Found) and isinstance(b, Found)}
        if each:
            at = max(each, key=lambda m: each[m])
            what = f"{WAYS[way].title}, error over that of double backward in float32: worst of {len(each)}, {at}"
            rows.append((what, each[at], 2.0, True))
    worst("central, error of the products", lambda f: f.error, "central", 1e-3, models)
    worst("one-sided, error of the products", lambda f: f.error, "one-sided", 1e-2, models)
    if not rows:
        return ""
    lines = ["## Targets", "", "| what | measured | target | |", "|---|---|---|---|"]
    return "\n".join([*lines, *(_target(*row) for row in rows), ""])


PEERS = {
    "functional": 3.0,
    "higher": 3.0,
    "torchopt": 3.0,
    "functional-strict": 3.0,
    "higher-strict": 3.0,
    "torchopt-strict": 3.0,
    "original": 4.0,
    "betty": 1.25,
}
"""How many times the extra cost of ours is to be theirs, at least."""


def _target(what: str, value: float, limit: float, most: bool) -> str:
    met = value <= limit if most else value >= limit
    shown = f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.2f}"
    return f"| {what} | {shown} | {'<=' if most else '>='} {limit:g} | {'met' if met else '**missed**'} |"


def floor(cells: Cells, models: Sequence[str]) -> str:
    """The passes by themselves beside the one-sided update."""
    found = {m: found_of(cells, m, "one-sided") for m in models}
    measured = {m: one.over for m, one in found.items() if isinstance(one, Found)}
    return engine_floor.table(cells, {m: ARCHITECTURES[m].title for m in models}, measured)


# ---- the chart


def draw(cells: Cells, models: Sequence[str], ways: Sequence[str], path: Path) -> bool:
    """A panel for each classifier, a bar for each way; False if nothing is known."""
    known = {m: {w: f for w in ways if isinstance(f := found_of(cells, m, w), Found)} for m in models}
    known = {m: found for m, found in known.items() if found}
    if not known:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    plots: Any = cast(Any, pyplot)  # Any: its stubs are partial
    columns = min(2, len(known))
    rows = math.ceil(len(known) / columns)
    height = 1.2 + 0.3 * len(ways)
    figure, axes = plots.subplots(rows, columns, figsize=(7.4 * columns, height * rows + 0.9), squeeze=False)
    spare = list(axes.flat)
    for (model, found), axis in zip(known.items(), spare, strict=False):
        _panel(axis, ARCHITECTURES[model].title, found, [w for w in ways if w in WAYS])
    for axis in spare[len(known) :]:
        axis.axis("off")
    figure.suptitle(
        "One classifier update with one meta update, in ERM steps (shorter is better)", fontsize=14, y=0.995
    )
    handles = [Patch(color=COLOURS[kind], label=SHORT[kind]) for kind in COLOURS]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=11)
    figure.tight_layout(rect=(0, 0.35 / (height * rows + 0.9), 1, 0.995))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plots.close(figure)
    return True


def _panel(axis: Any, title: str, found: Mapping[str, Found], ways: Sequence[str]) -> None:
    widest = max(max(one.ratios) for one in found.values())
    for place, way in enumerate(ways):
        one = found.get(way)
        if one is None:
            axis.text(
                0.03 * widest,
                place,
                "not possible or not measured",
                va="center",
                fontsize=9,
                color="#777777",
                backgroundcolor="white",
            )
            continue
        axis.barh(place, one.over, color=COLOURS[WAYS[way].kind], height=0.72)
        axis.plot([min(one.ratios), max(one.ratios)], [place, place], color="#333333", linewidth=1.2)
        axis.text(max(one.over, *one.ratios) + 0.015 * widest, place, f"{one.over:.2f}", va="center", fontsize=9)
    axis.axvline(1, color="#333333", linewidth=1)
    axis.axvline(FLOOR, color="#c0392b", linewidth=1, linestyle=":")
    axis.text(FLOOR, -0.75, "7 passes", color="#c0392b", fontsize=8, ha="center", va="bottom")
    axis.text(1, -0.75, "ERM", fontsize=8, ha="center", va="bottom")
    axis.set_yticks(range(len(ways)), [WAYS[w].title for w in ways], fontsize=9)
    axis.set_ylim(len(ways) - 0.4, -0.8)
    axis.set_xlim(0, 1.12 * widest)
    axis.set_title(title, fontsize=12, pad=14)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
