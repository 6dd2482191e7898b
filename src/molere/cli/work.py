"""The commands that train: one run, a comparison, and going on with either. torch is imported here, late."""

import json
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molere.cli.console import Console, Meter, finite, summary
from molere.cli.plan import Plan, check_folder, described, stored
from molere.config import dump_value
from molere.errors import ConfigError, MolereError
from molere.experiment import Experiment, resolved_yaml
from molere.paths import placed

if TYPE_CHECKING:
    from molere.jobs import Progress


def start(plan: Plan, console: Console, *, dry_run: bool, as_json: bool, command: str) -> int:
    """Say what will run, then run it; the exit code. The first line comes before torch is imported."""
    check_folder(plan.folder)
    if dry_run:
        console.result(json.dumps(described(plan), indent=2) if as_json else _words(plan))
        return 0
    e = plan.experiment
    count = f"{len(e.methods)} methods x {len(e.seeds)} seeds" if plan.command != "train" else e.labels[0]
    count += f" after {plan.trials} trials" if e.tune else ""
    console.say(f"{plan.command}: {count} on {e.data.name} ({e.scenario}) -> {plan.folder}")
    if plan.command == "train":
        return train(plan, console, as_json)
    return compare(plan, console, as_json, command)


def settings_file(plan: Plan) -> str:
    """All settings of the plan, as a settings file."""
    return resolved_yaml(plan.experiment).rstrip("\n")


def _words(plan: Plan) -> str:
    trials = f" after {plan.trials} trials" if plan.trials else ""
    lines = [f"would train {plan.runs} {'run' if plan.runs == 1 else 'runs'}{trials}; nothing is done"]
    return "\n".join(lines + [f"{k}: {v if isinstance(v, str) else dump_value(v)}" for k, v in described(plan).items()])


def train(plan: Plan, console: Console, as_json: bool) -> int:
    """One method on one seed; prints its metrics and its folder."""
    from molere.run import fit
    from molere.storage import RunFolder

    e, is_new = plan.experiment, not plan.folder.exists()
    with RunFolder(plan.folder) as folder:  # fails before the data are read
        if e.resume == "never" or not (plan.folder / "config.yaml").exists():
            heading = (f"Go on with: molere resume {plan.folder}",)
            kept = replace(e, out=str(plan.folder), data=replace(e.data, **placed(asdict(e.data))))
            folder.write_text("config.yaml", resolved_yaml(kept, heading=heading))
    with console.meter(1) as meter, _removed_if_refused(plan.folder, is_new):
        result = fit(
            e.labels[0],
            data=_load_arguments(e),
            model=e.model,
            recipe=e.train,
            seed=e.seeds[0],
            out=plan.folder,
            resume="never" if e.resume == "never" else "auto",
            track=e.track,
            force=e.force,
            observers=(lambda event: _observe(meter, event),),
        ).as_dict()
    if as_json:
        console.result(json.dumps(finite({**result, "folder": str(plan.folder)})))
    else:
        page = plan.folder / "report.html"
        console.result(f"{summary(result)}\n{page if page.exists() else plan.folder}")
    return 0


@contextmanager
def _removed_if_refused(folder: Path, is_new: bool) -> Generator[None]:
    """A new folder goes again if nothing was begun in it, as where the data or the device are missing."""
    try:
        yield
    except MolereError:
        if is_new and not (folder / "run.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def compare(plan: Plan, console: Console, as_json: bool, command: str) -> int:
    """Methods x seeds; prints the table and the folder. The exit code is that of the first run that failed."""
    from molere.compare import compare as run

    e = plan.experiment
    with console.meter(plan.runs + plan.trials) as meter:
        comparison = run(
            e.labels,
            data=_load_arguments(e),
            model=e.model,
            recipe=e.train or None,
            seeds=e.seeds,
            out=plan.folder,
            jobs=e.jobs,
            resume=e.resume != "never",
            force=e.force,
            tune=e.tune,
            track=e.track,
            progress=lambda news: _progress(meter, news),
            command=command,
        )
    if as_json:
        console.result(json.dumps(finite({**json.loads(comparison.to_json()), "folder": str(plan.folder)})))
    elif sys.stdout.isatty():
        import rich

        rich.print(comparison)
    else:
        console.result(str(comparison))
    return comparison.exit_code


def resume(path: Path, console: Console, *, as_json: bool, jobs: str | None) -> int:
    """Go on with the run or the comparison in a folder, as it was started."""
    e = stored(path)
    if jobs is not None:
        if not (jobs == "auto" or (jobs.isdecimal() and int(jobs) > 0)):
            raise ConfigError(f"--jobs must be auto or a number of at least 1; got {jobs!r}.")
        e = replace(e, jobs="auto" if jobs == "auto" else int(jobs))
    command = "compare" if (path / "runs").is_dir() else "train"
    plan = Plan(command, e, path)
    return start(plan, console, dry_run=False, as_json=as_json, command=f"molere resume {path}")


def _load_arguments(e: Experiment) -> dict[str, Any]:
    return {k: v for k, v in {**asdict(e.data), "scenario": e.scenario}.items() if v is not None}


def _observe(meter: Meter, event: Mapping[str, Any]) -> None:
    fraction = event.get("fraction") or 0.0
    meter.update(0, "running", float(fraction), event.get("metrics") or {}, str(event.get("label", "")))


def _progress(meter: Meter, news: "Progress") -> None:
    job = news.job
    what = f"seed {job.seed}" if job.trial is None else f"trial {job.trial}"
    meter.update((job.label, job.seed, job.trial), news.state, news.fraction, news.metrics, f"{job.label} {what}")
