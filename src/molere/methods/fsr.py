"""FSR: learned weights without a validation set and without a second pass through the network.

Source: Zhang, Pfister, "Learning Fast Sample Re-weighting Without Reward Data", ICCV 2021. A buffer of the run's own
examples, those that one step of the head lowers the loss of most, stands in for clean validation data, and the gradient
of the weights runs through the head alone. theta_h: the head's parameters; b: the optimiser's momentum buffer; reg: its
weight decay, as (decay / 2) |theta|^2; h_i: features of example i, constants here.

    g = grad ( sum_i eps_i l_i(theta_h) + reg ),   eps_i = 1/n                                                      (1)
    theta_h' = theta_h - eta (mu b + g)                                        eta: meta_lr, mu: meta_momentum      (2)
    q_i = d ( mean_probe l(theta_h') + reg ) / d eps_i = < -eta grad(...)(theta_h'), grad l_i(theta_h) >            (3)
    clip:   w_i ~ max(-q_i, 0)          shift:   w_i ~ (1/n - q_i) - min_j (1/n - q_j) + 1/n                        (4)
    w <- w / (sum w + 1e-5);   the real step is on sum_i w_i l_i(theta)                                             (5)
    r_i <- beta r_i - (1 - beta) (l_i(theta_h) - l_i(theta_h'))                                                     (6)
    after each epoch the K / c examples of each class with the smallest r are the buffer, whence probe batches come (7)

Options: mixup, x_i <- lam_i x_i + (1 - lam_i) x_j with lam_i = 1 - u^(1/alpha) / 2 and labels alike, where (6) still
looks at the examples as they are; and pseudo-labels, a loss towards softmax(m_i / T), m_i a running mean of the logits
of an example, scaled to mean square 1 over the batch:

    loss + pseudo mean_i CE(softmax(m_i / T), z_i),   m_i <- k m_i + (1 - k) z_i                                    (8)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from molere import rng
from molere.data.pool import Batch
from molere.errors import ConfigError
from molere.fields import check_fields
from molere.metagrad import ForwardMode, Outputs, gradient
from molere.method import Method, Run
from molere.optim import Params
from molere.split import Split
from molere.steps import Seen, Taken

Target = Float[Tensor, "n c"]


@dataclass
class FSRState:
    """What changes in an FSR run."""

    scores: Tensor
    """r of every example [N]; the smallest are the best."""
    visited: Tensor
    """Whether it has trained yet [N]."""
    buffer: Tensor
    """Positions of the buffer's examples by class [classes, K / c]; those of a small class repeat."""
    logits: Tensor | None
    """Running means of logits [N, c], if there are pseudo-labels."""


@dataclass(frozen=True, kw_only=True)
class FSR(Method[FSRState]):
    """Weights by the agreement of head gradients with those of a buffer of easily learned examples."""

    mode: Literal["clip", "shift"] = "clip"
    """clip: examples that would raise the probe loss get 0, for label noise; shift: none does, for imbalance."""
    buffer: Annotated[int, Ge(1)] | None = None
    """Examples in the buffer (K), a multiple of the classes; none: 20 of each class."""
    probe: Annotated[int, Ge(1)] | None = None
    """Examples in a probe batch; none: 2 c ceil(n / c), at most the buffer."""
    beta: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Share of a score that stays at each visit."""
    meta_lr: Annotated[float, Gt(0)] = 0.1
    """Step of the head's virtual update (eta)."""
    meta_momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Share of the optimiser's momentum in it (mu)."""
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.25
    """Share of the run with equal weights first; the buffer is learned from the start."""
    mixup: bool = False
    """Train on mixtures of two examples."""
    mixup_alpha: Annotated[float, Gt(0)] = 0.5
    """Below 1 most mixtures are close to one example."""
    pseudo: Annotated[float, Ge(0)] = 0.0
    """Weight of the loss towards pseudo-labels, after the warm-up; published with 2."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Of the pseudo-labels (T)."""
    logit_share: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Share of the running mean of logits that stays at each visit (k)."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> FSRState:
        """Scores of 0 and a random buffer; ConfigError where the head or the sizes do not fit."""
        size, device = len(run.pool), run.device
        self.sizes(run)
        _check_head(run)
        if self.mixup and not run.pool.batch(torch.arange(2, device=device)).x.is_floating_point():
            raise ConfigError("mixup=true: inputs are integers, which have no mixtures; set mixup=false")
        at_random = torch.rand(size, generator=run.rng("buffer")).to(device)
        everyone = torch.ones(size, dtype=torch.bool, device=device)
        like = next(iter(run.classifier.params.values()))
        logits = like.new_zeros(size, run.pool.num_classes) if self.pseudo else None
        scores = torch.zeros(size, dtype=torch.float64, device=device)
        return FSRState(scores, torch.zeros_like(everyone), self.best(run, at_random, everyone), logits)

    def split(self, run: Run, state: FSRState) -> Split:
        """The whole pool trains; the buffer, chosen anew, validates."""
        if run.epoch > 0:
            state.buffer = self.best(run, state.scores, state.visited)  # 7
        if run.pool.clean_y is not None:
            right = (run.pool.clean_y == run.pool.y).to(run.device)
            run.log(buffer_purity=float(right[state.buffer].float().mean()))
        inside = torch.zeros(len(run.pool), dtype=torch.bool, device=run.device)
        inside[state.buffer.flatten()] = True
        return Split.of(inside.nonzero().flatten(), len(run.pool), keep=True)

    def step(self, run: Run, state: FSRState, batch: Batch) -> Taken:
        """One weighted update; weights and scores come from a virtual step of the head."""
        mixed, target = self.mixture(run, batch) if self.mixup else (batch, _onehot(run, batch))
        seen = run.forward(mixed)
        look = run.look(seen, run.examples(self.probe_index(run, state), "augment-probe"))
        head = Head.of(run, seen)
        losses, probe = head.losses(seen.features, target), head.losses(look.features, _onehot(run, look.batch))
        ahead = self.ahead(head, losses)
        q = self.weight_gradient(head, losses, probe, ahead)
        if self.mixup:
            losses = head.losses(run.look(seen, batch).features, _onehot(run, batch))
        self.score(state, batch, losses, head.theta, ahead)
        w = self.weights(q) if run.passed(self.warmup) else None
        taken = run.update(seen, None if w is None else len(batch) * w, along=self.along(state, seen, target, w))  # 5
        if (run.updates + 1) % run.per_epoch == 0:
            run.note(fsr_score=state.scores.clone())
        return taken

    # ---- the head's step

    def ahead(self, head: "Head", losses: Outputs) -> Params:
        """theta_h' of (2), with eps_i = 1/n."""
        grads = head.regularised(lambda theta: losses(theta).mean(), head.theta)  # 1
        moved = {k: self.meta_momentum * head.momentum[k] + g for k, g in grads.items()}
        return {k: t - self.meta_lr * moved[k] for k, t in head.theta.items()}

    def weight_gradient(self, head: "Head", losses: Outputs, probe: Outputs, ahead: Params) -> Float[Tensor, " n"]:
        """q of (3), [n]."""
        grads = head.regularised(lambda theta: probe(theta).mean(), ahead)
        return ForwardMode()(losses, head.theta, {k: -self.meta_lr * g for k, g in grads.items()})

    def weights(self, q: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Weights of sum below 1 from q, (4) and (5)."""
        raw = (-q).clamp_min(0) if self.mode == "clip" else q.max() - q + 1 / len(q)
        return raw / (raw.sum() + 1e-5)

    def score(self, state: FSRState, batch: Batch, losses: Outputs, theta: Params, ahead: Params) -> None:
        """Put the loss that the head's step took off each example into its score (6)."""
        with torch.no_grad():
            margin = (losses(theta) - losses(ahead)).to(state.scores.dtype)
        state.scores[batch.index] = self.beta * state.scores[batch.index] - (1 - self.beta) * margin
        state.visited[batch.index] = True

    # ---- buffer

    def sizes(self, run: Run) -> tuple[int, int]:
        """Examples of each class in the buffer and in a probe batch; ConfigError unless they come out even."""
        c = run.pool.num_classes
        k = 20 * c if self.buffer is None else self.buffer
        b = min(k, 2 * c * math.ceil(run.batch_size / c)) if self.probe is None else self.probe
        for name, given in (("buffer", k), ("probe", b)):
            if given % c:
                raise ConfigError(f"{name}={given} is not the same for all {c} classes; use a multiple of {c}")
        if b > k:
            raise ConfigError(f"probe={b} is more than the buffer holds; use at most {k}, or a larger buffer")
        return k // c, b // c

    def best(self, run: Run, scores: Float[Tensor, " N"], known: Tensor) -> Int[Tensor, "classes k"]:
        """The examples of smallest score of each class, of those known (of all, where none is); too few repeat (7)."""
        y, c = run.pool.y, run.pool.num_classes
        order = torch.where(known, scores, torch.inf).argsort(stable=True)
        by_class = order[y[order].argsort(stable=True)]
        members = y.bincount(minlength=c)
        able = y[known].bincount(minlength=c)
        able, first = torch.where(able > 0, able, members), members.cumsum(0) - members
        place = torch.arange(self.sizes(run)[0], device=y.device) % able.clamp_min(1)[:, None]
        return by_class[(first[:, None] + place)[members > 0]]

    def probe_index(self, run: Run, state: FSRState) -> Int[Tensor, " m"]:
        """Positions of a random probe batch, as many of each class."""
        order = torch.rand(state.buffer.shape, generator=run.rng("probe")).argsort(1)
        return state.buffer.gather(1, order[:, : self.sizes(run)[1]].to(run.device)).flatten()

    # ---- options

    def mixture(self, run: Run, batch: Batch) -> tuple[Batch, Target]:
        """Each example mixed with another one of the batch, and its soft label; its own share is at least a half."""
        run.look_at(batch)
        generator = run.rng("mixup")
        own = 1 - torch.rand(len(batch), generator=generator).pow(1 / self.mixup_alpha).to(run.device) / 2
        other = torch.randperm(len(batch), generator=generator).to(run.device)
        share = own.view(-1, *[1] * (batch.x.ndim - 1))
        x, label = (share * batch.x + (1 - share) * batch.x[other]).to(batch.x.dtype), _onehot(run, batch)
        target = own[:, None] * label + (1 - own[:, None]) * label[other]
        return Batch(x, batch.y, batch.index, batch.group), target

    def along(
        self, state: FSRState, seen: Seen, target: Target, w: Float[Tensor, " n"] | None
    ) -> Float[Tensor, "n c"] | None:
        """d objective / d logits where mixup or pseudo-labels make it another than the weighted mean; else none."""
        soft = None if state.logits is None else self.pseudo_labels(state.logits, seen)
        if not self.mixup and (soft is None or w is None):
            return None
        z = seen.logits.detach().requires_grad_()
        with torch.enable_grad():
            losses = _cross_entropy(z, target)
            loss = losses.mean() if w is None else (w * losses).sum()
            if soft is not None and w is not None:
                loss = loss + self.pseudo * _cross_entropy(z, soft).mean()  # 8
            return torch.autograd.grad(loss, z)[0]

    def pseudo_labels(self, table: Float[Tensor, "N c"], seen: Seen) -> Target:
        """Soft labels from the running means, which these logits then enter (8)."""
        index = seen.batch.index
        kept = table[index]
        kept = kept * (kept.square().mean() + 1e-8).rsqrt()
        table[index] = self.logit_share * kept + (1 - self.logit_share) * seen.logits.detach().to(kept.dtype)
        return (kept / self.temperature).softmax(1).to(seen.logits.dtype)


@dataclass(frozen=True)
class Head:
    """The classifier's last layer as a function of its parameters, and what its optimiser holds."""

    logits: Callable[[Params, Tensor], Tensor]
    theta: Params
    momentum: Params
    """The optimiser's buffers; 0 before its first step, and for optimisers without them."""
    decay: dict[str, float]

    @classmethod
    def of(cls, run: Run, seen: Seen | None = None) -> "Head":
        """The head as it stands; its dropout, if it has any, draws the same at each call."""
        head, optimizer = run.head, run.classifier.optimizer
        assert head is not None, "a method's init has looked"
        leaves = {k: p for k, p in head.named_parameters() if p.requires_grad}
        groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        buffers = {k: optimizer.state.get(p, {}).get("momentum_buffer") for k, p in leaves.items()}

        def logits(theta: Params, features: Tensor) -> Tensor:
            fixed = {k: b.clone() for k, b in head.named_buffers()}
            with rng.seeded(None if seen is None else seen.stream):
                return functional_call(head, {**theta, **fixed}, (features,))

        return cls(
            logits,
            {k: p.detach() for k, p in leaves.items()},
            {k: torch.zeros_like(leaves[k]) if b is None else b.detach().clone() for k, b in buffers.items()},
            {k: float(groups.get(id(p), {}).get("weight_decay", 0.0)) for k, p in leaves.items()},
        )

    def losses(self, features: Float[Tensor, "n d"], target: Target) -> Outputs:
        """theta_h -> losses [n] on these features."""
        return lambda theta: _cross_entropy(self.logits(theta, features), target)

    def regularised(self, loss: Callable[[Params], Tensor], theta: Params) -> Params:
        """grad (loss + reg)."""
        return {k: g + self.decay[k] * theta[k] for k, g in gradient(loss, theta).items()}


def _check_head(run: Run) -> None:
    """ConfigError unless the classifier ends in its head and the head is trained."""
    if run.head is None or not any(p.requires_grad for p in run.head.parameters()):
        raise ConfigError(
            "fsr needs a last layer that is trained; unfreeze it, or give the model `features` and `head`"
        )
    logits, features = run.predict(torch.arange(min(2, len(run.pool)), device=run.device))
    try:
        with run.classifier.at(None, evaluating=torch.nn.Module), torch.no_grad():
            agree = torch.allclose(Head.of(run).logits({}, features).to(logits.dtype), logits, rtol=0.02, atol=0.02)
    except RuntimeError:
        agree = False
    if not agree:
        raise ConfigError("fsr needs the logits to be what the head gives; let the model end in its `head` (nn.Linear)")


def _cross_entropy(logits: Float[Tensor, "n c"], target: Target) -> Float[Tensor, " n"]:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, target.to(wide.dtype), reduction="none")


def _onehot(run: Run, batch: Batch) -> Target:
    return F.one_hot(batch.y, run.pool.num_classes).float()
