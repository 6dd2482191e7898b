"""Learner: a module, its optimiser and its schedule; the only thing in the library that is mutated.

`step` and `descend` change the parameters. `at` evaluates the module elsewhere, with other parameters and copies of its
buffers, and leaves parameters, buffers, gradients and the global random state bit for bit as they were.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from molere import rng
from molere.errors import NumericsError
from molere.optim import Params, Schedule, Sensitivity

PullBack = Callable[[Params], Params]
_Slot = tuple[dict[str, Any], str]  # Any: nn.Module's own tables hold Parameter, Tensor or None


class Learner:
    """A named module with its optimiser; callable like the module.

    Args:
        name: under which its state is saved.
        model: any module; it is not modified, and tied parameters are one parameter.
        optimizer: over the module's trainable parameters.
        schedule: learning rate by update, or none.
        grad_clip: largest norm of the gradient, or none.
        scaled: scale losses before backward (float16 autocast).
        channels_last: give images to the module in that memory order.
        backend: of torch.compile, through which the module is called; none: as it is.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule | None = None,
        *,
        grad_clip: float | None = None,
        scaled: bool = False,
        channels_last: bool = False,
        backend: str | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self._called = model if backend is None else _compiled(model, backend)
        self.optimizer = optimizer
        self.schedule = schedule
        self.grad_clip = grad_clip
        self._take(_trained(model))
        self._channels_last = channels_last
        self._double = self._leaves[0].dtype == torch.float64
        self._scaler = torch.amp.GradScaler(self._leaves[0].device.type) if scaled else None
        self._clipped: tuple[float, float] | None = None
        self._stood_still = False
        self.guarded = False
        """Whether an update along a gradient that is not finite is refused."""

    def _take(self, params: Params) -> None:
        self.params, self._leaves = params, list(params.values())
        self._slots = _slots(self.model, params)
        self._before: Params | None = None

    def renew(self) -> bool:
        """Take up what was frozen, unfrozen or put in another's place since; whether anything was."""
        found = _trained(self.model)
        if list(map(id, found.values())) == list(map(id, self._leaves)):
            return False
        self._take(found)
        return True

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The module's output."""
        return self._called(*map(self._cast, inputs))

    def _cast(self, x: Tensor) -> Tensor:
        """The input as the module wants it: float64 if its parameters are, images in its memory order."""
        x = x.double() if self._double and x.is_floating_point() else x
        return x.contiguous(memory_format=torch.channels_last) if self._channels_last and x.ndim == 4 else x

    def step(self, loss: Tensor) -> None:
        """One update of the parameters down a scalar loss."""
        self._demand(loss, "loss")
        self._clear()
        if self._scaler is None:
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        else:
            self._scaler.scale(loss).backward()
        self._apply()

    def descend(self, output: Tensor, cotangent: Tensor) -> None:
        """One update along the chain rule: cotangent = dL/d output, of the output's shape."""
        self.descend_parts([(output, cotangent)])

    def descend_parts(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        """One update along the sum of several (output, cotangent), each backward before the next is asked for."""
        self._clear()
        for output, cotangent in parts:
            self._demand(cotangent, "gradient")
            scaled = cotangent if self._scaler is None else self._scaler.scale(cotangent)
            output.backward(scaled)  # pyright: ignore[reportUnknownMemberType]
        self._apply()

    def follow(self, grads: Params) -> None:
        """One update along gradients that are known already; parameters without one stay."""
        owned = set[int]()
        for name, p in self.params.items():
            grad = _laid_out(grads[name], p) if name in grads else None
            shared = grad is not None and (self.grad_clip is not None or grad.data_ptr() in owned)
            p.grad = grad.clone() if grad is not None and shared else grad  # autograd may give one tensor twice
            owned |= set() if grad is None else {grad.data_ptr()}
        self._apply()

    def stand_still(self) -> None:
        """What `pull_back` is to know of an update that was not made."""
        self._clear()
        self._clipped, self._stood_still = None, False

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied with before their backward pass (float16); 1 otherwise."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def use_scaler(self, scaler: torch.amp.GradScaler | None) -> None:
        """Take the loss scale from somebody else's scaler, if it is on."""
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None

    def _clear(self) -> None:
        for p in self._leaves:
            p.grad = None

    def _demand(self, value: Tensor, what: str) -> None:
        """NumericsError unless what a network beside the classifier learns from is finite; the run watches that one."""
        if self.name != "classifier" and self._scaler is None and not bool(torch.isfinite(value).all()):
            raise NumericsError(f"the {what} of the {self.name} is not finite; lower its lr, or the classifier's")

    def _apply(self) -> None:
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        elif self.guarded:
            self._check_gradients()
        self._clipped = self._clip(self._leaves)
        if self._scaler is None:
            self.optimizer.step()
        else:
            before = self._scaler.get_scale()
            self._scaler.step(self.optimizer)
            self._scaler.update()
            self._stood_still = self._scaler.get_scale() < before  # gradients overflowed: there was no step

    def _check_gradients(self) -> None:
        norms = torch._foreach_norm([p.grad for p in self._leaves if p.grad is not None])  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        if not bool(torch.isfinite(torch.stack(norms)).all()):
            self.stand_still()
            raise NumericsError(f"the gradient of the {self.name} is not finite; lower train.lr or set train.grad_clip")

    def _clip(self, leaves: list[Tensor]) -> tuple[float, float] | None:
        if self.grad_clip is None:
            return None
        norm = float(nn.utils.clip_grad_norm_(leaves, self.grad_clip))
        scale = self.grad_clip / (norm + 1e-6)
        return (scale, norm) if scale < 1 else None

    def grads(self) -> Params:
        """The gradients the optimiser has just seen (zeros where there were none)."""
        return {k: p.grad if p.grad is not None else torch.zeros_like(p) for k, p in self.params.items()}

    def snapshot(self) -> Params:
        """Copies of the trainable parameters."""
        return {k: p.detach().clone() for k, p in self.params.items()}

    def remembered(self) -> Params:
        """As `snapshot`, in tensors that the next call overwrites."""
        if self._before is None:
            self._before = self.snapshot()
        else:
            torch._foreach_copy_(list(self._before.values()), [p.detach() for p in self._leaves])  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return self._before

    @contextmanager
    def at(
        self, theta: Params | None = None, *, stream: int | None = None, evaluating: type[nn.Module] | None = None
    ) -> Generator[None]:
        """The module with parameters theta (none: its own) and copies of its buffers, inside the block.

        Args:
            theta: tensors by name; they may require a gradient or be dual numbers of forward-mode differentiation.
            stream: key of the random stream (dropout masks); none: the global one as it stands.
            evaluating: submodules of this class are in evaluation mode (`nn.Module`: all); none: all as they are.
        """
        modules = list(self.model.modules())
        modes = [] if evaluating is None else [(m, m.training) for m in modules if isinstance(m, evaluating)]
        buffers = [(m._buffers, k, b) for m in modules for k, b in m._buffers.items()]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        slots = [(table, slot, name) for name in theta or {} for table, slot in self._slots[name]]
        copies = {id(b): b.clone() for _, _, b in buffers if b is not None}  # a shared buffer stays shared
        try:
            for table, slot, b in buffers:
                table[slot] = None if b is None else copies[id(b)]
            for table, slot, name in slots:
                table[slot] = (theta or {})[name]
            for module, _ in modes:
                module.training = False
            with rng.seeded(stream):
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for table, slot, name in slots:
                table[slot] = self.params[name]
            for table, slot, b in buffers:
                table[slot] = b

    def sensitivity(self) -> Sensitivity:
        """The derivative of the optimiser's next step, to be made before it and called after."""
        return Sensitivity(self.optimizer, self.params)

    def pull_back(self, sensitivity: Sensitivity, direction: Params, *, before: Params) -> Params:
        """(d theta'/d grad)^T direction for the step just taken from `before`."""
        if self._stood_still:
            return {k: torch.zeros_like(v) for k, v in direction.items()}
        grads = {} if self._clipped is None and not sensitivity.reads_gradients else self.grads()
        return sensitivity(direction, grads=grads, before=before, clip=self._clipped)

    def free_gradients(self, sensitivity: Sensitivity) -> None:
        """Give the memory of the last step's gradients back, if `pull_back` will not read them."""
        if self._clipped is None and not sensitivity.reads_gradients:
            self._clear()

    def rates(self) -> dict[str, float]:
        """The present learning rate of each parameter, 0 where the optimiser does not have it."""
        lr = {id(p): float(g["lr"]) for g in self.optimizer.param_groups for p in g["params"]}
        return {k: lr.get(id(p), 0.0) for k, p in self.params.items()}

    def plain_step(self, grads: Params) -> tuple[Params, PullBack]:
        """theta' = theta - lr grads, without momentum or weight decay, and v -> -lr v."""
        rate = self.rates()
        ahead = {k: p.detach() - rate[k] * grads[k] for k, p in self.params.items()}
        return ahead, lambda v: {k: -rate[k] * t for k, t in v.items()}

    def lookahead(self, grads: Params) -> tuple[Params, PullBack]:
        """theta' of one optimiser step along `grads`, and v -> (d theta'/d grads)^T v, without taking the step.

        The optimiser itself takes the step, on twins of the parameters and copies of its state and settings, so that
        momentum, weight decay and any schedule are those of the real one.
        """
        optimizer, sensitivity = self.optimizer, self.sensitivity()
        before = {k: p.detach() for k, p in self.params.items()}
        moved = [p for g in optimizer.param_groups for p in g["params"]]
        twins: dict[Tensor, Tensor] = {p: p.detach().clone() for p in (*self._leaves, *moved)}
        for name, p in self.params.items():
            twins[p].grad = torch.empty_like(p).copy_(grads[name])
        states, groups = optimizer.state, optimizer.param_groups
        hooks = _hooks(optimizer)
        try:
            optimizer.param_groups = [{**g, "params": [twins[p] for p in g["params"]]} for g in groups]
            optimizer.state = type(states)(dict, {twins.get(p, p): _copied(s) for p, s in states.items()})
            clipped = self._clip([twins[p] for p in self._leaves])
            optimizer.step()
            after = optimizer.state
        finally:
            optimizer.state, optimizer.param_groups = states, groups
            vars(optimizer).update(hooks)
        stepped: Params = {}
        seen: Params = {}
        for name, p in self.params.items():
            stepped[name], seen[name] = twins[p], cast(Tensor, twins[p].grad)
            twins[p].grad = None

        def pull_back(v: Params) -> Params:
            optimizer.state = type(states)(dict, {p: after[twins[p]] for p in self._leaves if twins[p] in after})
            try:
                return sensitivity(v, grads=seen, before=before, clip=clipped)
            finally:
                optimizer.state = states

        return stepped, pull_back

    def state_dict(self) -> dict[str, object]:
        """Everything that changes: module, optimiser, schedule."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {} if self.schedule is None else self.schedule.state_dict(),
            "scaler": {} if self._scaler is None else self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: nested plain data
        """Undo `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])


def _trained(model: nn.Module) -> Params:
    """The parameters that are trained, by name; one that is tied, once."""
    return {k: p for k, p in model.named_parameters() if p.requires_grad}


def _hooks(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Take off what others have called at each step (averages of weights, counters); returned to be put back."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    hooks = {name: vars(optimizer)[name] for name in names if name in vars(optimizer)}
    vars(optimizer).update({name: type(held)() for name, held in hooks.items()})
    return hooks


def _compiled(model: nn.Module, backend: str) -> Callable[..., Tensor]:
    """The module through torch.compile, with dropout masks of the same stream as without."""
    options: dict[str, Any] = {"options": {"fallback_random": True}} if backend == "inductor" else {}
    return cast(Callable[..., Tensor], torch.compile(model, backend=backend, **options))


def _laid_out(grad: Tensor, p: Tensor) -> Tensor:
    """A gradient in its parameter's memory order, in which fused optimisers read both; autograd may give another."""
    return grad if grad.stride() == p.stride() else torch.empty_like(p).copy_(grad)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:  # Any: an optimiser's state is numbers and tensors
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}


def _slots(model: nn.Module, params: Params) -> dict[str, list[_Slot]]:
    """Every place in the module where each parameter hangs; several, where it is tied."""
    names = {id(p): name for name, p in params.items()}
    slots: dict[str, list[_Slot]] = {name: [] for name in params}
    for module in model.modules():
        for slot, p in module._parameters.items():  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            if p is not None and id(p) in names:
                slots[names[id(p)]].append((module._parameters, slot))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return slots
