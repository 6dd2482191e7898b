"""Tables of comparisons: what is counted, and how it is shown."""

import csv
import html.parser
import io
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from molere import logged, report, terminal, wording
from molere.errors import ConfigError
from molere.report import About
from molere.statistics import Mean
from molere.table import Metric, Table, passes, tabulate

ABOUT = About(
    title="digits (hidden-group), mlp",
    command="molere compare --methods erm,good,bad",
    date="2026-11-20 10:00 +0000",
    machine="Some CPU, 2 cores",
)
GAINS = {"erm": 0.0, "good": 0.1, "bad": -0.1, "same": 0.0}


def result(label: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A stored result: good gains 10 points, bad loses 10, same is noise; costs are round numbers."""
    noise = np.random.default_rng([seed, *label.encode()]).normal(0, 0.005)
    accuracy = 0.7 + 0.01 * seed + GAINS[label] + noise
    metrics = {"accuracy": accuracy, "worst_group": accuracy - 0.2, "nll": 1 - accuracy, "ece": 0.05}
    extra = label == "good"
    cost = {"updates": 100, "seconds": 2.0 + extra, "scout_seconds": 4.0 * extra, "peak_mib": 100.0 * (1 + extra)}
    cost |= {"forward": 100.0, "backward": 100.0, "virtual_forward": 150.0 * extra, "virtual_backward": 75.0 * extra}
    cost |= {"scout_forward": 200.0 * extra, "scout_backward": 200.0 * extra}
    best = {name: value + 0.01 for name, value in metrics.items()}
    stored = {
        "method": label,
        "label": label,
        "seed": seed,
        "updates": 100,
        "last": metrics,
        "best": best,
        "cost": cost,
    }
    return stored | {"headline": ["accuracy", "worst_group"]} | changes


def results(labels: str = "erm good bad same", seeds: int = 5) -> list[dict[str, Any]]:
    return [result(label, seed) for seed in range(seeds) for label in labels.split()]


@pytest.fixture
def table() -> Table:
    return tabulate(results())


def accuracies(label: str, seeds: int = 5) -> list[float]:
    return [result(label, seed)["last"]["accuracy"] for seed in range(seeds)]


# ---- what is counted


def test_a_cell_holds_the_mean_and_the_paired_difference(table: Table) -> None:
    cell = next(c for c in table.column("accuracy", "last") if c.label == "good")
    good, erm = accuracies("good"), accuracies("erm")
    assert cell.paired is not None
    assert cell.mean.mean == pytest.approx(np.mean(good))
    assert cell.paired.difference == pytest.approx(np.mean(np.subtract(good, erm)))
    assert cell.paired.p == pytest.approx(stats.ttest_rel(good, erm).pvalue, rel=1e-6)
    assert cell.paired.relative == pytest.approx(np.mean(np.subtract(good, erm)) / np.mean(erm))
    assert (cell.paired.wins, cell.verdict) == (5, "better")


def test_p_is_corrected_over_the_methods_of_one_metric(table: Table) -> None:
    column = [c for c in table.column("accuracy", "last") if c.paired]
    raw = sorted(c.paired.p for c in column if c.paired)
    expected = np.maximum.accumulate(np.minimum(1, np.array(raw) * [3, 2, 1]))
    assert sorted(c.p for c in column) == pytest.approx(expected)


def test_methods_are_better_worse_or_unclear(table: Table) -> None:
    assert [c.verdict for c in table.column("accuracy", "last")] == ["untested", "better", "worse", "unclear"]


def test_of_a_loss_less_is_better(table: Table) -> None:
    assert [c.verdict for c in table.column("nll", "last")] == ["untested", "better", "worse", "unclear"]
    assert all(c.gain == -c.paired.difference for c in table.column("nll", "last") if c.paired)


def test_last_and_best_are_kept_apart(table: Table) -> None:
    last, best = (table.column("accuracy", s)[0].mean.mean for s in ("last", "best"))
    assert best == pytest.approx(last + 0.01)


def test_costs_are_multiples_of_the_baseline(table: Table) -> None:
    cost = table.cost("good")
    assert (cost.seconds, cost.seconds_ratio, cost.memory_ratio) == (3.0, 1.5, 2.0)
    assert cost.passes_ratio == pytest.approx((100 + 200 + 150 + 150) / 300)
    assert (cost.scout_seconds_ratio, cost.scout_passes_ratio) == pytest.approx((2.0, 600 / 300))
    assert (table.cost("erm").seconds_ratio, table.cost("erm").scout_passes_ratio) == (1.0, 0.0)


def test_a_backward_pass_counts_twice() -> None:
    assert (
        passes({"forward": 1, "backward": 1, "virtual_forward": 10, "virtual_backward": 10, "scout_forward": 9}) == 33
    )


def test_costs_are_compared_on_common_seeds_only() -> None:
    slow = result("erm", 4)
    slow["cost"]["seconds"] = 1000.0
    some = [r for r in results("erm good") if (r["label"], r["seed"]) not in {("good", 4), ("erm", 4)}]
    assert tabulate([*some, slow]).cost("good").seconds_ratio == 1.5


def test_tests_use_common_seeds_only() -> None:
    there = [r for r in results("erm good") if (r["label"], r["seed"]) not in {("erm", 0), ("good", 1)}]
    cell = tabulate(there, labels=["erm", "good"], seeds=range(5)).column("accuracy", "last")[1]
    assert cell.paired is not None
    assert (cell.mean.n, cell.paired.n) == (4, 3)
    assert cell.paired.p == pytest.approx(
        stats.ttest_rel(accuracies("good")[2:], accuracies("erm")[2:]).pvalue, rel=1e-6
    )


def test_runs_that_were_asked_for_and_are_not_there_are_listed_with_their_reason() -> None:
    there = [r for r in results("erm good", 2) if (r["label"], r["seed"]) != ("good", 1)]
    table = tabulate(there, labels=["erm", "good"], seeds=[0, 1, 2], failures={("good", 1): "it broke"})
    assert [(m.label, m.seed, m.reason) for m in table.missing] == [
        ("erm", 2, "not run"),
        ("good", 1, "it broke"),
        ("good", 2, "not run"),
    ]


def test_a_method_without_any_result_has_an_empty_row() -> None:
    table = tabulate(results("erm", 3), labels=["erm", "good"])
    cell = table.column("accuracy", "last")[1]
    assert (cell.mean.n, wording.value(cell), wording.difference(cell), wording.p_value(cell)) == (0, "–", "–", "–")
    assert "good (n=0)" in terminal.plain(table)
    assert "| good (n=0) | – | – | – | – | 0/0 |" in report.markdown(table, ABOUT)


def test_a_metric_that_is_not_finite_counts_as_missing() -> None:
    broken = result("good", 0)
    broken["last"]["nll"] = math.nan
    whole = [r for r in results("erm good") if (r["label"], r["seed"]) != ("good", 0)]
    table = tabulate([broken, *whole], labels=["erm", "good"])
    assert [c.mean.n for c in table.column("nll", "last")] == [5, 4]
    assert table.column("accuracy", "last")[1].mean.n == 5


def test_results_without_a_best_epoch_still_make_a_table() -> None:
    table = tabulate([r | {"best": {}} for r in results()])
    assert all(c.mean.n == 0 for c in table.column("accuracy", "best"))
    assert "no figures" not in " ".join(wording.verdicts(table))
    assert terminal.plain(table)


def test_headline_metrics_are_those_the_results_name_and_come_first() -> None:
    named = tabulate([r | {"headline": ["worst_group", "absent"]} for r in results()])
    assert named.headline == ("worst_group",)
    assert named.metrics[0] == "worst_group"
    unnamed = [{k: v for k, v in r.items() if k != "headline"} for r in results()]
    assert tabulate(unnamed).headline == ("accuracy", "worst_group")
    assert tabulate(unnamed, headline=["nll"]).headline == ("nll",)


def test_the_baseline_is_erm_wherever_it_stands() -> None:
    assert tabulate(results("good erm")).baseline == "erm"
    variant = [r | ({"label": "erm@paper"} if r["label"] == "erm" else {}) for r in results("good erm")]
    assert tabulate(variant).baseline == "erm@paper"
    assert tabulate(results("good bad")).baseline == "good"
    assert tabulate(results("good bad"), baseline="bad").baseline == "bad"


def test_a_baseline_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="the baseline 'x' is not among the methods; it can be one of erm, good"):
        tabulate(results("erm good"), baseline="x")
    with pytest.raises(ConfigError, match="there is nothing to compare"):
        tabulate([])


@pytest.mark.parametrize(
    ("name", "higher", "unit"),
    [
        ("accuracy", True, "percent"),
        ("accuracy[rotated]", True, "percent"),
        ("corrupted/accuracy[a/b]", True, "percent"),
        ("corrupted/nll", False, ""),
        ("ece", False, "percent"),
        ("margin", True, ""),
    ],
)
def test_a_metrics_name_says_how_it_reads(name: str, higher: bool, unit: str) -> None:
    assert (Metric(name).higher_is_better, Metric(name).unit) == (higher, unit)


# ---- in words


def test_the_verdict_says_who_is_better_by_how_much_and_at_what_cost(table: Table) -> None:
    said = wording.verdict(table)[0]
    assert said.startswith("accuracy, at the last update: better than erm (Holm p < .05): good by ")
    assert re.search(r"good by \d+\.\d ± \d\.\d points \(\+1\d\.\d %, p (= \.\d{3}|< \.001), wins 5/5\)", said)
    assert "at 1.50 x its time and 2.00 x for scouts" in said
    assert "Worse (Holm p < .05): bad by " in said
    assert "same" not in said


def test_the_verdict_says_plainly_that_nothing_is_better() -> None:
    said = wording.verdict(tabulate(results("erm bad same")))[0]
    assert said.startswith("accuracy, at the last update: none is better than erm. Worse (Holm p < .05): bad by ")
    (said, *_) = wording.verdict(tabulate(results("erm same")))
    assert said.startswith("accuracy, at the last update: no method differs from erm (Holm p < .05)")


def test_a_verdict_of_no_difference_names_the_nearest_one_and_how_sure_it_is() -> None:
    near = [
        {**r, "last": {"accuracy": 0.7 + (0.01 * (r["seed"] + 1) if r["label"] == "good" else 0)}}
        for r in results("erm good", 2)
    ]
    (said, *_) = wording.verdict(tabulate(near))
    assert said.endswith("(Holm p < .05); the nearest to it is good with +1.5 ± 6.4 points (p = .205).")


def test_the_verdict_on_one_seed_is_that_there_is_none() -> None:
    said = wording.verdict(tabulate(results("erm good", 1)))
    assert said[0] == (
        "accuracy, at the last update: fewer than two common seeds, so nothing can be concluded; "
        "use five seeds or more."
    )


def test_the_verdict_on_a_single_method_names_it() -> None:
    assert wording.verdicts(tabulate(results("erm"))) == ["Only erm was run, so there is nothing to compare it with."]


def test_best_by_validation_is_told_apart_only_where_it_differs(table: Table) -> None:
    assert wording.verdicts(table)[-1] == "The best epochs by validation give the same verdict."
    other = [r | {"best": result("same", r["seed"])["last"]} for r in results()]
    assert any("at the best epoch by validation" in line for line in wording.verdicts(tabulate(other)))


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0001, "<.001"), (0.034, ".034"), (0.0499, "<.05"), (0.9999, "1.00"), (1.0, "1.00"), (math.nan, "–")],
)
def test_p_values_are_short(table: Table, p: float, text: str) -> None:
    from dataclasses import replace

    assert wording.p_value(replace(table.column("accuracy", "last")[1], p=p)) == text


def test_ties_are_shown_beside_wins() -> None:
    table = tabulate([r | {"last": {"accuracy": 0.5}} for r in results("erm good")])
    assert wording.wins(table.column("accuracy", "last")[1]) == "0/5 (5=)"


def test_different_budgets_are_said_aloud() -> None:
    table = tabulate(
        [r | ({"updates": 60 + r["seed"]} if r["label"] == "good" else {}) for r in results("erm good", 2)]
    )
    assert wording.budgets(table) == "Classifier updates differ: erm 100, good 60/61."
    assert wording.budgets(tabulate(results())) == "Every run made 100 classifier updates."


# ---- Markdown, CSV, JSON, HTML


def test_the_markdown_names_its_origin_and_what_the_signs_mean(table: Table) -> None:
    text = report.markdown(table, ABOUT)
    assert text.startswith("# digits (hidden-group), mlp\n")
    for fact in (ABOUT.command, ABOUT.date, ABOUT.machine, "Seeds: 5 (0, 1, 2, 3, 4)", "half the 95 % interval"):
        assert fact in text
    assert "two-sided paired t test, with Holm's correction" in text


def test_the_markdown_shows_each_figure_where_it_belongs(table: Table) -> None:
    cell = table.column("accuracy", "last")[1]
    assert cell.paired is not None
    row = (
        f"| good | {100 * cell.mean.mean:.2f} ± {100 * cell.mean.half_width:.2f} "
        f"| {100 * cell.paired.difference:+.2f} ± {100 * cell.paired.half_width:.2f} "
        f"| {100 * cell.paired.relative:+.1f} % | {wording.p_value(cell)} | 5/5 |"
    )
    assert row in report.markdown(table, ABOUT)
    assert "| good | 3.0 | 1.50 | 2.00 | 2.00 | 2.00 | 2.00 |" in report.markdown(table, ABOUT)


def test_markdown_tables_are_rectangular_even_with_awkward_names() -> None:
    odd = [r | {"label": "a|b\nc" if r["label"] == "good" else r["label"]} for r in results("erm good")]
    text = report.markdown(tabulate(odd), ABOUT)
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(blocks) >= 6
    for block in blocks:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block


def test_the_csv_has_one_row_for_each_method_metric_and_selection(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(report.as_csv(table))))
    keys = {(r["method"], r["metric"], r["selection"]) for r in rows}
    assert len(rows) == len(keys) == 4 * 4 * 2
    row = next(r for r in rows if (r["method"], r["metric"], r["selection"]) == ("good", "accuracy", "last"))
    assert float(row["mean"]) == pytest.approx(100 * np.mean(accuracies("good")))
    assert (row["unit"], row["n"], row["wins"], row["baseline"]) == ("percent", "5", "5", "erm")
    assert float(row["seconds_ratio"]) == 1.5
    erm = next(r for r in rows if r["method"] == "erm")
    assert (erm["p_holm"], erm["difference"]) == ("", "")


def test_the_json_is_strict_and_holds_the_results() -> None:
    one = results("erm good", 1)
    text = report.as_json(tabulate(one), ABOUT, one)
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["results"] == one
    assert content["about"]["command"] == ABOUT.command
    assert content["verdict"]["last"]
    row = next(r for r in content["rows"] if r["method"] == "good")
    assert row["p"] is None
    assert row["half_width_95"] is None


def test_a_table_made_again_from_its_json_is_the_same(table: Table) -> None:
    content = json.loads(report.as_json(table, ABOUT, results()))
    again = tabulate(content["results"], labels=content["methods"], seeds=content["seeds"])
    assert again == table


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_balanced_and_escapes_names() -> None:
    odd = [r | {"label": "<script>" if r["label"] == "good" else r["label"]} for r in results("erm good")]
    parser = Tags()
    parser.feed(report.html(tabulate(odd), ABOUT))
    assert parser.open == []
    assert "script" not in parser.tags
    assert {"table", "li"} <= set(parser.tags)


# ---- on a terminal


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40, 20])
def test_no_line_is_wider_than_the_terminal(table: Table, width: int) -> None:
    lines = terminal.plain(table, title="digits", width=width).splitlines()
    assert max(map(len, lines)) <= width


def test_two_metrics_stand_side_by_side_at_100_columns(table: Table) -> None:
    lines = terminal.plain(table, width=100).splitlines()
    row = next(line for line in lines if line.startswith("good "))
    assert row.count("±") == 4
    assert row.count("5/5") == 2
    cells = [table.column(m, "last")[1] for m in table.headline]
    assert all(wording.value(c) in row and wording.difference(c) in row for c in cells)


def test_narrow_terminals_keep_the_difference_and_its_p(table: Table) -> None:
    cell = table.column("accuracy", "last")[1]
    for width in (60, 34, 30):
        rows = [line for line in terminal.plain(table, width=width).splitlines() if line.startswith("good ")]
        assert any(wording.difference(cell) in row and wording.p_value(cell) in row for row in rows), width


def test_without_a_column_for_values_the_baseline_shows_its_own(table: Table) -> None:
    rows = [line for line in terminal.plain(table, width=32).splitlines() if line.startswith("erm ")]
    assert wording.value(table.column("accuracy", "last")[0]) in rows[0]


def test_the_terminal_shows_both_selections_costs_verdict_and_missing_runs() -> None:
    table = tabulate(results("erm good"), seeds=range(6), failures={("good", 5): "NumericsError: not finite"})
    text = terminal.plain(table, title="digits", closing=["Written to runs/x"])
    for part in ("At the last update", "At the best epoch by validation", "Cost, as multiples of erm", "Verdict"):
        assert part in text
    assert "good, seed 5: NumericsError: not finite" in text
    assert "good (n=5)" in text
    assert text.endswith("Written to runs/x")


def test_square_brackets_in_labels_are_text_not_markup() -> None:
    odd = [r | {"label": "lrw[bold]" if r["label"] == "good" else r["label"]} for r in results("erm good")]
    odd = [r | {"headline": ["accuracy[red]"], "last": {"accuracy[red]": r["last"]["accuracy"]}} for r in odd]
    text = terminal.plain(tabulate(odd))
    assert "lrw[bold]" in text
    assert "[red]" in text


def test_colours_appear_only_where_the_terminal_has_them(table: Table) -> None:
    def printed(**settings: Any) -> str:
        console = Console(file=io.StringIO(), width=100, **settings)
        with console.capture() as capture:
            console.print(terminal.Screen(table))
        return capture.get()

    assert "\x1b[1;32m" in printed(force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b" not in printed(force_terminal=False)


# ---- what was logged along the way


def logging_results(rejected: float) -> list[dict[str, Any]]:
    bad = [result("bad", seed, logged={"split_rejected": rejected + 0.1 * seed, "churn": 2.0}) for seed in range(2)]
    return [*results("erm", 2), *bad]


def test_what_runs_logged_is_averaged_over_seeds_and_shown_beside_its_method() -> None:
    table = tabulate(logging_results(0.1))
    assert table.logged["erm"] == {}
    assert table.logged["bad"]["split_rejected"].mean == pytest.approx(0.15)
    rows = report.markdown(table, ABOUT).split("## Logged along the way")[1].splitlines()
    assert "| method | split_rejected | churn |" in rows
    assert "| erm |  |  |" in rows
    assert "| bad | 0.15 ± 0.64 | 2 |" in rows


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (0.94329, 0.00051, "0.9433 ± 0.0005"),
        (110.14, 26.2, "110 ± 26"),
        (1.0, 3.4e-6, "1"),
        (0.2975, 0.26, "0.30 ± 0.26"),
        (1234.6, math.nan, "1235"),
        (math.nan, math.nan, ""),
    ],
)
def test_what_was_logged_is_shown_with_as_many_digits_as_are_sure(mean: float, half: float, text: str) -> None:
    assert logged.shown(Mean(3, mean, half)) == text


def test_what_one_of_many_methods_logged_is_a_line_of_its_own() -> None:
    table = tabulate([*logging_results(0.1), *results("same", 2)])
    section = report.markdown(table, ABOUT).split("## Logged along the way")[1]
    assert "| method |" not in section
    assert "- bad: split_rejected 0.15 ± 0.64, churn 2" in section.splitlines()


@pytest.mark.parametrize(("rejected", "warned"), [(0.3, False), (0.45, True)])
def test_a_row_whose_splits_were_mostly_rejected_is_cautioned_against(rejected: float, warned: bool) -> None:
    said = [line for line in wording.verdicts(tabulate(logging_results(rejected))) if "rejected" in line]
    assert (
        said
        == [
            "bad: 50 % of its splits had too few candidates and were rejected, so the one before stayed; "
            "this is no learned split."
        ]
        * warned
    )


def test_reports_of_runs_that_logged_nothing_have_no_such_section(table: Table) -> None:
    assert "Logged" not in report.markdown(table, ABOUT)


def test_text_of_a_comparison_shows_nothing_by_itself_in_a_notebook(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *given: shown.append(given))
    assert "accuracy" in terminal.plain(table)
    assert not shown
