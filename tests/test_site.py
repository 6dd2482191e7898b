"""The site: every page is in it, its reference is complete, and the map from equations to code is true."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from molere import equations

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages, hooks = tool("pages"), tool("site_hooks")
ROWS = [*pages.ALGORITHM, *pages.EQUATIONS]


def leaves(nav: list[object]) -> list[str]:
    """All pages of a navigation."""
    found: list[str] = []
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            found += leaves(value) if isinstance(value, list) else [value]
    return found


# ---- pages that come from code


@pytest.mark.parametrize("path", pages.pages(), ids=lambda path: path.relative_to(DOCS).as_posix())
def test_a_page_that_comes_from_code_is_up_to_date(path: Path) -> None:
    assert path.read_text("utf-8") == pages.pages()[path], "run `python tools/pages.py`"


def test_no_page_of_the_reference_is_left_from_before() -> None:
    assert set((DOCS / "api").glob("*.md")) <= set(pages.pages())


def test_the_map_has_every_equation_line_and_term_of_the_paper() -> None:
    numbers = {n for row in pages.EQUATIONS for n in re.findall(r"\((\d+)\)", row.where)}
    assert numbers == {str(n) for n in range(1, 16)}
    terms = {term for row in pages.EQUATIONS for term in row.where.split(", ")}
    assert {"Omega_1", "Omega_2", "J", "PM", "Theorem 1"} <= terms
    lines = {int(n) for row in pages.ALGORITHM for n in row.where.split(", ")}
    assert {1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 17} == lines


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.where)
def test_what_the_map_names_exists(row: object) -> None:
    assert row.code
    for name in row.code:
        assert (ROOT / name).is_file() if "/" in name else pages.found(name) is not None


@pytest.mark.parametrize("row", [row for row in ROWS if row.mark], ids=lambda row: row.where)
def test_a_line_of_code_says_which_line_or_equation_it_is(row: object) -> None:
    assert pages.marked(row), f"no line of {row.code} ends in a comment with {row.mark}"


def test_an_object_that_is_gone_is_noticed() -> None:
    with pytest.raises(AttributeError):
        pages.found("losses:no_such_loss")
    with pytest.raises(ModuleNotFoundError):
        pages.found("no_such_module:anything")


def test_marks_of_comments_are_told_apart() -> None:
    assert pages._has("7, eq. 11", "7")
    assert pages._has("7, eq. 11", "eq. 11")
    assert pages._has("14-17", "15")
    assert not pages._has("7, eq. 11", "11")
    assert not pages._has("w_i = g_phi(x_i)", "1")


def test_tables_of_the_map_have_four_columns() -> None:
    rows = [line for line in pages.equations_page().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5}


def test_every_public_name_and_class_of_methods_and_equation_is_in_the_reference() -> None:
    assert pages.left_out() == []
    shown = set(re.findall(r"^::: (\S+)$", "\n".join(pages.pages().values()), re.MULTILINE))
    assert {f"{f.__module__}.{f.__name__}" for functions in equations.SECTIONS.values() for f in functions} <= shown
    assert set(pages.method_classes()) <= shown


# ---- navigation and links


def test_every_page_is_in_the_navigation() -> None:
    nav = hooks.unfolded(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"], DOCS)
    listed = leaves(nav)
    assert len(listed) == len(set(listed))
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} <= set(listed)
    assert all((DOCS / page).is_file() or (ROOT / page).is_file() for page in listed)


def test_a_folder_in_the_navigation_stands_for_its_pages(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("b.md", "README.md", "A.md", "x.csv"):
        (tmp_path / "a" / name).touch()
    nav = hooks.unfolded([{"One": ["a/"]}, "c.md"], tmp_path)
    assert nav == [{"One": ["a/README.md", "a/A.md", "a/b.md"]}, "c.md"]


@pytest.mark.parametrize(
    ("page", "link", "in_site"),
    [
        ("README.md", "../CHANGELOG.md", "CHANGELOG.md"),
        ("README.md", "log.md", "log.md"),
        ("results/README.md", "../log.md#part", "../log.md#part"),
        ("results/README.md", "../../examples/README.md", "../examples/README.md"),
        ("examples/README.md", "../docs/your-own-loop.md", "../your-own-loop.md"),
        ("CHANGELOG.md", "docs/results/README.md", "results/README.md"),
        ("README.md", "https://x.org/y.md", "https://x.org/y.md"),
        ("README.md", "#part", "#part"),
    ],
)
def test_links_lead_to_the_same_file_in_the_site(page: str, link: str, in_site: str) -> None:
    assert hooks.relinked(page, f"[a]({link}) `[b]({link})`") == f"[a]({in_site}) `[b]({link})`"


@pytest.mark.parametrize("tag", ['<script src="https://x.org/a.js">', '<link rel=x href="//x.org/a.css">'])
def test_what_is_loaded_from_elsewhere_is_noticed(tag: str) -> None:
    assert hooks.ELSEWHERE.search(f"<p>{tag}</p>")
    assert not hooks.ELSEWHERE.search('<a href="https://x.org">there</a><script src="assets/a.js">')
