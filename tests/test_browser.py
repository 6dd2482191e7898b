"""Reports in a real browser: no request, nothing in the console, tables that sort and filter, every width readable."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import browser
from browser import Browser
from molere import fit
from molere.compare import compare
from molere.data.sources import from_arrays
from test_sources import fashion

pytestmark = [pytest.mark.browser, pytest.mark.report]

WIDTHS = (320, 360, 768, 1280, 1920)
PAGES = ("digits", "fashion-mnist", "texts")
NASTY = '<script>document.title = "broken"</script>'


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = browser.found()
    if program is None:
        text = "no Chromium here, so no page was looked at; install Debian's `chromium`, or name one in MOLERE_BROWSER"
        if os.environ.get("MOLERE_NEEDS_BROWSER"):
            pytest.fail(text)
        pytest.skip(text)
    with Browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    quick: dict[str, Any] = {"epochs": 2}
    fashion(folder)
    compare(
        ["erm", "drop-random", "molere"],
        data={"name": "digits", "limit": 300},
        recipe=quick,
        seeds=2,
        out=folder / "digits",
    )
    clothes = {"name": "fashion-mnist", "root": folder, "scenario": "noise"}
    compare(["erm", "molere"], data=clothes, recipe=quick, seeds=2, out=folder / "fashion-mnist")
    fit("molere", data=texts(), recipe=quick, out=folder / "texts")
    return {name: folder / name / "report.html" for name in PAGES}


def texts() -> Any:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = rng.normal(size=(120, 8)).astype(np.float32)
    x[:, 0] += 2 * y
    read = [f"The film was {'good' if label else 'bad'}, number {i}. {NASTY}" for i, label in enumerate(y[:80])]
    return from_arrays(x[:80], y[:80], x[80:], y[80:], texts=read, class_names=['"bad"', NASTY], name="reviews")


@pytest.mark.parametrize("name", PAGES)
def test_a_report_asks_for_itself_only_and_has_nothing_to_complain_of(
    name: str, chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages[name])
    assert chromium.requests == [pages[name].absolute().as_uri()]
    assert chromium.complaints == []
    assert chromium.run("document.title") != "broken"
    assert chromium.run("document.scripts.length") == 1
    images = "[...document.images].map(i => i.complete && i.naturalWidth > 0)"
    assert all(chromium.run(images))


def test_the_watch_over_requests_and_the_console_sees_them(chromium: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="missing.png"><script>console.error("x"); throw new Error("y")</script>')
    chromium.open(page)
    assert any(url.endswith("missing.png") for url in chromium.requests)
    assert len(chromium.complaints) >= 2


def test_images_and_texts_of_examples_are_shown(chromium: Browser, pages: dict[str, Path]) -> None:
    for name, what in (("digits", ".things img"), ("fashion-mnist", ".things img"), ("texts", ".texts blockquote")):
        chromium.open(pages[name])
        assert chromium.run(f"document.querySelectorAll({what!r}).length") >= 24


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_no_width_makes_the_page_itself_scroll_sideways(
    name: str, dark: bool, chromium: Browser, pages: dict[str, Path]
) -> None:
    for width in WIDTHS:
        chromium.open(pages[name], width=width, dark=dark)
        assert chromium.run("document.documentElement.scrollWidth <= window.innerWidth")
        sizes = chromium.run(
            """[...document.querySelectorAll("p, li, td, th, dd, figcaption, h1, h2")]
               .filter(e => e.offsetParent).map(e => parseFloat(getComputedStyle(e).fontSize))"""
        )
        assert min(sizes) >= 12


def column(chromium: Browser, index: int) -> list[str]:
    rows = "[...document.querySelector('table').tBodies[0].rows].filter(r => !r.hidden)"
    return chromium.run(f"{rows}.map(r => r.cells[{index}].textContent)")


def test_a_heading_sorts_by_numbers_and_says_so(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["digits"])
    for direction, falling in (("descending", True), ("ascending", False)):
        chromium.run("document.querySelectorAll('table')[0].tHead.rows[0].cells[1].querySelector('button').click()")
        numbers = [float(text.split()[0]) for text in column(chromium, 1)]
        assert numbers == sorted(numbers, reverse=falling)
        assert len(numbers) == 3
        said = "document.querySelectorAll('table')[0].tHead.rows[0].cells[1].getAttribute('aria-sort')"
        assert chromium.run(said) == direction


def test_the_keyboard_reaches_the_headings_and_sorts(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["digits"])
    inside = "document.activeElement.tagName + ':' + !!document.activeElement.closest('thead')"
    for _ in range(60):
        chromium.press("Tab")
        if chromium.run(inside) == "BUTTON:true":
            break
    assert chromium.run(inside) == "BUTTON:true"
    before = column(chromium, 0)
    chromium.press("Enter")
    assert column(chromium, 0) == sorted(before)


def test_a_long_table_is_filtered_by_what_is_typed(chromium: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    from molere.show import page

    rows = [[page.Cell(f"method {i}"), page.Cell(f"{i}.5 ± 2", i + 0.5)] for i in range(12)]
    made = page.Page("Run", "t", ["v"], [page.Section("S", tables=[page.Grid("G", ["a", "b"], rows)])])
    path = page.write(made, tmp_path / "long.html")
    chromium.open(path)
    chromium.run(
        "(i => { i.value = 'METHOD 1'; i.dispatchEvent(new Event('input')); })(document.querySelector('.filter input'))"
    )
    assert column(chromium, 0) == ["method 1", "method 10", "method 11"]
    assert chromium.run("document.querySelector('.filter output').textContent") == "3 of 12 rows"


def test_a_page_on_paper_is_black_on_white_without_controls(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["digits"], dark=True, media="print")
    assert chromium.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert chromium.call("Page.printToPDF")["data"].startswith("JVBERi")  # %PDF


def test_a_screen_reader_finds_names_for_all_that_it_meets(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["digits"])
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    met = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")]
    for role in ("image", "button", "table", "region", "navigation", "link", "columnheader"):
        names = [name for kind, name in met if kind == role]
        assert names, role
        assert all(names), role
    levels = chromium.run("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
