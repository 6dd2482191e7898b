"""Figures and reports: what they show is what was measured, one style, one file, nothing of it ever runs or loads."""

import json
import math
import re
import shutil
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

import stub_training
from molere import cli, fit
from molere.compare import compare
from molere.comparison import Comparison
from molere.data.sources import from_arrays
from molere.errors import DataError, StorageError
from molere.report import About
from molere.show import clouds, comparisonpage, curves, gains, page, runpage, style, things
from molere.show.compared import Compared
from molere.show.records import Record
from molere.show.reports import write_report
from molere.table import Table, tabulate

NASTY = '<script>alert("x")</script>.png'
QUOTED = """it's a "label" & <b>bold</b>"""


# ---- what a page holds, read by a parser of its own


class Reader(HTMLParser):
    """Elements with their attributes, text, and the cells of each table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def outside(text: str) -> list[str]:
    """Whatever a browser could be asked to fetch: addresses in attributes and in styles."""
    reader = Reader(text)
    links = ("src", "href", "xlink:href", "action", "data", "poster", "srcset")
    found = [a[k] for _, a in reader.elements for k in links if k in a]
    found += re.findall(r"url\(([^)]*)\)|@import ([^;]*)", text) and [
        u.strip("\"'") for u in re.findall(r"url\(([^)]*)\)", text)
    ]
    return [u for u in found if not u.startswith(("#", "data:"))]


# ---- made-up runs


def table(methods: tuple[str, ...] = ("erm", "molere", "lrw-hard"), seeds: int = 5) -> Table:
    results = [stub_training.result(m, s) for s in range(seeds) for m in methods]
    return tabulate(results, headline=("accuracy[rotated]",))


def history(epochs: int = 6) -> list[dict[str, Any]]:
    rows = list[dict[str, Any]]()
    for e in range(1, epochs + 1):
        row = {"epoch": float(e), "train_loss": 2.0 / e, "select_accuracy": 1 - 0.5 / e, "split_churn": 1 / e}
        row |= {name: q * e / 10 for name, q in zip(curves.QUANTILES, (0.1, 0.4, 1.0, 1.5, 3.0), strict=True)}
        rows.append({**row, "weight_flipped": 0.5, "weight_clean": 1.2, "validation_noise": None})
    return rows


def samples(n: int = 300, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    label, margin = rng.integers(0, 3, n), rng.uniform(-1, 1, n)
    return {
        "sample_id": np.arange(n),
        "label": label,
        "clean_label": np.where(rng.random(n) < 0.2, (label + 1) % 3, label),
        "prediction": np.where(margin > 0, label, (label + 1) % 3),
        "loss": -np.log((margin + 1.01) / 2.1),
        "margin": margin,
        "weight": np.where(rng.random(n) < 0.05, np.nan, rng.uniform(0, 2, n)),
        "weight_mean": rng.uniform(0, 2, n),
        "in_validation": rng.random(n) < 0.1,
        "times_in_validation": rng.integers(0, 4, n),
    }


def predictions(n: int = 200) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    margin, label = rng.uniform(-1, 1, n), rng.integers(0, 3, n)
    return {
        "test": np.full(n, "test"), "sample_id": np.arange(n), "label": label, "margin": margin,
        "prediction": np.where(margin > 0, label, (label + 1) % 3), "confidence": rng.uniform(0.34, 1, n),
    }  # fmt: skip


def record(n: int = 300, **more: Any) -> Record:
    result = stub_training.result("molere", 0) | {"stopped": "budget spent", "logged": {"effective_sample_size": 0.8}}
    found = {"history": history(), "samples": samples(n), "predictions": predictions()}
    return Record(result=result, **{**found, **more})


# ---- figures


def test_the_gain_that_is_drawn_is_the_paired_difference_in_points() -> None:
    t = table()
    picture = gains.gains(t, "accuracy[rotated]")
    cells = {c.label: c for c in t.column("accuracy[rotated]", "last") if c.paired}
    drawn = [
        float(line.get_xdata()[0]) for line in picture.figure.axes[0].lines if line.get_marker() in {"o", "s", "D"}
    ]
    assert drawn == pytest.approx([100 * c.paired.difference for c in cells.values() if c.paired])
    assert f"molere {drawn[0]:+.1f}" in picture.words


def test_a_loss_gains_by_falling() -> None:
    results = [stub_training.result(m, s) for s in range(3) for m in ("erm", "molere")]
    for r in results:
        r["last"] = r["best"] = {"nll": 0.5 if r["label"] == "erm" else 0.4 - 0.001 * r["seed"]}
    picture = gains.gains(tabulate(results, headline=("nll",)), "nll")
    assert "molere +0.1" in picture.words


def test_every_method_has_a_place_in_the_figure_of_its_cost() -> None:
    picture = gains.cost_against_gain(table(), "accuracy[rotated]")
    labels = {t.get_text() for t in picture.figure.axes[0].texts}
    assert labels == {"erm", "molere", "lrw-hard"}


def test_gains_by_data_have_a_row_for_each_data_set() -> None:
    picture = gains.gains_by_data({"digits": table(), "clothes": table(seeds=3)})
    rows = [label.get_text().split("\n")[0] for label in picture.figure.axes[0].get_yticklabels()]
    assert rows == ["digits", "clothes"]


def test_a_learning_curve_is_the_mean_over_seeds() -> None:
    low = [{"epoch": 1.0, "train_loss": 1.0}, {"epoch": 2.0, "train_loss": 0.5}]
    high = [{"epoch": 1.0, "train_loss": 3.0}, {"epoch": 2.0, "train_loss": math.nan}]
    picture = curves.learning({"erm": [low, high]}, "train_loss")
    assert picture is not None
    assert picture.figure.axes[0].lines[0].get_ydata().tolist() == [2.0, 0.5]


def test_the_calibration_error_told_is_that_of_the_metric() -> None:
    import torch

    from molere.evaluate import calibration_error

    p = predictions()
    picture = clouds.calibration({"erm": (p["confidence"], p["label"] == p["prediction"])})
    confidence, right = torch.as_tensor(p["confidence"]), torch.as_tensor(p["label"] == p["prediction"]).double()
    assert picture is not None
    assert f"erm {100 * calibration_error(confidence, right):.1f}" in picture.words


def test_the_margins_told_are_mean_and_median_of_the_differences() -> None:
    ours, theirs = np.array([0.5, 0.1, -0.2]), np.array([0.1, 0.0, 0.1])
    picture = clouds.margin_differences(ours, theirs, ("molere", "erm"))
    assert picture.words == "Mean +0.0667, median +0.1000."


def test_label_balance_counts_every_split() -> None:
    columns = {
        "label": np.array([0, 0, 1, 1]),
        "in_validation": np.array([True, False, False, False]),
        "times_in_validation": np.array([3, 0, 1, 0]),
    }
    picture = clouds.label_balance(columns)
    assert picture is not None
    drawn = {line.get_label(): line.get_ydata().tolist() for line in picture.figure.axes[0].lines}
    assert drawn["all validation parts"] == [75.0, 25.0]
    assert drawn["the last validation part"] == [100.0, 0.0]


def test_weights_of_a_single_epoch_are_drawn_too() -> None:
    row = {"epoch": 2.0} | {f"weight_p{q:02}": q / 50 for q in (5, 25, 50, 75, 95)}
    picture = curves.weights([row])
    assert picture is not None
    axes = picture.figure.axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1.75, 1.0], [2.25, 1.0]]
    widths = [np.ptp(c.get_paths()[0].vertices, axis=0).tolist() for c in axes.collections]
    assert widths == [pytest.approx([0.5, 1.8]), pytest.approx([0.5, 1.0])]


@pytest.mark.parametrize(
    "nothing",
    [
        lambda: curves.learning({"erm": [history()]}, "no such column"),
        lambda: curves.weights([{"epoch": 1.0, "train_loss": 1.0}]),
        lambda: curves.churn([{"epoch": 1.0}]),
        lambda: clouds.weight_against({"loss": np.ones(3), "weight": np.ones(3)}, "loss"),
        lambda: clouds.label_balance(
            {"label": np.zeros(3), "in_validation": np.zeros(3), "times_in_validation": np.zeros(3)}
        ),
        lambda: clouds.calibration({"erm": (np.zeros(0), np.zeros(0))}),
    ],
)
def test_where_there_is_nothing_to_draw_there_is_no_figure(nothing: Any) -> None:
    assert nothing() is None


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were() -> None:
    before = dict(matplotlib.rcParams)
    picture = gains.gains(table(), "accuracy[rotated]")
    picture.png()
    picture.svg()
    assert dict(matplotlib.rcParams) == before


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    files = [gains.gains(table(), "accuracy[rotated]").save(tmp_path / f"{i}.svg").read_bytes() for i in range(2)]
    assert files[0] == files[1]
    assert b"<text" in files[0]
    assert gains.groups(table()).save(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")  # type: ignore[union-attr]


def test_methods_are_told_apart_without_colours() -> None:
    found = style.looks([f"m{i}" for i in range(24)])
    assert len({(look.marker, str(look.dash)) for look in found.values()}) == 24
    assert len({look.colour for look in style.looks([f"m{i}" for i in range(8)]).values()}) == 8


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_the_words_of_the_page_have_the_contrast_that_wcag_asks_for() -> None:
    css = (page.TEMPLATES / "report.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css)[:2]]
    for theme in themes:
        for name in ("ink", "soft", "link", "better", "worse"):
            assert contrast(theme[name], theme["paper"]) >= 4.5
            assert contrast(theme[name], theme["wash"]) >= 4.5


# ---- the page


def test_names_of_files_labels_and_methods_stay_text() -> None:
    nasty = {**samples(3), "id": np.array([NASTY, "b", "c"]), "margin": np.array([-0.9, 0.5, 0.6])}
    shown = {"class_names": [QUOTED] * 4, "texts": {NASTY: f"text of {NASTY}"}}
    r = record(samples=nasty, shown=shown, history=[], predictions={})
    r = Record(**{**{f: getattr(r, f) for f in r.__dataclass_fields__}, "result": {**r.result, "label": NASTY}})
    text = page.html(runpage.page(r))
    reader = Reader(text)
    assert [a for a in reader.named("script")] == [{}]
    assert not reader.named("b") or all(not a for a in reader.named("b"))
    assert NASTY in reader.text
    assert QUOTED in reader.text
    assert "alert(" not in re.sub(r"&lt;script&gt;alert\(", "", text)


def test_a_comparison_with_names_like_code_stays_text() -> None:
    t = table(methods=("erm", NASTY, "x $a$ {y} $$"))
    text = page.html(comparisonpage.page(Compared(t, About(title=QUOTED, command=NASTY), [])))
    assert len(Reader(text).named("script")) == 1
    assert QUOTED in Reader(text).text


@pytest.fixture(scope="module")
def text_of_run() -> str:
    return page.html(runpage.page(record()))


def test_a_page_asks_for_nothing_and_forbids_it(text_of_run: str) -> None:
    assert outside(text_of_run) == []
    policy = next(a["content"] for a in Reader(text_of_run).named("meta") if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_reader_of_addresses_sees_them() -> None:
    assert outside('<img src="http://a/b"><style>x{background:url(c.png)}</style><a href="#d">') == [
        "http://a/b",
        "c.png",
    ]


def test_the_ids_of_a_page_are_unique_and_its_references_lead_somewhere(text_of_run: str) -> None:
    reader = Reader(text_of_run)
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:url\(#|href="#|aria-labelledby=")([^")]+)', text_of_run)
    assert set(wanted) <= set(ids)


def test_every_figure_and_image_is_told_in_words(text_of_run: str) -> None:
    reader = Reader(text_of_run)
    figures = reader.named("svg")
    assert len(figures) == len(reader.named("figure")) == 9
    assert all(f["role"] == "img" and len(f["aria-label"]) > 20 for f in figures)
    assert all(i["alt"] for i in reader.named("img"))


def test_the_verdict_comes_before_tables_and_figures(text_of_run: str) -> None:
    places = [text_of_run.index(part) for part in ('<h2 id="verdict-head"', "<table", "<svg")]
    assert places == sorted(places)


def test_the_table_of_a_comparison_shows_what_was_measured() -> None:
    t = table()
    reader = Reader(page.html(comparisonpage.page(Compared(t, About(title="t"), []))))
    rows = {row[0]: row for row in reader.tables[0][1:]}
    molere = next(c for c in t.column("accuracy[rotated]", "last") if c.label == "molere")
    assert molere.paired is not None
    assert rows["molere"][2].startswith(f"{100 * molere.paired.difference:+.2f}")
    assert list(rows) == ["erm", "molere", "lrw-hard"]


@pytest.mark.slow
def test_a_million_examples_make_a_small_page_in_time() -> None:
    begun = time.process_time()
    text = page.html(runpage.page(record(n=1_300_000)))
    assert len(text.encode()) < 10 * 2**20
    assert time.process_time() - begun < 120


def test_a_page_does_not_grow_with_the_examples() -> None:
    def size(n: int) -> int:
        columns = samples(n)
        figures = [clouds.weight_against(columns, "loss"), clouds.margins(columns["margin"], "examples")]
        section = page.Section("S", figures=[f for f in figures if f], lists=things.lists(columns, {}))
        return len(page.html(page.Page("Run", "t", ["v"], [section])))

    assert size(30_000) < 1.2 * size(1_000)


def test_the_lists_hold_the_smallest_margins_and_no_example_twice() -> None:
    columns = samples()
    found = things.chosen(columns)
    suspects = set(found["suspect"].tolist())
    rest = [m for i, m in enumerate(columns["margin"].tolist()) if i not in suspects]
    assert sorted(rest)[: things.MOST] == columns["margin"][found["hardest"]].tolist()
    assert not suspects & set(found["hardest"].tolist())
    assert len(suspects) == len(found["hardest"]) == things.MOST


def test_cards_of_suspects_show_what_their_list_goes_by() -> None:
    columns = samples()
    rng = np.random.default_rng(2)
    columns |= {"out_of_fold_margin": rng.uniform(-1, 1, 300), "out_of_fold_prediction": rng.integers(0, 3, 300)}
    suspects, hardest = things.lists(columns, {"class_names": ["cat", "dog", "owl"]})
    scores = [float(dict(e.further)["suspect score"]) for e in suspects.examples]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1
    for e in suspects.examples:
        assert dict(e.further)["out-of-fold margin"] == f"{columns['out_of_fold_margin'][int(e.id)]:.2f}"
        unseen = ("cat", "dog", "owl")[columns["out_of_fold_prediction"][int(e.id)]]
        assert dict(e.further)["out-of-fold prediction"] == unseen
    assert not any(e.further for e in hardest.examples)
    text = Reader(page.html(page.Page("Run", "t", ["v"], [page.Section("S", lists=[suspects, hardest])]))).text
    assert text.count("suspect score 0.") + text.count("suspect score 1.") == things.MOST
    assert "out-of-fold margin" in text


def test_cards_of_a_run_without_a_cross_fit_show_the_suspect_score_alone() -> None:
    suspects, _ = things.lists(samples(), {})
    assert {tuple(name for name, _ in e.further) for e in suspects.examples} == {("suspect score",)}
    assert "out of fold" not in suspects.words.lower()


def test_what_reproduces_a_run_is_on_its_page(text_of_run: str) -> None:
    assert "molere train --method molere --data digits --scenario hidden-group --seed 0" in Reader(text_of_run).text


# ---- reports of folders


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    data = from_arrays(*arrays(), texts=[f"text {i} {NASTY}" for i in range(90)], class_names=["a", QUOTED, "c"])
    folder = tmp_path_factory.mktemp("comparison") / "c"
    return compare(["erm", "molere"], data=data, recipe={"epochs": 2, "batch_size": 32}, seeds=2, out=folder)


def arrays() -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 6)).astype(np.float32), rng.integers(0, 3, 150)
    x[np.arange(150), y] += 2
    return x[:90], y[:90], x[90:], y[90:]


@pytest.mark.report
def test_a_comparison_of_texts_is_reported_with_its_texts(compared: Comparison) -> None:
    assert compared.folder is not None
    reader = Reader((compared.folder / "report.html").read_text("utf-8"))
    assert reader.named("blockquote")
    assert NASTY in reader.text
    assert len(reader.named("script")) == 1
    assert {p.suffix for p in (compared.folder / "figures").iterdir()} == {".png", ".svg"}


@pytest.mark.report
def test_a_run_of_a_comparison_has_a_report_of_its_own(compared: Comparison, tmp_path: Path) -> None:
    assert compared.folder is not None
    run = compared.folder / "runs" / "molere" / "seed-1"
    assert not (run / "report.html").exists()
    assert "Calibration" in write_report(run, tmp_path / "x.html").read_text("utf-8")


@pytest.mark.report
def test_comparisons_beside_each_other_and_claims_make_one_report(compared: Comparison, tmp_path: Path) -> None:
    assert compared.folder is not None
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.json").write_bytes((compared.folder / "table.json").read_bytes())
    assert "Gains by data set" in write_report(tmp_path).read_text("utf-8")
    (tmp_path / "one.json").write_text(json.dumps(said_of_a_row()))
    (tmp_path / "none.json").write_text(json.dumps({"row": "none", "metrics": {}, "claims": [], "title": "Nothing"}))
    reader = Reader(write_report(tmp_path).read_text("utf-8"))
    for words in ("Of 1 claims: 0 held, 1 reversed", QUOTED, "half the data", "none: no run has ended yet"):
        assert words in reader.text
    printed = next(t for t in reader.tables if t[0][0] == "column")
    assert printed[1] == ["OPT", "lrwopt", "71.50", "70.25", "0.50", "+1.20", "-2.00", "0.010"]


@pytest.mark.report
def test_a_reproduced_row_has_its_title_examples_settings_and_environment(compared: Comparison, tmp_path: Path) -> None:
    assert compared.folder is not None
    shutil.copytree(compared.folder, tmp_path / "one")
    (tmp_path / "one.json").write_text(json.dumps(said_of_a_row()))
    text = write_report(tmp_path).read_text("utf-8")
    reader = Reader(text)
    assert "<h1>Table 1, one</h1>" in text
    assert "Training examples as molere left them, seed 0" in reader.text
    lists = {h: text.split(f"<h3>{h}</h3>")[1].split("</ol>")[0] for h in ("Suspect labels", "Hardest of the others")}
    assert all(1 <= found.count("<blockquote>") <= things.MOST for found in lists.values())
    for title in ("Settings file", "What decides the result of erm, seed 0", "Environment", "Commands to reproduce"):
        assert f"<h3>{title}</h3>" in text
    assert json.loads(next((compared.folder / "runs" / "erm").glob("*/env.json")).read_text())["python"] in reader.text


def said_of_a_row() -> dict[str, Any]:
    """What a reproduction writes beside the comparison of a row."""
    ours = {"n": 2, "mean": 0.7025, "half_width": 0.005}
    pair = {"difference": -0.02, "p": 0.01}
    line = {
        "column": "OPT",
        "label": "lrwopt",
        "printed": 71.5,
        "printed_difference": 1.2,
        "ours": ours,
        "difference": pair,
    }
    claim = {
        "text": "OPT > ERM",
        "says": QUOTED,
        "verdict": "reversed",
        "steps": [{"step": "OPT > ERM", "verdict": "reversed"}],
    }
    about = {"Command": "`molere reproduce table1 --row one`"}
    row = {"preset": "table1", "row": "one", "title": "Table 1, one", "about": about, "deviations": ["half the data"]}
    return {**row, "metrics": {"accuracy": [line]}, "claims": [claim], "doubts": []}


@pytest.mark.report
def test_fit_writes_a_report_unless_told_otherwise(tmp_path: Path) -> None:
    data = from_arrays(*arrays())
    fit("erm", data=data, recipe={"epochs": 1}, out=tmp_path / "a")
    fit("erm", data=data, recipe={"epochs": 1}, out=tmp_path / "b", report=False)
    assert (tmp_path / "a" / "report.html").is_file()
    assert not (tmp_path / "b" / "report.html").exists()


@pytest.mark.report
def test_a_report_that_fails_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr("molere.show.reports.write_report", broken)
    result = fit("erm", data=from_arrays(*arrays()), recipe={"epochs": 1}, out=tmp_path / "run")
    assert result.updates > 0
    assert (tmp_path / "run" / "DONE").exists()
    assert "no ink" in (tmp_path / "run" / "log.jsonl").read_text()
    assert "no report was written" in caplog.text


def test_a_folder_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no finished run and no comparison"):
        write_report(tmp_path)


# ---- notebooks


def test_results_show_themselves_in_notebooks(compared: Comparison) -> None:
    html = compared._repr_html_()
    assert html.count("<table>") >= 3
    assert 'src="data:image/png;base64,' in html
    assert repr(compared.plot.gains()).startswith("Gain in accuracy over erm")
    assert compared.plot.learning()._repr_png_().startswith(b"\x89PNG")


def test_every_figure_of_a_run_is_there_by_name() -> None:
    data = from_arrays(*arrays())
    erm, molere = (fit(m, data=data, recipe={"epochs": 2, "batch_size": 32}) for m in ("erm", "molere"))
    plot = molere.plot
    drawn = [
        plot.margins(),
        plot.margins(erm),
        plot.margin_bins(erm),
        plot.calibration(),
        plot.weights(),
        plot.learning(),
    ]
    assert len({picture.name for picture in drawn}) == 6
    assert "molere minus erm" in plot.margin_bins(erm).caption
    with pytest.raises(DataError, match="nothing to draw: molere learns no split"):
        plot.churn()
    assert "<table>" in molere._repr_html_()
    assert "<script" not in molere._repr_html_()


# ---- the command


def said(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["molere", *arguments])
    capsys.readouterr()
    code = cli.main()
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.report
def test_the_command_writes_a_report_of_a_comparison_that_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("erm", "molere"):
        run = tmp_path / "runs" / method / "seed-0"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(stub_training.result(method, 0)))
    page_file = tmp_path / "report.html"
    assert said(["report", str(tmp_path)], monkeypatch, capsys) == (0, f"{page_file}\n", "")
    assert "not finished" in Reader(page_file.read_text("utf-8")).text


def test_the_command_says_in_a_line_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("molere.show.reports.write_report", write_report)
    code, out, err = said(["report", str(tmp_path)], monkeypatch, capsys)
    assert (code, out) == (4, "")
    assert (
        err == f"error: {tmp_path} holds no finished run and no comparison; give a folder that train or compare wrote\n"
    )
