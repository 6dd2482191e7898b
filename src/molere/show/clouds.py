"""Figures of examples: weight against loss and margin, who validates, calibration, margins and their differences.

Everything is counted before it is drawn, so that a figure of a million examples is as small as one of a thousand.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from molere.show.gains import WIDTH
from molere.show.style import BETTER, COLOURS, INK, WORSE, Picture, canvas, looks, styled

Array = npt.NDArray[Any]  # a column of numbers
Columns = Mapping[str, Array]
BINS = 15  # of the calibration error, as in `evaluate`
FEWEST = 5  # examples of a bin that is drawn; the calibration error counts all
MOST_CLASSES = 40
_BLUES = LinearSegmentedColormap.from_list("molere", [(0.16, 0.52, 0.76, a) for a in (0.22, 0.6, 1.0)])  # on any ground


def weight_against(samples: Columns, column: str) -> Picture | None:
    """The weight of each example against its loss or margin: how many there are, and the median weight along it."""
    if "weight" not in samples or column not in samples:
        return None
    x, w = samples[column].astype(float), samples["weight"].astype(float)
    there = np.isfinite(x) & np.isfinite(w)
    x, w = x[there], w[there]
    if len(x) < 2 or np.ptp(w) < 1e-9:
        return None
    if column == "loss":
        x = np.maximum(x, 1e-4)
    edges = _edges(x, log=column == "loss")
    with styled():
        figure = canvas(WIDTH, 3.2)
        axes = figure.subplots()
        top = float(np.quantile(w, 0.999)) * 1.05
        counts, _, steps = np.histogram2d(x, np.minimum(w, top), bins=(edges, np.linspace(min(0.0, w.min()), top, 41)))
        shown = np.ma.masked_equal(counts.T, 0)
        mesh = axes.pcolormesh(edges, steps, shown, norm=LogNorm(1, max(2, counts.max())), cmap=_BLUES, rasterized=True)
        middle, median = _medians(x, w, edges)
        axes.plot(middle, median, color=WORSE, marker="s", markersize=3, label="median weight")
        if column == "loss":
            _decades(axes, float(edges[-1] / edges[0]))
        axes.set_xlabel(f"{column} of the finished classifier")
        axes.set_ylabel("weight, when last used")
        axes.set_title(f"Weight against {column}")
        figure.legend(loc="outside lower center")
        _legend_of_counts(axes, mesh, figure)
    ends = [(float(middle[i]), float(median[i])) for i in (0, -1)] if len(middle) else []
    words = "; ".join(f"median weight {m + 0.0:.2f} at {column} {at:.2g}" for at, m in ends).capitalize()
    return Picture(
        f"weight-{column}", figure, f"The weight of {len(x):,} training examples against their {column}.", words
    )


def _legend_of_counts(axes: Axes, mesh: QuadMesh, figure: Figure) -> None:
    """What the shades mean, on a logarithmic scale with plain numbers."""
    bar = figure.colorbar(mesh, ax=axes, label="examples", fraction=0.05)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    cast(Any, bar.outline).set_visible(False)


def _plain_number(value: float, place: int | None = None) -> str:
    return f"{value:g}"


def _decades(axes: Axes, span: float) -> None:
    """A logarithmic axis with plain numbers, few enough to be read."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0,) if span > 300 else (1.0, 3.0) if span > 20 else (1.0, 2.0, 5.0))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(_plain_number))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _edges(x: Array, *, log: bool) -> Array:
    low, high = float(x.min()), float(x.max())
    high = high if high > low else low + 1
    return np.geomspace(low, high, 41) if log else np.linspace(low, high, 41)


def _medians(x: Array, w: Array, edges: Array) -> tuple[Array, Array]:
    """Centres and median weights of every fourth bin that holds five examples or more."""
    coarse = edges[::4]
    bins = np.clip(np.digitize(x, coarse) - 1, 0, len(coarse) - 2)
    kept = [b for b in range(len(coarse) - 1) if (bins == b).sum() >= min(5, len(x))]
    middle = np.array([np.median(x[bins == b]) for b in kept])
    return middle, np.array([np.median(w[bins == b]) for b in kept])


def label_balance(samples: Columns, names: Sequence[str] = ()) -> Picture | None:
    """Each class's share of the pool, of the last validation part, and of all of them; None where nothing validates."""
    inside, often = samples.get("in_validation"), samples.get("times_in_validation")
    if inside is None or often is None or not often.any():
        return None
    label = samples["label"].astype(int)
    classes = int(label.max()) + 1
    parts = {
        "all training data": np.ones(len(label)),
        "all validation parts": often,
        "the last validation part": inside,
    }
    shares = {name: np.bincount(label, weights=w.astype(float), minlength=classes) for name, w in parts.items()}
    shares = {name: 100 * s / s.sum() for name, s in shares.items() if s.sum() > 0}
    order = np.argsort(-shares["all training data"], kind="stable")[:MOST_CLASSES]
    with styled():
        figure = canvas(WIDTH, 3.0)
        axes = figure.subplots()
        for (name, share), look in zip(shares.items(), looks(shares, "all training data").values(), strict=True):
            axes.plot(
                range(len(order)),
                share[order],
                marker=look.marker,
                linestyle="none",
                color=look.colour,
                label=name,
                clip_on=False,
            )
        words: list[str] = [
            str(names[k]).replace("$", r"\$")[:20] if k < len(names) else str(k) for k in order.tolist()
        ]
        crowded = sum(map(len, words)) + 2 * len(words) > 55
        axes.set_xticks(range(len(order)), words, rotation=90 if crowded else 0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("class" if len(order) == classes else f"class (the {len(order)} largest of {classes})")
        axes.set_title("Who validates: share of each class, percent")
        figure.legend(loc="outside lower center", ncols=2)
    away = {k: float(np.abs(v - shares["all training data"]).sum() / 2) for k, v in shares.items()}
    told = ", ".join(f"{name} {d:.1f} points" for name, d in away.items() if d > 0)
    caption = "Label balance of the validation part, beside that of the training data."
    return Picture("label-balance", figure, caption, f"Total variation to the training data: {told}." if told else "")


def calibration(
    found: Mapping[str, tuple[Array, Array]], baseline: str | None = None, *, seed: int | None = None
) -> Picture | None:
    """Accuracy against confidence in 15 bins: for each label the top probabilities of test examples, and if right.

    seed: of all these runs, to be told.
    """
    found = {label: pair for label, pair in found.items() if len(pair[0])}
    if not found:
        return None
    errors = dict[str, float]()
    with styled():
        figure = canvas(WIDTH, 3.6)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        for label, look in looks(found, baseline).items():
            x, y, n = _reliability(*found[label])
            errors[label] = float((n * np.abs(x - y)).sum() / n.sum())
            size = 8 + 60 * np.sqrt(n / n.sum())
            x, y, size = (v[n >= FEWEST] for v in (x, y, size))
            axes.plot(x, y, color=look.colour, linestyle=look.dash, linewidth=1, alpha=0.8)
            name = f"{label}: {100 * errors[label]:.1f}".replace("$", r"\$")
            axes.scatter(x, y, s=size, marker=look.marker, color=look.colour, label=name)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("confidence (largest probability)")
        axes.set_ylabel("accuracy")
        axes.set_title("Calibration (error in points)")
        figure.legend(loc="outside lower center", ncols=2)
    told = ", ".join(f"{label} {100 * e:.1f}" for label, e in errors.items())
    of = "" if seed is None else f", seed {seed}"
    caption = f"Calibration on test data{of}: accuracy against confidence in 15 bins, those of five examples or more."
    return Picture("calibration", figure, caption, f"Expected calibration error in points: {told}.")


def _reliability(confidence: Array, correct: Array) -> tuple[Array, Array, Array]:
    """Mean confidence, accuracy and number of examples of each bin that has any."""
    bins = np.clip(np.ceil(confidence.astype(float) * BINS).astype(int) - 1, 0, BINS - 1)
    n = np.bincount(bins, minlength=BINS)
    total = [np.bincount(bins, weights=v.astype(float), minlength=BINS) for v in (confidence, correct)]
    there = n > 0
    return total[0][there] / n[there], total[1][there] / n[there], n[there]


def margins(margin: Array, what: str) -> Picture:
    """The probabilistic margins of one run, with their mean; left of zero is misclassified."""
    with styled():
        figure = canvas(WIDTH, 3.0)
        axes = figure.subplots()
        _histogram(axes, margin, np.linspace(-1, 1, 41))
        axes.set_xlabel("margin: probability of the label minus the largest other one")
        axes.set_title(f"Margins of {what}")
    share = 100 * float((margin < 0).mean())
    words = f"Mean {margin.mean():.3f}, median {np.median(margin):.3f}; {share:.1f} percent are below zero."
    return Picture("margins", figure, f"Margins of {len(margin):,} {what}; below zero: misclassified.", words)


def margin_differences(ours: Array, theirs: Array, names: tuple[str, str]) -> Picture:
    """Paired differences of margins on the same examples: histogram with mean and median (Figure 3)."""
    difference = ours - theirs
    with styled():
        figure = canvas(WIDTH, 3.0)
        axes = figure.subplots()
        reach = max(0.05, float(np.quantile(np.abs(difference), 0.999)))
        _histogram(axes, np.clip(difference, -reach, reach), np.linspace(-reach, reach, 41), difference)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel(f"margin of {names[0]} minus margin of {names[1]}".replace("$", r"\$"))
        axes.set_title("Paired differences of margins")
    words = f"Mean {difference.mean():+.4f}, median {np.median(difference):+.4f}."
    caption = f"What {names[0]} changes in the margin of {len(ours):,} test examples, compared with {names[1]}."
    return Picture("margin-differences", figure, caption, words)


def margin_bins(
    middles: Sequence[float], means: Sequence[float], sems: Sequence[float], names: tuple[str, str]
) -> Picture:
    """Mean difference of margins and its standard error, by bins of the baseline's margin (Figure 4)."""
    with styled():
        figure = canvas(WIDTH, 3.0)
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=1)
        axes.errorbar(middles, means, yerr=sems, fmt="o", color=BETTER, elinewidth=1.4, capsize=2)
        axes.set_xlim(-1, 1)
        axes.set_xlabel(f"margin of {names[1]}, in bins of 0.2".replace("$", r"\$"))
        axes.set_ylabel("mean difference ± SEM")
        axes.set_title(f"Where {names[0]} changes margins".replace("$", r"\$"))
    told = ", ".join(f"{m:+.1f}: {d:+.3f}" for m, d in zip(middles, means, strict=True))
    caption = f"Mean difference of margins, {names[0]} minus {names[1]}, by the margin of {names[1]}."
    return Picture("margin-bins", figure, caption, f"By bin: {told}.")


def _histogram(axes: Axes, values: Array, edges: Array, of: Array | None = None) -> None:
    counts, _ = np.histogram(values, edges)
    axes.stairs(counts, edges, fill=True, color=COLOURS[5], alpha=0.6)
    whole = values if of is None else of
    for value, name, dash in ((whole.mean(), "mean", "-"), (np.median(whole), "median", "--")):
        axes.axvline(float(value), color=WORSE, linestyle=dash, linewidth=1.4, label=f"{name} {value:+.3f}")
    axes.set_ylabel("examples")
    axes.legend(loc="upper left")
