"""Policy losses per token: (logps, old_logps, advantages, mask) → Surrogate.

Notation: d = logps − old_logps, r = exp(d), A the advantage, sg = detach. Losses are minimised.
exp never overflows: d is clamped to ±20 (`grpolab.objective.masked.EXP_CLAMP`), and the share of
tokens where that binds is reported as clip/clamped. Shares are measured before any clamp.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from grpolab.objective.clip.masks import TokenMask, make_masks
from grpolab.objective.clip.tokens import Plan, Tokens
from grpolab.objective.masked import EXP_CLAMP, masked_mean
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class Surrogate:
    """The loss per token [N, T] (0 where masked), and what was measured on the way: means over
    the valid tokens, 0-d tensors."""

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Clip(ABC):
    """Base: broadcasting, padding, token masks and metrics, once for all.

    A variant implements `formula`. One that needs to see the whole optimizer step before any
    token's loss is known (a quantile, a budget, bounds that adapt) sets `plans` and implements
    `plan_rows`; the training loop then runs it once over all rows of the step and hands each
    micro-batch its own, so that no result depends on how the step was split.
    """

    group: ClassVar[str] = "clip"
    name: ClassVar[str]
    level: ClassVar[str] = "token"
    """What a ratio belongs to: "token" or "sequence"."""
    token_wise: ClassVar[bool] = False
    """With `level` "sequence": each token's loss has its own advantage all the same."""
    plans: ClassVar[bool] = False
    """`plan_rows` is implemented."""
    needs_advantage: ClassVar[bool] = False
    """A token whose advantage is 0 has no gradient, so that rows without advantages need no
    backward pass."""

    masks: list[Any] = setting(
        [], "token masks on top: names, or {name: …, settings} (`grpolab list mask`)"
    )

    def __post_init__(self) -> None:
        self.token_masks  # noqa: B018  a mistake in one of them is refused with the configuration

    @cached_property
    def token_masks(self) -> tuple[TokenMask, ...]:
        """The masks of `masks`."""
        return make_masks(self.masks)

    @property
    def needs_plan(self) -> bool:
        """Whether the clip or one of its masks reads the whole optimizer step."""
        return self.plans or any(m.plans for m in self.token_masks)

    @property
    def needs_entropy(self) -> bool:
        """Whether a mask reads the entropy at each position."""
        return any(m.needs_entropy for m in self.token_masks)

    def __call__(
        self,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        rewards: Tensor | None = None,
        entropy: Tensor | None = None,
        truncated: Tensor | None = None,
        noise: Tensor | None = None,
        plan: Plan | None = None,
    ) -> Surrogate:
        """The loss per token.

        Args:
            logps: [N, T] under the trained policy, with gradient.
            old_logps: [N, T] under the policy that generated the batch; detached here.
            advantages: [N, 1] or [N, T]; detached here.
            mask: [N, T], true on the sampled tokens.
            rewards: [N, 1], for the losses that treat good and bad completions differently.
            entropy: [N, T] of the policy at each position, for top_entropy.
            truncated: [N, 1] bool, completions without an end token, for the mask of that name.
            noise: [N, T] uniform in [0, 1), for the losses that choose tokens at random.
            plan: these rows of what `plan` made of the whole optimizer step; made here of the
                rows given where absent.
        """
        x = self._tokens(logps, old_logps, advantages, mask, rewards, entropy, truncated, noise)
        if plan is None:
            plan = self._plan(x)
        loss, low, high = self.formula(x, plan)
        keep = torch.ones_like(x.mask)
        for token_mask in self.token_masks:
            keep = keep & token_mask.keep(x, plan)
        # where, not a product: what is dropped may be infinite
        loss = torch.where(
            keep & x.mask, loss, torch.zeros((), dtype=loss.dtype, device=loss.device)
        )
        metrics = self._shares(x, low, high)
        if self.token_masks:
            metrics["clip/dropped"] = masked_mean((~keep).to(loss.dtype), x.mask)
        return Surrogate(loss, metrics)

    def trained(self, mask: Tensor, truncated: Tensor) -> Tensor:
        """The mask [N, T] less the completions that leave the step, KL and counts included."""
        for token_mask in self.token_masks:
            if token_mask.leaves_denominator:
                mask = mask & token_mask.rows(truncated).unsqueeze(1)
        return mask

    def _tokens(
        self,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        rewards: Tensor | None,
        entropy: Tensor | None,
        truncated: Tensor | None,
        noise: Tensor | None,
    ) -> Tokens:
        """What the variant and its masks read; completions that leave the step count nowhere."""
        if truncated is not None:
            mask = self.trained(mask.bool(), truncated.bool().flatten())
        return Tokens.of(logps, old_logps, advantages, mask, rewards, entropy, truncated, noise)

    def _shares(self, x: Tokens, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """Shares of the valid tokens, by side and by the sign of the advantage."""
        clipped = low | high
        shares = {
            "clip/low": low,
            "clip/high": high,
            "clip/share": clipped,
            "clip/positive": clipped & (x.advantages > 0),
            "clip/negative": clipped & (x.advantages < 0),
            "clip/clamped": x.d.detach().abs() > EXP_CLAMP,
        }
        return {k: masked_mean(v.to(x.logps.dtype), x.mask) for k, v in shares.items()}

    @torch.no_grad()
    def plan(
        self,
        logps: Tensor,
        old_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        rewards: Tensor | None = None,
        entropy: Tensor | None = None,
        truncated: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Plan:
        """What the rows of an optimizer step need to know of all of them: {key: [N, 1] or [N, T]}.

        Takes what `__call__` takes, for all rows of the step.
        """
        return self._plan(
            self._tokens(logps, old_logps, advantages, mask, rewards, entropy, truncated, noise)
        )

    @torch.no_grad()
    def _plan(self, x: Tokens) -> Plan:
        x = x.detached()
        made: Plan = dict(self.plan_rows(x)) if self.plans else {}
        for token_mask in self.token_masks:
            if token_mask.plans:
                made |= {f"{token_mask.name}/{k}": v for k, v in token_mask.plan_rows(x).items()}
        return made

    def plan_rows(self, x: Tokens) -> Mapping[str, Tensor]:
        """What `formula` finds in its plan, where `plans`: tensors [N, 1] or [N, T]."""
        raise NotImplementedError

    @abstractmethod
    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, clipped low, clipped high), each [N, T]; the last two are bool."""


def never(x: Tensor) -> Tensor:
    """All false, in the shape of x."""
    return torch.zeros_like(x, dtype=torch.bool)


def clipped_surrogate(
    ratio: Tensor, d: Tensor, advantages: Tensor, lowest: float | Tensor, highest: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """−min(rA, clip(r, lowest, highest)A), and where that takes the gradient on each side.

    `d` is the log of the ratio before any clamp.
    """
    bounds = [torch.as_tensor(b, dtype=ratio.dtype, device=ratio.device) for b in (lowest, highest)]
    clipped = torch.clamp(ratio, bounds[0], bounds[1])
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    exact = unclamped_ratio(d)
    return loss, (advantages < 0) & (exact < lowest), (advantages > 0) & (exact > highest)


def unclamped_ratio(d: Tensor) -> Tensor:
    """exp(d) for comparisons only, detached: it may be inf, which compares as it should."""
    return d.detach().exp()
