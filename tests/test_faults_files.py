"""Rows D1, D2, D6 and S9: odd and damaged images, labels in files, repeated examples, paths that lead elsewhere."""

import csv
import gzip
import io
import json
import logging
import os
import pickle
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import imagefolders
from imagefolders import encoded, picture
from molere import fit
from molere.data.imagefiles import ImageFiles
from molere.data.pool import Data, TensorPool
from molere.data.repeats import repeated
from molere.data.sources import load
from molere.errors import DataError

pytestmark = pytest.mark.faults
Wrong = list[tuple[object, object]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLERE_CACHE", str(tmp_path_factory.mktemp("cache")))


def every_id(data: Data) -> list[str]:
    pools = [data.train, *([] if data.select is None else [data.select]), *data.tests.values()]
    return [str(one) for pool in pools if pool.ids is not None for one in pool.ids]


# ---- D1

RGB = Image.fromarray(picture(1))
FRAMES = [Image.fromarray(picture(k)) for k in range(3)]
TAKEN = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "WEBP": ("L", "RGB", "RGBA", "P"),
    "PPM": ("1", "L", "RGB"),
}
"""The modes that a format can be written in."""
ENDING = {"JPEG": "jpg", "TIFF": "tif"}


def of_mode(mode: str) -> Image.Image:
    if mode in ("I;16", "I", "F"):
        grey = np.asarray(RGB.convert("L"))
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(grey.astype(kind) * 200 if mode != "F" else grey.astype(kind) / 255)
    return RGB.convert("RGBA").convert(mode) if mode in ("LA", "PA") else RGB.convert(mode)


def whole() -> Iterator[tuple[str, bytes]]:
    """Images that are unusual and can be read, by file name."""
    for kind, modes in TAKEN.items():
        for mode in modes:
            yield f"{kind} {mode}.{ENDING.get(kind, kind.lower())}", encoded(of_mode(mode), kind)
    moving: dict[str, Any] = {"save_all": True, "append_images": FRAMES[1:]}
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        yield f"animated.{ENDING.get(kind, kind.lower())}", encoded(FRAMES[0], kind, **moving)
    yield "progressive.jpeg", encoded(RGB, "JPEG", progressive=True)
    yield "png in name only.jpg", encoded(RGB, "PNG")
    yield "CAPITALS.JPG", encoded(RGB, "JPEG")
    yield "größe 训练 🎯.png", encoded(RGB, "PNG")
    yield "rubbish at its end.png", encoded(RGB, "PNG") + b"rubbish" * 100
    yield "one pixel.png", encoded(RGB.resize((1, 1)), "PNG")
    yield "one row.png", encoded(RGB.resize((500, 1)), "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "turned.jpg", encoded(RGB, "JPEG", exif=exif)
    exif[0x0112] = 77
    yield "turned in no way.jpg", encoded(RGB, "JPEG", exif=exif)
    yield "damaged tags.jpg", encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40)


def huge() -> bytes:
    """A PNG that claims 60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def broken() -> Iterator[tuple[str, bytes]]:
    """Files that are no image, by name."""
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"):
        content, ending = encoded(of_mode("RGB"), kind), ENDING.get(kind, kind.lower())
        yield f"half.{ending}", content[: len(content) // 2]
        yield f"beginning.{ending}", content[:12]
        yield f"no beginning.{ending}", content[40:]
    png = encoded(RGB, "PNG")
    yield "flipped bits.png", png[:60] + bytes(b ^ 255 for b in png[60:90]) + png[90:]
    yield "empty.png", b""
    yield "one byte.jpg", b"\xff"
    yield "zeros.png", bytes(5000)
    yield "noise.jpg", np.random.default_rng(0).bytes(5000)
    yield "a page.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "text.png", b"keine Bilddatei\n" * 50
    yield "drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "packed.jpg", gzip.compress(png)
    yield "pickle.png", pickle.dumps({"x": [1, 2]})
    yield "not finite.tif", encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
    yield "huge.png", huge()
    yield "pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


def no_files(folder: Path) -> list[str]:
    """Entries that are named as images are, and are no files."""
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    names = ["loop.png", "dangling.jpg"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        names.append("pipe.png")
    if Path("/dev/zero").exists():
        (folder / "device.png").symlink_to("/dev/zero")
        names.append("device.png")
    return names


@pytest.fixture
def odd(tmp_path: Path) -> tuple[Path, list[str], list[str]]:
    """Class folders with 100 odd images and a few plain ones: where, the good ids, the bad ids."""
    root = imagefolders.class_folders(tmp_path / "photos", each=4)
    good, bad = [f"{c}/{i}.png" for c in ("ant", "bee") for i in range(4)], list[str]()
    for listed, made in ((good, whole()), (bad, broken())):
        for at, (name, content) in enumerate(made):
            ident = f"{('ant', 'bee')[at % 2]}/{name}"
            (root / ident).write_bytes(content)
            listed.append(ident)
    bad += [f"bee/{name}" for name in no_files(root / "bee")]
    assert len(good) + len(bad) >= 100
    return root, good, bad


def within(seconds: float, work: Callable[[], object]) -> object:
    """What some work raises, or gives; "hangs" if it does not end."""
    found: list[object] = ["hangs"]

    def run() -> None:
        try:
            found[0] = work()
        except Exception as error:
            found[0] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("size", [8, 72], ids=["in memory", "from files"])
def test_images_that_cannot_be_read_are_named_or_left_out_and_the_others_keep_their_ids(
    size: int, odd: tuple[Path, list[str], list[str]], row: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root, good, bad = odd
    wrong = Wrong()
    for name in bad:  # alone among good ones
        base, label = Path(name).name, Path(name).parent.name
        files = ImageFiles(root, np.array(["ant/0.png", name]))
        said = within(60, lambda f=files: f.read(torch.tensor([0, 1]), size))
        if not (isinstance(said, DataError) and base in str(said) and label in str(said) and "\n" not in str(said)):
            wrong.append((name, said))
    caplog.set_level(logging.INFO)
    with pytest.warns(UserWarning, match=f"{len(bad)} of {len(good) + len(bad)} rows cannot be used.*left out"):
        data = load(str(root), image_size=size, on_bad="skip")
    told = {record.getMessage() for record in caplog.records}
    kept = sorted(every_id(data))
    wrong += [(name, "not listed") for name in bad if not any(name in line for line in told)]
    wrong += [(name, "kept") for name in bad if name in kept] + [(name, "gone") for name in good if name not in kept]
    for pool in (data.train, *data.tests.values()):
        assert pool.ids is not None
        names = [str(one) for one in pool.ids]
        wrong += [(n, "label") for n, y in zip(names, pool.y.tolist(), strict=True) if ("ant", "bee")[y] != n[:3]]
    row.judge("D1", wrong, len(good) + len(bad))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("size", [8, 72], ids=["in memory", "from files"])
def test_without_skip_the_first_bad_images_are_named_and_all_are_counted(
    size: int, odd: tuple[Path, list[str], list[str]]
) -> None:
    root, good, bad = odd
    with pytest.raises(DataError, match=f"{len(bad)} of {len(good) + len(bad)} rows cannot be used") as error:
        load(str(root), image_size=size)
    assert sum(name in str(error.value) for name in bad) == 5
    assert "--on-bad skip" in str(error.value)


def test_odd_images_that_can_be_read_look_as_the_plain_one_does(odd: tuple[Path, list[str], list[str]]) -> None:
    root, good, _ = odd
    plain = torch.from_numpy(picture(1).transpose(2, 0, 1).copy()).float()
    for name in good:
        if match := re.fullmatch(r"\w+/(PNG|JPEG|TIFF|BMP|WEBP|PPM) (RGB|RGBA|CMYK|YCbCr)\..*", name):
            with Image.open(root / name) as file:
                assert file.size == RGB.size
            x = ImageFiles(root, np.array([name])).read(torch.tensor([0]), 16)[0].float()
            near = ImageFiles(root, np.array([good[0]])).read(torch.tensor([0]), 16)[0].float()
            truth = torch.nn.functional.adaptive_avg_pool2d(plain, 1)
            assert (x.mean((1, 2), keepdim=True) - truth).abs().max() < 12, (name, match)
            assert (near.mean((1, 2), keepdim=True) - truth).abs().max() > 12  # another picture is another one


# ---- D2: labels in files

BAD: dict[str, str | None] = {
    "empty": "",
    "missing": None,
    "blank": "  ",
    "NaN": "nan",
    "question mark": "?",
    "ignore index": "-100",
    "not among the classes": "7",
    "negative": "-1",
    "fraction": "1.5",
    "text": "dog",
}
IN_TEST = ("not among the classes", "negative", "fraction", "text")
"""In the training file these would be names of classes; in a test file they are not among them."""
AT = 7


def labels(bad: str | None) -> list[str | None]:
    y: list[str | None] = [str(i % 3) for i in range(30)]
    y[AT] = bad
    return y


def rows_of(bad: str | None, images: Path | None) -> list[dict[str, Any]]:
    start = [{"image": f"{i}.png"} if images else {"v": float(i)} for i in range(30)]
    return [{"id": f"p{i}", **one, "label": y} for i, (one, y) in enumerate(zip(start, labels(bad), strict=True))]


def as_text(path: Path, rows: Sequence[dict[str, Any]], by: str = ",") -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=by)
        table.writeheader()
        table.writerows(rows)


def as_table(rows: Sequence[dict[str, Any]]) -> Any:
    return pa.table({name: [row[name] for row in rows] for name in rows[0]})


WRITERS: dict[str, Callable[[Path, Sequence[dict[str, Any]]], object]] = {
    ".csv": as_text,
    ".tsv": lambda path, rows: as_text(path, rows, "\t"),
    ".parquet": lambda path, rows: pq.write_table(as_table(rows), path),
    ".feather": lambda path, rows: pyarrow.feather.write_feather(as_table(rows), str(path)),
    ".jsonl": lambda path, rows: path.write_text("".join(f"{json.dumps(row)}\n" for row in rows)),
    "images.csv": as_text,
    "images.parquet": lambda path, rows: pq.write_table(as_table(rows), path),
}


def loaded(train: Path, test: Path, *, images: bool) -> object:
    more: dict[str, Any] = {"image": "image", "image_size": 8} if images else {}
    return load(str(train), test=str(test), id="id", **more)


def test_bad_labels_in_files_are_refused_with_their_file_and_id(tmp_path: Path, row: Any) -> None:
    for i in range(30):
        imagefolders.write(tmp_path / f"{i}.png", picture(i))
    wrong, tried = Wrong(), 0
    for ending, write in WRITERS.items():
        images = tmp_path if "images" in ending else None
        good = tmp_path / f"good-{ending}"
        write(good, rows_of("1", images))
        loaded(good, good, images=images is not None)
        for kind, bad in BAD.items():
            tried += 1
            path = tmp_path / f"bad-{ending}"
            write(path, rows_of(bad, images))
            train, test = (good, path) if kind in IN_TEST else (path, good)
            try:
                loaded(train, test, images=images is not None)
                wrong.append(((ending, kind), "taken"))
            except DataError as error:
                if (
                    "\n" in str(error)
                    or path.name not in str(error)
                    or not re.search(rf"p{AT}\b|row {AT}\b", str(error))
                ):
                    wrong.append(((ending, kind), str(error)))
            except Exception as error:
                wrong.append(((ending, kind), repr(error)))
    row.judge("D2", wrong, tried)


def test_minus_hundred_is_a_class_where_other_labels_are_no_plain_numbers(tmp_path: Path) -> None:
    rows = [{"id": i, "v": float(i), "label": ("-100", "100")[i % 2]} for i in range(20)]
    for row in rows[::4]:
        row["label"] = "cold"
    as_text(tmp_path / "t.csv", rows)
    assert load(str(tmp_path / "t.csv")).class_names == ("-100", "100", "cold")


# ---- D6


@pytest.mark.parametrize("kind", ["float", "uint8", "int64"])
def test_repeated_examples_are_counted_exactly(kind: str, row: Any) -> None:
    wrong, draw, cases = Wrong(), np.random.default_rng(0), [*range(0, 40, 4)]
    for copies in cases:
        x = draw.integers(0, 256, (120, 3, 4, 4)).astype({"float": np.float32}.get(kind, kind))
        train, test = x[:80], x[80:].copy()
        places = draw.permutation(40)[:copies]
        test[places] = train[draw.integers(0, 80, copies)]
        if copies < 40:  # a near miss is none
            test[np.setdiff1d(np.arange(40), places)[0]] = train[3]
            test[np.setdiff1d(np.arange(40), places)[0], 2, 3, 3] += 1
        y = torch.arange(80) % 2
        data = Data("x", TensorPool(train, y), None, {"test": TensorPool(test, y[:40])})
        expected = sum(any(np.array_equal(a, b) for b in train) for a in test)
        if repeated(data).get("test", 0) != expected or expected != copies:
            wrong.append((copies, repeated(data)))
    row.judge("D6", wrong, len(cases))


def test_repeated_image_files_are_counted_and_told(tmp_path: Path, row: Any, caplog: pytest.LogCaptureFixture) -> None:
    wrong = Wrong()
    for case, (size, copies) in enumerate((s, c) for s in (8, 72) for c in (0, 1, 2, 5, 6)):
        photos = imagefolders.class_folders(tmp_path / f"photos {case}", each=6)
        other = imagefolders.class_folders(tmp_path / f"other {case}", classes=("bee",), each=6)
        for i in range(6):  # what class_folders gives a class depends on its place: other pictures, or copies
            imagefolders.write(other / "bee" / f"{i}.png", picture(1000 + i))
        for i in range(copies):
            (other / "bee" / f"{i}.png").write_bytes((photos / "ant" / f"{i}.png").read_bytes())
        caplog.clear()
        data = load(str(photos), test=str(other), image_size=size, select=0.0)
        told = f"{copies} of 6 examples of test are training examples too" in caplog.text
        if repeated(data).get("test", 0) != copies or told != (copies > 0):
            wrong.append(((size, copies), (repeated(data), caplog.text)))
    row.judge("D6", wrong, 10)


def test_a_run_writes_down_how_many_test_examples_it_trains_on(tmp_path: Path) -> None:
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    test = torch.cat([x[:3], torch.randn(7, 3)])
    data = Data("x", TensorPool(x, y), None, {"test": TensorPool(test, y[:10])})
    fit("erm", data=data, model="linear", recipe={"epochs": 1, "batch_size": 8}, out=tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e["tests"] for e in events if e["event"] == "repeated"] == [{"test": 3}]


# ---- S9


def png() -> bytes:
    return encoded(RGB, "PNG")


def outside(tmp_path: Path) -> dict[str, str]:
    """Paths that lead from `tmp_path / "data"` to a good image elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    secret = tmp_path / "elsewhere" / "secret.png"
    secret.write_bytes(png())
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "link.png").symlink_to(secret)
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "sub" / "again.png").symlink_to("../link.png")
    return {
        "above": "../elsewhere/secret.png",
        "far above": "../" * 30 + str(secret).lstrip("/"),
        "above, inside out": "sub/../../elsewhere/secret.png",
        "absolute": str(secret),
        "a link": "link.png",
        "a link to a link": "sub/again.png",
        "through a linked folder": "folder/secret.png",
        "absolute through a link": str(tmp_path / "data" / "folder" / "secret.png"),
    }


def cells(path: str) -> list[dict[str, Any]]:
    return [{"bytes": png(), "path": None} for _ in range(9)] + [{"bytes": None, "path": path}]


def in_cells(folder: Path, path: str) -> object:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(cells(path), kind), "label": [i % 2 for i in range(10)]})
    pq.write_table(table, folder / "t.parquet")
    return load(str(folder / "t.parquet"), image_size=8)


def in_csv(folder: Path, path: str) -> object:
    for i in range(9):
        (folder / f"{i}.png").write_bytes(png())
    names = [*(f"{i}.png" for i in range(9)), path]
    as_text(folder / "t.csv", [{"image": name, "label": i % 2} for i, name in enumerate(names)])
    return load(str(folder / "t.csv"), image="image", image_size=8)


def in_parquet(folder: Path, path: str) -> object:
    in_csv_refused(folder, path)
    names = [*(f"{i}.png" for i in range(9)), path]
    pq.write_table(pa.table({"image": names, "label": [i % 2 for i in range(10)]}), folder / "t.parquet")
    return load(str(folder / "t.parquet"), image="image", image_size=8)


def in_csv_refused(folder: Path, path: str) -> None:
    with pytest.raises(DataError):
        in_csv(folder, path)


def in_saved_data(folder: Path, path: str) -> object:
    """What `save_to_disk` leaves, its file elsewhere."""
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": path}]}))
    buffer = io.BytesIO()
    table = pa.table({"v": [1.0, 2.0] * 10, "label": [0, 1] * 10})
    with pa.ipc.new_stream(buffer, table.schema) as file:
        file.write_table(table)
    secret = folder.parent / "elsewhere" / "secret.png"
    secret.write_bytes(buffer.getvalue())
    return load(str(folder))


@pytest.mark.skipif(os.name == "nt", reason="links need privileges")
def test_paths_in_files_cannot_lead_out_of_their_folder(tmp_path: Path, row: Any) -> None:
    wrong, tried = Wrong(), 0
    for place in (in_csv, in_parquet, in_cells, in_saved_data):
        base = tmp_path / place.__name__
        base.mkdir()
        for name, path in outside(base).items():
            tried += 1
            try:
                place(base / "data", path)
                wrong.append(((place.__name__, name), "taken"))
            except DataError as error:
                known = "leaves" in str(error) or "outside of it" in str(error)
                if "\n" in str(error) or not known or (place is not in_saved_data and "9" not in str(error)):
                    wrong.append(((place.__name__, name), str(error)))
            except Exception as error:
                wrong.append(((place.__name__, name), repr(error)))
    row.judge("S9", wrong, tried)


@pytest.mark.skipif(os.name == "nt", reason="links need privileges")
def test_links_and_absolute_paths_that_stay_in_their_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "a.png").write_bytes(png())
    (tmp_path / "real" / "b.png").symlink_to("a.png")
    (tmp_path / "real" / "..c.png").write_bytes(png())
    for path in ("b.png", str(tmp_path / "data" / "a.png"), "..c.png", "x/../a.png"):
        assert len(every_id(in_csv(tmp_path / "data", path))) == 10  # type: ignore[arg-type]
    assert len(every_id(in_cells(tmp_path / "data", "b.png"))) == 10  # type: ignore[arg-type]
