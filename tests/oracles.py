"""The slow truth: meta-gradients by double backward through a hand-written optimiser step. No import from molere.

    theta'(w) = step( theta, grad (1/n) sum_i w_i l_i(theta) )        built with create_graph
    dL/dw     = autograd of L_val(theta'(w))

Everything is float64. `Trainer` also takes the steps that lead to theta, so that momentum, moments and running
statistics are the oracle's own.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Tensors = dict[str, Tensor]
State = dict[str, Any]
Rule = Callable[[Tensor, Tensor, State], tuple[Tensor, State]]


@dataclass(frozen=True)
class SGD:
    lr: float = 0.1
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    maximize: bool = False

    def __call__(self, p: Tensor, g: Tensor, state: State) -> tuple[Tensor, State]:
        g = (-g if self.maximize else g) + self.weight_decay * p
        if self.momentum == 0:
            return p - self.lr * g, state
        first = "velocity" not in state
        velocity = g if first else self.momentum * state["velocity"] + (1 - self.dampening) * g
        move = g + self.momentum * velocity if self.nesterov else velocity
        return p - self.lr * move, {"velocity": velocity}


@dataclass(frozen=True)
class Adam:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    decoupled: bool = False
    maximize: bool = False

    def __call__(self, p: Tensor, g: Tensor, state: State) -> tuple[Tensor, State]:
        b1, b2 = self.betas
        g = -g if self.maximize else g
        if self.decoupled:
            p = p * (1 - self.lr * self.weight_decay)
        else:
            g = g + self.weight_decay * p
        t = state.get("t", 0) + 1
        m = b1 * state.get("m", torch.zeros_like(p)) + (1 - b1) * g
        v = b2 * state.get("v", torch.zeros_like(p)) + (1 - b2) * g * g
        largest = torch.maximum(state.get("largest", torch.zeros_like(p)), v)
        used = largest if self.amsgrad else v
        move = (m / (1 - b1**t)) / (root(used / (1 - b2**t)) + self.eps)
        return p - self.lr * move, {"t": t, "m": m, "v": v, "largest": largest}


def root(x: Tensor) -> Tensor:
    """sqrt with slope 0 at 0, where its product with a vanishing first moment is 0 as well."""
    return torch.where(x > 0, torch.where(x > 0, x, torch.ones_like(x)).sqrt(), torch.zeros_like(x))


def clipped(grads: Tensors, largest: float | None) -> Tensors:
    if largest is None:
        return grads
    norm = sum((g * g).sum() for g in grads.values()) ** 0.5
    scale = torch.clamp(largest / (norm + 1e-6), max=1.0)
    return {k: g * scale for k, g in grads.items()}


@contextlib.contextmanager
def replayed(stream: int | None) -> Iterator[None]:
    """Dropout masks of a stream, on the plain attention kernel: the others have no second derivative."""
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
        if stream is not None:
            torch.random.manual_seed(stream)
        yield


@dataclass
class Trainer:
    """A float64 twin of a module, trained by the rule; everything functional, the module itself is never changed."""

    model: nn.Module
    rule: Rule
    largest_norm: float | None = None
    theta: Tensors = field(init=False)
    fixed: Tensors = field(init=False)
    state: dict[str, State] = field(init=False)

    def __post_init__(self) -> None:
        named = dict(self.model.named_parameters())
        self.theta = {k: p.detach().clone().double() for k, p in named.items() if p.requires_grad}
        self.fixed = {k: p.detach().clone().double() for k, p in named.items() if not p.requires_grad}
        self.fixed |= {k: _double(b) for k, b in self.model.named_buffers()}
        self.state = {k: {} for k in self.theta}

    def losses(self, theta: Tensors, x: Tensor, y: Tensor, stream: int | None = None, *, real: bool = False) -> Tensor:
        """Per-example losses [n]; only a real pass changes the running statistics."""
        fixed = self.fixed if real else {k: b.clone() for k, b in self.fixed.items()}
        with replayed(stream):
            logits = functional_call(self.model, {**theta, **fixed}, (_double(x),))
        return F.cross_entropy(logits, y, reduction="none")

    def moved(self, theta: Tensors, losses: Tensor, w: Tensor, *, graph: bool) -> tuple[Tensors, dict[str, State]]:
        """theta' of one step from theta on mean(w l), and the optimiser's state after it."""
        grads = torch.autograd.grad((w * losses).mean(), list(theta.values()), create_graph=graph, allow_unused=True)
        named = {k: torch.zeros_like(t) if g is None else g for (k, t), g in zip(theta.items(), grads, strict=True)}
        steps = {k: self.rule(theta[k], g, self.state[k]) for k, g in clipped(named, self.largest_norm).items()}
        return {k: s[0] for k, s in steps.items()}, {k: s[1] for k, s in steps.items()}

    def step(self, x: Tensor, y: Tensor, w: Tensor, stream: int | None = None) -> None:
        """One real step."""
        theta = {k: t.requires_grad_() for k, t in self.theta.items()}
        after, state = self.moved(theta, self.losses(theta, x, y, stream, real=True), w.double(), graph=False)
        self.theta = {k: t.detach() for k, t in after.items()}
        self.state = {k: {n: _detached(v) for n, v in s.items()} for k, s in state.items()}

    def weight_gradient(
        self,
        train: tuple[Tensor, Tensor],
        val: tuple[Tensor, Tensor],
        w: Tensor,
        *,
        streams: tuple[int | None, int | None] = (None, None),
        objective: Callable[[Tensor], Tensor] = torch.mean,
    ) -> Tensor:
        """d L_val(theta'(w)) / d w [n] of the next step, by double backward."""
        w = w.detach().double().requires_grad_()
        theta = {k: t.detach().requires_grad_() for k, t in self.theta.items()}
        ahead, _ = self.moved(theta, self.losses(theta, *train, streams[0]), w, graph=True)
        return torch.autograd.grad(objective(self.losses(ahead, *val, streams[1])), w)[0]


def derivative_of_step(
    step: Callable[[Mapping[str, Tensor]], Tensors], grads: Tensors, v: Tensors, *, width: float
) -> Tensors:
    """(d theta'/d g)^T v of any optimiser, entry by entry of g, by differences of fourth order."""
    products = {k: torch.zeros_like(g) for k, g in grads.items()}
    for k, g in grads.items():
        for i in range(g.numel()):
            slope = 0.0
            for shift, share in ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12)):
                moved = {n: t.clone() for n, t in grads.items()}
                moved[k].view(-1)[i] += shift * width
                after = step(moved)
                slope += share * math.fsum(float((after[n] * v[n]).sum()) for n in after)
            products[k].view(-1)[i] = slope / width
    return products


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((found - truth).abs().max() / truth.abs().max())


def _double(x: Tensor) -> Tensor:
    return x.detach().clone().double() if x.is_floating_point() else x.detach().clone()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
