"""Pages: printed numbers beside ours, verdicts, and everything that differs."""

import json
import re

import pytest

from molere.reproduce.page import as_dict, markdown, page, values_of
from molere.reproduce.presets import preset
from molere.reproduce.resolve import Asked, Planned, resolve
from molere.reproduce.rows import as_json


def plan(name: str = "table5", key: str = "cifar100", methods: str | None = "Easy,Random,Hard,OPT") -> Planned:
    return resolve(preset(name), key, Asked(scale=0.1, methods=methods))


def results(p: Planned, accuracies: dict[str, list[float]], metric: str = "accuracy") -> list[dict]:
    return [
        {"label": p.columns[column], "seed": seed, "last": {metric: value}}
        for column, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


FOUND = {
    "ERM": [0.50, 0.52, 0.51],
    "Easy": [0.48, 0.50, 0.49],
    "Random": [0.49, 0.515, 0.501],
    "Hard": [0.55, 0.57, 0.565],
}


def test_values_are_of_the_last_update_by_column_and_seed() -> None:
    p = plan()
    assert values_of(p, results(p, FOUND), "accuracy")["Hard"] == {0: 0.55, 1: 0.57, 2: 0.565}
    assert values_of(p, [{"label": "other", "seed": 0, "last": {}}], "accuracy")["Hard"] == {}


def test_a_line_has_the_printed_number_ours_and_both_differences() -> None:
    p = plan()
    made = page(p, results(p, FOUND), {})
    hard = next(line for line in made.lines["accuracy"] if line.column == "Hard")
    assert (hard.printed, hard.printed_difference) == (81.17, pytest.approx(1.72))
    assert hard.ours.mean == pytest.approx(0.5616667)
    assert hard.difference is not None
    assert hard.difference.difference == pytest.approx(0.0516667)
    row = next(line for line in markdown(made).splitlines() if line.startswith("| Hard |"))
    assert re.search(r"81\.17 \| 56\.17 ± 2\.\d+ \| \+1\.72 \| \+5\.17 ± 0\.\d+ \|", row)


def test_claims_carry_a_verdict_and_whether_the_printed_numbers_agree() -> None:
    p = plan()
    findings = {f.claim.text: f for f in page(p, results(p, FOUND), {}).findings}
    assert (findings["Easy < Random < Hard"].verdict, findings["Easy < Random < Hard"].printed) == ("held", True)
    assert findings["Easy < Random < Hard"].count == "2 of 2"
    assert findings["Hard > ERM"].verdict == "held"
    assert findings["OPT > ERM"].verdict == "not run"
    assert "OPT > ERM: not run" in markdown(page(p, results(p, FOUND), {}))


def test_the_page_says_scale_deviations_and_doubts() -> None:
    text = markdown(page(plan("table5", "aircraft"), [], {"Command": "`x`"}))
    assert text.startswith("# Table 5, accuracy in distribution: FGVC-Aircraft, at scale 0.1 (667 of 6,667")
    said = ("- Command: `x`", "667 of 6,667 training examples; the test sets are whole.", "weight decay 5e-4")
    for words in (*said, "Easy is printed above Random.", "Not run: MBW"):
        assert words in text


def test_gains_are_shown_as_differences_to_the_learned_split() -> None:
    p = plan("table7", "cifar100", None)
    found = {column: [0.5, 0.51] for column in p.columns} | {"3: only errors validate": [0.49, 0.499]}
    made = page(p, results(p, found), {})
    line = next(x for x in made.lines["accuracy"] if x.column == "3: only errors validate")
    assert (line.printed, line.printed_difference) == (None, -1.5)
    assert line.difference is not None
    assert line.difference.difference == pytest.approx(-0.0105)
    assert all(f.printed for f in made.findings)


def test_a_row_with_two_test_sets_has_two_tables() -> None:
    p = plan("table4", "imagenet-r", None)
    rows = [
        {"label": label, "seed": 0, "last": {"accuracy": 0.7, "imagenet-r/accuracy": 0.4}}
        for label in p.columns.values()
    ]
    made = page(p, rows, {})
    assert [x.printed for x in made.lines["imagenet-r/accuracy"]] == [49.1, 46.1, 47.4]
    assert [x.printed for x in made.lines["accuracy"]] == [76.14, 75.65, 74.89]
    assert "## imagenet-r/accuracy" in markdown(made)


def test_the_page_is_json_with_null_for_what_is_not_there() -> None:
    p = plan()
    stored = json.loads(as_json(page(p, results(p, {"ERM": [0.5]}), {})))
    assert stored["row"] == "cifar100"
    assert stored["metrics"]["accuracy"][1]["ours"]["mean"] is None
    assert stored["claims"][0]["verdict"] == "not run"
    assert as_dict(page(p, [], {}))["verdicts"] == "7 not run"
