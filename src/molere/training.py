"""Training: one run in progress; the loop, evaluation, saving and resuming, the same for every method."""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molere import rng, signals
from molere.adapters import attempted, hint
from molere.data.pool import Data, Pool
from molere.errors import ConfigError, NumericsError, ResourceError
from molere.evaluate import among, metrics
from molere.examples import Outcome, of_each, of_folds, of_split, of_tests
from molere.guard import MOST_IN_A_ROW, MOST_ROLLBACKS, REMEDY, culprit, demand_inputs, infinite
from molere.identity import plain
from molere.learner import Learner
from molere.method import EVAL_BATCH, Method, Run, Scouts
from molere.models import head_of
from molere.models.weights import content as weights_content
from molere.names import unknown
from molere.optim import Schedule, make_optimizer
from molere.recipe import Recipe
from molere.result import Result
from molere.steps import chunks
from molere.storage import PeakMemory, RunFolder
from molere.storage.checkpoint import Frozen
from molere.suffix import Suffix

SECONDS_BETWEEN_SAVES = 5.0
"""A run that is killed repeats at most this much and an epoch, unless the recipe says otherwise."""
LEAST_PAUSE = 50.0
"""Saves are at least so many times as far apart as the last one held the training up: it costs 2 % at most."""

Observer = Callable[[Mapping[str, object]], None]


@runtime_checkable
class Saved(Protocol):
    """Something beside a training that is saved and resumed with it."""

    def state_dict(self) -> Mapping[str, Any]: ...  # Any: plain data and tensors
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Setup:
    """One training, fully said."""

    method: Method[Any]  # Any: of whatever state
    data: Data
    build: Callable[[], nn.Module]
    model: str
    recipe: Recipe
    seed: int
    label: str
    device: torch.device

    def config(self) -> dict[str, object]:
        """What decides the result, in plain values."""
        return {
            "method": self.label,
            "settings": plain(self.method if dataclasses.is_dataclass(self.method) else type(self.method)),
            "data": {"name": self.data.name, "scenario": self.data.scenario, "content": self.data.train.fingerprint()},
            "model": self.model,
            "train": plain(self.recipe.stated()),
            "seed": self.seed,
            **({"weights": held} if (held := weights_content(self.recipe.weights)) else {}),
        }


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
        self.skipped_in_a_row = self.rollbacks = 0
        self._good: Frozen | None = None
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
                self._keep_good()
                self._reseed("split")
                try:
                    split = method.split(run, self.state)
                except NumericsError as error:
                    told = NumericsError(f"{error}{culprit(run.learners)}")
                    if run.updates == 0:
                        raise told from error
                    if self._goes_back(told):
                        continue
                    split = run.split  # skipped: the one in force stays
                if split is None:
                    self.stopped = "the method stopped"
                    break
                run.use(split, at=run.updates)
            self._schedule().at(run.updates)
            self._reseed("step")
            try:
                method.step(run, self.state, run.train_batch())
                self.skipped_in_a_row = 0
            except NumericsError as error:
                if self._goes_back(error):
                    continue
            run.updates += 1
            run.cost.updates += 1
            if run.updates % run.per_epoch == 0:
                run.epoch += 1
                self.report()
            number = signals.asked()
            if self.folder is not None and (number is not None or self.save_is_due()):
                self._demand_finite()
                self.save()
            if number is not None:
                raise signals.Stopped(number)

    # ---- numbers that are not finite

    def _goes_back(self, error: NumericsError) -> bool:
        """By the recipe's policy: raise, or skip this update (False), or go back to the last good epoch (True)."""
        policy = self.setup.recipe.on_nonfinite
        if policy == "stop":
            raise error
        if policy == "skip":
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row > MOST_IN_A_ROW:
                raise NumericsError(f"{error} ({MOST_IN_A_ROW} updates in a row were skipped)") from error
            self._tell("skipped", error)
            return False
        if self._good is None or self.rollbacks == MOST_ROLLBACKS:
            raise NumericsError(f"{error} (went back {self.rollbacks} times)") from error
        rollbacks = self.rollbacks + 1
        self._resume(self._good.state())
        self.rollbacks = rollbacks
        self._schedule().damp(0.5**rollbacks)
        self._tell("rolled back", error)
        return True

    def _keep_good(self) -> None:
        """Remember this epoch's beginning, where the policy may go back to it."""
        if self.setup.recipe.on_nonfinite == "rollback" and not culprit(self.run.learners):
            self._good = Frozen.of(self._state_dict())

    def _tell(self, event: str, error: NumericsError) -> None:
        notes = self.run.notes.logged
        notes[f"{event.replace(' ', '_')}_updates"] = notes.get(f"{event.replace(' ', '_')}_updates", 0.0) + 1
        if self.folder is not None:
            self.folder.log(event, update=self.run.updates, error=str(error))

    def _demand_finite(self) -> None:
        """Refuse to save a classifier that holds NaN: the checkpoint before is the last good one."""
        if (name := infinite(self.run.classifier)) is not None:
            raise NumericsError(f"{name} of the classifier is not finite at update {self.run.updates}; {REMEDY}")

    def _schedule(self) -> Schedule:
        assert self.run.classifier.schedule is not None, "a classifier has a schedule"
        return self.run.classifier.schedule

    # ---- evaluation

    def report(self) -> None:
        """The end of an epoch: a row of metrics, the best update so far, a word to observers."""
        run, recipe = self.run, self.setup.recipe
        row = {
            "epoch": float(run.epoch),
            "updates": float(run.updates),
            "lr": self._schedule().lr,
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
        """At the end, every `save_every` updates, or else when an epoch ends some seconds after the last save."""
        run, every = self.run, self.setup.recipe.save_every
        if run.updates == run.budget or every is not None:
            return run.updates == run.budget or run.updates % cast(int, every) == 0
        pause = max(SECONDS_BETWEEN_SAVES, LEAST_PAUSE * self.held_up)
        return run.updates % run.per_epoch == 0 and time.perf_counter() - self.saved >= pause

    def save(self) -> None:
        """A checkpoint of everything that changes; it is written while the training goes on."""
        assert self.folder is not None, "there is a folder to save to"
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
            "rollbacks": self.rollbacks,
        }

    def load(self) -> None:
        """Continue from the newest good checkpoint, if there is one."""
        assert self.folder is not None, "there is a folder to load from"
        found = self.folder.load(on_damage=self._tell_damage)
        if found is None:
            self.folder.metrics.truncate_to(0)
            return
        self._resume(found[1])
        self._keep_good()

    def _resume(self, state: Mapping[str, Any]) -> None:  # Any: what `_state_dict` gave
        self.run.load_state_dict(state["run"])
        restore(self.state, state["method"])
        self.history, self.best, self.seconds = state["history"], state["best"], state["seconds"]
        self.rollbacks = state["rollbacks"]
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


def predict(classifier: Learner, pool: Pool) -> Float[Tensor, "N c"]:
    """Logits of a whole pool: evaluation mode, no augmentation, nothing changed."""
    logits: Tensor | None = None
    for at, z in logits_of(classifier, pool):
        logits = z.new_empty(len(pool), z.shape[1]) if logits is None else logits
        logits[at] = z
    assert logits is not None, "a pool has examples"
    return logits


def logits_of(classifier: Learner, pool: Pool) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n c"]]]:
    """(positions, logits) of a whole pool in batches, as `predict`."""
    device = next(iter(classifier.params.values())).device
    for at in chunks(torch.arange(len(pool), device=pool.y.device), EVAL_BATCH):
        with torch.no_grad(), classifier.at(None, evaluating=nn.Module):
            z = classifier(pool.batch(at).x.to(device)).float()
        yield at, z


def device_of(recipe: Recipe) -> torch.device:
    """The device a recipe names; ConfigError if there is none of that name, ResourceError if it is not here."""
    name = recipe.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ResourceError(f"device {name!r} is not here; use --device cpu or auto")
    return device


def open_run(setup: Setup, scouts: Scouts) -> Run:
    """The classifier with its optimiser and schedule, and the run that is lent to the method."""
    recipe, pool = setup.recipe, setup.data.train
    model = setup.build().to(setup.device)
    model = model.double() if recipe.precision == "float64" else model
    if recipe.channels_last:
        model = cast(Any, model).to(memory_format=torch.channels_last)  # torch's stubs know no keyword form
    check_trained(model)
    if recipe.precision == "float32" and next(p for p in model.parameters() if p.requires_grad).dtype == torch.float64:
        recipe = dataclasses.replace(recipe, precision="float64")  # a module that comes in it stays in it
    _check_outputs(model, pool, setup.device)
    model.train()
    per_epoch = len(pool) // recipe.batch_size
    budget = recipe.epochs * per_epoch
    optimizer = make_optimizer(
        recipe.optimizer,
        [p for p in model.parameters() if p.requires_grad],
        lr=recipe.lr,
        arguments=recipe.optimizer_args,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    schedule = Schedule(
        recipe.scheduler, optimizer, updates=budget, per_epoch=per_epoch, settings=recipe.scheduler_args
    )
    classifier = Learner(
        "classifier",
        model,
        optimizer,
        schedule,
        grad_clip=recipe.grad_clip,
        scaled=recipe.precision == "float16" and setup.device.type == "cuda",
        channels_last=recipe.channels_last,
        backend=_compiler(recipe),
    )
    if recipe.accumulate > 1 and (recipe.meta_share < 1 or recipe.estimator == "ghost"):
        raise ConfigError("a batch in parts keeps no activations for ghost or meta_share; use train.accumulate=1")
    suffix = None
    if recipe.meta_share < 1:
        suffix = Suffix(model, pool.batch(torch.arange(2, device=pool.y.device)).x.to(setup.device), recipe.meta_share)
    classifier.guarded = recipe.on_nonfinite != "stop"
    return Run(
        pool=pool,
        recipe=recipe,
        seed=setup.seed,
        classifier=classifier,
        head=head_of(model)[1],
        device=setup.device,
        budget=budget,
        per_epoch=per_epoch,
        batch_size=recipe.batch_size,
        scouts=scouts,
        suffix=suffix,
    )


def check_trained(model: nn.Module) -> None:
    """ConfigError for a module of which nothing trains."""
    if not any(p.requires_grad for p in model.parameters()):
        hint = "unfreeze what is to learn, as model.head.requires_grad_(True)"
        raise ConfigError(f"{type(model).__name__} has no parameter that is trained; {hint}")


def _compiler(recipe: Recipe) -> str | None:
    """The recipe's backend of torch.compile, if it names one that is here."""
    if recipe.compile is None:
        return None
    known: list[str] = torch.compiler.list_backends(exclude_tags=())
    if recipe.compile not in known:
        raise ConfigError(unknown("train.compile", recipe.compile, known))
    if recipe.meta_share < 1:
        raise ConfigError("compiled passes cannot be cut; use train.meta_share=1, or leave train.compile out")
    return recipe.compile


def _check_outputs(model: nn.Module, pool: Pool, device: torch.device) -> None:
    """ConfigError unless the module gives logits [n, c] for at least the classes of the pool."""
    model.eval()
    with torch.no_grad(), rng.seeded(0):
        x = pool.batch(torch.arange(min(2, len(pool)), device=pool.y.device)).x.to(device)
        double = next(model.parameters()).dtype == torch.float64
        out = attempted(model, x.double() if double and x.is_floating_point() else x)
    name = type(model).__name__
    if not isinstance(out, Tensor):
        given = f"{name} returns a {type(out).__name__}, expected logits [n, classes]"
        raise ConfigError(f"{given}; say where they are in it: {hint(out)}")
    if out.ndim != 2 or len(out) != len(x):
        given = f"{name} gives {list(out.shape)} for {len(x)} examples"
        raise ConfigError(f"{given}, expected logits [{len(x)}, {pool.num_classes}]; flatten its output")
    if out.shape[1] < pool.num_classes:
        last = f"example {int(pool.y.argmax())} has label {int(pool.y.max())}"
        given = f"{name} has {out.shape[1]} outputs for {pool.num_classes} classes ({last})"
        raise ConfigError(f"{given}; give it {pool.num_classes} outputs, or mend the labels")


def _means(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What was logged beside losses and selection metrics, each a mean over the epochs that have it."""
    plain = {"epoch", "updates", "lr", "train_loss"}
    names = [k for k in dict.fromkeys(k for row in history for k in row) if k not in plain and "select_" not in k]
    names = [k for k in names if not k.startswith("weight_p")]  # quantiles, which are for figures
    values = {k: [row[k] for row in history if k in row and math.isfinite(row[k])] for k in names}
    return {k: math.fsum(v) / len(v) for k, v in values.items() if v}


def state_of(state: object) -> dict[str, Any]:  # Any: plain data and tensors
    """A method's state without its learners, which the run saves under their names."""
    if state is None:
        return {}
    values = {f.name: getattr(state, f.name) for f in dataclasses.fields(cast(Any, state))}
    return {k: v for k, v in values.items() if not isinstance(v, Learner)}


def restore(state: object, saved: Mapping[str, Any]) -> None:  # Any: as above
    """Put saved values back, tensors on the device that `init` chose for them."""
    for name, value in saved.items():
        made = getattr(state, name)
        if isinstance(value, Tensor):
            value = value.to(made.device if isinstance(made, Tensor) else value.device, copy=True)
        if not isinstance(made, Learner):
            setattr(state, name, value)
