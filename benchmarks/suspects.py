"""How well lists of suspects find labels that are known to be wrong: one Markdown table.

    python benchmarks/suspects.py --root DATA [--limit 10000] [--epochs 6] [--seeds 3] [--out docs/results/suspects.md]

Fashion-MNIST with three tenths of the labels wrong by instance (Xia et al. 2020), a small CNN. For each seed a run of
each method with `train.crossfit=5`; all scores of a seed are of the same out-of-fold probabilities:

    suspect score        ranks of margins, weight and train_probability (molere.suspects)
    its parts            each signal alone, and the score without the classifier's own margin
    confident learning   of the package cleanlab if it is installed, and our restatement of the paper
    out-of-fold loss     plain cross-entropy

Average precision, and precision at the true number of wrong labels; mean and standard deviation over the seeds, and the
difference to the suspect score, paired by seed. Test data play no part: a few are predicted to end the run.
"""

import argparse
import datetime
import importlib.util
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timing import load_average

from molere import fit
from molere.data.pool import Data, TensorPool
from molere.data.sources import load
from molere.ledger import machine
from molere.result import Result
from molere.statistics import mean_interval
from molere.storage import ContentCache, environment
from molere.suspects import (
    average_precision,
    confident_learning,
    forgotten,
    low_ranks,
    precision_at,
    signals,
    suspect_score,
)

Column = npt.NDArray[Any]
METHODS = ("erm", "lrwopt")
OURS = "suspect score"


def prepared(arguments: argparse.Namespace, seed: int) -> Data:
    """The data of a seed, with a few test images, and none to select by."""
    data = load(arguments.data, root=arguments.root, scenario="noise", limit=arguments.limit, seed=seed)
    test = data.tests["test"]
    assert isinstance(test, TensorPool), "images are held in tensors"
    return replace(data, select=None, tests={"test": test.subset(torch.arange(200))})


def scores(result: Result) -> dict[str, Column]:
    """Name -> a score of each example, high where its label is suspicious."""
    columns = {name: np.asarray(values) for name, values in result.samples.items()}
    table = result.out_of_fold
    p = np.stack([np.asarray(table[f"p{c}"]) for c in range(10)], axis=1).astype(np.float64)
    p /= p.sum(1, keepdims=True)
    y = columns["label"]
    without = {name: values for name, values in columns.items() if name != "margin"}
    found = {OURS: suspect_score(columns), "suspect score without the classifier's own margin": suspect_score(without)}
    found["out-of-fold margin"] = low_ranks(columns["out_of_fold_margin"])
    found |= {name: score for name, score in cleanlab(p, y).items()}
    found["confident learning, our restatement"] = confident_learning(p, y).score
    found["out-of-fold loss"] = columns["out_of_fold_loss"]
    found["margin of the finished classifier"] = low_ranks(columns["margin"])
    found["loss of the finished classifier"] = columns["loss"]
    found["forgetting events"] = forgotten(columns)
    for name in ("weight_mean", "train_probability"):
        if np.isfinite(columns[name]).any() and np.nanstd(columns[name]) > 1e-6:
            found[f"{name} alone"] = low_ranks(columns[name])
    return found


def cleanlab(p: npt.NDArray[np.float64], y: Column) -> dict[str, Column]:
    """Rankings by the package: those it would prune first, each part by its label quality score; {} without it."""
    if importlib.util.find_spec("cleanlab") is None:
        return {}
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    pruned = np.asarray(find_label_issues(y, p, n_jobs=1))
    found = dict[str, Column]()
    for way in ("self_confidence", "normalized_margin"):
        quality = np.asarray(get_label_quality_scores(y, p, method=way))
        found[f"confident learning, cleanlab, {way.replace('_', ' ')}"] = pruned * 2.0 + (1 - quality)
    return found


def measured(arguments: argparse.Namespace, method: str, data: Data, seed: int, cache: ContentCache) -> dict[str, Any]:
    """One run: quality of each score, the signals' coefficients, what it cost; the cache shares the cross-fit."""
    recipe = {"epochs": arguments.epochs, "crossfit": 5}
    result = fit(method, data=data, model=arguments.model, recipe=recipe, seed=seed, cache=cache)
    wrong = np.asarray(result.samples["clean_label"]) != np.asarray(result.samples["label"])
    found = scores(result)
    columns = {name: np.asarray(values) for name, values in result.samples.items()}
    return {
        "method": method,
        "seed": seed,
        "wrong": int(wrong.sum()),
        "examples": len(wrong),
        "model": result.settings["model"],
        "seconds": result.cost.seconds,
        "scout": result.cost.scout_seconds,
        "shares": {s.name: s.share for s in signals(columns)},
        "scores": {name: (average_precision(s, wrong), precision_at(s, wrong)) for name, s in found.items()},
    }


# ---- the page


def page(runs: Sequence[Mapping[str, Any]], arguments: argparse.Namespace, load: float) -> str:
    """Heading, how it was made, a table for each method."""
    one = runs[0]
    share = fmean(r["wrong"] / r["examples"] for r in runs)
    lines = [
        "# Finding wrong labels",
        "",
        f"{datetime.date.today()}; {machine(environment())}, one thread; load before {load:.2f}.",
        f"Command: `{command(arguments)}`",
        "",
        f"{arguments.data}, {one['examples']:,} images, {100 * share:.1f} % of the labels wrong by instance (what a",
        f"random list would find); {one['model']}, {arguments.epochs} epochs; out of fold by five models of half the",
        f"length. {len({r['seed'] for r in runs})} seeds, mean ± standard deviation, in percent; differences to the",
        "suspect score are paired by seed, ± half the 95 % interval (Student t).",
        "",
    ]
    for method in dict.fromkeys(r["method"] for r in runs):
        lines += section(method, [r for r in runs if r["method"] == method])
    return "\n".join(lines)


def section(method: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of one method, best first, and what its runs cost."""
    rows = {name: np.array([r["scores"][name] for r in runs]) * 100 for name in runs[0]["scores"]}
    order = sorted(rows, key=lambda name: -rows[name][:, 0].mean())
    lines = [
        f"## Weights and train_probability of `{method}`",
        "",
        "| score | average precision | difference | precision at the true number | difference |",
        "|---|---|---|---|---|",
    ]
    for name in order:
        cells = [f"{spread(rows[name][:, k])} | {difference(rows[name][:, k], rows[OURS][:, k])}" for k in (0, 1)]
        shown = f"**{name}**" if name == OURS else name
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    shares = {name: [r["shares"][name] for r in runs] for name in runs[0]["shares"]}
    parts = ", ".join(f"`{name}` {fmean(v):.2f}" for name, v in shares.items())
    seconds, scout = (spread(np.array([r[k] for r in runs]), 0) for k in ("seconds", "scout"))
    cost = f"Wall seconds: {seconds} for the run, {scout} more for the cross-fit; scoring takes less than one."
    return [*lines, "", f"Coefficients in the suspect score: {parts}.", cost, ""]


def spread(values: npt.NDArray[np.float64], digits: int = 1) -> str:
    """Mean ± standard deviation."""
    around = stdev(values.tolist()) if len(values) > 1 else float("nan")
    return f"{values.mean():.{digits}f} ± {around:.{digits}f}"


def difference(values: npt.NDArray[np.float64], ours: npt.NDArray[np.float64]) -> str:
    """Paired difference to the suspect score."""
    if np.array_equal(values, ours):
        return ""
    found = mean_interval((values - ours).tolist())
    return f"{found.mean:+.1f} ± {found.half_width:.1f}"


def all_runs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every method on every seed; those that are kept are not repeated."""
    runs = list[dict[str, Any]]()
    for seed in range(arguments.seeds):
        data, cache = prepared(arguments, seed), ContentCache(arguments.keep)
        for method in arguments.methods.split(","):
            name = f"{arguments.data}-{arguments.model}-{arguments.limit}-{arguments.epochs}-{method}-{seed}.json"
            kept = None if arguments.keep is None else arguments.keep / name
            if kept is not None and kept.exists():
                runs.append(json.loads(kept.read_text()))
                continue
            runs.append(measured(arguments, method, data, seed, cache))
            print(f"{method}, seed {seed}: {runs[-1]['scores'][OURS]}", file=sys.stderr)
            if kept is not None:
                kept.parent.mkdir(exist_ok=True)
                kept.write_text(json.dumps(runs[-1]))
    return runs


def command(arguments: argparse.Namespace) -> str:
    """What to type to measure this again."""
    said = {
        "limit": arguments.limit,
        "epochs": arguments.epochs,
        "seeds": arguments.seeds,
        "methods": arguments.methods,
    }
    said |= {} if arguments.model is None else {"model": arguments.model}
    options = [word for name, value in said.items() for word in (f"--{name}", str(value))]
    return shlex.join(["python", "benchmarks/suspects.py", "--data", arguments.data, "--root", "DATA", *options])


def main() -> None:
    """Run what was asked for; print the page, and write it down."""
    parser = argparse.ArgumentParser(description="How well lists of suspects find wrong labels.")
    parser.add_argument("--data", default="fashion-mnist", help="data set (default: fashion-mnist)")
    parser.add_argument("--root", metavar="PATH", help="folder that holds the data")
    parser.add_argument("--model", metavar="NAME", help="classifier; none: the one that suits the data")
    parser.add_argument("--limit", type=int, default=10_000, metavar="N", help="training images (default: 10000)")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="of each run (default: 6)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many (default: 3)")
    parser.add_argument("--methods", default=",".join(METHODS), help="whose weights are looked at")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file that the page is written to")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keeps finished runs, and goes on after them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = load_average()
    text = page(all_runs(arguments), arguments, load)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
