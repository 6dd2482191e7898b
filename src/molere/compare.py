"""compare: methods x seeds on the same data and budget, and the table of their paired differences.

The methods of one seed share data, initial weights and batches. Interrupted comparisons go on where they
stopped, runs that fail are listed and do not stop the others.
"""

import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from molere import registry, search, tuning
from molere import settings as of_methods
from molere.errors import ConfigError, StorageError
from molere.fields import refuse
from molere.jobs import Failure, Job, Outcome, Plan, Progress, imported, run_here
from molere.ledger import Ledger, machine
from molere.meter import Meter
from molere.request import Request, call, cores, request, side_by_side
from molere.show import trackers
from molere.tuning import Chosen

if TYPE_CHECKING:
    import molere.report
    import molere.table
    from molere.show.plots import OfComparison

PARTS: Mapping[str, str] = {}
"""Stand-ins for what a Plan names, for tests."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found. Printing it shows the table; notebooks show it as HTML.

    results: the stored dictionary of each run that has ended well. failures: why the others have not. tuning: what was
    chosen for each method, if they were tuned.
    """

    results: list[dict[str, Any]]
    table: "molere.table.Table"
    about: "molere.report.About"
    folder: Path | None
    failures: Mapping[tuple[str, int], Failure]
    tuning: tuple[Chosen, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or that of the first failure."""
        return next((f.exit_code for f in self.failures.values()), 0)

    def to_markdown(self) -> str:
        """The report: verdict, tables, costs, and how they were made."""
        from molere import report

        return report.markdown(self.table, self.about)

    def to_csv(self) -> str:
        """One row for each method, metric and selection."""
        from molere import report

        return report.as_csv(self.table)

    def to_json(self) -> str:
        """Everything, the results of the single runs included."""
        from molere import report

        return report.as_json(self.table, self.about, self.results)

    def screen(self) -> Any:  # a rich renderable
        """The table for a terminal: `rich.print(comparison.screen())`."""
        from molere.terminal import Screen

        return Screen(self.table, title=self.about.title, closing=self._closing())

    def __rich__(self) -> Any:  # as above
        return self.screen()

    def __str__(self) -> str:
        from molere.terminal import plain

        return plain(self.table, title=self.about.title, closing=self._closing())

    def _repr_html_(self) -> str:
        from molere import report

        pictures = [self.plot.gains(metric) for metric in self.table.headline] if self.table.tested else []
        return report.html(self.table, self.about) + "".join(p.html() for p in pictures)

    @property
    def plot(self) -> "OfComparison":
        """Figures by name: `comparison.plot.gains()`."""
        from molere.show.plots import OfComparison

        return OfComparison(self)

    def _closing(self) -> list[str]:
        tuned = [f"Tuned, {c.trials} trials: {c.label} {c.words}" for c in self.tuning]
        report = self.folder and self.folder / "report.html"
        shown = [f"To look at: {report}"] if report and report.exists() else []
        return tuned + ([f"Written to {self.folder}", *shown] if self.folder else [])


def compare(
    methods: Sequence[Any] | Literal["all"],  # Any: names or objects, see Args; types of objects would need torch here
    *,
    data: Any = "digits",
    model: Any = None,
    recipe: Any = None,
    seeds: int | Sequence[int] = 5,
    out: str | Path | None = None,
    jobs: int | Literal["auto"] = 1,
    resume: bool = True,
    force: bool = False,
    tune: int = 0,
    track: Sequence[Any] = (),
    progress: bool | Callable[[Progress], None] | None = None,
    command: str | None = None,
    preset: str = "default",
    settings: Mapping[str, Any] | None = None,
    logits: Callable[[Any], Any] | None = None,
) -> Comparison:
    """Train each method on each seed and compare them with ERM, seed by seed.

    Args: methods: names such as `lrw-hard@paper[keep=true]`, mappings of a spec's fields, or Methods; or "all". data:
    a name, a mapping of arguments of `load`, or a Data. Named data are split anew for each seed. model: a
    name, a factory or a module; none: the data's own default. recipe: a Recipe, or settings over the data's
    own defaults; the same for every method. seeds: the seeds, or how many (5: 0 to 4). out: folder of the
    comparison, its runs and tables; none: nothing is kept. jobs: runs side by side in processes of their own
    (then everything above must be names and settings); auto: as many as there are cores, one at a time on a
    GPU. resume: go on where a comparison in `out` stopped; its methods and seeds may be added to. False:
    start anew. force: go on although settings differ from those in `out`; runs that have ended keep the old ones,
    and the table mixes both. tune: trials of a random search for each method before the comparison, on the data of
    the first seed and judged on selection data; 0: none. track: trackers to be told of each run, by name
    (tensorboard, wandb, mlflow), or objects. progress: True shows how far it is on standard error; or a function,
    called with news of each run in this process. command: what the report names as the way to make it again; none:
    this call. preset: of all methods named without one. settings: of all named methods that have them.
    logits: where the logits are in what a module of yours returns, if it returns more.

    Returns:
        The comparison, failed runs among it.

    Raises: ConfigError, DataError: before any training. StorageError: `out` is in use, not writable, or
    holds another comparison. If no run at all ended well: the error of the first.
    """
    if logits is not None:
        from molere.adapters import reading

        model = reading(model, logits)
    if progress is True:
        with Meter(0, shows=True, bars=sys.stderr.isatty()) as meter:
            told = partial(_tell, meter)
            return compare(
                methods, data=data, model=model, recipe=recipe, seeds=seeds, out=out, jobs=jobs, resume=resume,
                tune=tune, progress=told, command=command, preset=preset, settings=settings,
            )  # fmt: skip
    asked = request(_written(methods, preset, settings), data, model, recipe, seeds, tune)
    search.check(asked.methods, data, recipe, tune)
    count = side_by_side(jobs, asked)
    trackers.check(track)
    if count > 1 and not all(isinstance(tracker, str) for tracker in track):
        raise ConfigError(f"jobs={count} needs trackers by name; use jobs=1 for objects")
    with ExitStack() as stack:
        ledger = None if out is None else stack.enter_context(Ledger(Path(out)))
        if ledger is not None:
            ledger.agree(asked.config(), resume=resume, force=force)
            cache = ledger.cache
        else:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory())) if count > 1 else None
        plan = Plan(data, model, recipe, cache, resume, force, track=tuple(track), **PARTS)
        tally = _Tally(asked, ledger, progress or None)

        def run(jobs: Sequence[Job], take: Callable[[Progress | Outcome], None]) -> None:
            _run(jobs, plan, take, count)

        try:
            tally.enter(tuning.tune(asked, ledger, run, tally.tell, resume=resume), resume)
            run(tally.waiting, tally.take)
        except BaseException as error:
            tally.stop(error)
            raise
        return tally.close(command or call(asked, jobs), count, plan.report)


def _written(methods: Any, preset: str, given: Mapping[str, Any] | None) -> Any:
    """The methods, preset and settings written into those that are named."""
    methods = list(registry.METHODS) if methods == "all" else methods
    if isinstance(methods, str) or (preset == "default" and not given):
        return methods
    named = [m for m in methods if isinstance(m, str)]
    refuse(of_methods.nobodys([of_methods.MethodSpec.parse(m) for m in named], given or {}))
    return [of_methods.written(m, preset, given) if isinstance(m, str) else m for m in methods]


def _tell(meter: Meter, news: Progress) -> None:
    """News of a run, drawn; runs are counted as they are heard of."""
    key = (news.job.label, news.job.seed, news.job.trial)
    meter.total = max(meter.total, len({*meter.fractions, key}))
    meter.update(key, news.state, news.fraction, news.metrics, f"{news.job.label}, seed {news.job.seed}")


class _Tally:
    """What is known of each job while a comparison runs."""

    def __init__(self, asked: Request, ledger: Ledger | None, progress: Callable[[Progress], None] | None) -> None:
        self.asked, self.labels, self.seeds = asked, tuple(asked.methods), asked.seeds
        self.ledger, self.progress = ledger, progress
        self.results: dict[tuple[str, int], dict[str, Any]] = {}
        self.failures: dict[tuple[str, int], Failure] = {}
        self.waiting: list[Job] = []
        self.tuning: tuple[Chosen, ...] = ()
        self.headline: Sequence[str] | None = (ledger.status() if ledger else {}).get("headline")
        self._note("running")

    def enter(self, chosen: Mapping[str, Chosen | Failure], resume: bool) -> None:
        """All runs, those of tuned methods with what was chosen; a method whose trials all failed has failed."""
        self.tuning = tuple(c for c in chosen.values() if isinstance(c, Chosen))
        for seed in self.seeds:
            for label, method in self.asked.methods.items():
                found, folder = chosen.get(label), self.ledger.run_folder(label, seed) if self.ledger else None
                if isinstance(found, Failure):
                    self.take(Outcome(Job(label, method, seed, folder), failure=found))
                else:
                    self._enter(_job(Job(label, method, seed, folder), found), resume)

    def _enter(self, job: Job, resume: bool) -> None:
        kept = self.ledger.finished(job) if self.ledger and resume else None
        if kept is None:
            self.waiting.append(job)
        else:
            self.results[job.label, job.seed] = kept if job.tuned is None else {**kept, "tuned": dict(job.tuned)}
            self.tell(Progress(job, "kept", 1.0, kept.get("last") or {}))

    def take(self, news: Progress | Outcome) -> None:
        """Take in what a job says."""
        if isinstance(news, Progress):
            self.tell(news)
            return
        key = (news.job.label, news.job.seed)
        if news.result is not None:
            self.results[key] = news.result
            self.headline = news.result.get("headline") or self.headline
            self.tell(Progress(news.job, "done", 1.0, news.result.get("last") or {}))
        elif news.failure is not None:
            self.failures[key] = news.failure
            self.tell(Progress(news.job, "failed", 1.0))
        self._note("running")

    def stop(self, error: BaseException) -> None:
        """The comparison ends here: say why in the folder."""
        interrupted = isinstance(error, KeyboardInterrupt)
        code = getattr(error, "exit_code", 130 if interrupted else 1)
        with suppress(StorageError):  # a full disk, most likely: the error that counts is on its way
            self._note("interrupted" if interrupted else "failed", code, error=None if interrupted else str(error))

    def close(self, command: str, count: int, report: str) -> Comparison:
        """The table of all that is there, written to the folder, with a report; raises the first failure if none is."""
        if not self.results and self.failures:
            failure = next(iter(self.failures.values()))
            self._note("failed", failure.exit_code, error=failure.message)
            failure.throw()
        comparison = self._comparison(command, count)
        if self.ledger is not None:
            self.ledger.write("table.md", comparison.to_markdown())
            self.ledger.write("table.csv", comparison.to_csv())
            self.ledger.write("table.json", comparison.to_json())
            self._report(report, self.ledger.path)
        self._note("failed" if self.failures else "done", comparison.exit_code)
        return comparison

    def _report(self, report: str, folder: Path) -> None:
        try:
            imported(report)(folder)
        except Exception as error:  # the results are worth more than their pictures
            logging.getLogger("molere").warning("no report was written to %s: %s", folder, error)

    def _comparison(self, command: str, count: int) -> Comparison:
        from molere.report import About  # here: scipy takes longer to load than all that is above
        from molere.table import tabulate

        results = [r for label in self.labels for seed in self.seeds if (r := self.results.get((label, seed)))]
        table = tabulate(
            results,
            labels=self.labels,
            seeds=self.seeds,
            headline=self.headline,
            failures={key: failure.message for key, failure in self.failures.items()},
        )
        about = About(
            title=_title(results[0], len(self.seeds)),
            command=command,
            date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
            machine="; ".join(self._machines()),
            jobs=count,
            tuning=self.tuning,
        )
        folder = self.ledger.path if self.ledger else None
        return Comparison(results, table, about, folder, self.failures, self.tuning)

    def _machines(self) -> list[str]:
        if self.ledger is not None:
            return self.ledger.machines(self.results)
        import torch  # which has trained by now

        from molere.storage import environment

        return [machine(environment("cuda" if torch.cuda.is_initialized() else "cpu"))]

    def tell(self, news: Progress) -> None:
        """Pass news on to whoever wants them."""
        if self.progress is not None:
            self.progress(news)

    def _note(self, state: str, code: int | None = None, **fields: object) -> None:
        if self.ledger is not None:
            failed = [{"method": m, "seed": s, "error": f.message} for (m, s), f in self.failures.items()]
            self.ledger.set_status(
                state,
                runs=len(self.results),
                of=len(self.labels) * len(self.seeds),
                exit_code=code,
                failed=failed,
                headline=self.headline,
                **fields,
            )


def _run(jobs: Sequence[Job], plan: Plan, emit: Callable[[Progress | Outcome], None], count: int) -> None:
    if count == 1:
        if jobs:
            run_here(jobs, plan, emit)
        return
    from molere.workers import run_side_by_side

    run_side_by_side(jobs, plan, emit, workers=count, threads=max(1, cores() // count))


def _job(job: Job, chosen: Chosen | None) -> Job:
    """The run with the settings that were chosen."""
    if chosen is None:
        return job
    method, train = search.applied(job.method, chosen.settings)
    kept = {"trial": chosen.trial, "trials": chosen.trials, "seed": chosen.seed, "settings": dict(chosen.settings)}
    kept |= {"validation_accuracy": chosen.accuracy, "search": dict(chosen.search), "cost": dict(chosen.cost)}
    return replace(job, method=method, train=train, tuned=kept)


def _title(result: Mapping[str, Any], seeds: int) -> str:
    """Data, scenario, model, updates, seeds: `digits (hidden-group), mlp, 540 updates, 5 seeds`."""
    scenario = f" ({result['scenario']})" if result.get("scenario") else ""
    stated: Mapping[str, Any] = result.get("settings") or {}
    model = [str(stated["model"])] if stated.get("model") else []
    count = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return ", ".join([f"{result['data']}{scenario}", *model, f"{result['updates']} updates", count])
