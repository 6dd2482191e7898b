"""Tuning: random search over declared settings, on validation data, with the same number of trials for every method.

Trials train on the data of one seed, with the selection data in the place of the test data, so that nothing here can be
chosen on test data. The best is the one of largest selection accuracy at its best epoch. Needs no torch.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast  # Any: settings and stored results

from molere.config import dump_value
from molere.errors import StorageError
from molere.jobs import Failure, Job, Outcome, Progress
from molere.ledger import Ledger, folder_name
from molere.request import Request
from molere.search import applied, drawn, space_of
from molere.storage import files

COSTS = ("seconds", "scout_seconds", "forward", "backward", "virtual_forward", "virtual_backward", "scout_forward",
         "scout_backward")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What tuning found for one method, and what it took."""

    label: str
    trial: int
    """The one chosen; 0: the settings as given."""
    settings: Mapping[str, Any]
    """What it drew, by key; empty for trial 0."""
    accuracy: float
    """On selection data, at the best epoch."""
    given: float | None
    """The same of trial 0; none if that failed."""
    trials: int
    failed: int
    """Trials that ended in an error; they count."""
    seed: int
    """Whose data all trials were made on."""
    search: Mapping[str, str]
    """The search space, by key."""
    cost: Mapping[str, float]
    """Seconds and passes of all trials that ended well, added up."""

    @property
    def words(self) -> str:
        """The settings as overrides: `train.lr=0.0312 method.delta=0.2`."""
        return " ".join(f"{key}={dump_value(value)}" for key, value in self.settings.items()) or "as given"

    @property
    def seconds(self) -> float:
        """Of all trials, scouts included."""
        return self.cost["seconds"] + self.cost["scout_seconds"]


def searched(tuning: Sequence[Chosen]) -> list[str]:
    """A line for each setting and range, and the methods that it was searched for."""
    lines = dict[tuple[str, str], list[str]]()
    for c in tuning:
        for key, space in c.search.items():
            lines.setdefault((key, space), []).append(c.label)
    who = {key: "every method" if len(labels) == len(tuning) else ", ".join(labels) for key, labels in lines.items()}
    return [f"`{key}`: {space} ({who[key, space]})" for key, space in lines]


class Search:
    """The trials of a comparison: which are still to be made, and what the others found.

    With a folder, what is drawn and chosen is kept in tune/tuning.json and trials in tune/LABEL/trial-K. What was
    chosen once stays: a trial that failed is not tried again when the runs that follow from the choice are there.
    """

    def __init__(self, asked: Request, ledger: Ledger | None, *, resume: bool) -> None:
        self.seed, self.trials, self._ledger = asked.seeds[0], asked.tune, ledger
        self._methods = asked.methods
        self.spaces = {label: space_of(method, asked.recipe) for label, method in asked.methods.items()}
        self.drawn = {label: [drawn(s, self.seed, t) for t in range(self.trials)] for label, s in self.spaces.items()}
        self.found: dict[str, Chosen | Failure] = {}
        self._results: dict[tuple[str, int], dict[str, Any] | Failure] = {}
        self.waiting: list[Job] = []
        self.kept: list[Job] = []
        self._recall(resume)
        for trial in range(self.trials):
            for label in self._methods:
                self._enter(self._job(label, trial), resume)

    def take(self, outcome: Outcome) -> None:
        """Take in the end of a trial."""
        key = (outcome.job.label, cast(int, outcome.job.trial))
        if outcome.result is not None:
            self._results[key] = outcome.result
        elif outcome.failure is not None:
            self._results[key] = outcome.failure

    def close(self) -> dict[str, Chosen | Failure]:
        """The choice for each method, written down; a Failure where no trial of it ended well."""
        for label in self._methods:
            if label not in self.found:
                self.found[label] = self._choose(label)
        self._write()
        return {label: self.found[label] for label in self._methods}

    def _choose(self, label: str) -> Chosen | Failure:
        ended = {t: self._results[label, t] for t in range(self.trials)}
        good = {t: r for t, r in ended.items() if not isinstance(r, Failure)}
        if not good:
            first = next(r for r in ended.values() if isinstance(r, Failure))
            return dataclasses.replace(first, message=f"all {self.trials} trials failed; the first: {first.message}")
        best = min(good, key=lambda t: (-_score(good[t], "accuracy"), _score(good[t], "nll"), t))
        return Chosen(
            label=label,
            trial=best,
            settings=self.drawn[label][best],
            accuracy=_score(good[best], "accuracy"),
            given=_score(good[0], "accuracy") if 0 in good else None,
            trials=self.trials,
            failed=len(ended) - len(good),
            seed=self.seed,
            search={key: str(space) for key, space in self.spaces[label].items()},
            cost={name: math.fsum(r["cost"].get(name) or 0.0 for r in good.values()) for name in COSTS},
        )

    def _job(self, label: str, trial: int) -> Job:
        method, train = applied(self._methods[label], self.drawn[label][trial])
        folder = None if self._ledger is None else self._folder / folder_name(label) / f"trial-{trial}"
        return Job(label, method, self.seed, folder, train=train, trial=trial)

    def _enter(self, job: Job, resume: bool) -> None:
        kept = self._ledger.finished(job) if self._ledger is not None and resume else None
        if kept is not None:
            self._results[job.label, cast(int, job.trial)] = kept
        (self.waiting if kept is None and job.label not in self.found else self.kept).append(job)

    # ---- the folder

    @property
    def _folder(self) -> Path:
        assert self._ledger is not None, "there is a folder"
        return self._ledger.path / "tune"

    def _recall(self, resume: bool) -> None:
        """What was chosen before; StorageError if the trials that are there drew other settings."""
        if self._ledger is None:
            return
        path = self._folder / "tuning.json"
        stored: Mapping[str, Any] = files.read_json(path) if resume and path.exists() else {}
        for label, was in stored.items():
            if label in self.drawn and was["trials"] != self.drawn[label]:
                raise StorageError(
                    f"{path} holds trials of {label} from another search; choose another folder with --out, or start "
                    "over with --resume never"
                )
            if label in self.drawn and was["chosen"] is not None:
                self.found[label] = Chosen(**was["chosen"])
        self._write()

    def _write(self) -> None:
        """Each method's trials and, once it is made, its choice; a choice of nothing is not kept."""
        if self._ledger is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {
            label: {"trials": trials, "chosen": dataclasses.asdict(c) if isinstance(c, Chosen) else None}
            for label, trials in self.drawn.items()
            for c in (self.found.get(label),)
        }
        files.write_json(self._folder / "tuning.json", content)


def _score(result: Mapping[str, Any], metric: str) -> float:
    """A metric of a trial's test data, which are the selection data; the worst there is where it is not finite."""
    value = cast(Mapping[str, float | None], result.get("best") or {}).get(metric)
    worst = -math.inf if metric == "accuracy" else math.inf
    return worst if value is None or not math.isfinite(value) else value


def tune(
    asked: Request,
    ledger: Ledger | None,
    run: Callable[[Sequence[Job], Callable[[Progress | Outcome], None]], None],
    tell: Callable[[Progress], None],
    *,
    resume: bool,
) -> dict[str, Chosen | Failure]:
    """Make the trials that are missing, and choose; {} where no tuning was asked for."""
    if not asked.tune:
        return {}
    search = Search(asked, ledger, resume=resume)
    for job in search.kept:
        tell(Progress(job, "kept", 1.0))

    def take(news: Progress | Outcome) -> None:
        if isinstance(news, Progress):
            tell(news)
            return
        search.take(news)
        state = "failed" if news.result is None else "done"
        tell(Progress(news.job, state, 1.0, (news.result or {}).get("best") or {}))

    run(search.waiting, take)
    return search.close()
