"""The page of theorem 1: the values of all parts, the two orders, and the parts that rules and MOLERE choose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast  # Any: matplotlib

import numpy as np

from molere.reproduce import theorem
from molere.reproduce.page import grid
from molere.reproduce.theorem import COPIES, INPUTS, LABELS, POINTS, Counts, K, Numbers
from molere.statistics import mean_interval

TIED = (4, 11)
"""The two points at one place with different labels."""
EPOCHS = 150
TRAIN_SHARE, VAL_SHARE = 0.3, 0.8
METHODS: Mapping[str, str] = {"lrwopt": "the learned split", "lrwopt@paper": "the learned split, as published"}


@dataclass(frozen=True)
class Found:
    """Everything that the page says, in numbers."""

    values: Numbers
    """Least mean loss on every part; all losses here are means over the part."""
    best: Counts
    max_min: float
    min_max: theorem.MinMax
    pairs: float
    """Largest difference over parts between the loss trained for by weights phi(x, y) and the least one."""
    one_label: tuple[float, float]
    """A part with one label of the tied input: least loss, and the loss reached with phi(x)."""
    hardest: float
    learned: Mapping[str, Sequence[tuple[Counts, float]]]
    """Method -> for each seed the copies of each point that validate, and their least loss."""

    @property
    def gap(self) -> float:
        """min-max - max-min, never below zero."""
        return self.min_max.value / K - self.max_min


def found(seeds: Sequence[int] = range(5), epochs: int = EPOCHS, stride: int = 1) -> Found:
    """Solve everything; a few seconds, and a little for each seed. stride: check every so many parts of eq. 2."""
    every = theorem.parts()
    values = theorem.least_loss(every.astype(np.float64)) / K
    one = every[:, TIED[0]] + every[:, TIED[1]] == 1
    single = every[one][int(values[one].argmax())]
    return Found(
        values=values,
        best=every[int(values.argmax())],
        max_min=float(values.max()),
        min_max=theorem.min_max(),
        pairs=float(
            max(abs(theorem.of_pairs(part) / K - v) for part, v in list(zip(every, values, strict=True))[::stride])
        ),
        one_label=(float(values[one].max()), theorem.of_inputs(single) / K),
        hardest=_value(_hardest()),
        learned={name: [_learned(name, seed, epochs) for seed in seeds] for name in METHODS},
    )


def _value(part: Counts) -> float:
    return float(theorem.least_loss(part[None].astype(np.float64))[0]) / max(1, int(part.sum()))


def _hardest() -> Counts:
    """The K points, one copy each, of largest loss under the classifier of the whole pool."""
    loss = theorem.losses(theorem.fitted(np.ones((1, len(LABELS)))))[0]
    part = np.zeros(len(LABELS), np.int64)
    part[np.argsort(-loss, kind="stable")[:K]] = 1
    return part


def _learned(method: str, seed: int, epochs: int) -> tuple[Counts, float]:
    """The validation part at the end of a run of MOLERE on the pool, as copies of each point, and its least loss."""
    from molere.run import fit
    from molere.settings import MethodSpec

    spec = MethodSpec.parse(method)
    spec = MethodSpec(spec.name, spec.preset, {"delta": K / (COPIES * len(LABELS))})
    recipe = {"epochs": epochs, "batch_size": 12, "lr": 0.1, "weight_decay": 0.0, "q": 1}
    result = fit(str(spec), data=_pool(), model="linear", recipe=recipe, seed=seed)
    validates = np.asarray(cast(Any, result.samples["in_validation"]), dtype=np.int64)
    counts = validates.reshape(COPIES, len(LABELS)).sum(axis=0)
    return counts, _value(counts)


def _pool() -> Any:  # a Data, whose module brings torch
    from molere.data.sources import from_arrays

    x, y = np.tile(INPUTS[:, :2], (COPIES, 1)).astype(np.float32), np.tile(LABELS, COPIES)
    return from_arrays(x, y, x, y, select=0.0, model="linear", name="theorem 1")


# ---- Markdown


def markdown(f: Found, about: Mapping[str, str], picture: str = "") -> str:
    """The page; about: command, date and machine."""
    share = [f"{100 * v / f.max_min:.1f}" for v in (f.max_min, f.min_max.value / K)]
    rows = [
        ["max over parts, then min over classifiers (eq. 3), all parts tried", f"{f.max_min:.4f}", share[0]],
        [
            "min over classifiers, then max over parts (eq. 4, CVaR), convex programming",
            f"{f.min_max.value / K:.4f}",
            share[1],
        ],
        *_row("hardest points under the classifier of the whole pool", [f.hardest], f),
        *(r for name, runs in f.learned.items() for r in _row(f"{METHODS[name]} (`{name}`)", [v for _, v in runs], f)),
        *_row("a random part, mean of all", [float(f.values.mean())], f),
    ]
    parts = [
        "# Theorem 1 on a problem small enough to try every part",
        "\n".join(f"- {name}: {text}" for name, text in about.items()),
        _problem(),
        "## Values",
        grid(["part that validates", "least mean loss on it", "% of the max-min"], rows),
        f"The largest value is that of the points {_named(f.best)}.",
        "## What holds",
        "\n".join(f"- {line}" for line in verdicts(f)),
        f"![Least losses of all parts]({picture})" if picture else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _problem() -> str:
    return (
        f"{len(LABELS)} points of the plane with two labels, {COPIES} copies of each, are the pool; {K} of its "
        f"{COPIES * len(LABELS)} examples validate, one copy of a point at most. Logistic regression, a small ridge. "
        f"Points {TIED[0] + 1} and {TIED[1] + 1} are one input with both labels, point 11 is of a rare kind."
    )


def _named(part: Counts) -> str:
    return ", ".join(f"{a + 1} (label {LABELS[a]})" for a in np.flatnonzero(part))


def _row(name: str, values: Sequence[float], f: Found) -> list[list[str]]:
    mean = mean_interval(values)
    half = f" ± {mean.half_width:.4f}" if mean.n > 1 else ""
    return [[name, f"{mean.mean:.4f}{half}", f"{100 * mean.mean / f.max_min:.1f}"]] if mean.n else []


def verdicts(f: Found) -> list[str]:
    """What the theorem says, and what the numbers say."""
    exact = (f.min_max.value - f.min_max.bound) / K
    (least, reached), single = f.one_label, theorem.one_input(TRAIN_SHARE, VAL_SHARE)
    return [
        f"Weak duality, eq. 3 <= eq. 4: **{_word(f.gap >= -1e-9)}**; the gap is {f.gap:.4f} "
        f"({100 * f.gap / f.max_min:.1f} %). A mixture of points proves the min-max to within {max(0.0, exact):.1e}. "
        "The orders would agree if parts could take fractions of examples.",
        "The tri-level problem (eq. 2) and eq. 3 agree where weights see x and y (theorem 1): "
        f"**{_word(bool(f.pairs < 1e-5))}**; over all {len(f.values)} parts losses differ by {f.pairs:.1e} at most.",
        "Weights of x alone, as in the experiments, suffice on the part of largest loss with one label of an "
        f"input that has both: **{_word(reached - least < 1e-5)}** ({reached:.4f} reached, {least:.4f} possible). They "
        "weight inputs until three parameters are where they should be. On a single input whose label 1 has a share of "
        f"{TRAIN_SHARE} where one trains and {VAL_SHARE} where one validates they suffice: "
        f"**{_word(single[0] - single[1] < 1e-5)}** ({single[0]:.4f} reached, {single[1]:.4f} possible).",
        *(_of_learned(METHODS[name], runs, f) for name, runs in f.learned.items() if runs),
    ]


def _word(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _of_learned(name: str, runs: Sequence[tuple[Counts, float]], f: Found) -> str:
    values = [v for _, v in runs]
    beaten = float(np.mean([(f.values < v).mean() for v in values]))
    mean = 100 * float(np.mean(values)) / f.max_min
    sizes = sorted({int(part.sum()) for part, _ in runs})
    size = f" It validates on {'/'.join(map(str, sizes))} examples." if sizes != [K] else ""
    return (
        f"MOLERE, {name}: {mean:.0f} % of the max-min on average over {len(values)} seeds, more than "
        f"{100 * beaten:.0f} % of all parts.{size}"
    )


def draw(f: Found, path: Path) -> None:
    """The points with the parts, and the values of all parts with the two orders and the chosen parts; PNG and SVG."""
    from molere.show.style import BETTER, COLOURS, INK, PALE, WORSE, Picture, canvas, styled  # here: long to load

    with styled():
        figure = canvas(7.6, 5.6)
        left, right = figure.subplots(2, 1, height_ratios=(3, 4))
        _draw_points(left, f)
        right.hist(f.values, bins=50, color=PALE, label="all parts")
        right.axvline(f.max_min, color=INK, lw=3, label="max-min (eq. 3)")
        right.axvline(f.min_max.value / K, color=INK, ls="--", label="min-max (eq. 4)")
        right.axvline(f.hardest, color=WORSE, ls=":", label="hardest under ERM")
        top = right.get_ylim()[1]
        for (name, runs), colour, marker, height in zip(
            f.learned.items(), (BETTER, COLOURS[2]), "v^", (0.30, 0.22), strict=True
        ):
            right.plot(
                [v for _, v in runs], [height * top] * len(runs), marker, ls="", color=colour, label=METHODS[name]
            )
        right.set_xlabel("least mean loss on the part that validates")
        right.set_ylabel("parts")
        right.legend(fontsize=7)
    drawn = Picture("theorem1", figure, "Both orders of the minimax problem, and the values of all parts.")
    drawn.save(path.with_suffix(".png"))
    drawn.save(path.with_suffix(".svg"))


def _draw_points(axis: Any, f: Found) -> None:
    moved = POINTS + np.where(np.arange(len(LABELS)) == TIED[1], 0.08, 0.0)[:, None]
    for label, marker in ((0, "o"), (1, "s")):
        own = moved[label == LABELS]
        axis.plot(own[:, 0], own[:, 1], marker, ls="", label=f"label {label}", ms=6)
    chosen = moved[f.best > 0]
    axis.plot(chosen[:, 0], chosen[:, 1], "o", ms=12, mfc="none", mec="black", ls="", label="max-min part")
    axis.margins(0.1)
    axis.legend(fontsize=7)
    axis.set_xlabel("x1")
    axis.set_ylabel("x2")
