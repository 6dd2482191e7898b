"""Data that come with a package: nothing to download."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from molere.errors import DataError


def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] in 0..1 and labels, from scikit-learn's table (importing it takes seconds)."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("digits come with scikit-learn, which is not installed; type: pip install scikit-learn")
    table = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    values = np.loadtxt(table, delimiter=",", dtype=np.float32)
    x, y = torch.from_numpy(values[:, :64] / 16), torch.from_numpy(values[:, 64].astype(np.int64))
    return x.view(-1, 1, 8, 8), y
