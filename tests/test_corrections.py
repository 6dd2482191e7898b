"""Labels, weights and dropped examples from files: what they change, what they leave alone, what they refuse."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch
from torch import Tensor

from molere import DatasetPool, TensorPool, fit, load
from molere.data.corrections import corrected, names_of
from molere.data.decided import digest, read_ids, read_labels, read_weights
from molere.data.joined import JoinedPool
from molere.data.pool import Data, Pool
from molere.data.sources import from_arrays, from_datasets
from molere.data.sparse import SparsePool
from molere.data.view import PoolView
from molere.data.weighted import WeightedPool
from molere.errors import DataError, StorageError
from molere.methods.lrw import LRW
from molere.request import request
from oracles import relative_error
from stepping import PLAIN, assert_same_parameters, begun, turn, twin_of


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def arrays(ids: list[str] | None = None, n: int = 12) -> Data:
    """Three classes; two thirds train, the rest selects."""
    x, y = torch.randn(n, 4, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3
    own = None if ids is None else np.array(ids)
    return from_arrays(x, y, x[:6], y[:6], ids=own, select=0.33)


class Items(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((3,), float(i)), i % 3


# ---- reading


@pytest.mark.parametrize(
    "text",
    [
        "id,label\na,1\nb,2\n",
        "id;label\r\na;1\r\nb;2\r\n",
        "score,label,id\n.5,1,a\n.1,2.0,b\n",
        "id\tlabel\n a\t1\n\nb\t2\n",
    ],
)
def test_labels_are_read_from_any_usual_csv(tmp_path: Path, text: str) -> None:
    assert read_labels(written(tmp_path / "l.csv", text), 3) == {"a": 1, "b": 2}
    assert read_labels(written(tmp_path / "l.csv", "\ufeff" + text), 3) == {"a": 1, "b": 2}


def test_an_id_with_quotes_commas_and_tags_stays_text(tmp_path: Path) -> None:
    path = written(tmp_path / "l.csv", 'id,label\n"<script>""a"", b.png",1\n')
    assert read_labels(path, 2) == {'<script>"a", b.png': 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\na,3\n", r"line 2: label '3' of example a is no class; give a number from 0 to 2"),
        ("id,label\na,cat\n", r"label 'cat' of example a is no class"),
        ("id,label\na,\n", r"label '' of example a is no class"),
        ("id,label\na,-1\n", r"label '-1' of example a is no class"),
        ("id,label\na,1.5\n", r"label '1.5' of example a is no class"),
        ("id,label\na,1\na,2\n", r"line 3: label '2' of example a, which has label 1 above; keep one line"),
        ("id,label\na\n", r"line 2: 1 cells, expected 2; mend the line"),
        ("name,label\na,1\n", r"begins with 'name,label'; expected a CSV with columns id and label"),
        ("", r"begins with ''; expected a CSV"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_labels(written(tmp_path / "l.csv", text), 3)
    assert "\n" not in str(error.value)


def test_weights_are_read_from_parquet_and_csv_and_a_missing_one_is_nan(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sample_id": [0, 1], "id": [7, 9], "weight": [0.5, None]}), tmp_path / "w.parquet")
    text = written(tmp_path / "w.csv", "id,weight\n7,0.5\n9,\n")
    for found in (read_weights(tmp_path / "w.parquet"), read_weights(text)):
        assert found["7"] == 0.5
        assert np.isnan(found["9"])
    pq.write_table(pa.table({"sample_id": [3], "weight": [2.0]}), tmp_path / "w.parquet")
    assert read_weights(tmp_path / "w.parquet") == {"3": 2.0}


def test_weights_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.csv"
    for text, message in [
        ("id,weight\na,-1\n", "weight -1.0 of example a is not a number of at least 0"),
        ("id,weight\na,inf\n", "weight inf of example a"),
        ("id,weight\na,much\n", "weight 'much' of example a is not a number"),
        ("id,weight\na,1\na,1\n", "example a has two weights; keep one"),
    ]:
        with pytest.raises(DataError, match=message):
            read_weights(written(path, text))
    pq.write_table(pa.table({"id": [0], "w": [2.0]}), tmp_path / "w.parquet")
    with pytest.raises(DataError, match="has columns id, w; expected id and weight"):
        read_weights(tmp_path / "w.parquet")
    written(tmp_path / "w.parquet", "no table")
    with pytest.raises(DataError, match="is no table in Parquet"):
        read_weights(tmp_path / "w.parquet")


def test_ids_to_drop_are_lines_or_a_column(tmp_path: Path) -> None:
    assert read_ids(written(tmp_path / "i.txt", "a b.png\n\n 7 \n")) == ["a b.png", "7"]
    assert read_ids(written(tmp_path / "i.csv", "label,id\n1,a\n2,7\n")) == ["a", "7"]
    (tmp_path / "i.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not a text file in UTF-8"):
        read_ids(tmp_path / "i.txt")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no.csv cannot be read \(no such file or directory\); check the name"):
        read_labels(tmp_path / "no.csv", 3)


def test_the_digest_is_of_contents_and_of_what_they_are_for(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", "id\n1\n"), written(tmp_path / "b", "id\n1\n")
    assert digest({}) is digest({"labels": None, "name": "digits"}) is None
    assert digest({"drop": a}) == digest({"drop": str(b), "seed": 3})
    assert digest({"drop": a}) != digest({"labels": a})
    written(b, "id\n2\n")
    assert digest({"drop": a}) != digest({"drop": b})


# ---- laying over


def test_labels_change_training_and_selection_and_never_the_test(tmp_path: Path) -> None:
    data = arrays()
    ids = [int(i) for pool in (data.train, data.select) for i in pool.ids]  # type: ignore[union-attr]
    path = written(tmp_path / "l.csv", "id,label\n" + "".join(f"{i},{(i + 1) % 3}\n" for i in ids))
    new = corrected(data, labels=path)
    assert new.select is not None
    for pool in (new.train, new.select):
        assert pool.y.tolist() == [(i + 1) % 3 for i in pool.ids]  # type: ignore[union-attr]
    assert new.tests["test"] is data.tests["test"]
    assert data.train.y.tolist() == [i % 3 for i in data.train.ids]  # type: ignore[union-attr]
    assert new.train.fingerprint() != data.train.fingerprint()


def test_selection_data_of_the_users_own_are_left_alone(tmp_path: Path) -> None:
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    data = from_arrays(x, y, x, y, select=(x, y))
    new = corrected(data, labels=written(tmp_path / "l.csv", "id,label\n0,2\n"), drop=written(tmp_path / "d", "1\n"))
    assert new.select is data.select
    assert (new.train.y[0], len(new.train)) == (2, 8)
    assert 1 not in new.train.ids  # type: ignore[operator]


def test_dropped_examples_are_gone_and_the_others_keep_their_ids(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(12)]
    data = arrays(names)
    new = corrected(data, drop=written(tmp_path / "d.txt", "0.png\n1.png\n2.png\n3.png\n"))
    assert new.select is not None
    left = names_of(new.train) + names_of(new.select)
    assert sorted(left) == sorted(names[4:])
    assert [int(i.split(".")[0]) % 3 for i in names_of(new.train)] == new.train.y.tolist()


def test_examples_without_ids_are_named_by_their_position_before_dropping(tmp_path: Path) -> None:
    pool = TensorPool(torch.randn(6, 2), torch.arange(6) % 2)
    new = corrected(Data("d", pool, None, {"test": pool}), drop=written(tmp_path / "d.txt", "1\n2\n"))
    assert new.train.ids is not None
    assert new.train.ids.tolist() == [0, 3, 4, 5]


def test_datasets_take_corrections_too(tmp_path: Path) -> None:
    data = from_datasets(Items(9), Items(6), select=0.3)
    some = int(data.train.ids[0])  # type: ignore[index]
    labels = written(tmp_path / "l.csv", f"id,label\n{some},{(some + 1) % 3}\n")
    weights = written(tmp_path / "w.csv", f"id,weight\n{some},3\n")
    new = corrected(data, labels=labels, weights=weights)
    assert isinstance(new.train, DatasetPool)
    assert (new.train.y != data.train.y).nonzero().flatten().tolist() == [0]
    assert new.train.weight is not None
    assert new.train.weight.tolist()[:2] == [3.0, 1.0]
    less = corrected(new, drop=written(tmp_path / "d.txt", f"{data.train.ids[1]}\n"))  # type: ignore[index]
    assert isinstance(less.train, PoolView)
    assert less.train.weight is not None
    assert less.train.weight.tolist()[:2] == [3.0, 1.0]
    torch.testing.assert_close(less.train.batch(torch.tensor([0])).y, new.train.y[:1])


def of_kind(kind: str) -> Pool:
    """Six examples, ids 0 to 5, labels 0 1 2 0 1 2, in a pool of another kind."""
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    whole = TensorPool(x, y, num_classes=3, ids=np.arange(6))
    halves = [whole.subset(torch.arange(3)), whole.subset(torch.arange(3, 6))]
    made: dict[str, Pool] = {
        "sparse": SparsePool(scipy.sparse.csr_matrix(x.numpy()), y, num_classes=3, ids=np.arange(6)),
        "view": PoolView(whole, torch.arange(6)),
        "joined": JoinedPool(*halves),
        "weighted": WeightedPool(whole, torch.ones(6)),
    }
    return made[kind]


@pytest.mark.parametrize("kind", ["sparse", "view", "joined", "weighted"])
def test_pools_of_every_kind_take_labels_and_weights_and_lose_what_is_dropped(kind: str, tmp_path: Path) -> None:
    pool = of_kind(kind)
    data = Data("d", pool, None, {"test": of_kind("view")})
    labels, weights = written(tmp_path / "l.csv", "id,label\n4,0\n"), written(tmp_path / "w.csv", "id,weight\n0,3\n")
    done = corrected(data, labels=labels, weights=weights, drop=written(tmp_path / "d.txt", "1\n")).train
    assert done.y.tolist() == [0, 2, 0, 0, 2]
    assert names_of(done) == ["0", "2", "3", "4", "5"]
    assert done.weight is not None
    assert done.weight.tolist() == [3, 1, 1, 1, 1]
    batch = done.to("cpu").batch(torch.tensor([3, 0]))
    assert batch.y.tolist() == [0, 0]
    torch.testing.assert_close(batch.x, pool.batch(torch.tensor([4, 0])).x)
    assert done.fingerprint() != pool.fingerprint()
    if kind == "joined":
        assert done.validation.tolist() == [2, 3, 4]
    assert pool.y.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_class_is_named_or_numbered_and_a_misspelt_one_is_guessed(tmp_path: Path) -> None:
    path = written(tmp_path / "l.csv", "id,label\na,cat\nb,0\n")
    assert read_labels(path, 2, ("dog", "cat")) == {"a": 1, "b": 0}
    assert read_labels(path, 2, ("0", "cat")) == {"a": 1, "b": 0}
    assert read_labels(written(tmp_path / "n.csv", "id,label\na,7\n"), 2, ("3", "7")) == {"a": 1}
    with pytest.raises(DataError, match=r"label 'cta' of example a is no class; did you mean 'cat'\?"):
        read_labels(written(tmp_path / "l.csv", "id,label\na,cta\n"), 2, ("dog", "cat"))


def test_a_class_cannot_vanish_altogether(tmp_path: Path) -> None:
    data = arrays()
    everything = "".join(f"{i}\n" for i in range(12))
    with pytest.raises(DataError, match="drops all 8 examples; keep some"):
        corrected(data, drop=written(tmp_path / "d.txt", everything))


def test_unknown_ids_are_counted_and_only_unknown_ones_are_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        corrected(arrays(), drop=written(tmp_path / "d.txt", "0\n99\n98\n"))
    assert "2 of 3 ids in" in caplog.text
    assert "are of no training example (99, 98)" in caplog.text
    with pytest.raises(DataError, match="names 2 ids, none of them of a training example; use the ids of"):
        corrected(arrays(), drop=written(tmp_path / "d.txt", "99\n98\n"))
    with pytest.raises(DataError, match="names 99 and no other, none"):
        corrected(arrays(), drop=written(tmp_path / "d.txt", "99\n"))


@pytest.mark.parametrize("weight", [[1.0, -1.0], [float("nan"), 1.0], [0.0, 0.0], [1.0]])
def test_a_pool_refuses_weights_that_are_none(weight: list[float]) -> None:
    with pytest.raises(DataError, match=r"weight"):
        TensorPool(torch.randn(2, 2), torch.arange(2), weight=torch.tensor(weight))


def test_named_data_take_corrections_and_refuse_files_that_have_changed(tmp_path: Path) -> None:
    plain = load("digits", scenario="clean", limit=100)
    chosen = int(plain.train.ids[5])  # type: ignore[index]
    path = written(tmp_path / "l.csv", f"id,label\n{chosen},{(int(plain.train.y[5]) + 1) % 10}\n")
    new = load("digits", scenario="clean", limit=100, labels=path, corrections=digest({"labels": path}))
    assert (new.train.y != plain.train.y).nonzero().flatten().tolist() == [5]
    with pytest.raises(DataError, match="have changed since this was begun"):
        load("digits", labels=path, corrections="0" * 12)


def test_a_comparison_is_of_the_content_of_its_corrections(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a.csv", "id,label\n1,1\n"), written(tmp_path / "b.csv", "id,label\n1,2\n")
    said = [request(["erm"], {"name": "digits", "labels": p}, None, None, 1).config()["data"] for p in (one, two)]
    assert said[0]["labels"] == str(one)
    assert said[0]["corrections"] != said[1]["corrections"]
    assert "corrections" not in request(["erm"], "digits", None, None, 1).config()["data"]


# ---- weights in training


def weighted(given: Tensor) -> Data:
    from molere.testing import rare_region

    data = rare_region()
    pool = data.train
    assert isinstance(pool, TensorPool)
    return Data("weighted", TensorPool(pool.x, pool.y, weight=given), data.select, data.tests)


def given_weights(n: int = 96) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(7)) + 0.25


def test_erm_with_weights_takes_the_steps_of_the_weighted_mean() -> None:
    given = given_weights()
    training = begun("erm", data=weighted(given), **PLAIN)
    twin, share = twin_of(training), (given / given.mean()).double()
    for _ in range(8):
        seen = turn(training).seen.batch
        twin.step(seen.x, seen.y, share[seen.index])
    assert_same_parameters(training, twin, 1e-7)  # the weights are held in float32
    used = training.run.notes.weight
    torch.testing.assert_close(used, (given / given.mean()))


@pytest.mark.parametrize("order", ["fused", "strict"])
@pytest.mark.parametrize("estimator", ["exact", "ghost"])
def test_the_meta_gradient_knows_the_weights_that_the_data_came_with(order: str, estimator: str) -> None:
    given = given_weights()
    training = begun("erm", data=weighted(given), estimator=estimator, **PLAIN)
    run, share = training.run, (given / given.mean()).double()
    from molere.split import Split

    run.use(Split.of(torch.arange(16), 96, keep=True), at=0)
    twin, seen = twin_of(training), run.forward(run.train_batch(), remember=True)
    w = torch.linspace(0.5, 1.5, len(seen), dtype=torch.float64)
    ahead = order == "strict"
    look = run.look_ahead(seen, w) if ahead else run.look_back(run.update(seen, w, remember=True))
    b = share[seen.batch.index]
    truth = b * twin.weight_gradient((seen.batch.x, seen.batch.y), (look.batch.x, look.batch.y), w * b)
    assert relative_error(run.weight_gradient(look), truth) < 1e-6
    assert relative_error(run.weight_gradient(look) / b, truth) > 1e-2


def test_equal_weights_change_no_bit(tmp_path: Path) -> None:
    plain = fit("erm", data=weighted(torch.ones(96)), recipe={"epochs": 2, "batch_size": 16})
    data = weighted(torch.ones(96))
    data.train.weight = None  # type: ignore[attr-defined]
    none = fit("erm", data=data, recipe={"epochs": 2, "batch_size": 16})
    for one, two in zip(plain.classifier.parameters(), none.classifier.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("method", ["molere", LRW(q=2), "l2r", "gdw", "fsr", "jtt", "lrw-hard"])
def test_every_kind_of_method_trains_on_weighted_data(method: object) -> None:
    given = given_weights()
    given[:8] = 0
    result = fit(method, data=weighted(given), recipe={"epochs": 3, "batch_size": 16})  # type: ignore[arg-type]
    weight = result.weights[:8]
    assert bool(((weight == 0) | weight.isnan()).all())


def test_the_samples_of_a_run_are_weights_for_the_next(tmp_path: Path) -> None:
    data, recipe = arrays(n=60), {"epochs": 3, "batch_size": 16}
    first = fit("molere", data=data, recipe=recipe, out=tmp_path / "one")
    again = corrected(data, weights=tmp_path / "one" / "samples.parquet")
    second = fit("erm", data=again, recipe=recipe, out=tmp_path / "two")
    torch.testing.assert_close(second.weights, first.weights / first.weights.mean())
    with pytest.raises(StorageError, match="holds another run: data.content"):
        fit("erm", data=data, recipe=recipe, out=tmp_path / "two")
