"""Files that can be read are decoded once, whoever asks for them; what changed, and what was bad, again."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imagefolders import class_folders, picture, write
from molere.data import readable
from molere.data.build import data_of
from molere.data.cachefolder import cache_folder
from molere.data.imagefiles import ImageFiles
from molere.data.index import Index, scan_folder


@pytest.fixture(autouse=True)
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An own cache, and the files decoded so far to see whether they can be read."""
    monkeypatch.setenv("MOLERE_CACHE", str(tmp_path / "cache"))
    seen, plain = list[str](), ImageFiles.check
    monkeypatch.setattr(ImageFiles, "check", lambda self: (seen.extend(self.paths.tolist()), plain(self))[1])
    return seen


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return scan_folder(class_folders(tmp_path / "photos", each=10))


def test_a_second_start_with_another_split_decodes_nothing(index: Index, decoded: list[str]) -> None:
    for seed in range(3):
        data_of("x", index, {"test": index}, select=0.2, size=16, memory=False, seed=seed)
    assert sorted(decoded) == sorted(index.paths.tolist())


def test_changed_added_and_bad_files_are_tried_again_and_no_others(index: Index, decoded: list[str]) -> None:
    (index.root / "bee/0.png").write_bytes(b"no image")
    assert [*readable.mistakes(index.files)] == [10]
    decoded.clear()
    (index.root / "ant/3.png").write_bytes(b"")  # in place: the folder's time stays
    found = readable.mistakes(index.files)
    assert sorted(decoded) == ["ant/3.png", "bee/0.png"]
    assert found[3].endswith("ant/3.png is empty")
    assert [*found] == [3, 10]
    decoded.clear()
    for name in ("ant/3.png", "bee/0.png", "bee/x.png"):
        write(index.root / name, picture(77))
    assert readable.mistakes(scan_folder(index.root).files) == {}
    assert sorted(decoded) == ["ant/3.png", "bee/0.png", "bee/x.png"]


def test_of_many_files_only_the_times_of_their_folders_are_compared(
    index: Index, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readable, "MANY", 20)
    asked, plain = list[str](), readable._state

    def start(on_bad: str = "skip") -> list[str]:
        decoded.clear()
        data_of("x", scan_folder(index.root), {"test": index}, select=0.0, size=16, memory=False, on_bad=on_bad)
        return sorted(decoded)

    assert start("error") == []  # a bad one is named when it is met

    os.utime(index.root / "ant", (5, 5))
    os.utime(index.root / "bee", (5, 5))
    assert start() == sorted(index.paths.tolist())
    monkeypatch.setattr(readable, "_state", lambda path: (asked.append(Path(path).name), plain(path))[1])
    assert start() == []
    assert {*asked} == {"ant", "bee"}


def test_files_that_are_large_together_are_many(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum((index.root / path).stat().st_size for path in index.paths)
    monkeypatch.setattr(readable, "MUCH", size)
    assert not readable.are_many([index.files])
    assert readable.are_many([index.files, index.files])


def test_one_folder_that_changed_is_looked_through_again(index: Index, decoded: list[str]) -> None:
    readable.mistakes(index.files, by_folder=True)
    decoded.clear()
    os.utime(index.root / "bee", (5, 5))
    assert readable.mistakes(index.files, by_folder=True) == {}
    assert sorted(decoded) == [f"bee/{i}.png" for i in range(10)]


def test_what_was_found_is_kept_piece_by_piece(
    index: Index, decoded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readable, "_AT_ONCE", 6)
    (index.root / "bee/9.png").write_bytes(b"")
    plain = ImageFiles.check

    def stopped(files: ImageFiles) -> dict[int, str]:
        if len(decoded) >= 12:
            raise KeyboardInterrupt
        return plain(files)

    with monkeypatch.context() as patched:
        patched.setattr(ImageFiles, "check", stopped)
        with pytest.raises(KeyboardInterrupt):
            readable.mistakes(index.files)
    assert "20 image files are looked through, once" in caplog.text
    decoded.clear()
    assert [*readable.mistakes(index.files)] == [19]
    assert decoded == index.paths.tolist()[12:]


def test_a_look_that_was_damaged_or_cannot_be_kept_is_made_anew(
    index: Index, decoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable.mistakes(index.files)
    (place,) = cache_folder().glob("checks/*.npy")
    whole = place.read_bytes()
    for damaged in (whole[:-3], b"", b"\x93NUMPY", b"no array"):
        decoded.clear()
        place.write_bytes(damaged)
        assert readable.mistakes(index.files) == {}
        assert len(decoded) == 20
    np.save(place, np.zeros((2, 2)))
    assert readable.mistakes(index.files) == {}
    assert place.read_bytes() == whole
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOLERE_CACHE", str(tmp_path / "file"))
    (index.root / "ant/3.png").write_bytes(b"")
    assert [*readable.mistakes(index.files)] == [3]


def test_asked_to_look_anew_every_file_is_decoded(index: Index, decoded: list[str]) -> None:
    for times in (1, 2):
        assert readable.mistakes(index.files, anew=True) == {}
        assert len(decoded) == 20 * times
    readable.mistakes(index.files)
    assert len(decoded) == 40
    assert readable.mistakes(index.files.take(torch.arange(0))) == {}


NAMES = st.lists(st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1), unique=True)


@given(names=NAMES.filter(lambda names: len(names) > 1), by_folder=st.booleans())
def test_the_mark_of_a_file_is_its_own_whatever_files_are_beside_it(names: list[str], by_folder: bool) -> None:
    files = ImageFiles(Path("/nowhere"), np.asarray([f"a/{name}" for name in names]))
    marks = readable.marks_of(files, by_folder)
    assert len(set(marks.tolist())) == len(names)
    for row in range(len(names)):
        alone = ImageFiles(files.root, np.asarray([f"a/{names[row]}"]))
        assert readable.marks_of(alone, by_folder).tolist() == [marks[row]]
