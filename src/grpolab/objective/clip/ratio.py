"""Policy losses with a ratio for each token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.clip.base import Clip, clipped_surrogate, never, unclamped_ratio
from grpolab.objective.clip.tokens import Plan, Tokens
from grpolab.objective.masked import safe_exp
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class Reinforce(Clip):
    """−A·lp: the plain policy gradient; the ratio plays no part."""

    name: ClassVar[str] = "reinforce"
    needs_advantage: ClassVar[bool] = True

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        return -x.advantages * x.logps, never(x.d), never(x.d)


@dataclass(frozen=True)
class NoClip(Clip):
    """−r·A: importance ratio without a clip."""

    name: ClassVar[str] = "none"
    needs_advantage: ClassVar[bool] = True

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
    needs_advantage: ClassVar[bool] = True

    low: float = setting(0.2, "the ratio is clipped below 1 − low", ge=0)
    high: float = setting(0.2, "the ratio is clipped above 1 + high", ge=0)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        return clipped_surrogate(safe_exp(x.d), x.d, x.advantages, 1 - self.low, 1 + self.high)


@dataclass(frozen=True)
class DualClip(PPO):
    """min(ppo, −cA) where A<0, and ppo where A ≥ 0: a bad token's loss is at most c·|A|.

    Source: arXiv 1912.09729. Where A<0 the gradient is also zero for r>c (counted as clipped
    high). verl and SkyRL always do this with c = 3; ROLL has c = 1 + 2·clip; NeMo-RL, slime,
    OpenRLHF and AReaL leave it off. With c > 1+high it is the same function as two_sided with
    delta = c.
    """

    name: ClassVar[str] = "dual"
    needs_advantage: ClassVar[bool] = True

    c: float = setting(3.0, "where A < 0 the loss is at most c·|A|", gt=1, lt=math.inf)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        loss, low, high = super().formula(x, plan)
        negative = x.advantages < 0
        loss = torch.where(negative, torch.minimum(loss, -self.c * x.advantages), loss)
        return loss, low, high | (negative & (unclamped_ratio(x.d) > self.c))


@dataclass(frozen=True)
class TwoSided(PPO):
    """−min(min(r, delta)A, clip(r, 1−low, 1+high)A): ppo whose unclipped branch ends at delta.

    Source: INTELLECT-2, arXiv 2505.07291. It acts where A<0: there the gradient is also zero for
    r>delta (counted as clipped high). TRL: the setting delta of the same name, off by default and
    "recommended" above 1 + epsilon; at or below it the bound would cut what the clip lets pass,
    and is refused here. TRL measures its clip shares after delta has cut the ratio, GRPO Lab
    before.
    """

    name: ClassVar[str] = "two_sided"
    needs_advantage: ClassVar[bool] = True

    delta: float = setting(4.0, "the unclipped ratio stops at delta, above 1 + high", gt=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta <= 1 + self.high:
            raise ValueError(
                f"delta: {self.delta} given; allowed: above 1 + high, which is {1 + self.high}."
            )

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        ratio = safe_exp(x.d).clamp(max=self.delta)  # clip(min(r, delta)) = clip(r)
        loss, low, high = clipped_surrogate(ratio, x.d, x.advantages, 1 - self.low, 1 + self.high)
        return loss, low, high | ((x.advantages < 0) & (unclamped_ratio(x.d) > self.delta))


@dataclass(frozen=True)
class DPPO(Clip):
    """−r·A, dropped where the probability has moved too far with A: p−μ > high, or p−μ < −low.

    p = exp(lp), μ = exp(old). For A>0 a token stays while p−μ ≤ high, otherwise while
    p−μ ≥ −low. With divergence kl the measure is the binary KL,
    μ·log(μ/p) + (1−μ)·log((1−μ+1e-8)/(1−p+1e-8)), which has to stay at or below high where A>0
    and p>μ, and at or below low where A ≤ 0 and p<μ. What stays or goes is detached.

    Source: DPPO, arXiv 2602.04879. form ratio (r live) is prime-rl's default loss and SkyRL's;
    form logp, −sg(min(r, cap))·A·lp, is verl's, which takes its bounds from clip_ratio. A weight
    that cap cuts counts as clipped high. prime-rl also adds 1e-3·d² to the sampler on all tokens.
    """

    name: ClassVar[str] = "dppo"
    needs_advantage: ClassVar[bool] = True

    divergence: Literal["tv", "kl"] = setting("tv", "tv: p − μ; kl: the binary KL")
    low: float = setting(0.2, "largest divergence downwards, where A ≤ 0", ge=0)
    high: float = setting(0.2, "largest divergence upwards, where A > 0", ge=0)
    form: Literal["ratio", "logp"] = setting("ratio", "ratio: −r·A; logp: −sg(min(r, cap))·A·lp")
    cap: float = setting(20.0, "form logp: largest weight", gt=0)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        keep, ratio = self._stays(x), safe_exp(x.d)
        up = x.advantages > 0
        low, high = ~keep & (x.advantages < 0), ~keep & up
        if self.form == "logp":
            loss = -ratio.clamp(max=self.cap).detach() * x.advantages * x.logps
            high = high | (keep & (unclamped_ratio(x.d) > self.cap))
        else:
            loss = -ratio * x.advantages
        return torch.where(keep, loss, torch.zeros_like(loss)), low, high

    def _stays(self, x: Tokens) -> Tensor:
        p, mu = (v.detach().clamp(max=0).exp() for v in (x.logps, x.old_logps))
        up = x.advantages > 0
        if self.divergence == "tv":
            return torch.where(up, p - mu <= self.high, p - mu >= -self.low)
        rest = ((1 - mu + 1e-8) / (1 - p + 1e-8)).log()
        kl = -mu * x.d.detach() + (1 - mu) * rest
        return torch.where(up, (kl <= self.high) | (p <= mu), (kl <= self.low) | (p >= mu))


@dataclass(frozen=True)
class FIPO(PPO):
    """ppo × sg(clip(exp(Σ_{k≥t} γ^{k−t} d_k), …)), γ = 2^(−1/half_life): tokens by their future.

    The weight is clipped to [1, 1+influence], or with high_only off to [1−influence, 1+influence];
    influence null leaves it as it is. Where A<0 and r>safety it is held in [0.8, 1]. Tokens with
    r>outlier stay out of the sum. The sum runs over the sequence's valid tokens, the token itself
    included.

    Source: FIPO, arXiv 2603.19835. Defaults: ms-swift (fipo_decay_rate 32, fipo_clip_range 0.2,
    fipo_clip_high_only, fipo_safety_threshold 4; its two-sided delta, where set, is also its
    outlier). The authors' recipe takes its dual-clip c for outlier.
    """

    name: ClassVar[str] = "fipo"
    needs_advantage: ClassVar[bool] = True

    half_life: float = setting(32.0, "tokens after which a log-ratio counts half", gt=0)
    influence: float | None = setting(0.2, "the weight is clipped to 1 ± influence", gt=0)
    high_only: bool = setting(True, "the weight is never below 1")
    safety: float | None = setting(4.0, "weight at most 1 where A < 0 and r > safety", gt=0)
    outlier: float | None = setting(None, "tokens with r > outlier stay out of the sum", gt=0)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        loss, low, high = super().formula(x, plan)
        return self._weight(x) * loss, low, high

    def _weight(self, x: Tokens) -> Tensor:
        d, ratio = x.d.detach(), unclamped_ratio(x.d)
        if self.outlier is not None:
            d = torch.where(ratio > self.outlier, torch.zeros_like(d), d)
        weight = safe_exp(discounted_from_here_on(d, 2 ** (-1 / self.half_life)))
        if self.influence is not None:
            lowest = 1.0 if self.high_only else 1 - self.influence
            weight = weight.clamp(lowest, 1 + self.influence)
        if self.safety is not None:
            unsafe = (x.advantages < 0) & (ratio > self.safety)
            weight = torch.where(unsafe, weight.clamp(0.8, 1.0), weight)
        return weight


def discounted_from_here_on(x: Tensor, discount: float) -> Tensor:
    """Σ_{k≥t} discount^(k−t) x_k along each row: [N, T] → [N, T].

    By doubling the window: no power of the discount is ever divided by, as a cumulative sum would.
    """
    total, window = x, 1
    while window < x.shape[1]:
        total = total + discount**window * torch.nn.functional.pad(total[:, window:], (0, window))
        window *= 2
    return total
