"""Policy losses whose weight is detached, and soft ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.clip.base import Clip, never, unclamped_ratio
from grpolab.objective.clip.tokens import Plan, Tokens
from grpolab.objective.masked import EXP_CLAMP, safe_exp, sequence_mean, valid
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class CISPO(Clip):
    """−sg(clip(r, ratio_min, ratio_max))·A·lp: the clipped ratio weighs, every token learns.

    Source: arXiv 2506.13585 (MiniMax), 2510.13786 (ScaleRL). The bounds are absolute here.
    TRL's epsilon_high is the maximum itself (ScaleRL 5; left unset it becomes 0.2), verl and
    NeMo-RL clip to [1−low, 1+high].
    """

    name: ClassVar[str] = "cispo"
    needs_advantage: ClassVar[bool] = True

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
        exact = unclamped_ratio(x.d)
        return (
            -weight * x.advantages * x.logps,
            (exact < self.ratio_min) & (x.advantages != 0),
            (exact > self.ratio_max) & (x.advantages != 0),
        )


@dataclass(frozen=True)
class TruncatedIS(Clip):
    """−sg(clip(r, 0, ratio_max))·A·lp: truncated importance sampling of the policy gradient.

    Source: ROLL (pg_variant tis, weights in [0, 1]). cispo with its ratio_max at 1.
    """

    name: ClassVar[str] = "tis_pg"
    needs_advantage: ClassVar[bool] = True

    ratio_max: float = setting(1.0, "largest weight", gt=0)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        weight = safe_exp(x.d).clamp(max=self.ratio_max).detach()
        return (
            -weight * x.advantages * x.logps,
            never(x.d),
            above(x.d, self.ratio_max) & (x.advantages != 0),
        )


@dataclass(frozen=True)
class TOPR(Clip):
    """−A·lp where R>0; −sg(clip(r, 0, 1))·A·lp elsewhere: bad samples fade as they become rare.

    R is the raw reward, as in ROLL, where the objective is given it (in training it is); without
    it the sign of the advantage decides. With rewards 0 and 1 and a centring advantage the two
    agree wherever A ≠ 0. A sample without a reward (NaN) counts as bad; its advantage is 0.

    Source: tapered off-policy REINFORCE, arXiv 2503.14286. ROLL weighs the two parts 1 and 1. The
    paper's ratio is the sequence's; ROLL's, and this, is the token's.
    """

    name: ClassVar[str] = "topr"
    needs_advantage: ClassVar[bool] = True

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        good = (x.advantages if x.rewards is None else x.rewards) > 0
        faded = safe_exp(x.d).clamp(max=1.0).detach()
        weight = torch.where(good, torch.ones_like(faded), faded)
        return (
            -weight * x.advantages * x.logps,
            never(x.d),
            ~good & above(x.d, 1.0) & (x.advantages != 0),
        )


@dataclass(frozen=True)
class SAPO(Clip):
    """−(4/τ)·σ(τ(r−1))·A, τ by the sign of A: a soft gate in place of the clip.

    r is live: the gradient is −4σ(1−σ)·r·A·∇lp, which is −A·∇lp at r = 1, where the value is
    −2A/τ. τ is tau_positive where A>0 and tau_negative elsewhere. Nothing is ever clipped.

    Source: arXiv 2511.20347. TRL and AReaL use the same value and gradient; verl too, always
    averaged as seq_mean_token_mean, which is the paper's aggregation.
    """

    name: ClassVar[str] = "sapo"
    needs_advantage: ClassVar[bool] = True

    tau_positive: float = setting(1.0, "steepness of the gate where A > 0", gt=0)
    tau_negative: float = setting(1.05, "steepness of the gate elsewhere", gt=0)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        tau = choose(x.advantages > 0, self.tau_positive, self.tau_negative, x.logps)
        gate = torch.sigmoid(tau * (safe_exp(x.d) - 1)) * 4 / tau
        return -gate * x.advantages, never(x.d), never(x.d)


@dataclass(frozen=True)
class VESPO(Clip):
    """−sg(φ(w))·A·lp, φ(w) = exp(λ + k·ln w − λ·w), w = exp(Σ_t d): a soft sequence weight.

    d is clamped to ±20 before the sum, and ln w to [ln 1e-8, 20] after it (where that binds the
    sequence counts as clipped). k and λ are the positive ones where A ≥ 0. φ(1) = 1, and φ is
    largest at w = k/λ.

    Source: arXiv 2602.10693. TRL: loss_type="vespo", the same weights to the last bit; TRL adds
    the correction for the sampler to ln w, here it multiplies the loss. TRL's aggregation is
    token_mean.
    """

    name: ClassVar[str] = "vespo"
    needs_advantage: ClassVar[bool] = True
    level: ClassVar[str] = "sequence"
    token_wise: ClassVar[bool] = True

    k_positive: float = setting(2.0, "k where A ≥ 0", ge=0, lt=math.inf)
    lambda_positive: float = setting(3.0, "λ where A ≥ 0", ge=1e-4, lt=math.inf)
    k_negative: float = setting(3.0, "k where A < 0", ge=0, lt=math.inf)
    lambda_negative: float = setting(2.0, "λ where A < 0", ge=1e-4, lt=math.inf)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        d = x.d.detach()
        log_w = d.clamp(-EXP_CLAMP, EXP_CLAMP).sum(dim=1, keepdim=True)  # [N, 1]
        total = d.sum(dim=1, keepdim=True)
        low, high = total < math.log(1e-8), total > EXP_CLAMP  # [N, 1]
        learns = x.advantages != 0
        weight = self.phi(log_w, x.advantages)
        return -weight * x.advantages * x.logps, low & learns, high & learns

    def phi(self, log_w: Tensor, advantages: Tensor) -> Tensor:
        """φ of ln w [N, 1], by the sign of the advantages [N, T]."""
        log_w = log_w.clamp(math.log(1e-8), EXP_CLAMP)
        k = choose(advantages >= 0, self.k_positive, self.k_negative, log_w)
        rate = choose(advantages >= 0, self.lambda_positive, self.lambda_negative, log_w)
        # as TRL: a k so large that φ overflows gives 0
        return (rate + k * log_w - rate * log_w.exp()).exp().nan_to_num(nan=0.0, posinf=0.0)


@dataclass(frozen=True)
class Quadratic(Clip):
    """−(A·lp − β/2·d²): the policy gradient with a squared log-ratio for a leash, and no ratio.

    Everything is live: the gradient is −(A − β·d)·∇lp.

    form dro: per token, as verl and Tinker write DRO's objective. form kimi: −A·lp + β/2·d², as
    ROLL writes Kimi k1.5's with τ for β: the same function of the token. form sequence: the
    square of the whole sequence's log-ratio, β/2·(Σ_t d)², of which every valid token carries an
    equal part: arXiv 2501.12599 itself, with aggregation=seq_mean_token_sum.
    """

    name: ClassVar[str] = "quadratic"

    form: Literal["dro", "kimi", "sequence"] = setting(
        "dro", "dro, kimi: d² of the token (one function, two names); sequence: (Σd)²"
    )
    beta: float = setting(0.1, "weight of the squared log-ratio (Kimi's τ)", ge=0, lt=math.inf)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        square = x.d.square()
        if self.form == "sequence":
            # (Σd)²/len = mean·Σd: summed over the len tokens it is (Σd)²
            total = valid(x.d, x.mask).sum(dim=1, keepdim=True)
            square = (sequence_mean(x.d, x.mask) * total).expand_as(x.d)
        return -x.advantages * x.logps + self.beta / 2 * square, never(x.d), never(x.d)


def above(d: Tensor, bound: float) -> Tensor:
    """Where r > bound, by more than rounding: on-policy r = 1 only up to that, and 1 is a bound."""
    return d.detach() > math.log(bound) + 1e-6


def choose(condition: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    """One of two numbers per token, in the dtype of `like`."""
    return torch.where(condition, like.new_tensor(yes), like.new_tensor(no))
