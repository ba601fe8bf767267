"""Aggregation: a per-token loss [N, T] and its mask → a scalar.

Each is a weighted sum, Σ w·loss, whose weights depend on the mask alone. The training loop
computes the weights over the whole optimizer step and sums micro-batches, so that loss and
gradient are exact under any micro-batch split; `token_mean_micro`, whose point is that it depends
on the split, takes the split from its settings.

N rows, prompt-major, G to a prompt; len_i valid tokens in row i; L the token limit. A row without
valid tokens (a filtered completion) adds nothing to any sum; whether it counts in N is a setting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.masked import valid
from grpolab.objective.settings import setting


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


def _lengths(mask: Tensor) -> Tensor:
    """[N, 1] valid tokens of each row; float64 where the device has it."""
    precise = torch.float32 if mask.device.type == "mps" else torch.float64
    return mask.sum(dim=1, keepdim=True).to(precise)


@dataclass(frozen=True)
class TokenMean(Aggregation):
    """Σ over all valid tokens of the optimizer step / their count.

    Source: DAPO, arXiv 2503.14476. verl: token-mean. TRL: loss_type dapo (its default), cispo and
    vespo, whose denominator is the generation batch's tokens times the optimizer step's share of
    them: the average step's count, not this step's.
    """

    name: ClassVar[str] = "token_mean"

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        lengths = _lengths(mask)
        return (1 / lengths.sum().clamp(min=1)).expand_as(lengths)


@dataclass(frozen=True)
class TokenMeanMicro(Aggregation):
    """Mean over the valid tokens of each micro-batch, then averaged over the micro-batches.

    w = 1 / (tokens of its micro-batch · number of micro-batches): a token weighs more beside short
    completions. TRL: loss_type="bnpo", the tokens of the micro-batch (at least 1) in the
    denominator, then divided by the gradient accumulation steps; verl: token-mean without the
    global count. There the split is what the hardware holds; here it is `rows` rows at a time, in
    the order of the batch (TRL shuffles it), whatever the hardware. With rows = G a micro-batch is
    a prompt's group and this is prompt_mean; with rows = 1 it is seq_mean_token_mean; with
    rows ≥ N it is token_mean. A micro-batch without valid tokens counts as 0, as in TRL.
    """

    name: ClassVar[str] = "token_mean_micro"

    rows: int = setting(8, "rows of a micro-batch, in the order of the batch", ge=1)

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        lengths = _lengths(mask)
        chunks = torch.split(lengths, self.rows)
        share = [(1 / c.sum().clamp(min=1)).expand_as(c) / len(chunks) for c in chunks]
        return torch.cat(share)


@dataclass(frozen=True)
class TokenSum(Aggregation):
    """Σ over all valid tokens.

    Grows with the batch: the learning rate has to know it. verl: token-sum.
    """

    name: ClassVar[str] = "token_sum"

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        return torch.ones_like(_lengths(mask))


@dataclass(frozen=True)
class Constant(Aggregation):
    """Σ over all valid tokens / constant.

    open-instruct: loss_denominator given as a number.
    """

    name: ClassVar[str] = "constant"

    constant: float = setting(1000.0, "the denominator", gt=0)

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        return torch.ones_like(_lengths(mask)) / self.constant


@dataclass(frozen=True)
class SequenceMean(Aggregation):
    """Base of the means over sequences: which of them count."""

    count_empty: bool = setting(
        True, "rows without valid tokens count in N (TRL); false: not (verl, OpenRLHF, ROLL)"
    )

    def rows(self, lengths: Tensor) -> Tensor:
        """N: 0-d, at least 1."""
        counted = torch.ones_like(lengths) if self.count_empty else (lengths > 0).to(lengths)
        return counted.sum().clamp(min=1)


@dataclass(frozen=True)
class SeqMeanTokenMean(SequenceMean):
    """(1/N) Σ_i (1/len_i) Σ_t: GRPO's own; short completions' tokens weigh more.

    Source: arXiv 2402.03300. TRL: loss_type grpo and sapo (len_i of at least 1, every row in N);
    verl: seq-mean-token-mean (adds 1e-8 to len_i, rows without tokens not in N).
    """

    name: ClassVar[str] = "seq_mean_token_mean"

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        lengths = _lengths(mask)
        return 1 / (lengths.clamp(min=1) * self.rows(lengths))


@dataclass(frozen=True)
class SeqMeanTokenSum(SequenceMean):
    """(1/N) Σ_i Σ_t: the policy gradient of whole sequences, with no word on length.

    TRL: loss_type="luspo" (every row in N); verl: seq-mean-token-sum; ROLL's default.
    """

    name: ClassVar[str] = "seq_mean_token_sum"

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        lengths = _lengths(mask)
        return (1 / self.rows(lengths)).expand_as(lengths)


@dataclass(frozen=True)
class SeqMeanTokenSumNorm(SequenceMean):
    """Σ / (N·L), L the token limit, fixed: Dr. GRPO.

    Source: arXiv 2503.20783. TRL: loss_type="dr_grpo", rows · max_completion_length. verl:
    seq-mean-token-sum-norm with loss_scale_factor; without one it divides by the padded width of
    its batch, here `length: longest`, the longest completion of the optimizer step, with which a
    long one makes all others' tokens weigh less. ROLL divides by the width only.
    """

    name: ClassVar[str] = "seq_mean_token_sum_norm"

    length: Literal["limit", "longest"] = setting(
        "limit", "L: the token limit of a completion, or the longest one of the step"
    )

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        lengths = _lengths(mask)
        width = torch.full_like(lengths.sum(), max_length)
        if self.length == "longest" and len(lengths):
            width = lengths.max().clamp(min=1)
        return (1 / (self.rows(lengths) * width)).expand_as(lengths)


@dataclass(frozen=True)
class PromptMean(Aggregation):
    """Mean over the prompts of the token mean inside each prompt's group: 1/(P·tokens of a group).

    Every prompt weighs the same, whatever the length of its answers; inside a group every token.
    SkyRL: prompt_mean.
    """

    name: ClassVar[str] = "prompt_mean"

    count_empty: bool = setting(
        True, "prompts without a valid token count in P; false: they do not"
    )

    def weights(self, mask: Tensor, *, group_size: int, max_length: int) -> Tensor:
        tokens = _lengths(mask).reshape(-1, group_size).sum(dim=1)  # [P]
        counted = torch.ones_like(tokens) if self.count_empty else (tokens > 0).to(tokens)
        share = 1 / (tokens.clamp(min=1) * counted.sum().clamp(min=1))
        return share.repeat_interleave(group_size).unsqueeze(1)
