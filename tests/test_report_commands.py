"""The commands that a report names are accepted as they stand there, in any folder."""

import json
import re
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import stub_training
from commands import Command
from molere.paths import placed, unplaced
from molere.show import runpage
from molere.show.records import Record
from test_own_data import people, written

TRAIN = ("train", "--data", "t.csv", "--group", "region", "--test", "far=far.csv", "--method", "erm", "--epochs", "1")


def named(text: str, command: str) -> list[str]:
    """The arguments of a command, the first of its name in a text."""
    found = re.search(rf"molere ({command} .*)", text)
    assert found is not None, f"no {command} in {text}"
    return shlex.split(found[1])


def planned(molere: Command, arguments: list[str]) -> dict[str, Any]:
    """What the command would do, as it says itself."""
    said = molere(*arguments, "--dry-run", "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


@pytest.fixture
def own(molere: Command, tmp_path: Path) -> Path:
    """A run on the user's own data, named relative to the folder where it was started."""
    written(tmp_path / "t.csv", people())
    written(tmp_path / "far.csv", people(10, 500))
    said = molere(*TRAIN, "--out", "own")
    assert said.code == 0, said.err
    return tmp_path / "own"


@pytest.mark.report
def test_the_commands_of_a_run_on_own_data_work_in_another_folder(
    molere: Command, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    page = re.sub(r"<[^>]*>", "", unescape((own / "report.html").read_text("utf-8")))
    compared = planned(molere, named(page, "compare"))
    assert (compared["methods"], compared["seeds"]) == (["erm", "molere"], [0, 1, 2, 3, 4])
    again = planned(molere, named(page, "train"))
    assert (again["methods"], again["folder"]) == (["erm"], "NEW-FOLDER")
    for plan in (compared, again):
        assert plan["data"]["name"] == str(tmp_path / "t.csv")
        assert plan["data"]["test"] == {"far": str(tmp_path / "far.csv")}
        assert (plan["data"]["group"], plan["train"]["epochs"]) == ("region", 1)
    assert molere(*named(page, "samples")).code == 0
    assert json.loads(molere("resume", "../own", "--json").out)["updates"] == again_updates(own)
    rest = "\n".join(line for line in page.splitlines() if "molere " not in line)
    assert str(tmp_path) not in rest


def again_updates(own: Path) -> int:
    return json.loads((own / "result.json").read_text())["updates"]


def test_where_the_data_are_changes_neither_the_folders_name_nor_what_is_resumed(
    molere: Command, own: Path, tmp_path: Path
) -> None:
    name = planned(molere, [*TRAIN])["folder"]
    assert re.fullmatch(r"molere-runs/t-clean-erm-seed-0-[0-9a-f]{8}", name)
    before = (own / "run.json").read_bytes()
    text = (own / "config.yaml").read_text()
    (own / "config.yaml").write_text(text.replace(f"{tmp_path}/", ""))  # as older versions wrote it
    assert molere(*TRAIN, "--out", "own").code == 0
    assert molere("resume", "own").code == 0
    assert (own / "run.json").read_bytes() == before
    assert planned(molere, [*TRAIN])["folder"] == name


@pytest.mark.parametrize(
    ("label", "methods"),
    [
        ("lrw-hard[q=2,keep=true]", ["erm", "lrw-hard[keep=true,q=2]"]),
        ("erm", ["erm", "molere"]),
        ("erm@paper", ["erm@paper", "molere"]),
    ],
)
def test_the_comparison_that_a_verdict_names_holds_the_method_against_another(
    label: str, methods: list[str], molere: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "a run"
    folder.mkdir()
    text = f"data: {{name: digits, limit: 300}}\nmodel: cnn\nmethods: ['{label}']\nout: '{folder}'\n"
    (folder / "config.yaml").write_text(text)
    result = {**stub_training.result(label, 0), "label": label, "data": "digits"}
    plan = planned(molere, named(runpage.verdict(Record(result, settings=text, folder=folder))[-1], "compare"))
    assert (plan["methods"], len(plan["seeds"]), plan["folder"]) == (methods, 5, "NEW-FOLDER")
    assert (plan["model"], plan["data"]["limit"]) == ("cnn", 300)


def test_paths_of_data_become_absolute_where_there_is_something_and_are_shortened_for_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("t.csv", "w: x.csv", "hard.csv"):
        (tmp_path / name).write_text("")
    given = {"name": "t.csv", "weights": "w: x.csv", "root": "nowhere", "test": {"a": "hard.csv"}, "label": "hard.csv"}
    found = placed(given)
    assert found == {
        "name": str(tmp_path / "t.csv"),
        "weights": str(tmp_path / "w: x.csv"),
        "root": "nowhere",
        "test": {"a": str(tmp_path / "hard.csv")},
    }
    assert "name" not in placed({"name": "digits"})
    text = (
        f"data:\n  name: {tmp_path}/t.csv  # Data set.\n  weights: '{tmp_path}/w: x.csv'\nout: {tmp_path}/t.csv.run\n"
    )
    assert unplaced(text, found) == (
        f'data:\n  name: t.csv  # Data set.\n  weights: "w: x.csv"\nout: {tmp_path}/t.csv.run\n'
    )
