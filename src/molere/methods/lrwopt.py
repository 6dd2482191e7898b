"""LRWOpt: one run that learns the validation split, the weights and the classifier.

Source: Jain, Suggala, Shenoy, "Improving Generalization via Meta-Learning on Hard Samples", 2024, Algorithm 1:

     1  init theta, Theta, phi; ge = 0
     3  for each epoch
     4      S_tr, S_val = GenerateSplit(D, Theta)
     5      for each validation batch
     6          (x_v, y_v) from S_val
     7          Theta <- Theta - beta_1 grad sum (L_split - l(y_v, f(x_v)))
     8          phi   <- phi   - beta_2 grad sum (l(y_v, f(x_v)) - L_split)
     9          Q times:
    10              (x, y) from S_tr
    11              theta <- theta - beta_3 grad sum g_phi(x) l(f(x), y)
    14      if the gap between validation and training loss has shrunk below ge
    15          stop
    17      ge = that gap

theta: run.classifier.  phi: state.weigher, w_i = g_phi(x_i).  Theta: state.splitter, p_i = P(train | x_i, y_i).
Numbers at the end of a line are lines of Algorithm 1, or equations. Readings chosen where the paper permits several:
train_probability above one half means training; l in line 7 enters through soft membership; the stop rule compares
means.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from molere import rng
from molere.data.pool import Batch
from molere.fields import check_fields
from molere.learner import Learner
from molere.losses import cross_entropy, label_penalty, share_penalty, soft_validation_objective, split_loss
from molere.method import Method, Run
from molere.networks import Splitter
from molere.split import Split, churn, generate_split, part_size, random_part
from molere.steps import Look, Taken, chunks
from molere.weighting import Weights

CHUNK = 65_536
"""Examples scored by the splitter at a time."""
NUMBERS = 2**26
"""Numbers that enter the splitter at a time, at most; fewer examples where each has very many."""


@dataclass
class LRWOptState:
    """What changes in an LRWOpt run."""

    weigher: Learner
    splitter: Learner
    warm: Tensor
    """The random validation part of the warm-up."""
    gap: float = 0.0
    """Validation loss minus training loss when last compared (ge)."""
    shrunk: int = 0
    """Times in a row that the gap has shrunk."""


@dataclass(frozen=True, kw_only=True)
class LRWOpt(Method[LRWOptState]):
    """Learns which hard examples to validate on, what each training example weighs, and the classifier, together."""

    q: Annotated[int, Ge(1)] = 5
    """Classifier updates for each meta update (Q)."""
    delta: Annotated[float, Interval(gt=0, le=0.5)] = 0.1
    """Largest share of the pool that may validate."""
    keep: bool = False
    """Whether the validation part also trains; as published it does not."""
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.25
    """Share of the run on a random split with equal weights first."""
    learn_in_warmup: bool = True
    """Whether the splitter already learns then, so that its first split is not a guess."""
    threshold: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    """Candidates for validation are those with train_probability below it; variant 2 of appendix F has 0.2."""
    min_val: Annotated[int, Ge(1)] | None = None
    """Fewest validation examples; below it the previous split stays. None: the number of classes."""
    resplit_every: Annotated[int, Ge(1)] | None = None
    """Classifier updates between splits; none: once an epoch."""
    adversary: Literal["soft", "hypergradient", "none"] = "soft"
    """How the validation loss reaches the splitter: soft membership J, through theta', or not at all."""
    lambda_adversary: Annotated[float, Ge(0)] = 1.0
    """Weight of that term."""
    lambda_share: Annotated[float, Ge(0)] = 1.0
    """Weight of Omega_1, the share of the two parts."""
    lambda_label: Annotated[float, Ge(0)] = 1.0
    """Weight of Omega_2, the labels of the two parts."""
    penalty_every: Annotated[int, Ge(1)] = 1
    """Meta updates between uses of Omega_1 and Omega_2 (R)."""
    splitter_optimizer: str = "adam"
    """Of the splitter."""
    lr_splitter: Annotated[float, Gt(0)] = 1e-2
    """Its learning rate (beta_1); at the paper's 1e-3 short runs end before the splitter has learned anything."""
    splitter_hidden: Annotated[int, Ge(0)] = 256
    """Hidden units of the splitter; 0: linear."""
    exact_pass: bool = False
    """Fresh passes in evaluation mode for the splitter and the split, instead of the bank of the training passes."""
    patience: Annotated[int, Ge(1)] | None = None
    """End the run once the gap has shrunk this often in a row (lines 14-16); none: never, as the paper's own runs."""
    order: Literal["fused", "strict", "first-order"] = "fused"
    """Learn from the step taken (fused), from a virtual step before it (strict), or without any step (first-order)."""
    weights: Weights = Weights()
    """The weight network."""

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, run: Run) -> LRWOptState:
        """The three networks, and the random part of the warm-up."""
        if not self.exact_pass:
            run.keep_bank()
        with rng.seeded(rng.key(run.seed, "splitter")):
            net = Splitter(run.feature_width, run.pool.num_classes, self.splitter_hidden)
        return LRWOptState(  # 1
            weigher=self.weights.init(run),
            splitter=run.learner("splitter", net, optimizer=self.splitter_optimizer, lr=self.lr_splitter),
            warm=random_part(run.pool.y.cpu(), self.delta, run.rng("warm-up")),
        )

    def split(self, run: Run, state: LRWOptState) -> Split | None:
        """A random part during the warm-up, then the splitter's own choice; none when the stop rule ends the run."""
        if not run.passed(self.warmup):
            return Split.of(state.warm, len(run.pool), keep=self.keep)
        if self.patience is not None and not run.split.is_empty_val and self.stops(run, state):  # 14-17
            return None
        return self.generate_split(run, state)  # 4

    def step(self, run: Run, state: LRWOptState, batch: Batch) -> Taken:
        """One weighted update, and once in Q an update of splitter and weight network."""
        meta = run.due(self.q)  # 9
        if not run.passed(self.warmup):
            return self.warm_step(run, state, batch, meta)
        seen = run.forward(batch, remember=meta)  # 10
        w = self.weights(run, state.weigher, seen)  # w_i = g_phi(x_i)
        if meta and self.order != "fused":
            self.learn(run, state, run.look_before(seen, w, order=self.order), w)  # 6, 7, 8
            w = self.weights(run, state.weigher, seen)
        taken = run.update(seen, run.trusted(w), remember=meta and self.order == "fused")  # 11, eq. 15
        if meta and self.order == "fused":
            self.learn(run, state, run.look_back(taken), w)  # 6, 7, 8
        if self.resplit_every and run.ends(self.resplit_every):
            run.resplit(self.generate_split(run, state))
        return taken

    def warm_step(self, run: Run, state: LRWOptState, batch: Batch, meta: bool) -> Taken:
        """A plain update; the splitter may learn already."""
        taken = run.update(run.forward(batch))
        if meta and self.learn_in_warmup:
            state.splitter.step(self.splitter_loss(run, state, run.look(taken.seen)))  # 7
        return taken

    def learn(self, run: Run, state: LRWOptState, look: Look, w: Tensor) -> None:
        """Lines 7 and 8: one update of the splitter and one of the weight network."""
        dw = run.weight_gradient(look)  # d L_val(theta') / d w_i
        loss = self.splitter_loss(run, state, look)
        if self.adversary == "hypergradient":
            p = state.splitter(look.seen.features, look.seen.batch.y)
            loss = loss - self.lambda_adversary * (self.weights.rescaled(run, dw) * w.detach() * p).sum()
        state.splitter.step(loss)  # 7, eq. 11
        self.weights.learn(run, state.weigher, w, dw)  # 8, eq. 13

    def splitter_loss(self, run: Run, state: LRWOptState, look: Look) -> Tensor:
        """Mean L_split on the validation batch - lambda J + Omega_1 + Omega_2 on a random batch of the pool."""
        logits, features = run.predict(look.batch.index) if self.exact_pass else (look.logits, look.features)
        p = state.splitter(features, look.batch.y)
        loss = split_loss(p, logits.argmax(1) == look.batch.y).mean()  # eq. 5
        y, features, losses = self.pool_batch(run, len(look.seen) + len(look.batch))
        p = state.splitter(features, y)
        if self.adversary == "soft":
            loss = loss - self.lambda_adversary * soft_validation_objective(p, losses, "standardise")
        if run.due(self.q * self.penalty_every):
            loss = loss + self.lambda_share * share_penalty(p, self.delta)
            loss = loss + self.lambda_label * label_penalty(p, y, run.pool.num_classes)
        return loss

    def pool_batch(self, run: Run, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """(labels, features, losses) of random examples of the pool, drawn with replacement: fresh, or the bank's."""
        generator = run.rng("pool-batch")
        if self.exact_pass:
            index = torch.randint(len(run.pool), (size,), generator=generator).to(run.device)
            logits, features = run.predict(index)
            losses = cross_entropy(logits, run.pool.y[index])
            fine = run.rankable(losses, index)
            return run.pool.y[index[fine]], features[fine], losses[fine]
        known = run.bank.known
        index = known[torch.randint(len(known), (size,), generator=generator).to(run.device)]
        return run.pool.y[index], run.bank.features_of(index), run.bank.losses[index]

    def generate_split(self, run: Run, state: LRWOptState) -> Split:
        """Line 4: the lowest train_probability below the threshold validates, at most delta of the pool."""
        p = self.train_probability(run, state)
        fine = run.rankable(p)
        p = torch.ones_like(p).index_copy(0, fine, p[fine])  # what cannot be ranked trains
        before = Split.of(state.warm, len(run.pool)) if run.split.is_empty_val else run.split
        decision = generate_split(p, run.pool.y, self.delta, self.threshold, self.min_val, before)
        val = (decision.split or before).val.cpu()
        run.note(train_probability=p)
        run.log(
            split_churn=churn(run.split.val.cpu(), val, part_size(len(run.pool), self.delta)),
            split_from_warmup=float(torch.isin(val, state.warm).float().mean()),
            split_candidates=float(decision.candidates),
            split_rejected=float(decision.rejected),
        )
        return Split.of(val, len(run.pool), keep=self.keep)

    def train_probability(self, run: Run, state: LRWOptState) -> Tensor:
        """P(train | x, y) of the whole pool [N], from a fresh pass or from the bank."""
        if not self.exact_pass:
            run.refresh_bank(run.updates - run.per_epoch)
        rows = max(1, min(CHUNK, NUMBERS // (run.feature_width + run.pool.num_classes)))
        pieces = chunks(torch.arange(len(run.pool), device=run.device), rows)
        features = (run.predict(piece)[1] if self.exact_pass else run.bank.features_of(piece) for piece in pieces)
        with torch.no_grad():
            return torch.cat([state.splitter(f, run.pool.y[i]) for i, f in zip(pieces, features, strict=True)])

    def stops(self, run: Run, state: LRWOptState) -> bool:
        """Lines 14-17 with means over whole parts: whether the gap has shrunk `patience` times in a row."""
        gap = run.mean_loss(run.split.val) - run.mean_loss(run.split.train)
        state.shrunk = state.shrunk + 1 if gap < state.gap else 0
        state.gap = gap  # 17
        return self.patience is not None and state.shrunk >= self.patience
