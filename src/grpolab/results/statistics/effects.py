"""Effect sizes: a difference of means in standard deviations."""

from __future__ import annotations

import numpy as np
from scipy import special

from grpolab.results.statistics.compare import paired_differences
from grpolab.results.statistics.intervals import Floats


def paired_effect(arm: Floats, baseline: Floats) -> float:
    """d_z: mean of the differences of `arm` [n] and `baseline` [n] over their deviation.

    It is what the paired t test sees, t = d_z √n. NaN for n < 2 or differences without spread.
    """
    d = paired_differences(arm, baseline)
    if len(d) < 2 or not d.std(ddof=1) > 0:
        return float("nan")
    return float(d.mean() / d.std(ddof=1))


def hedges_g(arm: Floats, baseline: Floats) -> float:
    """Hedges' g of two samples: difference of means over the pooled deviation, made unbiased.

    The factor is the exact J = Γ(ν/2) / (√(ν/2) Γ((ν − 1)/2)) with ν = n + m − 2 (Hedges 1981).
    It measures in deviations of single runs, as `power` does. NaN without spread or for ν < 2.
    """
    x, y = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    degrees = len(x) + len(y) - 2
    if min(len(x), len(y)) < 1 or degrees < 2:
        return float("nan")
    squares = float(((x - x.mean()) ** 2).sum() + ((y - y.mean()) ** 2).sum())
    if not squares > 0:
        return float("nan")
    log_j = special.gammaln(degrees / 2) - special.gammaln((degrees - 1) / 2)
    unbiased = float(np.exp(log_j)) / np.sqrt(degrees / 2)
    return float(unbiased * (x.mean() - y.mean()) / np.sqrt(squares / degrees))
