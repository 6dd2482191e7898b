"""Training: one run in progress; the loop, evaluation, saving and resuming, the same for every method."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from molere import rng, signals
from molere.data.pool import Pool
from molere.errors import NumericsError
from molere.evaluate import among, logits_of, metrics, predict
from molere.examples import Outcome, of_each, of_folds, of_split, of_tests
from molere.guard import culprit, demand_inputs
from molere.method import Scouts, restore, state_of
from molere.opening import Setup, open_run
from molere.recovery import Recovery, unfit
from molere.result import Result
from molere.storage import PeakMemory, RunFolder

SECONDS_BETWEEN_SAVES = 5.0
"""A run that is killed repeats at most this much and an epoch, unless the recipe says otherwise."""
SECONDS_WITHOUT_SAVE = 600.0
"""In an epoch that takes longer than this a run saves in between, too."""
LEAST_PAUSE = 50.0
"""Saves are at least so many times as far apart as the last one held the training up: it costs 2 % at most."""

Observer = Callable[[Mapping[str, object]], None]


@runtime_checkable
class Saved(Protocol):
    """Something beside a training that is saved and resumed with it."""

    def state_dict(self) -> Mapping[str, Any]: ...  # Any: plain data and tensors
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Training:
    """One run in progress: what `fit` saves, resumes and reports."""

    def __init__(
        self,
        setup: Setup,
        scouts: Scouts,
        folder: RunFolder | None,
        observers: Sequence[Observer],
        *,
        also: Saved | None = None,
    ) -> None:
        self.setup, self.folder, self.observers, self.also = setup, folder, observers, also
        self.run = open_run(setup, scouts)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"epoch": 0, "accuracy": -1.0, "nll": float("inf"), "state": None}
        self.stopped = "budget spent"
        self.started = self.saved = time.perf_counter()
        self.seconds = self.held_up = 0.0
        self.recovery = Recovery(self.run, folder, save=self._state_dict, resume=self._resume)
        self._reseed("init")
        self.state = setup.method.init(self.run)

    def _reseed(self, what: str) -> None:
        """What a method draws from torch's global generator (new networks do) is the same however it came here."""
        rng.reseed(rng.key(self.setup.seed, f"method {what}", self.run.updates))

    def loop(self) -> None:
        """Split once an epoch, step, count, evaluate, save; saves and raises Stopped when a signal asks for the end."""
        with signals.looking():
            self._loop()
        if self.folder is not None:
            self.folder.flush()

    def _loop(self) -> None:
        run, method = self.run, self.setup.method
        while run.updates < run.budget:
            if run.updates % run.per_epoch == 0:
                self.recovery.keep()
                self._reseed("split")
                try:
                    split = method.split(run, self.state)
                except NumericsError as error:
                    told = run.explained(NumericsError(f"{error}{culprit(run.learners)}"))
                    if run.updates == 0:
                        raise told from error
                    if self.recovery.goes_back(told):
                        continue
                    split = run.split  # skipped: the one in force stays
                if split is None:
                    self.stopped = "the method stopped"
                    break
                run.use(split, at=run.updates)
                self.recovery.tell_left_out()
            run.schedule.at(run.updates)
            self._reseed("step")
            try:
                method.step(run, self.state, run.train_batch())
                self.recovery.well()
            except NumericsError as error:
                if self.recovery.goes_back(run.explained(error)):
                    continue
            run.updates += 1
            run.cost.updates += 1
            if run.updates % run.per_epoch == 0:
                run.epoch += 1
                self.recovery.tell_left_out()
                self.report()
            number = signals.asked()
            if run.updates == run.budget or (self.folder is not None and (number is not None or self.save_is_due())):
                if (problem := unfit(run.learners, run.updates)) is None:
                    self.save()
                elif self.recovery.goes_back(problem, saving=True):
                    continue
            if number is not None:
                raise signals.Stopped(number)

    # ---- evaluation

    def report(self) -> None:
        """The end of an epoch: a row of metrics, the best update so far, a word to observers."""
        run, recipe = self.run, self.setup.recipe
        row = {
            "epoch": float(run.epoch),
            "updates": float(run.updates),
            "lr": run.lr,
            **run.notes.row(run.per_epoch),
        }
        row |= of_split(run)
        if not torch.isfinite(torch.tensor(row["train_loss"])):
            what = f"the loss of {self.setup.label} is no longer finite in epoch {run.epoch}"
            raise NumericsError(f"{what}; lower train.lr or set train.grad_clip")
        if self.setup.data.select is not None and (run.epoch % recipe.eval_every == 0 or run.updates == run.budget):
            found = self.evaluate(self.setup.data.select)
            row |= {f"select_{k}": v for k, v in found.items() if "[" not in k}
            if (found["accuracy"], -found["nll"]) > (self.best["accuracy"], -self.best["nll"]):
                kept = {k: v.detach().clone() for k, v in run.classifier.model.state_dict().items()}
                self.best = {"epoch": run.epoch, "accuracy": found["accuracy"], "nll": found["nll"], "state": kept}
        self.history.append(row)
        if self.folder is not None:
            self.folder.metrics.append(row)
            self.folder.set_status("running", updates=run.updates, of=run.budget)
        event = {
            "label": self.setup.label,
            "seed": self.setup.seed,
            "fraction": run.updates / run.budget,
            "metrics": row,
        }
        for observer in self.observers:
            observer(event)

    def _logits(self, pool: Pool) -> Tensor:
        logits = predict(self.run.classifier, pool)
        demand_inputs(pool, logits)
        return logits

    def evaluate(self, pool: Pool) -> dict[str, float]:
        """Metrics of the classifier as it stands on some pool."""
        logits = self._logits(pool)
        return metrics(logits, pool.y.to(logits.device), pool.group, self.setup.data.group_names)

    def predictions(self) -> dict[str, Tensor]:
        """Logits of all test sets."""
        return {name: self._logits(pool) for name, pool in self.setup.data.tests.items()}

    def tests(self, logits: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics on all test sets; those of the first without a prefix."""
        out: dict[str, float] = {}
        for place, (name, pool) in enumerate(self.setup.data.tests.items()):
            answers, found = self.setup.data.answers.get(name), logits[name]
            found = found if answers is None else among(found, answers)
            found = metrics(found, pool.y.to(found.device), pool.group, self.setup.data.group_names)
            out |= {k if place == 0 else f"{name}/{k}": v for k, v in found.items()}
        return out

    def result(self, peak: PeakMemory) -> Result:
        """Test at the last update and at the best by validation, and gather what is known of each example."""
        run, data = self.run, self.setup.data
        run.cost.seconds = self.spent()
        predicted = self.predictions()
        last = self.tests(predicted)
        held_out = run.crossfit(self.setup.recipe.crossfit) if self.setup.recipe.crossfit else run.crossfitted
        parts = logits_of(run.classifier, run.pool)
        outcome = Outcome.joined(Outcome.of(z, run.pool.y[at].to(z.device)) for at, z in parts)
        samples = of_each(run, outcome, held_out)
        best = last
        if self.best["state"] is not None and self.best["epoch"] != run.epoch:
            kept = {k: v.clone() for k, v in run.classifier.model.state_dict().items()}
            run.classifier.model.load_state_dict(self.best["state"])
            best = self.tests(self.predictions())
            run.classifier.model.load_state_dict(kept)
        run.cost.peak_mib = peak.mib
        run.close()
        return Result(
            method=type(self.setup.method).__name__,
            label=self.setup.label,
            seed=self.setup.seed,
            data=data.name,
            scenario=data.scenario,
            classifier=run.classifier.model,
            updates=run.updates,
            stopped=self.stopped,
            last=last,
            best=best,
            best_epoch=int(self.best["epoch"]),
            history=self.history,
            samples=samples,
            cost=run.cost,
            logged=_means(self.history),
            settings=self.setup.config(),
            predictions=of_tests(data.tests, predicted),
            out_of_fold={} if held_out is None else of_folds(run.pool, held_out),
        )

    def spent(self) -> float:
        """Seconds of this run so far, those of earlier attempts included, those of scouts not."""
        return self.seconds + time.perf_counter() - self.started - self.run.waited

    # ---- saving and resuming

    def save_is_due(self) -> bool:
        """At the end, every `save_every` updates, or else at an epoch's end, in long ones every ten minutes."""
        run, every = self.run, self.setup.recipe.save_every
        if run.updates == run.budget or every is not None:
            return run.updates == run.budget or run.updates % cast(int, every) == 0
        pause = max(SECONDS_BETWEEN_SAVES, LEAST_PAUSE * self.held_up)
        since = time.perf_counter() - self.saved
        return since >= pause and (run.updates % run.per_epoch == 0 or since >= SECONDS_WITHOUT_SAVE)

    def save(self) -> None:
        """A checkpoint of everything that changes, if there is a folder; it is written while the training goes on."""
        if self.folder is None:
            return
        began = time.perf_counter()
        self.folder.save_soon(self.run.updates, self._state_dict())
        self.saved = time.perf_counter()
        self.held_up = self.saved - began

    def _state_dict(self) -> dict[str, Any]:  # Any: plain data and tensors
        return {
            "run": self.run.state_dict(),
            "method": state_of(self.state),
            "rows": len(self.history),
            "history": self.history,
            "best": self.best,
            "seconds": self.spent(),
            "also": {} if self.also is None else self.also.state_dict(),
            "rollbacks": self.recovery.rollbacks,
        }

    def load(self) -> None:
        """Continue from the newest good checkpoint, if there is one."""
        assert self.folder is not None, "there is a folder to load from"
        found = self.folder.load(on_damage=self._tell_damage)
        if found is None:
            self.folder.metrics.truncate_to(0)
            return
        self._resume(found[1])
        self.recovery.keep()

    def _resume(self, state: Mapping[str, Any]) -> None:  # Any: what `_state_dict` gave
        self.run.load_state_dict(state["run"])
        restore(self.state, state["method"])
        self.history, self.best, self.seconds = state["history"], state["best"], state["seconds"]
        self.recovery.rollbacks = state["rollbacks"]
        if self.folder is not None:
            self.folder.metrics.truncate_to(state["rows"])
        if self.also is not None:
            self.also.load_state_dict(state["also"])

    def _tell_damage(self, problem: str) -> None:
        assert self.folder is not None, "something was loaded"
        self.folder.log("damaged", problem=problem)
        warnings.warn(
            f"{problem}; an earlier checkpoint is used, and what came after it is computed again", stacklevel=2
        )


def _means(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What was logged beside losses and selection metrics, each a mean over the epochs that have it."""
    plain = {"epoch", "updates", "lr", "train_loss"}
    names = [k for k in dict.fromkeys(k for row in history for k in row) if k not in plain and "select_" not in k]
    names = [k for k in names if not k.startswith("weight_p")]  # quantiles, which are for figures
    values = {k: [row[k] for row in history if k in row and math.isfinite(row[k])] for k in names}
    return {k: math.fsum(v) / len(v) for k, v in values.items() if v}
