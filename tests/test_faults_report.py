"""Row O1: the tables of a comparison ask for nothing from elsewhere, and names that users bring stay text."""

import html.parser
import re
from typing import Any

import pytest

from molere import report
from molere.report import About
from molere.table import tabulate

pytestmark = pytest.mark.faults

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=https://example.org/x onerror=alert(1)>",
    "\"><iframe src='//example.org'></iframe>",
    "</table></body><h1>",
    "&lt;script&gt;",
    "| a | b |",
    "javascript:alert(1)",
    "erm\u202e\x1b[31m",
)
ADMITTED = {"href": re.compile(r"#")}
"""Attributes that may name a place, and how."""


class Page(html.parser.HTMLParser):
    """Tags and what they ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name.startswith("on") or name in ("src", "href", "action", "data", "srcset", "poster"):
                admitted = ADMITTED.get(name)
                if admitted is None or not admitted.match(value or ""):
                    self.asked.append(f"{tag} {name}={value}")


def result(label: str, seed: int, metric: str) -> dict[str, Any]:
    figures = {"accuracy": 0.5 + seed / 100, metric: 0.4 + seed / 50}
    cost = {"updates": 9, "seconds": 1.0, "forward": 1.0, "backward": 1.0}
    return {
        "method": label, "label": label, "seed": seed, "updates": 9, "last": figures, "best": figures, "cost": cost,
        "headline": ["accuracy", metric],
    }  # fmt: skip


def page(place: str, text: str) -> str:
    """The page of a comparison with a text in one place."""
    label = text if place == "label" else "other"
    metric = text if place == "metric" else "worst_group"
    results = [result(name, seed, metric) for seed in range(3) for name in ("erm", label)]
    about = {"title": "digits", "command": "molere compare", "date": "2026-11-20", "machine": "A CPU"}
    about |= {place: text} if place in about else {}
    return report.html(tabulate(results), About(**about))


def test_pages_ask_for_nothing_and_show_hostile_names_as_text(row: Any) -> None:
    plain, wrong, total = Page(), list[tuple[object, object]](), 0
    plain.feed(page("title", "digits"))
    for place in ("label", "metric", "title", "command", "machine"):
        for text in HOSTILE:
            total += 1
            found = Page()
            found.feed(page(place, text))
            if found.asked or found.tags != plain.tags:
                wrong.append(((place, text), found.asked or sorted(found.tags ^ plain.tags)))
    row.judge("O1", wrong, total)
