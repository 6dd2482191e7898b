"""Reweighter: any weighting method inside somebody else's loop, with an unmodified module and optimiser.

    weigh = Reweighter("mwn", model, optimizer, val=(x_val, y_val))
    ...
    w = weigh(x, y)                                                        # [n], no gradient
    loss = (w * F.cross_entropy(model(x), y, reduction="none")).mean()     # and on with the loop

A call takes one step of the method: what it reads of the batch, the look ahead through the optimiser, the update of its
weight network. Parameters, gradients, running statistics, the optimiser and random states are left as they were; the
update is the loop's own. `loss` makes the training pass itself and saves one; it serves also methods that follow no
weighted mean (gdw: a weight for each class). `select` serves those that choose their batch (rho-loss).
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from molere import rng, settings
from molere.adapters import Inputs, Packed, Read, check_mode
from molere.borrowed import Borrowed, Handed, StreamBatch, without_data
from molere.data.pool import Batch, Pool
from molere.errors import ConfigError, NumericsError
from molere.lending import EpochBatches, pool_of, weights_of
from molere.loan import Loan, check_trains, uncompiled, unwrapped
from molere.loanstate import check_saved, put_back, saved
from molere.method import Method
from molere.split import Split
from molere.validation import Checked, Labelled, Only, Source, check_classes, labelled, source_of


class Reweighter:
    """Weights for the examples of each batch of a loop.

    Args:
        method: a name such as `mwn`, `lrw-hard[keep=true]`, or a Method.
        model: the module that the loop trains; not wrapped in DistributedDataParallel.
        optimizer: the one that updates it; look-aheads are steps of its own.
        val: validation data for the method: tensors (x, y), a Dataset, or an iterable of batches such as a DataLoader,
            gone through again and again. Or give val=(x, y) at each call.
        data: the training data, for methods that hold a part out themselves, train models first, or keep something
            for each example: (x, y), a Dataset or a Pool. Calls then need index=, positions in it, and training
            batches should come from `batches`.
        epochs: how many epochs the loop takes; with data=, or for methods that wait for a share of the run.
        per_epoch: updates of an epoch; with data=, as many as there are whole batches.
        batch_size: examples in a call; none: as many as in the first.
        accumulate: calls for each step of the optimiser (gradient accumulation); the loop divides its loss by it. A
            step before that, as at an epoch's end, is noticed, and the next call begins a new one.
        grad_clip: the largest norm, if the loop clips gradients: look-aheads then do so too.
        scaler: the loop's GradScaler, if it has one.
        logits: where the logits are in what the module returns, if it returns more: `lambda out: out.logits`.
        recipe: further settings by name (see Recipe), as `{"val_batch_size": 32, "estimator": "exact"}`; those of the
            schedule and the precision are for models that a method trains first.
        seed: of the method's draws.
        cache: folder for models that a method trains first, so that they are trained once.

    Attributes:
        logits: of the last `loss`, detached [n, c].
        history: with data=, a mapping of metrics for each epoch.
    """

    def __init__(
        self,
        method: str | Method[Any],  # Any: of whatever state
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        val: Source | None = None,
        data: Pool | Dataset[Any] | tuple[Any, Any] | None = None,  # Any: tensors or arrays; items of a dataset
        epochs: int | None = None,
        per_epoch: int | None = None,
        batch_size: int | None = None,
        accumulate: int = 1,
        grad_clip: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        logits: Read | None = None,
        recipe: Mapping[str, object] | None = None,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        if data is not None and val is not None:
            raise ConfigError("data= is its own validation data, held out by the method; pass data or val, not both")
        self.label = method if isinstance(method, str) else type(method).__name__.lower()
        self.method = settings.method_of(method)
        self.model, self.optimizer = uncompiled(model), unwrapped(optimizer)
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        self.pool = None if data is None else pool_of(data)
        self._loan = Loan(
            model=self.model, optimizer=self.optimizer, read=logits, pool=self.pool,
            initial=None if self.pool is None else copy.deepcopy(self.model),
            epochs=epochs, per_epoch=per_epoch, accumulate=accumulate,
            said={"grad_clip": grad_clip, **(recipe or {})}, scaler=scaler, cache=cache, seed=seed, label=self.label,
        )  # fmt: skip
        self.method = self._loan.method(self.method)
        self._source = None if val is None else source_of(val, seed)
        self._run: Borrowed | None = None
        self._drawn = False
        self.state: Any = None
        self.logits: Tensor | None = None
        self.history: list[dict[str, float]] = []
        if self.pool is not None and batch_size is not None:
            self._open(self.pool.batch(torch.arange(2)).x)

    def __repr__(self) -> str:
        return f"Reweighter({self.label!r}, {type(self.model).__name__}, {type(self.optimizer).__name__})"

    # ---- the three uses

    def __call__(self, x: Inputs, y: Tensor, *, val: Labelled | None = None, index: Tensor | None = None) -> Tensor:
        """Weights of a batch [n], without a gradient, to be used as mean(w_i l_i).

        Args:
            x: the batch as the module takes it: a tensor, or a mapping or tuple of tensors.
            y: its labels [n].
            val: a validation batch (x, y), instead of one from the validation data.
            index: positions of the examples in data= [n].

        Raises:
            ConfigError: where the method cannot be had as weights, or needs something that it was not given.
            NumericsError: for losses that are not finite, with the culprit; nothing has learned from them.
        """
        handed = self._turn(x, y, val, index, itself=False)
        if handed.along is not None:
            raise ConfigError(f"{self.label} weighs logits, not whole examples: use loss = weigh.loss(x, y)")
        if len(handed.seen) != len(y):
            raise ConfigError(f"{self.label} chooses its batch: use places, w = weigh.select(x, y, index=index)")
        return weights_of(handed)

    def select(
        self, x: Inputs, y: Tensor, *, val: Labelled | None = None, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(places, weights) [k]: which examples of a large batch to train on, and what they weigh.

        The batch holds the candidates; `batch_size` of them are chosen by methods that choose, all by the others.
        """
        handed = self._turn(x, y, val, index, itself=False)
        if handed.along is not None:
            raise ConfigError(f"{self.label} weighs logits, not whole examples: use loss = weigh.loss(x, y)")
        places = torch.arange(len(y), device=y.device)
        if len(handed.seen) != len(y):
            assert index is not None, "methods that choose know positions"
            chosen = handed.seen.batch.index.to(y.device)
            places = (index.to(y.device)[None] == chosen[:, None]).int().argmax(1)
        return places, weights_of(handed)

    def loss(self, x: Inputs, y: Tensor, *, val: Labelled | None = None, index: Tensor | None = None) -> Tensor:
        """The loss to be lowered, a scalar with its graph; the module's training pass is made here.

        mean(w_i l_i) of the cross-entropies l_i; where the method follows another gradient of the logits, a scalar of
        that gradient whose value is the plain mean of the l_i. `logits` holds what the pass gave.
        """
        handed = self._turn(x, y, val, index, itself=True)
        self.logits = (seen := handed.seen).logits.detach()
        if handed.along is not None:
            pull = (seen.logits * handed.along).sum()
            return pull + (seen.losses.mean() - pull).detach()
        return seen.losses.mean() if handed.weights is None else (handed.weights * seen.losses).mean()

    # ---- which examples train

    @property
    def batches(self) -> "EpochBatches":
        """Training batches of an epoch as lists of positions in data=: `DataLoader(data, batch_sampler=weigh.batches)`.

        What validates is left out, what a method repeats is repeated; each pass over it is one epoch.
        """
        self._drawn = True
        run = self._opened("batches")
        return EpochBatches(lambda: self._begun(run))

    @property
    def split(self) -> Split:
        """Which examples of data= train and validate in this epoch, the last one once all are over."""
        run = self._opened("split")
        return (run if run.updates >= run.budget else self._begun(run)).split

    @property
    def weights(self) -> Tensor:
        """The weight that each example of data= had when it was last used [N]; NaN if it never was."""
        return self._opened("weights").notes.weight

    def _opened(self, what: str) -> Borrowed:
        if self.pool is None:
            without_data(f"{what} are of data=")
        if self._run is None:
            raise ConfigError(f"{what} depends on the size of a batch: pass batch_size= to Reweighter")
        return self._run

    # ---- state

    def state_dict(self) -> dict[str, Any]:  # Any: nested plain data and tensors
        """All that changes, the module and the optimiser excepted; empty before the first call."""
        if self._run is None:
            return {}
        validation = {} if self._source is None else self._source.state_dict()
        return {"of": self.label, **saved(self._run, self.state), "validation": copy.deepcopy(validation)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Undo `state_dict`; ConfigError for the state of something else."""
        if not state:
            return
        check_saved(state, self.label)
        made = state["made"]
        if self._run is None:
            self.batch_size = int(made["batch_size"])
            self._make(int(made["classes"]), self.batch_size, unpacks=bool(made["packed"]))
        put_back(cast(Borrowed, self._run), self.state, state)
        if self._source is not None:
            self._source.load_state_dict(copy.deepcopy(state["validation"]))

    # ---- a step of the method

    def _turn(self, x: Inputs, y: Tensor, val: Labelled | None, index: Tensor | None, *, itself: bool) -> Handed:
        check_mode()
        given = labelled(x, y)
        run = self._open(given.x, len(given))
        self._loan.renew(run)
        check_classes(given.y, run.pool.num_classes)
        batch = self._batch(run, given.x, given.y, index)
        run.offered, run.handed, run.passes_itself = batch, None, itself
        source = self._source if val is None else Only(val)
        run.validation = None if source is None else Checked(source, run.pool.num_classes)
        kind = run.device.type
        run.autocast(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
        self._begun(run)
        if index is not None and not self._drawn:
            check_trains(run, index, self.label)
        run.tap()
        try:
            with rng.seeded(None), torch.enable_grad(), torch.autocast(kind, enabled=False):
                rng.reseed(rng.key(self.seed, "method step", run.updates, run.micro))
                self._step(run, batch)
        finally:
            run.untap()
            run.forget()
        run.advance()
        assert run.handed is not None, "a method's step makes one update"
        handed, run.handed = run.handed, None
        return handed

    def _step(self, run: Borrowed, batch: Batch) -> None:
        try:
            self.method.step(run, self.state, batch)
        except NumericsError as error:
            raise run.explained(error) from error
        except (RuntimeError, TypeError) as error:
            if len(batch) == run.batch_size:
                raise
            said = " ".join(str(error).split())[:200]
            given = f"{self.label}: a batch of {len(batch)} after batches of {run.batch_size}"
            hint = "give batches of one size, as DataLoader(drop_last=True) does"
            raise ConfigError(f"{given} cannot be weighed; {hint} ({said})") from error

    def _batch(self, run: Borrowed, x: Tensor, y: Tensor, index: Tensor | None) -> Batch:
        if self.pool is None:
            return StreamBatch(x, y)
        if index is None:
            raise ConfigError("index= is missing: with data=, pass the positions of the batch's examples in it")
        at = torch.as_tensor(index, dtype=torch.int64).to(run.device)
        return Batch(x, y, at, None if self.pool.group is None else self.pool.group.to(run.device)[at])

    def _begun(self, run: Borrowed) -> Borrowed:
        """The run, its epoch begun: the method has been asked for the split."""
        if run.updates % run.per_epoch == 0 and run.micro == 0 and run.began != run.updates:
            if run.updates >= run.budget:
                raise ConfigError(f"the {self.epochs} epochs of this run are over; pass a larger epochs= to Reweighter")
            run.tap()
            try:
                stream = rng.key(self.seed, "method split", run.updates)
                with rng.seeded(stream), torch.enable_grad(), torch.autocast(run.device.type, enabled=False):
                    split = self.method.split(run, self.state)
            finally:
                run.untap()
            if split is not None:
                run.use(split, at=run.updates)
            run.began = run.updates
        return run

    # ---- the run

    def _open(self, x: Tensor, n: int | None = None) -> Borrowed:
        """The run; made at the first call, which shows how large batches are and what the module gives."""
        if self._run is None:
            self._make(self._loan.classes(x), self.batch_size or n or 1, unpacks=isinstance(x, Packed))
        return cast(Borrowed, self._run)

    def _make(self, classes: int, size: int, *, unpacks: bool) -> None:
        run = self._loan.run(self.method, classes, size, unpacks=unpacks)
        run.history = self.history
        self._run, self.state = run, self._loan.state(self.method, run)
