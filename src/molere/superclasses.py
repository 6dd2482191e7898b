"""Superclasses of the classes of known data sets, for noise that stays within them. No torch."""

from collections.abc import Mapping

CIFAR100 = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
    6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
    5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
    10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
    16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip
"""The coarse label of each fine label of CIFAR-100: 20 superclasses of 5 (Krizhevsky 2009)."""

CIFAR10 = (0, 0, 1, 1, 1, 1, 1, 1, 0, 0)
"""Vehicles and animals."""

SUPERCLASSES: Mapping[str, tuple[int, ...]] = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "cifar10n": CIFAR10,
    "cifar100n": CIFAR100,
}
"""By data set."""
