"""One style for every figure: legible in print, without colours and for colour-blind readers, as PNG and SVG.

Colours are those of Okabe and Ito (2008); a line is told from the others by its marker and its dashes as well. Nothing
here touches matplotlib's global state: a figure is made inside `styled`, by `canvas`, and needs no display.
"""

import base64
import io
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, cast

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from molere.storage import files

INK, PALE = "#1b1b1c", "#c9c9cb"
"""Text and axes; grid lines. In a page both follow the page's own colours."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6FB0", "#7A7A7A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
BETTER, WORSE, UNCLEAR = "#0072B2", "#D55E00", "#7A7A7A"
FONTS = ["DejaVu Sans", "Verdana", "Bitstream Vera Sans", "Helvetica", "Arial", "sans-serif"]

LONGEST = 24
"""Characters of a method in a title."""

RC: dict[str, Any] = {
    "font.family": FONTS[:1],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and is small
    "svg.hashsalt": "molere",  # the same figure is the same file
    "path.simplify": True,
}


@dataclass(frozen=True, slots=True)
class Look:
    """How one method is drawn wherever it appears."""

    colour: str
    marker: str
    dash: Any  # as matplotlib takes it


def looks(labels: Iterable[str], baseline: str | None = None) -> dict[str, Look]:
    """A look for each label, in their order; the baseline is drawn in ink."""
    found = dict[str, Look]()
    place = 0
    for label in labels:
        if label == baseline:
            found[label] = Look(INK, "o", "-")
            continue
        dash = DASHES[(place + place // len(MARKERS)) % len(DASHES)]
        found[label] = Look(COLOURS[place % len(COLOURS)], MARKERS[(place + 1) % len(MARKERS)], dash)
        place += 1
    return found


@contextmanager
def styled() -> Generator[None]:
    """This style, and no other, inside the block; matplotlib's settings are as before afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, RC))
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches, that arranges its parts itself."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def arrange(figure: Figure) -> None:
    """Give every part of a figure its place, for good."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        with styled():
            engine.execute(figure)
            figure.set_layout_engine("none")


@dataclass(eq=False, repr=False)
class Picture:
    """A figure to be shown, saved or put into a page. Notebooks show it.

    name: of its files. caption: what it shows, in a sentence. words: what one sees there, for readers who do not.
    """

    name: str
    figure: Figure
    caption: str
    words: str = ""
    _svg: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        """Arrange the parts once: every file of the figure is then drawn from the same places."""
        arrange(self.figure)

    def of(self, label: str, seed: int) -> "Picture":
        """The same figure, said to be of one run: in its title, its caption and its file's name."""
        plain = "".join(c if c.isalnum() else "-" for c in label).strip("-")
        with styled():
            for axes in self.figure.axes[:1]:
                short = label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
                axes.set_title(f"{axes.get_title(loc='left')}: {short}".replace("$", r"\$"))
        return Picture(f"{self.name}-{plain}", self.figure, f"{label}, seed {seed}: {self.caption}", self.words)

    def png(self, dpi: int = 160) -> bytes:
        """The figure as PNG."""
        buffer, before = io.BytesIO(), self.figure.dpi
        with styled():
            self.figure.dpi = dpi
            FigureCanvasAgg(self.figure).print_png(buffer, metadata={"Software": None})
            self.figure.dpi = before
        return buffer.getvalue()

    def svg(self) -> str:
        """The figure as SVG, a file of its own."""
        if not self._svg:
            buffer = io.StringIO()
            with styled():
                FigureCanvasSVG(self.figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
            self._svg = buffer.getvalue()
        return self._svg

    def save(self, path: str | Path) -> Path:
        """Write the figure as its suffix says: .svg, else PNG."""
        path = Path(path)
        data = self.svg().encode() if path.suffix == ".svg" else self.png()
        files.write_bytes(path, data, fsync=False)
        return path

    def html(self) -> str:
        """The figure as an element of HTML, a PNG within it; for notebooks."""
        data = base64.b64encode(self.png(dpi=100)).decode()
        words = escape(f"{self.caption} {self.words}".strip(), quote=True)
        return f'<img src="data:image/png;base64,{data}" alt="{words}" style="max-width: 100%; background: white">'

    def __repr__(self) -> str:
        return f"{self.caption} {self.words}".strip()

    def _repr_png_(self) -> bytes:
        return self.png(dpi=110)


def inline(svg: str, prefix: str) -> str:
    """An SVG file as an element of a page: no prologue, ids of its own, ink and grid in the page's colours."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<!DOCTYPE[^>]*>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}-", text)
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' width="[^"]*pt" height="[^"]*pt"', "", text, count=1)
    text = text.replace('style="fill: #ffffff"', 'style="fill: none"', 1)
    text = text.replace(INK, "currentColor").replace(PALE, "var(--line)")
    return re.sub(r"\s*\n\s*", "\n", text)
