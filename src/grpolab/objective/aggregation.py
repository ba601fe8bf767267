"""Aggregation: a per-token loss [N, T] and its mask → a scalar.

Each is a weighted sum, Σ w·loss, whose weights depend on the mask alone. The training loop
computes the weights over the whole optimizer step and sums micro-batches, so that loss and
gradient are exact under any micro-batch split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpolab.objective.masked import valid


@dataclass(frozen=True)
class Aggregation(ABC):
    """Base: a weighted sum over tokens."""

    group: ClassVar[str] = "aggregation"
    name: ClassVar[str]

    def __call__(
        self, per_token: Tensor, mask: Tensor, *, group_size: int, max_length: int
    ) -> Tensor:
        """The scalar of a per-token loss [N, T]; 0 (never NaN) where nothing is valid.

        Args:
            per_token: [N, T].
            mask: [N, T], true on the sampled tokens.
            group_size: completions per prompt; rows are prompt-major.
            max_length: the token limit of a completion, a constant of the run.
        """
        weights = self.weights(mask, group_size=group_size, max_length=max_length)
        return (valid(per_token, mask) * weights.to(per_token.dtype)).sum()

    @abstractmethod
    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        """[N, 1] weights of each row's tokens, float64 so that the dtype of the loss decides."""


def _precise(mask: Tensor) -> torch.dtype:
    return torch.float32 if mask.device.type == "mps" else torch.float64  # MPS has no float64


@dataclass(frozen=True)
class TokenMean(Aggregation):
    """Σ over all valid tokens of the optimizer step / their count.

    TRL: loss_type="dapo"; verl: token-mean. Source: arXiv 2503.14476.
    """

    name: ClassVar[str] = "token_mean"

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        count = mask.sum().clamp(min=1).to(_precise(mask))
        return (1 / count).expand(mask.shape[0], 1)


@dataclass(frozen=True)
class SeqMeanTokenMean(Aggregation):
    """(1/N) Σ_i (1/len_i) Σ_t: GRPO's own; short completions' tokens weigh more.

    Source: arXiv 2402.03300. Empty completions count in N (as in TRL; verl leaves fully masked
    rows out of it).
    """

    name: ClassVar[str] = "seq_mean_token_mean"

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        lengths = mask.sum(dim=1, keepdim=True).clamp(min=1).to(_precise(mask))
        return 1 / (lengths * max(1, mask.shape[0]))


@dataclass(frozen=True)
class SeqMeanTokenSumNorm(Aggregation):
    """Σ / (N·L), L the token limit, fixed: Dr. GRPO.

    Source: arXiv 2503.20783. TRL: loss_type="dr_grpo"; verl divides by the padded width of the
    batch unless told the constant.
    """

    name: ClassVar[str] = "seq_mean_token_sum_norm"

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        share = 1 / (max(1, mask.shape[0]) * max_length)
        return mask.new_full((mask.shape[0], 1), share, dtype=_precise(mask))
