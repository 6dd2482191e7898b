"""A comparison on a terminal: headline metrics, best epochs by validation, costs, and the verdict.

Metrics stand side by side while they fit and below each other where they do not; very narrow terminals lose
columns, never the difference and its p.
"""

import io
from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from molere import wording
from molere.table import Cell, Selection, Table
from molere.wording import TITLES

WIDTH = 100
STYLES = {"better": "bold green", "worse": "red", "unclear": "", "untested": ""}

# The columns of a metric, from the widest choice to the narrowest; the first that fits is used.
Show = Callable[[Cell], str]
Columns = tuple[tuple[str, Show], ...]
VALUE: tuple[str, Show] = ("{metric}", wording.value)
DIFFERENCE: tuple[str, Show] = ("- {baseline}", wording.difference)
P: tuple[str, Show] = ("p", wording.p_value)
WINS: tuple[str, Show] = ("wins", wording.wins)
LAYOUTS: tuple[Columns, ...] = ((VALUE, DIFFERENCE, P, WINS), (VALUE, DIFFERENCE, P), (DIFFERENCE, P))


class Screen:
    """A table as something that rich can print: `Console().print(Screen(table))`."""

    def __init__(self, table: Table, *, title: str = "", closing: Sequence[str] = ()) -> None:
        self.table = table
        self.title = title
        self.closing = closing

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text | Padding | Grid]:
        if self.title:
            yield Text(self.title, style="bold")
        for selection, title in TITLES.items():
            yield Text(f"\n{title.capitalize()} (percent; differences in points)", style="bold")
            yield from metric_grids(self.table, selection, console, options)
        yield Text(f"\nCost, as multiples of {self.table.baseline}", style="bold")
        yield cost_grid(self.table, options.max_width)
        yield from self._words()

    def _words(self) -> Iterator[Text | Padding]:
        table = self.table
        yield Text("\nVerdict", style="bold")
        for sentence in wording.verdicts(table):
            yield _bullet(sentence)
        if table.missing:
            yield Text("\nMissing runs", style="bold red")
            for line in wording.missing(table):
                yield _bullet(line)
        yield Text(f"\nn = {len(table.seeds)} seeds. {wording.meaning(table)} {wording.budgets(table)}", "dim")
        for line in self.closing:
            yield Text(line)


def plain(table: Table, *, title: str = "", closing: Sequence[str] = (), width: int = WIDTH) -> str:
    """The same as plain text without colours."""
    file = io.StringIO()  # not a notebook's output, where rich would display what it prints
    console = Console(
        file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False
    )
    console.print(Screen(table, title=title, closing=closing))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def metric_grids(
    table: Table, selection: Selection, console: Console, options: ConsoleOptions
) -> Iterator[Grid | Text]:
    """The headline metrics, as many side by side as fit the width, each with as many columns as fit."""
    left = [table.column(metric, selection) for metric in table.headline]
    while left:
        choices = [(n, show) for show in LAYOUTS for n in range(len(left), 0, -1) if n == 1 or show is LAYOUTS[0]]
        grids = [(n, _grid(table, left[:n], show)) for n, show in choices]
        fitting = [(n, grid) for n, grid in grids if _width(grid, console, options) <= options.max_width]
        n, grid = (fitting or grids[-1:])[0]
        yield grid
        left = left[n:]
        if left:
            yield Text("")


def _width(grid: Grid, console: Console, options: ConsoleOptions) -> int:
    return Measurement.get(console, options.update(width=1000), grid).maximum


def _grid(table: Table, columns: Sequence[Sequence[Cell]], show: Columns) -> Grid:
    grid = _empty_grid()
    grid.add_column("method", no_wrap=True, overflow="ellipsis")
    for column in columns:
        metric = escape(column[0].metric.name.replace("/", "/\n").replace("[", "\n["))
        for i, (head, _) in enumerate(show):
            words = {"metric": metric, "baseline": escape(table.baseline)}
            above = f"{metric}\n" if i == 0 and "{metric}" not in head else ""
            grid.add_column(above + head.format(**words), justify="right", no_wrap=True)
    for row in zip(*columns, strict=True):
        texts = [_text(cell, f, show) for cell in row for _, f in show]
        grid.add_row(Text(max((wording.name_of(cell, table) for cell in row), key=len)), *texts)
    return grid


def _text(cell: Cell, f: Show, show: Columns) -> Text:
    if cell.paired is None and VALUE not in show and f is show[0][1]:
        return Text(wording.value(cell))  # no column for values: the baseline's stands for the difference
    return Text(f(cell), "" if f is wording.value else STYLES[cell.verdict])


def cost_grid(table: Table, width: int) -> Grid:
    """Seconds of a run; time, passes and peak memory as multiples of the baseline; scouts apart."""
    grid = _empty_grid()
    grid.add_column("method", no_wrap=True, overflow="ellipsis")
    wide = width >= 72
    heads = ["seconds", "time x", "passes x", "memory x"] if wide else ["time x", "passes x"]
    for head in [*heads, *(["+ scout time x", "+ scout passes x"] if wide else ["+ scouts x"])]:
        grid.add_column(head, justify="right", no_wrap=True)
    for cost in table.costs:
        ratios = [cost.seconds_ratio, cost.passes_ratio, *([cost.memory_ratio] if wide else [])]
        scouts = [cost.scout_seconds_ratio, *([cost.scout_passes_ratio] if wide else [])]
        seconds = [wording.seconds(cost)] if wide else []
        grid.add_row(Text(cost.label), *seconds, *map(wording.times, ratios), *map(_or_blank, scouts))
    return grid


def _or_blank(ratio: float) -> str:
    return wording.times(ratio) if ratio > 0 else ""


def _empty_grid() -> Grid:
    return Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")


def _bullet(line: str) -> Padding:
    return Padding(Text(line), (0, 0, 0, 2))
