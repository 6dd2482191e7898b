"""Figures of a comparison: gains over the baseline, by data set, against cost, and in the worst groups."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from molere import wording
from molere.show import tags
from molere.show.style import BETTER, COLOURS, INK, MARKERS, UNCLEAR, WORSE, Picture, canvas, looks, styled
from molere.table import Cell, Selection, Table

WIDTH = 4.4
OF_VERDICT = {"better": (BETTER, "o"), "worse": (WORSE, "s"), "unclear": (UNCLEAR, "D"), "untested": (UNCLEAR, "D")}
MOST_GROUPS = len(COLOURS)


def gains(table: Table, metric: str, selection: Selection = "last") -> Picture:
    """Each method's gain over the baseline with its 95 % interval; in points, positive is better."""
    cells = [c for c in table.column(metric, selection) if c.paired is not None and not math.isnan(c.gain)]
    with styled():
        figure = canvas(WIDTH, 1.15 + 0.24 * max(2, len(cells)))
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        for place, cell in enumerate(cells):
            _interval(axes, cell, place)
        _rows(axes, [c.label for c in cells])
        axes.set_xlabel(_unit(cells, f"gain over {_plain(table.baseline)}"))
        axes.set_title(_plain(f"{metric}, {wording.TITLES[selection]}"))
    caption = (
        f"Gain in {metric} over {table.baseline}, {wording.TITLES[selection]}: mean and 95 % interval of the paired"
    )
    shapes = "Circles: better, squares: worse (Holm p < .05), diamonds: not decided."
    return Picture(
        f"gains-{_slug(metric)}-{selection}", figure, f"{caption} differences over seeds. {shapes}", _said(cells)
    )


def gains_by_data(tables: Mapping[str, Table], selection: Selection = "last") -> Picture:
    """The gain of each method on each data set (name -> table), by the table's first headline metric."""
    labels = list(dict.fromkeys(label for t in tables.values() for label in t.labels if label != t.baseline))
    columns = {name: {c.label: c for c in t.column(t.headline[0], selection)} for name, t in tables.items()}
    chosen = looks(labels)
    with styled():
        figure = canvas(WIDTH + 1.2, 1.6 + 0.17 * len(tables) * max(2, len(labels)))
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=1)
        for row, column in enumerate(columns.values()):
            for place, label in enumerate(labels):
                cell, look = column.get(label), chosen[label]
                if cell is None or cell.paired is None or math.isnan(cell.gain):
                    continue
                y = row + 0.8 * ((place + 0.5) / len(labels) - 0.5)
                _bar(axes, cell, y, look.colour, look.marker, label if row == 0 else "_")
        names = [f"{name}\n{t.headline[0]}" for name, t in tables.items()]
        _rows(axes, names)
        axes.set_xlabel("gain over the baseline, points")
        figure.legend(loc="outside lower center", ncols=3)
    what = "Gain over the baseline on each data set, by the metric that the data set leads with"
    told = [f"{name}: {_said(list(c.values()))}" for name, c in columns.items()]
    return Picture("gains-by-data", figure, f"{what}: mean and 95 % interval of paired differences.", " ".join(told))


def cost_against_gain(table: Table, metric: str, selection: Selection = "last") -> Picture:
    """What a method's gain costs: time as a multiple of the baseline's, scouts included, against the gain."""
    cells = [c for c in table.column(metric, selection) if c.paired is not None and not math.isnan(c.gain)]
    cells = [c for c in cells if not math.isnan(_times(table, c.label))]
    with styled():
        figure = canvas(WIDTH, 3.3)
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=1)
        axes.axvline(1, color=INK, linewidth=1, linestyle=":")
        axes.plot([1], [0], "o", color=INK)
        for cell in cells:
            colour, marker = OF_VERDICT[cell.verdict]
            half = _half(cell)
            axes.errorbar(_times(table, cell.label), _shown(cell), half, fmt=marker, color=colour, elinewidth=1)
        axes.margins(x=0.25, y=0.12)
        spots = [(_times(table, c.label), _shown(c), c.label) for c in cells]
        axes.set_xlabel(_plain(f"time, multiples of {table.baseline} (scouts included)"))
        axes.set_ylabel(_unit(cells, "gain"))
        axes.set_title(_plain(f"Gain against cost: {metric}"))
        bars = [(_times(table, c.label), _shown(c), _half(c) or 0.0) for c in cells]
        tags.place(axes, [(1.0, 0.0, table.baseline), *_worth_a_name(spots)], [(1.0, 0.0, 0.0), *bars])
    caption = f"What a gain in {metric} costs: the time of a run with its scouts, as a multiple of {table.baseline}'s."
    words = [f"{c.label} {_shown(c):+.1f} at {_times(table, c.label):.2f} x." for c in cells]
    return Picture(f"cost-{_slug(metric)}", figure, caption, " ".join(words))


def groups(table: Table, selection: Selection = "last") -> Picture | None:
    """Accuracy of every method in each group, or in its worst class where no groups are known; None without either."""
    names = [m for m in table.metrics if m.startswith("accuracy[")]
    if not 0 < len(names) <= MOST_GROUPS:
        names = [m for m in ("worst_group", "worst_class", "balanced_accuracy", "accuracy") if m in table.metrics]
    if not names:
        return None
    with styled():
        figure = canvas(WIDTH, 1.5 + 0.24 * max(2, len(table.labels)))
        axes = figure.subplots()
        for place, name in enumerate(names):
            column = table.column(name, selection)
            x = [100 * c.mean.mean for c in column]
            half = [0 if math.isnan(c.mean.half_width) else 100 * c.mean.half_width for c in column]
            rows = [i + 0.5 * ((place + 0.5) / len(names) - 0.5) for i in range(len(column))]
            style = {"fmt": MARKERS[place % 8], "color": COLOURS[place % 8], "elinewidth": 1, "markersize": 4}
            axes.errorbar(x, rows, xerr=half, label=_plain(name.replace("_", " ")), **style)  # pyright: ignore[reportArgumentType]
        _rows(axes, table.labels)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -2.0), min(high, 102.0))  # an interval may reach further than a share can
        axes.set_xlabel("percent")
        axes.set_title("Accuracy by group" if names[0].startswith("accuracy[") else "Worst class and mean accuracy")
        figure.legend(loc="outside lower center", ncols=2)
    worst = {c.label: c.mean.mean for c in table.column(names[0], selection)}
    told = ", ".join(f"{label} {100 * v:.1f}" for label, v in worst.items() if not math.isnan(v))
    caption = f"Where the accuracy is, {wording.TITLES[selection]}: mean over seeds and its 95 % interval."
    return Picture("groups", figure, caption, f"{names[0].replace('_', ' ').capitalize()}: {told}.")


def _interval(axes: Axes, cell: Cell, place: int) -> None:
    colour, marker = OF_VERDICT[cell.verdict]
    _bar(axes, cell, float(place), colour, marker, "_")


def _bar(axes: Axes, cell: Cell, y: float, colour: str, marker: str, label: str) -> None:
    axes.errorbar(
        _shown(cell), y, xerr=_half(cell), fmt=marker, color=colour, elinewidth=1.4, capsize=2, label=_plain(label)
    )


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_plain(n) for n in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _shown(cell: Cell) -> float:
    return cell.metric.scale * cell.gain


def _half(cell: Cell) -> float | None:
    half = cell.paired.half_width if cell.paired else math.nan
    return None if math.isnan(half) else cell.metric.scale * half


def _unit(cells: Sequence[Cell], what: str) -> str:
    return f"{what}, points" if not cells or cells[0].metric.unit else what


def _times(table: Table, label: str) -> float:
    cost = table.cost(label)
    scouts = cost.scout_seconds_ratio
    return cost.seconds_ratio + (0 if math.isnan(scouts) else scouts)


def _worth_a_name(spots: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """All of a few; of many the ends: best, worst, dearest."""
    if len(spots) <= 10:
        return list(spots)
    by_gain, by_cost = sorted(spots, key=lambda s: -s[1]), sorted(spots, key=lambda s: -s[0])
    return list(dict.fromkeys([*by_gain[:3], *by_gain[-3:], *by_cost[:2]]))


def _said(cells: Sequence[Cell]) -> str:
    told = [f"{c.label} {_shown(c):+.1f}" for c in cells if c.paired is not None and not math.isnan(c.gain)]
    return f"{', '.join(told)}." if told else "No gains to show."


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")
