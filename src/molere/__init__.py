"""molere: train classifiers whose examples are weighted, and whose validation split is chosen.

The public names, in the order in which data flows through them. They are loaded on first use, so
`import molere` and `molere --help` need no torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from molere.compare import compare
    from molere.data.pool import Batch, Data, DatasetPool, Pool, TensorPool
    from molere.data.sources import from_arrays, from_datasets, load
    from molere.estimator import MolereClassifier
    from molere.holdouts import Clean, Easiest, Given, Hardest, Random
    from molere.learner import Learner
    from molere.metagrad import CentralDifference, ForwardMode, OneSidedDifference, weight_gradient
    from molere.method import Method, Run
    from molere.methods.erm import ERM
    from molere.methods.lrw import LRW
    from molere.methods.lrwopt import LRWOpt
    from molere.methods.molere import Molere
    from molere.recipe import Recipe
    from molere.result import Result
    from molere.reweight import Reweighter
    from molere.run import fit
    from molere.split import Split, probabilistic_margin
    from molere.testing import check_method

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Pool",
    "TensorPool",
    "DatasetPool",
    "Data",
    "load",
    "from_arrays",
    "from_datasets",
    "Split",
    "probabilistic_margin",
    "Random",
    "Easiest",
    "Hardest",
    "Clean",
    "Given",
    "Learner",
    "weight_gradient",
    "ForwardMode",
    "CentralDifference",
    "OneSidedDifference",
    "Method",
    "Recipe",
    "Run",
    "Result",
    "ERM",
    "LRW",
    "LRWOpt",
    "Molere",
    "fit",
    "compare",
    "MolereClassifier",
    "Reweighter",
    "check_method",
]

_MODULES = {
    "molere.data.pool": ("Batch", "Pool", "TensorPool", "DatasetPool", "Data"),
    "molere.data.sources": ("load", "from_arrays", "from_datasets"),
    "molere.split": ("Split", "probabilistic_margin"),
    "molere.holdouts": ("Random", "Easiest", "Hardest", "Clean", "Given"),
    "molere.learner": ("Learner",),
    "molere.metagrad": ("weight_gradient", "ForwardMode", "CentralDifference", "OneSidedDifference"),
    "molere.method": ("Method", "Run"),
    "molere.result": ("Result",),
    "molere.recipe": ("Recipe",),
    "molere.methods.erm": ("ERM",),
    "molere.methods.lrw": ("LRW",),
    "molere.methods.lrwopt": ("LRWOpt",),
    "molere.methods.molere": ("Molere",),
    "molere.run": ("fit",),
    "molere.compare": ("compare",),
    "molere.estimator": ("MolereClassifier",),
    "molere.reweight": ("Reweighter",),
    "molere.testing": ("check_method",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a public name from the file that defines it, once."""
    if name not in _HOME:
        raise AttributeError(f"module 'molere' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `molere.compare` the function: loading compare.py would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
