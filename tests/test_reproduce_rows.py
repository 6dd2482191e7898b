"""`molere reproduce`: listings, plans on data as they lie on disk, short real runs that go on where they stopped."""

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import named_folders as folders
from commands import Command
from molere.data import sources
from molere.data.pool import Batch, Data
from molere.method import Run
from molere.reproduce.presets import ORDERED, preset
from molere.reproduce.resolve import Asked, resolve
from molere.reproduce.rows import load_arguments, seen
from reliability import Row

SMALL = [
    "--seeds",
    "2",
    "--jobs",
    "1",
    "--no-progress",
    "--quiet",
    "train.batch_size=8",
    "--epochs",
    "1",
    "--limit",
    "40",
]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all data sets of the presets, in the layouts of their makers."""
    root = tmp_path_factory.mktemp("data")
    folders.cifar10(root)
    folders.cifar100(root)
    some = folders.wnids("imagenet1k")[:2]
    folders.imagenet(root, some, each=1)
    for name in ("imagenet-100", "imagenet_100"):
        (root / name).mkdir()
    for part in ("train", "val"):
        folders.renditions(root / "imagenet-100" / part, folders.wnids("imagenet100")[:2], each=1)
    for name in ("imagenet_a", "imagenet_r"):
        folders.renditions(root / name.replace("_", "-"), folders.wnids(name)[:2])
    for make in (folders.aircraft, folders.cars, folders.pet, folders.clothing1m, folders.camelyon, folders.iwildcam):
        make(root)
    folders.retinopathy(root)
    fashion(root)
    return root


def fashion(root: Path) -> None:
    """Fashion-MNIST of 120 training and 40 test images."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for seed, (name, n) in enumerate((("train", 120), ("t10k", 40))):
        random = np.random.default_rng(seed)
        folders.idx(raw / f"{name}-images-idx3-ubyte", random.integers(0, 256, (n, 28, 28), np.uint8))
        folders.idx(raw / f"{name}-labels-idx1-ubyte", (np.arange(n) % 10).astype(np.uint8))


@pytest.mark.parametrize("name", ORDERED)
def test_every_row_of_a_preset_dry_runs_on_data_in_the_layout_of_their_makers(
    molere: Command, everything: Path, name: str
) -> None:
    said = molere("reproduce", name, "--row", "all", "--data-root", str(everything), "--dry-run", "--json")
    rows = json.loads(said.out)["rows"]
    assert (said.code, said.err) == (0, "")
    assert [row["row"] for row in rows] == list(preset(name).rows)
    assert [row["lacking"] for row in rows] == [""] * len(rows)


READ = {(str(row.data), row.metric): (name, key) for name in ORDERED for key, row in preset(name).rows.items()}


@pytest.mark.parametrize(("name", "key"), READ.values())
def test_the_data_of_a_row_have_the_test_set_that_its_metric_is_of(everything: Path, name: str, key: str) -> None:
    plan = resolve(preset(name), key, Asked(root=str(everything)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(lacks|official file)")  # two classes of a thousand, noise as images
        data = sources.load(**{**load_arguments(plan), "limit": None, "seed": 0})
    wanted = plan.row.metric.rpartition("/")[0]
    assert wanted in {"", *data.tests}
    assert data.select is None
    validates = getattr(data.train, "validation", None) is not None
    assert validates == any("holdout=given" in method for method in plan.row.columns.values())


def test_the_listing_says_which_data_are_there(molere: Command, tmp_path: Path) -> None:
    fashion(tmp_path)
    rows = json.loads(molere("reproduce", "--list", "--data-root", str(tmp_path), "--json").out)["rows"]
    assert {row["data"] for row in rows if row["found"]} == {"fashion-mnist"}
    said = molere("reproduce", "--list").out
    assert "--row inst-fashion-mnist" in said
    assert "Give --data-root PATH" in said


def test_a_plan_in_words_names_columns_claims_and_deviations(molere: Command, tmp_path: Path) -> None:
    said = molere(
        "reproduce", "table5", "--row", "cifar100", "--scale", "0.1", "--data-root", str(tmp_path), "--dry-run"
    )
    for words in ("at scale 0.1 (5,000 of 50,000", "would train 42 runs", "missing: cifar100", "Hard: lrw-hard@paper",
                  "claim: Easy < Random < Hard", "deviation: train.epochs is 10, in the preset 100."):  # fmt: skip
        assert words in said.out
    assert not list(tmp_path.iterdir())


def test_data_that_are_not_there_end_the_command_with_the_way_to_get_them(molere: Command, tmp_path: Path) -> None:
    said = molere("reproduce", "table5", "--row", "aircraft", "--data-root", str(tmp_path))
    assert said.code == 3
    assert "error: aircraft: there is no folder" in said.err
    assert "molere data get aircraft" in said.err
    said = molere("reproduce", "table5", "--row", "aircraft")
    assert "pass --data-root PATH" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("table9", "nothing to reproduce is called 'table9'"),
        ("table5 --row cifer100", "did you mean 'cifar100'"),
        ("table5 --scale 2", "scale must be a float in"),
        ("table5 out=x", "out: a preset takes settings of data, model, train"),
        ("table5 train.lrr=1", "train.lrr: unknown key; did you mean train.lr?"),
        ("theorem1 --scale 0.1", "--scale: theorem1 takes no such thing"),
        ("cost --methods erm,no", "unknown method 'no'"),
    ],
)
def test_mistakes_are_one_line_each(molere: Command, arguments: str, words: str) -> None:
    said = molere("reproduce", *arguments.split(), "--dry-run")
    assert said.code == 2
    assert words in said.err


@pytest.mark.report
def test_a_row_runs_and_goes_on_and_says_printed_and_ours(molere: Command, tmp_path: Path) -> None:
    fashion(tmp_path)
    call = [
        "reproduce",
        "figure1",
        "--row",
        "fashion-mnist",
        "--data-root",
        str(tmp_path),
        "--out",
        "out",
        "--model",
        "mlp",
    ]
    call += [*SMALL, "--methods", "Random,OPT,erm"]
    said = molere(*call)
    assert (said.code, said.err) == (0, "")
    assert "at a smaller size (40 of 60,000 training examples, 1 of 100 epochs), mlp for cnn, 2 seeds" in said.out
    assert "| Random > ERM (modest gains even with random validation examples) |" in said.out
    page = next(Path("out").glob("*.md"))
    assert page.with_suffix(".png").exists()
    assert f"]({page.stem}.png)" in page.read_text("utf-8")
    assert page.with_suffix(".svg").read_text("utf-8").startswith("<?xml")
    assert f"To look at: {Path('out') / 'report.html'}" in said.out
    assert "Random &gt; ERM" in Path("out/report.html").read_text("utf-8")
    assert json.loads(page.with_suffix(".json").read_text())["preset"] == "figure1"
    done = sorted(Path("out").rglob("DONE"))
    before = [p.stat().st_mtime_ns for p in done]
    again = json.loads(molere(*call, "--json").out)
    assert [p.stat().st_mtime_ns for p in done] == before
    assert len(done) == 8
    assert again["pages"][0]["metrics"]["accuracy"][0]["ours"]["n"] == 2


def test_the_sizes_of_a_page_are_those_of_the_data_and_what_was_said_of_them_stays(tmp_path: Path) -> None:
    fashion(tmp_path)
    found = seen(resolve(preset("figure1"), "fashion-mnist", Asked(root=str(tmp_path))))
    assert (found.examples, found.largest, found.smallest) == (120, 12, 12)


def test_warnings_while_data_are_read_stay_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(**given: Any) -> Data:
        warnings.warn("x is not the official file", stacklevel=1)
        return sources.load(**given)

    fashion(tmp_path)
    monkeypatch.setattr("molere.reproduce.rows.load", noisy)
    assert (
        "x is not the official file"
        in seen(resolve(preset("figure1"), "fashion-mnist", Asked(root=str(tmp_path)))).warnings
    )


def test_a_figure_of_margins_runs_from_the_classifiers_that_were_kept(molere: Command, tmp_path: Path) -> None:
    fashion(tmp_path)
    call = ["reproduce", "figure3", "--row", "fashion-mnist", "--data-root", str(tmp_path), "--out", "out"]
    said = molere(*call, *SMALL, "--model", "linear", "--methods", "Random,erm")
    assert (said.code, said.err) == (0, "")
    assert "## Margins" in said.out
    assert "| Random |" in said.out.split("## Margins")[1]
    kept = sorted(p.name for p in Path("out").rglob("*.npy"))
    assert len(kept) == 6
    margins = np.load(next(Path("out").rglob("erm-seed-0.npy")))
    last = json.loads(next(Path("out").rglob("erm/seed-0/result.json")).read_text())["last"]
    assert len(margins) == 40
    assert (margins > 0).mean() == pytest.approx(last["accuracy"])
    assert margins.mean() == pytest.approx(last["margin"], abs=1e-6)


@pytest.mark.faults
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs signals of POSIX")
@pytest.mark.parametrize("at", [3, 9])
def test_a_reproduction_goes_on_where_it_was_interrupted(
    at: int, molere: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    fashion(tmp_path)
    call = ["reproduce", "figure3", "--row", "fashion-mnist", "--data-root", str(tmp_path), *SMALL, "--model", "linear"]
    call += ["--methods", "erm"]
    assert molere(*call, "--out", "whole").code == 0
    begun, batch = list[int](), Run.train_batch

    def interrupted(run: Run) -> Batch:
        begun.append(run.updates)
        if len(begun) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(run)

    monkeypatch.setattr(Run, "train_batch", interrupted)
    said = molere(*call, "--out", "cut")
    assert (said.code, said.err) == (143, "interrupted; go on with the same command\n")
    again = molere(*call, "--out", "cut")
    whole, cut = (sorted(Path(out).rglob("model.safetensors")) for out in ("whole", "cut"))
    same = len(whole) > 1 and [p.read_bytes() for p in whole] == [p.read_bytes() for p in cut]
    updates = [json.loads(p.with_name("result.json").read_text())["updates"] for p in whole]
    row("P7", int(again.code == 0 and same and len(begun) == sum(updates)), 1, [again, begun, updates])


def test_cost_counts_operations_and_times_of_each_method(molere: Command) -> None:
    call = ["reproduce", "cost", "--methods", "erm,erm-part,lrwopt@paper,mwn[q=1]", "--seeds", "1", "--out", "out"]
    said = molere(*call, "--model", "linear", "--epochs", "4", "--limit", "100", "--json", "train.batch_size=20")
    assert said.code == 0
    numbers = json.loads(said.out)
    flops = {s["method"]: s["flops"] for s in numbers["spent"]}
    assert flops["lrwopt@paper"] > flops["erm"] == flops["erm-part"] > 0
    peaks = {s["method"]: s["peak_mib"] for s in numbers["spent"]}
    assert peaks["lrwopt@paper"] > 1.1 * peaks["erm"] > 0
    assert peaks["erm-part"] == pytest.approx(peaks["erm"], rel=0.1)  # whatever ran before
    page = Path("out/cost.md").read_text()
    assert "| `erm` | 1.00 | – | 1.00 |" in page
    assert "erm takes less than lrwopt@paper: time **" in page


def test_a_scale_of_nothing_is_refused(molere: Command, tmp_path: Path) -> None:
    said = molere("reproduce", "table5", "--row", "cifar100", "--scale", "0", "--data-root", str(tmp_path), "--dry-run")
    assert said.code == 2
    assert "scale must be a float in (0, 1]" in said.err
