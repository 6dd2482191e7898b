"""Optimisers and schedules by name, and the derivative of one optimiser step with respect to the gradient.

One step of any optimiser of torch maps the gradient g to new parameters theta'(g). A meta-gradient needs the product
(d theta'/d g)^T v. For SGD that is a number, for Adam and AdamW a diagonal, both in closed form; for the other
optimisers torch's own `differentiable=True` gives it exactly.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from molere.errors import ConfigError
from molere.recipe import Factory, Recipe

Params = dict[str, Tensor]
Group = dict[str, Any]  # Any: torch's own parameter groups hold numbers, flags and tensors


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of torch.optim of that name, in any case; `ConfigError` if there is none."""
    known = {
        k.lower(): v
        for k, v in vars(torch.optim).items()
        if isinstance(v, type) and issubclass(v, torch.optim.Optimizer)
    }
    if name.lower() not in known:
        raise ConfigError(f"unknown optimizer {name!r}; known: {', '.join(sorted(known))}")
    return known[name.lower()]


def make_optimizer(
    choice: str | Factory, parameters: Iterable[Tensor], *, lr: float, **settings: object
) -> torch.optim.Optimizer:
    """An optimiser by name or factory; settings that its constructor does not know are left out if they are off."""
    leaves = list(parameters)
    if not isinstance(choice, str):
        return cast(torch.optim.Optimizer, choice(leaves, lr=lr))
    make = optimizer_class(choice)
    accepted = make.__init__.__code__.co_varnames
    arguments = {k: v for k, v in settings.items() if k in accepted}
    unknown = [k for k, v in settings.items() if k not in accepted and v and k != "momentum"]
    if unknown:
        raise ConfigError(f"optimizer {choice!r} has no {unknown[0]!r}; leave it out")
    if "fused" in accepted and make in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        arguments.setdefault("fused", all(p.dtype == torch.float32 for p in leaves))
    return make(leaves, lr=lr, **arguments)  # pyright: ignore[reportCallIssue]


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
        self._groups = optimizer.param_groups
        self._base = [float(g["lr"]) for g in self._groups]
        self._per_epoch = per_epoch
        self._factor, self._torch = _schedule(choice, optimizer, max(1, updates), dict(settings or {}))
        self.at(0)

    def at(self, update: int) -> None:
        """Set the learning rate for the update of this number (0 is the first)."""
        if self._factor is not None:
            factor = self._factor(update)
            for group, base in zip(self._groups, self._base, strict=True):
                group["lr"] = base * factor
        elif self._torch is not None and update and update % self._per_epoch == 0:
            self._torch.step()

    @property
    def lr(self) -> float:
        """The learning rate in force."""
        return float(self._groups[0]["lr"])

    def state_dict(self) -> dict[str, object]:
        """What a torch scheduler remembers; empty for pure functions of the update."""
        return {} if self._torch is None else dict(self._torch.state_dict())

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Undo `state_dict`."""
        if self._torch is not None:
            self._torch.load_state_dict(dict(state))


def _schedule(
    choice: str | Factory | None, optimizer: torch.optim.Optimizer, updates: int, settings: dict[str, object]
) -> tuple[Callable[[int], float] | None, torch.optim.lr_scheduler.LRScheduler | None]:
    if choice is None or choice == "constant":
        return (lambda _: 1.0), None
    if choice == "cosine":
        floor = float(cast(float, settings.get("floor", 0.0)))
        return (
            lambda u: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(u, updates) / updates))
        ), None
    if choice == "step":
        milestones = [float(m) for m in cast(Iterable[float], settings.get("milestones", (0.5,)))]
        gamma = float(cast(float, settings.get("gamma", 0.1)))
        return (lambda u: gamma ** sum(u >= m * updates for m in milestones)), None
    if isinstance(choice, str):
        known = {k.lower(): v for k, v in vars(torch.optim.lr_scheduler).items() if isinstance(v, type)}
        if choice.lower() not in known:
            raise ConfigError(
                f"unknown scheduler {choice!r}; known: cosine, step, constant, or a class of torch.optim.lr_scheduler"
            )
        choice = known[choice.lower()]
    return None, cast(torch.optim.lr_scheduler.LRScheduler, choice(optimizer, **settings))


class Sensitivity:
    """v -> (d theta'/d g)^T v for the optimiser's next step. Make it before the step, call it after.

    SGD           -lr (1 - dampening) [1 + momentum if Nesterov] v        (the first step of momentum has no dampening)
    Adam, AdamW   -lr/c1 [(1-b1)/d - m' (1-b2) g / (d^2 sqrt(v') sqrt(c2))] v,   d = sqrt(v'/c2) + eps, c_k = 1 - b_k^t
    others        by automatic differentiation of the optimiser itself
    A clipped gradient s g, s = clip/|g|, adds the factor s (I - g g^T / |g|^2).

    Raises `ConfigError` when called, if the optimiser can be neither derived nor differentiated.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, params: Params) -> None:
        self._optimizer = optimizer
        self._groups = [dict(g) for g in optimizer.param_groups]
        self._closed = isinstance(optimizer, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW))
        state = optimizer.state
        self._fresh = {id(p): state.get(p, {}).get("momentum_buffer") is None for p in params.values()}
        self._before = (
            {} if self._closed else {id(p): copy.deepcopy(state.get(p, {})) for p in params.values()}
        )
        self._params = params
        self._group_of = {id(p): g for g in self._groups for p in g["params"]}

    def __call__(
        self, direction: Params, *, grads: Params, before: Params, clip: tuple[float, float] | None = None
    ) -> Params:
        """Products for every parameter; grads as the optimiser saw them, before: the parameters it started from.

        clip: (scale s, norm of the unclipped gradient) where clipping took place.
        """
        out: Params = {}
        for name, p in self._params.items():
            group = self._group_of[id(p)]
            if isinstance(self._optimizer, torch.optim.SGD):
                out[name] = direction[name] * _sgd_factor(group, fresh=self._fresh[id(p)])
            elif isinstance(self._optimizer, (torch.optim.Adam, torch.optim.AdamW)):
                decoupled = isinstance(self._optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))
                decay = 0.0 if decoupled else float(group["weight_decay"])
                seen = grads[name] + decay * _sign(group) * before[name]
                diagonal = _adam_diagonal(group, self._optimizer.state[p], seen)
                out[name] = direction[name] * diagonal
            else:
                out[name] = _by_autograd(
                    self._optimizer, group, self._before[id(p)], grads[name], before[name], direction[name]
                )
        return out if clip is None else _through_clipping(out, grads, *clip)


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
    optimizer: torch.optim.Optimizer,
    group: Group,
    state: Mapping[str, Any],
    grad: Tensor,
    before: Tensor,
    v: Tensor,
) -> Tensor:
    settings = {
        k: x
        for k, x in group.items()
        if k not in ("params", "foreach", "fused", "capturable", "initial_lr", "decoupled_weight_decay")
    }
    if "differentiable" not in settings:
        raise ConfigError(
            f"no look-ahead through {type(optimizer).__name__}; use sgd, adam, adamw or another optimiser with differentiable=True"
        )
    g, p = grad.detach().clone().requires_grad_(), before.detach().clone()
    twin = type(optimizer)([p], **{**settings, "differentiable": True})
    if state:
        twin.state[p] = copy.deepcopy(dict(state))
    with torch.enable_grad():
        p.grad = g
        twin.step()
        return torch.autograd.grad(p, g, v)[0]


def _through_clipping(v: Params, grads: Params, scale: float, norm: float) -> Params:
    along = (
        sum(float((v[k] * grads[k]).sum()) for k in v) / (scale * norm) ** 2
    )  # grads are the clipped ones, s g
    return {k: scale * (v[k] - along * grads[k]) for k in v}
