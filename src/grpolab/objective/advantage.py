"""Advantages: rewards [P, G] → advantages [P, G].

One rule for all edge cases: an unscorable reward (not finite) gets A = 0 and is left out of the
statistics, and a group with fewer than two scored members, or with identical rewards, gets A = 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpolab.objective.settings import setting


@dataclass(frozen=True)
class Advantage(ABC):
    """Base: edge cases and clipping, once for all."""

    group: ClassVar[str] = "advantage"
    name: ClassVar[str]
    needs_group: ClassVar[bool] = True
    """Compares within a group, so a group of one is refused."""
    token_level: ClassVar[bool] = False
    """Returns [N, T] instead of [P, G]."""

    clip: list[float] | None = setting(None, "[lo, hi] that the advantages are clamped to")

    def __post_init__(self) -> None:
        if self.clip is not None and (len(self.clip) != 2 or not self.clip[0] <= 0 <= self.clip[1]):
            raise ValueError(
                f"clip: {self.clip} given; allowed: [lo, hi] with lo ≤ 0 ≤ hi, or null."
            )

    def __call__(
        self,
        rewards: Tensor,
        *,
        lengths: Tensor | None = None,
        parts: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Advantages [P, G] of rewards [P, G].

        Args:
            rewards: [P, G], NaN where unscorable. Half precision is computed in float32.
            lengths: [P, G] tokens of the completions, for the estimators that weigh by them.
            parts: {name: [P, G]}, for the estimators that normalise each reward on its own.
            mask: [N, T], for the estimators that return tokens.
        """
        if rewards.dtype in (torch.float16, torch.bfloat16) or not rewards.is_floating_point():
            rewards = rewards.float()
        scored = torch.isfinite(rewards)
        values = torch.where(scored, rewards, torch.zeros_like(rewards))
        advantages = self.formula(values, scored, lengths=lengths, parts=parts, mask=mask)
        advantages = torch.where(scored & comparable(values, scored), advantages, 0.0)
        return advantages if self.clip is None else advantages.clamp(*self.clip)

    @abstractmethod
    def formula(
        self,
        rewards: Tensor,
        scored: Tensor,
        *,
        lengths: Tensor | None,
        parts: Mapping[str, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        """The estimator itself; `rewards` is 0 where not `scored` [P, G]."""


def comparable(rewards: Tensor, scored: Tensor) -> Tensor:
    """[P, 1] true where a group has two scored members that differ.

    Compared by value and not by variance: eight times 0.1 has a rounding variance above 0, which
    a normaliser with eps 0 would blow up to ±1.
    """
    highest = torch.where(scored, rewards, -torch.inf).amax(dim=1, keepdim=True)
    lowest = torch.where(scored, rewards, torch.inf).amin(dim=1, keepdim=True)
    return highest > lowest


def group_mean(rewards: Tensor, scored: Tensor) -> Tensor:
    """[P, 1] mean over each group's scored members."""
    return rewards.sum(dim=1, keepdim=True) / scored.sum(dim=1, keepdim=True).clamp(min=1)


def centred(rewards: Tensor, scored: Tensor) -> Tensor:
    """[P, G] rewards minus their group's mean, 0 where unscored."""
    return torch.where(scored, rewards - group_mean(rewards, scored), 0.0)


def group_std(rewards: Tensor, scored: Tensor, ddof: int) -> Tensor:
    """[P, 1] standard deviation over each group's scored members."""
    count = scored.sum(dim=1, keepdim=True)
    squares = centred(rewards, scored).square().sum(dim=1, keepdim=True)
    return (squares / (count - ddof).clamp(min=1)).sqrt()


@dataclass(frozen=True)
class GroupZScore(Advantage):
    """(R − mean_g) / (std_g + eps): GRPO.

    Source: arXiv 2402.03300. ddof and eps differ between trainers: TRL 1 / 1e-4, verl 1 / 1e-6,
    OpenRLHF 1 / 1e-9, open-instruct 0 / 1e-8.
    """

    name: ClassVar[str] = "group_zscore"

    ddof: int = setting(1, "delta degrees of freedom of the standard deviation", ge=0, le=1)
    eps: float = setting(1e-4, "added to the standard deviation", ge=0)

    def formula(
        self,
        rewards: Tensor,
        scored: Tensor,
        *,
        lengths: Tensor | None,
        parts: Mapping[str, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        return centred(rewards, scored) / (group_std(rewards, scored, self.ddof) + self.eps)


@dataclass(frozen=True)
class GroupCenter(Advantage):
    """R − mean_g: Dr. GRPO.

    Source: arXiv 2503.20783. TRL: scale_rewards="none"; verl: norm_adv_by_std_in_grpo=False.
    """

    name: ClassVar[str] = "group_center"

    def formula(
        self,
        rewards: Tensor,
        scored: Tensor,
        *,
        lengths: Tensor | None,
        parts: Mapping[str, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        return centred(rewards, scored)


@dataclass(frozen=True)
class RLOO(Advantage):
    """R_i − mean of the others = G/(G−1) · (R_i − mean_g): REINFORCE leave-one-out.

    Source: arXiv 2402.14740. G counts the group's scored members. TRL's RLOO trainer puts a batch
    z-score behind it by default; this is the bare estimator.
    """

    name: ClassVar[str] = "rloo"

    def formula(
        self,
        rewards: Tensor,
        scored: Tensor,
        *,
        lengths: Tensor | None,
        parts: Mapping[str, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        count = scored.sum(dim=1, keepdim=True)
        return centred(rewards, scored) * count / (count - 1).clamp(min=1)
