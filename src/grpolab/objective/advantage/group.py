"""Advantages from a group's own statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpolab.objective.advantage.base import Advantage, Scored, token_counts
from grpolab.objective.advantage.statistics import (
    centred,
    comparable,
    group_mean,
    group_zscore,
    quotient,
)
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class GroupZScore(Advantage):
    """(R − mean_g) / (std_g + eps): GRPO.

    Source: arXiv 2402.03300. ddof and eps differ between trainers: TRL 1 / 1e-4, verl 1 / 1e-6,
    OpenRLHF 1 / 1e-9, open-instruct 0 / 1e-8.
    """

    name: ClassVar[str] = "group_zscore"

    ddof: int = setting(1, "delta degrees of freedom of the standard deviation", ge=0, le=1)
    eps: float = setting(1e-4, "added to the standard deviation", ge=0)

    def formula(self, x: Scored) -> Tensor:
        return group_zscore(x.rewards, x.scored, self.ddof, self.eps)


@dataclass(frozen=True)
class GroupCenter(Advantage):
    """R − mean_g: Dr. GRPO.

    Source: arXiv 2503.20783. TRL: scale_rewards="none"; verl: norm_adv_by_std_in_grpo=False.
    """

    name: ClassVar[str] = "group_center"

    def formula(self, x: Scored) -> Tensor:
        return centred(x.rewards, x.scored)


@dataclass(frozen=True)
class RLOO(Advantage):
    """R_i − mean of the others = G/(G−1) · (R_i − mean_g): REINFORCE leave-one-out.

    Source: arXiv 2402.14740. G counts the group's scored members. TRL's RLOO trainer puts a batch
    z-score behind it by default; this is the bare estimator.
    """

    name: ClassVar[str] = "rloo"

    def formula(self, x: Scored) -> Tensor:
        count = x.scored.sum(dim=1, keepdim=True)
        return centred(x.rewards, x.scored) * count / (count - 1).clamp(min=1)


@dataclass(frozen=True)
class LooZScore(Advantage):
    """(R_i − mean of the others) / (std of the others + eps), undivided where that std is 0.

    NeMo-RL's default (normalize_rewards and use_leave_one_out_baseline). The std has ddof 1 over
    the scored others, so that with fewer than two of them nothing is divided either. Unlike a
    z-score it has no bound, and it is not continuous: the only member that differs is divided by
    nothing, and by almost nothing once its others differ by a hair (NeMo-RL issues 1518 and 4158).

    Whether the others differ is decided by comparing them. NeMo-RL takes √(E[x²] − E[x]²), whose
    rounding error can pass for a difference between equal rewards.
    """

    name: ClassVar[str] = "loo_zscore"
    caution: ClassVar[str | None] = (
        "it has no bound and explodes where all others nearly agree; advantage.clip bounds it."
    )

    eps: float = setting(1e-6, "added to the standard deviation", ge=0)

    def formula(self, x: Scored) -> Tensor:
        size = x.rewards.shape[1]
        alone = torch.eye(size, dtype=torch.bool, device=x.rewards.device)
        others = x.scored.unsqueeze(1) & ~alone  # [P, i, j]: j is scored and not i
        count = others.sum(dim=2)
        rewards = x.rewards.unsqueeze(1).expand(others.shape)
        mean = torch.where(others, rewards, 0.0).sum(dim=2) / count.clamp(min=1)
        from_mean = torch.where(others, rewards - mean.unsqueeze(2), 0.0)
        std = (from_mean.square().sum(dim=2) / (count - 1).clamp(min=1)).sqrt()
        differ = comparable(rewards.flatten(0, 1), others.flatten(0, 1)).reshape(std.shape)
        differ &= std > 0  # where the squares underflow
        return (x.rewards - mean) / torch.where(differ, std + self.eps, 1.0)


@dataclass(frozen=True)
class OPO(Advantage):
    """R − Σ_j len_j R_j / Σ_j len_j: OPO, the group's mean weighted by length.

    The baseline of least variance if a gradient's squared norm grows with the length. Source: arXiv
    2505.23585; verl: opo. Sums run over the group's scored members; len is the number of valid
    tokens, from `lengths` or else counted in `mask`. Equal lengths make it group_center. A group
    without a token gets A = 0; verl divides by 0 there.
    """

    name: ClassVar[str] = "opo"

    def formula(self, x: Scored) -> Tensor:
        lengths = torch.where(x.scored, token_counts(x, self.name), 0.0)
        total = lengths.sum(dim=1, keepdim=True)
        baseline = (lengths * x.rewards).sum(dim=1, keepdim=True) / total.clamp(min=1)
        return torch.where(total > 0, x.rewards - baseline, 0.0)


@dataclass(frozen=True)
class MaxRL(Advantage):
    """(R − mean_g) / (mean_g + eps), and 0 where mean_g ≤ 0: maximum-likelihood RL.

    Source: arXiv 2602.02710, for rewards of 0 and 1. With G draws its expected gradient is that of
    Σ_{k<G} pass@k / k, which tends to log p(correct) up to a constant; without "− mean_g" it would
    be Σ_{k≤G}. It is meant for rewards ≥ 0: where they have both signs, a mean just above 0 makes
    it explode. eps: SkyRL 1e-6; prime-rl none, and 0 where the mean is not positive.
    """

    name: ClassVar[str] = "maxrl"

    eps: float = setting(1e-6, "added to the mean", ge=0)

    def formula(self, x: Scored) -> Tensor:
        mean = group_mean(x.rewards, x.scored)
        found = quotient(centred(x.rewards, x.scored), mean + self.eps)
        return torch.where(mean > 0, found, 0.0)
