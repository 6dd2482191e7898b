"""Paired differences of margins: numbers against plain loops, pairs that do not fit, `molere margins`."""

import csv
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from molere import cli
from molere.errors import DataError, StorageError
from molere.margins import Differences, of_folders, paired, runs_in
from molere.storage import write_table
from molere.storage.files import write_json

MARGIN = st.floats(-1, 1, width=32)


def predictions(margin: list[float] | npt.NDArray[np.float64], **more: object) -> dict[str, npt.NDArray[np.generic]]:
    n = len(margin)
    columns: dict[str, object] = {
        "test": np.full(n, "test"), "sample_id": np.arange(n), "label": np.arange(n) % 3, "group": np.arange(n) % 2,
        "margin": np.asarray(margin, dtype=np.float32), **more,
    }  # fmt: skip
    return {k: np.asarray(v) for k, v in columns.items()}


def run_of(folder: Path, margin: list[float] | npt.NDArray[np.float64], label: str = "erm", **more: object) -> Path:
    folder.mkdir(parents=True)
    write_table(folder / "predictions.parquet", predictions(margin, **more))
    write_json(folder / "result.json", {"label": label})
    return folder


def differences(before: list[float], after: list[float]) -> Differences:
    return paired(predictions(before), predictions(after))


# ---- numbers


@given(st.lists(st.tuples(MARGIN, MARGIN), min_size=1, max_size=30))
def test_mean_median_and_standard_error_are_those_of_the_differences(pairs: list[tuple[float, float]]) -> None:
    found = differences([p[0] for p in pairs], [p[1] for p in pairs])
    values = [b - a for a, b in pairs]
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert found.median == pytest.approx(statistics.median(values), abs=1e-6)
    if len(values) > 1:
        assert found.sem == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-6)
    else:
        assert math.isnan(found.sem)


@given(st.lists(st.tuples(MARGIN, MARGIN), min_size=1, max_size=30))
def test_bins_are_of_the_baselines_margin_and_hold_every_example_once(pairs: list[tuple[float, float]]) -> None:
    found = differences([p[0] for p in pairs], [p[1] for p in pairs]).bins()
    assert [(b.low, b.high) for b in found] == [(round(-1 + 0.2 * k, 1), round(-0.8 + 0.2 * k, 1)) for k in range(10)]
    assert sum(b.n for b in found) == len(pairs)
    for b in found:
        inside = [after - before for before, after in pairs if _in(before, b.low, b.high)]
        if len(inside) == b.n:  # else a margin lies within rounding of an edge
            assert b.n == 0 or b.mean == pytest.approx(statistics.fmean(inside), abs=1e-6)
            assert b.n < 2 or b.std == pytest.approx(statistics.stdev(inside), abs=1e-6)
            assert b.n < 2 or b.sem == pytest.approx(b.std / math.sqrt(b.n))


def _in(margin: float, low: float, high: float) -> bool:
    return low <= margin < high or (high == 1 and margin == 1)


@pytest.mark.parametrize(
    ("margin", "low"), [(-1.0, -1.0), (-0.8, -0.8), (-0.2, -0.2), (0.0, 0.0), (0.6, 0.6), (1.0, 0.8)]
)
def test_an_edge_belongs_to_the_bin_above_it_and_one_to_the_last(margin: float, low: float) -> None:
    (filled,) = [b for b in differences([margin], [0.0]).bins() if b.n]
    assert filled.low == pytest.approx(low)


def test_the_histogram_is_symmetric_and_counts_every_difference() -> None:
    counts, edges = differences([0.0, 0.5, -0.5], [0.3, 0.4, -0.1]).histogram(8)
    assert counts.sum() == 3
    np.testing.assert_allclose(edges, np.linspace(-0.4, 0.4, 9), atol=1e-6)
    assert differences([0.5], [0.5]).histogram()[0].sum() == 1


def test_shares_tell_what_was_mended_and_broken() -> None:
    found = differences([-0.5, 0.5, 0.2, 0.1], [0.5, -0.5, 0.3, 0.1]).shares
    assert found == {"larger": 0.5, "smaller": 0.25, "mended": 0.25, "broken": 0.25}


def test_twice_the_same_run_has_no_differences() -> None:
    found = differences([0.1, -0.9, 0.5], [0.1, -0.9, 0.5])
    assert (found.mean, found.median, found.sem) == (0, 0, 0)


# ---- pairs


@pytest.mark.parametrize(
    "other",
    [
        predictions([0.1, 0.2, 0.3, 0.4]),
        predictions([0.1, 0.2, 0.3], label=[0, 1, 1]),
        predictions([0.1, 0.2, 0.3], id=["a", "b", "c"]),
        predictions([0.1, 0.2, 0.3], group=[0, 0, 0]),
    ],
    ids=["number", "labels", "ids", "groups"],
)
def test_runs_tested_on_other_examples_are_refused(other: dict[str, npt.NDArray[np.generic]]) -> None:
    with pytest.raises(DataError, match="erm and molere were tested on other examples .* same data, scenario and seed"):
        paired(predictions([0.1, 0.2, 0.3]), other, ("erm", "molere"))


def test_folders_of_seeds_are_paired_seed_by_seed(tmp_path: Path) -> None:
    for seed, shift in ((0, 0.1), (1, 0.3), (2, 0.5)):
        run_of(tmp_path / "erm" / f"seed-{seed}", [0.0, 0.2, -0.4])
        if seed != 1:
            run_of(tmp_path / "molere" / f"seed-{seed}", [shift, 0.2 + shift, -0.4 + shift], "molere")
    found = of_folders(tmp_path / "erm", tmp_path / "molere")
    assert (found.names, found.runs) == (("erm", "molere"), (3, 3))
    assert found.by_run == [pytest.approx(0.1), pytest.approx(0.5)]
    assert list(runs_in(tmp_path / "erm")) == ["seed-0", "seed-1", "seed-2"]
    run_of(tmp_path / "late" / "seed-9", [0.0, 0.2, -0.4])
    with pytest.raises(StorageError, match="have no seed in common"):
        of_folders(tmp_path / "erm", tmp_path / "late")


def test_two_runs_of_one_method_are_called_by_their_folders(tmp_path: Path) -> None:
    a, b = run_of(tmp_path / "a", [0.0, 0.2]), run_of(tmp_path / "b", [0.1, 0.2])
    assert of_folders(a, b).names == (a.as_posix(), b.as_posix())


def test_test_sets_and_conditions_choose_examples(tmp_path: Path) -> None:
    tests = {"test": ["test", "test", "test", "hard"], "group": [0, 1, 1, -1]}
    a = run_of(tmp_path / "a", [0.0, 0.0, 0.0, 0.0], **tests)
    b = run_of(tmp_path / "b", [0.1, 0.2, 0.4, 0.8], **tests)
    assert of_folders(a, b).mean == pytest.approx(0.7 / 3)
    assert of_folders(a, b, test="hard").mean == pytest.approx(0.8)
    assert of_folders(a, b, where=["group=1"]).mean == pytest.approx(0.3)
    with pytest.raises(DataError, match="has no test set 'easy'; it has test, hard"):
        of_folders(a, b, test="easy")
    with pytest.raises(DataError, match="no test example is left to compare"):
        of_folders(a, b, where=["group=7"])


# ---- the command


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["molere", *arguments])
    capsys.readouterr()
    code = cli.main()
    return code, *capsys.readouterr()


def test_margins_prints_words_and_bins_and_writes_numbers_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draws = np.random.default_rng(0)
    before = draws.uniform(-1, 1, 300)
    after = np.clip(before + 0.1 * draws.normal(size=300) + 0.05, -1, 1)
    a, b = run_of(tmp_path / "a", before), run_of(tmp_path / "b", after, "molere")
    code, out, err = said(monkeypatch, capsys, "margins", str(a), str(b), "--out", str(tmp_path / "m"))
    assert (code, err) == (0, "")
    assert out.startswith("Margins of molere minus margins of erm, 300 test examples\nmean +0.0")
    with (tmp_path / "m" / "margins-bins.csv").open() as file:
        bins = list(csv.DictReader(file))
    assert [float(r["low"]) for r in bins] == pytest.approx(np.arange(-1, 1, 0.2).tolist(), abs=1e-9)
    inside = (before >= -0.2) & (before < 0)
    (row,) = [r for r in bins if float(r["low"]) == -0.2]
    assert int(row["n"]) == inside.sum()
    assert float(row["mean"]) == pytest.approx((after - before)[inside].mean(), abs=1e-6)
    with (tmp_path / "m" / "margins-histogram.csv").open() as file:
        assert sum(int(r["count"]) for r in csv.DictReader(file)) == 300
    made = {p.name for p in (tmp_path / "m").iterdir()}
    assert {"margin-differences.png", "margin-differences.svg", "margin-bins.png", "margin-bins.svg"} <= made
    assert all(str(tmp_path / "m" / name) in out for name in made)


def test_margins_as_json_is_one_object_of_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = run_of(tmp_path / "a", [0.1, -0.3]), run_of(tmp_path / "b", [0.2, 0.3], "molere")
    code, out, _ = said(monkeypatch, capsys, "margins", str(a), str(b), "--json")
    found = json.loads(out)
    assert (code, found["examples"], found["mean"]) == (0, 2, pytest.approx(0.35))
    assert (found["baseline"], found["run"]) == ("erm", "molere")
    assert found["bins"][0]["mean"] is None
    assert sum(found["histogram"]["counts"]) == 2


def test_margins_of_folders_without_predictions_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(tmp_path / "c" / "runs" / "erm" / "seed-0", [0.1])
    for folder, words in ((tmp_path / "none", "holds no run of molere"), (tmp_path / "c", "holds several runs")):
        code, out, err = said(monkeypatch, capsys, "margins", str(folder), str(folder))
        assert (code, out, len(err.splitlines())) == (4, "", 1)
        assert words in err
