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


def signal(gram: Array) -> tuple[float, float]:
    """(|E G|², E|G − E G|²) unbiased, from the inner products [P, P] of the groups' terms.

    Σ_{p≠q} g_p·g_q = (P − 1)/P · |E G|² in expectation. NaN for a single group. The signal's
    estimate may be negative where noise dominates.
    """
    groups = len(gram)
    if groups < 2:
        return float("nan"), float("nan")
    total, own = float(gram.sum()), float(np.trace(gram))
    found = groups / (groups - 1) * (total - own)
    return found, total - found


def half_cosine(gram: Array) -> float:
    """Cosine between the gradients of the even and the odd groups, from inner products [P, P]."""
    even = np.arange(len(gram)) % 2 == 0
    inner = gram[np.ix_(even, ~even)].sum()
    scale = gram[np.ix_(even, even)].sum() * gram[np.ix_(~even, ~even)].sum()
    return float(inner / np.sqrt(scale)) if scale > 0 else float("nan")


def cosine_errors(terms: Array) -> Array:
    """[J, J] jackknife standard errors over groups of the cosines between arms.

    Args:
        terms: [J, P, J, P] inner products of each arm's terms.
    """
    arms, groups = terms.shape[:2]
    if groups < 2:
        return np.full((arms, arms), np.nan)
    total = terms.sum(axis=(1, 3))
    rows, columns = terms.sum(axis=3), terms.sum(axis=1)  # [J, P, J], [J, J, P]
    own = np.einsum("ipjp->pij", terms)
    left = total - rows.transpose(1, 0, 2) - columns.transpose(2, 0, 1) + own  # [P, J, J]
    found = np.stack([cosines(one) for one in left])
    spread = found - found.mean(axis=0)
    error: Array = np.sqrt((groups - 1) / groups * (spread**2).sum(axis=0))
    return error
