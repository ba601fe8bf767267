"""Advantages for the best of k completions."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.advantage.base import Advantage, Scored
from grpolab.objective.advantage.statistics import group_std, quotient
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class PassAtK(Advantage):
    """(E[max over k-subsets with i] − E[max over k-subsets]) / their std: pass@k training.

    analytic: over all subsets of k of a group's n scored members. With rewards of 0 and 1 this is
    the closed form of arXiv 2508.10751: (1−R̄)/σ for the right ones and
    (1 − R̄ − C(n₀−1, k−1)/C(n−1, k−1))/σ for the n₀ wrong ones, R̄ = 1 − C(n₀, k)/C(n, k) and
    σ = √(R̄(1−R̄)); here it also holds for any real rewards. Before σ its expected gradient is
    (n−k)/(n·k) that of E[max of k], so k = 1 is the z-score with ddof 0. Where fewer than k members
    stand below the best one all subsets have the same maximum, and A = 0: k is less than G.

    best_only: the best member gets its lead over the second (0 if they tie) and all others 0, which
    is the leave-one-out gradient of the best of the whole group; k plays no part. Source: arXiv
    2503.19595. verl: grpo_passk, which divides by the group's std + 1e-6 by default (normalise).

    arXiv 2505.15201 gets the same analytic gradient with other baselines and without σ.
    """

    name: ClassVar[str] = "pass_at_k"

    k: int = setting(4, "size of the subsets; analytic only, less than the group size", ge=1)
    mode: Literal["analytic", "best_only"] = setting(
        "analytic", "analytic: over all k-subsets; best_only: the best member's lead"
    )
    normalise: bool | None = setting(
        None, "divide by the standard deviation; null: in analytic, not in best_only"
    )
    eps: float = setting(1e-6, "added to the group's std where best_only divides by it", ge=0)

    def formula(self, x: Scored) -> Tensor:
        return self.analytic(x) if self.mode == "analytic" else self.best_only(x)

    def best_only(self, x: Scored) -> Tensor:
        """[P, G] the best member's lead over the second."""
        best = x.scored & (x.rewards == highest(x))
        second = torch.where(x.scored & ~best, x.rewards, -torch.inf).amax(dim=1, keepdim=True)
        lead = highest(x) - second
        if self.normalise:
            lead = quotient(lead, group_std(x.rewards, x.scored, ddof=1) + self.eps)
        alone = best.sum(dim=1, keepdim=True) == 1
        return torch.where(best & alone & self.live(x), lead, 0.0)

    def analytic(self, x: Scored) -> Tensor:
        """[P, G] what a member adds to the expected maximum of the k-subsets."""
        found = torch.zeros_like(x.rewards)
        counts = x.scored.sum(dim=1)
        for count in set(counts.tolist()):
            if count > self.k:
                rows = counts == count
                found[rows] = self._of_groups(x.rewards[rows], x.scored[rows], count)
        return found

    def _of_groups(self, rewards: Tensor, scored: Tensor, count: int) -> Tensor:
        """Of groups that all have `count` scored members."""
        values, order = torch.where(scored, rewards, torch.inf).sort(dim=1)
        values = values[:, :count]
        best = values[:, -1:]
        width = best - values[:, :1]
        # From −1 to exactly 0, so that subsets which all hold a best one differ by no rounding.
        values = quotient(values - best, width)
        anywhere, with_member = (w.to(values) for w in maximum_weights(count, self.k))
        mean = (anywhere * values).sum(dim=1, keepdim=True)
        gain = (with_member * values.unsqueeze(1)).sum(dim=2) - mean
        if self.normalise is False:
            gain = gain * width
        else:
            variance = (anywhere * (values - mean).square()).sum(dim=1, keepdim=True)
            gain = quotient(gain, variance.sqrt())
        padded = torch.zeros_like(rewards)
        padded[:, :count] = gain
        return torch.zeros_like(rewards).scatter(1, order, padded)


def highest(x: Scored) -> Tensor:
    """[P, 1] the best scored reward of each group."""
    return torch.where(x.scored, x.rewards, -torch.inf).amax(dim=1, keepdim=True)


def maximum_weights(n: int, k: int) -> tuple[Tensor, Tensor]:
    """Of values in ascending order: the probability [n] that the j-th is the maximum of a random
    subset of k, and the same [n, n] given that the subset holds the i-th (row i)."""
    anywhere = [comb(j, k - 1) / comb(n, k) for j in range(n)]
    total = comb(n - 1, k - 1)
    with_member = [
        [0.0] * i
        + [comb(i, k - 1) / total]
        + [comb(j - 1, k - 2) / total if k > 1 else 0.0 for j in range(i + 1, n)]
        for i in range(n)
    ]
    return (
        torch.tensor(anywhere, dtype=torch.float64),
        torch.tensor(with_member, dtype=torch.float64),
    )
