"""What a policy loss reads of each token."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from grpolab.objective.masked import valid

Plan = dict[str, Tensor]
"""What the rows of an optimizer step know of all of them: {key: [N, 1] or [N, T]}."""


@dataclass(frozen=True)
class Tokens:
    """[N, T] each, 0 where masked; everything but `logps` and `d` is detached."""

    logps: Tensor
    """Under the trained policy, with gradient."""
    d: Tensor
    """logps − old_logps, with gradient."""
    old_logps: Tensor
    """Under the policy that generated the batch."""
    advantages: Tensor
    mask: Tensor
    """bool"""
    rewards: Tensor | None = None
    """[N, 1]"""
    entropy: Tensor | None = None
    truncated: Tensor | None = None
    """[N, 1] bool"""
    noise: Tensor | None = None
    """uniform in [0, 1)"""

    @classmethod
    def of(
        cls,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        rewards: Tensor | None,
        entropy: Tensor | None,
        truncated: Tensor | None,
        noise: Tensor | None,
    ) -> Tokens:
        """With the padding blanked and the advantages broadcast."""
        mask = mask.bool()
        logps = valid(logps, mask)
        old_logps = valid(old_logps.detach(), mask)
        return cls(
            logps=logps,
            d=logps - old_logps,
            old_logps=old_logps,
            advantages=valid(advantages.detach().expand_as(logps), mask),
            mask=mask,
            rewards=None if rewards is None else rewards.detach().reshape(-1, 1),
            entropy=None if entropy is None else valid(entropy.detach(), mask),
            truncated=None if truncated is None else truncated.bool().reshape(-1, 1),
            noise=noise,
        )

    def detached(self) -> Tokens:
        """Without gradients."""
        return dataclasses.replace(self, logps=self.logps.detach(), d=self.d.detach())

    def chance(self) -> Tensor:
        """`noise`, or where none was given a fixed draw, the same however wide the padding."""
        if self.noise is not None:
            return self.noise
        rows, width = self.mask.shape
        source = torch.Generator().manual_seed(0)
        return torch.rand(width, rows, generator=source).T.to(self.mask.device)
