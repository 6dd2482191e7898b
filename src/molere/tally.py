"""Tally: what is known of each run while a comparison goes on, told and written down; at the end, its table."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from molere import search
from molere.comparison import Comparison
from molere.errors import StorageError
from molere.jobs import Failure, Job, Outcome, Progress, imported
from molere.ledger import Ledger, machine
from molere.request import Request
from molere.tuning import Chosen


class Tally:
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
