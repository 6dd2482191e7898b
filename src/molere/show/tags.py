"""Names beside points: each where it covers the least of other names, points, error bars and the zero line."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from molere.show.style import arrange

SIZE = 8.0
"""Points of the letters."""
LETTER, HEIGHT, AWAY = 0.54 * SIZE, 1.1 * SIZE, 6.0
"""Points: the width of a letter on average, the height of a line, the distance to the marker."""
LATER = 2.0
"""Square points that a place may cover more for each place before it."""


class Box(NamedTuple):
    """Left, bottom, right and top, in points."""

    left: float
    low: float
    right: float
    high: float

    def shared(self, other: "Box") -> float:
        """The area that two boxes have in common."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.high, other.high) - max(self.low, other.low)
        return max(0.0, wide) * max(0.0, tall)

    @property
    def area(self) -> float:
        """In square points."""
        return (self.right - self.left) * (self.high - self.low)


def place(axes: Axes, names: Sequence[tuple[float, float, str]], bars: Sequence[tuple[float, float, float]]) -> None:
    """Write each name (x, y, text) near its point; `bars` are the points drawn: x, y and half the error bar."""
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    arrange(figure)
    scale = 72 / figure.dpi
    frame = Box(*(float(v) * scale for v in axes.get_window_extent().extents))
    zero = _at(axes, 0.0, 0.0, scale)[1]
    taken = [Box(frame.left, zero - 1.5, frame.right, zero + 1.5), *(_of_bar(axes, bar, scale) for bar in bars)]
    for x, y, text in sorted(names, key=lambda name: (-name[1], name[0])):
        px, py = _at(axes, x, y, scale)
        boxes = [Box(px + dx, py + dy, px + dx + LETTER * len(text), py + dy + HEIGHT) for dx, dy in _offsets(text)]
        covered = [sum(map(box.shared, taken)) + 3 * (box.area - box.shared(frame)) for box in boxes]
        best = boxes[min(range(len(boxes)), key=lambda i: covered[i] + LATER * i)]
        taken.append(best)
        offset = (best.left - px, best.low - py + 0.15 * SIZE)
        plain = text.replace("$", r"\$")
        axes.annotate(plain, (x, y), xytext=offset, textcoords="offset points", fontsize=SIZE, annotation_clip=False)


def _offsets(text: str) -> list[tuple[float, float]]:
    """Where a name may begin, seen from its point, the best first: right of it, left, above, below, then farther."""
    width = LETTER * len(text)
    rows = (-HEIGHT / 2, 3.0, -HEIGHT - 3.0)
    beside = [(dx, dy) for dx in (AWAY, -AWAY - width) for dy in rows]
    above = [(-width / 2, dy) for dy in (AWAY, -AWAY - HEIGHT)]
    far = [(dx, dy * k) for k in (2, 3, 4) for dx in (AWAY, -AWAY - width) for dy in (HEIGHT, -HEIGHT)]
    return [*beside, *above, *far]


def _of_bar(axes: Axes, bar: tuple[float, float, float], scale: float) -> Box:
    x, y, half = bar
    (px, low), (_, high) = _at(axes, x, y - half, scale), _at(axes, x, y + half, scale)
    return Box(px - 3.0, low - 3.0, px + 3.0, high + 3.0)


def _at(axes: Axes, x: float, y: float, scale: float) -> tuple[float, float]:
    """The place of data in points."""
    px, py = axes.transData.transform((x, y)).tolist()
    return px * scale, py * scale
