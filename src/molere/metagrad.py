"""The gradient of a validation loss with respect to per-example weights, without differentiating through the update.

With theta'(w) one optimiser step on (1/n) sum_i w_i l_i(theta), the chain rule gives, exactly,

    d L_val(theta') / d w_i  =  1/n < (d theta'/d grad)^T grad L_val(theta'),  grad l_i(theta) >.

All n inner products are one directional derivative of the vector of losses, so no second-order graph is built. An
estimator takes that derivative: `ForwardMode` to rounding error, the differences from ordinary forward passes.
"""

import importlib
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm

from molere.errors import ConfigError
from molere.kernels import uncompiled
from molere.learner import Learner
from molere.optim import Params

Outputs = Callable[[Params], Float[Tensor, "n *c"]]
"""Theta -> losses [n] or logits [n, c] of a batch; every estimator takes either."""

DIFFERENCE_STEP = 1e-5
"""Length of a difference step over that of theta (or 1, if larger): more meets kinks and curvature, less rounding."""


@runtime_checkable
class Estimator(Protocol):
    """Takes < direction, grad l_i(theta) > for all outputs l_i; `base` is l(theta), where the caller has it already."""

    def __call__(
        self,
        outputs: Outputs,
        theta: Params,
        direction: Params,
        *,
        base: Float[Tensor, "n *c"] | None = None,
    ) -> Float[Tensor, "n *c"]:
        """The products, of the outputs' shape."""
        ...

    @property
    def name(self) -> str:
        """As in the recipe."""
        ...

    @property
    def passes(self) -> int:
        """Forward passes it takes when `base` is given (a forward-mode pass counts two)."""
        ...


@dataclass(frozen=True)
class ForwardMode:
    """One forward-mode pass: exact to rounding.

    Attention runs on its plain kernel, and a module whose fast kernels have no forward derivatives (LSTM) without them.
    Raises `ConfigError` where that is not enough (weight_norm, spectral_norm, functions without `jvp`).
    """

    name: str = "exact"
    passes: int = 2

    def __call__(
        self,
        outputs: Outputs,
        theta: Params,
        direction: Params,
        *,
        base: Float[Tensor, "n *c"] | None = None,
    ) -> Float[Tensor, "n *c"]:
        """d/dt l(theta + t direction) at t = 0."""
        _load_quietly()
        try:
            return self._products(outputs, theta, direction)
        except NotImplementedError:
            pass
        try:
            with _plain_kernels():
                return self._products(outputs, theta, direction)
        except NotImplementedError as error:
            reason = str(error).partition(". ")[0].partition("\n")[0]
            raise ConfigError(f"no exact products for this module; use the central difference. {reason}") from error

    def _products(self, outputs: Outputs, theta: Params, direction: Params) -> Float[Tensor, "n *c"]:
        with _plain_attention(), uncompiled(), torch.no_grad(), forward_ad.dual_level():
            out = outputs({k: forward_ad.make_dual(t.detach(), direction[k]) for k, t in theta.items()})
            primal, tangent = forward_ad.unpack_dual(out)
            return torch.zeros_like(primal) if tangent is None else tangent.clone()


@cache
def _load_quietly() -> None:
    """What torch imports at its first dual number, which warns of torch's own use of a deprecated function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")


@contextmanager
def _plain_kernels() -> Generator[None]:
    """Neither oneDNN nor cuDNN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's flags set a switch that torch has deprecated
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


@contextmanager
def _plain_attention() -> Generator[None]:
    """No kernel for attention that has no forward derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@dataclass(frozen=True)
class OneSidedDifference:
    """[l(theta + e v) - l(theta)] / e, one forward pass if l(theta) is known; error of order e."""

    name: str = "one-sided"
    passes: int = 1

    def __call__(
        self,
        outputs: Outputs,
        theta: Params,
        direction: Params,
        *,
        base: Float[Tensor, "n *c"] | None = None,
    ) -> Float[Tensor, "n *c"]:
        """The forward difference with |e v| = 1e-5 |theta|."""
        step = _step(theta, direction)
        with torch.no_grad():
            start = outputs(theta) if base is None else base.detach()
            if step == 0:
                return torch.zeros_like(start)
            return (outputs(_moved(theta, direction, step)) - start) / step


@dataclass(frozen=True)
class CentralDifference:
    """[l(theta + e v) - l(theta - e v)] / 2e, two forward passes; error of order e^2."""

    name: str = "central"
    passes: int = 2

    def __call__(
        self,
        outputs: Outputs,
        theta: Params,
        direction: Params,
        *,
        base: Float[Tensor, "n *c"] | None = None,
    ) -> Float[Tensor, "n *c"]:
        """The central difference with |e v| = 1e-5 |theta|."""
        step = _step(theta, direction)
        with torch.no_grad():
            ahead = outputs(_moved(theta, direction, step))
            if step == 0:
                return torch.zeros_like(ahead)
            return (ahead - outputs(_moved(theta, direction, -step))) / (2 * step)


ESTIMATORS: dict[str, Estimator] = {e.name: e for e in (ForwardMode(), OneSidedDifference(), CentralDifference())}


def _step(theta: Params, direction: Params) -> float:
    length, size = get_total_norm(list(direction.values())), get_total_norm(list(theta.values()))
    return float(torch.where(length > 0, DIFFERENCE_STEP * size.clamp_min(1) / length, 0.0))


def _moved(theta: Params, direction: Params, step: float) -> Params:
    moved = torch._foreach_add([t.detach() for t in theta.values()], [direction[k] for k in theta], alpha=step)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return dict(zip(theta, moved, strict=True))


def gradients(loss: Float[Tensor, ""], leaves: Params, *, retain_graph: bool = False) -> Params:
    """grad loss by name, for leaves it was computed from; zeros where it does not depend on one."""
    grads = torch.autograd.grad(
        loss, list(leaves.values()), retain_graph=retain_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, grads, strict=True))


def gradient(loss: Callable[[Params], Float[Tensor, ""]], theta: Params) -> Params:
    """grad loss(theta), by name; zeros for parameters that the loss does not depend on."""
    leaves = {k: t.detach().requires_grad_() for k, t in theta.items()}
    with torch.enable_grad():
        return gradients(loss(leaves), leaves)


def weight_gradient(
    learner: Learner,
    losses: Outputs,
    val_loss: Callable[[Params], Float[Tensor, ""]],
    w: Float[Tensor, " n"],
    *,
    along: Estimator | None = None,
) -> Float[Tensor, " n"]:
    """d L_val(theta') / d w, theta' one step of the learner's optimiser on mean(w l(theta)); nothing is changed.

    Args:
        learner: the classifier; its parameters, optimiser state and learning rate define the step.
        losses: theta -> per-example losses [n].
        val_loss: theta -> validation loss, a scalar.
        w: weights [n] as they enter the mean, any sign.
        along: how the inner products are taken; default: forward mode.

    Returns:
        [n], the derivative for each weight as used (after any normalisation).
    """
    theta = {k: p.detach() for k, p in learner.params.items()}
    ahead, pull_back = learner.lookahead(gradient(lambda t: (w.detach() * losses(t)).mean(), theta))
    direction = pull_back(gradient(val_loss, ahead))
    return (along or ForwardMode())(losses, theta, direction) / len(w)
