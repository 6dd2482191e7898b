"""Scenarios: what is done to clean images before training, to the training and the selection part alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from molere.data.corrupt import corner_patch, instance_noise, long_tail, rare_group, rotate90, uniform_noise
from molere.rng import key

ROTATED = ("upright", "rotated")
SPURIOUS = ("agreeing", "conflicting")


@dataclass(frozen=True, slots=True)
class Scenario:
    """Shares and rates of a scenario; at their defaults nothing is done."""

    rotated: float = 0.0  # share of images turned by 90 degrees: the hidden group
    instance: float = 0.0  # rate of instance-dependent label noise
    uniform: float = 0.0  # true share of labels flipped to any other class
    tail: float = 1.0  # largest class / smallest class
    conflicting: float = 0.0  # share of images whose corner patch does not say whether the class is odd

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of groups 0 and 1, the rare one; none if there are none."""
        return ROTATED if self.rotated else SPURIOUS if self.conflicting else ()


@dataclass(frozen=True, slots=True)
class Part:
    """Examples and what is known of them: ids are positions in the source, group 1 is the rare one."""

    x: Shaped[Tensor, "n ..."]
    y: Int[Tensor, " n"]
    ids: Int[Tensor, " n"]
    group: Int[Tensor, " n"] | None = None
    clean_y: Int[Tensor, " n"] | None = None

    def take(self, index: Int[Tensor, " m"]) -> "Part":
        """These examples, in this order."""
        group = None if self.group is None else self.group[index]
        clean = None if self.clean_y is None else self.clean_y[index]
        return Part(self.x[index], self.y[index], self.ids[index], group, clean)


def corrupted(parts: Sequence[Part], scenario: Scenario, classes: int, seed: int) -> list[Part]:
    """Parts after thinning, rotation and noise. Noise is drawn for all parts together, by one law."""
    done = [_shaped(part, scenario, classes, key(seed, "part", i)) for i, part in enumerate(parts)]
    if scenario.instance == 0 and scenario.uniform == 0:
        return done
    y = torch.cat([part.y for part in done])
    if scenario.instance:
        x = torch.cat([part.x for part in done])
        noisy, _ = instance_noise(x, y, scenario.instance, classes, seed)
    else:
        noisy = uniform_noise(y, scenario.uniform, classes, seed)
    labels = torch.split(noisy, [len(part.y) for part in done])
    return [replace(part, y=new, clean_y=part.y) for part, new in zip(done, labels, strict=True)]


def _shaped(part: Part, scenario: Scenario, classes: int, seed: int) -> Part:
    if scenario.tail > 1:
        part = part.take(long_tail(part.y, scenario.tail, classes, seed=seed))
    if scenario.rotated:
        mask = rare_group(part.y, scenario.rotated, seed)
        part = replace(part, x=rotate90(part.x, mask), group=mask.long())
    if scenario.conflicting:
        mask = rare_group(part.y, scenario.conflicting, seed)
        part = replace(part, x=corner_patch(part.x, (part.y % 2 == 1) ^ mask), group=mask.long())
    return part


def in_both_groups(part: Part, scenario: Scenario) -> Part:
    """All images as group 0 has them, then all of them as group 1 has; unchanged where there are no groups."""
    if not scenario.groups:
        return part
    rare = torch.ones(len(part.y), dtype=torch.bool)
    if scenario.rotated:
        x = torch.cat((part.x, rotate90(part.x, rare)))
    else:
        odd = part.y % 2 == 1
        x = torch.cat((corner_patch(part.x, odd), corner_patch(part.x, ~odd)))
    return Part(x, part.y.repeat(2), part.ids.repeat(2), torch.arange(2).repeat_interleave(len(part.y)))
