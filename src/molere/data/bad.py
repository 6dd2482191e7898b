"""What is wrong with single rows of the user's data: named, counted, refused or left out."""

import logging
import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from molere.errors import DataError

NAMED = 5  # how many bad rows a message names

logger = logging.getLogger(__name__)


def good_rows(length: int, bad: Mapping[int, str], where: str, on_bad: str) -> npt.NDArray[np.bool_]:
    """Which of the rows stay, [length]: all but the bad ones (row -> what is wrong with it).

    The first five are named and all are counted: in a DataError, or with on_bad="skip" in a warning; the log
    (level INFO) then names every one. Raises DataError where nothing would be left.
    """
    check_on_bad(on_bad)
    good = np.ones(length, dtype=np.bool_)
    if not bad:
        return good
    named = "; ".join(bad[row] for row in sorted(bad)[:NAMED])
    more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    said = f"{where}: {len(bad)} of {length} rows cannot be used: {named}{more}"
    if on_bad != "skip":
        raise DataError(f"{said}. Mend them, or leave them out with --on-bad skip")
    if len(bad) == length:
        raise DataError(f"{said}. Nothing is left; check the path and the column names")
    warnings.warn(f"{said}. They are left out", stacklevel=3)
    for row in sorted(bad):
        logger.info("left out: %s", bad[row])
    good[list(bad)] = False
    return good


def check_on_bad(on_bad: str) -> None:
    """DataError unless it is one of the two ways to treat bad rows."""
    if on_bad not in ("error", "skip"):
        raise DataError(f"on_bad must be error or skip; got {on_bad!r}")
