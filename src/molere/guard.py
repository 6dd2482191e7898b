"""Who is to blame when numbers stop being finite: the data, a network, or what it gave."""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from molere.adapters import Packed
from molere.data.pool import Pool
from molere.data.view import PoolView
from molere.errors import DataError
from molere.learner import Learner

AT_ONCE = 1024
"""Examples looked at to find those that are not finite."""
REMEDY = "lower train.lr, set train.grad_clip, or let train.on_nonfinite be skip or rollback"


def broken(x: Shaped[Tensor, "n *shape"]) -> Bool[Tensor, " n"]:
    """Which examples hold NaN or an infinity, in any of their tensors."""
    if isinstance(x, Packed):
        parts = x.parts.values() if isinstance(x.parts, Mapping) else x.parts
        return torch.stack([broken(part) for part in parts]).any(0)
    if not x.is_floating_point():
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return ~torch.isfinite(x).flatten(1).all(1)


def broken_among(pool: Pool, index: Int[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """Which of some examples hold NaN or an infinity; the first AT_ONCE say whether the rest are looked at."""
    found = torch.zeros(len(index), dtype=torch.bool, device=index.device)
    for start in range(0, len(index), AT_ONCE):
        part = index[start : start + AT_ONCE]
        found[start : start + AT_ONCE] = broken(pool.batch(part.to(pool.y.device)).x).to(index.device)
        if not bool(found.any()):
            break
    return found


def demand_inputs(pool: Pool, outputs: Float[Tensor, "n c"]) -> None:
    """DataError naming the examples of a pool that are not finite, looked for where the outputs for it are not."""
    odd = (~torch.isfinite(outputs).all(1)).nonzero().flatten()[:AT_ONCE].to(pool.y.device)
    x = pool.batch(odd).x if len(odd) else outputs
    if len(odd) and bool((bad := broken(x)).any()):
        raise DataError(f"the data of {named(pool, odd[bad.to(odd.device)])} are not finite; mend or remove them")


def infinite(learner: Learner) -> str | None:
    """The first parameter or buffer of a network that holds NaN or an infinity, if any does."""
    for kind, named in ("parameter", learner.model.named_parameters()), ("buffer", learner.model.named_buffers()):
        for name, value in named:
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                return f"{kind} {name}"
    return None


def culprit(learners: Mapping[str, Learner]) -> str:
    """The first network that holds NaN or an infinity, in brackets; empty if none does."""
    found = ((name, infinite(learner)) for name, learner in learners.items())
    return next((f" ({what} of the {name})" for name, what in found if what is not None), "")


def named(pool: Pool, index: Int[Tensor, " k"]) -> str:
    """Examples of a pool by their ids, those of a part by the ids of the whole."""
    while isinstance(pool, PoolView):
        pool, index = pool.pool, pool.index[index.to(pool.index.device)]
    index = index.cpu()
    return listed(cast(list[object], index.tolist() if pool.ids is None else pool.ids[index.numpy()].tolist()))


def listed(ids: Iterable[object]) -> str:
    """The word and the first five ids, each once."""
    ids = list(dict.fromkeys(ids))
    shown = ", ".join(str(i) for i in ids[:5])
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f"example{'s' if len(ids) > 1 else ''} {shown}{more}"
