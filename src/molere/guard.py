"""Who is to blame when numbers stop being finite: the data, a network, or what it gave."""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from molere.data.pool import Pool
from molere.errors import DataError
from molere.learner import Learner
from molere.steps import Seen

AT_ONCE = 1024
"""Examples looked at to find those that are not finite."""
REMEDY = "lower train.lr, set train.grad_clip, or let train.on_nonfinite be skip or rollback"


def blame(learners: Iterable[Learner], pool: Pool, seen: Seen, update: int) -> str:
    """One sentence on why the losses of a batch are not finite: its data, a network's parameters, or its outputs."""
    broken = ~torch.isfinite(seen.batch.x).flatten(1).all(1) if seen.batch.x.is_floating_point() else None
    if broken is not None and bool(broken.any()):
        return f"the data of {_examples(pool, seen, broken)} are not finite (update {update}); mend or remove them"
    for learner in learners:
        if (name := infinite(learner)) is not None:
            return f"{name} of the {learner.name} is not finite at update {update}; {REMEDY}"
    broken = ~torch.isfinite(seen.losses.detach())
    return f"the classifier's loss of {_examples(pool, seen, broken)} is not finite at update {update}; {REMEDY}"


def demand_inputs(pool: Pool, outputs: Float[Tensor, "n c"]) -> None:
    """DataError naming the examples of a pool that are not finite, looked for where the outputs for it are not."""
    odd = (~torch.isfinite(outputs).all(1)).nonzero().flatten()[:AT_ONCE].to(pool.y.device)
    x = pool.batch(odd).x if len(odd) else outputs
    if len(odd) and x.is_floating_point() and bool((broken := ~torch.isfinite(x).flatten(1).all(1)).any()):
        raise DataError(f"the data of {_named(pool, odd[broken.to(odd.device)])} are not finite; mend or remove them")


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


def _examples(pool: Pool, seen: Seen, which: Bool[Tensor, " n"]) -> str:
    return _named(pool, seen.batch.index[which.to(seen.batch.index.device)])


def _named(pool: Pool, index: Int[Tensor, " k"]) -> str:
    index = index.cpu()
    ids = cast(list[object], index.tolist() if pool.ids is None else pool.ids[index.numpy()].tolist())
    shown = ", ".join(str(i) for i in ids[:5])
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f"example{'s' if len(ids) > 1 else ''} {shown}{more}"
