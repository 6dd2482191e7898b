"""Learner: a module, its optimiser and its schedule; the only thing in the library that is mutated.

`step` and `descend` change the parameters. `at` evaluates the module elsewhere, with other parameters and copies of its
buffers, and leaves parameters, buffers, gradients and the global random state bit for bit as they were.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from molere import rng
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
    ) -> None:
        self.name = name
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.grad_clip = grad_clip
        self.params: Params = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self._leaves = list(self.params.values())
        self._double = self._leaves[0].dtype == torch.float64
        self._scaler = torch.amp.GradScaler(self._leaves[0].device.type) if scaled else None
        self._clipped: tuple[float, float] | None = None
        self._slots = _slots(model, self.params)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The module's output."""
        return self.model(*inputs)

    def cast(self, x: Tensor) -> Tensor:
        """The input in the precision of the parameters, where that is float64."""
        return x.double() if self._double and x.is_floating_point() else x

    def step(self, loss: Tensor) -> None:
        """One update of the parameters down a scalar loss."""
        self._clear()
        if self._scaler is None:
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
        else:
            self._scaler.scale(loss).backward()
        self._apply()

    def descend(self, output: Tensor, cotangent: Tensor) -> None:
        """One update along the chain rule: cotangent = dL/d output, of the output's shape."""
        self._clear()
        output.backward(cotangent)  # pyright: ignore[reportUnknownMemberType]
        self._apply()

    def _clear(self) -> None:
        for p in self._leaves:
            p.grad = None

    def _apply(self) -> None:
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        self._clipped = self._clip()
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()

    def _clip(self) -> tuple[float, float] | None:
        if self.grad_clip is None:
            return None
        norm = float(nn.utils.clip_grad_norm_(self._leaves, self.grad_clip))
        return (self.grad_clip / (norm + 1e-6), norm) if norm > self.grad_clip else None

    def grads(self) -> Params:
        """The gradients the optimiser has just seen (zeros where there were none)."""
        return {k: p.grad if p.grad is not None else torch.zeros_like(p) for k, p in self.params.items()}

    def snapshot(self) -> Params:
        """Copies of the trainable parameters."""
        return {k: p.detach().clone() for k, p in self.params.items()}

    @contextmanager
    def at(
        self, theta: Params | None = None, *, stream: int | None = None, training: bool | None = None
    ) -> Iterator[None]:
        """The module with parameters theta (none: its own) and copies of its buffers, inside the block.

        Args:
            theta: tensors by name; they may require a gradient or be dual numbers of forward-mode differentiation.
            stream: key of the random stream (dropout masks); none: the global one as it stands.
            training: mode of all submodules; none: as they are.
        """
        modes = [] if training is None else [(m, m.training) for m in self.model.modules()]
        buffers = [
            (m._buffers, k, b) for m in self.model.modules() for k, b in m._buffers.items() if b is not None
        ]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for table, name, value in buffers:
            table[name] = value.clone()
        for name, value in (theta or {}).items():
            for table, slot in self._slots[name]:
                table[slot] = value
        for module, _ in modes:
            module.training = bool(training)
        try:
            with rng.seeded(stream):
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for name in theta or {}:
                for table, slot in self._slots[name]:
                    table[slot] = self.params[name]
            for table, name, value in buffers:
                table[name] = value

    def sensitivity(self) -> Sensitivity:
        """The derivative of the optimiser's next step, to be made before it and called after."""
        return Sensitivity(self.optimizer, self.params)

    def pull_back(self, sensitivity: Sensitivity, direction: Params, *, before: Params) -> Params:
        """(d theta'/d grad)^T direction for the step just taken from `before`."""
        return sensitivity(direction, grads=self.grads(), before=before, clip=self._clipped)

    def lookahead(self, grads: Params) -> tuple[Params, PullBack]:
        """theta' of one optimiser step along `grads`, and v -> (d theta'/d grads)^T v, without taking the step.

        The optimiser itself takes the step, on copies of the parameters and of its state, so that momentum, weight
        decay and any schedule are those of the real one.
        """
        sensitivity = self.sensitivity()
        data, kept = [p.data for p in self._leaves], [p.grad for p in self._leaves]
        states = self.optimizer.state
        before = dict(zip(self.params, data, strict=True))
        try:
            self.optimizer.state = type(states)(dict, {p: _copied(s) for p, s in states.items()})
            for (name, p), value in zip(self.params.items(), data, strict=True):
                p.data, p.grad = value.clone(), grads[name].detach().clone()
            clipped = self._clip()
            self.optimizer.step()
            stepped, seen, after = (
                {k: p.data for k, p in self.params.items()},
                self.grads(),
                self.optimizer.state,
            )
        finally:
            self.optimizer.state = states
            for p, value, grad in zip(self._leaves, data, kept, strict=True):
                p.data, p.grad = value, grad

        def pull_back(v: Params) -> Params:
            self.optimizer.state = after
            try:
                return sensitivity(v, grads=seen, before=before, clip=clipped)
            finally:
                self.optimizer.state = states

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
