"""Scenarios: what is done to clean data before training, to the training and the selection part alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molere.corruption import Scenario
from molere.data.corrupt import Images, corner_patch, long_tail, rare_group, turned
from molere.data.imagefiles import ImageFiles
from molere.data.noise import (
    flip_transition,
    instance_noise,
    sibling_transition,
    transition_noise,
    uniform_transition,
)
from molere.errors import DataError
from molere.rng import key

__all__ = ["Part", "Scenario", "corrupted", "in_both_groups", "joined", "shifted"]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Examples and what is known of them: ids are positions in the source, group 1 is the rare one.

    `clean_y` and `flip_probability` are there once labels have been made noisy: the true labels, and the probability
    with which each was to change.
    """

    x: Images
    y: Int[Tensor, " n"]
    ids: Int[Tensor, " n"]
    group: Int[Tensor, " n"] | None = None
    clean_y: Int[Tensor, " n"] | None = None
    flip_probability: Float[Tensor, " n"] | None = None

    def take(self, index: Int[Tensor, " m"]) -> "Part":
        """These examples, in this order."""
        columns = (self.group, self.clean_y, self.flip_probability)
        group, clean, flips = (None if column is None else column[index] for column in columns)
        return Part(self.x[index], self.y[index], self.ids[index], group, clean, flips)


def corrupted(
    parts: Sequence[Part],
    scenario: Scenario,
    classes: int,
    seed: int,
    *,
    noise_seed: int | None = None,
    superclasses: Sequence[int] | None = None,
    side: int = 32,
) -> list[Part]:
    """Parts after thinning, rotation and noise; the first one trains, the second selects.

    Noise is drawn for all parts together, by one law: from the seed, by position, or from a noise seed, by id, so that
    an example keeps its noisy label whatever the split. `superclasses`: that of each class, where the data set has
    them; a scenario's own replace them. `side`: pixels at which files are read where noise depends on the input.
    """
    plans = [scenario, *[replace(scenario, largest=None)] * (len(parts) - 1)]
    shaping = zip(parts, plans, strict=True)
    done = [_shaped(part, plan, classes, key(seed, "part", i)) for i, (part, plan) in enumerate(shaping)]
    if not scenario.noise:
        return done
    some = done[:1] if scenario.clean_select else done
    own = scenario.superclasses or superclasses
    noisy, flips = _with_noise(
        some, scenario, classes, seed if noise_seed is None else noise_seed, own, noise_seed, side
    )
    at = torch.arange(len(noisy)).tensor_split(torch.tensor([len(part.y) for part in some]).cumsum(0)[:-1])
    new = [(part, noisy[i], flips[i]) for part, i in zip(some, at, strict=True)]
    return [replace(part, y=y, clean_y=_known(part), flip_probability=q) for part, y, q in new] + done[len(some) :]


def _known(part: Part) -> Int[Tensor, " n"]:
    """The labels before noise, or those known to be true before that."""
    return part.y if part.clean_y is None else part.clean_y


def _with_noise(
    parts: Sequence[Part],
    scenario: Scenario,
    classes: int,
    seed: int,
    superclasses: Sequence[int] | None,
    noise_seed: int | None,
    side: int,
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Noisy labels of all parts, one after the other, and their flip probabilities."""
    y = torch.cat([part.y for part in parts])
    ids = None if noise_seed is None else torch.cat([part.ids for part in parts])
    if scenario.noise == "instance":
        x = joined([part.x for part in parts])
        return instance_noise(x, y, scenario.instance, classes, seed, scenario.input_scale, ids=ids, side=side)
    matrix = _transition(scenario, classes, superclasses)
    return transition_noise(y, matrix, seed, ids=ids), 1 - matrix.diagonal()[y.cpu()]


def _transition(scenario: Scenario, classes: int, superclasses: Sequence[int] | None) -> Float[Tensor, "c c"]:
    rate = cast(float, getattr(scenario, scenario.noise))
    if scenario.noise == "uniform":
        return uniform_transition(rate * classes / (classes - 1), classes)
    if scenario.noise == "redrawn":
        return uniform_transition(rate, classes)
    if scenario.noise != "hierarchical":
        return flip_transition(rate, classes, 2 if scenario.noise == "flip2" else 1)
    if superclasses is None or len(superclasses) != classes:
        known = "none are known of these data" if superclasses is None else f"{len(superclasses)} are given"
        example = "clean[hierarchical=0.4,superclasses=[0,0,1,1]]"
        raise DataError(f"hierarchical noise needs the superclass of each of {classes} classes; {known}: {example}")
    return sibling_transition(rate, superclasses)


def _shaped(part: Part, scenario: Scenario, classes: int, seed: int) -> Part:
    if scenario.tail > 1:
        part = part.take(long_tail(part.y, scenario.tail, classes, scenario.largest, seed=seed))
    if scenario.rotated:
        mask = rare_group(part.y, scenario.rotated, seed)
        part = replace(part, x=turned(part.x, mask, scenario.angle), group=mask.long())
    if scenario.conflicting:
        mask = rare_group(part.y, scenario.conflicting, seed)
        part = replace(part, x=corner_patch(part.x, (part.y % 2 == 1) ^ mask), group=mask.long())
    if scenario.group_tail > 1:
        part = part.take(_fewer_of_groups(part, scenario.group_tail, seed))
    return part


def _fewer_of_groups(part: Part, factor: float, seed: int) -> Int[Tensor, " kept"]:
    """Positions kept so that group sizes fall geometrically, the largest group / the smallest being `factor`."""
    if part.group is None or int(part.group.max()) < 1:
        raise DataError("group_tail thins groups, but these data have none; name a group column, or set rotated=0.5")
    return long_tail(part.group, factor, int(part.group.max()) + 1, seed=key(seed, "groups"))


def in_both_groups(part: Part, scenario: Scenario) -> Part:
    """All images as group 0 has them, then all of them as group 1 has; unchanged where the scenario makes no groups."""
    if not scenario.groups:
        return part
    if scenario.rotated:
        x = joined([part.x, turned(part.x, _all(part), scenario.angle)])
    else:
        odd = part.y % 2 == 1
        x = joined([corner_patch(part.x, odd), corner_patch(part.x, ~odd)])
    return Part(x, part.y.repeat(2), part.ids.repeat(2), torch.arange(2).repeat_interleave(len(part.y)))


def shifted(part: Part, scenario: Scenario) -> Part | None:
    """All images turned by the scenario's shift: the second test set; None where there is no shift."""
    return replace(part, x=turned(part.x, _all(part), scenario.shift)) if scenario.shift else None


def joined(several: Sequence[Tensor | ImageFiles]) -> Tensor | ImageFiles:
    """Images one after the other, all in memory or all in files."""
    if isinstance(several[0], ImageFiles):
        return reduce(ImageFiles.joined, cast(Sequence[ImageFiles], several))
    return torch.cat(cast(list[Tensor], several)) if len(several) > 1 else several[0]


def _all(part: Part) -> Bool[Tensor, " n"]:
    return torch.ones(len(part.y), dtype=torch.bool)
