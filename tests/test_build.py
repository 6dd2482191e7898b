"""Data of image files: in memory or lazy, the same; bad images named or left out; limits, noise, tails on both."""

import os
from pathlib import Path

import pytest
import torch

from imagefolders import class_folders, picture, write
from molere.corruption import Scenario
from molere.data import decoded as decoding
from molere.data.build import data_of
from molere.data.cachefolder import cache_folder
from molere.data.imagefiles import ImageFiles
from molere.data.imagepool import ImagePool
from molere.data.index import Index, read_table, scan_folder
from molere.data.pool import Data, Pool, TensorPool
from molere.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLERE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return scan_folder(class_folders(tmp_path / "photos", ("ant", "bee", "wasp"), each=10))


def pools(data: Data) -> dict[str, Pool]:
    return {"train": data.train, **({} if data.select is None else {"select": data.select}), **data.tests}


def content(pool: Pool) -> list[tuple[object, int, float]]:
    """(id, label, sum of pixels) of each example."""
    batch = pool.batch(torch.arange(len(pool)))
    assert pool.ids is not None
    sums = batch.x.double().sum((1, 2, 3)).tolist()
    return list(zip(pool.ids.tolist(), pool.y.tolist(), sums, strict=True))


SCENARIOS = [
    Scenario(),
    Scenario(uniform=0.3),
    Scenario(tail=4.0),
    Scenario(rotated=0.3),
    Scenario(conflicting=0.3),
    Scenario(flip=0.2, clean_select=True, shift=180),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_in_memory_and_lazy_data_are_the_same_under_every_scenario(index: Index, scenario: Scenario) -> None:
    both = [
        data_of("x", index, {"test": index}, select=0.2, size=16, memory=memory, scenario=scenario, seed=3)
        for memory in (True, False)
    ]
    held, lazy = both
    assert isinstance(held.train, TensorPool)
    assert isinstance(lazy.train, ImagePool)
    for (name, a), (other, b) in zip(pools(held).items(), pools(lazy).items(), strict=True):
        assert name == other
        assert content(a) == content(b)
        assert (a.clean_y is None) == (b.clean_y is None)
    assert held.headline == lazy.headline
    assert held.group_names == lazy.group_names == scenario.groups


@pytest.mark.parametrize("memory", [True, False])
def test_noise_that_depends_on_the_image_is_drawn_from_files_too(index: Index, memory: bool) -> None:
    data = data_of("x", index, {"test": index}, size=16, memory=memory, scenario=Scenario(instance=0.4))
    clean, flips = data.train.clean_y, getattr(data.train, "flip_probability", None)
    assert clean is not None
    assert flips is not None
    assert 0 < int((clean != data.train.y).sum()) < len(data.train)
    assert clean.bincount().tolist() == [9, 9, 9]
    assert bool(((flips >= 0) & (flips <= 1)).all())


def test_small_data_are_kept_in_memory_and_large_data_or_whole_image_crops_are_not(index: Index) -> None:
    kind = {size: type(data_of("x", index, {"test": index}, size=size).train) for size in (16, 64)}
    assert set(kind.values()) == {TensorPool}
    assert isinstance(data_of("x", index, {"test": index}, size=3000).train, ImagePool)
    assert isinstance(data_of("x", index, {"test": index}, size=16, augment="imagenet").train, ImagePool)


def test_the_selection_part_is_a_stratified_share_or_rows_of_its_own(index: Index) -> None:
    data = data_of("x", index, {"test": index}, select=0.2, size=16)
    assert data.select is not None
    assert data.select.y.bincount().tolist() == [2, 2, 2]
    assert len(data.train) == 24
    own = data_of("x", index, {"test": index}, select=index.take(torch.tensor([1, 12, 29])), size=16)
    assert own.select is not None
    assert own.select.ids is not None
    assert own.select.ids.tolist() == ["ant/1.png", "bee/2.png", "wasp/9.png"]
    assert len(own.train) == 30
    assert data_of("x", index, {"test": index}, select=0.0, size=16).select is None


def test_a_limit_takes_a_stratified_subset_and_the_seed_decides_which(index: Index) -> None:
    def ids(seed: int) -> list[str]:
        data = data_of("x", index, {"test": index}, select=0.2, size=16, limit=9, seed=seed)
        assert data.train.y.bincount().tolist() == [3, 3, 3]
        assert data.train.ids is not None
        return data.train.ids.tolist()

    assert ids(0) == ids(0) != ids(1)


def test_several_test_sets_keep_their_names_and_order(index: Index) -> None:
    ood = index.take(torch.arange(0, 30, 3))
    data = data_of("x", index, {"test": index, "ood": ood}, size=16, scenario=Scenario(shift=90))
    assert list(data.tests) == ["test", "shifted", "ood", "ood-shifted"]
    assert len(data.tests["ood"]) == len(data.tests["ood-shifted"]) == 10


def test_noise_of_its_own_seed_stays_with_the_image_whatever_the_split(index: Index) -> None:
    def labels(seed: int) -> dict[object, int]:
        scenario = Scenario(uniform=0.5)
        data = data_of("x", index, {"test": index}, size=16, scenario=scenario, seed=seed, noise_seed=7)
        found = dict[object, int]()
        for pool in (data.train, data.select):
            assert pool is not None
            assert pool.ids is not None
            assert pool.clean_y is not None
            found |= dict(zip(pool.ids.tolist(), pool.y.tolist(), strict=True))
        return found

    assert labels(0) == labels(1)


# ------------------------------------------------------------------------------------- bad images


def spoil(index: Index) -> None:
    (index.root / "ant/3.png").write_bytes(b"no image")
    (index.root / "bee/0.png").write_bytes(b"")


@pytest.mark.parametrize("memory", [True, False])
def test_skipped_images_leave_ids_labels_and_places_of_the_others_unchanged(index: Index, memory: bool) -> None:
    settings = {"select": 0.2, "size": 16, "memory": memory, "seed": 1}
    before = {name: content(pool) for name, pool in pools(data_of("x", index, {"test": index}, **settings)).items()}
    spoil(index)
    with pytest.warns(UserWarning, match=r"x: 4 of 60 rows cannot be used: .*They are left out"):
        data = data_of("x", index, {"test": index}, on_bad="skip", **settings)
    for name, pool in pools(data).items():
        assert content(pool) == [row for row in before[name] if row[0] not in ("ant/3.png", "bee/0.png")]
    with pytest.warns(UserWarning, match="4 of 60"):  # what was found is remembered, and said again
        data_of("x", index, {"test": index}, on_bad="skip", **settings)


@pytest.mark.parametrize("memory", [True, False])
def test_bad_images_of_all_parts_are_refused_at_once_named_and_counted(index: Index, memory: bool) -> None:
    spoil(index)
    with pytest.raises(DataError) as caught:
        data_of("x", index, {"test": index}, select=0.0, size=16, memory=memory)
    said = str(caught.value)
    assert "\n" not in said
    assert f"{index.root}/ant/3.png cannot be read as an image" in said
    assert f"{index.root}/bee/0.png is empty" in said
    assert "4 of 60 rows" in said
    assert "--on-bad skip" in said


def test_a_file_spoilt_after_the_look_is_named_when_it_is_met(index: Index) -> None:
    data = data_of("x", index, {"test": index}, select=0.0, size=16, memory=False)
    spoil(index)
    with pytest.raises(DataError, match=r"ant/3\.png cannot be read as an image .*; replace it, or .* --on-bad skip"):
        data.train.batch(torch.arange(10))


# ------------------------------------------------------------------------------------- decoded once


def test_images_are_decoded_once_until_one_changes(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    count = list[int]()
    plain = ImageFiles.try_read
    monkeypatch.setattr(ImageFiles, "try_read", lambda self, size: (count.append(len(self)), plain(self, size))[1])
    settings = {"select": 0.0, "size": 16}
    first = content(data_of("x", index, {"test": index}, **settings).train)
    assert content(data_of("x", index, {"test": index}, **settings).train) == first
    assert count == [30]
    write(index.root / "ant/3.png", picture(555))
    os.utime(index.root / "ant/3.png", (1, 1))
    changed = content(data_of("x", index, {"test": index}, **settings).train)
    assert count == [30, 30]
    assert [a[0] for a, b in zip(first, changed, strict=True) if a != b] == ["ant/3.png"]


def test_decoded_images_that_were_damaged_or_cannot_be_kept_are_made_anew(index: Index, tmp_path: Path) -> None:
    files = index.files
    expected, _ = decoding.decoded(files, 16)
    for place in cache_folder().glob("images/*.npy"):
        place.write_bytes(place.read_bytes()[:-100])
    assert torch.equal(decoding.decoded(files, 16)[0], expected)
    for place in cache_folder().glob("images/*.json"):
        place.write_text("{")
    assert torch.equal(decoding.decoded(files, 16)[0], expected)


def test_decoded_images_may_be_written_to_without_changing_what_is_kept(index: Index) -> None:
    decoding.decoded(index.files, 16)
    x, _ = decoding.decoded(index.files, 16)
    before = x.clone()
    x.zero_()
    assert torch.equal(decoding.decoded(index.files, 16)[0], before)


# ------------------------------------------------------------------------------------- refusals


def test_unlike_classes_and_shares_out_of_range_are_refused(index: Index, tmp_path: Path) -> None:
    other = scan_folder(class_folders(tmp_path / "other", ("ant", "bee"), each=2))
    with pytest.raises(DataError, match="test has 2 classes, train has 3, or in another order"):
        data_of("x", index, {"test": other}, size=16)
    with pytest.raises(DataError, match=r"select is a share of the training data in \[0, 0.5\]; got 0.9"):
        data_of("x", index, {"test": index}, select=0.9, size=16)
    with pytest.raises(DataError, match="limit is a number of training examples, 2 or more; got 1"):
        data_of("x", index, {"test": index}, limit=1, size=16)
    with pytest.raises(DataError, match=r"augment='imagenet' crops whole images.*memory='auto'"):
        data_of("x", index, {"test": index}, size=16, augment="imagenet", memory=True)


def test_groups_of_the_user_reach_the_pools_and_lead_the_table(index: Index, tmp_path: Path) -> None:
    rows = [f"{path},{path.split('/')[0]},{'night' if i % 2 else 'day'}" for i, path in enumerate(index.paths)]
    (index.root / "t.csv").write_text("\n".join(["image,label,when", *rows]))
    own = read_table(index.root / "t.csv", group="when")
    data = data_of("x", own, {"test": own}, size=16)
    assert data.group_names == ("day", "night")
    assert data.headline == ("worst_group", "accuracy")
    assert data.train.group is not None
    assert data.tests["test"].group is not None
    assert data.tests["test"].group.tolist() == [0, 1] * 15
