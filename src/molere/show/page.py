"""A report as one offline HTML file: what stands in it, as plain values, and how it becomes the file.

Every text is escaped; the page may load nothing, and says so to the browser by its content security policy. What is
shown is bounded before it comes here: a report does not grow with the number of examples.
"""

import base64
import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from molere.show.style import Picture, inline
from molere.storage import files

TEMPLATES = Path(__file__).parent / "templates"
LARGEST_SVG = 400_000
"""Characters of an inline SVG from which a figure is put into the page as PNG."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: its text, what it is sorted by (none: the text), and better, worse or nothing."""

    text: str
    key: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    """A table; the first cell of a row is its heading."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_text: bool = False
    """Whether its cells are sentences, which stand left and wrap."""


@dataclass(frozen=True)
class Example:
    """One example as a reader sees it: an image (PNG, base64), a text, or only its id."""

    id: str
    label: str
    prediction: str
    weight: str
    wrong: bool
    true_label: str | None = None
    score: str = ""
    """The margin."""
    further: Sequence[tuple[str, str]] = ()
    """What else the list goes by: names and values."""
    image: str = ""
    text: str | None = None


@dataclass(frozen=True)
class Examples:
    """A list of examples under a title."""

    title: str
    words: str
    examples: Sequence[Example]

    @property
    def is_text(self) -> bool:
        """Whether any of them is a text, which needs the whole width."""
        return any(e.text is not None for e in self.examples)


@dataclass(frozen=True)
class Code:
    """Commands or settings, as they are."""

    title: str
    text: str
    words: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page: sentences, tables, figures, examples, code, in this order."""

    title: str
    words: Sequence[str] = ()
    tables: Sequence[Grid] = ()
    figures: Sequence[Picture] = ()
    lists: Sequence[Examples] = ()
    code: Sequence[Code] = ()

    @property
    def id(self) -> str:
        """What a link names it by."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.words or self.tables or self.figures or self.lists or self.code)


@dataclass(frozen=True)
class Page:
    """A report: the verdict in words comes first."""

    kind: str
    title: str
    verdict: Sequence[str]
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    date: str = ""


@dataclass(frozen=True, slots=True)
class _Drawing:
    svg: Markup
    caption: str
    words: str


@dataclass(frozen=True)
class _Drawn:
    """A section whose figures have become markup."""

    section: Section
    drawings: Sequence[_Drawing]

    def __getattr__(self, name: str) -> Any:  # whatever the section has
        return getattr(self.section, name)


def number(value: float | int, digits: int = 2, sign: str = "") -> Cell:
    """A number as a cell that sorts by its value; a dash where it is not known."""
    known = math.isfinite(value)
    return Cell(f"{value:{sign}.{digits}f}" if known else "–", float(value) if known else None)


def html(page: Page) -> str:
    """The whole file."""
    script = (TEMPLATES / "report.js").read_text("utf-8")
    sections = [s for s in page.sections if not s.is_empty]
    drawn = [_Drawn(s, [_drawing(f, f"s{i}f{k}") for k, f in enumerate(s.figures)]) for i, s in enumerate(sections)]
    return _template().render(
        page=page,
        sections=drawn,
        css=Markup((TEMPLATES / "report.css").read_text("utf-8")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=sys.modules["molere"].__version__,
    )


def write(page: Page, path: Path) -> Path:
    """Write the file, and its figures as PNG and SVG into `figures` beside it; the path."""
    folder = path.parent / "figures"
    pictures = [f for s in page.sections for f in s.figures]
    if pictures:
        folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        picture.save(folder / f"{picture.name}.png")
        picture.save(folder / f"{picture.name}.svg")
    files.write_bytes(path, html(page).encode("utf-8", "replace"), fsync=False)
    return path


def _drawing(picture: Picture, prefix: str) -> _Drawing:
    svg = inline(picture.svg(), prefix)
    name = Markup.escape(f"{picture.caption} {picture.words}".strip())
    if len(svg) > LARGEST_SVG:
        data = base64.b64encode(picture.png()).decode()
        return _Drawing(
            Markup(f'<img src="data:image/png;base64,{data}" alt="{name}">'), picture.caption, picture.words
        )
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
    return _Drawing(Markup(labelled), picture.caption, picture.words)


@cache
def _template() -> Any:  # a jinja2 template
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
