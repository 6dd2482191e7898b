"""Probe: the cheapest estimator that is accurate enough for a module, found by trying them on one of its batches."""

import logging
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from molere.errors import ConfigError
from molere.metagrad import ESTIMATORS, CentralDifference, Estimator, ForwardMode, OneSidedDifference, Outputs
from molere.optim import Params

logger = logging.getLogger(__name__)

ENOUGH = 0.999
"""Cosine with the exact products that a probe asks of a difference."""

PROBES = 4
"""Times in a run that the estimator is chosen: differences of losses lose their digits as examples are fitted."""


@dataclass(frozen=True)
class Choice:
    """The estimator that a probe chose, and why."""

    estimator: Estimator
    reason: str
    cosine: float
    """Of the one-sided difference's products with the exact ones; NaN where they were not compared."""
    passes: int
    """Forward passes the probe took (a forward-mode pass counts two)."""


def probe(
    losses: Outputs,
    theta: Params,
    direction: Params,
    base: Float[Tensor, "n *c"] | None,
    *,
    differences: bool = True,
) -> Choice:
    """Try the estimators on one batch and choose the cheapest that is good enough.

    float64 or differences ruled out (mixed precision): forward mode, where the module supports it. Otherwise the
    one-sided difference if its products have a cosine of at least .999 with the exact ones, else the central difference
    on the same terms, else forward mode. Where the training losses cannot serve as base, one-sided and central cost
    the same and central is tried first. A module whose losses differ between two identical passes gets forward mode.
    """
    exact = _try_forward(losses, theta, direction)
    fallback: Estimator = CentralDifference() if exact is None else ForwardMode()
    with torch.no_grad():
        again = losses(theta)
    if not differences or again.dtype == torch.float64:
        reason = "no forward derivatives in this module" if exact is None else "float64 or mixed precision"
        return Choice(fallback, reason, math.nan, ForwardMode().passes + 1)
    if base is not None and not torch.allclose(again, base, rtol=1e-4, atol=1e-5) and exact is not None:
        return Choice(ForwardMode(), "two identical passes gave different losses", math.nan, ForwardMode().passes + 1)
    central = CentralDifference()(losses, theta, direction)
    against = ("the central", central) if exact is None else ("the exact", exact)
    one_sided = _cosine(
        OneSidedDifference()(losses, theta, direction, base=again if base is None else base), against[1]
    )
    passes = ForwardMode().passes + CentralDifference().passes + OneSidedDifference().passes + 1
    if one_sided >= ENOUGH and base is not None:
        return Choice(OneSidedDifference(), f"cosine {one_sided:.5f} with {against[0]} products", one_sided, passes)
    if (cosine := _cosine(central, against[1])) >= ENOUGH:
        reason = f"cosine {cosine:.5f} with {against[0]} products, one-sided {one_sided:.5f}"
        return Choice(CentralDifference(), reason, one_sided, passes)
    return Choice(fallback, f"differences are too inaccurate (one-sided: cosine {one_sided:.5f})", one_sided, passes)


def _cosine(products: Float[Tensor, "n *c"], truth: Float[Tensor, "n *c"]) -> float:
    """In float64, as fitted examples have products whose fourth powers vanish; two zeros agree, one does not."""
    a, b = products.double().flatten(), truth.double().flatten()
    scale = float((a @ a) * (b @ b)) ** 0.5
    return float(a @ b) / scale if scale else float(torch.equal(a, b))


def _try_forward(losses: Outputs, theta: Params, direction: Params) -> Tensor | None:
    try:
        return ForwardMode()(losses, theta, direction)
    except (ConfigError, RuntimeError):  # no forward derivatives, or no memory for them
        return None


class Chooser:
    """The estimator of a run: the recipe's, or under `auto` a probe's choice, made anew in each quarter of the run."""

    def __init__(self, wanted: str) -> None:
        self._wanted = "exact" if wanted == "ghost" else wanted  # for what a tape does not give, such as logits
        self._probed: tuple[str, int] | None = None
        self.choice: Choice | None = None

    @property
    def name(self) -> str | None:
        """Of the estimator in use; none before the first meta step, where a probe chooses."""
        return self._probed[0] if self._probed else None if self._wanted == "auto" else self._wanted

    def choose(
        self,
        losses: Outputs,
        theta: Params,
        direction: Params,
        base: Float[Tensor, "n *c"] | None,
        *,
        spent: float,
        differences: bool = True,
    ) -> tuple[Estimator, Choice | None]:
        """The estimator for a meta step when this share of the budget is spent, and the choice if one was made."""
        if self._wanted != "auto":
            return ESTIMATORS[self._wanted], None
        quarter = math.floor(PROBES * spent)
        if self._probed is not None and self._probed[1] == quarter:
            return ESTIMATORS[self._probed[0]], None
        choice = probe(losses, theta, direction, base, differences=differences)
        logger.info("products by %s: %s", choice.estimator.name, choice.reason)
        self._probed, self.choice = (choice.estimator.name, quarter), choice
        return choice.estimator, choice

    def state_dict(self) -> dict[str, tuple[str, int] | None]:
        """The last choice, and when it was made."""
        return {"probed": self._probed}

    def load_state_dict(self, state: dict[str, tuple[str, int] | None]) -> None:
        """Undo `state_dict`."""
        self._probed = None if state["probed"] is None else (state["probed"][0], state["probed"][1])
