"""`molere data list | check | get`: what is there, what is missing, and downloads that break off."""

import hashlib
import json
import re
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

import named_folders as folders
from molere.cli import datasets, main
from molere.data.named import catalog, checking, getting
from molere.data.named.entries import DATASETS
from molere.data.named.facts import FACTS
from molere.errors import ConfigError, DataError, StorageError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLERE_CACHE", str(tmp_path_factory.mktemp("cache")))


def molere(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["molere", *arguments])
    return main()


APTOS = "aptos2019-blindness-detection"
MAKERS: dict[str, Callable[[Path], object]] = {
    name: getattr(folders, name)
    for name in ("aircraft", "cars", "pet", "clothing1m", "camelyon", "iwildcam", "retinopathy", "pacs", "cifar100")
}


# ------------------------------------------------------------------------------------------------ list


def test_the_list_says_what_each_set_is_and_whether_it_is_there(tmp_path: Path) -> None:
    folders.pet(tmp_path)
    text = datasets.listing(str(tmp_path), as_json=False)
    assert all(f"{name}: {entry.summary}" in text for name, entry in DATASETS.items())
    assert f"found: {tmp_path / 'oxford-iiit-pet'}" in text
    assert f"not found: {tmp_path / 'PACS'}" in text
    assert "licence: CC BY-SA 4.0" in text
    assert "give --root PATH, the folder that holds stanford_cars" in datasets.listing(None, as_json=False)
    entries = json.loads(datasets.listing(str(tmp_path), as_json=True))["data"]
    assert [name for name, entry in entries.items() if entry["available"]] == ["digits", "pet"]
    assert entries["cars"]["how_to_get"][0].startswith("its makers no longer offer it")
    assert entries["pet"]["citation"].startswith("Parkhi")


def test_a_set_whose_companion_is_missing_is_said_to_be_incomplete(tmp_path: Path) -> None:
    folders.human_file(tmp_path / "cifar-n" / "CIFAR-10_human.pt", {"clean_label": np.zeros(5, np.int64)})
    text = datasets.listing(str(tmp_path), as_json=False)
    assert f"found: {tmp_path / 'cifar-n'}; but cifar10: there is no folder {tmp_path / 'cifar-10-batches-py'}" in text


# ------------------------------------------------------------------------------------------------ check


@pytest.mark.parametrize("name", MAKERS)
def test_whole_folders_are_fine_and_counted(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    checked = checking.check(name, tmp_path, images=True)
    assert checked.fine, checked
    assert checked.parts["train"] > 0
    assert checked.parts["test"] > 0


def test_missing_and_broken_images_are_named_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.pet(tmp_path) / "images"
    (folder / "Birman_1.jpg").write_bytes(b"\xff\xd8 no image")
    assert checking.check("pet", tmp_path).fine
    checked = checking.check("pet", tmp_path, images=True)
    assert not checked.fine
    assert len(checked.bad) == 1
    assert "Birman_1.jpg cannot be read" in checked.bad[0]
    (folder / "Birman_2.jpg").unlink()
    assert checking.check("pet", tmp_path).missing == (str(folder / "Birman_2.jpg"),)
    assert molere(monkeypatch, "data", "check", "pet", "--root", str(tmp_path)) == 3


def test_checksums_are_compared_with_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.cifar100(tmp_path)
    digest = hashlib.md5((tmp_path / "cifar-100-python" / "test").read_bytes()).hexdigest()
    facts = FACTS["cifar100"]
    monkeypatch.setitem(FACTS, "cifar100", replace(facts, md5={**facts.md5, "test": digest}))  # type: ignore[arg-type]
    checked = checking.check("cifar100", tmp_path)
    assert checked.checksums == {"train": "differs", "test": "official"}
    assert checked.parts == {"train": 200, "test": 200}
    assert any("is not the official file" in note for note in checked.notes)
    (tmp_path / "cifar-100-python" / "train").unlink()
    checked = checking.check("cifar100", tmp_path)
    assert checked.checksums["train"] == "not there"
    assert "lacks train" in checked.problem


def test_the_page_of_a_check_tells_licence_citation_and_steps(tmp_path: Path) -> None:
    text, code = datasets.check("clothing1m", str(tmp_path), images=False, as_json=False)
    assert code == 3
    for part in (
        "for research only, on request",
        "Xiao et al.",
        "problem:   clothing1m: there is no folder",
        "  1. ask the",
    ):
        assert part in text
    folders.clothing1m(tmp_path)
    text, code = datasets.check("clothing1m", str(tmp_path), images=True, as_json=False)
    assert code == 0
    assert "examples:  train 20, select 6, test 6" in text
    assert text.endswith("complete:  yes (all images were opened)")
    answer = json.loads(datasets.check("clothing1m", str(tmp_path), images=False, as_json=True)[0])
    assert (answer["fine"], answer["parts"]["train"]) == (True, 20)


def named_in(text: str) -> set[str]:
    return set(re.findall(r"molere data (?:get|check) ([a-z0-9][a-z0-9.-]*[a-z0-9])", text))


def test_every_name_that_a_message_tells_to_get_or_check_is_accepted_by_both(tmp_path: Path) -> None:
    source = Path(datasets.__file__).parents[1]
    asked, told = set[str](), named_in("\n".join(path.read_text() for path in source.rglob("*.py")))
    told |= {*FACTS} | named_in(datasets.listing(None, as_json=False))
    while left := told - asked:
        for name in left:
            for text, code in (datasets.get(name, None), datasets.check(name, str(tmp_path), False, False)):
                assert code in (0, 3)
                told |= named_in(text)
        asked |= left
    assert {"retinopathy-aptos", "imagenet", "cifar10"} <= asked


def test_the_shifted_test_of_retinopathy_is_checked_by_its_own_name(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert "there is no folder" in datasets.check("retinopathy-aptos", root, False, False)[0]
    folders.retinopathy(tmp_path, aptos=False)
    assert "  with retinopathy-aptos: not found: " in datasets.listing(root, as_json=False)
    with pytest.warns(UserWarning, match=r"no shifted test \(molere data get retinopathy-aptos\)"):
        catalog.parts_of("retinopathy", root, "")
    folders.retinopathy(tmp_path)
    text, code = datasets.check("retinopathy-aptos", root, images=True, as_json=False)
    assert code == 0
    assert "examples:  test 5" in text
    assert datasets.get("retinopathy-aptos", root) == (f"retinopathy-aptos is there: {tmp_path / APTOS}", 0)
    (tmp_path / APTOS / "train_images" / "000c1434d8d3.png").write_bytes(b"")
    assert "000c1434d8d3.png is empty" in datasets.check("retinopathy-aptos", root, images=True, as_json=False)[0]


def test_embedded_data_are_always_fine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert molere(monkeypatch, "data", "check", "digits") == 0
    assert "examples:  all 1,797" in capsys.readouterr().out
    assert molere(monkeypatch, "data", "get", "digits") == 0


def test_unknown_names_get_the_nearest_one(tmp_path: Path) -> None:
    for ask in (lambda: datasets.check("pets", None, False, False), lambda: datasets.get("pets", str(tmp_path))):
        with pytest.raises(ConfigError, match="unknown data set 'pets'; did you mean 'pet'"):
            ask()


# ------------------------------------------------------------------------------------------------ get


@pytest.mark.parametrize("name", ["pacs", "cars", "camelyon", "retinopathy", "clothing1m", "imagenet"])
def test_what_cannot_be_fetched_is_told_step_by_step_with_exit_code_3(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert molere(monkeypatch, "data", "get", name, "--root", str(tmp_path)) == 3
    out = capsys.readouterr().out
    assert f"{name}: molere cannot fetch it" in out
    assert f"  1. {FACTS[name].steps[0]}" in out
    assert not list(tmp_path.iterdir())


def test_without_a_root_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert molere(monkeypatch, "data", "get", "cifar10") == 3
    assert "cifar10: give --root PATH to fetch it to" in capsys.readouterr().out


def no_network(*arguments: object, **options: object) -> object:
    raise urllib.error.URLError("Temporary failure in name resolution")


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "pet", "aircraft", "imagenet-r", "cifar10n", "cifar10.1"])
def test_no_network_is_one_line_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    one = next((other for other in FACTS[name].needs if FACTS[other].fetch and other != "imagenet"), name)
    assert molere(monkeypatch, "data", "get", name, "--root", str(tmp_path)) == 3
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith(f"error: {one} could not be fetched (")
    assert "nothing of it was kept" in told[-1]
    assert len([line for line in told if line.startswith("error")]) == 1
    assert not list(tmp_path.iterdir())


class Served:
    """Answers every address with the same bytes, perhaps cut short."""

    def __init__(self, content: bytes, promised: int | None = None) -> None:
        self.content, self.length = content, promised or len(content)
        self.url = None

    def __call__(self, *arguments: object, **options: object) -> "Served":
        return Served(self.content, self.length)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def read(self, size: int) -> bytes:
        part, self.content = self.content[:size], self.content[size:]
        return part


def labels_file(folder: Path) -> bytes:
    folders.human_file(folder / "labels.pt", {"clean_label": np.arange(100) % 10, "worse_label": np.arange(100) % 10})
    return (folder / "labels.pt").read_bytes()


def expect(monkeypatch: pytest.MonkeyPatch, content: bytes) -> str:
    md5, facts = hashlib.md5(content).hexdigest(), FACTS["cifar10n"]
    urls = {target: (url, md5) for target, (url, _) in facts.urls.items()}
    monkeypatch.setitem(FACTS, "cifar10n", replace(facts, md5=dict.fromkeys(facts.md5, md5), urls=urls))  # type: ignore[arg-type]
    return md5


@pytest.mark.parametrize("spoil", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:-1] + b"?", lambda raw: b""])
def test_half_files_and_wrong_checksums_are_never_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes]
) -> None:
    raw = labels_file(tmp_path)
    expect(monkeypatch, raw)
    monkeypatch.setattr(urllib.request, "urlopen", Served(spoil(raw), len(raw)))
    root = tmp_path / "root"
    with pytest.raises(DataError, match="cifar10n could not be fetched .*; nothing of it was kept"):
        getting.fetch("cifar10n", root)
    assert not list(root.iterdir())
    assert not getting.there("cifar10n", root)


def test_what_came_whole_is_put_in_place_and_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = labels_file(tmp_path)
    expect(monkeypatch, raw)
    monkeypatch.setattr(urllib.request, "urlopen", Served(raw))
    root = tmp_path / "root"
    folders.cifar10(root)
    monkeypatch.setattr(getting, "there", lambda name, where: name == "cifar10" or _original(name, where))
    text, code = datasets.get("cifar10n", str(root))
    assert code == 0
    assert text.splitlines() == [
        f"cifar10 is there: {root / 'cifar-10-batches-py'}",
        f"cifar10n fetched: {root / 'cifar-n'}",
    ]
    assert (root / "cifar-n" / "CIFAR-10_human.pt").read_bytes() == raw
    assert sorted(path.name for path in root.iterdir()) == ["cifar-10-batches-py", "cifar-n"]
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    assert datasets.get("cifar10n", str(root))[0].endswith(f"cifar10n is there: {root / 'cifar-n'}")


_original = getting.there


def test_a_folder_that_came_without_all_its_images_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut:
        def __init__(self, root: str, download: bool = False, split: str = "trainval") -> None:
            folders.aircraft(Path(root))
            (Path(root) / "fgvc-aircraft-2013b" / "data" / "images" / "0000003.jpg").unlink()

    original = torchvision.datasets.FGVCAircraft
    monkeypatch.setattr(
        torchvision.datasets, "FGVCAircraft", lambda root, **o: (Cut if "download" in o else original)(root, **o)
    )
    with pytest.raises(
        DataError, match=r"aircraft could not be fetched \(what came lacks 1 images, e.g. .*0000003.jpg\)"
    ):
        getting.fetch("aircraft", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_root_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written to"):
        getting.fetch("cifar10", tmp_path / "file" / "below")


# ------------------------------------------------------------------------------------------------ ImageNet's archives


def pack(archive: Path, folder: Path, mode: str = "w") -> None:
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        for entry in sorted(folder.iterdir()):
            tar.add(entry, entry.name)


def imagenet_archives(place: Path, scratch: Path) -> None:
    """ILSVRC2012 with two classes: tars in a tar, flat validation images, a devkit with meta.mat."""
    some = ["n01440764", "n01443537"]
    place.mkdir(parents=True)
    for at, wnid in enumerate(some):
        folders.image(scratch / wnid / f"{wnid}_1.JPEG", at)
        (scratch / "train").mkdir(exist_ok=True)
        pack(scratch / "train" / f"{wnid}.tar", scratch / wnid)
    pack(place / "ILSVRC2012_img_train.tar", scratch / "train")
    for k in (1, 2):
        folders.image(scratch / "val" / f"ILSVRC2012_val_{k:08d}.JPEG", k)
    pack(place / "ILSVRC2012_img_val.tar", scratch / "val")
    data = scratch / "devkit" / "ILSVRC2012_devkit_t12" / "data"
    folders.lines(data / "ILSVRC2012_validation_ground_truth.txt", ["2", "1"])
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.array([(k + 1, wnid, f"fish {k}, swimmer {k}", "it swims", 0) for k, wnid in enumerate(some)], kinds)
    savemat(data / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    pack(place / "ILSVRC2012_devkit_t12.tar.gz", scratch / "devkit", "w:gz")


def test_archives_of_imagenet_are_checked_and_unpacked_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    imagenet_archives(root / "imagenet", tmp_path / "scratch")
    assert getting.fetchable("imagenet", root)
    with pytest.raises(DataError, match=r"imagenet could not be fetched \(The archive .* is not present .* corrupted"):
        getting.fetch("imagenet", root)
    assert sorted(path.name for path in (root / "imagenet").iterdir()) == sorted(getting.IMAGENET_ARCHIVES)
    known = torchvision.datasets.imagenet.ARCHIVE_META
    for kind, (name, _) in list(known.items()):
        md5 = hashlib.md5((root / "imagenet" / name).read_bytes()).hexdigest()
        monkeypatch.setitem(known, kind, (name, md5))
    with pytest.warns(UserWarning, match="lacks 998 of 1000 class folders"):
        assert getting.fetch("imagenet", root) == root / "imagenet"
    with pytest.warns(UserWarning, match="lacks 998 of 1000 class folders"):
        parts = checking.parts_of("imagenet", root, "clean")
    assert sorted(parts.train.paths.tolist()) == ["n01440764/n01440764_1.JPEG", "n01443537/n01443537_1.JPEG"]
    test = parts.tests["test"]
    assert dict(zip(test.paths.tolist(), test.y.tolist(), strict=True)) == {
        "n01443537/ILSVRC2012_val_00000001.JPEG": 1,
        "n01440764/ILSVRC2012_val_00000002.JPEG": 0,
    }
    assert not [path for path in root.iterdir() if path.name.startswith(".molere-get")]


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_of_data_sets_has_a_true_row_for_each() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(DATASETS)
    for name, row in rows.items():
        facts = FACTS[name]
        assert all(text in row for text in (facts.title, facts.size, facts.licence, facts.citation, facts.page))
