"""The user's own data by path: tables, texts, arrays, sparse rows, saved Hugging Face data, and their parts."""

import csv
import gzip
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from molere.data.pool import Data, Pool, TensorPool
from molere.data.sources import load
from molere.errors import ConfigError, DataError

HEADER = ("id", "size", "colour", "region", "label")


def people(count: int = 60, first: int = 100) -> list[list[object]]:
    """Rows of HEADER: two classes, a number that tells them apart, a name, a group."""
    draws = np.random.default_rng(first)
    labels = ["no", "yes"] * (count // 2)
    colours, regions = ("red", "green", "blue"), ("north", "south")
    return [
        [
            f"p{first + i}",
            round(float(draws.normal(3 * (label == "yes"))), 3),
            colours[i % 3],
            regions[i % 2 ^ i % 3 % 2],
            label,
        ]
        for i, label in enumerate(labels)
    ]


def written(path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] | None = HEADER, by: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=by)
        table.writerows([*([header] if header else []), *rows])
    return path


def pool_of(data: Data, name: str = "train") -> TensorPool:
    pool: Pool | None = {"train": data.train, "select": data.select, **data.tests}[name]
    assert isinstance(pool, TensorPool)
    return pool


def ids(pool: Pool | None) -> list[Any]:
    assert pool is not None
    assert pool.ids is not None
    return pool.ids.tolist()


# ---- tables


def test_a_csv_file_becomes_train_select_and_test_parts_with_the_users_ids_and_groups(tmp_path: Path) -> None:
    rows = people()
    data = load(str(written(tmp_path / "people.csv", rows)), group="region")
    assert {name: len(pool_of(data, name)) for name in ("train", "select", "test")} == {
        "train": 43,
        "select": 5,
        "test": 12,
    }
    assert sorted(ids(data.train) + ids(data.select) + ids(data.tests["test"])) == sorted(row[0] for row in rows)
    of_row = {row[0]: row for row in rows}
    train = pool_of(data)
    for at, own in enumerate(ids(train)):
        assert ("no", "yes")[int(train.y[at])] == of_row[own][4]
        assert train.group is not None
        assert ("north", "south")[int(train.group[at])] == of_row[own][3]
    assert data.group_names == ("north", "south")
    assert data.headline == ("worst_group", "accuracy")
    assert data.name == "people"


def test_numbers_are_scaled_and_names_one_hot_by_the_training_part_alone(tmp_path: Path) -> None:
    rows = people()
    path = written(tmp_path / "people.csv", rows)
    test = written(
        tmp_path / "test.csv", [["t1", 1000.0, "violet", "north", "no"], ["t2", -3.0, "red", "south", "yes"]]
    )
    data = load(str(path), test={"test": str(test)}, drop_columns=["region"])
    train = pool_of(data)
    assert train.shape == (4,)
    of_row = {row[0]: row for row in rows}
    sizes = np.array([[of_row[own][1]] for own in ids(train)], dtype=np.float64)
    scaler = StandardScaler().fit(sizes)
    torch.testing.assert_close(
        train.x[:, 0].double(), torch.from_numpy(scaler.transform(sizes))[:, 0], rtol=1e-5, atol=1e-5
    )
    colours = ("blue", "green", "red")
    assert train.x[:, 1:].tolist() == [[float(of_row[own][2] == c) for c in colours] for own in ids(train)]
    far = pool_of(data, "test").x
    torch.testing.assert_close(
        far[:, 0].double(), torch.from_numpy(scaler.transform([[1000.0], [-3.0]]))[:, 0], rtol=1e-5, atol=1e-5
    )
    assert far[:, 1:].tolist() == [[0, 0, 0], [0, 0, 1]]  # violet was never seen


def test_missing_numbers_become_the_training_median_and_say_so_and_a_missing_name_is_a_name(tmp_path: Path) -> None:
    rows = [[i, "" if i in (3, 5) else i, ["a", " b", "?"][i % 3], "xy"[i % 2]] for i in range(12)]
    path = written(tmp_path / "t.csv", rows, ("id", "v", "name", "label"))
    data = load(str(path), test=str(path), select=0.0, scale=False)
    x, own = pool_of(data).x, ids(data.train)
    median = float(np.median([i for i in range(12) if i not in (3, 5)]))
    assert x[:, 0].tolist() == [median if i in (3, 5) else float(i) for i in own]
    assert x[:, 1].tolist() == [float(i in (3, 5)) for i in own]
    assert x[:, 2:].tolist() == [[float(i % 3 == 2), float(i % 3 == 0), float(i % 3 == 1)] for i in own]


def test_a_file_without_header_and_a_tab_separated_one_are_read(tmp_path: Path) -> None:
    bare = [row[1:] for row in people()]
    data = load(str(written(tmp_path / "bare.csv", bare, None)), header=False, label="f3", group="f2")
    assert len(pool_of(data).x[0]) == 4
    assert isinstance(ids(data.train)[0], int)
    quotes = [[f"t{i}", 'a "lone quote' if i % 2 else "none", "yn"[i % 2]] for i in range(20)]
    path = tmp_path / "t.tsv"
    path.write_text("\n".join("\t".join(map(str, row)) for row in [["id", "word", "label"], *quotes]) + "\n")
    assert sum(len(pool_of(load(str(path)), part)) for part in ("train", "select", "test")) == 20


def test_labels_and_ids_keep_their_zeros_and_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = [[f"{i:03}", i, ["007", "10", "9"][i % 3]] for i in range(30)]
    data = load(str(written(tmp_path / "t.csv", rows, ("id", "v", "label"))))
    names, train = ("007", "9", "10"), pool_of(data)
    assert [names[int(c)] for c in train.y] == [["007", "10", "9"][int(own) % 3] for own in ids(train)]
    assert "011" in ids(data.train) + ids(data.select) + ids(data.tests["test"])


def test_parquet_with_lists_dates_and_booleans_becomes_numbers(tmp_path: Path) -> None:
    n = 20
    table = pa.table(
        {
            "vector": pa.array([[float(i), 2.0 * i] for i in range(n)], pa.list_(pa.float32())),
            "day": pa.array([*range(n)], pa.int32()).cast(pa.date32()),
            "yes": [i % 4 == 0 for i in range(n)],
            "nothing": pa.nulls(n),
            "target": [i % 2 for i in range(n)],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    data = load(str(tmp_path / "t.parquet"), scale=False, select=0.0, test=str(tmp_path / "t.parquet"))
    x = pool_of(data).x
    assert x.tolist() == [[float(i), float(i % 4 == 0), float(i), 2.0 * i] for i in range(n)]
    assert pool_of(data).y.tolist() == [i % 2 for i in range(n)]


def test_a_split_column_says_which_rows_train_select_validate_and_test(tmp_path: Path) -> None:
    parts = ["train"] * 20 + ["val"] * 6 + ["hard"] * 5 + ["test"] * 7 + ["ood"] * 4
    rows = [[i, i / 10, "ab"[i % 2], part] for i, part in enumerate(parts)]
    data = load(str(written(tmp_path / "t.csv", rows, ("id", "v", "label", "split"))))
    assert ids(data.train) == [*range(20), *range(26, 31)]
    assert data.train.validation.tolist() == [*range(20, 25)]  # type: ignore[attr-defined]
    assert ids(data.select) == [*range(20, 26)]
    assert {name: len(pool) for name, pool in data.tests.items()} == {"ood": 4, "test": 7}
    assert data.headline == ("accuracy", "test/accuracy")


def test_several_test_files_are_test_sets_by_name_after_the_part_held_out(tmp_path: Path) -> None:
    main = written(tmp_path / "a b.csv", people(40))
    others = {
        name: str(written(tmp_path / f"{name}.csv", people(10, at))) for name, at in (("süd", 300), ("late", 400))
    }
    data = load(str(main), test=others)
    assert {name: len(pool) for name, pool in data.tests.items()} == {"test": 8, "süd": 10, "late": 10}
    assert data.headline == ("accuracy", "süd/accuracy", "late/accuracy")
    assert list(load(str(main), test=others, test_share=0).tests) == ["süd", "late"]
    assert data.name == "a-b"


def test_the_same_path_and_seed_give_the_same_content_and_another_seed_another_split(tmp_path: Path) -> None:
    path = str(written(tmp_path / "t.csv", people()))
    first, again, other = load(path), load(path), load(path, seed=1)
    assert first.train.fingerprint() == again.train.fingerprint()
    assert ids(first.train) == ids(again.train) != ids(other.train)


def test_a_limit_and_noise_apply_to_own_data(tmp_path: Path) -> None:
    path = str(written(tmp_path / "t.csv", people()))
    data = load(path, limit=20, scenario="uniform[uniform=0.5]")
    train = pool_of(data)
    assert len(train) == 20
    assert train.clean_y is not None
    assert 0 < int((train.clean_y != train.y).sum()) < 20
    assert data.scenario == "uniform[uniform=0.5]"


# ---- texts

WORDS = {"sport": "ball goal team match", "food": "bread soup salt oven"}


def texts(count: int) -> list[list[object]]:
    kinds = [*WORDS]
    return [[f"{WORDS[kinds[i % 2]]} word{i % 7} día", kinds[i % 2]] for i in range(count)]


@pytest.mark.parametrize("how", ["tfidf", "hashed"])
def test_texts_become_dense_numbers_that_tell_the_topics_apart(how: str, tmp_path: Path) -> None:
    path = written(tmp_path / "news.tsv", texts(40), ("title", "topic"), by="\t")
    data = load(str(path), text="title", label="topic", text_as=how, dimensions=8)
    train, test = pool_of(data), pool_of(data, "test")
    assert train.x.dtype == torch.float32
    assert train.shape == (8,)
    assert float(train.x.square().mean()) == pytest.approx(1, abs=0.05)
    centres = torch.stack([train.x[train.y == c].mean(0) for c in (0, 1)])
    assert torch.equal(torch.cdist(test.x, centres).argmin(1), test.y)


def test_what_a_report_shows_of_texts_is_what_was_read(tmp_path: Path) -> None:
    words = [[f"t{i}", text, topic] for i, (text, topic) in enumerate(texts(20))]
    news = str(written(tmp_path / "news.csv", words, ("id", "title", "topic")))
    data = load(news, text="title", label="topic", id="id")
    assert data.texts is not None
    own = {name: text for name, text, _ in words}
    assert {name: data.texts[name] for name in data.train.ids.tolist()} == {n: own[n] for n in data.train.ids.tolist()}
    assert data.texts.get("t99") is None
    hard = written(tmp_path / "hard.csv", [["h0", "a hard one", words[0][2]]], ("id", "title", "topic"))
    joined = load(news, text="title", label="topic", id="id", val_root=str(hard))
    assert joined.texts is not None
    assert (joined.texts["h0"], joined.texts[joined.train.ids[0]]) == ("a hard one", own[joined.train.ids[0]])


def test_words_of_the_test_alone_are_not_in_the_vocabulary(tmp_path: Path) -> None:
    train = written(tmp_path / "a.csv", texts(20), ("t", "label"))
    test = written(tmp_path / "b.csv", [["unheard syllables", "food"], ["soup", "food"]], ("t", "label"))
    x = pool_of(load(str(train), text="t", test=str(test), dimensions=4), "test").x
    assert x[0].abs().max() == 0
    assert x[1].abs().max() > 0


def test_texts_without_a_word_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", [["!", "ab"[i % 2]] for i in range(20)], ("t", "label"))
    with pytest.raises(DataError, match="no text of the training part has a word"):
        load(str(path), text="t")


# ---- arrays and sparse rows


def test_an_npz_file_of_x_and_y_is_standardised_and_split(tmp_path: Path, generator: torch.Generator) -> None:
    x = torch.randn(50, 5, generator=generator).numpy() * 3 + 7
    np.savez(tmp_path / "e.npz", x=x, y=np.arange(50) % 3, ids=np.array([f"n{i}" for i in range(50)]))
    data = load(str(tmp_path / "e.npz"))
    train = pool_of(data)
    assert train.x.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(train.x.std(0, correction=0), torch.ones(5))
    rows = [int(own[1:]) for own in ids(train)]
    assert train.y.tolist() == [i % 3 for i in rows]
    assert torch.equal(pool_of(load(str(tmp_path / "e.npz"), scale=False)).x, torch.from_numpy(x[rows]))


@pytest.mark.parametrize("names", ["{array}_{part}", "{part}_{array}"])
def test_an_npz_file_with_parts_is_read_as_keras_and_medmnist_write_it(names: str, tmp_path: Path) -> None:
    parts = {"train": 20, "test": 6, "val": 4}
    arrays = {}
    long = names.startswith("{part}")
    for part, n in parts.items():
        arrays[names.format(part=part, array="images" if long else "x")] = np.full((n, 8, 8, 3), n, np.uint8)
        arrays[names.format(part=part, array="labels" if long else "y")] = (np.arange(n) % 2)[:, None]
    np.savez(tmp_path / "m.npz", **arrays)
    data = load(str(tmp_path / "m.npz"))
    assert pool_of(data).x.shape == (20, 3, 8, 8)
    assert len(pool_of(data, "select")) == 4
    assert set(pool_of(data, "test").x.flatten().tolist()) == {6}
    assert data.default_model == "cnn"
    assert ids(data.tests["test"]) == [*range(6)]


def test_rows_with_nan_are_named_by_id_and_can_be_left_out(tmp_path: Path) -> None:
    x = np.ones((30, 2), np.float32)
    x[[4, 9]] = np.nan
    x[:, 0] += np.arange(30)
    np.savez(tmp_path / "e.npz", x=x, y=np.arange(30) % 2)
    with pytest.raises(DataError, match="2 of 30 rows cannot be used: row 4 holds NaN or infinity; row 9"):
        load(str(tmp_path / "e.npz"))
    with pytest.warns(UserWarning, match="2 of 30 rows"):
        data = load(str(tmp_path / "e.npz"), on_bad="skip", select=0.0, test_share=0.1)
    assert sorted(ids(data.train) + ids(data.tests["test"])) == [i for i in range(30) if i not in (4, 9)]


def test_an_npz_file_of_objects_runs_no_code(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", x=np.array([{}, {}]), y=np.arange(2))
    with pytest.raises(DataError, match="Python objects"):
        load(str(tmp_path / "e.npz"))
    np.savez(tmp_path / "f.npz", z=np.arange(2))
    with pytest.raises(DataError, match="holds z; expected x and y"):
        load(str(tmp_path / "f.npz"))


def svmlight(path: Path, labels: Sequence[str], width: int) -> Path:
    lines = [f"{y} {i % 3}:{i + 1} {width - 1}:{1 + i % 2}" for i, y in enumerate(labels)]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return path


def test_sparse_rows_become_dense_and_two_files_agree_on_the_columns(tmp_path: Path) -> None:
    train = svmlight(tmp_path / "books.svmlight.gz", ["+1", "-1"] * 15, 12)
    test = svmlight(tmp_path / "dvd.svmlight.gz", ["-1", "+1"] * 5, 9)
    data = load(str(train), test={"dvd": str(test)})
    assert pool_of(data).shape == pool_of(data, "dvd").shape == (12,)
    rows = ids(data.train)
    assert pool_of(data).y.tolist() == [int(i % 2 == 0) for i in rows]  # -1 before +1
    ratio = pool_of(data).x[:, 11] / torch.tensor([1.0 + i % 2 for i in rows])
    assert ratio.min() == pytest.approx(float(ratio.max()))


def test_many_columns_of_counts_are_reduced(tmp_path: Path) -> None:
    train = svmlight(tmp_path / "w.svm.gz", ["1", "2"] * 15, 5000)
    assert pool_of(load(str(train))).x.shape[1] <= 24
    assert pool_of(load(str(train), dimensions=3)).shape == (3,)


# ---- Hugging Face data from disk: the files that save_to_disk writes


def hugging(folder: Path, table: pa.Table, features: dict[str, Any], shards: int = 2) -> None:
    folder.mkdir(parents=True)
    names = [f"data-{k:05}-of-{shards:05}.arrow" for k in range(shards)]
    size = -(-table.num_rows // shards)
    for k, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.slice(k * size, size))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


CLASSES = {"names": ["neg", "pos"], "_type": "ClassLabel"}


def test_a_saved_dataset_dict_is_read_with_its_splits_and_class_names(tmp_path: Path) -> None:
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": CLASSES}
    for part, n in {"train": 24, "validation": 6, "test": 8}.items():
        table = pa.table(
            {"text": [f"good film {i}" if i % 2 else "bad film" for i in range(n)], "label": [i % 2 for i in range(n)]}
        )
        hugging(tmp_path / "imdb" / part, table, features)
    (tmp_path / "imdb" / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    data = load(str(tmp_path / "imdb"), text="text", dimensions=4)
    assert [len(p) for p in (data.train, data.select or data.train, data.tests["test"])] == [24, 6, 8]
    assert pool_of(data).y.tolist() == [i % 2 for i in range(24)]


def png(value: int, size: tuple[int, int] = (10, 12)) -> bytes:
    import io

    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(sink, "PNG")
    return sink.getvalue()


def test_a_saved_dataset_of_images_is_decoded_and_broken_ones_are_named(tmp_path: Path) -> None:
    cells = [{"bytes": png(10 * i), "path": None} for i in range(20)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"image": {"_type": "Image"}, "label": CLASSES}
    label = [i % 2 for i in range(20)]
    hugging(tmp_path / "good", pa.table({"image": pa.array(cells, kind), "label": label}), features)
    data = load(str(tmp_path / "good"), image_size=8)
    assert pool_of(data).shape == (3, 8, 8)
    assert pool_of(data).x[:, 0, 4, 4].tolist() == [10 * i for i in ids(data.train)]
    cells[3]["bytes"] = b"no image"
    hugging(tmp_path / "bad", pa.table({"image": pa.array(cells, kind), "label": label}), features)
    with pytest.raises(DataError, match="1 of 20 rows cannot be used: row 3: its image cannot be read"):
        load(str(tmp_path / "bad"), image_size=8)
    with pytest.warns(UserWarning, match="row 3"):
        data = load(str(tmp_path / "bad"), image_size=8, on_bad="skip")
    assert 3 not in ids(data.train) + ids(data.select) + ids(data.tests["test"])


# ---- examples to validate on


def test_the_holdout_given_validates_on_the_examples_of_val_root(tmp_path: Path) -> None:
    from molere import fit

    train, hard = written(tmp_path / "t.csv", people()), written(tmp_path / "hard.csv", people(10, 500))
    data = load(str(train), val_root=str(hard), drop_columns=["region"])
    assert ids(data.train)[-10:] == [f"p{500 + i}" for i in range(10)]
    x = data.train.batch(torch.tensor([len(data.train) - 1, 0, len(data.train) - 2]))
    assert [data.train.y[int(i)] for i in x.index] == x.y.tolist()
    result = fit("lrw-random[holdout=given]", data=data, recipe={"epochs": 2})
    validated = np.asarray(result.samples["in_validation"]).astype(bool)
    assert np.flatnonzero(validated).tolist() == [*range(len(data.train) - 10, len(data.train))]


def test_given_without_such_examples_says_what_to_type(tmp_path: Path) -> None:
    from molere import fit

    with pytest.raises(DataError, match="--val-root"):
        fit("lrw-random[holdout=given]", data={"name": "digits", "limit": 100}, recipe={"epochs": 2})


# ---- mistakes


def test_labels_that_the_training_part_lacks_are_named_and_counted(tmp_path: Path) -> None:
    main = written(tmp_path / "t.csv", people(20))
    odd = [["t1", 1, "red", "north", "maybe"], ["t2", 1, "red", "north", ""], ["t3", 1, "red", "north", "yes"]]
    test = written(tmp_path / "odd.csv", odd)
    with pytest.raises(
        DataError, match="2 of 3 rows cannot be used: id t1 has the label 'maybe', which is not among no, yes"
    ):
        load(str(main), test=str(test))
    with pytest.warns(UserWarning, match="id t2 has no label"):
        data = load(str(main), test=str(test), on_bad="skip")
    assert ids(data.tests["test"]) == ["t3"]


def test_repeated_ids_are_named(tmp_path: Path) -> None:
    rows = people(20)
    rows[7][0] = rows[2][0]
    with pytest.raises(DataError, match="id p102 of row 7 is that of row 2 too"):
        load(str(written(tmp_path / "t.csv", rows)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label": "lable"}, "has no column 'lable' for the label; did you mean 'label'?"),
        ({"drop_columns": ["size", "colour", "region"]}, "has no feature column"),
        ({"features": ["sizes"]}, "did you mean 'size'?"),
        ({"group": "label2"}, "has no column 'label2' for the group"),
        ({"test": "nowhere.csv"}, "there is nothing at nowhere.csv"),
        ({"val_root": "gone"}, "there is nothing at gone"),
        ({"scenario": "nosie"}, "did you mean 'noise'?"),
        ({"lable": "x"}, "unknown setting of the data 'lable'; did you mean 'label'?"),
        ({"test_share": 0}, "there is no test"),
        ({"test_share": 20}, "data.test_share must be a float in [0, 0.5] (or none); got 20. It is a fraction"),
        ({"text_as": "tfdif"}, "data.text_as must be one of tfidf, hashed"),
        ({"limit": 1}, "2 or more"),
        ({"scenario": "hidden-group", "val_root": "."}, "keep one of them"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", people(20))
    with pytest.raises((ConfigError, DataError)) as error:
        load(str(path), **given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_data_are_refused_in_one_line(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet", "a.npz", "a.svmlight", "a.feather", "a.jsonl"):
        (tmp_path / name).write_bytes(b"\x00\xff\xfe{[}\n")
        with pytest.raises(DataError) as error:
            load(str(tmp_path / name))
        assert "\n" not in str(error.value)
        assert name in str(error.value)


def test_settings_of_own_data_are_refused_for_a_named_data_set() -> None:
    with pytest.raises(ConfigError, match="data.label is for data given by a path; digits is a named data set"):
        load("digits", label="y")
    with pytest.raises(ConfigError, match="lable: unknown key"):
        load("digits", lable="y")


def test_no_warning_escapes_when_all_rows_are_good(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(str(written(tmp_path / "t.csv", people(200))))
