"""The ways to take one meta update and one classifier update: molere's engines, their peers, and the oracle.

All do the same work: a forward pass of a batch, weights of its examples from a network phi, a step of plain SGD on the
weighted mean, a validation batch at the parameters it leads to, one update of phi by Adam and one of the classifier.
phi maps a loss to a weight (1-100-1, sigmoid; Shu et al. 2019), or is one free number for each example, whose gradient
is then what is compared between the ways.

Fused order: the real step is the virtual one, and phi learns from it. Strict order, as the published codes: a virtual
step, the update of phi, then the real step with the new weights (a second forward and backward pass for the peers).
"""

import copy
import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from engine_models import LR, Problem, backward
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from molere import rng
from molere.data.pool import Data, TensorPool
from molere.errors import ConfigError
from molere.method import Run
from molere.methods.erm import ERM
from molere.opening import Setup, open_run
from molere.recipe import Recipe
from molere.split import Split

PHI_LR = 1e-3

Step = Callable[[], Tensor]
"""One update of each; returns dL_val / d(first parameter of phi)."""
Make = Callable[[Problem, nn.Module], Step]


@dataclass(frozen=True)
class Way:
    """A way by name. kind: exact ways of molere, approximate ones, or a peer; second: it differentiates twice."""

    title: str
    make: Make
    kind: Literal["molere", "approximate", "peer"]
    second: bool = False


class LossNet(nn.Module):
    """A weight from a loss, as in Meta-Weight-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid())

    def forward(self, losses: Tensor) -> Tensor:
        """Weights [n] of losses [n]."""
        return self.net(losses[:, None])[:, 0]


class FreeWeights(nn.Module):
    """One number for each example, whatever its loss."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights.clone())

    def forward(self, losses: Tensor) -> Tensor:
        """The weights [n]."""
        return self.weights


def loss_net(device: torch.device) -> nn.Module:
    """A new network phi, always the same."""
    with rng.seeded(0):
        return LossNet().to(device)


def some_weights(problem: Problem) -> Tensor:
    """Weights between .5 and 1.5, as products depend on them."""
    generator = torch.Generator().manual_seed(3)
    return (0.5 + torch.rand(len(problem.y), generator=generator)).to(problem.device)


def products(problem: Problem, make: Make) -> Tensor:
    """n dL_val(theta') / dw_i by some way, of free weights."""
    step = make(problem, FreeWeights(some_weights(problem)))
    return len(problem.y) * step().detach()


def oracle(problem: Problem) -> Tensor:
    """n dL_val(theta') / dw_i by double backward in float64, through theta' = theta - lr grad mean(w l(theta))."""
    model = problem.classifier().double()
    theta = dict(model.named_parameters())
    w = some_weights(problem).double().requires_grad_()

    def losses(at: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, dict(at), (x.double(),)), y, reduction="none")

    with sdpa_kernel(SDPBackend.MATH):
        loss = (w * losses(theta, problem.x, problem.y)).mean()
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        ahead = {k: p - LR * g for (k, p), g in zip(theta.items(), grads, strict=True)}
        return len(w) * torch.autograd.grad(losses(ahead, problem.val_x, problem.val_y).mean(), w)[0]


def erm(problem: Problem) -> Callable[[], None]:
    """The plain step that everything is compared with, in bare torch."""
    model = problem.classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        backward(F.cross_entropy(model(problem.x), problem.y))
        optimizer.step()

    return step


# ---- molere, through a run as methods use it


def by_molere(
    problem: Problem,
    phi: nn.Module,
    *,
    strict: bool = False,
    val: float = 1.0,
    **settings: Any,  # Any: settings of a recipe
) -> Step:
    """run.forward, run.update, run.look_back, run.weight_gradient."""
    n = len(problem.y)
    plain: dict[str, Any] = {"epochs": 1_000_000, "lr": LR, "momentum": 0.0, "weight_decay": 0.0}
    plain |= {"batch_size": n, "val_batch_size": int(val * n), "scheduler": "constant", "device": str(problem.device)}
    recipe = Recipe(**{**plain, **settings})
    run = opened(problem, recipe)
    weigher = run.learner("weigher", phi, lr=PHI_LR)
    batch = run.pool.batch(torch.arange(n))

    def step() -> Tensor:
        seen = run.forward(batch, remember=True)
        w = weigher(seen.losses.detach())
        if strict:
            weigher.descend(w, run.weight_gradient(run.look_ahead(seen, w)))
            run.update(seen, weigher(seen.losses.detach()))
        else:
            taken = run.update(seen, w, remember=True)
            weigher.descend(w, run.weight_gradient(run.look_back(taken)))
        run.updates += 1
        return _gradient(phi)

    return step


def opened(problem: Problem, recipe: Recipe) -> Run:
    """A run on the two batches of a problem."""
    x, y = torch.cat([problem.x, problem.val_x]), torch.cat([problem.y, problem.val_y])
    pool = TensorPool(x, y, num_classes=max(2, int(y.max()) + 1)).to(problem.device)
    data = Data("batches", pool, None, {"test": pool})
    setup = Setup(ERM(), data, problem.classifier, "own", recipe, 0, "benchmark", problem.device)
    run = open_run(setup, _no_scouts)
    run.use(Split.of(torch.arange(len(problem.y), len(y)), len(y)), at=0)
    return run


def _no_scouts(run: object, wanted: object) -> list[Tensor]:
    raise ConfigError("no scouts here")


def _gradient(phi: nn.Module) -> Tensor:
    found = next(phi.parameters()).grad
    assert found is not None, "phi has learned"
    return found


# ---- peers


class Classifier:
    """What the peers share: a classifier in bare torch, its real step, and phi with its optimiser."""

    def __init__(self, problem: Problem, phi: nn.Module) -> None:
        self.model, self.phi, self.problem = problem.classifier(), phi, problem
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR)
        self.meta = torch.optim.Adam(phi.parameters(), lr=PHI_LR)

    def losses(self, net: Callable[[Tensor], Tensor]) -> Tensor:
        """Training losses [n]."""
        return F.cross_entropy(net(self.problem.x), self.problem.y, reduction="none")

    def weighted(self, losses: Tensor) -> Tensor:
        """mean(phi(l) l)."""
        return (self.phi(losses.detach()) * losses).mean()

    def validation(self, net: Callable[[Tensor], Tensor]) -> Tensor:
        """Validation loss."""
        return F.cross_entropy(net(self.problem.val_x), self.problem.val_y)

    def learn(self, loss: Tensor) -> Tensor:
        """One update of phi, by the gradient with respect to phi alone."""
        leaves = list(self.phi.parameters())
        for p, g in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            p.grad = g
        self.meta.step()
        return _gradient(self.phi)

    def step(self) -> None:
        """The real step of the strict order: a second forward and backward pass."""
        losses = self.losses(self.model)
        self.optimizer.zero_grad()
        backward((self.phi(losses.detach()).detach() * losses).mean())
        self.optimizer.step()

    def move(self, ahead: Mapping[str, Tensor]) -> None:
        """The virtual step becomes the real one."""
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(ahead[name])


def _plain_attention(make: Callable[[Classifier], Step]) -> Make:
    """With the one kernel of attention that has a second derivative."""

    def made(problem: Problem, phi: nn.Module) -> Step:
        step = make(Classifier(problem, phi))

        def plain() -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return step()

        return plain

    return made


def functional(it: Classifier, *, strict: bool = False) -> Step:
    """torch.func.functional_call and create_graph."""

    def step() -> Tensor:
        theta = dict(it.model.named_parameters())
        loss = it.weighted(it.losses(it.model))
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        ahead = {k: p - LR * g for (k, p), g in zip(theta.items(), grads, strict=True)}
        found = it.learn(it.validation(lambda x: functional_call(it.model, ahead, (x,))))
        it.step() if strict else it.move(ahead)
        return found

    return step


def original(it: Classifier) -> Step:
    """The passes of the published Meta-Weight-Net code: a copied model, gradients of everything, a second forward."""

    def step() -> Tensor:
        meta = copy.deepcopy(it.model)
        theta = dict(meta.named_parameters())
        grads = torch.autograd.grad(it.weighted(it.losses(meta)), list(theta.values()), create_graph=True)
        ahead = {k: p - LR * g for (k, p), g in zip(theta.items(), grads, strict=True)}
        it.meta.zero_grad()
        backward(it.validation(lambda x: functional_call(meta, ahead, (x,))))  # to phi and to all of theta
        it.meta.step()
        found = _gradient(it.phi)
        it.step()
        return found

    return step


def by_higher(it: Classifier, *, strict: bool = False) -> Step:
    """higher.innerloop_ctx (Grefenstette et al. 2019)."""
    higher: Any = importlib.import_module("higher")  # Any: untyped, as all peers

    def step() -> Tensor:
        with higher.innerloop_ctx(it.model, it.optimizer, copy_initial_weights=True) as (net, optimizer):
            optimizer.step(it.weighted(it.losses(net)))
            found = it.learn(it.validation(net))
            ahead = {k: p.detach() for k, p in net.named_parameters()}
        it.step() if strict else it.move(ahead)
        return found

    return step


def by_torchopt(it: Classifier, *, strict: bool = False) -> Step:
    """torchopt.MetaSGD (Ren et al. 2023)."""
    torchopt: Any = importlib.import_module("torchopt")
    optimizer = torchopt.MetaSGD(it.model, lr=LR)

    def step() -> Tensor:
        before = torchopt.extract_state_dict(it.model, by="reference") if strict else None
        optimizer.step(it.weighted(it.losses(it.model)))
        found = it.learn(it.validation(it.model))
        if before is None:
            torchopt.stop_gradient(it.model)
            torchopt.stop_gradient(optimizer)
        else:
            torchopt.recover_state_dict(it.model, before)
            it.step()
        return found

    return step


def by_betty(problem: Problem, phi: nn.Module) -> Step:
    """betty.Engine with the finite difference of DARTS, its default (Choe et al. 2023)."""
    logging.disable(logging.INFO)  # it writes a line for each problem
    kit: dict[str, Any] = {k: importlib.import_module(f"betty.{k}") for k in ("configs", "problems", "engine")}
    it, found = Classifier(problem, phi), list[Tensor]()
    base: Any = kit["problems"].ImplicitProblem

    def outer_loss(self: Any, batch: Any) -> Tensor:
        return F.cross_entropy(self.classifier(batch[0]), batch[1])

    def inner_loss(self: Any, batch: Any) -> Tensor:
        losses = F.cross_entropy(self(batch[0]), batch[1], reduction="none")
        return (self.weigher(losses.detach()) * losses).mean()

    def remember(self: Any) -> None:
        found[:] = [LR * _gradient(phi)]  # Betty leaves out the learning rate

    outer = type("Weigher", (base,), {"training_step": outer_loss, "grad_callback": remember})
    inner = type("Inner", (base,), {"training_step": inner_loss})
    config = kit["configs"].Config
    upper = outer("weigher", config(retain_graph=True), phi, it.meta, None, [(problem.val_x, problem.val_y)])
    lower = inner("classifier", config(type="darts", unroll_steps=1), it.model, it.optimizer, None, None)
    lower.train_data_loader = [(problem.x, problem.y)]
    engine = kit["engine"].Engine(
        config=kit["configs"].EngineConfig(strategy="gpu" if problem.device.type == "cuda" else "cpu"),
        problems=[upper, lower],
        dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
    )
    engine.train()

    def step() -> Tensor:
        engine.train_step()
        return found[0]

    return step


# ---- all of them


def _ours(title: str, kind: Literal["molere", "approximate"] = "molere", **how: Any) -> Way:
    return Way(title, partial(by_molere, **{"estimator": "one-sided", **how}), kind)


def _theirs(title: str, make: Callable[..., Step], **how: Any) -> Way:
    return Way(title, _plain_attention(partial(make, **how)), "peer", second=True)


WAYS: Mapping[str, Way] = {
    "one-sided": _ours("one-sided difference, fused"),
    "central": _ours("central difference, fused", estimator="central"),
    "exact": _ours("exact (forward mode), fused", estimator="exact"),
    "exact-strict": _ours("exact (forward mode), strict", estimator="exact", strict=True),
    "ghost": _ours("ghost (per layer), fused", estimator="ghost"),
    "suffix-2/3": _ours("suffix, last 2/3", "approximate", meta_share=2 / 3),
    "suffix-1/3": _ours("suffix, last 1/3", "approximate", meta_share=1 / 3),
    "head": _ours("head only", "approximate", meta_share=1e-9),
    "val-1/2": _ours("validation batch of a half", "approximate", val=1 / 2),
    "val-1/4": _ours("validation batch of a quarter", "approximate", val=1 / 4),
    "betty": Way("Betty, finite difference", by_betty, "peer"),
    "functional": _theirs("functional double backward, fused", functional),
    "functional-strict": _theirs("functional double backward, strict", functional, strict=True),
    "higher": _theirs("higher, fused", by_higher),
    "higher-strict": _theirs("higher, strict", by_higher, strict=True),
    "torchopt": _theirs("TorchOpt MetaSGD, fused", by_torchopt),
    "torchopt-strict": _theirs("TorchOpt MetaSGD, strict", by_torchopt, strict=True),
    "original": _theirs("Meta-Weight-Net's original passes", original),
}
