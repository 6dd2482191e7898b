"""Optimisers and schedules by name, and the derivative of one optimiser step with respect to the gradient.

One step of any optimiser of torch maps the gradient g to new parameters theta'(g). A meta-gradient needs the product
(d theta'/d g)^T v. For SGD that is a number, for Adam and AdamW a diagonal, both in closed form; for the other
optimisers torch's own `differentiable=True` gives it exactly.
"""

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from molere.errors import ConfigError
from molere.names import one_line, unknown
from molere.recipe import Factory

T = TypeVar("T")
Params = dict[str, Tensor]
Group = dict[str, Any]  # Any: torch's own parameter groups hold numbers, flags and tensors


_CLOSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Optimisers whose derivative is written down below; subclasses may step otherwise and do not count."""


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of torch.optim of that name, in any case; `ConfigError` if there is none.

    LBFGS is not offered: it evaluates the loss again within its step.
    """
    known = {k: v for k, v in _classes(torch.optim, torch.optim.Optimizer).items() if k != "lbfgs"}
    if name.lower() not in known:
        raise ConfigError(unknown("optimizer", name, sorted(known)))
    return known[name.lower()]


def _classes(module: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """The subclasses of base that a module offers, by their names in lower case."""
    found = {k.lower(): v for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, base)}
    return {k: v for k, v in found.items() if v is not base}


def make_optimizer(
    choice: str | Factory,
    parameters: Iterable[Tensor],
    *,
    lr: float,
    arguments: Mapping[str, object] | None = None,
    **settings: object,
) -> torch.optim.Optimizer:
    """An optimiser by name, from settings (those its constructor does not know are left out if off) and arguments.

    A factory is called with the parameters, lr and the arguments alone: the settings are its own business.
    """
    leaves = list(parameters)
    if not isinstance(choice, str):
        return cast(torch.optim.Optimizer, choice(leaves, lr=lr, **(arguments or {})))
    settings |= arguments or {}
    if not leaves:
        raise ConfigError("nothing to train: no parameter of the module has requires_grad=True; unfreeze its head")
    make = optimizer_class(choice)
    accepted = inspect.signature(make).parameters
    known = {k: v for k, v in settings.items() if k in accepted}
    strange = [k for k, v in settings.items() if k not in accepted and v and k != "momentum"]
    if strange:
        raise ConfigError(f"optimizer {choice!r} has no {strange[0]!r}; leave it out or set it to 0")
    if make in _CLOSED and not {"foreach", "differentiable", "dampening"} & {k for k, v in known.items() if v}:
        known.setdefault("fused", all(p.dtype == torch.float32 for p in leaves))
    try:
        optimizer = cast(Callable[..., torch.optim.Optimizer], make)(leaves, lr=lr, **known)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {choice!r}: {' '.join(str(error).split())}") from error
    if make is torch.optim.SGD and known.get("fused") and known.get("momentum"):
        for p in leaves:  # the same first step; without it the fused kernel fails on gradients that begin later
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


class Schedule:
    """The learning rate as a function of the number of updates done.

    `cosine`, `step` (milestones as fractions of the run, default .5; gamma .1) and `constant` are pure functions of the
    update. A class of torch.optim.lr_scheduler, or a callable, is stepped once per epoch, as in torch's own loops.
    """

    def __init__(
        self,
        choice: str | Factory | None,
        optimizer: torch.optim.Optimizer,
        *,
        updates: int,
        per_epoch: int,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self._optimizer = optimizer  # not its groups: loading a state puts new ones in their place
        self._base = [float(g["lr"]) for g in optimizer.param_groups]
        self._per_epoch = per_epoch
        self._factor, self._torch = _schedule(choice, optimizer, max(1, updates), dict(settings or {}))
        self._damping = 1.0
        self.at(0)

    def at(self, update: int) -> None:
        """Set the learning rate for the update of this number (0 is the first)."""
        if self._factor is not None:
            factor = self._factor(update)
            for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
                group["lr"] = self._damping * base * factor
        elif self._torch is not None and update and update % self._per_epoch == 0:
            with warnings.catch_warnings():  # torch cannot know of the steps before a run was resumed
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                self._torch.step()

    def damp(self, to: float) -> None:
        """From now on `to` times the learning rate that was chosen."""
        factor, self._damping = to / self._damping, to
        for group in self._optimizer.param_groups:
            group["lr"] *= factor
        if self._torch is not None:
            self._torch.base_lrs = [factor * lr for lr in self._torch.base_lrs]

    @property
    def lr(self) -> float:
        """The learning rate in force."""
        return float(self._optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, object]:
        """What a torch scheduler remembers, empty for pure functions of the update; and a damping, if there is one."""
        stepped = {} if self._torch is None else dict(self._torch.state_dict())
        return stepped if self._damping == 1 else {**stepped, "damping": self._damping}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Undo `state_dict`."""
        self._damping = float(cast(float, state.get("damping", 1.0)))
        if self._torch is not None:
            self._torch.load_state_dict({k: v for k, v in state.items() if k != "damping"})


def _schedule(
    choice: str | Factory | None, optimizer: torch.optim.Optimizer, updates: int, settings: dict[str, object]
) -> tuple[Callable[[int], float] | None, torch.optim.lr_scheduler.LRScheduler | None]:
    if choice is None:
        choice = "constant"
    if not isinstance(choice, str):
        return None, cast(torch.optim.lr_scheduler.LRScheduler, choice(optimizer, **settings))
    try:
        if choice in _FACTORS:
            return _FACTORS[choice](updates, **settings), None
        make = cast(Callable[..., torch.optim.lr_scheduler.LRScheduler], _scheduler_class(choice))
        return None, make(optimizer, **settings)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"scheduler {choice!r} with {one_line(settings)}: {reason}") from error


def _scheduler_class(name: str) -> type[torch.optim.lr_scheduler.LRScheduler]:
    known = _classes(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)
    known.pop("reducelronplateau")  # its step needs a metric
    if name.lower() not in known:
        raise ConfigError(unknown("scheduler", name, [*_FACTORS, *sorted(known)]))
    return known[name.lower()]


def _constant(updates: int) -> Callable[[int], float]:
    return lambda _: 1.0


def _cosine(updates: int, floor: float = 0.0) -> Callable[[int], float]:
    return lambda u: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(u, updates) / updates))


def _step(updates: int, milestones: Iterable[float] = (0.5,), gamma: float = 0.1) -> Callable[[int], float]:
    at = [float(m) * updates - 1e-9 for m in milestones]  # so that 0.07 of 100 updates are 7
    return lambda u: float(gamma) ** sum(u >= m for m in at)


_FACTORS: dict[str, Callable[..., Callable[[int], float]]] = {"cosine": _cosine, "step": _step, "constant": _constant}


class Sensitivity:
    """v -> (d theta'/d g)^T v for the optimiser's next step. Make it before the step, call it after.

    SGD           -lr (1 - dampening) [1 + momentum if Nesterov] v        (the first step of momentum has no dampening)
    Adam, AdamW   -lr/c1 [(1-b1)/d - m' (1-b2) g / (d^2 sqrt(v') sqrt(c2))] v,   d = sqrt(v'/c2) + eps, c_k = 1 - b_k^t
    others        by automatic differentiation of the optimiser itself
    A clipped gradient s g, s = clip/|g|, adds the factor s (I - g g^T / |g|^2).

    Parameters that the step leaves alone (not the optimiser's, or without a state) have the product 0. Raises
    `ConfigError` when made, if the optimiser can be neither derived nor differentiated.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, params: Params) -> None:
        self._optimizer = optimizer
        self._params = params
        self._group_of = {id(p): dict(g) for g in optimizer.param_groups for p in g["params"]}
        state = optimizer.state
        self._fresh = {id(p): state.get(p, {}).get("momentum_buffer") is None for p in params.values()}
        closed = type(optimizer) in _CLOSED
        if not closed and not all("differentiable" in g for g in optimizer.param_groups):
            name = type(optimizer).__name__
            raise ConfigError(f"no look-ahead through {name}, which torch cannot differentiate; use sgd, adam, adamw")
        self._before = {} if closed else {id(p): copy.deepcopy(state.get(p, {})) for p in params.values()}

    def __call__(
        self, direction: Params, *, grads: Params, before: Params, clip: tuple[float, float] | None = None
    ) -> Params:
        """Products for the parameters that direction names.

        grads: as the optimiser saw them; {} will do where nothing `reads_gradients` and nothing was clipped.
        before: the parameters it started from.
        clip: (scale s, norm of the unclipped gradient) where clipping took place.
        """
        out = {k: self._product(self._params[k], v, grads.get(k), before[k]) for k, v in direction.items()}
        return out if clip is None else _through_clipping(out, grads, *clip)

    @property
    def reads_gradients(self) -> bool:
        """Whether the products depend on the gradient; those of SGD do not."""
        return type(self._optimizer) is not torch.optim.SGD

    def _product(self, p: Tensor, v: Tensor, grad: Tensor | None, before: Tensor) -> Tensor:
        group, kind = self._group_of.get(id(p)), type(self._optimizer)
        if group is None:
            return torch.zeros_like(v)
        if kind is torch.optim.SGD:
            return v * _sgd_factor(group, fresh=self._fresh[id(p)])
        assert grad is not None, "this optimiser's products depend on the gradient"
        if kind not in _CLOSED:
            return _by_autograd(kind, group, self._before[id(p)], grad, before, v)
        state = self._optimizer.state.get(p)
        if not state:
            return torch.zeros_like(v)
        decoupled = kind is torch.optim.AdamW or bool(group.get("decoupled_weight_decay"))
        decay = 0.0 if decoupled else float(group["weight_decay"])
        return v * _adam_diagonal(group, state, grad + decay * _sign(group) * before)


def _sgd_factor(group: Group, *, fresh: bool) -> float:
    lr, momentum = float(group["lr"]), float(group["momentum"])
    sign = -_sign(group)
    if not momentum:
        return sign * lr
    enters = 1.0 if fresh else 1.0 - float(group["dampening"])
    return sign * lr * (1.0 + momentum * enters if group["nesterov"] else enters)


def _sign(group: Group) -> float:
    return -1.0 if group.get("maximize") else 1.0


def _adam_diagonal(group: Group, state: Mapping[str, Any], grad: Tensor) -> Tensor:
    beta1, beta2 = (float(b) for b in group["betas"])
    step = float(state["step"])
    c1, c2 = 1 - beta1**step, 1 - beta2**step
    g = _sign(group) * grad
    second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    moves = (second == state["exp_avg_sq"]).to(g.dtype) if group["amsgrad"] else 1.0
    root = second.sqrt()
    d = root / math.sqrt(c2) + float(group["eps"])
    curve = torch.where(root > 0, state["exp_avg"] * g / root.clamp_min(torch.finfo(g.dtype).tiny), 0.0)
    slope = (1 - beta1) / d - moves * (1 - beta2) / math.sqrt(c2) * curve / d**2
    return -_sign(group) * float(group["lr"]) / c1 * slope


def _by_autograd(
    kind: type[torch.optim.Optimizer],
    group: Group,
    state: Mapping[str, Any],
    grad: Tensor,
    before: Tensor,
    v: Tensor,
) -> Tensor:
    known = set(inspect.signature(kind).parameters) - {"params", "foreach", "fused", "capturable"}
    settings = {k: x for k, x in group.items() if k in known}  # schedulers leave notes of their own in a group
    # The root of a square has no slope at 0 (0 / 0 by automatic differentiation), but a limit, taken here.
    least = torch.finfo(grad.dtype).tiny ** 0.4
    g = torch.where(grad.abs() < least, least, grad.detach()).requires_grad_()
    p = before.detach().clone()
    twin = cast(Callable[..., torch.optim.Optimizer], kind)([p], **{**settings, "differentiable": True})
    if state:
        twin.state[p] = copy.deepcopy(dict(state))
    with torch.enable_grad():
        p.grad = g
        twin.step()
        return torch.autograd.grad(p, g, v)[0]


def _through_clipping(v: Params, grads: Params, scale: float, norm: float) -> Params:
    # grads are the clipped ones, s g; torch divides by |g| + 1e-6
    along = sum(float((v[k] * grads[k]).sum()) for k in v) / (scale**2 * norm * (norm + 1e-6))
    return {k: scale * (v[k] - along * grads[k]) for k in v}
