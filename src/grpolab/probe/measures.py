"""What inner products of gradients say: cosines, their sampling error, signal and noise.

Pure NumPy. A batch's gradient is a sum over its P groups, G = Σ_p g_p, whose terms are taken as
independent draws; group statistics enter each term as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cosines(gram: Array) -> Array:
    """[J, J] from inner products [J, J]; NaN beside a gradient of 0, 1 on the diagonal."""
    norms = np.sqrt(np.clip(np.diag(gram), 0, None))
    scale = np.outer(norms, norms)
    found = np.full_like(gram, np.nan)
    np.divide(gram, scale, out=found, where=scale > 0)
    np.fill_diagonal(found, np.where(norms > 0, 1.0, np.nan))
    return np.clip(found, -1.0, 1.0)


def signal(total: float, own: Array) -> tuple[float, float]:
    """(|E G|², E|G − E G|²) unbiased, from |G|² and the squares [P] of its groups' terms.

    Σ_{p≠q} g_p·g_q = (P − 1)/P · |E G|² in expectation. NaN for a single group. The signal's
    estimate may be negative where noise dominates.
    """
    groups = len(own)
    if groups < 2:
        return float("nan"), float("nan")
    found = groups / (groups - 1) * (total - float(own.sum()))
    return found, total - found


def half_cosine(total: float, even: float, inner: float) -> float:
    """Cosine between the gradients of the even and the odd groups, E and O with E + O = G, from
    |G|², |E|² and E·G."""
    odd = total - 2 * inner + even
    scale = even * odd
    return (inner - even) / scale**0.5 if scale > 0 else float("nan")


def cosine_errors(terms: Array, own: Array) -> Array:
    """[J, J] jackknife standard errors over groups of the cosines between arms.

    Each group is left out in turn: (G_i − g_ip)·(G_j − g_jp). Where noise dominates, its derivative
    by the weight of a group (the infinitesimal jackknife) would give half as much again.

    Args:
        terms: [J, P, J] inner products of arm i's term of each group with the gradient of arm j.
        own: [J, J, P] of two arms' terms of the same group.
    """
    arms, groups = terms.shape[:2]
    if groups < 2:
        return np.full((arms, arms), np.nan)
    whole = terms.sum(axis=1)
    total = (whole + whole.T) / 2
    both = terms.transpose(1, 0, 2) + terms.transpose(1, 2, 0)  # [P, J, J]
    left = total - both + own.transpose(2, 0, 1)
    found = np.stack([cosines(one) for one in left])
    return jackknife_error(found)


def jackknife_error(left: Array) -> Array:
    """Standard errors [...] of a statistic from its values [P, ...] without one of P groups; NaN of
    fewer than two."""
    count = len(left)
    if count < 2:
        return np.full(left.shape[1:], np.nan)
    spread = left - left.mean(axis=0)
    error: Array = np.sqrt((count - 1) / count * (spread**2).sum(axis=0))
    return error
