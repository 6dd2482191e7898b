"""The learned split: a holdout that a predictor trained on the rest generalises worst to.

Source: Bao, Barzilay, "Learning to Split for Automatic Bias Detection", 2022. A splitter says
a_i = P(train | x_i, y_i). In each round

    1. z_i ~ Bernoulli(a_i) decides who trains; in the first round, a random share 1 - delta
    2. a predictor is trained anew on two thirds of them, as a scout; the other third chooses its epoch
    3. gap = accuracy on that third - accuracy on the part that does not train; the split of the largest gap is kept
    4. the splitter learns: (L_split + Omega_1 + Omega_2) / 3, of which L_split, the cross-entropy of a_i with "the
       predictor is right on i", is over the part that does not train, the others over the pool

Omega_1 holds the share of the parts at delta, Omega_2 the labels of either part at those of the pool.
"""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from molere import rng
from molere.learner import Learner
from molere.losses import label_penalty, share_penalty, split_loss
from molere.method import Scouting
from molere.models import feature_width, head_of, replace_head
from molere.optim import make_optimizer
from molere.split import Split, generate_split, random_part
from molere.steps import chunks

if TYPE_CHECKING:
    from molere.method import Run

CHUNK = 1024
"""Examples that the splitter scores at a time."""
MEMORY = 5
"""Epochs of the splitter over whose mean loss it has to improve."""
LONGEST = 200
"""Epochs of the splitter in one round, at most."""


@dataclass(frozen=True)
class Learned:
    """A split learned by retraining a predictor: its validation part is what the training part prepares least for."""

    rounds: Annotated[int, Ge(1)] = 100
    """Predictors trained, at most."""
    patience: Annotated[int, Ge(1)] = 5
    """Rounds without a larger gap after which to end."""
    epochs: Annotated[float, Gt(0)] = 0.5
    """Length of a predictor's training, as a share of the run's."""
    batch_size: Annotated[int, Ge(1)] = 200
    """Examples in each of the splitter's two batches."""
    batches: Annotated[int, Ge(1)] = 20
    """Updates of the splitter in one of its epochs; 100 in the published code."""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Of the splitter, by Adam."""
    grad_clip: Annotated[float, Gt(0)] = 1.0
    """Largest norm of its gradient."""
    tolerance: Annotated[float, Ge(0)] = 1e-3
    """It stops when an epoch's loss is not below the mean of the five before by this much."""

    def __call__(self, run: "Run", delta: float) -> Split:
        return Split.of(self.part(run, delta), len(run.pool))

    def part(self, run: "Run", delta: float) -> Int[Tensor, " m"]:
        """Positions that validate: at most delta of the pool, and never the last example of a class."""
        size, y = len(run.pool), run.pool.y.cpu()
        splitter = self.splitter(run)
        p = torch.full((size,), 1 - delta)
        split = Split.of(random_part(y, delta, _draws(run, "first", 0), stratified=False), size)
        best, gap, stale = (split, p), -math.inf, 0
        rounds = 0
        while True:
            answers, third = self.predict(run, split, rounds)  # 2
            right = answers.cpu() == y
            found = float(right[third].float().mean() - right[split.val].float().mean())  # 3
            best, gap, stale = ((split, p), found, 0) if found > gap else (best, gap, stale + 1)
            rounds += 1
            if rounds == self.rounds or stale == self.patience:
                break
            with run.as_scout(), rng.seeded(rng.key(run.seed, "learned split: splitter", rounds)):
                self.learn(run, splitter, split, right, delta)  # 4
                p = self.train_probability(run, splitter)
            split = drawn(p, y, delta, _draws(run, "split", rounds), split)  # 1
        run.note(train_probability=best[1].to(run.device))
        run.log(split_gap=gap, split_rounds=float(rounds))
        return best[0].val

    def splitter(self, run: "Run") -> Learner:
        """A network like the classifier, as this is initialised, that reads the label too."""
        with rng.seeded(rng.key(run.seed, "learned split")):
            net = Splitting(run.classifier.model, run.pool.num_classes)
        return Learner("splitter", net, make_optimizer("adam", net.parameters(), lr=self.lr), grad_clip=self.grad_clip)

    def predict(self, run: "Run", split: Split, rounds: int) -> tuple[Int[Tensor, " N"], Int[Tensor, " k"]]:
        """(answers on the pool, the third of the training part that the predictor was not trained on)."""
        shuffled = split.train.cpu()[torch.randperm(len(split.train), generator=_draws(run, "third", rounds))]
        cut = max(1, len(shuffled) // 3)
        third, rest = shuffled[:cut].sort().values, shuffled[cut:].sort().values
        (found,) = run.scout(Scouting(rest.to(run.device), self.epochs, select=third.to(run.device)))
        return found.prediction, third

    def learn(self, run: "Run", splitter: Learner, split: Split, right: Bool[Tensor, " N"], delta: float) -> None:
        """Train the splitter until it no longer improves."""
        means, right = list[float](), right.to(run.device)
        draws = torch.Generator().manual_seed(torch.initial_seed())
        splitter.model.train()
        for _ in range(LONGEST):
            total = torch.zeros((), device=run.device)
            for _ in range(self.batches):
                total += self.update(run, splitter, split, right, delta, draws)
            means.append(float(total) / self.batches)
            before = means[-MEMORY - 1 : -1]
            if len(before) == MEMORY and sum(before) / MEMORY - means[-1] < self.tolerance:
                return

    def update(
        self, run: "Run", splitter: Learner, split: Split, right: Tensor, delta: float, draws: torch.Generator
    ) -> Float[Tensor, ""]:
        """One update of the splitter, on batches drawn with replacement; its loss."""
        count = min(self.batch_size, len(run.pool))
        val = split.val[torch.randint(len(split.val), (count,), generator=draws)].to(run.device)
        some = torch.randint(len(run.pool), (count,), generator=draws).to(run.device)
        batch = run.pool.batch(val)
        loss = split_loss(torch.sigmoid(splitter(batch.x, batch.y)), right[val]).mean()
        batch = run.pool.batch(some)
        p = torch.sigmoid(splitter(batch.x, batch.y))
        loss = (loss + share_penalty(p, delta) + label_penalty(p, batch.y, run.pool.num_classes)) / 3
        splitter.step(loss)
        run.cost.virtual_forward += 2 * count
        run.cost.virtual_backward += 2 * count
        return loss.detach().float()

    def train_probability(self, run: "Run", splitter: Learner) -> Float[Tensor, " N"]:
        """a_i of the whole pool, in evaluation mode."""
        splitter.model.eval()
        run.cost.virtual_forward += len(run.pool)
        with torch.no_grad():
            batches = (run.pool.batch(i) for i in chunks(torch.arange(len(run.pool), device=run.device), CHUNK))
            return torch.cat([torch.sigmoid(splitter(batch.x, batch.y)) for batch in batches]).float().cpu()


class Splitting(nn.Module):
    """Logits of P(train | x, y): the classifier's backbone, then a linear layer on [features ; onehot(y)]."""

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        like = next(head_of(model)[1].parameters())
        self.num_classes = num_classes
        self.body = replace_head(copy.deepcopy(model), nn.Identity())
        self.head = nn.Linear(feature_width(model) + num_classes, 1).to(like.device, like.dtype)

    def forward(self, x: Float[Tensor, "n *shape"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        features = self.body(x)
        label = F.one_hot(y, self.num_classes).to(features.dtype)
        return self.head(torch.cat([features, label], dim=1)).squeeze(1)


def drawn(p: Float[Tensor, " n"], y: Tensor, delta: float, generator: torch.Generator, before: Split) -> Split:
    """Examples validate with probability 1 - p_i, the lowest p at most; the split before, if too few do."""
    chosen = torch.rand(len(p), generator=generator) >= p
    least = torch.where(chosen, p, torch.full_like(p, 2.0))  # 2: above any threshold
    decision = generate_split(least, y, delta, threshold=1.5, previous=before)
    assert decision.split is not None, "there was one before"
    return decision.split


def _draws(run: "Run", purpose: str, rounds: int) -> torch.Generator:
    return rng.generator(run.seed, f"learned split: {purpose}", rounds)
