"""Small data sets in the layouts that their makers use: file names, lists, tables and nested folders as published."""

import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

WNIDS = Path(__file__).parents[1] / "src" / "molere" / "data" / "named"


def image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    """A small image of noise; the ending of its name says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(seed % 20, size, "PNG" if path.suffix == ".png" else "JPEG"))
    return path


@lru_cache(maxsize=100)
def _encoded(seed: int, size: tuple[int, int], kind: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def lines(path: Path, rows: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


# ------------------------------------------------------------------------------------------------ CIFAR


def cifar10(root: Path, *, each: int = 20, batches: Sequence[int] = (1, 2, 3, 4, 5)) -> dict[str, np.ndarray]:
    """cifar-10-batches-py with `each` images a batch; images [N, 3, 32, 32] and labels by part."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random, found = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        x, y = random.integers(0, 256, (each, 3072), np.uint8), random.permutation(np.arange(each) % 10)
        found[name] = x.reshape(-1, 3, 32, 32)
        found[f"{name} labels"] = y
        if name == "test_batch" or int(name[-1]) in batches:
            (folder / name).write_bytes(pickle.dumps({b"data".decode(): x, "labels": y.tolist()}, protocol=2))
    return found


def cifar100(root: Path, n: int = 200) -> dict[str, np.ndarray]:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    found = {}
    for seed, name in enumerate(("train", "test")):
        random = np.random.default_rng(seed)
        x, y = random.integers(0, 256, (n, 3072), np.uint8), random.permutation(np.arange(n) % 100)
        found[name], found[f"{name} labels"] = x.reshape(-1, 3, 32, 32), y
        content = {"data": x, "fine_labels": y.tolist(), "coarse_labels": [0] * n}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return found


def human_file(path: Path, columns: Mapping[str, object]) -> None:
    """A file as torch.save wrote it for CIFAR-N: a zip with a pickle of protocol 2 that holds numpy arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = pickle.dumps(dict(columns), protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", raw)
        archive.writestr("archive/version", "3\n")


def cifar10_1(folder: Path, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(5)
    x, y = random.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n, dtype=np.int32) % 10
    np.save(folder / "cifar10.1_v6_data.npy", x)
    np.save(folder / "cifar10.1_v6_labels.npy", y)
    return x, y


# ------------------------------------------------------------------------------------------------ ImageNet


def wnids(name: str) -> list[str]:
    return (WNIDS / f"{name}.txt").read_text().split()


def imagenet(root: Path, classes: Sequence[str], *, each: int = 3, kaggle: bool = False) -> Path:
    """ILSVRC2012: train/WNID/WNID_k.JPEG and val/WNID/ILSVRC2012_val_k.JPEG, or val flat with Kaggle's table."""
    folder = root / ("ILSVRC/Data/CLS-LOC" if kaggle else "imagenet")
    rows = []
    for at, wnid in enumerate(classes):
        for k in range(each):
            image(folder / "train" / wnid / f"{wnid}_{k}.JPEG", at)
        name = f"ILSVRC2012_val_{at + 1:08d}"
        image(folder / "val" / ("" if kaggle else wnid) / f"{name}.JPEG", at)
        rows.append(f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8 ")
    if kaggle:
        lines(root / "ILSVRC" / "LOC_val_solution.csv", ["ImageId,PredictionString", *rows])
    return folder


def renditions(folder: Path, classes: Sequence[str], each: int = 2) -> None:
    """ImageNet-A or -R: a folder for each class and a README."""
    for at, wnid in enumerate(classes):
        for k in range(each):
            image(folder / wnid / f"sketch_{k}.jpg", at)
    lines(folder / "README.txt", ["about"])


# ------------------------------------------------------------------------------------------------ fine-grained


def aircraft(root: Path) -> list[tuple[str, str]]:
    """fgvc-aircraft-2013b: data/images/0000001.jpg, variants.txt, images_variant_trainval.txt; (name, variant) rows."""
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = ["Boeing 737-700", "A300B4", "DR-400"]
    lines(data / "variants.txt", variants)
    rows = [(f"{k:07d}", variants[k % 3]) for k in range(18)]
    for k, (name, _) in enumerate(rows):
        image(data / "images" / f"{name}.jpg", k)
    for split, part in {"trainval": rows[:12], "test": rows[12:], "train": rows[:6], "val": rows[6:12]}.items():
        lines(data / f"images_variant_{split}.txt", [f"{name} {variant}" for name, variant in part])
    return rows


def cars(root: Path) -> Path:
    """stanford_cars: cars_train/00001.jpg, devkit/cars_train_annos.mat and so on."""
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    kinds = [(f, "O") for f in fields]
    for images, path in {
        "cars_train": "devkit/cars_train_annos.mat",
        "cars_test": "cars_test_annos_withlabels.mat",
    }.items():
        rows = [(1, 1, 8, 8, k % 2 + 1, f"{k + 1:05d}.jpg") for k in range(8)]
        savemat(folder / path, {"annotations": np.array([rows], dtype=kinds).reshape(1, -1)})
        for row in rows:
            image(folder / images / row[5], row[4])
    names = np.empty((1, 2), dtype=object)
    names[0, 0], names[0, 1] = "AM General Hummer SUV 2000", "Acura RL Sedan 2012"
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    return folder


def pet(root: Path) -> Path:
    """oxford-iiit-pet: images/Abyssinian_1.jpg, annotations/trainval.txt with `image class species breed`."""
    folder = root / "oxford-iiit-pet"
    breeds = [("Abyssinian", 1, 1), ("american_bulldog", 2, 2), ("Birman", 3, 1)]
    for split, start in {"trainval": 0, "test": 100}.items():
        rows = []
        for name, breed, species in breeds:
            for k in range(4):
                image(folder / "images" / f"{name}_{start + k}.jpg", breed)
                rows.append(f"{name}_{start + k} {breed} {species} 1")
        lines(folder / "annotations" / f"{split}.txt", rows)
    lines(folder / "annotations" / "list.txt", ["#Image CLASS-ID SPECIES BREED ID"])
    return folder


def clothing1m(root: Path, *, annotations: str = "") -> Path:
    folder = root / "clothing1m"
    lists = folder / annotations
    parts = {"noisy_train": 20, "clean_train": 8, "clean_val": 6, "clean_test": 6}
    noisy, clean, k = [], [], 0
    for part, count in parts.items():
        keys = []
        for _ in range(count):
            key, k = f"images/{k % 10}/{k % 100:02d}/{k},{k * 7}.jpg", k + 1
            image(folder / key, k)
            keys.append(key)
            (noisy if part == "noisy_train" else clean).append(f"{key} {k % 14}")
        lines(lists / f"{part}_key_list.txt", keys)
    lines(lists / "noisy_label_kv.txt", noisy)
    lines(lists / "clean_label_kv.txt", clean)
    return folder


# ------------------------------------------------------------------------------------------------ WILDS, clinics, PACS


def camelyon(root: Path) -> list[dict[str, str]]:
    """camelyon17_v1.0: metadata.csv with an unnamed first column, patches/patient_004_node_4/patch_...png."""
    folder, rows = root / "camelyon17_v1.0", []
    for k in range(40):
        row = {"patient": f"{k % 4:03d}", "node": str(k % 3), "x_coord": str(100 + k), "y_coord": str(200 + 2 * k)}
        row |= {"tumor": str(k % 2), "slide": str(k % 7), "center": str(k % 5), "split": str(int(k % 3 == 0))}
        rows.append(row)
        where = f"patient_{row['patient']}_node_{row['node']}"
        name = f"patch_{where}_x_{row['x_coord']}_y_{row['y_coord']}.png"
        image(folder / "patches" / where / name, k, (16, 16))
    head = "," + ",".join(rows[0])
    lines(folder / "metadata.csv", [head, *(f"{k},{','.join(row.values())}" for k, row in enumerate(rows))])
    lines(folder / "RELEASE_v1.0.txt", [""])
    return rows


def iwildcam(root: Path) -> list[dict[str, str]]:
    folder, rows = root / "iwildcam_v2.0", []
    for k in range(30):
        split = ("train", "train", "train", "val", "test", "id_val", "id_test")[k % 7]
        row = {
            "split": split,
            "location_remapped": str(k % 6),
            "location": str(500 + k % 6),
            "sequence_remapped": str(k),
        }
        row |= {"y": str(k % 4), "category_id": str(k % 4), "datetime": "2013-06-05 05:44:19.000"}
        row |= {"filename": f"9{k:04x}-21bc-11ea-a13a-137349068a90.jpg"}
        rows.append(row)
        image(folder / "train" / row["filename"], k)
    lines(folder / "metadata.csv", [",".join(rows[0]), *(",".join(row.values()) for row in rows)])
    names = ["0,empty,0", "1,tayassu pecari,1", "2,dasyprocta punctata,2", "3,cuniculus paca,3", "9,homo sapiens,99999"]
    lines(folder / "categories.csv", ["category_id,name,y", *names])
    return rows


def retinopathy(root: Path, *, solution: bool = True, aptos: bool = True) -> dict[str, list[int]]:
    folder = root / "diabetic-retinopathy-detection"
    grades: dict[str, list[int]] = {"train": [k % 5 for k in range(20)], "test": [(k + 1) % 5 for k in range(10)]}
    sides = [f"{k // 2 + 10}_{'left' if k % 2 == 0 else 'right'}" for k in range(20)]
    for name in sides:
        image(folder / "train" / f"{name}.jpeg")
    lines(
        folder / "trainLabels.csv", ["image,level", *(f"{n},{g}" for n, g in zip(sides, grades["train"], strict=True))]
    )
    if solution:
        for name in sides[:10]:
            image(folder / "test" / f"{name}.jpeg")
        rows = [f"{sides[k]},{grade},{'Private' if k % 5 else 'Public'}" for k, grade in enumerate(grades["test"])]
        lines(folder / "retinopathy_solution.csv", ["image,level,Usage", *rows])
    if aptos:
        other = root / "aptos2019-blindness-detection"
        ids = [f"000c1434d8d{k}" for k in range(5)]
        for name in ids:
            image(other / "train_images" / f"{name}.png")
        lines(other / "train.csv", ["id_code,diagnosis", *(f"{n},{k}" for k, n in enumerate(ids))])
    return grades


DOMAINS = ("art_painting", "cartoon", "photo", "sketch")


def pacs(root: Path, each: int = 5, place: str = "PACS") -> Path:
    for at, domain in enumerate(DOMAINS):
        for name in ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"):
            for k in range(each):
                image(root / place / domain / name / f"pic_{k:03d}.jpg", at)
    return root / place


def idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(fileobj=(buffer := io.BytesIO()), mode="wb", mtime=0) as packed:
        packed.write(raw)
    path.with_name(f"{path.name}.gz").write_bytes(buffer.getvalue())
