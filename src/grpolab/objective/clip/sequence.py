"""Policy losses with one ratio for each sequence, which every valid token of it carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
    level: ClassVar[str] = "sequence"

    low: float = setting(3e-4, "the sequence ratio is clipped below 1 − low", ge=0)
    high: float = setting(4e-4, "the sequence ratio is clipped above 1 + high", ge=0)

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        mean = sequence_mean(x.d, x.mask).expand_as(x.d)  # [N, T]
        return clipped_surrogate(safe_exp(mean), mean, x.advantages, self.low, self.high)
