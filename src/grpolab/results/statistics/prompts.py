"""Statistics over prompts of one or two runs: pass@k, and differences prompt by prompt.

They say how sure an evaluation is, not how sure a finding: the same run on other prompts. What
another seed would have done only other seeds show.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from grpolab.results.statistics.compare import Comparison, paired_differences
from grpolab.results.statistics.intervals import Floats, Interval, mean_interval, t_quantile

Array = npt.NDArray[np.float64]


def pass_at_k(correct: npt.ArrayLike, samples: npt.ArrayLike, k: int) -> Array:
    """Unbiased pass@k of each prompt, 1 − C(n − c, k) / C(n, k) (arXiv 2107.03374): [prompts].

    `correct` [prompts] are c of `samples` n (one number, or [prompts]). ValueError where k > n.
    """
    c, n = np.broadcast_arrays(np.asarray(correct, dtype=int), np.asarray(samples, dtype=int))
    if k < 1 or (n < k).any():
        raise ValueError(f"k: {k} given, 1 to {n.min() if n.size else 0} (samples) are allowed")
    if (c < 0).any() or (c > n).any():
        raise ValueError("correct: 0 to samples are allowed")
    # C(n - c, k) / C(n, k) as a product, which does not overflow: Π_i (n - c - i) / (n - i)
    i = np.arange(k)
    factors = np.maximum(n[..., None] - c[..., None] - i, 0) / (n[..., None] - i)
    found: Array = 1 - factors.prod(axis=-1)
    return found


def pass_at_k_interval(
    correct: npt.ArrayLike, samples: npt.ArrayLike, k: int, level: float = 0.95
) -> Interval:
    """Mean pass@k over prompts with its Student-t interval: the prompt is the unit."""
    return mean_interval(pass_at_k(correct, samples, k), level)


def paired_by_prompt(
    arm: Floats,
    baseline: Floats,
    clusters: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> Comparison:
    """Mean difference of `arm` [n] and `baseline` [n] prompt by prompt, errors clustered.

    After arXiv 2411.00640: SE = √(Σ_c (Σ_{i∈c} (d_i − d̄))²) / n over clusters c (prompts from one
    template, one passage, one seed), `clusters` [n] their labels; None: each prompt its own.
    Two things differ from it: a factor C / (C − 1) for C clusters, which makes one prompt a
    cluster the ordinary paired error, and Student-t of C − 1 degrees for the normal.
    """
    d = paired_differences(arm, baseline)
    labels = np.arange(len(d)) if clusters is None else np.asarray(clusters)
    if labels.shape != d.shape:
        raise ValueError(f"clusters: {len(labels)} given, {len(d)} (one a prompt) are needed")
    delta = float(d.mean()) if len(d) else np.nan
    _, index = np.unique(labels, return_inverse=True)
    sums = np.bincount(index, weights=d - delta) if len(d) else np.zeros(0)
    c = len(sums)
    if c < 2 or not np.isfinite(sums).all():
        return Comparison(delta, np.nan, np.nan, len(d), np.nan, "clustered t")
    error = float(np.sqrt((sums**2).sum() * c / (c - 1))) / len(d)
    if not error > 0:
        return Comparison(delta, np.nan, np.nan, len(d), np.nan, "clustered t")
    half = t_quantile(level, c - 1) * error
    p = 2 * float(stats.t.sf(abs(delta) / error, c - 1))
    return Comparison(delta, delta - half, delta + half, len(d), p, "clustered t")
