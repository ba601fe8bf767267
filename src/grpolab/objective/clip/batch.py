"""Policy losses that read the whole optimizer step before any token's loss is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.clip.base import Clip, clipped_surrogate, never
from grpolab.objective.clip.ratio import PPO
from grpolab.objective.clip.tokens import Plan, Tokens
from grpolab.objective.masked import masked_mean, precise, safe_exp, valid
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class ClipCov(PPO):
    """ppo, and a random share of the tokens whose covariance is in (lo, hi) gets no gradient.

    The covariance is (A − mean A)(lp − mean lp), the means over all valid tokens of the optimizer
    step. Of the N tokens ⌊share·N⌋, at least one, are taken at random from those in (lo, hi) that
    the clip has not taken already; their loss is 0. They count as clipped, on the side of their
    advantage's sign.

    Source: arXiv 2505.22617. verl and SkyRL take the means and the share over the micro-batch;
    SkyRL does so after dividing A by the number of tokens, where lo and hi hardly ever hold.
    """

    name: ClassVar[str] = "clip_cov"
    needs_advantage: ClassVar[bool] = True
    plans: ClassVar[bool] = True

    share: float = setting(2e-4, "share of the step's tokens that get no gradient", gt=0, le=1)
    lo: float = setting(1.0, "covariance above which a token may be taken")
    hi: float = setting(5.0, "covariance below which a token may be taken")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lo >= self.hi:
            raise ValueError(f"lo: {self.lo} given; allowed: below hi, which is {self.hi}.")

    def plan_rows(self, x: Tokens) -> Mapping[str, Tensor]:
        _, low, high = super().formula(x, {})
        found = covariance(x)
        candidates = x.mask & ~low & ~high & (found > self.lo) & (found < self.hi)
        return {"taken": first(candidates, at_least_one(self.share, x), x.chance())}

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        loss, low, high = super().formula(x, plan)
        taken = plan["taken"]
        loss = torch.where(taken, torch.zeros_like(loss), loss)
        return loss, low | (taken & (x.advantages < 0)), high | (taken & (x.advantages > 0))


@dataclass(frozen=True)
class KLCov(Clip):
    """−rA, and + c·|d| on the share of the tokens with the largest covariance; no clip.

    The covariance is (A − mean A)(lp − mean lp), the means over all valid tokens of the optimizer
    step; ⌊share·N⌋ of the N tokens, at least one, are chosen, and ties are broken at random.

    Source: arXiv 2505.22617. verl takes the share of each micro-batch, with c 1 in the code and
    0.1 in its YAML; SkyRL has share 0.2 and c 1.
    """

    name: ClassVar[str] = "kl_cov"
    plans: ClassVar[bool] = True

    share: float = setting(2e-4, "share of the step's tokens that get the penalty", gt=0, le=1)
    c: float = setting(1.0, "weight of |d|", ge=0, lt=math.inf)

    def plan_rows(self, x: Tokens) -> Mapping[str, Tensor]:
        return {"chosen": first(x.mask, at_least_one(self.share, x), -covariance(x), x.chance())}

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        penalty = torch.where(plan["chosen"], self.c * x.d.abs(), torch.zeros_like(x.d))
        return -safe_exp(x.d) * x.advantages + penalty, never(x.d), never(x.d)


@dataclass(frozen=True)
class BAPO(Clip):
    """ppo between c_low and c_high, moved until the positive tokens' share of the loss ≥ rho0.

    The bounds are of the ratio itself. They start at low[0] and high[0] and move by low_step and
    high_step up to low[1] and high[1], over the whole optimizer step, until
    S₊/(S₊+S₋) ≥ rho0 or they have no room left; they are detached.

    counts gradient: S₊ and S₋ sum r·|A| over the tokens with A>0 and A<0 that still have a
    gradient, so that a higher c_high adds positive ones and a higher c_low takes negative ones
    away. counts loss: they sum |loss| over all of them, clipped ones at their bound, as the
    released code does; there a higher c_low can only lower the share.

    order high_first: c_high as far as it goes, then c_low (the paper's algorithm). low_first: the
    reverse (the released code). alternate: a step of c_high, a step of c_low, and so on.

    Source: arXiv 2510.18927, rho0 0.4, [0.6, 0.9] and [1.2, 3]; the released code asks for
    S₊/S₋ ≥ 1, a share of 0.5, moves by 0.05, and puts a dual clip (c 3) on top. No other trainer
    has it. A step without negative tokens leaves the bounds where they start, one without
    positive tokens ends at the far ones.
    """

    name: ClassVar[str] = "bapo"
    needs_advantage: ClassVar[bool] = True
    plans: ClassVar[bool] = True

    low: list[float] = setting([0.6, 0.9], "c_low: first and largest value", ge=0, lt=math.inf)
    high: list[float] = setting([1.2, 3.0], "c_high: first and largest value", ge=0, lt=math.inf)
    low_step: float = setting(0.05, "by how much c_low moves", gt=0)
    high_step: float = setting(0.05, "by how much c_high moves", gt=0)
    rho0: float = setting(0.4, "share of the positive tokens to reach", ge=0, le=1)
    order: Literal["high_first", "low_first", "alternate"] = setting(
        "high_first", "which bound moves when"
    )
    counts: Literal["gradient", "loss"] = setting(
        "gradient", "gradient: tokens that still have one; loss: all, clipped ones at their bound"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, pair in (("low", self.low), ("high", self.high)):
            if len(pair) != 2 or pair[0] > pair[1]:
                raise ValueError(f"{name}: {pair} given; allowed: [first, largest].")
        if self.low[1] > self.high[0]:
            raise ValueError(
                f"low: {self.low} given; allowed: at most high, which starts at {self.high[0]}."
            )

    def plan_rows(self, x: Tokens) -> Mapping[str, Tensor]:
        for bounds in self.bounds():  # where none suffices, the last ones stay
            if self._share(x, *bounds) >= self.rho0:
                break
        rows = len(x.mask)
        low, high = (x.logps.new_full((rows, 1), b) for b in bounds)
        return {"low": low, "high": high}

    def bounds(self) -> Iterator[tuple[float, float]]:
        """(c_low, c_high), in the order in which they are tried."""
        lows, highs = stairs(self.low, self.low_step), stairs(self.high, self.high_step)
        i = j = 0
        yield lows[0], highs[0]
        while i + 1 < len(lows) or j + 1 < len(highs):
            low_turn = i < j if self.order == "alternate" else self.order == "low_first"
            if (low_turn and i + 1 < len(lows)) or j + 1 == len(highs):
                i += 1
            else:
                j += 1
            yield lows[i], highs[j]

    def _share(self, x: Tokens, lowest: float, highest: float) -> float:
        ratio, advantages = precise(safe_exp(x.d)), precise(x.advantages)
        if self.counts == "gradient":
            loss, low, high = clipped_surrogate(ratio, x.d, advantages, lowest, highest)
            size = torch.where(low | high, torch.zeros_like(loss), loss.abs())
        else:
            size = clipped_surrogate(ratio, x.d, advantages, lowest, highest)[0].abs()
        positive, total = valid(size, x.mask & (advantages > 0)).sum(), valid(size, x.mask).sum()
        return float(positive / total) if total > 0 else 1.0

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        return clipped_surrogate(safe_exp(x.d), x.d, x.advantages, plan["low"], plan["high"])


def stairs(ends: list[float], step: float) -> list[float]:
    """From the first to the last by steps; the last step may be shorter."""
    start, end = ends
    count = math.ceil((end - start) / step - 1e-9)  # 1.2 + 36·0.05 is 3, whatever the rounding
    return [start, *(start + i * step for i in range(1, count)), *([end] if end > start else [])]


def covariance(x: Tokens) -> Tensor:
    """(A − mean A)(lp − mean lp) over the valid tokens: [N, T]."""
    advantages, logps = precise(x.advantages), precise(x.logps)
    return (advantages - masked_mean(advantages, x.mask)) * (logps - masked_mean(logps, x.mask))


def at_least_one(share: float, x: Tokens) -> int:
    """⌊share·N⌋ of the N valid tokens, as verl counts them."""
    return max(1, int(share * int(x.mask.sum())))


def first(candidates: Tensor, count: int, *keys: Tensor) -> Tensor:
    """The `count` candidates that come first by the keys, each breaking the ties of the one
    before: [N, T] bool, whatever the padding and the order of the rows."""
    places = candidates.flatten().nonzero().squeeze(1)
    for key in reversed(keys):
        places = places[key.flatten()[places].argsort(stable=True)]
    chosen = torch.zeros(candidates.numel(), dtype=torch.bool, device=candidates.device)
    chosen[places[:count]] = True
    return chosen.reshape(candidates.shape)
