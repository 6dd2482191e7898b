"""Pools: what a batch holds, what is refused, and that augmentation is driven by its generator alone."""

import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from molere.data.items import _global_generators
from molere.data.pool import Data, DatasetPool, TensorPool
from molere.errors import DataError


def images(n: int = 6, c: int = 3, size: int = 5) -> Tensor:
    return torch.randint(0, 256, (n, c, size, size), dtype=torch.uint8)


def alternating(n: int) -> Tensor:
    return torch.arange(n) % 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------- batches


def test_a_batch_of_images_is_scaled_and_normalised_per_channel() -> None:
    x, mean, std = images(), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    index = torch.tensor([4, 0, 4])
    batch = TensorPool(x, alternating(6), mean=mean, std=std).batch(index)
    expected = (x[index].double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert batch.x.dtype == torch.float32
    torch.testing.assert_close(batch.x.double(), expected, rtol=1e-6, atol=1e-6)
    assert batch.y.tolist() == [0, 0, 0]
    assert batch.index.tolist() == [4, 0, 4]
    assert len(batch) == 3


def test_images_without_normalisation_are_in_zero_to_one() -> None:
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    pool = TensorPool(x, [0, 1, 1])
    assert pool.shape == (1, 1, 1)
    torch.testing.assert_close(pool.batch(torch.arange(3)).x.flatten(), torch.tensor([0.0, 0.2, 1.0]))


def test_float_arrays_are_used_as_they_are_without_a_copy() -> None:
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    pool = TensorPool(x, alternating(8).numpy())
    assert pool.x.data_ptr() == torch.from_numpy(x).data_ptr()
    assert torch.equal(pool.batch(torch.tensor([7, 2])).x, torch.from_numpy(x[[7, 2]]))


def test_float64_becomes_float32_and_token_ids_stay_integers() -> None:
    assert TensorPool(np.ones((4, 2)), alternating(4)).x.dtype == torch.float32
    tokens = TensorPool(torch.tensor([[1, 30000]] * 4, dtype=torch.int32), alternating(4))
    assert tokens.batch(torch.arange(2)).x.tolist() == [[1, 30000], [1, 30000]]
    assert tokens.x.dtype == torch.int64


def test_read_only_numpy_arrays_are_taken() -> None:
    x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1])
    x.flags.writeable = y.flags.writeable = False
    assert len(TensorPool(x, y)) == 4


def test_groups_travel_with_the_batch_and_true_labels_and_ids_with_the_pool() -> None:
    pool = TensorPool(
        torch.zeros(4, 1), [0, 1, 0, 1], group=[0, 0, 1, 1], clean_y=[1, 1, 0, 0], ids=np.array(list("abcd"))
    )
    group = pool.batch(torch.tensor([3, 0])).group
    assert group is not None
    assert group.tolist() == [1, 0]
    part = pool.subset(torch.tensor([2, 1]))
    assert part.y.tolist() == [0, 1]
    assert part.clean_y is not None
    assert part.clean_y.tolist() == [0, 1]
    assert part.ids is not None
    assert part.ids.tolist() == ["c", "b"]


def test_a_subset_keeps_the_number_of_classes_even_where_one_is_missing() -> None:
    pool = TensorPool(torch.zeros(4, 1), [0, 1, 2, 2])
    assert pool.num_classes == 3
    assert pool.subset(torch.tensor([0])).num_classes == 3


def test_moving_to_the_same_device_is_free() -> None:
    pool = TensorPool(torch.zeros(4, 1), alternating(4))
    assert pool.to("cpu") is pool


@pytest.mark.gpu
def test_a_cpu_generator_gives_the_same_augmented_batch_on_a_gpu() -> None:
    pool = TensorPool(images(20), alternating(20), mean=(0.5,) * 3, std=(0.2,) * 3, augment="crop-flip")
    index = torch.arange(20)
    here = pool.batch(index, augment=generator())
    there = pool.to("cuda").batch(index, augment=generator())
    torch.testing.assert_close(here.x, there.x.cpu())
    assert there.y.device.type == "cuda"


# ----------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("y", "sentence"),
    [
        ([0, 1, -2, 0], "label -2 of example 2 is negative; expected class indices 0, 1, 2, ..."),
        ([0, -100, -100, 1], "label -100 of example 1 is the ignore index of torch losses"),
        ([0.0, 1.0, float("nan"), 1.0], "label nan of example 2 is not a class index"),
        ([0.0, 1.5, 1.0, 0.0], "label 1.5 of example 1 is not a whole number"),
        ([0, 1, 0], "x has 4 examples but there are 3 labels; pass one label per example"),
        ([[0], [1], [0], [1]], r"labels must be one number per example, shape \[N\]; got shape \[4, 1\]"),
        (["a", "b", "a", "b"], "labels must be numbers; got <U1, e.g. .*'a'.*: encode them first"),
        ([1, 1, 1, 1], r"one class only \(all 4 labels are 1\); a classifier needs at least two"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_refused_by_position_and_value(y: list[float], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        TensorPool(torch.zeros(4, 2), y)


def test_a_label_beyond_the_given_number_of_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"label 7 of example 1 is outside 0\.\.2; .* larger num_classes"):
        TensorPool(torch.zeros(3, 2), [0, 7, 1], num_classes=3)


def test_whole_numbers_stored_as_floats_are_labels() -> None:
    assert TensorPool(torch.zeros(2, 1), np.array([0.0, 1.0])).y.dtype == torch.int64


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.tensor([[0.0], [float("nan")]]), r"x of example 1 holds NaN or infinity \(1 such\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"images must be \[N, C, H, W\]; got \[2, 8, 8, 3\]"),
        (torch.zeros(2, 8, dtype=torch.uint8), r"uint8 x must be images .* got shape \[2, 8\]"),
        (torch.zeros(0, 8), r"x must hold at least one example.*got shape \[0, 8\]"),
        (np.array([["a"], ["b"]]), "x must be numbers"),
    ],
)
def test_inputs_that_cannot_be_trained_on_are_refused(x: Tensor, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        TensorPool(x, [0, 1])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"augment": "rotate"}, "augment must be one of none, flip, crop, crop-flip; got 'rotate'"),
        ({"augment": "flip"}, r"augment='flip' needs images \[N, C, H, W\]; x has shape \[4, 2\]"),
        ({"mean": (0.5,)}, "mean and std are for uint8 images"),
        ({"ids": [1, 2]}, "x has 4 examples but there are 2 ids"),
        ({"group": [0, 1]}, "x has 4 examples but there are 2 groups"),
        ({"clean_y": [0, 1, 5, 0]}, "clean label 5 of example 2 is outside 0..1"),
        ({"num_classes": 1}, r"label 1 of example 1 is outside 0\.\.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        TensorPool(torch.zeros(4, 2), [0, 1, 0, 1], **settings)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.2,) * 3), ((0.5,) * 3, (0.2, 0.0, 0.2))])
def test_normalisation_needs_one_positive_spread_per_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match=r"one number per channel \(3\), std positive; got mean="):
        TensorPool(images(), alternating(6), mean=mean, std=std)


# ----------------------------------------------------------------------------------------- augmentation


def possible(image: np.ndarray, kind: str, padding: int) -> set[bytes]:
    """Every outcome for one [c, h, w] image, by the definition: pad, cut a window, mirror."""
    h, w = image.shape[1:]
    p = padding if "crop" in kind else 0
    padded = np.pad(image, ((0, 0), (p, p), (p, p)))
    cuts = [padded[:, i : i + h, j : j + w] for i in range(2 * p + 1) for j in range(2 * p + 1)]
    mirrored = [cut[:, :, ::-1] for cut in cuts] if "flip" in kind else []
    return {np.ascontiguousarray(cut).tobytes() for cut in [*(cuts if kind != "none" else [image]), *mirrored]}


@given(
    kind=st.sampled_from(["none", "flip", "crop", "crop-flip"]),
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 6), st.integers(2, 7)),
    padding=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_every_augmented_image_is_a_padded_crop_or_its_mirror_image(
    kind: str, shape: tuple[int, int, int, int], padding: int, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    pool = TensorPool(x, np.arange(len(x)), num_classes=9, augment=kind, crop_padding=padding)
    seen = pool.batch(torch.arange(len(x)), augment=generator(seed)).x.numpy()
    assert all(new.tobytes() in possible(old, kind, padding) for old, new in zip(x, seen, strict=True))


def test_all_crops_and_both_mirrorings_are_equally_likely() -> None:
    x = torch.arange(1, 13, dtype=torch.float32).view(1, 1, 3, 4)
    pool = TensorPool(x, [1], num_classes=2, augment="crop-flip", crop_padding=1)
    seen = pool.batch(torch.zeros(9000, dtype=torch.int64), augment=generator()).x
    _, counts = torch.unique(seen.flatten(1), dim=0, return_counts=True)
    assert len(counts) == 18
    assert ((counts - 500).abs() < 5 * 500**0.5).all()


def test_augmentation_depends_on_its_generator_alone() -> None:
    pool = TensorPool(images(16), alternating(16), augment="crop-flip")
    index = torch.arange(16)
    before = torch.get_rng_state()
    first = pool.batch(index, augment=generator(1)).x
    torch.rand(3)
    assert torch.equal(first, pool.batch(index, augment=generator(1)).x)
    assert not torch.equal(first, pool.batch(index, augment=generator(2)).x)
    torch.set_rng_state(before)
    pool.batch(index, augment=generator(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_nothing_is_augmented_and_the_pool_is_never_written_to() -> None:
    x = images()
    pool = TensorPool(x, alternating(6), augment="crop-flip", mean=(0.5,) * 3, std=(0.2,) * 3)
    kept = x.clone()
    plain = pool.batch(torch.arange(6)).x
    pool.batch(torch.arange(6), augment=generator())
    assert torch.equal(x, kept)
    assert torch.equal(plain, pool.batch(torch.arange(6)).x)


def test_a_uint8_image_is_padded_with_black_before_it_is_normalised() -> None:
    x = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    pool = TensorPool(x, [1], num_classes=2, mean=(0.5,), std=(0.5,), augment="crop", crop_padding=2)
    values = pool.batch(torch.zeros(200, dtype=torch.int64), augment=generator()).x.unique()
    torch.testing.assert_close(values, torch.tensor([-1.0, 1.0]))


@pytest.mark.slow
def test_augmented_cifar_batches_come_faster_than_a_small_network_trains() -> None:
    pool = TensorPool(images(5000, 3, 32), alternating(5000), mean=(0.5,) * 3, std=(0.2,) * 3, augment="crop-flip")
    draws, index = generator(), torch.randint(0, 5000, (64,))
    start = time.perf_counter()
    for _ in range(100):
        pool.batch(index, augment=draws)
    assert time.perf_counter() - start < 100 * 0.02


# ------------------------------------------------------------------------------------------ fingerprint


def test_the_fingerprint_is_of_content_and_settings() -> None:
    x, y = images(), alternating(6)
    base = TensorPool(x, y, mean=(0.5,) * 3, std=(0.2,) * 3)
    same = TensorPool(x.clone().numpy(), y.tolist(), mean=[0.5] * 3, std=[0.2] * 3)
    assert base.fingerprint() == same.fingerprint() == base.to("cpu").fingerprint()
    changed = x.clone()
    changed[3, 0, 0, 0] ^= 1
    others = [
        TensorPool(changed, y, mean=(0.5,) * 3, std=(0.2,) * 3),
        TensorPool(x, 1 - y, mean=(0.5,) * 3, std=(0.2,) * 3),
        TensorPool(x, y, mean=(0.4,) * 3, std=(0.2,) * 3),
        TensorPool(x, y, mean=(0.5,) * 3, std=(0.2,) * 3, augment="flip"),
        TensorPool(x, y, mean=(0.5,) * 3, std=(0.2,) * 3, group=y),
        TensorPool(x, y, mean=(0.5,) * 3, std=(0.2,) * 3, num_classes=5),
    ]
    prints = {base.fingerprint(), *(pool.fingerprint() for pool in others)}
    assert len(prints) == 1 + len(others)
    assert all(len(p) == 64 for p in prints)


def test_the_fingerprint_is_computed_once() -> None:
    pool = TensorPool(torch.zeros(4, 1), alternating(4))
    first = pool.fingerprint()
    pool.x = pool.x + 1
    assert pool.fingerprint() == first


# ------------------------------------------------------------------------------------------ DatasetPool


class Noisy(Dataset):
    """Items that draw from all three global generators, as users' transforms do."""

    def __init__(self, n: int = 10) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        draws = [float(torch.rand(())), float(np.random.rand()), random.random()]
        return torch.tensor([float(at), *draws]), at % 2


def test_random_transforms_of_a_dataset_are_reproducible_and_leave_the_global_generators_alone() -> None:
    pool = DatasetPool(Noisy())
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = pool.batch(torch.tensor([3, 5]), augment=generator(1)).x
    again = pool.batch(torch.tensor([3, 5]), augment=generator(1)).x
    other = pool.batch(torch.tensor([3, 5]), augment=generator(2)).x
    assert torch.equal(first, again)
    assert (first[:, 1:] != other[:, 1:]).all()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def test_pythons_own_generator_comes_back_as_it_was() -> None:
    # not through a batch: the run-time type checks of the tests draw from it themselves
    state = random.getstate()
    with _global_generators():
        random.seed(3)
    assert random.getstate() == state


def test_without_a_generator_an_item_looks_the_same_in_every_batch() -> None:
    pool = DatasetPool(Noisy())
    alone = pool.batch(torch.tensor([5])).x[0]
    assert torch.equal(alone, pool.batch(torch.tensor([1, 5, 5])).x[1])
    assert torch.equal(alone, pool.batch(torch.tensor([1, 5, 5])).x[2])


class Pictures(Dataset):
    """8-bit PIL images with `targets`, as torchvision's datasets are without a transform."""

    def __init__(self, mode: str = "RGB", target_transform: object = None) -> None:
        self.mode, self.target_transform = mode, target_transform
        self.targets = [0, 1, 2, 1]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, at: int) -> tuple[Image.Image, int]:
        y = self.targets[at]
        return Image.new(self.mode, (5, 4), 51), self.target_transform(y) if callable(self.target_transform) else y


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_pil_images_become_floats_with_channels_first(mode: str, channels: int) -> None:
    x = DatasetPool(Pictures(mode)).batch(torch.tensor([0, 1])).x
    assert x.shape == (2, channels, 4, 5)
    assert float(x[0, 0, 0, 0]) == pytest.approx(0.2)


def test_labels_come_from_targets_unless_they_are_transformed() -> None:
    assert DatasetPool(Pictures()).y.tolist() == [0, 1, 2, 1]
    assert DatasetPool(Pictures(target_transform=lambda y: 2 - y)).y.tolist() == [2, 1, 0, 1]
    assert DatasetPool(Subset(Pictures(), [2, 0])).y.tolist() == [2, 0]
    assert DatasetPool(TensorDataset(torch.zeros(3, 2), torch.tensor([1, 0, 1]))).y.tolist() == [1, 0, 1]
    assert DatasetPool(Noisy(4)).y.tolist() == [0, 1, 0, 1]


def test_given_labels_replace_those_of_the_dataset() -> None:
    pool = DatasetPool(Pictures(), y=[1, 0, 0, 1], clean_y=[0, 1, 1, 1], group=[0, 0, 1, 1], ids=[9, 8, 7, 6])
    batch = pool.batch(torch.tensor([0, 2]))
    assert batch.y.tolist() == [1, 0]
    assert batch.group is not None
    assert batch.group.tolist() == [0, 1]
    assert len(pool) == 4


class Ragged(Noisy):
    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        return torch.zeros(at + 1), at % 2


class NotPairs(Noisy):
    def __getitem__(self, at: int) -> Tensor:
        return torch.zeros(2)


def test_items_of_different_shape_are_refused_by_position() -> None:
    with pytest.raises(DataError, match=r"x of example 3 is \[4\], of example 1 \[2\]; .* Resize"):
        DatasetPool(Ragged()).batch(torch.tensor([1, 3]))


def test_items_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(DataError, match=r"example 0 of the dataset is a Tensor; expected a pair \(x, y\)"):
        DatasetPool(NotPairs())


def test_a_dataset_pool_has_a_fingerprint_of_labels_and_items() -> None:
    assert DatasetPool(Noisy()).fingerprint() == DatasetPool(Noisy()).fingerprint()
    assert DatasetPool(Noisy()).fingerprint() != DatasetPool(Noisy(9)).fingerprint()
    assert DatasetPool(Noisy(4)).fingerprint() != DatasetPool(Noisy(4), y=[1, 0, 0, 1]).fingerprint()
    assert DatasetPool(Noisy()).to("cpu").fingerprint() == DatasetPool(Noisy()).fingerprint()


# ------------------------------------------------------------------------------------------------- Data


def test_data_needs_two_training_classes_a_test_and_equal_classes() -> None:
    two, three = TensorPool(torch.zeros(4, 1), [0, 1, 0, 1]), TensorPool(torch.zeros(3, 1), [0, 1, 2])
    data = Data("mine", two, None, {"test": two}, default_model="mlp", recipe={"epochs": 3})
    assert data.headline == ("accuracy",)
    with pytest.raises(DataError, match="mine: no test data"):
        Data("mine", two, None, {})
    with pytest.raises(DataError, match="mine: select has 3 classes but train has 2"):
        Data("mine", two, three, {"test": two})
    with pytest.raises(DataError, match=r"one class only \(all 2 labels are 0\)"):
        Data("mine", two.subset(torch.tensor([0, 2])), None, {"test": two})
