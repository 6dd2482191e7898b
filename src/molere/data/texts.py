"""Texts and sparse rows as dense numbers, by scikit-learn; what is fitted is fitted on the training part."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast  # Any: scikit-learn's estimators and sparse matrices come without types

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from molere.errors import DataError

WORDS = 50_000  # the vocabulary at most
DENSE = 1024  # sparse rows of as many columns stay as they are
HASHED = 1024
REDUCED = 256
AT_ONCE = 4096  # rows made dense at a time


class TextsById(Mapping[Any, str]):
    """What examples read, by their ids; `read` gives the text at a position, and only where one is asked for."""

    def __init__(self, ids: npt.NDArray[np.generic], read: Callable[[int], str]) -> None:
        self._ids, self._read = ids, read

    def __getitem__(self, key: Any) -> str:
        found = np.flatnonzero(self._ids == key)
        if not len(found):
            raise KeyError(key)
        return self._read(int(found[0]))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ids.tolist())

    def __len__(self) -> int:
        return len(self._ids)


def fit_texts(texts: Sequence[str], how: str, dimensions: int | None) -> Callable[[Sequence[str]], Tensor]:
    """What turns texts into x [n, d] float32, root mean square 1 on the training part.

    tfidf: words and pairs of words weighted by TF-IDF (1 + log tf) log((1 + n) / (1 + df)) + 1, rows of length 1,
    then their truncated SVD. hashed: words hashed into d counts with signs, rows of length 1; nothing is learned
    but the scale. Raises DataError where no text has a word.
    """
    text = importlib.import_module("sklearn.feature_extraction.text")
    if how == "hashed":
        words = text.HashingVectorizer(n_features=dimensions or HASHED)
        return _scaled(lambda t: words.transform(t).toarray(), texts)
    words = text.TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=WORDS)
    try:
        counts = words.fit_transform(texts)
    except ValueError as error:
        raise DataError(f"no text of the training part has a word ({error}); check --text") from error
    reduce = _reducer(counts, dimensions or REDUCED)
    return _scaled(lambda t: reduce(words.transform(t)), texts)


def fit_sparse(x: Any, dimensions: int | None) -> Callable[[Any], Tensor]:
    """What turns sparse rows into x [n, d] float32, root mean square 1 on the training part.

    Counts of more than 1,024 columns are weighted by TF-IDF, as words are; then comes the truncated SVD.
    """
    width = x.shape[1]
    weigh: Callable[[Any], Any] = lambda rows: rows  # noqa: E731
    if width > DENSE and _are_counts(x):
        weight = importlib.import_module("sklearn.feature_extraction.text").TfidfTransformer(sublinear_tf=True).fit(x)
        weigh = weight.transform
    limit = DENSE if dimensions is None else dimensions
    reduce = _reducer(weigh(x), REDUCED if dimensions is None and width > DENSE else limit)
    return _scaled(lambda rows: reduce(weigh(_of_width(rows, width))), x)


def _are_counts(x: Any) -> bool:
    values = cast("np.ndarray[Any, Any]", x.data)
    return bool((values >= 0).all()) and bool((values == np.round(values)).all())


def _of_width(x: Any, width: int) -> Any:
    """The rows with as many columns as the training part: the rest cannot have been learned from."""
    if x.shape[1] < width:
        x = x.copy()
        x.resize((x.shape[0], width))
    return x[:, :width]


def _reducer(x: Any, dimensions: int) -> Callable[[Any], Any]:
    """The truncated SVD fitted on sparse rows; dense rows as they are where they have no more columns than that."""
    if x.shape[1] <= dimensions:
        return lambda rows: rows.toarray()
    decomposition = importlib.import_module("sklearn.decomposition")
    count = max(1, min(dimensions, x.shape[0] - 1))
    svd = decomposition.TruncatedSVD(count, algorithm="randomized", random_state=0)
    with one_thread():
        svd.fit(x)
    return svd.transform


def _scaled(transform: Callable[[Any], Any], train: Any) -> Callable[[Any], Tensor]:
    """The transform divided by the root mean square of what it makes of the training part; few words stay few."""

    def numbers(rows: Any) -> Tensor:
        count = rows.shape[0] if hasattr(rows, "shape") else len(rows)
        starts = range(0, max(count, 1), AT_ONCE)
        with one_thread():
            parts = [np.asarray(transform(rows[at : at + AT_ONCE]), dtype=np.float32) for at in starts]
        return torch.from_numpy(np.concatenate(parts))

    size = float(numbers(train).square().mean(dtype=torch.float64).sqrt()) or 1.0
    return lambda rows: numbers(rows) / size


def one_thread() -> Any:
    """Linear algebra on one thread: sums in one order, so that the numbers do not depend on the number of cores."""
    return importlib.import_module("threadpoolctl").threadpool_limits(1)
