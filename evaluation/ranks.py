"""Rank correlation: does one quantity rise with another, whatever the shape of the curve?"""

import numpy as np
from jaxtyping import Float


def rank_correlation(a: Float[np.ndarray, "N"], b: Float[np.ndarray, "N"]) -> float | None:
    """Spearman's rho of two samples, equal values share their mean rank; None where one of them does not vary."""
    from scipy.stats import rankdata  # half a second of import

    if len(a) < 2:
        return None
    x, y = (ranks - ranks.mean() for ranks in (rankdata(a), rankdata(b)))
    length = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / length if length > 0 else None
