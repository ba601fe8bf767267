"""Estimators that belong to a whole completion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from grpolab.objective.kl.base import ReferenceKL
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class SequenceK2(ReferenceKL):
    """(Σ_t D)²/2 per sequence, an equal part of it on each of its tokens.

    The parts add up to the sequence's value, so under aggregation=seq_mean_token_sum the loss is
    its mean, whose on-policy gradient is exactly that of the sequence's reverse KL, the effect of
    a token on those after it included, which k2 leaves out. The other aggregations weigh the
    sequences anew: seq_mean_token_mean divides each by its length. `clamp` bounds each token's D
    and each token's part. None of the trainers named elsewhere has it.
    """

    name: ClassVar[str] = "sequence_k2"
    refuses: ClassVar[Mapping[str, str]] = {
        "reward_to_go": "which belongs to the sequence and to none of its tokens"
    }

    def formula(self, d: Tensor, mask: Tensor, **_: Any) -> Tensor:
        total = d.sum(dim=1, keepdim=True)  # [N, 1]; d is 0 where masked
        lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
        return (total.square() / (2 * lengths)).expand_as(d)


@dataclass(frozen=True)
class SeedKLDiv(ReferenceKL):
    """F.kl_div(log_softmax(logps), softmax(old)) over *time*: what the seed README writes.

    Wrong, and kept so that it can be shown to be: it softmaxes log-probabilities along the
    sequence, as if tokens were outcomes, so it is identically 0 for one token, 0 whenever the
    log-ratio is constant along a sequence, and no divergence between the two policies. The second
    distribution is `old_logps` where given (the seed reads the old policy as the reference),
    otherwise `ref_logps`. Padding is left out of both softmaxes.
    """

    name: ClassVar[str] = "seed_kl_div"
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("reward", "reward_to_go"),
        "which is 0 when the rewards are made: the old policy is still the trained one",
    )

    # Without D, `clamp` has nothing to act on
    clamp: list[float] | None = setting(None, "no use here: there is no D", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clamp is not None:
            raise ValueError(
                f"clamp: {self.clamp} given with kl=seed_kl_div, which has no D; allowed: null."
            )

    def formula(
        self,
        d: Tensor,
        mask: Tensor,
        *,
        logps: Tensor,
        old_logps: Tensor | None,
        logits: Tensor | None,
        ref_logits: Tensor | None,
    ) -> Tensor:
        other = (logps - d).detach() if old_logps is None else old_logps.detach()
        floor = torch.finfo(logps.dtype).min
        log_p = torch.log_softmax(torch.where(mask, logps, floor), dim=1)
        q = torch.softmax(torch.where(mask, other, floor), dim=1)
        return torch.nn.functional.kl_div(log_p, q, reduction="none")
