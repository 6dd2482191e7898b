"""What the estimator says of single examples after a run: weights and margins, who is hard, whose label is doubted."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from molere.result import Result

HARD = 0.1
"""Share of the examples that are named as hard."""

Column = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Known:
    """Columns in the order of X [N]; NaN where an example has no such value."""

    weights: Column
    """Of each example when it was last trained on."""
    margins: Column
    """Under the fitted model (eq. 7)."""
    judged: Column
    """Margins under models that did not see the example, where the method trained such, else `margins`."""

    @classmethod
    def of(cls, result: Result, n: int) -> "Known":
        """Columns of a result whose ids are positions in X, and below 0 for other examples."""
        ids = np.asarray(result.ids, dtype=np.int64)
        own = ids >= 0

        def column(name: str) -> Column:
            values = np.full(n, np.nan)
            values[ids[own]] = np.asarray(result.samples[name], dtype=np.float64)[own]
            return values

        margins = column("margin")
        judged = column("holdout_margin") if "holdout_margin" in result.samples else margins
        return cls(column("weight"), margins, judged)

    def hard(self) -> Places:
        """The tenth of least margin, hardest first."""
        return _ascending(self.margins)[: max(1, int(HARD * len(self.margins)))]

    def suspects(self) -> Places:
        """Those whose judged margin is below 0, most contradicted first."""
        order = _ascending(self.judged)
        return order[self.judged[order] < 0]


def _ascending(values: Column) -> Places:
    """Positions by value, NaN last."""
    return np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")
