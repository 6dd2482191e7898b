"""Figures 3 and 4: changes of margins by the margin under ERM."""

import json

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from molere.reproduce.margins import bins, changes, summary, table, values
from molere.show.printed import of_row

BASE = np.array([-0.95, -0.5, -0.01, 0.0, 0.15, 0.2, 1.0])
MARGINS = {
    "ERM": {0: BASE, 1: BASE[::-1].copy()},
    "Hard": {0: BASE + 0.1, 1: BASE[::-1] + np.where(BASE[::-1] > 0, 0.0, 0.3)},
    "late": {0: BASE},
}


def test_changes_are_against_the_reference_of_the_same_seed() -> None:
    found = changes(MARGINS, "ERM")
    assert np.allclose(found["Hard"][0], 0.1)
    assert not found["ERM"][1].any()
    assert list(found["late"]) == [0]


def test_claims_are_judged_over_all_and_where_the_reference_errs_and_is_right() -> None:
    found = values(MARGINS, "ERM")
    assert found["Hard"] == pytest.approx({0: 0.1, 1: 0.3 * 4 / 7})
    assert found["Hard where ERM errs"] == pytest.approx({0: 0.1, 1: 0.3})
    assert found["Hard where ERM is right"] == pytest.approx({0: 0.1, 1: 0.0})


def test_a_seed_without_errors_has_no_mean_where_the_reference_errs() -> None:
    found = values({"ERM": {0: np.array([0.5])}, "a": {0: np.array([0.4])}}, "ERM")
    assert (found["a where ERM errs"], found["a where ERM is right"]) == ({}, {0: pytest.approx(-0.1)})


def test_bins_are_a_fifth_wide_closed_below_and_the_last_one_above_too() -> None:
    found = bins({0: np.arange(7.0)}, {0: BASE})
    assert [(b.low, b.high) for b in found][:2] == [(-1.0, -0.8), (-0.8, -0.6)]
    assert [b.n for b in found] == [1, 0, 1, 0, 1, 2, 1, 0, 0, 1]
    assert found[5].mean == 3.5
    assert found[5].std == pytest.approx(np.std([3, 4], ddof=1))
    assert found[5].sem == pytest.approx(np.std([3, 4], ddof=1) / np.sqrt(2))
    assert np.isnan(found[1].mean)


def test_the_table_leaves_out_the_reference() -> None:
    rows = table(MARGINS, "ERM")
    assert [row[0] for row in rows] == ["Hard", "late"]
    assert rows[1][1] == "+0.0000"


def test_the_figure_is_drawn_from_plain_numbers_that_agree_with_the_margins() -> None:
    found = json.loads(json.dumps(summary(MARGINS, "ERM")))
    assert list(found) == ["Hard", "late"]
    hard = np.concatenate(list(changes(MARGINS, "ERM")["Hard"].values()))
    assert (found["Hard"]["mean"], found["Hard"]["median"]) == pytest.approx((hard.mean(), np.median(hard)))
    assert sum(found["Hard"]["histogram"]) == found["Hard"]["n"] == 14
    assert [b["mean"] for b in found["late"]["bins"] if b["n"]] == 6 * [0.0]
    said = {"preset": "figure3", "row": "r", "title": "T", "kind": "margins", "reference": "ERM", "changes": found}
    (picture,) = of_row(said)
    heights = [patch.get_height() for patch in picture.figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert heights == pytest.approx([b["mean"] for b in found["Hard"]["bins"] if b["n"]])
    assert f"Hard: mean {hard.mean():+.3f}, median {np.median(hard):+.3f}." in picture.words


def test_printed_numbers_stand_beside_ours_with_intervals() -> None:
    lines = [
        {"column": "A$", "printed": 81.2, "ours": {"n": 3, "mean": 0.5, "half_width": 0.1}},
        {"column": "B", "printed": None, "ours": {"n": 1, "mean": 0.4, "half_width": None}},
        {"column": "C", "printed": 70.0, "ours": {"n": 0, "mean": None, "half_width": None}},
    ]
    said = {"preset": "figure1", "row": "r", "title": "T", "kind": "bars", "metric": "accuracy"}
    (picture,) = of_row({**said, "metrics": {"accuracy": lines}})
    ours, crosses = picture.figure.axes[0].lines[0], picture.figure.axes[0].lines[-1]
    assert np.asarray(ours.get_ydata()).tolist() == [50.0, 40.0]
    assert np.asarray(crosses.get_ydata()).tolist() == [81.2]
    assert of_row({**said, "metrics": {"accuracy": lines[2:]}}) == []
