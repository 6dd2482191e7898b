"""The documentation is true: its Python runs, its commands are accepted, its links lead somewhere."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from molere import cli, registry, settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LOG = ROOT / "docs" / "log.md"  # says what was run once, and is not rewritten when the library changes
METHODS = ROOT / "docs" / "methods"
OF_HOLDOUT = METHODS / "learned-split.md"
OF_METHODS = [page for page in sorted(METHODS.glob("*.md")) if page.name != "README.md" and page != OF_HOLDOUT]
PAGES = [README, *(page for page in sorted((ROOT / "docs").glob("*.md")) if page != LOG), OF_HOLDOUT, *OF_METHODS]
LINKED = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> Iterator[tuple[int, str]]:
    """(lines before it, text) of each fenced block in a language."""
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start(1)), found[1]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    """The targets of all links to other files of the repository, without their fragment."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    return [target.partition("#")[0] for target in targets if not re.match(r"#|[a-z]+:", target)]


def commands(text: str) -> list[list[str]]:
    """The arguments of each `molere` in the sh blocks, alone in its line or after other commands."""
    lines = [line for _, block in blocks(text, "sh") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in re.split(r"&&|\|\||;", line)]
    words = [shlex.split(part, comments=True) for part in parts]
    return [found[1:] for found in words if found[:1] == ["molere"]]


WITH_PYTHON = [page for page in PAGES if any(blocks(page.read_text("utf-8"), "python"))]
OF_COMMANDS = (
    "comparing.md", "corruption.md", "models.md", "faults.md", "start.md", "which-method.md", "noisy-labels.md",
    "rare-groups.md", "long-tail.md",
)  # fmt: skip
WITH_COMMANDS = (README, *(ROOT / "docs" / page for page in OF_COMMANDS), OF_HOLDOUT, *OF_METHODS)
COMMANDS = [c for page in WITH_COMMANDS for c in commands(page.read_text("utf-8"))]
TRAINS = [c for c in COMMANDS if c[0] in ("demo", "train", "compare")]
RESUMES = [c for c in COMMANDS if c[0] == "resume"]
LISTS = [c for c in COMMANDS if c not in TRAINS + RESUMES]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def said(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints; it must succeed and have nothing to complain of."""
    monkeypatch.setattr(sys, "argv", ["molere", *arguments])
    capsys.readouterr()
    code = cli.main()
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), f"molere {shlex.join(arguments)}: {err}"
    return out


# ---- Python


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where dataclasses look their annotations up
    for before, block in blocks(page.read_text("utf-8"), "python"):
        exec(compile("\n" * before + block, str(page), "exec"), module.__dict__)  # numbered as in the page


# ---- commands


@pytest.mark.parametrize("arguments", TRAINS, ids=shlex.join)
def test_a_command_that_trains_is_understood(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = json.loads(said([*arguments, "--dry-run", "--json"], monkeypatch, capsys))
    assert plan["runs"] == len(plan["methods"]) * len(plan["seeds"]) > 0


@pytest.mark.parametrize("arguments", LISTS, ids=shlex.join)
def test_a_command_that_lists_answers(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(arguments, monkeypatch, capsys)


def test_what_is_resumed_is_a_folder_that_another_command_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = [json.loads(said([*c, "--dry-run", "--json"], monkeypatch, capsys)) for c in TRAINS]
    assert {folder for _, folder in RESUMES} <= {plan["folder"] for plan in plans}


def test_the_commands_for_ones_own_data_do_what_they_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "your-data.md").read_text("utf-8")
    exec(next(block for _, block in blocks(text, "python")), {})  # makes the files
    for arguments in commands(text):
        alone = ["--jobs", "1"] if arguments[0] == "compare" else []
        assert said([*arguments, *alone, "--quiet"], monkeypatch, capsys)


OF_PUBLICATION = commands((ROOT / "docs" / "reproducing.md").read_text("utf-8"))


@pytest.mark.parametrize("arguments", OF_PUBLICATION, ids=shlex.join)
def test_a_command_that_reproduces_is_understood(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arguments[0] == "reproduce"
    assert said([*arguments, "--dry-run"], monkeypatch, capsys)


# ---- links


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_every_link_leads_to_a_file(page: Path) -> None:
    assert not [target for target in links(page.read_text("utf-8")) if not (page.parent / target).exists()]


def test_every_decision_is_in_the_index_under_its_title() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    for record in sorted(folder.glob("[0-9]*.md")):
        title = record.read_text("utf-8").splitlines()[0].removeprefix("# ")
        assert f"- [{title}]({record.name})" in index


# ---- pages of methods

HEADINGS = [
    "Idea",
    "Equation",
    "Use",
    "Settings",
    "Cost in passes",
    "When it helps, when it hurts",
    "Deviations from the published code",
    "Attribution",
]


def described(page: Path) -> list[str]:
    """The methods that a page is about: its title."""
    return page.read_text("utf-8").splitlines()[0].removeprefix("# ").split(", ")


@pytest.mark.parametrize("page", OF_METHODS, ids=name_of)
def test_a_page_of_a_method_has_the_headings_of_all_and_python_to_run(page: Path) -> None:
    text = without_code(page.read_text("utf-8"))
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert page in WITH_PYTHON
    assert described(page)[0] == page.stem


@pytest.mark.parametrize("page", OF_METHODS, ids=name_of)
def test_a_page_of_a_method_names_every_setting_in_its_table(page: Path) -> None:
    table = page.read_text("utf-8").partition("\n## Settings\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w.]+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    for name in described(page):
        known = settings.known_settings(name)
        assert known is not None
        assert set(known) <= named


def test_every_method_is_in_the_index_and_every_page_is_of_one() -> None:
    index = (METHODS / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (?:\[`([\w-]+)`\]\(([\w-]+\.md)\)|`([\w-]+)`) \|", index, re.MULTILINE)
    assert [linked or plain for linked, _, plain in rows] == list(registry.METHODS)
    targets = {linked: target for linked, target, _ in rows if linked}
    assert {targets.get(name) for page in OF_METHODS for name in described(page)} == set(targets.values())
    assert all(targets.get(name) == page.name for page in OF_METHODS for name in described(page))


# ---- what reads the pages


PAGE = """
[a](b.md#part) `[no](code.md)` [web](https://x.org/y.md) [here](#part)

```sh
cd x && molere demo              # molere train
molere train \\
  --seed 1 "a=[b, c]"
```

```python
x = "[no](code.md)"
```
"""


def test_the_reader_finds_blocks_commands_and_links() -> None:
    assert list(blocks(PAGE, "python")) == [(10, 'x = "[no](code.md)"\n')]
    assert commands(PAGE) == [["demo"], ["train", "--seed", "1", "a=[b, c]"]]
    assert links(PAGE) == ["b.md"]


def test_the_reader_finds_what_the_readme_has() -> None:
    assert README in WITH_PYTHON
    assert ["demo"] in TRAINS
    assert RESUMES
    assert LISTS
