"""Advantages from a group's own statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from grpolab.objective.advantage.base import Advantage, Scored, centred, group_std
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
        return centred(x.rewards, x.scored) / (group_std(x.rewards, x.scored, self.ddof) + self.eps)


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
