"""Rows run: each is a comparison in a folder of its own, gone on with where it stopped; then its page is written."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast  # Any: the arguments of load

from molere import registry
from molere.compare import compare
from molere.comparison import Comparison
from molere.data.sources import load
from molere.jobs import Progress
from molere.report import finite
from molere.reproduce import figures
from molere.reproduce.margins import Margins
from molere.reproduce.page import Page, as_dict, markdown, page
from molere.reproduce.resolve import Planned, Seen, with_data
from molere.storage import files


def run_row(
    plan: Planned,
    out: Path,
    *,
    jobs: int | Literal["auto"],
    resume: bool,
    command: str,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Page, Comparison]:
    """Train what is missing, and write the page: OUT/ROW (the comparison), OUT/ROW.md, OUT/ROW.json, its figure."""
    e, folder = plan.experiment, out / plan.folder
    comparison = compare(
        list(plan.columns.values()),
        data=load_arguments(plan),
        model=e.model,
        recipe=e.train or None,
        seeds=e.seeds,
        out=folder,
        jobs=jobs,
        resume=resume,
        tune=e.tune,
        progress=progress,
        command=command,
    )
    made = _page(with_data(plan, seen(plan)), comparison, folder, command)
    write(made, out)
    return made, comparison


def load_arguments(plan: Planned) -> dict[str, Any]:
    """What `load` is given for this row."""
    e = plan.experiment
    return {k: v for k, v in {**asdict(e.data), "scenario": e.scenario}.items() if v is not None}


def seen(plan: Planned) -> Seen:
    """Sizes of the row's data, and what is said while they are read."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        data = load(**load_arguments(plan))
    sizes = data.train.y.bincount()
    apart = 0 if data.select is None else len(data.select)
    words = dict.fromkeys(str(w.message) for w in told if issubclass(w.category, UserWarning))
    return Seen(len(data.train) + apart, int(sizes.max()), int(sizes[sizes > 0].min()), tuple(words))


def _page(plan: Planned, comparison: Comparison, folder: Path, command: str) -> Page:
    about = {
        "Command": f"`{command}`",
        "Date": comparison.about.date,
        "Machine": comparison.about.machine,
        "All metrics, costs and failed runs": f"{folder.name}/table.md",
        "Missing runs": "; ".join(f"{m.label}, seed {m.seed}: {m.reason}" for m in comparison.table.missing),
    }
    picture = folder.parent / f"{folder.name}.png"
    if plan.preset.kind != "margins":
        made = page(plan, comparison.results, about)
        return replace(made, extra=figures.pictures(made, picture))
    margins = _margins(plan, folder)
    judged, changes = figures.judged(plan, margins), figures.changes(plan, margins)
    made = page(plan, comparison.results, about, margins=judged, changes=changes)
    return replace(made, extra=(*figures.margins(plan, margins), *figures.pictures(made, picture)))


def _margins(plan: Planned, folder: Path) -> Margins:
    from molere.reproduce.measure import Classifier, measured  # here: it needs torch

    e = plan.experiment
    model = registry.paper_model(e.data.name) if e.model == "paper" else e.model or plan.row.model
    dropout = float(cast(float, e.train.get("dropout", 0.0)))
    return measured(folder, plan.columns, e.seeds, load_arguments(plan), Classifier(model, dropout))


def write(made: Page, out: Path) -> None:
    """OUT/ROW.md and OUT/ROW.json."""
    name = made.plan.folder
    files.write_bytes(out / f"{name}.md", markdown(made).encode())
    files.write_bytes(out / f"{name}.json", as_json(made).encode())


def as_json(made: Page) -> str:
    """The page as JSON, null where there is no number."""
    return json.dumps(finite(as_dict(made)), indent=1, allow_nan=False) + "\n"


def together(pages: Sequence[Page]) -> str:
    """Several pages as one text."""
    return "\n".join(markdown(p) for p in pages)
