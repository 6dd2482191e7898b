"""Data sets by name, read from small folders that are laid out as their makers lay them out."""

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import named_folders as folders
from molere.data.files import FOLDERS
from molere.data.named import about, cifars
from molere.data.named.catalog import IMAGE_SETS, parts_of
from molere.data.named.entries import DATASETS
from molere.data.named.facts import FACTS
from molere.data.named.rows import Parts
from molere.data.pool import Data, Pool, TensorPool
from molere.data.sources import SOURCES, load
from molere.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLERE_CACHE", str(tmp_path_factory.mktemp("cache")))


def small(name: str, root: Path, **options: object) -> Data:
    return load(name, root=root, image_size=12, **options)  # type: ignore[arg-type]


def ids(pool: Pool | None) -> list[object]:
    assert pool is not None
    assert pool.ids is not None
    return pool.ids.tolist()


def labels(pool: Pool | None) -> dict[object, int]:
    assert pool is not None
    return dict(zip(ids(pool), pool.y.tolist(), strict=True))


# ------------------------------------------------------------------------------------------------ facts


def test_every_name_can_be_loaded_listed_and_got() -> None:
    assert set(DATASETS) == set(SOURCES) | set(IMAGE_SETS)
    assert set(FACTS) == {*DATASETS, "retinopathy-aptos"}
    for name, entry in DATASETS.items():
        facts = FACTS[name]
        assert entry.folder == (facts.places[0] if facts.places else "")
        assert facts.title
        assert facts.licence
        assert facts.citation
        assert facts.page.startswith("http")
        assert not facts.places or about.how_to_get(name)
        assert not facts.places or facts.fetch or facts.steps
        variants = IMAGE_SETS[name].variants if name in IMAGE_SETS else cifars.HUMAN.get(name, ("", "", [""]))[2]
        assert set(variants) <= {*entry.scenarios, ""}


def test_checksums_and_folders_are_those_of_the_readers_and_of_torchvision() -> None:
    for name, folder in FOLDERS.items():
        assert FACTS[name].places == (folder.place,)
    for name in ("cifar10", "cifar100"):
        assert FACTS[name].md5 == {**FOLDERS[name].train, **FOLDERS[name].test}
    assert list(FACTS["fashion-mnist"].md5.items()) == torchvision.datasets.FashionMNIST.resources
    for facts in FACTS.values():
        assert all(facts.md5.get(Path(file).name, md5) == md5 for file, (_, md5) in facts.urls.items())
        assert not facts.fetch or facts.fetch == "files" or hasattr(torchvision.datasets, facts.fetch)


@pytest.mark.parametrize("name", [name for name in DATASETS if FACTS[name].places])
def test_data_that_are_not_there_are_named_with_what_was_looked_for(name: str, tmp_path: Path) -> None:
    assert not about.available(name, tmp_path)
    assert not about.available(name)
    with pytest.raises(DataError, match="there is no folder .*; correct --root"):
        load(name, root=tmp_path)
    with pytest.raises(DataError, match="no folder given; pass --root PATH, the folder that holds"):
        load(name)


def test_a_folder_that_lacks_something_is_said_to_lack_it(tmp_path: Path) -> None:
    folder = folders.pet(tmp_path)
    (folder / "annotations" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"pet: .*oxford-iiit-pet lacks annotations/test.txt; .*molere data get pet"):
        load("pet", root=tmp_path)


# ------------------------------------------------------------------------------------------------ fine-grained


def test_aircraft_trains_on_the_official_trainval_part_of_variants(tmp_path: Path) -> None:
    rows = folders.aircraft(tmp_path)
    data = small("aircraft", tmp_path, select=0.25)
    variants = ["Boeing 737-700", "A300B4", "DR-400"]
    expected = {f"data/images/{name}.jpg": variants.index(variant) for name, variant in rows}
    train, select, test = labels(data.train), labels(data.select), labels(data.tests["test"])
    assert {**train, **select, **test} == expected
    assert sorted(map(str, test)) == [f"data/images/{name}.jpg" for name, _ in rows[12:]]
    assert (len(train), len(select), data.train.num_classes) == (9, 3, 3)


def test_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    folders.aircraft(tmp_path)
    train = load("aircraft", root=tmp_path, image_size=10).train
    assert isinstance(train, TensorPool)
    with Image.open(tmp_path / "fgvc-aircraft-2013b" / str(ids(train)[0])) as file:
        wide = file.convert("RGB")
    assert train.x.shape[1:] == (3, 10, 10)
    assert abs(float(train.x[0].float().mean()) - float(np.asarray(wide, dtype=float).mean())) < 12


def test_cars_have_labels_from_the_matlab_lists_counted_from_zero(tmp_path: Path) -> None:
    folders.cars(tmp_path)
    data = small("cars", tmp_path, select=0.0)
    assert labels(data.train) == {f"cars_train/{k + 1:05d}.jpg": k % 2 for k in range(8)}
    assert labels(data.tests["test"]) == {f"cars_test/{k + 1:05d}.jpg": k % 2 for k in range(8)}
    parts = parts_of("cars", tmp_path, "")
    assert parts.train.classes == ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")


def test_pet_has_breeds_as_classes_and_the_official_test(tmp_path: Path) -> None:
    folders.pet(tmp_path)
    data = small("pet", tmp_path, select=0.0)
    assert Counter(data.train.y.tolist()) == {0: 4, 1: 4, 2: 4}
    assert labels(data.tests["test"])["images/american_bulldog_101.jpg"] == 1
    assert parts_of("pet", tmp_path, "").train.classes == ("Abyssinian", "American Bulldog", "Birman")


def spoil_cars(root: Path) -> None:
    (folders.cars(root) / "devkit" / "cars_train_annos.mat").write_bytes(b"not MATLAB")


def spoil_aircraft(root: Path) -> None:
    folders.aircraft(root)
    folders.lines(root / "fgvc-aircraft-2013b/data/images_variant_trainval.txt", ["0000001 Concorde"])


def spoil_pet(root: Path) -> None:
    folders.lines(folders.pet(root) / "annotations" / "trainval.txt", ["Abyssinian_0 1 1"])


@pytest.mark.parametrize(("name", "spoil"), [("cars", spoil_cars), ("aircraft", spoil_aircraft), ("pet", spoil_pet)])
def test_damaged_lists_are_refused_in_a_line(name: str, spoil: Callable[[Path], None], tmp_path: Path) -> None:
    spoil(tmp_path)
    with pytest.raises(DataError, match=rf"{name}: the lists in .* cannot be read \(.*\); molere data check {name}"):
        load(name, root=tmp_path)


# ------------------------------------------------------------------------------------------------ Clothing-1M


@pytest.mark.parametrize("annotations", ["", "annotations"])
def test_clothing_trains_on_noisy_labels_and_selects_and_tests_on_right_ones(tmp_path: Path, annotations: str) -> None:
    folder = folders.clothing1m(tmp_path, annotations=annotations)
    data = small("clothing1m", tmp_path)
    stated = dict(
        line.rsplit(" ", 1)
        for kind in ("noisy", "clean")
        for line in (folder / annotations / f"{kind}_label_kv.txt").read_text().splitlines()
    )
    for pool, keys in [(data.train, "noisy_train"), (data.select, "clean_val"), (data.tests["test"], "clean_test")]:
        wanted = (folder / annotations / f"{keys}_key_list.txt").read_text().split()
        assert ids(pool) == wanted
        assert labels(pool) == {key: int(stated[key]) for key in wanted}
    assert data.train.num_classes == 14
    assert len(small("clothing1m", tmp_path, scenario="right-labels").train) == 8
    assert small("clothing1m", tmp_path, select=0.0).select is None


def test_keys_without_labels_and_labels_that_are_none_are_named(tmp_path: Path) -> None:
    folder = folders.clothing1m(tmp_path)
    lists = (folder / "noisy_train_key_list.txt").read_text()
    (folder / "noisy_train_key_list.txt").write_text(f"{lists}images/none.jpg\n")
    with pytest.raises(DataError, match=r"1 images have no label, e.g. images/none.jpg; get the label files again"):
        load("clothing1m", root=tmp_path)
    (folder / "noisy_label_kv.txt").write_text("images/0/00/0,0.jpg 14\n")
    with pytest.raises(DataError, match=r"noisy_label_kv.txt, line 1: .* expected an image and a label 0 ... 13"):
        load("clothing1m", root=tmp_path)


# ------------------------------------------------------------------------------------------------ WILDS


def test_camelyon_trains_on_three_hospitals_and_tests_on_a_fourth(tmp_path: Path) -> None:
    rows = folders.camelyon(tmp_path)
    data = small("camelyon", tmp_path, select=0.0)

    def those(keep: Callable[[dict[str, str]], bool]) -> dict[str, int]:
        where = "patient_{patient}_node_{node}"
        name = f"patches/{where}/patch_{where}_x_{{x_coord}}_y_{{y_coord}}.png"
        return {name.format(**row): int(row["tumor"]) for row in rows if keep(row)}

    assert labels(data.train) == those(lambda row: row["center"] in "034" and row["split"] == "0")
    assert labels(data.tests["test"]) == those(lambda row: row["center"] == "2")
    assert labels(data.tests["id"]) == those(lambda row: row["center"] in "034" and row["split"] == "1")
    assert data.train.group is not None
    assert set(data.train.group.tolist()) == {0, 3, 4}
    assert data.group_names[3] == "hospital 3"
    assert data.headline == ("accuracy", "id/accuracy")


def test_iwildcam_tests_on_other_traps_and_on_other_days_of_the_same(tmp_path: Path) -> None:
    rows = folders.iwildcam(tmp_path)
    data = small("iwildcam", tmp_path, select=0.0)
    for pool, split in [(data.train, "train"), (data.tests["test"], "test"), (data.tests["id"], "id_test")]:
        assert labels(pool) == {f"train/{r['filename']}": int(r["y"]) for r in rows if r["split"] == split}
    assert data.train.group is not None
    assert data.train.group.tolist() == [int(r["location_remapped"]) for r in rows if r["split"] == "train"]
    names = ("empty", "tayassu pecari", "dasyprocta punctata", "cuniculus paca")
    assert parts_of("iwildcam", tmp_path, "").train.classes == names


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("tumor", "tumour"), "lacks the column tumor; it has"),
        ((",0,0,0,1\n", ",7,0,0,1\n"), r"line 2: tumor is '7', expected one of 0 ... 1"),
        ((",1,1,1,0\n", ",1,1\n"), r"line 3: there is no center; the line is cut short"),
    ],
)
def test_damaged_metadata_are_named_by_line(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    folders.camelyon(tmp_path)
    table = tmp_path / "camelyon17_v1.0" / "metadata.csv"
    before = table.read_text()
    table.write_text(before.replace(*change, 1))
    assert table.read_text() != before
    with pytest.raises(DataError, match=sentence):
        load("camelyon", root=tmp_path)


# ------------------------------------------------------------------------------------------------ retinopathy


def test_retinopathy_is_referable_from_grade_two_and_tested_on_the_private_part_and_on_aptos(tmp_path: Path) -> None:
    grades = folders.retinopathy(tmp_path)
    data = small("retinopathy", tmp_path, select=0.0)
    assert data.train.y.tolist() == [int(grade >= 2) for grade in grades["train"]]
    assert str(ids(data.train)[0]) == "train/10_left.jpeg"
    private = [k for k in range(10) if k % 5]
    assert data.tests["test"].y.tolist() == [int(grades["test"][k] >= 2) for k in private]
    assert data.tests["aptos"].y.tolist() == [0, 0, 1, 1, 1]
    assert data.headline == ("accuracy", "aptos/accuracy")


def test_retinopathy_without_solution_and_aptos_has_a_tenth_as_test_and_says_so(tmp_path: Path) -> None:
    folders.retinopathy(tmp_path, solution=False, aptos=False)

    def found(seed: int) -> Data:
        with (
            pytest.warns(UserWarning, match="lacks retinopathy_solution.csv or test; a tenth of the training images"),
            pytest.warns(UserWarning, match="retinopathy-aptos: there is no folder .*; there is no shifted test"),
        ):
            return small("retinopathy", tmp_path, seed=seed, select=0.0)

    assert list(found(0).tests) == ["test"]
    assert found(0).headline == ("accuracy",)
    assert ids(found(0).tests["test"]) == ids(found(1).tests["test"])
    assert (len(found(0).train), len(found(0).tests["test"])) == (18, 2)


# ------------------------------------------------------------------------------------------------ PACS


@pytest.mark.parametrize(("scenario", "away"), [(None, "sketch"), ("art-painting", "art_painting")])
def test_pacs_keeps_one_domain_for_the_test_and_a_tenth_of_the_others(
    tmp_path: Path, scenario: str | None, away: str
) -> None:
    folders.pacs(tmp_path)
    data = small("pacs", tmp_path, scenario=scenario, select=0.0)
    assert {str(name).split("/")[0] for name in ids(data.tests["test"])} == {away}
    assert (len(data.train), len(data.tests["test"]), len(data.tests["id"])) == (95, 35, 10)
    assert not set(ids(data.train)) & set(ids(data.tests["id"]))
    assert away not in data.group_names
    assert data.train.group is not None
    for name, group, y in zip(ids(data.train), data.train.group.tolist(), data.train.y.tolist(), strict=True):
        domain, kind, _ = str(name).split("/")
        assert data.group_names[group] == domain
        assert ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"][y] == kind


def test_pacs_may_lie_in_the_root_itself_and_its_labels_be_spoilt_besides(tmp_path: Path) -> None:
    folders.pacs(tmp_path, place=".")
    data = small("pacs", tmp_path, scenario="photo[uniform=0.4]", select=0.0)
    assert {str(name).split("/")[0] for name in ids(data.tests["test"])} == {"photo"}
    assert data.train.clean_y is not None
    assert 0.2 < float((data.train.clean_y != data.train.y).float().mean()) < 0.6
    assert data.scenario == "photo[uniform=0.4]"


def test_pacs_domains_of_unlike_classes_are_refused(tmp_path: Path) -> None:
    folders.pacs(tmp_path)
    folders.image(tmp_path / "PACS" / "photo" / "cat" / "1.jpg")
    with pytest.raises(DataError, match="the domains have different classes .*cat"):
        load("pacs", root=tmp_path)


def test_unknown_scenarios_get_the_nearest_name(tmp_path: Path) -> None:
    folders.pacs(tmp_path)
    with pytest.raises(ConfigError, match="unknown scenario of pacs 'sketches'; did you mean 'sketch'"):
        load("pacs", root=tmp_path, scenario="sketches")


# ------------------------------------------------------------------------------------------------ CIFAR beside CIFAR


def unofficial(action: Callable[[], Data]) -> Data:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(official file|only the rest)")
        return action()


KEYS = ["clean_label", "aggre_label", "worse_label", "random_label1", "random_label2", "random_label3"]


def human10(root: Path, right: np.ndarray) -> dict[str, np.ndarray]:
    columns = {key: (right + at) % 10 for at, key in enumerate(KEYS)}
    folders.human_file(root / "cifar-n" / "CIFAR-10_human.pt", columns)
    return columns


@pytest.mark.parametrize("batches", [(1, 2, 3, 4, 5), (2, 5)])
def test_cifar10n_has_the_labels_that_people_gave_by_position(tmp_path: Path, batches: tuple[int, ...]) -> None:
    parts = folders.cifar10(tmp_path, batches=batches)
    columns = human10(tmp_path, np.concatenate([parts[f"data_batch_{k} labels"] for k in range(1, 6)]))
    x = np.concatenate([parts[f"data_batch_{k}"] for k in batches])
    here = np.concatenate([np.arange(20 * (k - 1), 20 * k) for k in batches])
    for variant, key in zip(["clean", "aggregate", "worst", "random1", "random2", "random3"], KEYS, strict=True):
        data = unofficial(lambda v=variant: load("cifar10n", root=tmp_path, scenario=v, select=0.2))  # type: ignore[misc]
        for pool in (data.train, data.select):
            assert isinstance(pool, TensorPool)
            at = ids(pool)
            assert np.array_equal(pool.x.numpy(), x[at])
            assert pool.y.tolist() == columns[key][here][at].tolist()
            assert pool.clean_y is not None
            assert pool.clean_y.tolist() == columns["clean_label"][here][at].tolist()
        assert data.tests["test"].y.tolist() == parts["test_batch labels"].tolist()
    assert unofficial(lambda: load("cifar10n", root=tmp_path)).scenario == "worst"


def test_cifar100n_and_a_limit(tmp_path: Path) -> None:
    right = folders.cifar100(tmp_path)["train labels"]
    columns = {"clean_label": right, "noisy_label": (right + 1) % 100, "noisy_coarse_label": right % 20}
    folders.human_file(tmp_path / "cifar-10-100n" / "data" / "CIFAR-100_human.pt", columns)
    data = unofficial(lambda: load("cifar100n", root=tmp_path, limit=100, select=0.0))
    assert len(data.train) == 100
    assert data.train.y.tolist() == [int(right[at] + 1) % 100 for at in ids(data.train)]  # type: ignore[index]


def test_human_labels_of_other_images_are_refused(tmp_path: Path) -> None:
    parts = folders.cifar10(tmp_path)
    right = np.concatenate([parts[f"data_batch_{k} labels"] for k in range(1, 6)])
    human10(tmp_path, np.roll(right, 1))
    with pytest.raises(DataError, match="right labels that come with the human ones are not those of cifar10"):
        unofficial(lambda: load("cifar10n", root=tmp_path))


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('pathlib').Path('ran').touch()",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"clean_label": RunsCode()}, r"it asks for (builtins|__builtin__)\.eval; only numpy arrays are admitted"),
        ({"clean_label": np.zeros((2, 2))}, r"clean_label is float64 \[2, 2\], expected labels \[N\]"),
        ({"worse_label": np.zeros(2, np.int64)}, "lacks clean_label; it has worse_label"),
    ],
)
def test_files_of_labels_that_are_something_else_are_refused_and_run_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, object], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folders.cifar10(tmp_path)
    folders.human_file(tmp_path / "CIFAR-10_human.pt", content)
    with pytest.raises(DataError, match=sentence):
        unofficial(lambda: load("cifar10n", root=tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_file_of_labels_that_is_cut_is_refused(tmp_path: Path) -> None:
    folders.cifar10(tmp_path)
    human10(tmp_path, np.zeros(100, np.int64))
    path = tmp_path / "cifar-n" / "CIFAR-10_human.pt"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"is no file of torch.save \(.*\); get it again"):
        cifars.read_labels(path)


def test_human_labels_are_what_torch_reads(tmp_path: Path) -> None:
    path = tmp_path / "CIFAR-10_human.pt"
    torch.save({"clean_label": np.arange(50), "worse_label": np.arange(50)[::-1].copy()}, path)
    theirs = torch.load(path, weights_only=False)
    ours = cifars.read_labels(path)
    assert {key: value.tolist() for key, value in ours.items()} == {k: v.tolist() for k, v in theirs.items()}


def test_cifar10_1_is_a_second_test(tmp_path: Path) -> None:
    folders.cifar10(tmp_path)
    x, y = folders.cifar10_1(tmp_path / "CIFAR-10.1" / "datasets")
    data = unofficial(lambda: load("cifar10.1", root=tmp_path))
    other = data.tests["cifar10.1"]
    assert isinstance(other, TensorPool)
    assert np.array_equal(other.x.permute(0, 2, 3, 1).numpy(), x)
    assert other.y.tolist() == y.tolist()
    assert list(data.tests) == ["test", "cifar10.1"]
    assert data.headline == ("accuracy", "cifar10.1/accuracy")
    np.save(tmp_path / "CIFAR-10.1" / "datasets" / "cifar10.1_v6_data.npy", x[:5])
    with pytest.raises(DataError, match=r"images and labels are uint8 \[5, 32, 32, 3\] and \[30\], expected"):
        unofficial(lambda: load("cifar10.1", root=tmp_path))


# ------------------------------------------------------------------------------------------------ all of them


def test_parts_never_share_an_image(tmp_path: Path) -> None:
    for make in (folders.aircraft, folders.cars, folders.pet, folders.camelyon, folders.iwildcam, folders.pacs):
        make(tmp_path)
    for name in ("aircraft", "cars", "pet", "camelyon", "iwildcam", "pacs"):
        parts: Parts = parts_of(name, tmp_path, "")
        seen = [f"{index.root}/{path}" for index in (parts.train, *parts.tests.values()) for path in index.paths]
        assert len(set(seen)) == len(seen)
