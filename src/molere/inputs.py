"""Inputs of the estimator: what users hand over as X, y, weights and groups, checked and made into pools."""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from sklearn.utils.validation import _check_sample_weight, validate_data  # pyright: ignore[reportPrivateUsage, reportUnknownVariableType]
from torch import Tensor, nn

from molere.data.pool import Pool, TensorPool
from molere.data.sparse import SparsePool
from molere.errors import DataError
from molere.method import Method

Matrix = Any  # Any: an array [N, ...] or a scipy.sparse matrix, which is untyped
Numbers = npt.NDArray[Any]  # Any: numbers of any type


class InvalidInput(DataError, ValueError):
    """Input that cannot be trained on or predicted; a ValueError too, as scikit-learn's tools expect."""


@dataclass(frozen=True)
class Validated:
    """X as an array or a sparse matrix by rows, and y as an array, if it was given."""

    matrix: Matrix
    y: Any = None


def validated(
    estimator: Any,  # Any: scikit-learn's kind; whatever was given
    X: Any,
    y: Any = None,
    *,
    reset: bool = True,
    name: str = "y",
) -> Validated:
    """scikit-learn's own checks: finite numbers, one label for each example, the columns that were fitted."""
    rules: dict[str, Any] = {"accept_sparse": "csr", "allow_nd": True, "reset": reset}
    check = cast(Any, validate_data)
    try:
        if y is None and not reset:
            return Validated(check(estimator, X, **rules))
        check_known(y, name)
        matrix, labels = check(estimator, X, y, ensure_min_samples=2 if reset else 1, **rules)
        return Validated(matrix, labels)
    except ValueError as error:
        if "could not convert string to float" not in str(error):
            raise
        hint = "encode columns of text, as scikit-learn's OneHotEncoder or TfidfVectorizer does"
        raise InvalidInput(f"X holds text, expected numbers; {hint} ({error})") from error


def check_known(y: Any, name: str) -> None:  # Any: whatever was given
    """InvalidInput for labels that are missing, or objects that are neither numbers nor strings."""
    labels = np.asarray(y) if y is not None else None
    if labels is None or labels.dtype != object or labels.ndim != 1 or len(labels) == 0:
        return
    for at, value in enumerate(labels):
        if value is None or type(value).__name__ == "NAType" or value != value:
            raise InvalidInput(f"Input {name} contains NaN: example {at} has no label ({value}); leave it out")
    if not isinstance(labels[0], str) and np.dtype(object) == getattr(y, "dtype", np.dtype(object)):
        given = f"Unknown label type: {name} holds {type(labels[0]).__name__} objects"
        raise InvalidInput(f"{given}; pass an array of numbers or of strings")


def shown(label: Any) -> str:  # Any: a label of whatever kind
    """A label as its owner wrote it."""
    return repr(cast(object, label.item() if isinstance(label, np.generic) else label))


def count(matrix: Matrix) -> int:
    """The number of examples."""
    return int(matrix.shape[0])


def stacked(first: Matrix, second: Matrix) -> Matrix:
    """The examples of both."""
    if scipy.sparse.issparse(first):
        return cast(Any, scipy.sparse).vstack([first, second], format="csr")
    return np.concatenate([first, dense(second)])


def dense(matrix: Matrix) -> Numbers:
    """The same as an array."""
    return matrix.toarray() if scipy.sparse.issparse(matrix) else matrix


def coded(labels: Numbers, classes: Numbers) -> npt.NDArray[np.int64]:
    """Labels as positions among the classes; InvalidInput for one that is not among them."""
    unknown = [v for v in np.unique(labels) if v not in classes]
    if unknown:
        raise InvalidInput(f"y_val holds {shown(unknown[0])}, which no example of y has; leave those examples out")
    return np.searchsorted(classes, labels).astype(np.int64)


def positive(weights: Any, matrix: Matrix) -> tuple[npt.NDArray[np.int64], Tensor | None]:
    """Positions of the examples of positive weight, and their weights; all and none, if no weights are given."""
    everyone = np.arange(count(matrix), dtype=np.int64)
    if weights is None:
        return everyone, None
    checked = cast(npt.NDArray[np.float64], _check_sample_weight(weights, matrix, dtype=np.float64))
    if not (checked >= 0).all() or not (checked > 0).any():
        raise InvalidInput(
            "sample_weight must not be negative, and some must be above 0; leave it out for equal weights"
        )
    kept = everyone[checked > 0]
    same = bool((checked[kept] == checked[kept][0]).all())
    return kept, None if same else torch.from_numpy(checked[kept]).float()


def grouped(groups: Any, n: int, more: int) -> tuple[tuple[str, ...], npt.NDArray[np.int64] | None]:
    """Names of the groups and the group of each of n examples, and of `more` validation examples (0 unless given)."""
    if groups is None:
        return (), None
    given = np.asarray(groups)
    if given.ndim != 1 or len(given) not in (n, n + more):
        extra = f" (or {n + more}, those of X_val last)" if more else ""
        raise InvalidInput(f"groups has shape {given.shape}; pass one group for each of {n} examples{extra}")
    if given.dtype == object or given.dtype.kind == "f":
        if missing := [i for i, g in enumerate(given) if g is None or g != g]:
            raise InvalidInput(f"groups holds {given[missing[0]]} for example {missing[0]}; give each example a group")
        given = given.astype(str) if given.dtype == object else given
    names, codes = np.unique(given, return_inverse=True)
    codes = codes.astype(np.int64)
    return tuple(map(str, names)), np.concatenate([codes, np.zeros(n + more - len(given), np.int64)])


def with_holdout(method: Method[Any], holdout: Any) -> Method[Any]:  # Any: settings are frozen dataclasses
    """The method, validated on another part."""
    return dataclasses.replace(cast(Any, method), holdout=holdout)


def twin(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself, if its parameters have this type, or else a copy that has."""
    parameter = next(model.parameters(), None)
    return model if parameter is None or parameter.dtype == dtype else copy.deepcopy(model).to(dtype)


def cast_like(x: Tensor, model: nn.Module) -> Tensor:
    """Floats as in training: float64 for a module whose first trained parameter is; other inputs as they are."""
    first = next((p for p in model.parameters() if p.requires_grad), None)
    return x.double() if x.is_floating_point() and first is not None and first.dtype == torch.float64 else x


@dataclass(frozen=True)
class Inputs:
    """What was learned about X in `fit`: (x - shift) / scale, for each column of a table or place of an example."""

    shape: tuple[int, ...]
    """Of one example."""
    images: bool
    """uint8 images."""
    shift: npt.NDArray[np.float64] | None = None
    scale: npt.NDArray[np.float64] | None = None

    @classmethod
    def fitted(cls, matrix: Matrix, *, scale: bool, own_module: bool = False) -> "Inputs":
        """Means and deviations of a table's columns; of a sparse one the largest absolute values alone.

        Other numbers than images, such as floats [N, H, W], have them by places [H, W], unless a module of one's own
        takes them.
        """
        shape = tuple(int(k) for k in matrix.shape[1:])
        made = cls(shape, len(shape) in (2, 3) and matrix.dtype == np.uint8)
        if not scale or made.are_images or (own_module and not made.is_table):
            return made
        if scipy.sparse.issparse(matrix):
            largest = np.asarray(abs(matrix).max(axis=0).todense(), np.float64).ravel()
            return cls(shape, False, None, np.where(largest > 0, largest, 1.0))
        table = np.asarray(matrix, np.float64)
        spread = table.std(axis=0)
        return cls(shape, False, table.mean(axis=0), np.where(spread > 0, spread, 1.0))

    @property
    def is_table(self) -> bool:
        """Whether an example is a row of numbers."""
        return len(self.shape) == 1

    @property
    def are_images(self) -> bool:
        """Whether an example has channels, height and width, or is a uint8 image of one channel."""
        return len(self.shape) == 3 or self.images

    def check_shape(self, X: Any) -> None:  # Any: whatever was given
        """InvalidInput for images or sequences of another shape; scikit-learn compares the columns of tables."""
        shape = getattr(X, "shape", None)
        if len(self.shape) > 1 and shape is not None and tuple(shape[1:]) != self.shape:
            raise InvalidInput(f"X has examples of shape {tuple(shape[1:])}, but was fitted with {self.shape}")

    def like(self, matrix: Matrix) -> Matrix:
        """The examples as a table, if a table was fitted: columns are then shifted, which no sparse matrix is."""
        return dense(matrix) if self.shift is not None else matrix

    def pool(self, matrix: Matrix, y: Numbers, *, classes: int, group: Numbers | None = None, ids: Any = None) -> Pool:
        """Examples as the model gets them."""
        matrix = self.like(matrix)
        if tuple(matrix.shape[1:]) != self.shape:
            raise InvalidInput(f"X has examples of shape {tuple(matrix.shape[1:])}, but was fitted with {self.shape}")
        columns: dict[str, Any] = {"num_classes": classes, "group": group, "ids": ids}
        if scipy.sparse.issparse(matrix):
            scaled = matrix if self.scale is None else matrix @ scipy.sparse.diags(1 / self.scale)
            return SparsePool(scaled, y, **columns)
        return TensorPool(self._array(matrix), y, **columns)

    def _array(self, matrix: Numbers) -> Numbers:
        if self.scale is not None:
            shift = 0.0 if self.shift is None else self.shift
            return ((np.asarray(matrix, np.float64) - shift) / self.scale).astype(np.float32)
        if matrix.dtype == np.uint8 and not self.images:
            return matrix.astype(np.float32)
        return matrix
