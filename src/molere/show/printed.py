"""Figures of a reproduced row, drawn from its JSON file: our numbers beside the printed ones; changes of margins."""

from collections.abc import Mapping, Sequence
from typing import Any  # JSON

import numpy as np
from matplotlib.axes import Axes

from molere.show.records import part
from molere.show.style import BETTER, COLOURS, INK, WORSE, Picture, canvas, styled
from molere.table import Metric

WIDTH, PANEL = 7.6, 1.7
"""Of a figure, and the height of a method's part of it; inches."""


def of_row(said: Mapping[str, Any]) -> list[Picture]:
    """The figures that a row's kind has; none where nothing has ended."""
    if said.get("kind") == "bars":
        return [picture] if (picture := beside(said)) else []
    return [changes(said)] if part(said, "changes") else []


def beside(said: Mapping[str, Any]) -> Picture | None:
    """The printed number of each column and ours with its 95 % interval (Figures 1 and 2)."""
    metric = str(said["metric"])
    lines = [line for line in said["metrics"][metric] if line["ours"]["n"]]
    if not lines:
        return None
    scale, places = Metric(metric).scale, range(len(lines))
    ours = [scale * line["ours"]["mean"] for line in lines]
    half = [scale * (line["ours"]["half_width"] or 0) if line["ours"]["n"] > 1 else 0.0 for line in lines]
    known = [(k, line["printed"]) for k, line in enumerate(lines) if line["printed"] is not None]
    with styled():
        figure = canvas(WIDTH, 3.0)
        axes = figure.subplots()
        axes.errorbar(places, ours, half, fmt="o", color=BETTER, capsize=2, label="here, 95 % interval")
        if known:
            axes.plot(*zip(*known, strict=True), "x", color=WORSE, label="printed")
        axes.set_xticks(places, [_plain(line["column"]) for line in lines], rotation=35, ha="right")
        axes.set_ylabel(f"{metric.replace('_', ' ')}{', percent' if scale == 100 else ''}")
        axes.set_title(_title(said))
        axes.legend()
    told = [f"{line['column']} {value:.1f}" for line, value in zip(lines, ours, strict=True)]
    caption = f"{said['title']}. Circles: here, with 95 % intervals over seeds; crosses: printed."
    return Picture(f"beside-{_name(said)}", figure, caption, f"Here: {', '.join(told)}.")


def changes(said: Mapping[str, Any]) -> Picture:
    """How each column changes the margins of test examples: by the reference's margin, and all (Figures 3 and 4)."""
    columns, bars = part(said, "changes"), str(said.get("bars") or "sem")
    with styled():
        figure = canvas(WIDTH, 0.6 + PANEL * len(columns))
        grid = figure.subplots(len(columns), 2, squeeze=False, sharex="col", sharey="col")
        for (left, right), (column, of) in zip(grid, columns.items(), strict=True):
            _by_bin(left, of["bins"], bars)
            _histogram(right, of)
            left.set_title(_plain(f"{_title(said)}: {column}"))
            left.set_ylabel(f"change ± {bars}")
        for axes in grid[-1]:
            axes.set_xlim(-1, 1)
            axes.set_xticks([-1, -0.5, 0, 0.5, 1])
        grid[-1][0].set_xlabel(_plain(f"margin under {said['reference']}, in bins of 0.2"))
        grid[-1][1].set_xlabel("change of margin")
    told = [f"{column}: mean {of['mean']:+.3f}, median {of['median']:+.3f}." for column, of in columns.items()]
    caption = (
        f"{said['title']}. Left: mean change of the margin, by the margin under {said['reference']}; "
        "right: the changes of all test examples, on a logarithmic scale."
    )
    return Picture(f"changes-{_name(said)}", figure, caption, " ".join(told))


def _by_bin(axes: Axes, bins: Sequence[Mapping[str, Any]], bars: str) -> None:
    there = [b for b in bins if b["mean"] is not None and np.isfinite(b["mean"])]
    middles = [(b["low"] + b["high"]) / 2 for b in there]
    axes.axhline(0, color=INK, linewidth=1)
    axes.bar(middles, [b["mean"] for b in there], width=0.17, color=COLOURS[5], alpha=0.6)
    axes.errorbar(middles, [b["mean"] for b in there], [b[bars] for b in there], fmt="none", ecolor=INK, elinewidth=1)


def _histogram(axes: Axes, of: Mapping[str, Any]) -> None:
    counts = of["histogram"]
    axes.stairs(counts, np.linspace(-1, 1, len(counts) + 1), fill=True, color=COLOURS[5], alpha=0.6)
    axes.set_yscale("log")
    for name, dash in (("mean", "-"), ("median", "--")):
        axes.axvline(of[name], color=WORSE, linestyle=dash, linewidth=1.4, label=f"{name} {of[name]:+.3f}")
    axes.set_ylabel("examples")
    axes.legend(loc="upper left")


def _title(said: Mapping[str, Any]) -> str:
    return f"{said['preset']}, {said['row']}"


def _name(said: Mapping[str, Any]) -> str:
    return f"{said['preset']}-{said['row']}"


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
