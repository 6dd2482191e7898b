"""What the estimator trains on: arrays, weights, groups and validation data as a method, pools and a recipe."""

import math
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from molere import holdouts, inputs
from molere.data.pool import Data, Pool
from molere.data.weighted import WeightedPool
from molere.errors import ConfigError, StorageError
from molere.fields import build
from molere.inputs import Inputs, Matrix
from molere.method import Method
from molere.recipe import Recipe

UPDATES = 1000
"""Classifier updates that `epochs=None` aims at."""

EPOCHS = (10, 100)
"""Fewest and most epochs that it takes for them."""

WORDS = (
    (
        r"Choose another folder with --out, start over .*",
        "Set another folder by out=, or delete that one; a search or cross-validation trains several: out=None",
    ),
    (r"with --out", "by out="),
    (r"start anew with --resume never", "delete the folder to start anew"),
)
"""Advice on folders: the program's options, and what to do with the estimator."""

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Given:
    """What was passed to `fit`, checked."""

    matrix: Matrix
    """X [N, ...]."""
    codes: Codes
    """Classes [N]."""
    kept: Codes
    """Positions of the examples that train [n]."""
    weight: Tensor | None
    """Their factors [n], unless they are equal."""
    validation: tuple[Matrix, Codes] | None
    """X_val and its classes."""
    groups: Any  # Any: whatever was given
    """The group of each example of X, or of X and then X_val."""
    classes: int
    """How many there are."""


def prepared(method: Method[Any], given: Given, made: Inputs) -> tuple[Method[Any], Data]:  # Any: of whatever state
    """The method, validated where the user says, and the pools; ids are positions in X, -1 for those of X_val."""
    n, val = inputs.count(given.matrix), given.validation
    names, group = inputs.grouped(given.groups, n, 0 if val is None else len(val[1]))
    rows, y, ids = given.matrix[given.kept], given.codes[given.kept], given.kept
    at, weight = given.kept, given.weight
    if val is not None and hasattr(method, "holdout"):  # the part of the pool that validates is what was given
        m, more = len(given.kept), len(val[1])
        rows, y = inputs.stacked(rows, val[0]), np.concatenate([y, val[1]])
        ids = np.concatenate([ids, np.full(more, -1)])
        at = np.concatenate([at, np.arange(n, n + more)])
        weight = None if weight is None else torch.cat([weight, weight.mean().expand(more)])
        method = inputs.with_holdout(method, holdouts.Given(torch.arange(m, len(y))))
    inner = None if group is None else group[at]
    train: Pool = made.pool(rows, y, classes=given.classes, group=inner, ids=ids)
    train = train if weight is None else WeightedPool(train, weight)
    outer = None if group is None else group[n:]
    select = None if val is None else made.pool(*val, classes=given.classes, group=outer)
    tests = {"training": train} if select is None else {"validation": select}
    default = "cnn" if made.are_images else "mlp"
    return method, Data("arrays", train, select, tests, group_names=names, default_model=default)


def recipe_of(said: Mapping[str, object], more: Mapping[str, object], size: int) -> Recipe:
    """The recipe for so many examples: the estimator's own settings, and those of its `recipe`; numpy's numbers, too.

    A batch is of all examples, if there are fewer; `epochs=None` are as many as make 1,000 updates, 10 to 100.
    """
    if twice := sorted(set(more) & set(said)):
        raise ConfigError(f"recipe states {twice[0]}, which is a setting of MolereClassifier: pass {twice[0]}=...")
    stated = {k: _plain(v) for k, v in {**said, **more}.items()}
    if isinstance(batch := stated["batch_size"], int):
        stated["batch_size"] = min(batch, size)
    if stated["epochs"] is None:
        per_epoch = max(1, size // max(1, cast(int, stated["batch_size"]))) if isinstance(batch, int) else 1
        stated["epochs"] = min(max(math.ceil(UPDATES / per_epoch), EPOCHS[0]), EPOCHS[1])
    return build(Recipe, stated, "recipe")


@contextmanager
def in_own_words() -> Generator[None]:
    """What is wrong with the folder of a run, said with the estimator's settings in place of the program's options."""
    try:
        yield
    except StorageError as error:
        said = str(error)
        for of_program, of_estimator in WORDS:
            said = re.sub(of_program, of_estimator, said)
        if said == str(error):
            raise
        raise StorageError(said) from error


def _plain(value: object) -> object:
    return cast(Any, value).item() if isinstance(value, np.generic) else value
