"""Indexes of class folders and tables: torchvision's order, remembered listings, and rows that cannot be used."""

import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchvision.datasets import ImageFolder

from imagefolders import class_folders, picture, write
from molere.data import folders
from molere.data.cachefolder import cache_folder
from molere.data.index import read_table, scan_folder
from molere.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLERE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "photos", ("wasp", "ant", "Bee"), each=3)


def aged(root: Path, seconds: float = 60) -> Path:
    """As if nothing had been written to the folders for a while."""
    then = time.time() - seconds
    for folder, _, _ in os.walk(root):
        os.utime(folder, (then, then))
    return root


# ------------------------------------------------------------------------------------- class folders


def test_classes_and_order_are_those_of_torchvision(root: Path) -> None:
    for name in ("ant/deep/er/1.JPG", "ant/deep/0.jpeg", "ant/z/9.webp", "wasp/10.png", "ant/a.tiff"):
        write(root / name, picture(1))
    (root / "ant/notes.txt").write_text("no image")
    (root / "README").write_text("no class")
    index, theirs = scan_folder(root), ImageFolder(root)
    assert list(index.classes) == theirs.classes
    assert [str(root / path) for path in index.paths] == [path for path, _ in theirs.samples]
    assert index.y.tolist() == theirs.targets
    assert index.ids is not None
    assert index.ids.tolist() == index.paths.tolist()


def test_hidden_files_and_folders_are_left_out_and_links_are_followed(root: Path, tmp_path: Path) -> None:
    before = scan_folder(root).paths.tolist()
    for name in (".cache/0.png", "ant/.hidden/0.png", "ant/._0.png"):
        write(root / name, picture(1))
    assert scan_folder(root).paths.tolist() == before
    class_folders(tmp_path / "elsewhere", ("moth",), each=1)
    (root / "moth").symlink_to(tmp_path / "elsewhere/moth")
    (root / "ant/loop").symlink_to(root / "ant")
    assert sorted(scan_folder(root).paths.tolist()) == sorted([*before, "moth/0.png"])


def test_the_second_start_lists_nothing_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan_folder(aged(root))
    monkeypatch.setattr(folders, "_listed_now", lambda root: pytest.fail("it was listed again"))
    second = scan_folder(root)
    assert second.paths.tolist() == first.paths.tolist()
    assert torch.equal(second.y, first.y)
    assert second.classes == first.classes
    assert list(cache_folder().glob("indexes/*.parquet"))
    assert not [path for path in root.rglob("*") if path.suffix not in ("", ".png")]


@pytest.mark.parametrize("change", ["added", "removed", "class added", "deep"])
def test_a_changed_folder_is_listed_again(root: Path, change: str) -> None:
    write(root / "ant/deep/0.png", picture(0))
    count = len(scan_folder(aged(root)))
    if change == "removed":
        (root / "wasp/0.png").unlink()
    else:
        added = {"added": "ant/new.png", "class added": "moth/0.png", "deep": "ant/deep/1.png"}
        write(root / added[change], picture(0))
    assert len(scan_folder(root)) == count + (-1 if change == "removed" else 1)


def test_folders_that_have_just_changed_are_not_trusted_to_show_the_next_change(root: Path) -> None:
    now = time.time_ns()
    for folder in (root, *root.iterdir()):
        os.utime(folder, ns=(now, now))
    count = len(scan_folder(root))
    write(root / "ant/new.png", picture(0))
    os.utime(root / "ant", ns=(now, now))
    assert len(scan_folder(root)) == count + 1


@pytest.mark.parametrize("damage", [b"", b"no parquet", None])
def test_a_damaged_or_unwritable_cache_is_done_without(
    root: Path, damage: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if damage is None:
        (tmp_path / "a file").write_text("")
        monkeypatch.setenv("MOLERE_CACHE", str(tmp_path / "a file" / "below"))
    count = len(scan_folder(aged(root)))
    for place in cache_folder().glob("indexes/*"):
        place.write_bytes(damage or b"")
    assert len(scan_folder(root)) == count == 9


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLERE_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("MOLERE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/molere")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/molere"


def test_a_test_folder_is_read_with_the_classes_of_the_training_folder(root: Path, tmp_path: Path) -> None:
    other = class_folders(tmp_path / "test", ("ant", "wasp"), each=1)
    index = scan_folder(other, scan_folder(root).classes)
    assert index.classes == ("Bee", "ant", "wasp")
    assert index.y.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"test: wasp are no classes of the training data; known: Bee, ant"):
        scan_folder(other, ("Bee", "ant"))


def test_folders_that_hold_no_classes_or_no_images_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*/nowhere; give the folder that holds one folder for"):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"ant holds no folders; expected one for each class, as in .*/CLASS/IMAGE"):
        scan_folder(root / "ant")
    (root / "moth").mkdir()
    with pytest.raises(DataError, match=r"no image in .*/photos/moth; remove or fill these folders"):
        scan_folder(root)


def test_rows_are_taken_with_all_their_columns(root: Path, tmp_path: Path) -> None:
    lines = [f"{c}/{i}.png,{c},{i % 2},{'train' if i else 'test'},{i}{c}" for c in ("ant", "wasp") for i in range(3)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["image,label,site,part,key", *lines]))
    index = read_table(table, group="site", split="part", id="key", root=root)
    test = index.part("test")
    assert test.paths.tolist() == ["ant/0.png", "wasp/0.png"]
    assert test.y.tolist() == [0, 1]
    assert test.group is not None
    assert test.group.tolist() == [0, 0]
    assert test.ids is not None
    assert test.ids.tolist() == ["0ant", "0wasp"]
    assert len(index.part("train")) == 4
    assert len(index.part("nothing")) == len(scan_folder(root).part("train")) == 0
    assert test.files.read(torch.tensor([1]), 16).shape == (1, 3, 16, 16)


# ------------------------------------------------------------------------------------- tables


def table_of(root: Path, *lines: str, head: str = "image,label", name: str = "t.csv") -> Path:
    path = root / name
    path.write_text("\n".join([head, *lines, ""]), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables_of_every_kind_say_the_same(root: Path, kind: str) -> None:
    rows = [("ant/0.png", 10), ("wasp/1.png", 9), ("ant/2.png", 10)]
    path = root / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"image": [r[0] for r in rows], "label": [r[1] for r in rows]}), path)
    else:
        comma = "," if kind == "csv" else "\t"
        path.write_text("\n".join(comma.join(map(str, row)) for row in [("image", "label"), *rows]))
    index = read_table(path)
    assert index.paths.tolist() == [r[0] for r in rows]
    assert index.classes == ("9", "10")
    assert index.y.tolist() == [1, 0, 1]


def test_labels_are_sorted_as_numbers_where_all_are_and_else_as_text(root: Path) -> None:
    rows = ["ant/0.png,2", "ant/1.png,10", "ant/2.png,x"]
    assert read_table(table_of(root, *rows[:2])).classes == ("2", "10")
    assert read_table(table_of(root, *rows)).classes == ("10", "2", "x")


def test_whole_numbers_that_were_stored_as_floats_are_the_same_classes(root: Path) -> None:
    images = ["ant/0.png", "ant/1.png", "ant/2.png"]
    pq.write_table(pa.table({"image": images, "label": [1.0, 0.0, None]}), root / "t.parquet")
    with pytest.raises(DataError, match="1 of 3 rows cannot be used: row 2 has no label"):
        read_table(root / "t.parquet")
    with pytest.warns(UserWarning, match="They are left out"):
        assert read_table(root / "t.parquet", on_bad="skip").classes == ("0", "1")


def test_ids_stay_as_they_are_written(root: Path) -> None:
    head = "image,label,id"
    zeros = read_table(table_of(root, "ant/0.png,a,007", "ant/1.png,b,7", head=head), id="id")
    assert zeros.ids is not None
    assert zeros.ids.tolist() == ["007", "7"]
    numbers = read_table(table_of(root, "ant/0.png,a,70", "ant/1.png,b,7", head=head), id="id")
    assert numbers.ids is not None
    assert numbers.ids.tolist() == [70, 7]


def test_paths_with_spaces_commas_and_any_script_and_a_byte_order_mark_are_read(root: Path) -> None:
    name = "ant/Grüße, 東京 1.png"
    write(root / name, picture(0))
    path = root / "t.csv"
    path.write_text(f'image,label\n"{name}",ameise\nwasp/0.png,東京\n', encoding="utf-8-sig")
    index = read_table(path)
    assert index.paths[0] == name
    assert index.classes == ("ameise", "東京")


def test_absolute_paths_below_the_root_are_taken_and_those_that_leave_it_are_refused(root: Path) -> None:
    path = table_of(root, f"{root}/ant/0.png,a", "./wasp/../ant/1.png,b")
    assert read_table(path).paths.tolist() == ["ant/0.png", "ant/1.png"]
    for outside in ("../photos2/ant/0.png", "/etc/hostname", "ant/../../x.png"):
        with pytest.raises(DataError, match=rf"row 1: {outside} leaves .*/photos"):
            read_table(table_of(root, "ant/0.png,a", f"{outside},b"))


BAD = [
    "ant/0.png,a,0",
    "ant/gone.png,a,1",
    "ant/1.png,,2",
    "wasp/0.png,b,0",
    ",b,4",
    "wasp/1.png,zebra,5",
    "../x.png,a,6",
    "wasp/2.png,b,7",
]


def test_bad_rows_are_named_counted_and_refused(root: Path) -> None:
    path = table_of(root, *BAD, head="image,label,id")
    with pytest.raises(DataError) as caught:
        read_table(path, id="id", classes=("a", "b"))
    text = str(caught.value)
    assert "\n" not in text
    assert f"{path}: 6 of 8 rows cannot be used" in text
    for said in (
        f"row 1: {root}/ant/gone.png is not there",
        "row 2 has no label",
        "row 3: id 0 is also that of row 0",
        "row 4 names no image",
        "row 5: label 'zebra' is not one of a, b",
        "and 1 more",
        "leave them out with --on-bad skip",
    ):
        assert said in text


def test_skipped_rows_leave_the_ids_and_labels_of_the_others_alone(root: Path) -> None:
    path = table_of(root, *BAD, head="image,label,id")
    with pytest.warns(UserWarning, match="6 of 8 rows cannot be used.*They are left out"):
        index = read_table(path, id="id", classes=("a", "b"), on_bad="skip")
    assert index.ids is not None
    assert dict(zip(index.ids.tolist(), index.y.tolist(), strict=True)) == {0: 0, 7: 1}


def test_a_table_without_the_column_without_rows_or_without_sense_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="t.csv has no column file; its columns are image, label"):
        read_table(table_of(root, "ant/0.png,a"), image="file")
    with pytest.raises(DataError, match="t.csv has no rows; expected one for each image"):
        read_table(table_of(root))
    with pytest.raises(DataError, match=r"t.parquet cannot be read as a table \(.*\); give a .csv, .tsv or .parquet"):
        read_table(table_of(root, name="t.parquet"))
    with pytest.raises(DataError, match=r"nowhere.csv cannot be read as a table"):
        read_table(root / "nowhere.csv")
    with pytest.raises(DataError, match="Nothing is left; check the path and the column names"):
        read_table(table_of(root, "0.png,a", "1.png,b"), on_bad="skip")


def test_on_bad_knows_two_words(root: Path) -> None:
    with pytest.raises(DataError, match="on_bad must be error or skip; got 'ignore'"):
        read_table(table_of(root, "0.png,a", "ant/1.png,b"), on_bad="ignore")


def test_groups_have_names_in_order(root: Path) -> None:
    rows = ["ant/0.png,a,night", "ant/1.png,b,day", "ant/2.png,b,"]
    with pytest.warns(UserWarning, match="row 2 has no group"):
        index = read_table(table_of(root, *rows, head="image,label,when"), group="when", on_bad="skip")
    assert index.group_names == ("day", "night")
    assert index.group is not None
    assert index.group.tolist() == [1, 0]
    assert isinstance(index.paths, np.ndarray)


@pytest.mark.parametrize("words", [["a/b.png", "cc/dd.png", "e"], ["ä/b", "猫/ein Bild"], ["x"] * 3, ["", "ab"], [""]])
def test_remembered_text_is_read_from_the_bytes_of_its_column(words: list[str]) -> None:
    for column in (pa.array(words), pa.array(["before", "it", *words])[2:]):
        found = folders.texts(column)
        assert found.dtype.kind == "U"
        assert found.tolist() == words
