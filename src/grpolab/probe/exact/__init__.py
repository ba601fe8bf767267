"""The exact laboratory: policies so small that the true gradient is a sum that can be written down.

Tabular policies (`bandit`, `token_tree`) have few enough completions that E[R] − β·KL and its
gradient are computed by enumeration, and with them the bias, the variance and the mean squared
error of what training would use instead: any advantage × clip × KL × placement × aggregation, the
components themselves and not formulas written anew. The expectation over batches is exact where
all batches can be gone through and a sample with intervals elsewhere.

    from grpolab.probe.exact import Arm, bandit, bias_table
    bias_table(bandit(), [Arm(), Arm(advantage="group_zscore")], group_sizes=[2, 4, 8])
"""

from grpolab.probe.exact.arms import Arm, one_factor, product
from grpolab.probe.exact.bias import Budget, bias_table
from grpolab.probe.exact.world import World, bandit, token_tree

__all__ = ["Arm", "Budget", "World", "bandit", "bias_table", "one_factor", "product", "token_tree"]
