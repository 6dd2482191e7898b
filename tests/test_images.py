"""Image files of every kind become 8-bit RGB of one size; what cannot be read is named; draws are the generator's."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms

from imagefolders import class_folders, encoded, picture, write
from molere.data.imagefiles import ImageFiles
from molere.data.imagepool import ImagePool
from molere.data.pixels import TRIES, Window, as_rgb, centred
from molere.data.pool import Pool, TensorPool
from molere.errors import DataError


def files(root: Path, *names: str) -> ImageFiles:
    return ImageFiles(root, np.array(names))


def read(root: Path, name: str, size: int = 16) -> Tensor:
    return files(root, name).read(torch.tensor([0]), size)[0]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------- kinds of images


def as_written(root: Path, name: str) -> Image.Image:
    with Image.open(root / name) as image:
        return as_rgb(image)


def test_grey_and_one_bit_images_have_three_equal_channels(tmp_path: Path) -> None:
    grey = picture(0)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey > 127).save(tmp_path / "bit.png")
    assert (np.asarray(as_written(tmp_path, "grey.png")) == grey[..., None]).all()
    assert (np.asarray(as_written(tmp_path, "bit.png")) == 255 * (grey > 127)[..., None]).all()


def test_sixteen_bit_images_keep_their_upper_eight_bits(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    for name in ("deep.png", "deep.tif"):
        assert np.asarray(as_written(tmp_path, name))[..., 1].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_float_images_are_taken_as_shares_of_one_or_as_bytes_and_nan_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "share.tif")
    Image.fromarray(np.array([[0.0, 128.0, 300.0]], dtype=np.float32)).save(tmp_path / "byte.tif")
    Image.fromarray(np.array([[0.0, math.nan]], dtype=np.float32)).save(tmp_path / "nan.tif")
    assert np.asarray(as_written(tmp_path, "share.tif"))[0, :, 0].tolist() == [0, 128, 255]
    assert np.asarray(as_written(tmp_path, "byte.tif"))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(DataError, match=r"nan\.tif cannot be read as an image \(it holds NaN or infinity\)"):
        read(tmp_path, "nan.tif")


def test_cmyk_images_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4, 3), (255, 0, 0), np.uint8)).convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(picture(1)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.asarray(as_written(tmp_path, "cmyk.tif"))[0, 0].tolist() == [255, 0, 0]
    got = np.asarray(as_written(tmp_path, "cmyk.jpg")).astype(int)
    assert abs(got - picture(1)).mean() < 4


def test_transparent_pixels_become_white_in_rgba_and_in_palettes(tmp_path: Path) -> None:
    rgba = Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], dtype=np.uint8), "RGBA")
    rgba.save(tmp_path / "rgba.png")
    palette = Image.fromarray(np.array([[[10, 20, 30], [0, 0, 0]]], dtype=np.uint8)).quantize(2)
    hidden = int(np.asarray(palette)[0, 1])
    palette.save(tmp_path / "palette.png", transparency=hidden)
    for name in ("rgba.png", "palette.png"):
        assert np.asarray(as_written(tmp_path, name))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "moving.gif", save_all=True, append_images=[blue, blue])
    red.save(tmp_path / "moving.webp", save_all=True, append_images=[blue], lossless=True)
    for name in ("moving.gif", "moving.webp"):
        assert np.asarray(as_written(tmp_path, name))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(10))
def test_photographs_are_turned_upright_as_their_exif_tag_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(2)).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert (np.asarray(as_written(tmp_path, "photo.png")) == expected).all()
    assert orientation != 6 or (expected == np.rot90(picture(2), -1)).all()


def test_damaged_tags_cost_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture(2)).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image.Image, "getexif", lambda self: 1 / 0)
    assert (np.asarray(as_written(tmp_path, "photo.png")) == picture(2)).all()


def test_paths_with_spaces_and_letters_of_any_script_are_read(tmp_path: Path) -> None:
    name = "Grüße aus 東京/a b & c's 100%.png"
    write(tmp_path / name, picture(3, 16, 16))
    assert (read(tmp_path, name).permute(1, 2, 0).numpy() == picture(3, 16, 16)).all()


# ------------------------------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jpg", b"", r"empty\.jpg is empty"),
        ("gone.jpg", None, r"gone\.jpg is not there"),
        ("page.jpg", b"<html>not found</html>", r"page\.jpg cannot be read as an image \(cannot identify image file"),
        ("cut.jpg", encoded(Image.fromarray(picture(0, 90, 90)), "jpeg")[:400], r"cut\.jpg cannot be read as an image"),
        ("cut.png", encoded(Image.fromarray(picture(0, 90, 90)), "png")[:-200], r"cut\.png cannot be read as an image"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(tmp_path, name)
    assert set(files(tmp_path, name).check()) == {0}


def test_all_bad_files_are_found_and_the_others_are_read(tmp_path: Path) -> None:
    write(tmp_path / "good.png", picture(0, 16, 16))
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = files(tmp_path, "bad.png", "good.png", "gone.png")
    pixels, bad = rows.try_read(16)
    assert sorted(bad) == sorted(rows.check()) == [0, 2]
    assert (pixels[1].permute(1, 2, 0).numpy() == picture(0, 16, 16)).all()
    assert not pixels[[0, 2]].any()


# ------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(("wide", "high"), [(300, 400), (401, 299), (224, 224), (100, 60), (64, 1000)])
def test_the_evaluation_view_is_that_of_torchvision(wide: int, high: int) -> None:
    image = Image.fromarray(picture(5, wide, high))
    for size in (32, 64):
        whole = transforms.Resize(round(size * 256 / 224))(image)
        assert (np.asarray(centred(image, size)) == np.asarray(transforms.CenterCrop(size)(whole))).all()


def test_an_image_of_the_very_size_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a.png", picture(0, 32, 32))
    assert (read(tmp_path, "a.png", 32).permute(1, 2, 0).numpy() == picture(0, 32, 32)).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 700), st.integers(1, 700))
def test_random_crops_lie_inside_with_area_and_ratio_in_range_or_are_the_middle(
    seed: int, wide: int, high: int
) -> None:
    draws = tuple(np.random.default_rng(seed).random(4 * TRIES + 1))
    left, top, right, bottom = Window(draws).box(wide, high)
    w, h = right - left, bottom - top
    assert left >= 0
    assert top >= 0
    assert right <= wide
    assert bottom <= high
    if min(wide, high) >= 100:
        middle = (left, top) == ((wide - w) // 2, (high - h) // 2)
        inside = 0.07 < w * h / (wide * high) <= 1.0 and 0.72 < w / h < 1.37
        assert inside or middle


def test_areas_of_random_crops_are_spread_as_those_of_torchvision() -> None:
    ours = [Window(tuple(row)).box(400, 300) for row in np.random.default_rng(0).random((2000, 4 * TRIES + 1))]
    torch.manual_seed(0)
    image, crop = torch.zeros(3, 300, 400), transforms.RandomResizedCrop
    theirs = [crop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in ours]
    a = np.sort([(right - left) * (low - top) for left, top, right, low in ours]) / 120_000
    b = np.sort([h * w for _, _, h, w in theirs]) / 120_000
    assert np.abs(a - b).max() < 0.06  # quantiles of 2,000 draws each
    lefts = np.mean([left / (401 - right + left) for left, _, right, _ in ours if right - left < 400])
    assert abs(lefts - 0.5) < 0.03


def test_turns_and_patches_are_those_of_images_in_memory(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        write(tmp_path / name, picture(i, 16, 16))
    plain = files(tmp_path, *names)
    x = plain.read(torch.arange(3), 16)
    turned = plain.turn(torch.tensor([0, 90, 180])).turn(torch.tensor([0, 0, 90]))
    patched = turned.with_patch(torch.tensor([True, False, True]))
    got = patched.read(torch.arange(3), 16)
    for i, quarter in enumerate((0, 1, 3)):
        expected = np.rot90(picture(i, 16, 16), quarter).copy()
        expected[:2, slice(0, 2) if i == 1 else slice(-2, None)] = 255
        assert (got[i].permute(1, 2, 0).numpy() == expected).all()
    assert torch.equal(plain.read(torch.arange(3), 16), x)
    both = plain.joined(patched).take(torch.tensor([4, 1]))
    assert torch.equal(both.read(torch.arange(2), 16), torch.stack((got[1], x[1])))


def test_rows_of_two_roots_are_joined_below_the_folder_that_holds_both(tmp_path: Path) -> None:
    write(tmp_path / "a/x.png", picture(0, 16, 16))
    write(tmp_path / "b/c/x.png", picture(1, 16, 16))
    both = files(tmp_path / "a", "x.png").joined(files(tmp_path / "b", "c/x.png"))
    assert (both.root, both.paths.tolist()) == (tmp_path, ["a/x.png", "b/c/x.png"])
    assert both.check() == {}


# ------------------------------------------------------------------------------------- the pool

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def pool_of(root: Path, augment: str = "none") -> ImagePool:
    class_folders(root)
    rows = files(root, *(f"{c}/{i}.png" for c in ("ant", "bee") for i in range(5)))
    y = torch.arange(2).repeat_interleave(5)
    return ImagePool(rows, y, size=16, augment=augment, mean=MEAN, std=STD, group=y, ids=rows.paths, clean_y=1 - y)


def test_files_and_the_same_images_in_memory_are_equal_pools_of_batches(tmp_path: Path) -> None:
    for augment in ("none", "flip", "crop", "crop-flip"):
        lazy = pool_of(tmp_path, augment)
        held = TensorPool(lazy.files.read(torch.arange(10), 16), lazy.y, augment=augment, mean=MEAN, std=STD)
        index = torch.tensor([7, 0, 3])
        for draws in (None, 3):
            a, b = (p.batch(index, augment=None if draws is None else generator(draws)) for p in (lazy, held))
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)
            assert torch.equal(a.index, index)
        assert lazy.augments is held.augments is (augment != "none")
        assert lazy.shape == held.shape == (3, 16, 16)


def test_a_lazy_pool_is_a_pool_and_knows_its_columns(tmp_path: Path) -> None:
    pool = pool_of(tmp_path)
    assert isinstance(pool, Pool)
    group = pool.batch(torch.tensor([9])).group
    assert group is not None
    assert group.tolist() == [1]
    assert pool.clean_y is not None
    assert pool.clean_y.tolist() == [1] * 5 + [0] * 5
    assert pool.ids is not None
    assert pool.ids[9] == "bee/4.png"


def test_random_resized_crops_follow_the_generator_and_no_other(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, "imagenet")
    index = torch.arange(10)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a, b, c = (pool.batch(index, augment=generator(seed)).x for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pool.batch(index).x, pool.batch(index).x)


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    pool, index = pool_of(tmp_path, "imagenet"), torch.arange(10)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(pool.batch(index, augment=generator()).x)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_the_fingerprint_tells_other_labels_names_turns_and_contents_but_not_other_places(tmp_path: Path) -> None:
    here, there = pool_of(tmp_path / "here"), pool_of(tmp_path / "there")
    assert here.fingerprint() == there.fingerprint()
    y, rows = here.y, here.files
    plain = ImagePool(rows, y, size=16).fingerprint()
    other = [
        ImagePool(rows, 1 - y, size=16),
        ImagePool(rows, y, size=17),
        ImagePool(rows, y, size=16, augment="imagenet"),
        ImagePool(rows.turn(torch.full((10,), 90)), y, size=16),
        ImagePool(rows.take(torch.arange(10).flip(0)), y, size=16),
    ]
    write(tmp_path / "here/ant/0.png", picture(77))
    other.append(ImagePool(rows, y, size=16))
    assert len({plain, *(pool.fingerprint() for pool in other)}) == 7


def test_labels_and_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    rows = pool_of(tmp_path).files
    with pytest.raises(DataError, match="x has 10 examples but there are 3 labels"):
        ImagePool(rows, [0, 1, 0])
    with pytest.raises(DataError, match=r"augment must be one of none, flip, crop, crop-flip, imagenet; got 'mix'"):
        ImagePool(rows, torch.arange(10) % 2, augment="mix")
    with pytest.raises(DataError, match="size is a number of pixels, 1 or more; got 0"):
        ImagePool(rows, torch.arange(10) % 2, size=0)
