"""Statistics of a few seeds: pure functions of arrays, randomness only by an explicit Generator.

The unit of replication is the seed. One module a question; each names its sources.
"""

from grpolab.results.statistics.aggregate import (
    improvement,
    improvement_interval,
    interquartile_mean,
    performance_profile,
    profile_band,
    stratified_interval,
)
from grpolab.results.statistics.compare import (
    Comparison,
    minimum_sign_flip_p,
    paired,
    permutation_test,
    sign_flip,
    sign_flip_test,
    welch,
)
from grpolab.results.statistics.components import (
    Components,
    factorial_effects,
    variance_components,
)
from grpolab.results.statistics.correction import (
    ADJUST,
    benjamini_hochberg,
    bonferroni,
    holm,
    interval_alphas,
)
from grpolab.results.statistics.curves import (
    Crossing,
    area_per_token,
    crossing,
    final_value,
    median_crossing,
)
from grpolab.results.statistics.dunnett import Dunnett, dunnett_blocked, dunnett_unpaired
from grpolab.results.statistics.effects import hedges_g, paired_effect
from grpolab.results.statistics.equivalence import (
    Equivalence,
    tost_paired,
    tost_permutation,
    tost_sign_flip,
    tost_welch,
)
from grpolab.results.statistics.fits import (
    EntropyLaw,
    Sigmoid,
    fit_entropy_law,
    fit_sigmoid,
)
from grpolab.results.statistics.intervals import (
    Floats,
    Interval,
    bootstrap_interval,
    interval,
    mean_interval,
    t_quantile,
)
from grpolab.results.statistics.prompts import paired_by_prompt, pass_at_k, pass_at_k_interval
from grpolab.results.statistics.rates import fisher, mcnemar, wilson

__all__ = [
    "ADJUST",
    "Comparison",
    "Components",
    "Crossing",
    "Dunnett",
    "EntropyLaw",
    "Equivalence",
    "Floats",
    "Interval",
    "Sigmoid",
    "area_per_token",
    "benjamini_hochberg",
    "bonferroni",
    "bootstrap_interval",
    "crossing",
    "dunnett_blocked",
    "dunnett_unpaired",
    "factorial_effects",
    "final_value",
    "fisher",
    "fit_entropy_law",
    "fit_sigmoid",
    "hedges_g",
    "holm",
    "improvement",
    "improvement_interval",
    "interquartile_mean",
    "interval",
    "interval_alphas",
    "mcnemar",
    "mean_interval",
    "median_crossing",
    "minimum_sign_flip_p",
    "paired",
    "paired_by_prompt",
    "paired_effect",
    "pass_at_k",
    "pass_at_k_interval",
    "performance_profile",
    "permutation_test",
    "profile_band",
    "sign_flip",
    "sign_flip_test",
    "stratified_interval",
    "t_quantile",
    "tost_paired",
    "tost_permutation",
    "tost_sign_flip",
    "tost_welch",
    "variance_components",
    "welch",
    "wilson",
]
