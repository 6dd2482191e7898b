"""compare: methods x seeds on the same data and budget, and the table of their paired differences.

The methods of one seed share data, initial weights and batches. Interrupted comparisons go on where they
stopped, runs that fail are listed and do not stop the others.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from molere import registry, search, tuning
from molere import settings as of_methods
from molere.comparison import Comparison
from molere.errors import ConfigError
from molere.fields import refuse
from molere.jobs import Job, Outcome, Plan, Progress, run_here
from molere.ledger import Ledger
from molere.meter import Meter
from molere.request import call, cores, request, side_by_side
from molere.show import trackers
from molere.tally import Tally

PARTS: Mapping[str, str] = {}
"""Stand-ins for what a Plan names, for tests."""


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
                force=force, tune=tune, track=track, progress=told, command=command, preset=preset, settings=settings,
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
        tally = Tally(asked, ledger, progress or None)

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


def _run(jobs: Sequence[Job], plan: Plan, emit: Callable[[Progress | Outcome], None], count: int) -> None:
    if count == 1:
        if jobs:
            run_here(jobs, plan, emit)
        return
    from molere.workers import run_side_by_side

    run_side_by_side(jobs, plan, emit, workers=count, threads=max(1, cores() // count))
