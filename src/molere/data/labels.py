"""Checks that inputs and labels can be trained on; each failure names a position and a value."""

from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from molere.errors import DataError
from molere.names import one_line

Names: TypeAlias = npt.NDArray[np.generic]  # of text: checked at run time, np.str_ admits no length
Array: TypeAlias = Tensor | npt.NDArray[np.generic] | Sequence[object]


def as_tensor(values: Array, what: str) -> Shaped[Tensor, "..."]:
    """The values as a tensor, memory shared where possible; DataError where they are not numbers."""
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
    except ValueError:  # sequences of unlike length
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        at, value = _first_stranger(values)
        example = f"{one_line(value)} of example {at}"
        raise DataError(f"{what} must be numbers; got {array.dtype}, e.g. {example}: encode them first")
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _first_stranger(values: Array) -> tuple[int, object]:
    """Place and value of the first item that is no number, nor text of one; of the first item if there is none."""
    items = cast(list[object], values.tolist() if isinstance(values, np.ndarray) else list(values))
    for at, item in enumerate(items):
        try:
            float(cast(str, item))
        except (TypeError, ValueError):
            return at, item
    return 0, items[0] if items else None


def checked_labels(
    y: Array, *, classes: int | None = None, length: int | None = None, what: str = "label"
) -> Int[Tensor, " n"]:
    """Labels as int64 in 0..classes-1 (None: no upper limit); DataError names the first one that is not."""
    raw = as_tensor(y, f"{what}s")
    if raw.ndim != 1:
        raise DataError(f"{what}s must be one number per example, shape [N]; got shape {list(raw.shape)}")
    if length is not None and len(raw) != length:
        raise DataError(f"x has {length} examples but there are {len(raw)} {what}s; pass one {what} per example")
    if raw.is_floating_point():
        _refuse(raw, ~torch.isfinite(raw), what, "not a class index; remove or relabel this example")
        _refuse(raw, raw != raw.trunc(), what, "not a whole number; expected class indices 0, 1, 2, ...")
    labels = raw.to(torch.int64).contiguous()
    _refuse(labels, labels == -100, what, "the ignore index of torch losses; remove these examples from the pool")
    _refuse(labels, labels < 0, what, "negative; expected class indices 0, 1, 2, ...")
    if classes is not None:
        wider = f"outside 0..{classes - 1}; relabel it or pass a larger num_classes"
        _refuse(labels, labels >= classes, what, wider)
    return labels


def _refuse(values: Shaped[Tensor, " n"], bad: Bool[Tensor, " n"], what: str, why: str) -> None:
    if bool(bad.any()):
        first, count = int(bad.to(torch.uint8).argmax()), int(bad.sum())
        more = f" ({count} such)" if count > 1 else ""
        raise DataError(f"{what} {values[first].item()} of example {first} is {why}{more}")


def count_classes(y: Int[Tensor, " n"], given: int | None) -> int:
    """The given number of classes, else the largest label + 1; DataError for fewer than two classes."""
    if given is not None and given >= 2:
        return given
    if given is not None or bool((y == y[0]).all()):
        only = f"all {len(y)} labels are {int(y[0])}" if given is None else f"num_classes={given}"
        raise DataError(f"one class only ({only}); a classifier needs at least two")
    return int(y.max()) + 1


def checked_inputs(x: Array) -> Shaped[Tensor, "n ..."]:
    """x as a pool stores it: images uint8 [N, C, H, W], other floats float32, other integers int64."""
    raw = as_tensor(x, "x")
    if raw.ndim == 0 or len(raw) == 0:
        raise DataError(f"x must hold at least one example, shape [N, ...]; got shape {list(raw.shape)}")
    if raw.dtype == torch.uint8:
        return _images(raw)
    if not raw.is_floating_point():
        return raw.to(torch.float32 if raw.dtype == torch.bool else torch.int64).contiguous()
    values = raw.to(torch.float32).contiguous()
    bad = ~torch.isfinite(values.view(len(values), -1)).all(1)
    if bool(bad.any()):
        first, count = int(bad.to(torch.uint8).argmax()), int(bad.sum())
        raise DataError(f"x of example {first} holds NaN or infinity ({count} such); fill or remove them")
    return values


def _images(x: UInt8[Tensor, "..."]) -> UInt8[Tensor, "n c h w"]:
    if x.ndim == 3:
        return x[:, None].contiguous()
    shape = list(x.shape)
    if x.ndim != 4:
        raise DataError(f"uint8 x must be images [N, C, H, W]; got shape {shape}: pass anything else as float")
    if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        raise DataError(f"images must be [N, C, H, W]; got {shape}: pass x.transpose(0, 3, 1, 2) (numpy)")
    return x.contiguous()


def labelled(y: Array, num_classes: int | None, length: int) -> tuple[Int[Tensor, " n"], int]:
    """Checked labels [length] and their number of classes."""
    labels = checked_labels(y, classes=num_classes, length=length)
    return labels, count_classes(labels, num_classes)


def columns(
    group: Array | None, clean_y: Array | None, ids: Array | None, classes: int, length: int
) -> tuple[Int[Tensor, " n"] | None, Int[Tensor, " n"] | None, npt.NDArray[np.generic] | None]:
    """The checked optional columns of a pool: evaluation groups, true labels, the user's own ids."""
    groups = None if group is None else checked_labels(group, length=length, what="group")
    clean = None if clean_y is None else checked_labels(clean_y, classes=classes, length=length, what="clean label")
    own = None if ids is None else np.asarray(ids)
    if own is not None and len(own) != length:
        raise DataError(f"x has {length} examples but there are {len(own)} ids; pass one id per example")
    return groups, clean, own


def checked_flips(flips: Float[Tensor, " q"] | None, length: int) -> Float[Tensor, " q"] | None:
    """The flip probabilities of known noise, if there are any; DataError unless there is one for each example."""
    if flips is not None and len(flips) != length:
        raise DataError(f"x has {length} examples but there are {len(flips)} flip probabilities; pass one per example")
    return flips


def checked_weights(weight: Array | None, length: int) -> Float[Tensor, " n"] | None:
    """Weights as float32 [length]; DataError unless they are finite, at least 0, and not all 0."""
    if weight is None:
        return None
    raw = as_tensor(weight, "weights").to(torch.float32)
    if raw.ndim != 1 or len(raw) != length:
        raise DataError(f"x has {length} examples but the weights have shape {list(raw.shape)}; pass one per example")
    _refuse(raw, ~(raw.isfinite() & (raw >= 0)), "weight", "not a number of at least 0; mend it")
    if not bool((raw > 0).any()):
        raise DataError("all weights are 0, so nothing would be learned; give some examples a weight above 0")
    return raw
