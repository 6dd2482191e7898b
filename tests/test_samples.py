"""What a run keeps of its examples, the lists of those to look at, filters, tables to relabel, and `molere samples`."""

import csv
import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from commands import Command
from molere import fit
from molere.data.decided import read_labels
from molere.data.sources import from_arrays
from molere.errors import ConfigError, StorageError
from molere.examples import of_folds, of_tests
from molere.outcome import Outcome
from molere.samples import (
    as_csv,
    chosen,
    class_names,
    listed,
    ordered,
    probabilities,
    read,
    relabelling,
    rows,
    suggestion,
)
from molere.storage import read_samples, write_samples
from molere.testing import rare_region
from stepping import begun

Columns = dict[str, npt.NDArray[np.generic]]
NASTY = ["<script>alert(1)</script>", 'a "quoted", name', "cat.png", "=1+1", "ü;\n2", "5"]


def table(**more: object) -> Columns:
    """Six examples; 1 and 3 are wrongly labelled and look so."""
    columns = {
        "sample_id": np.arange(6),
        "id": np.array(NASTY),
        "label": np.array([0, 1, 2, 0, 1, 2]),
        "clean_label": np.array([0, 2, 2, 1, 1, 2]),
        "prediction": np.array([0, 1, 2, 1, 1, 2]),
        "loss": np.array([0.1, 0.2, 0.3, 2.0, 0.1, 0.4]),
        "margin": np.array([0.9, 0.2, 0.5, -0.6, 0.8, 0.3]),
        "weight": np.array([1.0, 0.5, 1.5, 0.2, np.nan, 1.0]),
        "weight_mean": np.array([1.0, 0.6, 1.2, 0.3, np.nan, 1.1]),
        "train_probability": np.full(6, np.nan),
        "forgetting": np.array([0, 2, 1, 0, 0, 3]),
        "learnt": np.array([True, True, True, False, True, True]),
        "out_of_fold_margin": np.array([0.8, -0.5, 0.4, -0.9, 0.7, 0.1]),
        "out_of_fold_prediction": np.array([0, 2, 2, 1, 1, 2]),
    }
    return {**columns, **{k: np.asarray(v) for k, v in more.items()}}


def folder_of(path: Path, columns: Columns | None = None) -> Path:
    """A finished run as far as its examples go."""
    path.mkdir(parents=True)
    write_samples(path / "samples.parquet", table() if columns is None else columns)
    (path / "DONE").touch()
    return path


# ---- what a run keeps


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run with two test sets and a cross-fit."""
    data, out = rare_region(), tmp_path_factory.mktemp("run") / "out"
    data = replace(data, tests={**data.tests, "other": data.tests["test"].subset(torch.arange(5))})  # type: ignore[attr-defined]
    fit("molere", data=data, recipe={"epochs": 3, "batch_size": 16, "crossfit": 3}, out=out)
    return out


def test_a_run_keeps_what_it_predicts_on_each_test_set(kept: Path) -> None:
    found = read_samples(kept / "predictions.parquet")
    assert found["test"].tolist() == ["test"] * 96 + ["other"] * 5
    assert found["sample_id"].tolist() == [*range(96), *range(5)]
    p = np.stack([found["p0"], found["p1"]], axis=1)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    y = found["label"]
    np.testing.assert_allclose(found["margin"], p[np.arange(101), y] - p[np.arange(101), 1 - y], atol=1e-6)
    np.testing.assert_allclose(found["loss"], -np.log(p[np.arange(101), y]), rtol=1e-4)
    np.testing.assert_allclose(found["confidence"], p.max(1), rtol=1e-6)
    assert (found["prediction"] == p.argmax(1)).all()
    result = json.loads((kept / "result.json").read_text())
    assert (found["prediction"] == y)[:96].mean() == pytest.approx(result["last"]["accuracy"])
    assert found["margin"][:96].mean() == pytest.approx(result["last"]["margin"], abs=1e-6)


def test_out_of_fold_predictions_agree_in_both_files(kept: Path) -> None:
    found, p = read(kept), probabilities(kept)
    assert p is not None
    y = found["label"]
    assert (found["out_of_fold_prediction"] == p.argmax(1)).all()
    np.testing.assert_allclose(found["out_of_fold_margin"], p[np.arange(96), y] - p[np.arange(96), 1 - y], atol=1e-6)
    np.testing.assert_allclose(found["out_of_fold_loss"], -np.log(p[np.arange(96), y]), rtol=1e-4, atol=1e-6)


def test_out_of_fold_predictions_are_those_of_models_without_the_fold(kept: Path) -> None:
    training = begun("erm", epochs=3, model="mlp")
    logits = training.run.crossfit(3).logits
    assert logits is not None
    expected = logits.softmax(1).numpy()
    found = probabilities(kept)
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_cross_fit_changes_nothing_of_the_run_and_is_paid_as_scouts() -> None:
    recipe = {"epochs": 3, "batch_size": 16}
    plain = fit("molere", data=rare_region(), recipe=recipe)
    more = fit("molere", data=rare_region(), recipe={**recipe, "crossfit": 3})
    assert plain.last == more.last
    assert plain.out_of_fold == {}
    assert "out_of_fold_margin" not in plain.samples
    assert plain.cost.scout_forward == 0
    assert more.cost.scout_backward == 3 * 2 * 4 * 16  # three models, two epochs, floor(64 / 16) updates of 16
    assert plain.cost.forward == more.cost.forward


def test_a_method_that_cross_fits_leaves_its_margins_without_being_asked_and_pays_once() -> None:
    recipe = {"epochs": 3, "batch_size": 16}
    own = fit("lrw-hard[keep=true]", data=rare_region(), recipe=recipe)
    np.testing.assert_array_equal(own.samples["out_of_fold_margin"], own.samples["holdout_margin"])
    asked = fit("lrw-hard[keep=true]", data=rare_region(), recipe={**recipe, "crossfit": 5})
    assert asked.cost.scout_forward == own.cost.scout_forward


def test_forgetting_events_survive_an_interruption(tmp_path: Path) -> None:
    recipe = {"epochs": 3, "batch_size": 16, "save_every": 5, "lr": 1.0}
    whole = fit("erm", data=rare_region(), recipe=recipe)
    assert np.asarray(whole.samples["forgetting"]).sum() > 0

    def stop(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit("erm", data=rare_region(), recipe=recipe, out=tmp_path / "r", observers=(stop,))
    resumed = fit("erm", data=rare_region(), recipe=recipe, out=tmp_path / "r")
    for name in ("forgetting", "learnt"):
        np.testing.assert_array_equal(whole.samples[name], resumed.samples[name])  # type: ignore[arg-type]


def test_too_many_probabilities_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molere.examples.MOST_PROBABILITIES", 96 * 2 - 1)
    pool, logits = rare_region().train, torch.randn(96, 2)
    assert list(of_folds(pool, Outcome.of(logits, pool.y, keep=True))) == ["sample_id", "label"]
    assert list(of_folds(pool, Outcome.of(logits, pool.y))) == ["sample_id", "label"]
    assert "p0" not in of_tests({"test": pool}, {"test": logits})


# ---- lists


def test_the_lists_begin_with_what_is_to_be_looked_at(tmp_path: Path) -> None:
    columns = read(folder_of(tmp_path / "r"))
    assert listed(columns, "hardest").tolist() == [3, 1, 5, 2, 4, 0]
    assert listed(columns, "downweighted")[:3].tolist() == [3, 1, 0]
    assert listed(columns, "downweighted")[-1] == 4  # never trained, not weighted down
    assert set(listed(columns, "suspects")[:2]) == {1, 3}
    assert listed(columns, "forgotten")[:4].tolist() == [3, 5, 1, 2]
    with pytest.raises(ConfigError, match="unknown list 'suspect'; did you mean 'suspects'?"):
        listed(columns, "suspect")


def test_examples_are_sorted_by_any_column_both_ways() -> None:
    columns = table()
    assert ordered(columns, "loss").tolist() == [0, 4, 1, 2, 5, 3]
    assert ordered(columns, "-loss").tolist() == [3, 5, 2, 1, 0, 4]
    assert ordered(columns, "weight")[-1] == ordered(columns, "-weight")[-1] == 4  # NaN last
    assert ordered(columns, "id").tolist() == np.argsort(NASTY, kind="stable").tolist()
    assert ordered(columns, "-id").tolist() == np.argsort(NASTY, kind="stable")[::-1].tolist()
    with pytest.raises(ConfigError, match="unknown column 'los'; did you mean 'loss'?"):
        ordered(columns, "los")


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["label=1"], [1, 4]),
        (["label == 1", "margin<0.7"], [1]),
        (["margin>=0.5"], [0, 2, 4]),
        (["prediction!=label"], [3]),
        (["learnt=false"], [3]),
        (['id=a "quoted", name'], [1]),
        (["id=<script>alert(1)</script>"], [0]),
        (["id=5"], [5]),
        (["weight<1"], [1, 3]),
    ],
)
def test_conditions_choose_examples(conditions: list[str], expected: list[int]) -> None:
    assert np.flatnonzero(chosen(table(), conditions)).tolist() == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("label", "'label' is no condition; write one as in label=3"),
        ("lable=3", "unknown column 'lable'; did you mean 'label'"),
        ("label=cat", "'cat' is neither a number nor a column; label is a number"),
    ],
)
def test_a_condition_that_is_none_is_refused(condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(table(), [condition])


def test_classes_are_named_in_lists_filters_and_the_csv_where_their_names_are_known(tmp_path: Path) -> None:
    names = ("cat", "0", 'a "dog", wet')
    assert np.flatnonzero(chosen(table(), ["label=cat"], names)).tolist() == [0, 3]
    assert np.flatnonzero(chosen(table(), ["label=0"], names)).tolist() == [1, 4]
    assert np.flatnonzero(chosen(table(), ["label=2", "prediction=label"], names)).tolist() == [2, 5]
    shown = rows(table(), np.array([3]), ["label", "suggestion", "margin"], classes=names)
    assert [v.tolist() for v in shown.values()] == [["cat"], ["0"], [-0.6]]
    path = tmp_path / "fixed.csv"
    path.write_text(relabelling(table(), np.array([3, 2]), classes=names))
    assert list(read_labels(path, 3, names).values()) == [0, 2]
    run = folder_of(tmp_path / "run")
    assert class_names(run) == ()
    (run / "shown.json").write_text('{"class_names": ["cat", "dog"]}')
    assert class_names(run) == ("cat", "dog")


def test_a_listing_has_the_columns_that_say_something() -> None:
    shown = rows(table(), np.array([3, 1]))
    assert list(shown)[:4] == ["id", "label", "clean_label", "suggestion"]
    assert "train_probability" not in shown
    assert shown["suggestion"].tolist() == [1, 2]
    plain = {k: v for k, v in table().items() if not k.startswith("out_of_fold") and k != "id"}
    assert suggestion(plain).tolist() == plain["prediction"].tolist()
    assert rows(plain, np.array([5]))["id"].tolist() == [5]


def test_a_relabelling_table_goes_out_and_comes_back(tmp_path: Path) -> None:
    columns = {k: v for k, v in table().items() if k != "id"} | {
        "id": np.array([n for n in NASTY if "\n" not in n] + ["x"])
    }
    text = relabelling(columns, np.array([3, 1, 0]))
    parsed = list(csv.DictReader(io.StringIO(text)))
    assert [p["id"] for p in parsed] == [columns["id"][k] for k in (3, 1, 0)]
    assert all(p["label"] == p["given_label"] for p in parsed)
    assert [p["suggestion"] for p in parsed] == ["1", "2", "0"]
    (tmp_path / "fixed.csv").write_text(text)
    assert read_labels(tmp_path / "fixed.csv", 3) == {
        str(columns["id"][k]): int(columns["label"][k]) for k in (3, 1, 0)
    }


def test_csv_cells_keep_tags_quotes_and_line_breaks_as_text_and_leave_nan_empty() -> None:
    text = as_csv({"id": np.array(NASTY), "w": np.array([1.0, np.nan, np.inf, 0.5, 2.0, 3.0])})
    back = list(csv.reader(io.StringIO(text)))
    assert [row[0] for row in back[1:]] == NASTY
    assert [row[1] for row in back[1:]] == ["1.0", "", "", "0.5", "2.0", "3.0"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("nothing", "holds no run of molere; give the folder of one"),
        ("comparison", "holds several runs; give one of them, such as .*runs/erm/seed-0"),
        ("seeds", "holds several runs; give one of them, such as .*seed-3"),
        ("unfinished", "has no samples.parquet, for its run has not ended; type: molere resume"),
        ("old", "has no samples.parquet: an older molere made it"),
    ],
)
def test_a_folder_without_examples_says_what_it_is(tmp_path: Path, made: str, message: str) -> None:
    if made == "comparison":
        folder_of(tmp_path / "runs" / "erm" / "seed-0")
    elif made == "seeds":
        folder_of(tmp_path / "seed-3")
    elif made == "unfinished":
        (tmp_path / "status.json").touch()
    elif made == "old":
        (tmp_path / "DONE").touch()
    with pytest.raises(StorageError, match=message):
        read(tmp_path)


# ---- the command


def test_samples_shows_all_lists_and_how_good_the_suspects_are(molere: Command, tmp_path: Path) -> None:
    folder_of(tmp_path / "r")
    said = molere("samples", "r")
    assert (said.code, said.err) == (0, "")
    for words in (
        "Hardest",
        "Most down-weighted",
        "Likely mislabelled",
        "Never learnt",
        "2 are wrong",
        "r: 6 examples",
    ):
        assert words in said.out
    assert "The suspect score is made of: out_of_fold_margin 1.00, margin 1.00, weight_mean 0." in said.out
    assert "<script>alert(1)</script>" in said.out
    assert "ü; 2" in said.out  # on one line


def test_a_run_of_equal_weights_has_no_list_of_small_ones(molere: Command, tmp_path: Path) -> None:
    folder_of(tmp_path / "r", table(weight_mean=np.ones(6)))
    assert "down-weighted" not in molere("samples", "r").out
    assert "down-weighted" in molere("samples", "r", "--list", "downweighted").out


def test_samples_filters_sorts_and_counts(molere: Command, tmp_path: Path) -> None:
    folder_of(tmp_path / "r")
    said = molere(
        "samples", "r", "--where", "label!=2", "--sort", "-loss", "--top", "2", "--columns", "id,loss", "--json"
    )
    found = json.loads(said.out)
    assert found["lists"] == {"sorted": [{"id": "=1+1", "loss": 2.0}, {"id": 'a "quoted", name', "loss": 0.2}]}
    assert found["quality"]["suspect score"]["precision"] == 1.0
    assert "4 of 6 examples" in molere("samples", "r", "--where", "label!=2").out
    assert "none" in molere("samples", "r", "--where", "label=7").out
    everything = json.loads(molere("samples", "r", "--list", "hardest", "--top", "0", "--json").out)
    assert len(everything["lists"]["hardest"]) == 6


def test_samples_refuses_what_it_does_not_know_in_one_line(molere: Command, tmp_path: Path) -> None:
    folder_of(tmp_path / "r")
    for arguments, code, words in [
        (["r", "--list", "hard"], 2, "unknown list 'hard'; did you mean 'hardest'"),
        (["r", "--list", "hardest", "--sort", "loss"], 2, "both order the examples; keep one"),
        (["r", "--columns", "los"], 2, "unknown column 'los'"),
        (["nowhere"], 4, "nowhere holds no run of molere"),
    ]:
        said = molere("samples", *arguments)
        assert (said.code, said.out, len(said.err.splitlines())) == (code, "", 1)
        assert words in said.err


def test_suspects_are_found_relabelled_and_trained_with(molere: Command, tmp_path: Path) -> None:
    train = ["train", "--data", "digits", "--scenario", "noise", "--limit", "400", "--epochs", "8", "--quiet"]
    assert molere(*train, "--method", "molere", "--out", "one", "train.crossfit=2").code == 0
    said = molere("samples", "one", "--list", "suspects", "--top", "60", "--csv", "fixed.csv")
    assert "fixed.csv: 60 examples; change `label` where it is wrong, and train with --labels fixed.csv" in said.out
    table = list(csv.DictReader(io.StringIO((tmp_path / "fixed.csv").read_text())))
    wrong = [row["label"] != row["clean_label"] for row in table]
    assert np.mean(wrong) > 0.4
    fixed = [{"id": row["id"], "label": row["clean_label"]} for row in table]
    (tmp_path / "fixed.csv").write_text("id,label\n" + "".join(f"{r['id']},{r['label']}\n" for r in fixed))
    (tmp_path / "ids.txt").write_text("".join(f"{row['id']}\n" for row in table[:5]))
    corrections = ["--labels", "fixed.csv", "--weights", "one/samples.parquet", "--drop", "ids.txt"]
    said = molere(*train, "--method", "erm", "--out", "two", *corrections)
    assert said.code == 0, said.err
    before, after = read(tmp_path / "one"), read(tmp_path / "two")
    assert len(after["label"]) == len(before["label"]) - 5
    noise = [(c["label"] != c["clean_label"]).sum() for c in (before, after)]
    assert noise[1] == noise[0] - sum(wrong)
    weight = dict(zip(before["id"].tolist(), before["weight"], strict=True))
    np.testing.assert_allclose(
        np.corrcoef(after["weight"], [weight[i] for i in after["id"].tolist()])[0, 1], 1, atol=1e-5
    )


def test_a_comparison_takes_corrections_and_begins_anew_when_their_content_changes(
    molere: Command, tmp_path: Path
) -> None:
    (tmp_path / "d.txt").write_text("".join(f"{i}\n" for i in range(900)))
    compare = ["compare", "--methods", "erm,molere", "--seeds", "1", "--epochs", "2", "--limit", "300", "--quiet"]
    compare += ["--jobs", "1"]
    asked = [*compare, "--scenario", "clean", "--drop", "d.txt"]
    plans = [json.loads(molere(*asked, "--dry-run", "--json").out)]
    assert plans[0]["data"]["drop"] == "d.txt"
    assert molere(*asked, "--out", "c").code == 0
    config = (tmp_path / "c" / "config.yaml").read_text()
    assert "drop: d.txt" in config
    assert "corrections: " in config
    assert molere("resume", "c", "--quiet").code == 0
    (tmp_path / "d.txt").write_text("".join(f"{i}\n" for i in range(800)))
    plans.append(json.loads(molere(*asked, "--dry-run", "--json").out))
    assert plans[0]["folder"] != plans[1]["folder"]
    said = molere(*asked, "--out", "c")
    assert said.code == 4
    assert "c holds a comparison with other settings: data.corrections" in said.err
    assert molere("resume", "c").code == 4
    assert molere(*compare, "--drop", "no.txt").code == 3


def test_ids_of_arrays_come_back_as_they_were_given(tmp_path: Path) -> None:
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    names = np.array([f'{k} "<b>"' for k in range(40)])
    data = from_arrays(x, y, x, y, ids=names, select=0.0)
    fit("erm", data=data, recipe={"epochs": 1, "batch_size": 20}, out=tmp_path / "r")
    assert read(tmp_path / "r")["id"].tolist() == names.tolist()


# ---- the page


def test_the_commands_of_the_page_work_one_after_the_other(molere: Command, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "samples.md").read_text("utf-8")
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    assert len(lines) == 12
    for line in lines:
        program, *arguments = shlex.split(line.replace("--epochs 10", "--epochs 2").replace("crossfit=5", "crossfit=2"))
        assert program == "molere"
        more = ["--limit", "400", "--quiet"] if arguments[0] in ("train", "compare") else []
        more += ["--jobs", "1"] if arguments[0] == "compare" else []
        said = molere(*arguments, *more)
        assert (said.code, bool(said.out)) == (0, True), f"{line}: {said.err}"
    assert (tmp_path / "margins" / "margin-bins.svg").is_file()
