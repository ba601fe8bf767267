"""Policy losses per token: (logps, old_logps, advantages, mask) → Surrogate.

Notation: d = logps − old_logps, r = exp(d), A the advantage, sg = detach. Losses are minimised.
exp never overflows: d is clamped to ±20 (`grpolab.objective.masked.EXP_CLAMP`), and the share of
tokens where that binds is reported as clip/clamped. Shares are measured before any clamp.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpolab.objective.masked import EXP_CLAMP, masked_mean, safe_exp, sequence_mean, valid
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class Surrogate:
    """The loss per token [N, T] (0 where masked), and what was measured on the way: means over
    the valid tokens, 0-d tensors."""

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Clip(ABC):
    """Base: broadcasting, padding and metrics, once for all."""

    group: ClassVar[str] = "clip"
    name: ClassVar[str]
    level: ClassVar[str] = "token"
    """What a ratio belongs to: "token" or "sequence"."""

    def __call__(
        self, logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor
    ) -> Surrogate:
        """The loss per token.

        Args:
            logps: [N, T] under the trained policy, with gradient.
            old_logps: [N, T] under the policy that generated the batch; detached here.
            advantages: [N, 1] or [N, T]; detached here.
            mask: [N, T], true on the sampled tokens.
        """
        mask = mask.bool()
        logps = valid(logps, mask)
        advantages = valid(advantages.detach().expand_as(logps), mask)
        d = logps - valid(old_logps.detach(), mask)
        loss, low, high = self.formula(logps, d, advantages, mask)
        metrics = {
            "clip/low": masked_mean(low.to(loss.dtype), mask),
            "clip/high": masked_mean(high.to(loss.dtype), mask),
            "clip/share": masked_mean((low | high).to(loss.dtype), mask),
            "clip/clamped": masked_mean((d.detach().abs() > EXP_CLAMP).to(loss.dtype), mask),
        }
        return Surrogate(valid(loss, mask), metrics)

    @abstractmethod
    def formula(
        self, logps: Tensor, d: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, clipped low, clipped high), each [N, T]; the last two are bool."""


def never(x: Tensor) -> Tensor:
    """All false, in the shape of x."""
    return torch.zeros_like(x, dtype=torch.bool)


def clipped_surrogate(
    ratio: Tensor, d: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """−min(rA, clip(r, 1−low, 1+high)A), and where the gradient is clipped away on each side."""
    clipped = ratio.clamp(1 - low, 1 + high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    exact = d.detach().exp()  # before the clamp on d; may be inf, which compares as it should
    return loss, (advantages < 0) & (exact < 1 - low), (advantages > 0) & (exact > 1 + high)


@dataclass(frozen=True)
class Reinforce(Clip):
    """−A·lp: the plain policy gradient; the ratio plays no part."""

    name: ClassVar[str] = "reinforce"

    def formula(
        self, logps: Tensor, d: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return -advantages * logps, never(d), never(d)


@dataclass(frozen=True)
class NoClip(Clip):
    """−r·A: importance ratio without a clip."""

    name: ClassVar[str] = "none"

    def formula(
        self, logps: Tensor, d: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return -safe_exp(d) * advantages, never(d), never(d)


@dataclass(frozen=True)
class PPO(Clip):
    """−min(rA, clip(r, 1−low, 1+high)A).

    Source: arXiv 1707.06347; high 0.28 is DAPO's clip-higher (2503.14476). The gradient is zero
    exactly where A>0 and r>1+high, or A<0 and r<1−low. With one update per batch r = 1 and the
    clip is inert. low and high may be infinite.
    """

    name: ClassVar[str] = "ppo"

    low: float = setting(0.2, "the ratio is clipped below 1 − low", ge=0)
    high: float = setting(0.2, "the ratio is clipped above 1 + high", ge=0)

    def formula(
        self, logps: Tensor, d: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return clipped_surrogate(safe_exp(d), d, advantages, self.low, self.high)


@dataclass(frozen=True)
class CISPO(Clip):
    """−sg(clip(r, ratio_min, ratio_max))·A·lp: the clipped ratio weighs, every token learns.

    Source: arXiv 2506.13585 (MiniMax), 2510.13786 (ScaleRL). The bounds are absolute here.
    TRL's epsilon_high is the maximum itself (ScaleRL 5; left unset it becomes 0.2), verl and
    NeMo-RL clip to [1−low, 1+high].
    """

    name: ClassVar[str] = "cispo"

    ratio_min: float = setting(0.0, "smallest weight", ge=0)
    ratio_max: float = setting(5.0, "largest weight", gt=0)

    def __post_init__(self) -> None:
        if self.ratio_min > self.ratio_max:
            raise ValueError(
                f"ratio_min: {self.ratio_min} given; allowed: at most ratio_max {self.ratio_max}."
            )

    def formula(
        self, logps: Tensor, d: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight = safe_exp(d).clamp(self.ratio_min, self.ratio_max).detach()
        exact = d.detach().exp()
        low, high = exact < self.ratio_min, exact > self.ratio_max
        return -weight * advantages * logps, low, high


@dataclass(frozen=True)
class GSPO(Clip):
    """−min(sA, clip(s, 1−low, 1+high)A) with s = exp(mean_t d), one live ratio per sequence.

    Source: arXiv 2507.18071. TRL: importance_sampling_level="sequence". Every valid token of a
    sequence carries the sequence's loss, so that seq_mean_token_mean is the paper's objective.
    """

    name: ClassVar[str] = "gspo"
    level: ClassVar[str] = "sequence"

    low: float = setting(3e-4, "the sequence ratio is clipped below 1 − low", ge=0)
    high: float = setting(4e-4, "the sequence ratio is clipped above 1 + high", ge=0)

    def formula(
        self, logps: Tensor, d: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = sequence_mean(d, mask).expand_as(d)  # [N, T]
        return clipped_surrogate(safe_exp(mean), mean, advantages, self.low, self.high)
