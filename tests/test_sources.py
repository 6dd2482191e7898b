"""Data by name, read from small folders of the official layouts, and data of one's own."""

import gzip
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import TensorDataset

from molere.data.files import CIFAR10, FOLDERS, available, read, read_idx, safe_unpickle
from molere.data.pool import Data, TensorPool
from molere.data.sources import SOURCES, from_arrays, from_datasets, load
from molere.errors import ConfigError, DataError
from molere.registry import DATASETS

UNOFFICIAL = "is not the official file"


def of(pool: object) -> TensorPool:
    assert isinstance(pool, TensorPool)
    return pool


def ids(pool: object) -> list[int]:
    own = of(pool).ids
    assert own is not None
    return own.tolist()


# ------------------------------------------------------------------------------------- small folders


def write_idx(path: Path, array: np.ndarray, *, packed: bool = True) -> None:
    raw = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    target = path.with_name(path.name + ".gz") if packed else path
    target.write_bytes(gzip.compress(raw) if packed else raw)


def fashion(root: Path, *, n: int = 200, packed: bool = True) -> tuple[np.ndarray, np.ndarray]:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 10).astype(np.uint8)
    write_idx(folder / "train-images-idx3-ubyte", x, packed=packed)
    write_idx(folder / "train-labels-idx1-ubyte", y, packed=packed)
    write_idx(folder / "t10k-images-idx3-ubyte", x[:30], packed=packed)
    write_idx(folder / "t10k-labels-idx1-ubyte", y[:30], packed=packed)
    return x, y


def write_batch(path: Path, key: str, n: int, classes: int, *, seed: int = 0, protocol: int = 4) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 256, (n, 3072), np.uint8)
    path.write_bytes(pickle.dumps({"data": x, key: [i % classes for i in range(n)]}, protocol=protocol))
    return x.reshape(n, 3, 32, 32)


def cifar100(root: Path) -> np.ndarray:
    write_batch(root / "cifar-100-python" / "test", "fine_labels", 200, 100, seed=1)
    return write_batch(root / "cifar-100-python" / "train", "fine_labels", 1000, 100)


def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# -------------------------------------------------------------------------------------------- digits


def test_digits_are_scikit_learns() -> None:
    bundle = load_digits()
    data = load("digits", scenario="clean")
    for pool in [data.train, data.select, data.tests["test"]]:
        at = ids(pool)
        assert np.array_equal(of(pool).x[:, 0].numpy() * 16, bundle.images[at])
        assert of(pool).y.tolist() == bundle.target[at].tolist()


def test_digits_are_split_anew_for_each_seed_and_parts_do_not_overlap() -> None:
    data = load("digits", scenario="clean", seed=3)
    parts = [ids(data.train), ids(data.select), ids(data.tests["test"])]
    assert [len(part) for part in parts] == [1200, 197, 400]
    assert len(set().union(*parts)) == 1797
    assert set(ids(load("digits", seed=3).train)) == set(parts[0])
    assert set(ids(load("digits", seed=4).train)) != set(parts[0])


def test_the_hidden_group_is_four_percent_of_training_and_half_of_the_test() -> None:
    data = load("digits")
    assert data.scenario == "hidden-group"
    assert data.group_names == ("upright", "rotated")
    assert data.headline == ("accuracy[rotated]", "accuracy[upright]")
    assert data.default_model == "mlp"
    train, test = of(data.train), of(data.tests["test"])
    assert train.group is not None
    assert test.group is not None
    assert int(train.group.sum()) == 48
    assert int(of(data.select).group.sum()) == 8  # type: ignore[union-attr]
    assert torch.bincount(test.group).tolist() == [400, 400]
    assert torch.equal(torch.rot90(test.x[:400], 1, (2, 3)), test.x[400:])
    assert torch.equal(test.y[:400], test.y[400:])
    upright = load_digits().images[ids(train)] / 16
    turned = np.rot90(upright, 1, (1, 2))
    expected = np.where(train.group[:, None, None].numpy() == 1, turned, upright)
    assert np.array_equal(train.x[:, 0].numpy(), expected.astype(np.float32))


def test_hidden_group_noise_flips_a_fifth_of_training_and_selection_labels_and_no_test_label() -> None:
    data = load("digits", scenario="hidden-group-noise")
    flips = []
    for pool in [of(data.train), of(data.select)]:
        assert pool.clean_y is not None
        assert pool.clean_y.tolist() == load_digits().target[ids(pool)].tolist()
        flips.append(float((pool.y != pool.clean_y).float().mean()))
    assert flips[0] == pytest.approx(0.2, abs=0.04)
    assert flips[1] == pytest.approx(0.2, abs=0.09)
    test = of(data.tests["test"])
    assert test.y.tolist() == load_digits().target[ids(test)].tolist()
    assert int(of(data.train).group.sum()) == 48  # type: ignore[union-attr]


def test_noise_flips_three_tenths_by_instance_and_longtail_thins_by_fifty() -> None:
    noisy = of(load("digits", scenario="noise").train)
    assert noisy.clean_y is not None
    assert float((noisy.y != noisy.clean_y).float().mean()) == pytest.approx(0.3, abs=0.05)
    tail = load("digits", scenario="longtail")
    sizes = torch.bincount(of(tail.train).y).tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert 40 <= sizes[0] / sizes[-1] <= 60
    assert tail.headline == ("accuracy", "worst_class")


def test_a_spurious_patch_says_whether_a_digit_is_odd_except_for_one_in_twenty() -> None:
    data = load("digits", scenario="spurious")
    train, test = of(data.train), of(data.tests["test"])
    assert data.group_names == ("agreeing", "conflicting")
    assert data.headline == ("accuracy[conflicting]", "accuracy[agreeing]")
    assert train.group is not None
    assert int(train.group.sum()) == 60
    right = train.x[:, 0, :2, -2:].flatten(1).eq(1).all(1)
    left = train.x[:, 0, :2, :2].flatten(1).eq(1).all(1)
    odd = train.y % 2 == 1
    assert torch.equal(torch.where(train.group == 1, ~odd, odd), right)
    assert bool((left | right).all())
    assert test.group is not None
    assert torch.equal(test.y[:400], test.y[400:])
    assert torch.equal(test.x[:400, :, 2:], test.x[400:, :, 2:])  # below the patches nothing differs
    assert torch.bincount(test.group).tolist() == [400, 400]


@pytest.mark.parametrize("scenario", DATASETS["digits"].scenarios)
def test_the_same_seed_gives_the_same_bytes(scenario: str) -> None:
    def prints(data: Data) -> list[str]:
        return [pool.fingerprint() for pool in [data.train, data.select, *data.tests.values()] if pool is not None]

    first = prints(load("digits", scenario=scenario, seed=1))
    torch.rand(5)
    assert prints(load("digits", scenario=scenario, seed=1)) == first
    assert prints(load("digits", scenario=scenario, seed=2)) != first


def test_limit_and_select_on_digits() -> None:
    data = load("digits", limit=100, select=0.0)
    assert len(data.train) == 100
    assert torch.bincount(of(data.train).y).min() >= 9
    assert data.select is None


# ------------------------------------------------------------------------------------- Fashion-MNIST


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_from_gz_or_unpacked_files_without_writing(tmp_path: Path, packed: bool) -> None:
    x, y = fashion(tmp_path, packed=packed)
    before = files_below(tmp_path)
    data = load("fashion-mnist", root=tmp_path)
    assert files_below(tmp_path) == before
    train = of(data.train)
    assert (len(data.train), len(of(data.select)), len(data.tests["test"])) == (180, 20, 30)
    assert np.array_equal(train.x[:, 0].numpy(), x[ids(train)])
    assert train.y.tolist() == y[ids(train)].tolist()
    assert train.augment == "flip"
    assert torch.bincount(of(data.select).y).tolist() == [2] * 10
    assert set(ids(train)).isdisjoint(ids(data.select))


def test_unpacked_fashion_mnist_is_what_torchvision_reads(tmp_path: Path) -> None:
    fashion(tmp_path, packed=False)
    reference = torchvision.datasets.FashionMNIST(tmp_path, train=True)
    train, test = read("fashion-mnist", tmp_path)
    assert np.array_equal(train.x[:, 0], reference.data.numpy())
    assert train.y.tolist() == reference.targets.tolist()
    assert len(test.y) == 30


def test_hidden_group_noise_of_images_has_the_stated_shares(tmp_path: Path) -> None:
    fashion(tmp_path, n=2000)
    data = load("fashion-mnist", root=tmp_path, scenario="hidden-group-noise")
    train = of(data.train)
    assert train.group is not None
    assert train.clean_y is not None
    assert int(train.group.sum()) == 54
    assert int(of(data.select).group.sum()) == 6  # type: ignore[union-attr]
    assert float((train.y != train.clean_y).float().mean()) == pytest.approx(0.166, abs=0.03)
    assert len(data.tests["test"]) == 60


def test_with_a_limit_the_selection_part_is_capped_and_outside_the_limited_pool(tmp_path: Path) -> None:
    fashion(tmp_path, n=11_000)
    data = load("fashion-mnist", root=tmp_path, limit=500)
    assert (len(data.train), len(of(data.select))) == (500, 1000)
    assert set(ids(data.train)).isdisjoint(ids(data.select))
    assert torch.bincount(of(data.train).y).tolist() == [50] * 10
    assert len(load("fashion-mnist", root=tmp_path, limit=50_000).train) == 10_000


def test_a_damaged_idx_file_is_named(tmp_path: Path) -> None:
    fashion(tmp_path)
    path = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    Path(f"{path}.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte cannot be read .*; delete it and fetch it again"):
        load("fashion-mnist", root=tmp_path)
    path.write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 9) + b"123")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(path)


# --------------------------------------------------------------------------------------------- CIFAR


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cifar100_of_other_bytes_is_read_with_a_warning(tmp_path: Path, protocol: int) -> None:
    write_batch(tmp_path / "cifar-100-python" / "test", "fine_labels", 200, 100, protocol=protocol)
    x = write_batch(tmp_path / "cifar-100-python" / "train", "fine_labels", 1000, 100, protocol=protocol)
    with pytest.warns(UserWarning, match=UNOFFICIAL):
        data = load("cifar100", root=tmp_path)
    train = of(data.train)
    assert (len(train), len(of(data.select)), train.num_classes) == (900, 100, 100)
    assert np.array_equal(train.x.numpy(), x[ids(train)])
    assert (train.augment, train.crop_padding) == ("crop-flip", 4)


def test_cifar_batches_are_what_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar100(tmp_path)
    reference = torchvision.datasets.CIFAR100
    monkeypatch.setattr(reference, "_check_integrity", lambda _: True)
    monkeypatch.setattr(reference, "_load_meta", lambda _: None)
    theirs = reference(str(tmp_path), train=True)
    with pytest.warns(UserWarning, match=UNOFFICIAL):
        train, _ = read("cifar100", tmp_path)
    assert np.array_equal(train.x.transpose(0, 2, 3, 1), theirs.data)
    assert train.y.tolist() == theirs.targets


def test_the_official_md5s_are_torchvisions() -> None:
    for name, reference in [("cifar10", torchvision.datasets.CIFAR10), ("cifar100", torchvision.datasets.CIFAR100)]:
        assert list(map(list, FOLDERS[name].train.items())) == reference.train_list
        assert list(map(list, FOLDERS[name].test.items())) == reference.test_list
        assert FOLDERS[name].place == reference.base_folder
    theirs = {file.removesuffix(".gz") for file, _ in torchvision.datasets.FashionMNIST.resources}
    assert {*FOLDERS["fashion-mnist"].train, *FOLDERS["fashion-mnist"].test} == theirs


def test_a_part_of_cifar10_is_read_with_a_warning_that_names_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    first = write_batch(folder / "data_batch_1", "labels", 100, 10)
    write_batch(folder / "test_batch", "labels", 50, 10)
    with (
        pytest.warns(UserWarning, match=UNOFFICIAL),
        pytest.warns(UserWarning, match="lacks data_batch_2, data_batch_3, data_batch_4, data_batch_5; only the rest"),
    ):
        train, test = read("cifar10", tmp_path)
    assert np.array_equal(train.x, first)
    assert len(test.y) == 50
    assert available("cifar10", tmp_path)


def test_all_batches_of_cifar10_are_joined_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    parts = [write_batch(folder / name, "labels", 20, 10, seed=i) for i, name in enumerate(CIFAR10.train)]
    write_batch(folder / "test_batch", "labels", 10, 10)
    with pytest.warns(UserWarning, match=UNOFFICIAL):
        train, _ = read("cifar10", tmp_path)
    assert np.array_equal(train.x, np.concatenate(parts))


def test_the_official_files_are_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar100(tmp_path)
    folder = tmp_path / "cifar-100-python"
    digest = {file: __import__("hashlib").md5((folder / file).read_bytes()).hexdigest() for file in ("train", "test")}
    official = FOLDERS["cifar100"]
    monkeypatch.setitem(official.train, "train", digest["train"])  # type: ignore[arg-type]
    monkeypatch.setitem(official.test, "test", digest["test"])  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read("cifar100", tmp_path)[0].y) == 1000


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('pathlib').Path('ran').touch()",)


def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cifar100(tmp_path)
    train = tmp_path / "cifar-100-python" / "train"
    train.write_bytes(pickle.dumps({"data": RunsCode(), "fine_labels": []}))
    with (
        pytest.warns(UserWarning, match=UNOFFICIAL),
        pytest.raises(DataError, match=r"it asks for builtins\.eval; only numpy arrays are admitted"),
    ):
        load("cifar100", root=tmp_path)
    assert not (tmp_path / "ran").exists()


ROT13 = b"c_codecs\nencode\n(Vabc\nVrot13\ntR."


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps(len), pickle.dumps(np.load), ROT13])
def test_other_damaged_or_foreign_pickles_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="batch cannot be read .*; fetch the data again"):
        safe_unpickle(content, Path("batch"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "holds a list, expected a CIFAR batch"),
        ({"data": np.zeros((2, 5), np.uint8), "fine_labels": [0, 1]}, r"expected `data` uint8 \[N, 3072\]"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0]}, r"and `fine_labels` \[N\]"),
    ],
)
def test_a_batch_of_another_shape_is_refused(tmp_path: Path, content: object, sentence: str) -> None:
    cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps(content))
    with pytest.warns(UserWarning, match=UNOFFICIAL), pytest.raises(DataError, match=sentence):
        load("cifar100", root=tmp_path)


# -------------------------------------------------------------------------------- names and requests


@pytest.mark.parametrize("name", FOLDERS)
def test_a_missing_folder_says_what_was_looked_for_and_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: there is no folder .*{FOLDERS[name].place}; .*download=True"):
        load(name, root=tmp_path)
    with pytest.raises(DataError, match=rf"{name}: no folder given; pass --root PATH"):
        load(name)
    assert not available(name, tmp_path)
    assert not available(name)
    (tmp_path / FOLDERS[name].place).mkdir(parents=True)
    with pytest.raises(DataError, match=rf"lacks .*{next(iter(FOLDERS[name].train))}"):
        load(name, root=tmp_path)


def test_what_is_there_is_available(tmp_path: Path) -> None:
    fashion(tmp_path)
    cifar100(tmp_path)
    assert available("digits")
    assert available("fashion-mnist", str(tmp_path))
    assert available("cifar100", tmp_path)
    assert not available("cifar10", tmp_path)


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="unknown data set 'digit'; did you mean 'digits'"):
        load("digit")
    with pytest.raises(ConfigError, match="unknown scenario of digits 'hiden-group'; did you mean 'hidden-group'"):
        load("digits", scenario="hiden-group")


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [({"limit": 0}, "limit is a number of training examples, 2 or more; got 0"), ({"select": 0.9}, "got 0.9")],
)
def test_requests_outside_their_limits_are_refused(request_: dict[str, float], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load("digits", **request_)  # type: ignore[arg-type]


def test_the_listing_and_the_sources_agree() -> None:
    assert set(SOURCES) <= set(DATASETS)
    for name, source in SOURCES.items():
        assert DATASETS[name].model == source.model
    for name, folder in FOLDERS.items():
        assert DATASETS[name].folder == folder.place


# ----------------------------------------------------------------------------------------- one's own


def rows(n: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.arange(n, dtype=torch.float32)[:, None].repeat(1, 2), torch.arange(n) % classes


def test_arrays_of_ones_own_keep_a_stratified_part_for_selection() -> None:
    (x, y), (x_test, y_test) = rows(60), rows(9)
    data = from_arrays(x.numpy(), y.numpy(), x_test, y_test, recipe={"epochs": 2})
    assert (len(data.train), len(of(data.select)), len(data.tests["test"])) == (54, 6, 9)
    assert sorted([*ids(data.train), *ids(data.select)]) == list(range(60))
    assert of(data.train).x[:, 0].tolist() == [float(i) for i in ids(data.train)]
    assert (data.default_model, data.headline, dict(data.recipe)) == ("mlp", ("accuracy",), {"epochs": 2})


def test_arrays_may_bring_their_own_selection_ids_and_groups() -> None:
    (x, y), (x_test, y_test) = rows(12), rows(4)
    own = [f"row {i}" for i in range(12)]
    data = from_arrays(x, y, x_test, y_test, select=rows(8, 5), ids=own, test_group=[0, 0, 1, 1])
    assert (len(data.train), len(of(data.select)), of(data.train).num_classes) == (12, 8, 5)
    assert of(data.train).ids.tolist() == own  # type: ignore[union-attr]
    assert data.group_names == ("group 0", "group 1")
    assert data.headline == ("worst_group", "accuracy")
    assert from_arrays(x, y, x_test, y_test, select=0.0).select is None


def test_the_test_part_may_have_the_larger_labels() -> None:
    (x, y), (x_test, y_test) = rows(12, 2), rows(6, 4)
    assert of(from_arrays(x, y, x_test, y_test).train).num_classes == 4


def test_image_arrays_get_a_convolutional_network_and_augmentation() -> None:
    x = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    data = from_arrays(x, torch.arange(20) % 2, x, torch.arange(20) % 2, augment="flip", mean=[0.5] * 3, std=[0.5] * 3)
    assert data.default_model == "cnn"
    assert of(data.train).augment == "flip"


def test_torch_datasets_of_ones_own_are_split_by_position() -> None:
    train, test = TensorDataset(*rows(40)), TensorDataset(*rows(9, 4))
    data = from_datasets(train, test)
    assert (len(data.train), len(data.select or []), data.train.num_classes) == (36, 4, 4)
    assert data.train.ids is not None
    batch = data.train.batch(torch.arange(36))
    assert batch.x[:, 0].tolist() == data.train.ids.tolist()
    assert batch.y.tolist() == (data.train.ids % 3).tolist()
    given = from_datasets(train, test, select=TensorDataset(*rows(5)))
    assert (len(given.train), len(given.select or [])) == (40, 5)
    assert from_datasets(train, test, select=0.0).select is None
