"""Statistics of a few seeds: pure functions of arrays, randomness only by an explicit Generator.

The unit of replication is the seed. One module a question; each names its sources.
"""

from grpolab.results.statistics.compare import (
    Comparison,
    minimum_sign_flip_p,
    paired,
    permutation_test,
    sign_flip,
    sign_flip_test,
    welch,
)
from grpolab.results.statistics.correction import (
    ADJUST,
    benjamini_hochberg,
    bonferroni,
    holm,
    interval_alphas,
)
from grpolab.results.statistics.equivalence import (
    Equivalence,
    tost_paired,
    tost_permutation,
    tost_sign_flip,
    tost_welch,
)
from grpolab.results.statistics.intervals import (
    Floats,
    Interval,
    bootstrap_interval,
    interval,
    mean_interval,
    t_quantile,
)

__all__ = [
    "ADJUST",
    "Comparison",
    "Equivalence",
    "Floats",
    "Interval",
    "benjamini_hochberg",
    "bonferroni",
    "bootstrap_interval",
    "holm",
    "interval",
    "interval_alphas",
    "mean_interval",
    "minimum_sign_flip_p",
    "paired",
    "permutation_test",
    "sign_flip",
    "sign_flip_test",
    "t_quantile",
    "tost_paired",
    "tost_permutation",
    "tost_sign_flip",
    "tost_welch",
    "welch",
]
