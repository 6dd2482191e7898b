"""Suspects: which labels are probably wrong, from what is known of each example, and how good such a list is.

A score per example, high where its label is suspicious, from columns as in samples.parquet:

    suspect    ranks of low margins, a low learned weight and a low train_probability, see `suspect_score`
    confident  confident learning (Northcutt, Jiang, Chuang 2021) on out-of-fold probabilities, see `confident_learning`
    loss       plain out-of-fold cross-entropy

Where true labels are known, `average_precision` and `precision_at` say how well a score finds the wrong ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from molere.errors import DataError

Column: TypeAlias = npt.NDArray[Any]  # numbers, or users' ids
Columns: TypeAlias = Mapping[str, Column]
Scores: TypeAlias = npt.NDArray[np.float64]

MARGINS = ("out_of_fold_margin", "holdout_margin", "margin")
"""Where the margin comes from, the best source first: models that have not seen the example, those that chose the
validation part, the finished classifier."""


@dataclass(frozen=True)
class Further:
    """A signal that may support the margin: its column (the first that is there), a_k = most max(0, rho_k)^power."""

    columns: tuple[str, ...]
    most: float
    power: int


FURTHER = (
    Further(("margin",), 1.0, 1),
    Further(("weight_mean", "weight"), 0.25, 2),
    Further(("train_probability",), 0.25, 2),
)
"""Low where the label is suspicious."""


# ---- the score


@dataclass(frozen=True)
class Signal:
    """One column's part in the suspect score: rank of low values in [0, 1], and its coefficient."""

    name: str
    rank: Scores
    share: float


def suspect_score(columns: Columns) -> Scores:
    """How suspicious each label is, in [0, 1]: the rank of a weighted mean of ranks.

        s_i = rank( sum_k a_k r_ki / sum_k a_k ),   r_ki = rank of a low value of signal k at example i, in [0, 1]

    The first signal is the margin, out of fold where there is one, with a_1 = 1. The others follow by how much they
    agree with it, rho_k being Spearman's correlation of r_k with r_1:

        margin of the finished classifier   a = max(0, rho)
        learned weight, train_probability   a = max(0, rho)^2 / 4

    So a classifier that has memorised its labels says little, and a signal that has nothing to say, or means the
    opposite (methods that weigh hard examples up), does not count. An example without a value has the middle rank. The
    coefficients were chosen on digits, and on 2,000 images of Fashion-MNIST. DataError where there is no margin.
    """
    found = signals(columns)
    total = sum(s.share for s in found)
    return ranks(sum((s.share * s.rank for s in found), np.zeros(len(found[0].rank))) / total)


def signals(columns: Columns) -> list[Signal]:
    """The signals of the suspect score with their coefficients, the margin first."""
    first = next((name for name in MARGINS if name in columns), None)
    if first is None:
        raise DataError(f"no margin among {', '.join(columns)}; give the columns of samples.parquet")
    base = low_ranks(columns[first])
    found = [Signal(first, base, 1.0)]
    for signal in FURTHER:
        name = next((n for n in signal.columns if n in columns), None)
        if name is not None and name != first:
            rank = low_ranks(columns[name])
            found.append(Signal(name, rank, signal.most * max(0.0, correlation(rank, base)) ** signal.power))
    return found


def low_ranks(values: Column) -> Scores:
    """Ranks in [0, 1] of low values, the lowest 1; equal values share their mean rank, NaN has the middle one."""
    out = np.full(len(values), 0.5)
    there = np.isfinite(np.asarray(values, dtype=np.float64))
    out[there] = ranks(-np.asarray(values, dtype=np.float64)[there])
    return out


def ranks(values: Scores) -> Scores:
    """Ranks in [0, 1], the highest 1; equal values share their mean rank, a single value has 0.5."""
    if len(values) < 2:
        return np.full(len(values), 0.5)
    ordered = np.sort(values)
    below, upto = np.searchsorted(ordered, values), np.searchsorted(ordered, values, side="right")
    return (below + upto - 1) / 2 / (len(values) - 1)


def correlation(a: Scores, b: Scores) -> float:
    """Pearson's correlation, of ranks Spearman's; 0 where either is constant."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / length if length > 1e-12 else 0.0


# ---- confident learning


@dataclass(frozen=True)
class Confident:
    """What confident learning says: examples whose label it takes for wrong, a full ranking, and the joint."""

    wrong: npt.NDArray[np.bool_]
    """Examples to be pruned."""
    score: Scores
    """In [0, 2): those to be pruned first, each part by low self-confidence."""
    joint: npt.NDArray[np.float64]
    """Estimated numbers of examples with label i whose true label is j [c, c]; rows sum to the labels' counts."""


def confident_learning(probabilities: npt.NDArray[np.floating[Any]], labels: Column) -> Confident:
    """Confident learning, "prune by noise rate" (Northcutt, Jiang, Chuang 2021, sections 3.1 and 3.2).

        t_j = mean of p_ij over the examples of label j                                    (eq. 2)
        C_kj = examples of label k with argmax_{l: p_il >= t_l} p_il = j                    (eq. 1)
        Q_kj = C_kj / sum_j C_kj * (examples of label k)                                   (eq. 3)

    For k != j the round(Q_kj) examples of label k with the largest p_ij - p_ik are pruned, unless the largest
    probability is that of the label itself. Probabilities must be out of fold.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    joint = confident_joint(p, y)
    wrong = np.zeros(len(y), dtype=np.bool_)
    for k in range(p.shape[1]):
        members = np.flatnonzero(y == k)
        for j in range(p.shape[1]):
            count = min(len(members), int(np.rint(joint[k, j])))
            if j != k and count:
                gain = p[members, j] - p[members, k]
                wrong[members[np.argsort(-gain, kind="stable")[:count]]] = True
    wrong &= p.argmax(1) != y
    return Confident(wrong, wrong + (1 - p[np.arange(len(y)), y]) / (1 + 1e-9), joint)


def confident_joint(p: Scores, y: npt.NDArray[np.int64]) -> Scores:
    """Q, the confident joint calibrated to the counts of the labels [c, c]; a label without examples has none."""
    classes = p.shape[1]
    count = np.bincount(y, minlength=classes)
    own = np.bincount(y, weights=p[np.arange(len(y)), y], minlength=classes)
    threshold = np.where(count > 0, own / np.maximum(count, 1), np.inf)
    confident = np.where(p >= threshold - 1e-6, p, -np.inf)
    sure = np.isfinite(confident).any(1)
    joint = np.zeros((classes, classes))
    np.add.at(joint, (y[sure], confident[sure].argmax(1)), 1)
    empty = joint.sum(1) == 0
    joint[empty, empty] = 1
    return joint / joint.sum(1, keepdims=True) * count[:, None]


# ---- how good a list is


def average_precision(score: Column, wrong: Column) -> float:
    """Area under the precision-recall curve: sum_k (R_k - R_{k-1}) P_k over the distinct scores; NaN without any."""
    score, wrong = np.asarray(score, dtype=np.float64), np.asarray(wrong, dtype=bool)
    if not wrong.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(wrong[order])
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of each group of equal scores
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def precision_at(score: Column, wrong: Column, k: int | None = None) -> float:
    """Share of wrong labels among the k highest scores, by default as many as are wrong; ties count in proportion."""
    score, wrong = np.asarray(score, dtype=np.float64), np.asarray(wrong, dtype=bool)
    k = int(wrong.sum()) if k is None else min(k, len(wrong))
    if k == 0:
        return float("nan")
    least = np.sort(score)[-k]
    above, level = score > least, score == least
    return float((wrong[above].sum() + (k - above.sum()) * wrong[level].mean()) / k)


@dataclass(frozen=True)
class Quality:
    """How well a score finds the labels that are known to be wrong."""

    name: str
    average_precision: float
    precision: float
    """At as many as are wrong."""


def qualities(columns: Columns, probabilities: npt.NDArray[np.floating[Any]] | None = None) -> list[Quality]:
    """The suspect score beside its rivals, where `clean_label` is known and differs somewhere; [] otherwise."""
    if "clean_label" not in columns or not (wrong := columns["clean_label"] != columns["label"]).any():
        return []
    scores: dict[str, Column] = {"suspect score": suspect_score(columns)}
    if probabilities is not None:
        scores["confident learning (restated)"] = confident_learning(probabilities, columns["label"]).score
    for name in ("out_of_fold_loss", "loss"):
        if name in columns:
            scores[name.replace("_", " ")] = columns[name]
    if "forgetting" in columns:
        scores["forgetting events"] = forgotten(columns)
    return [Quality(name, average_precision(s, wrong), precision_at(s, wrong)) for name, s in scores.items()]


def forgotten(columns: Columns) -> Scores:
    """Forgetting events, with more than any where the example was never learnt (Toneva et al. 2019, section 3)."""
    events = columns["forgetting"].astype(np.float64)
    return np.where(columns["learnt"], events, events.max(initial=0.0) + 1)
