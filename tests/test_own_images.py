"""The user's own image files, frozen features of them, and both from the command line."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

import imagefolders
from molere.cli.app import app
from molere.data.imagepool import ImagePool
from molere.data.joined import JoinedPool
from molere.data.pool import Data, TensorPool
from molere.data.sources import load
from molere.errors import ConfigError, DataError
from molere.models import build

COMMAND = ["--model", "linear", "--epochs", "1", "train.batch_size=4", "--image-size", "8", "--no-progress"]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOLERE_CACHE", str(tmp_path / "cache"))


def typed(*arguments: str) -> int:
    code = app([*arguments], "molere", standalone_mode=False)
    return code if isinstance(code, int) else 0


def ids(pool: Any) -> list[str]:
    return [str(one) for one in pool.ids]


def test_class_folders_train_with_a_part_of_them_as_the_test_and_another_folder_as_ood(tmp_path: Path) -> None:
    photos = imagefolders.class_folders(tmp_path / "my photos", each=10)
    sketches = imagefolders.class_folders(tmp_path / "skizzen ü", ("bee",), each=3)
    data = load(str(photos), test={"ood": str(sketches)}, image_size=16)
    assert {name: len(pool) for name, pool in data.tests.items()} == {"test": 4, "ood": 3}
    assert len(data.train) + len(data.select or []) == 16
    assert data.class_names == ("ant", "bee")
    assert data.tests["ood"].y.tolist() == [1, 1, 1]
    assert data.headline == ("accuracy", "ood/accuracy")
    own = ids(data.train) + ids(data.select) + ids(data.tests["test"])
    assert sorted(own) == sorted(f"{c}/{i}.png" for c in ("ant", "bee") for i in range(10))
    assert data.name == "my-photos"
    assert isinstance(data.train, TensorPool)
    assert data.train.augment == "crop-flip"


def test_folders_named_train_val_and_test_are_the_parts(tmp_path: Path) -> None:
    for part, each in {"train": 6, "val": 2, "test": 3, "sketch": 1}.items():
        imagefolders.class_folders(tmp_path / "photos" / part, each=each)
    data = load(str(tmp_path / "photos"), image_size=8)
    assert [len(pool) for pool in (data.train, data.select or data.train)] == [12, 4]
    assert {name: len(pool) for name, pool in data.tests.items()} == {"test": 6, "sketch": 2}


def test_larger_images_are_read_from_their_files_and_cropped_at_random(tmp_path: Path) -> None:
    data = load(str(imagefolders.class_folders(tmp_path / "photos", each=6)), image_size=72)
    assert isinstance(data.train, ImagePool)
    assert data.train.augment == "imagenet"
    assert data.default_model == "resnet18"


def listed(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def test_a_table_names_images_with_label_group_split_and_id(tmp_path: Path) -> None:
    imagefolders.class_folders(tmp_path, each=8)
    rows = [
        {"file": f"{c}/{i}.png", "kind": c, "place": "north" if i % 2 else "south", "part": part, "key": f"{c}{i}"}
        for c in ("ant", "bee")
        for i, part in enumerate(["train"] * 4 + ["val", "test", "hard", "hard"])
    ]
    table = listed(tmp_path / "images.csv", rows)
    columns = {"image": "file", "label": "kind", "group": "place", "split_column": "part", "id": "key"}
    data = load(str(table), **columns, image_size=8, augment="none")
    assert ids(data.select) == ["ant4", "bee4"]
    assert ids(data.tests["test"]) == ["ant5", "bee5"]
    assert isinstance(data.train, JoinedPool)
    assert ids(data.train)[-4:] == ["ant6", "ant7", "bee6", "bee7"]
    assert data.train.validation.tolist() == [8, 9, 10, 11]
    assert data.group_names == ("north", "south")
    assert data.train.group is not None
    assert data.train.group.tolist() == [1, 0, 1, 0] * 2 + [1, 0, 1, 0]
    again = data.train.batch(torch.tensor([9, 1, 8]))
    assert again.y.tolist() == [0, 0, 0]
    both = [data.train.batch(torch.tensor([i])).x for i in (9, 1, 8)]
    assert torch.equal(again.x, torch.cat(both))


def test_images_to_validate_on_come_from_another_folder(tmp_path: Path) -> None:
    photos = imagefolders.class_folders(tmp_path / "photos", each=6)
    hard = imagefolders.class_folders(tmp_path / "hard", each=2)
    data = load(str(photos), val_root=str(hard), image_size=8)
    assert [*data.tests] == ["test"]
    assert isinstance(data.train, JoinedPool)
    assert ids(data.train)[-4:] == ["ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png"]


@pytest.mark.parametrize("size", [8, 96], ids=["in memory", "from files"])
def test_broken_images_are_named_and_counted_or_left_out(tmp_path: Path, size: int) -> None:
    photos = imagefolders.class_folders(tmp_path / "photos", each=10)
    (photos / "ant" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 20 rows cannot be used.*3\.png is empty"):
        load(str(photos), image_size=size)
    with pytest.warns(UserWarning, match="left out"):
        data = load(str(photos), image_size=size, on_bad="skip")
    assert "ant/3.png" not in ids(data.train) + ids(data.select) + ids(data.tests["test"])


def test_broken_images_of_tests_and_of_validation_are_met_before_training(tmp_path: Path) -> None:
    for name in ("photos", "sketch", "hard"):
        imagefolders.class_folders(tmp_path / name, each=10)
    (tmp_path / "sketch/ant/3.png").write_bytes(b"")
    (tmp_path / "sketch/bee/4.png").write_bytes(b"no image")
    (tmp_path / "hard/bee/5.png").write_bytes(b"")
    command = ["train", "--data", "photos", "--test", "ood=sketch", "--val-root", "hard", "--image-size", "96"]
    with pytest.raises(DataError) as error:
        typed(*command, "--method", "lrw-random", "--epochs", "3", "--out", "run")
    said = str(error.value)
    assert "3 of 60 rows cannot be used" in said
    assert all(name in said for name in ("sketch/ant/3.png is empty", "sketch/bee/4.png", "hard/bee/5.png is empty"))
    assert "Mend them, or leave them out with --on-bad skip" in said
    assert not (tmp_path / "run").exists()


# ---- the command line


def test_one_command_trains_on_a_folder_and_tests_on_another_domain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imagefolders.class_folders(tmp_path / "photo", each=10)
    imagefolders.class_folders(tmp_path / "sketch", each=2)
    command = ["train", "--data", "photo", "--test", "ood=sketch", "--method", "erm", *COMMAND, "--out", "run"]
    assert typed(*command, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {"accuracy", "ood/accuracy"} <= set(result["last"])
    assert (result["data"], result["scenario"]) == ("photo", "clean")
    assert typed("resume", "run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["last"] == result["last"]
    assert typed(*command, "--json") == 0  # the same command finds the run finished
    capsys.readouterr()


def test_val_root_makes_holdouts_given_in_a_comparison_that_can_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imagefolders.class_folders(tmp_path / "photo", each=10)
    imagefolders.class_folders(tmp_path / "hard", each=3)
    methods = ["--methods", "erm,lrw-random", "--seeds", "1", "--jobs", "1"]
    command = ["compare", "--data", "photo", "--val-root", "hard", *methods, *COMMAND, "--out", "both"]
    assert typed(*command) == 0
    assert "lrw-random[holdout.kind=given]" in capsys.readouterr().out
    done = sorted((tmp_path / "both").rglob("DONE"))
    assert len(done) == 2
    assert typed("resume", "both", "--json") == 0
    capsys.readouterr()
    with pytest.raises(ConfigError, match="none of erm, molere validates on a part of its own"):
        typed("compare", "--data", "photo", "--val-root", "hard", "--dry-run")


@pytest.mark.slow  # two more processes start
def test_a_comparison_in_two_processes_reads_own_data_as_one_process_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"v": i / 40 + i % 2, "label": "ab"[i % 2]} for i in range(40)]
    listed(tmp_path / "t.csv", rows)
    found = []
    for jobs in ("1", "2"):
        command = ["compare", "--data", "t.csv", "--methods", "erm", "--seeds", "2", "--epochs", "1", "--out", jobs]
        assert typed(*command, "--jobs", jobs, "--json", "train.batch_size=4") == 0
        results = json.loads(capsys.readouterr().out)["results"]
        found.append([result["last"] for result in results])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere/at/all"], "there is nothing at nowhere/at/all"),
        (["--data", "photso"], "or give a path to your own data"),
        (["--data", "t.csv", "--test", "a=t.csv", "--test", "a=t.csv"], "each NAME once"),
        (["--data", "digits", "--label", "y"], "digits is a named data set"),
        (["--data", "t.csv", "--on-bad", "maybe"], "one of error, skip"),
        (["--data", "t.csv", "--test-share", "20"], "test_share must be a float in [0, 0.5]"),
    ],
)
def test_a_mistake_on_the_command_line_is_said_before_anything_is_read(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("v,label\n1,a\n")
    with pytest.raises(ConfigError) as error:
        typed("train", *arguments, "--dry-run")
    assert said in str(error.value)


# ---- frozen features


def expected(data: Data, model: torch.nn.Module) -> torch.Tensor:
    """Features of the training part of images in 0..1, worked out here: what the model makes without its head."""
    from torch import nn

    model.fc = nn.Identity()  # type: ignore[assignment]
    assert isinstance(data.train, TensorPool)
    x = data.train.x.float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        return model.eval()((x - mean[:, None, None]) / std[:, None, None])


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_features_are_what_enters_the_head_and_heads_train_on_them(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imagefolders.class_folders(tmp_path / "photo", each=8)
    imagefolders.class_folders(tmp_path / "sketch", each=3)
    model = build("torchvision:resnet18", num_classes=2, input_shape=(3, 32, 32), seed=5)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    backbone = ["--model", "torchvision:resnet18", "--weights", "w.safetensors", "--image-size", "32"]
    out = f"f.{ending}"
    assert typed("data", "embed", "--data", "photo", "--test", "ood=sketch", *backbone, "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"file": out, "features": 512, "parts": {"train": 16, "ood": 6}}
    data = load(out, scale=False, select=0.0)
    images = load("photo", image_size=32, select=0.0, test={"ood": "sketch"}, test_share=0.0)
    ours = expected(images, model)
    place = {own: at for at, own in enumerate(ids(images.train))}
    both = [data.train, data.tests["test"]]
    for pool in both:
        assert isinstance(pool, TensorPool)
        theirs = ours[[place[own] for own in ids(pool)]]
        torch.testing.assert_close(pool.x, theirs, rtol=1e-4, atol=1e-4)
    assert sorted(ids(both[0]) + ids(both[1])) == sorted(place)
    assert data.class_names == ("ant", "bee")
    assert len(data.tests["ood"]) == 6
    assert typed("train", "--data", out, "--method", "erm", "--model", "linear", "--epochs", "2", "--json") == 0
    assert "ood/accuracy" in json.loads(capsys.readouterr().out)["last"]


def test_small_grey_images_of_a_named_set_are_enlarged_and_the_test_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model=cnn", "--weights=none", "--image-size=16", "--limit=50", "--out=d.npz", "--quiet"]
    assert typed("data", "embed", "--data", "digits", *command, "data.scenario=clean") == 0
    assert "molere train --data d.npz" in capsys.readouterr().out
    with np.load(tmp_path / "d.npz") as file:
        assert {part: int((file["split"] == part).sum()) for part in ("train", "test")} == {"train": 50, "test": 400}
        assert file["x"].dtype == np.float32
    digits = load("digits", scenario="clean", limit=50)
    assert isinstance(digits.train, TensorPool)
    large = F.interpolate(digits.train.x.expand(-1, 3, -1, -1), (16, 16), mode="bilinear", antialias=True)
    assert large.shape == (50, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "f.csv"], r"\.npz or \.parquet"),
        (["train.lr=1"], "features depend on the data alone"),
        (["--model", "resnet21"], "did you mean"),
        (["--data", "gone.csv"], "there is nothing at gone.csv"),
    ],
)
def test_a_mistake_of_embed_is_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        typed("data", "embed", "--model", "cnn", "--weights", "none", "--quiet", *arguments)
