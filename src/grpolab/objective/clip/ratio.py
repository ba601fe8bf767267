"""Policy losses with a ratio for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from grpolab.objective.clip.base import Clip, clipped_surrogate, never
from grpolab.objective.clip.tokens import Plan, Tokens
from grpolab.objective.masked import safe_exp
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class Reinforce(Clip):
    """−A·lp: the plain policy gradient; the ratio plays no part."""

    name: ClassVar[str] = "reinforce"

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        return -x.advantages * x.logps, never(x.d), never(x.d)


@dataclass(frozen=True)
class NoClip(Clip):
    """−r·A: importance ratio without a clip."""

    name: ClassVar[str] = "none"

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        return -safe_exp(x.d) * x.advantages, never(x.d), never(x.d)


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

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        return clipped_surrogate(safe_exp(x.d), x.d, x.advantages, self.low, self.high)


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
        super().__post_init__()
        if self.ratio_min > self.ratio_max:
            raise ValueError(
                f"ratio_min: {self.ratio_min} given; allowed: at most ratio_max {self.ratio_max}."
            )

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        weight = safe_exp(x.d).clamp(self.ratio_min, self.ratio_max).detach()
        exact = x.d.detach().exp()
        low, high = exact < self.ratio_min, exact > self.ratio_max
        return -weight * x.advantages * x.logps, low, high
