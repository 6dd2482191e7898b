"""Logits of a classifier on one set of examples, and the metrics of gathered logits.

All values are fractions in [0, 1], except `nll` (nats, >= 0) and `margin` ([-1, 1]). Reductions run in
float64 on the CPU, so a metric does not depend on the device or on how the logits were batched.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from molere.data.pool import Pool
from molere.learner import Learner
from molere.runpasses import EVAL_BATCH
from molere.split import probabilistic_margin
from molere.steps import chunks

BINS = 15  # of the calibration error (Guo et al. 2017)
_ROWS = 65_536  # examples turned into float64 at a time


def metrics(
    logits: Float[Tensor, "n c"],
    y: Int[Tensor, " n"],
    group: Int[Tensor, " n"] | None = None,
    group_names: Sequence[str] = (),
) -> dict[str, float]:
    """Accuracy, its worst and balanced forms, negative log likelihood, calibration and mean margin.

    `accuracy`            share of examples whose largest logit is that of y (ties: the lower class)
    `balanced_accuracy`   mean over the classes present in y of the accuracy within the class
    `worst_class`         the least of those
    `worst_group`         the least accuracy over the groups present; only with `group`
    `accuracy[NAME]`      accuracy within one group; NAME is `group_names[g]`, or g where that is missing
    `nll`                 mean of -log p_y
    `ece`                 expected calibration error, 15 equal bins on the top probability
    `margin`              mean probabilistic margin, p_y - max_{j != y} p_j

    A group below 0 is "not known" and belongs to none. Groups and classes without examples are ignored; no
    examples: {}.
    """
    if len(y) == 0:
        return {}
    correct, confidence, nll, margin = (
        torch.cat(parts) for parts in zip(*_per_example(logits.detach().cpu(), y.cpu()), strict=True)
    )
    by_class = _mean_within(correct, y.cpu())
    result = {
        "accuracy": correct.mean().item(),
        "balanced_accuracy": sum(by_class.values()) / len(by_class),
        "worst_class": min(by_class.values()),
        "nll": nll.mean().item(),
        "ece": calibration_error(confidence, correct),
        "margin": margin.mean().item(),
    }
    if group is not None:
        result |= _group_accuracies(correct, group.cpu(), group_names)
    return result


def among(logits: Float[Tensor, "n c"], classes: Sequence[int]) -> Float[Tensor, "n c"]:
    """The logits of these classes; all others -infinity, so that they are no answer and have probability 0."""
    known = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    known[list(classes)] = True
    return logits.masked_fill(~known, -torch.inf)


def calibration_error(confidence: Float[Tensor, " n"], correct: Float[Tensor, " n"], bins: int = BINS) -> float:
    """Expected calibration error: sum_b n_b / n |accuracy_b - mean confidence_b| (Guo et al. 2017, eq. 5).

    Bin b holds the confidences in ((b - 1) / bins, b / bins], the first one 0 as well.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    bin_of = torch.bucketize(confidence.double(), edges)
    gaps = torch.bincount(bin_of, weights=correct.double() - confidence.double(), minlength=bins)
    return gaps.abs().sum().item() / len(confidence)


def _per_example(logits: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Correctness, top probability, -log p_y and margin of each example, all float64, some rows at a time."""
    for z, label in zip(torch.split(logits, _ROWS), torch.split(y, _ROWS), strict=True):
        log_p = torch.log_softmax(z.double(), dim=1)
        nll = -log_p.gather(1, label[:, None]).squeeze(1)
        p = log_p.exp()
        yield (z.argmax(1) == label).double(), p.amax(1), nll, probabilistic_margin(p, label)


def _mean_within(value: Tensor, part: Tensor) -> dict[int, float]:
    """Mean of the values within each part that has any, by part number; parts below 0 are left out."""
    known = part >= 0
    value, part = value[known], part[known]
    count = torch.bincount(part)
    total = torch.bincount(part, weights=value).double()
    return {k: float(total[k]) / n for k in range(len(count)) if (n := int(count[k]))}


def _group_accuracies(correct: Tensor, group: Tensor, names: Sequence[str]) -> dict[str, float]:
    by_group = _mean_within(correct, group)
    if not by_group:
        return {}
    named = {f"accuracy[{names[g] if g < len(names) else g}]": value for g, value in by_group.items()}
    return {"worst_group": min(by_group.values())} | named


def predict(classifier: Learner, pool: Pool) -> Float[Tensor, "N c"]:
    """Logits of a whole pool: evaluation mode, no augmentation, nothing changed."""
    logits: Tensor | None = None
    for at, z in logits_of(classifier, pool):
        logits = z.new_empty(len(pool), z.shape[1]) if logits is None else logits
        logits[at] = z
    assert logits is not None, "a pool has examples"
    return logits


def logits_of(classifier: Learner, pool: Pool) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n c"]]]:
    """(positions, logits) of a whole pool in batches, as `predict`."""
    device = next(iter(classifier.params.values())).device
    for at in chunks(torch.arange(len(pool), device=pool.y.device), EVAL_BATCH):
        with torch.no_grad(), classifier.at(None, evaluating=nn.Module):
            z = classifier(pool.batch(at).x.to(device)).float()
        yield at, z
