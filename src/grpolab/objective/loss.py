"""The objective: clip, KL and correction per token, combined; and what is measured beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpolab.objective.clip import Clip, Plan
from grpolab.objective.correction import Correction
from grpolab.objective.kl import KL, k3
from grpolab.objective.masked import safe_exp, valid


@dataclass(frozen=True)
class Objective:
    """clip + β·kl per token; the aggregation makes a scalar of it.

    The KL is a part of the loss only where its placement says so; in the reward it has entered
    the advantages before.
    """

    clip: Clip
    kl: KL
    correction: Correction

    @property
    def kl_in_loss(self) -> bool:
        """Whether β·KL stands in the loss."""
        return self.kl.needs_reference and getattr(self.kl, "placement", "loss") == "loss"

    def __call__(
        self,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        beta: float,
        kl_logps: Tensor | None = None,
        ref_logps: Tensor | None = None,
        sampler_logps: Tensor | None = None,
        logits: Tensor | None = None,
        ref_logits: Tensor | None = None,
        rewards: Tensor | None = None,
        entropy: Tensor | None = None,
        truncated: Tensor | None = None,
        plan: Plan | None = None,
    ) -> TokenLosses:
        """Per-token losses; shapes as in `Clip` and `KL`. `kl_logps` are what the KL compares with
        the reference, where the clip's own are of a part of the vocabulary; `logps` by default."""
        surrogate = self.clip(
            logps,
            old_logps,
            advantages,
            mask,
            rewards=rewards,
            entropy=entropy,
            truncated=truncated,
            plan=plan,
        )
        policy, metrics = surrogate.loss, surrogate.metrics
        if sampler_logps is not None:
            policy = policy * self.correction(old_logps, sampler_logps, mask)
            metrics = metrics | self.correction.metrics(old_logps, sampler_logps, mask)
        kl = torch.zeros_like(policy)
        if self.kl_in_loss and ref_logps is not None:
            kl = self.kl(
                logps if kl_logps is None else kl_logps,
                ref_logps,
                mask,
                old_logps=old_logps,
                logits=logits,
                ref_logits=ref_logits,
            )
        # β = 0 keeps the KL out of the graph: 0 · inf would be NaN
        total = policy + beta * kl if beta else policy
        return TokenLosses(policy, kl.detach(), total, metrics)


@dataclass(frozen=True)
class TokenLosses:
    """[N, T] each: the policy part, the KL before β, their sum; and the metrics of clip and
    correction."""

    policy: Tensor
    kl: Tensor
    total: Tensor
    metrics: dict[str, Tensor]


def ratio_sums(logps: Tensor, old_logps: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Sums over valid tokens of r − 1 and (r − 1)², from which mean, std and effective sample size
    of the ratio follow without cancellation, and its maximum. 0-d tensors, float64 where the device
    has it."""
    d = valid(logps.detach() - old_logps.detach(), mask)
    ratio = valid(safe_exp(d), mask)
    precise = ratio if ratio.device.type == "mps" else ratio.double()
    return {
        "excess": valid(precise - 1, mask).sum(),
        "squares": valid((precise - 1).square(), mask).sum(),
        "max": ratio.max() if ratio.numel() else ratio.new_zeros(()),
    }


def kl_estimates(logps: Tensor, other_logps: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Sums over valid tokens of k1, k2 and k3 of KL(π‖other), for the log."""
    d = valid(logps.detach() - other_logps.detach(), mask)
    return {"k1": d.sum(), "k2": (d.square() / 2).sum(), "k3": k3(d).sum()}
