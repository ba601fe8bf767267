"""Advantages: rewards [P, G] → advantages [P, G], or [N, T] from a token-level estimator.

One rule for all edge cases: an unscorable reward (not finite) gets A = 0 and is left out of the
statistics. Where an estimator compares within a group, a group with fewer than two scored members
or with identical rewards gets A = 0. An estimator with a step over the whole batch behind that
keeps such a group in the batch's statistics, as 0. Nothing is divided by 0: what cannot be
normalised is 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpolab.objective.advantage.statistics import comparable
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class Scored:
    """What an estimator reads. `rewards` is 0 where not `scored`."""

    rewards: Tensor
    """[P, G]"""
    scored: Tensor
    """[P, G] bool"""
    lengths: Tensor | None = None
    """[P, G] tokens of the completions."""
    parts: Mapping[str, Tensor] | None = None
    """{name: [P, G]}: each part of a mixture, unweighted; NaN where unscorable."""
    part_weights: Mapping[str, float] | None = None
    mask: Tensor | None = None
    """[N, T]"""
    penalty: Tensor | None = None
    """[N, T] β·KL still to come from each token on (`kl.placement=reward_to_go`)."""
    greedy: Tensor | None = None
    """[P] reward of the greedy completion."""
    baseline: float | None = None
    """What `track` returned for the batch before."""
    logps: Tensor | None = None
    """[N, T] under the policy that generated the batch."""
    collision: Tensor | None = None
    """[N, T] Σ_v π(v)² of that policy at each position."""


@dataclass(frozen=True)
class Advantage(ABC):
    """Base: edge cases, the KL's reward-to-go and clipping, once for all."""

    group: ClassVar[str] = "advantage"
    name: ClassVar[str]
    needs_group: ClassVar[bool] = True
    """Compares within a group, so a group of one is refused."""
    token_level: ClassVar[bool] = False
    """Returns [N, T] instead of [P, G]."""
    needs_greedy: ClassVar[bool] = False
    """Reads the reward of a greedy completion of each prompt."""
    needs_distribution: ClassVar[bool] = False
    """Reads `logps` and `collision`, which cost a forward pass before the update."""
    caution: ClassVar[str | None] = None
    """A known danger of the estimator, said when a run starts with it."""

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
        part_weights: Mapping[str, float] | None = None,
        penalty: Tensor | None = None,
        greedy: Tensor | None = None,
        baseline: float | None = None,
        logps: Tensor | None = None,
        collision: Tensor | None = None,
    ) -> Tensor:
        """Advantages of rewards [P, G], NaN where unscorable: [P, G], or [N, T] (prompt-major)
        where the estimator is `token_level` or a `penalty` is given.

        Half precision is computed in float32. The other arguments are those of `Scored`; an
        estimator that needs one and does not get it raises ValueError.
        """
        if rewards.dtype in (torch.float16, torch.bfloat16) or not rewards.is_floating_point():
            rewards = rewards.float()
        scored = torch.isfinite(rewards)
        x = Scored(
            rewards=torch.where(scored, rewards, torch.zeros_like(rewards)),
            scored=scored,
            lengths=lengths,
            parts=parts,
            part_weights=part_weights,
            mask=mask,
            penalty=penalty,
            greedy=greedy,
            baseline=baseline,
            logps=logps,
            collision=collision,
        )
        advantages = self.formula(x)
        if not self.token_level:
            advantages = torch.where(self.live(x), advantages, 0.0)
            if penalty is not None:
                advantages = advantages.reshape(-1, 1) - penalty.to(advantages)
        if self.token_level or penalty is not None:
            advantages = torch.where(scored.reshape(-1, 1), advantages, 0.0)
        return advantages if self.clip is None else advantages.clamp(*self.clip)

    def live(self, x: Scored) -> Tensor:
        """[P, G] the members whose advantage may differ from 0."""
        return x.scored & comparable(x.rewards, x.scored) if self.needs_group else x.scored

    def track(self, baseline: float | None, rewards: Tensor) -> float | None:
        """What an estimator remembers from batch to batch: the new `baseline`, given the one
        before and this batch's rewards [P, G]. None for all that remember nothing."""
        return None

    @abstractmethod
    def formula(self, x: Scored) -> Tensor:
        """The estimator itself."""


def needed(value: Tensor | None, name: str, estimator: str) -> Tensor:
    """A value that an estimator cannot do without."""
    if value is None:
        raise ValueError(f"{name}: none given; advantage={estimator} needs it.")
    return value


def token_counts(x: Scored, estimator: str) -> Tensor:
    """[P, G] tokens of each completion: `lengths`, or what the mask counts."""
    if x.lengths is not None:
        return x.lengths.to(x.rewards)
    mask = needed(x.mask, "lengths or mask", estimator)
    return mask.sum(dim=1).reshape(x.rewards.shape).to(x.rewards)
