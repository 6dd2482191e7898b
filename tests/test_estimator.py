"""The estimator is one of scikit-learn's, by scikit-learn's own tests, and says what it learned of the examples."""

import hashlib
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import load_digits, load_iris
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

from molere import LRW, MolereClassifier
from molere.data.sparse import SparsePool
from molere.data.weighted import WeightedPool
from molere.errors import ConfigError, DataError, StorageError
from molere.estimatorsettings import spec_of
from molere.settings import make_method
from molere.testing import rare_region

NOT_PROMISED = {
    "check_sample_weight_equivalence_on_dense_data": "batches of repeated examples are not those of weighted ones",
    "check_sample_weight_equivalence_on_sparse_data": "the same, for sparse matrices",
}


def not_promised(estimator: BaseEstimator) -> dict[str, str]:
    return NOT_PROMISED


@pytest.mark.faults
@parametrize_with_checks([MolereClassifier(epochs=10)], expected_failed_checks=not_promised)
def test_scikit_learn_accepts_it(estimator: BaseEstimator, check: Any, row: Any) -> None:
    check(estimator)
    row("A1", 1, 1)


def few(**settings: Any) -> MolereClassifier:
    return MolereClassifier(**{"epochs": 3, "batch_size": 32, "random_state": 0, **settings})


@pytest.fixture(scope="module")
def iris() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order], y[order]


# ---- first use


def test_three_lines_learn_the_digits() -> None:
    x, y = load_digits(return_X_y=True)
    assert MolereClassifier(random_state=0, epochs=8).fit(x[:1200], y[:1200]).score(x[1200:], y[1200:]) > 0.9


def test_by_default_small_data_get_about_a_thousand_updates_and_tiny_data_a_hundred_epochs() -> None:
    clf = MolereClassifier()
    assert [clf._recipe(n).epochs for n in (20, 64 * 40, 10**6)] == [100, 25, 10]
    assert [clf._recipe(n).batch_size for n in (20, 1000)] == [20, 64]


def test_the_same_state_gives_the_same_classifier(iris: Any) -> None:
    one, two = (few(method="lrw-random").fit(*iris) for _ in range(2))
    np.testing.assert_array_equal(one.predict_proba(iris[0]), two.predict_proba(iris[0]))
    np.testing.assert_array_equal(one.weights_, two.weights_)


# ---- what it knows of the examples


def test_attributes_are_in_the_order_of_x_and_held_out_examples_have_no_weight(iris: Any) -> None:
    clf = few(method="lrw-random[q=2]").fit(*iris)
    assert clf.weights_.shape == clf.margins_.shape == (150,)
    assert np.isnan(clf.weights_).sum() == 15
    p = clf.predict_proba(iris[0])
    others = np.where(np.arange(3) == iris[1][:, None], -np.inf, p).max(1)
    np.testing.assert_allclose(clf.margins_, p[np.arange(150), iris[1]] - others, atol=1e-5)
    assert len(clf.hard_examples_) == 15
    assert set(clf.hard_examples_) == set(np.argsort(clf.margins_, kind="stable")[:15])
    assert set(clf.suspects_) == set(np.flatnonzero(clf.margins_ < 0))
    assert [row["epoch"] for row in clf.history_] == [1, 2, 3]


def test_wrong_labels_are_among_the_suspects_of_models_that_did_not_see_them(iris: Any) -> None:
    x, y = iris[0], iris[1].copy()
    wrong = np.arange(0, 150, 15)
    y[wrong] = (y[wrong] + 1) % 3
    clf = few(method="lrw-hard", epochs=10, batch_size=16).fit(x, y)
    assert np.isin(wrong, clf.suspects_).mean() >= 0.8
    assert len(clf.suspects_) < 40


# ---- what it accepts


def test_labels_may_be_strings_and_probabilities_follow_their_order(iris: Any) -> None:
    names = np.array(["setosa", "versicolor", "virginica"])
    by_name, by_number = few(epochs=10).fit(iris[0], names[iris[1]]), few(epochs=10).fit(*iris)
    assert list(by_name.classes_) == list(names)
    np.testing.assert_array_equal(by_name.predict(iris[0]), names[by_number.predict(iris[0])])


def test_pandas_frames_keep_their_columns(iris: Any) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(iris[0], columns=list("abcd"))
    labels = pd.Series(np.array(["x", "y", "z"])[iris[1]])
    clf = few().fit(frame, labels)
    assert list(clf.feature_names_in_) == list("abcd")
    np.testing.assert_array_equal(clf.predict(frame), few().fit(iris[0], labels.to_numpy()).predict(iris[0]))
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(frame.rename(columns={"a": "q"}))


def test_polars_frames_are_tables(iris: Any) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(iris[0], schema=list("abcd"))
    clf = few().fit(frame, pl.Series(["x", "y", "z"])[iris[1].tolist()])
    np.testing.assert_array_equal(clf.predict(frame), np.array(["x", "y", "z"])[few().fit(*iris).predict(iris[0])])


def test_words_stay_sparse() -> None:
    texts = ["good fine great", "bad poor awful", "great good", "awful bad"] * 10
    pipe = make_pipeline(TfidfVectorizer(), few(epochs=10, batch_size=8)).fit(texts, ["up", "down"] * 20)
    assert list(pipe.predict(["fine", "poor"])) == ["up", "down"]


def test_a_sparse_matrix_and_its_dense_twin_give_the_same_classifier(iris: Any) -> None:
    x = iris[0] / np.abs(iris[0]).max(0)
    sparse = few().fit(scipy.sparse.csr_matrix(x), iris[1])
    dense = few(scale=False).fit(x, iris[1])
    np.testing.assert_allclose(sparse.predict_proba(scipy.sparse.csr_array(x)), dense.predict_proba(x), atol=1e-6)


def test_after_a_dense_table_a_sparse_one_is_the_same_table(iris: Any) -> None:
    """Columns were shifted, so zeros are no longer zeros."""
    sparse = scipy.sparse.csr_matrix(iris[0])
    clf = few(method="mwn", epochs=1).fit(*iris, X_val=sparse[:20], y_val=iris[1][:20])
    np.testing.assert_array_equal(clf.predict_proba(sparse), clf.predict_proba(iris[0]))
    few(method="mwn", epochs=1, scale=False).fit(*iris, X_val=sparse[:20], y_val=iris[1][:20])


def test_numpy_numbers_are_settings_as_searches_draw_them(iris: Any) -> None:
    grid = {"epochs": np.arange(2, 3), "batch_size": np.array([50]), "lr": np.array([0.1])}
    drawn = few(**{name: values[0] for name, values in grid.items()}).fit(*iris)
    plain = few(epochs=2, batch_size=50, lr=0.1).fit(*iris)
    np.testing.assert_array_equal(drawn.predict_proba(iris[0]), plain.predict_proba(iris[0]))


def test_images_go_to_a_convolutional_network() -> None:
    x, y = load_digits(return_X_y=True)
    images = (x * 15).astype(np.uint8).reshape(-1, 8, 8)[:300]
    clf = few(epochs=3, batch_size=32).fit(images, y[:300])
    assert any(isinstance(m, nn.Conv2d) for m in clf.module_.modules())
    assert clf.predict_proba(images[:5]).shape == (5, 10)


def test_scikit_learns_own_images_are_learned_as_floats_of_any_range(tmp_path: Path) -> None:
    digits = load_digits()
    x, y = digits.images, digits.target
    clf = MolereClassifier("erm", random_state=0, epochs=6).fit(x[:1200], y[:1200])
    assert clf.score(x[1200:], y[1200:]) > 0.85
    flat = MolereClassifier("erm", random_state=0, epochs=6).fit(digits.data[:1200], y[:1200])
    np.testing.assert_allclose(clf.predict_proba(x[1200:]), flat.predict_proba(digits.data[1200:]), atol=1e-6)
    clf.save(tmp_path / "saved")
    np.testing.assert_array_equal(MolereClassifier.load(tmp_path / "saved").predict(x), clf.predict(x))
    whole = MolereClassifier("erm", random_state=0, epochs=1).fit(x[:300].astype(np.int64), y[:300])
    assert whole.predict_proba(x[:2].astype(np.int64)).shape == (2, 10)


def test_sequences_reach_a_module_of_ones_own_as_they_are() -> None:
    x = np.random.default_rng(0).normal(3, 5, (40, 6, 2))
    clf = few(method="erm", model=Recurrent).fit(x, x[:, 0, 0] > 3)
    with torch.no_grad():
        expected = clf.module_(torch.from_numpy(x).float())
    np.testing.assert_allclose(clf.decision_logits(x), expected.numpy(), atol=1e-6)


class Recurrent(nn.Module):
    """Its first state is float32, whatever its parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(2, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1, 2)
        return self.head(self.body(x, torch.zeros(1, len(x), 8))[0][:, -1])


class Narrow(nn.Linear):
    """Makes its inputs float32 itself."""

    def __init__(self) -> None:
        super().__init__(4, 3)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().double())


@pytest.mark.parametrize("model", [Narrow, Recurrent, Mixed])
def test_a_module_that_trains_on_a_table_also_predicts(model: type[nn.Module], iris: Any, tmp_path: Path) -> None:
    y = iris[1] > 0 if model is Recurrent else iris[1]
    clf = few(method="erm", model=model).fit(iris[0], y)
    assert clf.score(iris[0], y) > 0.5
    clf.save(tmp_path / "saved")
    back = MolereClassifier.load(tmp_path / "saved", model=model)
    np.testing.assert_array_equal(back.predict_proba(iris[0]), clf.predict_proba(iris[0]))


def test_token_ids_reach_a_module_of_ones_own_as_integers() -> None:
    tokens = np.random.default_rng(0).integers(0, 20, (64, 5))
    clf = few(model=Bag, scale=False).fit(tokens, tokens[:, 0] > 9)
    assert clf.predict(tokens).dtype == bool


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.words(tokens).mean(1))


def test_it_is_scaled_so_that_units_do_not_matter(iris: Any) -> None:
    moved = few(epochs=8).fit(1000 * iris[0] + 5, iris[1])
    np.testing.assert_allclose(
        moved.predict_proba(1000 * iris[0] + 5), few(epochs=8).fit(*iris).predict_proba(iris[0]), atol=1e-4
    )


# ---- weights, groups and validation data


def test_a_weight_of_zero_leaves_an_example_out(iris: Any) -> None:
    kept = np.arange(150) % 3 > 0
    clf = few(scale=False).fit(*iris, sample_weight=kept.astype(float))
    alone = few(scale=False).fit(iris[0][kept], iris[1][kept])
    np.testing.assert_array_equal(clf.predict_proba(iris[0]), alone.predict_proba(iris[0]))
    assert np.isnan(clf.weights_[~kept]).all()


def test_heavier_examples_are_fitted_better(iris: Any) -> None:
    flipped = iris[1].copy()
    flipped[:75] = (flipped[:75] + 1) % 3
    heavy, light = np.where(np.arange(150) < 75, 20.0, 1.0), np.where(np.arange(150) < 75, 1.0, 20.0)
    one, two = (
        few(method="erm", epochs=15, model="linear").fit(iris[0], flipped, sample_weight=w) for w in (heavy, light)
    )
    assert one.margins_[:75].mean() > 0.2 > two.margins_[:75].mean()


@pytest.mark.parametrize("method", ["mwn", "l2r", "lrw-random[q=1]"])
def test_weights_of_ones_own_multiply_losses_wherever_they_are_used(method: str) -> None:
    """Meta-gradients of weighted losses: the exact ones agree with those taken layer by layer."""
    x, y = load_iris(return_X_y=True)
    weights = np.random.default_rng(1).uniform(0.5, 2, 150)
    shared: dict[str, Any] = {"method": method, "epochs": 1, "model": "linear"}
    one, two = (
        few(**shared, recipe={"precision": "float64", "estimator": e}).fit(x, y, sample_weight=weights)
        for e in ("exact", "ghost")
    )
    np.testing.assert_allclose(one.weights_, two.weights_, rtol=1e-8)


def test_groups_give_metrics_and_reach_methods(iris: Any) -> None:
    groups = np.where(iris[0][:, 0] > 6, "long", "short")
    clf = few(method="maple[risk=rex]").fit(*iris, groups=groups)
    assert {"accuracy[long]", "accuracy[short]"} <= set(clf.result_.last)


def test_validation_data_validate_weights_and_do_not_train(iris: Any) -> None:
    x, y = iris
    clf = few(method="mwn", recipe={"val_batch_size": 30}).fit(x[:100], y[:100], X_val=x[100:], y_val=y[100:])
    assert not np.isnan(clf.weights_).any()
    assert clf.result_.samples["in_validation"].sum() == 50
    assert {"select_accuracy"} <= set(clf.history_[0])
    assert clf.result_.last["accuracy"] == pytest.approx(clf.score(x[100:], y[100:]))


def test_validation_data_of_a_method_without_any_are_for_looking_only(iris: Any) -> None:
    x, y = iris
    watched = few(scale=False).fit(x[:100], y[:100], X_val=x[100:], y_val=y[100:])
    alone = few(scale=False).fit(x[:100], y[:100])
    np.testing.assert_array_equal(watched.predict_proba(x), alone.predict_proba(x))


# ---- scikit-learn's tools


def test_a_grid_search_goes_over_methods_and_settings(iris: Any) -> None:
    grid = {"method": ["erm", "cvar[alpha=0.5]"], "lr": [1e-6, 0.1]}
    found = GridSearchCV(few(), grid, cv=2).fit(*iris)
    assert found.best_params_["lr"] == 0.1
    assert len(found.cv_results_["params"]) == 4


def test_a_pipeline_and_predictions_out_of_fold(iris: Any) -> None:
    pipe = make_pipeline(StandardScaler(), few(scale=False, epochs=10))
    proba = cross_val_predict(pipe, *iris, cv=3, method="predict_proba")
    assert (proba.argmax(1) == iris[1]).mean() > 0.85


def test_settings_of_a_method_object_are_kept_by_clone() -> None:
    clf = MolereClassifier(method=LRW(q=2), model=Bag)
    copy = clone(clf)
    assert copy.method == LRW(q=2)
    assert copy.model is Bag


def test_an_unfitted_estimator_can_be_pickled() -> None:
    clf = MolereClassifier(method=LRW(q=2), model=Bag, recipe={"momentum": 0.5})
    assert pickle.loads(pickle.dumps(clf)).get_params() == clf.get_params()


# ---- files


def of_tuple(out: tuple[Tensor, Tensor]) -> Tensor:
    return out[0]


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.body(x)
        return z, x


@pytest.mark.parametrize("labels", ["numbers", "strings", "flags", "days"])
def test_a_fitted_classifier_comes_back_from_its_folder(labels: str, tmp_path: Path, iris: Any) -> None:
    y = {"numbers": iris[1], "strings": np.array(["a", "bc", "d"])[iris[1]], "flags": iris[1] > 0,
         "days": np.datetime64("2026-01-01") + iris[1]}[labels]  # fmt: skip
    clf = few(recipe={"momentum": 0.5}).fit(iris[0], y)
    clf.save(tmp_path / "saved")
    back = MolereClassifier.load(tmp_path / "saved")
    np.testing.assert_array_equal(back.predict(iris[0]), clf.predict(iris[0]))
    np.testing.assert_array_equal(back.predict_proba(iris[0]), clf.predict_proba(iris[0]))
    np.testing.assert_array_equal(back.weights_, clf.weights_)
    np.testing.assert_array_equal(back.hard_examples_, clf.hard_examples_)
    assert back.classes_.dtype == clf.classes_.dtype
    assert back.get_params() == clf.get_params()
    assert back.result_.last == pytest.approx(clf.result_.last)
    assert {p.suffix for p in (tmp_path / "saved").iterdir()} == {".json", ".parquet", ".safetensors"}


def test_a_module_of_ones_own_is_asked_for_when_loading(tmp_path: Path, iris: Any) -> None:
    clf = few(model=Pair, logits=of_tuple).fit(*iris)
    clf.save(tmp_path)
    with pytest.raises(
        ConfigError, match=r"^the module was a Pair of yours, whose code is not stored: pass model=Pair$"
    ):
        MolereClassifier.load(tmp_path)
    with pytest.raises(ConfigError, match="pass logits="):
        MolereClassifier.load(tmp_path, model=Pair)
    back = MolereClassifier.load(tmp_path, model=Pair, logits=of_tuple)
    np.testing.assert_array_equal(back.predict_proba(iris[0]), clf.predict_proba(iris[0]))
    with pytest.raises(StorageError, match="the stored values do not fit"):
        MolereClassifier.load(tmp_path, model=Bag, logits=of_tuple)


def test_a_damaged_file_is_named(tmp_path: Path, iris: Any) -> None:
    few().fit(*iris).save(tmp_path)
    file = tmp_path / "module.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(StorageError, match=r"module.safetensors is missing or damaged"):
        MolereClassifier.load(tmp_path)
    with pytest.raises(StorageError, match="holds no saved classifier"):
        MolereClassifier.load(tmp_path / "nothing")


def momentum(parameters: Any, lr: float, **_: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.5)


def test_every_setting_comes_back_from_a_folder_or_is_asked_for(tmp_path: Path, iris: Any) -> None:
    recipe = {"optimizer_args": {"betas": (0.9, 0.99)}, "grad_clip": np.float64(1), "dropout": 0.3}
    given = {"epochs": np.int64(2), "optimizer": "AdamW", "lr": 0.01, "recipe": recipe, "method": LRW(q=2)}
    few(**given).fit(*iris).save(tmp_path / "saved")
    back = MolereClassifier.load(tmp_path / "saved")
    recipe = {"optimizer_args": {"betas": [0.9, 0.99]}, "grad_clip": 1.0, "dropout": 0.3}
    assert back.get_params() == few(**{**given, "epochs": 2, "recipe": recipe}).get_params()
    assert isinstance(back.fit(*iris), MolereClassifier)
    own = few(method=Mine(q=2), optimizer=momentum, random_state=np.random.RandomState(0)).fit(*iris)
    own.save(tmp_path / "own")
    objects = {name: own.get_params()[name] for name in ("method", "optimizer", "random_state")}
    for name, kind in {"method": "Mine", "optimizer": "momentum", "random_state": "RandomState"}.items():
        rest = {k: v for k, v in objects.items() if k != name}
        line = rf"^{name} held something of yours \({kind}\), which is not stored: pass {name}=\.\.\.$"
        with pytest.raises(ConfigError, match=line):
            MolereClassifier.load(tmp_path / "own", **rest)
    assert MolereClassifier.load(tmp_path / "own", **objects).get_params() == own.get_params()
    with pytest.raises(ConfigError, match="^lr is none of what load asks for: leave it out"):
        MolereClassifier.load(tmp_path / "own", **objects, lr=0.1)


class Mine(LRW):
    """A method that no name stands for."""


def test_methods_are_stored_by_the_shortest_spec_that_makes_them() -> None:
    assert spec_of(LRW(q=2)) == "lrw-random[q=2]"
    assert spec_of(make_method("lrw-hard@paper[keep=true]")) is not None
    for name in ("lrw-hard@paper[keep=true]", "lrwopt[delta=0.2]", "molere", "jtt[mode=weight]", "erm"):
        spec = spec_of(method := make_method(name))
        assert spec is not None
        assert make_method(spec) == method
    assert spec_of(Mine(q=2)) is None


@pytest.mark.parametrize("broken", ["rename", "fsync"])
def test_a_save_that_fails_leaves_the_one_before(
    broken: str, tmp_path: Path, iris: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (few(method="erm", epochs=n).fit(*iris) for n in (1, 2))
    first.save(tmp_path / "saved")
    real = os.rename

    def rename(old: Any, new: Any) -> None:
        if Path(new) == tmp_path / "saved" and not str(old).endswith("-old"):
            raise OSError(28, "No space left on device")
        real(old, new)

    def fsync(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, broken, {"rename": rename, "fsync": fsync}[broken])
    with pytest.raises(StorageError, match=r"^cannot save to .*saved \(.*nothing was changed; give another folder$"):
        second.save(tmp_path / "saved")
    monkeypatch.undo()
    assert MolereClassifier.load(tmp_path / "saved").epochs == 1
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]
    second.save(tmp_path / "saved")
    assert MolereClassifier.load(tmp_path / "saved").epochs == 2
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_a_folder_that_holds_anything_else_is_refused(
    tmp_path: Path, iris: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = few(method="erm", epochs=1).fit(*iris)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"mine": 1}')
    for name, held in {"thesis": "thesis.tex", "site": "manifest.json"}.items():
        with pytest.raises(StorageError, match=rf"{name} holds {held}.*give an empty folder"):
            clf.save(tmp_path / name)
        assert [p.name for p in (tmp_path / name).iterdir()] == [held]
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(StorageError, match="is where this program works; give a folder in it"):
        clf.save(".")


def manifest_of(folder: Path) -> str:
    names = ("estimator.json", "module.safetensors", "samples.parquet")
    return json.dumps({n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names})


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("manifest.json", "{}", "does not list the files of a saved classifier"),
        ("manifest.json", "[1]", "does not list the files of a saved classifier"),
        ("manifest.json", "{", "not valid JSON"),
        ("manifest.json", '{"estimator.json": "0"}', "does not list the files of a saved classifier"),
        ("estimator.json", '{"format": 2}', r"is not as MolereClassifier.save leaves it \(KeyError"),
        ("estimator.json", "[1]", "is not as MolereClassifier.save leaves it"),
        ("estimator.json", '{"format": 1}', "is of format 1, this version reads 2; save the classifier again"),
        ("estimator.json", '{"format": 9}', "is of format 9, this version reads 2; update molere"),
    ],
)
def test_files_of_another_content_are_refused_in_one_line(
    file: str, text: str, sentence: str, tmp_path: Path, iris: Any
) -> None:
    few(method="erm", epochs=1).fit(*iris).save(tmp_path)
    (tmp_path / file).write_text(text)
    if file != "manifest.json":
        (tmp_path / "manifest.json").write_text(manifest_of(tmp_path))
    with pytest.raises(StorageError, match=sentence) as caught:
        MolereClassifier.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_loading_into_a_module_leaves_that_module_as_it_is(tmp_path: Path, iris: Any) -> None:
    few(method="erm", model=Narrow).fit(*iris).save(tmp_path)
    mine = Narrow()
    before = mine.weight.detach().clone()
    back = MolereClassifier.load(tmp_path, model=mine)
    assert torch.equal(mine.weight, before)
    assert not torch.equal(back.module_.get_parameter("weight"), before)


# ---- mistakes


def test_a_folder_for_runs_is_for_one_of_them(tmp_path: Path, iris: Any) -> None:
    few(method="erm", epochs=1, out=tmp_path / "run").fit(*iris)
    other = few(method="erm", epochs=1, lr=0.01, out=tmp_path / "run")
    hint = r"Set another folder by out=, or delete that one; a search or cross-validation trains several: out=None$"
    with pytest.raises(StorageError, match=rf"holds another run: train.lr.*\. {hint}") as caught:
        other.fit(*iris)
    assert "--" not in str(caught.value)
    clf = few(method="erm", epochs=1, out=tmp_path / "grid")
    with pytest.raises(StorageError, match=hint):
        GridSearchCV(clf, {"lr": [0.01, 0.1]}, cv=2, error_score="raise").fit(*iris)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("")
    with pytest.raises(StorageError, match="is not empty and not a run of molere; choose a new folder by out="):
        few(out=tmp_path / "full").fit(*iris)


def detached(out: tuple[Tensor, Tensor]) -> Tensor:
    return out[0].detach()


def test_logits_that_nothing_can_learn_from_are_refused(iris: Any) -> None:
    with pytest.raises(ConfigError, match="^what logits= picks of Pair has no gradient, so nothing would learn; pick"):
        few(model=Pair, logits=detached).fit(*iris)
    with (
        torch.inference_mode(),
        pytest.raises(ConfigError, match="^torch.inference_mode is on, .*; train outside of it"),
    ):
        few().fit(*iris)
    with torch.no_grad():
        few(method="erm", epochs=1).fit(*iris)


@pytest.mark.parametrize(
    ("settings", "given", "sentence"),
    [
        ({"method": "lrw-hrad"}, {}, "did you mean"),
        ({"recipe": {"lr": 0.1}}, {}, "recipe states lr, which is a setting of MolereClassifier: pass lr=..."),
        ({"model": "mlpp"}, {}, "unknown model"),
        ({"epochs": 0}, {}, "epochs must be"),
        ({}, {"sample_weight": [-1.0] * 20}, "sample_weight must not be negative"),
        ({}, {"groups": [0, 1]}, "pass one group for each of 20 examples"),
        ({}, {"X_val": np.zeros((3, 2))}, "X_val and y_val belong together"),
        ({}, {"X_val": np.zeros((3, 2)), "y_val": [0, 1, 7]}, "y_val holds 7, which"),
        ({}, {"groups": ["a", None] * 10}, "groups holds None for example 1; give each example a group"),
        ({}, {"groups": [0.5, np.nan] * 10}, "groups holds nan for example 1"),
        ({"method": LRW}, {}, "method is the class LRW; pass a method: LRW("),
        ({"method": None}, {}, "method is a NoneType, expected a name"),
        ({"model": nn.Linear}, {}, "Linear cannot be made without in_features: pass model=lambda: Linear"),
        ({"model": dict}, {}, "model=dict makes a dict, expected a module"),
        ({"model": nn.Linear(6, 2)}, {}, "Linear fails on float32 .2, 2. .*shapes cannot be multiplied"),
    ],
)
def test_a_mistake_is_a_sentence(settings: dict[str, Any], given: dict[str, Any], sentence: str) -> None:
    x, y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2
    with pytest.raises((ConfigError, DataError), match=sentence.replace("(", r"\(")) as caught:
        few(**settings).fit(x, y, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", [None, np.nan])
def test_a_missing_label_is_named_by_its_position(missing: Any) -> None:
    x, y = np.random.default_rng(0).normal(size=(20, 2)), np.array(["a", "b"] * 10, dtype=object)
    y[3] = missing
    with pytest.raises(
        ValueError, match=r"^Input y contains NaN: example 3 has no label \((None|nan)\); leave it out$"
    ):
        few().fit(x, y)
    with pytest.raises(ValueError, match="Unknown label type: y holds int objects; pass an array of numbers or"):
        few().fit(x, np.arange(20).astype(object))


def test_text_and_images_of_another_size_are_told_from_what_was_fitted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="X holds text, expected numbers; encode columns of text"):
        few().fit(np.array([["red", 1], ["blue", 2]] * 9, dtype=object), [0, 1] * 9)
    clf = few(method="erm", model="linear", epochs=1).fit(np.zeros((8, 4, 4), np.uint8), [0, 1] * 4)
    with pytest.raises(ValueError, match=r"X has examples of shape \(5, 4\), but was fitted with \(4, 4\)"):
        clf.predict(np.zeros((2, 5, 4), np.uint8))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file; give a folder"):
        clf.save(tmp_path / "file")


def test_nothing_is_said_unless_asked_for(capsys: pytest.CaptureFixture[str], iris: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few().fit(*iris)
    assert capsys.readouterr() == ("", "")


# ---- the pools below


def test_a_sparse_pool_is_its_dense_rows() -> None:
    x = np.array([[0, 1.5], [2, 0], [0, 0]])
    pool = SparsePool(scipy.sparse.coo_matrix(x), [0, 1, 0], group=[1, 0, 1], ids=["a", "b", "c"])
    batch = pool.batch(torch.tensor([2, 0]))
    torch.testing.assert_close(batch.x, torch.tensor([[0.0, 0.0], [0.0, 1.5]]))
    assert (batch.y.tolist(), batch.index.tolist(), len(pool)) == ([0, 0], [2, 0], 3)
    assert pool.fingerprint() == SparsePool(scipy.sparse.csr_array(x), [0, 1, 0], group=[1, 0, 1]).fingerprint()
    assert pool.fingerprint() != SparsePool(x, [0, 1, 1], group=[1, 0, 1]).fingerprint()
    with pytest.raises(DataError, match="NaN"):
        SparsePool(scipy.sparse.csr_matrix([[np.nan], [1]]), [0, 1])


def test_a_weighted_pool_has_weights_of_mean_one_and_another_fingerprint() -> None:
    pool = rare_region().train
    weighted = WeightedPool(pool, torch.arange(1.0, len(pool) + 1))
    assert float(weighted.weight.mean()) == pytest.approx(1)
    assert weighted.fingerprint() != pool.fingerprint()
    with pytest.raises(DataError, match="not negative"):
        WeightedPool(pool, torch.full((len(pool),), -1.0))
    with pytest.raises(DataError, match="one weight per example"):
        WeightedPool(pool, torch.ones(3))
