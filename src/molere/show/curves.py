"""Figures over time: learning curves, the distribution of the weights, the learned split."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from molere.show.gains import WIDTH
from molere.show.style import COLOURS, INK, Look, Picture, canvas, looks, styled

Row = Mapping[str, Any]  # a row of metrics.csv: numbers, None where a column is empty
History = Sequence[Row]
QUANTILES = ("weight_p05", "weight_p25", "weight_p50", "weight_p75", "weight_p95")
TOLD = {
    "weight_p05": "5 % of the weights are below",
    "weight_p25": "25 % below",
    "weight_p50": "half below",
    "weight_p75": "75 % below",
    "weight_p95": "95 % below",
    "weight_flipped": "mean of wrong labels",
    "weight_clean": "mean of right labels",
    "split_churn": "churn",
    "split_rejected": "rejected",
    "validation_noise": "share of wrong labels",
}
"""What the columns are called in a sentence."""


def series(history: History, name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Epochs and values of one column, where it has finite ones."""
    pairs = [(row["epoch"], row[name]) for row in history if isinstance(row.get(name), int | float)]
    pairs = [(e, v) for e, v in pairs if math.isfinite(v)]
    return np.array([p[0] for p in pairs], dtype=float), np.array([p[1] for p in pairs], dtype=float)


def learning(runs: Mapping[str, Sequence[History]], column: str, baseline: str | None = None) -> Picture | None:
    """A column of metrics.csv over the epochs: mean over the seeds of each label, shaded from least to largest.

    None where no run has the column.
    """
    curves = {label: _mean([series(h, column) for h in histories]) for label, histories in runs.items()}
    curves = {label: c for label, c in curves.items() if len(c[0])}
    if not curves:
        return None
    share = any(word in column for word in ("accuracy", "worst"))
    scale, chosen = (100.0 if share else 1.0), looks(curves, baseline)
    with styled():
        figure = canvas(WIDTH, 3.0)
        axes = figure.subplots()
        for label, (x, middle, low, high) in curves.items():
            look = chosen[label]
            axes.fill_between(x, scale * low, scale * high, color=look.colour, alpha=0.13, linewidth=0)
            axes.plot(x, scale * middle, label=label.replace("$", r"\$"), **_line(look, len(x)))
        _epochs(axes)
        axes.set_title(_title(column) + (", percent" if share else ""))
        if len(curves) > 1:
            figure.legend(loc="outside lower center", ncols=3)
    ends = ", ".join(f"{label} {scale * c[1][-1]:{'.1f' if share else '.3g'}}" for label, c in curves.items())
    shaded = " Lines: means over seeds; shaded: least to largest." if any(len(h) > 1 for h in runs.values()) else ""
    return Picture(f"curve-{column}", figure, f"{_title(column)} by epoch.{shaded}", f"At the end: {ends}.")


def _title(column: str) -> str:
    known = {"train_loss": "Training loss", "select_accuracy": "Accuracy on selection data"}
    return known.get(column, column.replace("_", " ").capitalize())


def _line(look: Look, points: int) -> dict[str, Any]:
    every = max(1, points // 8)
    return {"color": look.colour, "linestyle": look.dash, "marker": look.marker, "markevery": every, "markersize": 4}


def _mean(curves: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]) -> tuple[Any, Any, Any, Any]:
    """Epochs, and mean, least and largest value at each, over the curves that have it."""
    at: dict[float, list[float]] = {}
    for x, y in curves:
        for epoch, value in zip(x.tolist(), y.tolist(), strict=True):
            at.setdefault(epoch, []).append(value)
    x = sorted(at)
    return tuple(np.array(v) for v in (x, *([f(at[e]) for e in x] for f in (np.mean, min, max))))  # pyright: ignore


def weights(history: History) -> Picture | None:
    """The distribution of the weights over the epochs; the mean weights of right and wrong labels where known."""
    bands = {name: series(history, name) for name in QUANTILES}
    noted = {name: series(history, name) for name in ("weight_flipped", "weight_clean")}
    noted = {name: s for name, s in noted.items() if len(s[0])}
    if not len(bands["weight_p50"][0]) and not noted:
        return None
    with styled():
        figure = canvas(WIDTH, 3.0)
        axes = figure.subplots()
        if len(bands["weight_p50"][0]):
            x = bands["weight_p50"][0]
            quantiles = [bands[name][1] for name in QUANTILES]
            if len(x) == 1:  # a band of one epoch has no width of its own
                x, quantiles = x + np.array([-0.25, 0.25]), [np.repeat(values, 2) for values in quantiles]
            low, lower, middle, upper, high = quantiles
            axes.fill_between(x, low, high, color=COLOURS[5], alpha=0.3, linewidth=0, label="5 to 95 % of examples")
            axes.fill_between(x, lower, upper, color=COLOURS[0], alpha=0.45, linewidth=0, label="25 to 75 %")
            axes.plot(x, middle, color=INK, label="median")
        words = {
            "weight_flipped": ("wrong labels, mean", COLOURS[1], "s"),
            "weight_clean": ("right labels, mean", COLOURS[2], "^"),
        }
        for name, (epochs, values) in noted.items():
            label, colour, marker = words[name]
            every = max(1, len(epochs) // 8)
            axes.plot(epochs, values, color=colour, marker=marker, markevery=every, label=label)
        axes.set_ylim(bottom=0)
        _epochs(axes)
        axes.set_title("Weights over time")
        figure.legend(loc="outside lower center", ncols=2)
    caption = "The weight that each example had when it was last used, by epoch."
    return Picture("weights", figure, caption, _ends({**{k: bands[k] for k in QUANTILES}, **noted}))


def churn(history: History) -> Picture | None:
    """How much the learned split changes from epoch to epoch; None where no split is learned."""
    lines = {
        "split_churn": "churn: examples that came or went, by the part's size",
        "split_rejected": "split rejected (1: yes)",
    }
    lines |= {"validation_noise": "share of wrong labels in it"}
    found = {name: series(history, name) for name in lines}
    found = {name: s for name, s in found.items() if len(s[0])}
    if "split_churn" not in found:
        return None
    with styled():
        figure = canvas(WIDTH, 3.0)
        axes = figure.subplots()
        for (name, (x, y)), look in zip(found.items(), looks(found).values(), strict=True):
            axes.plot(x, y, label=lines[name], **_line(look, len(x)))
        axes.set_ylim(bottom=-0.03)
        _epochs(axes)
        axes.set_title("The split over time")
        figure.legend(loc="outside lower center", ncols=1)
    caption = "Churn of the learned split: how much its validation part changed in each epoch."
    return Picture("churn", figure, caption, _ends(found))


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _ends(found: Mapping[str, tuple[Any, Any]]) -> str:
    told = [f"{TOLD[name]} {y[-1] + 0.0:.2f}" for name, (_, y) in found.items() if len(y)]
    return f"At the end: {', '.join(told)}." if told else ""
