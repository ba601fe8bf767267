"""Policy losses with one ratio for each sequence, which every valid token of it carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpolab.objective.clip.base import Clip, clipped_surrogate
from grpolab.objective.clip.tokens import Plan, Tokens
from grpolab.objective.masked import safe_exp, sequence_mean
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class GSPO(Clip):
    """−min(sA, clip(s, 1−low, 1+high)A) with s = exp(mean_t d), one live ratio per sequence.

    Source: arXiv 2507.18071. TRL: importance_sampling_level="sequence". Every valid token of a
    sequence carries the sequence's loss, so that seq_mean_token_mean is the paper's objective.
    """

    name: ClassVar[str] = "gspo"
    needs_advantage: ClassVar[bool] = True
    level: ClassVar[str] = "sequence"

    low: float = setting(3e-4, "the sequence ratio is clipped below 1 − low", ge=0)
    high: float = setting(4e-4, "the sequence ratio is clipped above 1 + high", ge=0)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        mean = sequence_mean(x.d, x.mask).expand_as(x.d)  # [N, T]
        ratio = self._ratio(x, mean)
        return clipped_surrogate(ratio, mean, x.advantages, 1 - self.low, 1 + self.high)

    def _ratio(self, x: Tokens, mean: Tensor) -> Tensor:
        return safe_exp(mean)


@dataclass(frozen=True)
class GSPOToken(GSPO):
    """gspo with s_t = sg(s)·exp(lp − sg(lp)): gspo's value, and each token its own gradient.

    Source: arXiv 2507.18071, GSPO-token: the same as gspo where all tokens of a sequence have
    one advantage and weigh the same, and meant for advantages that differ between tokens. This is
    what verl and SkyRL call gspo (there the log-ratio stops at 10 upwards), and ms-swift
    sequence_token; TRL 1.16 has it no more.
    """

    name: ClassVar[str] = "gspo_token"
    needs_advantage: ClassVar[bool] = True
    token_wise: ClassVar[bool] = True

    def _ratio(self, x: Tokens, mean: Tensor) -> Tensor:
        return safe_exp(mean.detach() + (x.logps - x.logps.detach()))


@dataclass(frozen=True)
class LUSPO(GSPO):
    """gspo's ratio and loss, to be summed over tokens: long completions are not held back.

    Source: arXiv 2602.05261. The sum over tokens, which takes gspo's 1/length away, is the
    aggregation's: aggregation=seq_mean_token_sum is the paper's and TRL's (loss_type="luspo"
    with importance_sampling_level="sequence"). The bounds are the paper's.
    """

    name: ClassVar[str] = "luspo"
    needs_advantage: ClassVar[bool] = True

    low: float = setting(2e-3, "the sequence ratio is clipped below 1 − low", ge=0)
    high: float = setting(2.5e-3, "the sequence ratio is clipped above 1 + high", ge=0)


@dataclass(frozen=True)
class GMPO(Clip):
    """−exp(mean_t clip(d))·A: the geometric mean of ratios clipped in log space, on A's side.

    clip(d) is min(d, high) where A>0 and max(d, −low) otherwise: what lowers the objective is
    never clipped. The coefficient is live; every valid token of a sequence carries its value, so
    that seq_mean_token_mean is the paper's objective, and a clipped token gives no gradient
    though its sequence does.

    Source: arXiv 2507.20673. verl (geo_mean) and TRL's experimental GMPO always take the mean
    over sequences. verl's sign-aware minimum and TRL's agree with this where A ≠ 0. TRL's
    top-entropy mask also takes tokens out of the geometric mean; here a mask takes out the
    token's share of the loss.
    """

    name: ClassVar[str] = "gmpo"
    needs_advantage: ClassVar[bool] = True
    level: ClassVar[str] = "sequence"

    low: float = setting(0.4, "the log-ratio is clipped below −low where A < 0", ge=0)
    high: float = setting(0.4, "the log-ratio is clipped above high where A > 0", ge=0)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        clipped = torch.where(x.advantages > 0, x.d.clamp(max=self.high), x.d.clamp(min=-self.low))
        coefficient = safe_exp(sequence_mean(clipped, x.mask))  # [N, 1]
        low = (x.advantages < 0) & (x.d.detach() < -self.low)
        high = (x.advantages > 0) & (x.d.detach() > self.high)
        return -coefficient * x.advantages, low, high
