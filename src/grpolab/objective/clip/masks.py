"""Token masks that stand on top of any policy loss: `clip.masks: [...]`.

A mask drops tokens from the policy loss; the KL and the denominators of the aggregation keep them
(as in TRL), except `truncated`, whose completions leave the step altogether. Of a loss with one
value for each sequence it drops the token's copy of it; the sequence's ratio still reads the token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.clip.tokens import Plan, Tokens
from grpolab.objective.masked import precise, sequence_mean
from grpolab.objective.settings import setting

TIE = 1e-6
"""Difference below which two entropies count as equal, relative to those above 1."""


@dataclass(frozen=True)
class TokenMask(ABC):
    """Base of the masks."""

    group: ClassVar[str] = "mask"
    name: ClassVar[str]
    plans: ClassVar[bool] = False
    """Reads the whole optimizer step: `plan_rows` is implemented."""
    needs_entropy: ClassVar[bool] = False
    leaves_denominator: ClassVar[bool] = False
    """The tokens also leave the KL and the aggregation's counts."""

    @abstractmethod
    def keep(self, x: Tokens, plan: Plan) -> Tensor:
        """[N, T] or [N, 1] bool: the tokens that stay. What `plan_rows` made stands in `plan`
        under "<mask's name>/<key>"."""

    def rows(self, truncated: Tensor) -> Tensor:
        """[N] bool: the completions that stay in the step, where `leaves_denominator`."""
        raise NotImplementedError

    def plan_rows(self, x: Tokens) -> Mapping[str, Tensor]:
        """Tensors [N, 1] or [N, T] made of all rows of the optimizer step."""
        raise NotImplementedError


def make_masks(given: Sequence[Any]) -> tuple[TokenMask, ...]:
    """The masks of a list of names and of {name: …, settings}."""
    # Here, not above: the registry imports the modules of this package.
    from grpolab.component import ConfigError, from_config

    made: list[TokenMask] = []
    for place, item in enumerate(given):
        node = {"name": item} if isinstance(item, str) else item
        if not isinstance(node, Mapping):
            raise ValueError(f"masks: {item!r} given; allowed: a name, or a mapping with one.")
        try:
            made.append(from_config("mask", node, key=f"masks[{place}]"))
        except ConfigError as error:
            raise ValueError(str(error)) from error  # the registry puts `clip.` in front
    if len({m.name for m in made}) < len(made):
        raise ValueError(f"masks: {list(given)} given; allowed: each mask once.")
    return tuple(made)


@dataclass(frozen=True)
class Truncated(TokenMask):
    """Completions without an end token leave the step: no loss, no KL, no tokens in the counts.

    DAPO's overlong filtering, arXiv 2503.14476; TRL: mask_truncated_completions. Their rewards
    still count in the group's statistics, as in TRL, and the row itself stays in N. TRL also
    hides their tokens from the attention of their own forward pass, which changes nothing that
    is trained on.
    """

    name: ClassVar[str] = "truncated"
    leaves_denominator: ClassVar[bool] = True

    def rows(self, truncated: Tensor) -> Tensor:
        return ~truncated

    def keep(self, x: Tokens, plan: Plan) -> Tensor:
        if x.truncated is None:
            raise ValueError("clip.masks: truncated needs `truncated` [N, 1]")
        return ~x.truncated


@dataclass(frozen=True)
class OffPolicySequence(TokenMask):
    """Drops tokens with A < 0 in sequences with mean_t(old − lp) > delta: what the policy left.

    Where a sequence has one advantage, as in GRPO, all of it goes or none.

    Source: DeepSeek-V3.2, arXiv 2512.02556, eq. 9. TRL: off_policy_mask_threshold (off; 0.5
    suggested), against the sampler's log-probs where it has them; slime 1e-4. All keep a sequence
    at delta itself.
    """

    name: ClassVar[str] = "off_policy_sequence"

    delta: float = setting(0.5, "largest mean of old − lp over a sequence's tokens", gt=0)

    def keep(self, x: Tokens, plan: Plan) -> Tensor:
        strayed = sequence_mean(-x.d.detach(), x.mask) > self.delta
        return ~(strayed & (x.advantages < 0))


@dataclass(frozen=True)
class TopEntropy(TokenMask):
    """Keeps the `share` of the optimizer step's tokens at which the policy is least certain.

    The threshold is the linearly interpolated quantile of the entropies at 1 − share, and tokens
    at it, or within 1e-6 of it, stay: those with the same context have the same entropy up to
    rounding, which must not choose between them.

    Source: arXiv 2506.01939 (share .2). TRL: top_entropy_quantile, the same threshold, taken over
    each micro-batch.
    """

    name: ClassVar[str] = "top_entropy"
    plans: ClassVar[bool] = True
    needs_entropy: ClassVar[bool] = True

    share: float = setting(0.2, "share of the tokens that stay", gt=0, le=1)

    def plan_rows(self, x: Tokens) -> Mapping[str, Tensor]:
        if x.entropy is None:
            raise ValueError("clip.masks: top_entropy needs `entropy` [N, T]")
        found = x.entropy[x.mask]
        threshold = x.entropy.new_full((), -torch.inf)
        if len(found):
            threshold = quantile(found, 1 - self.share)
        # A group's first tokens share one entropy, up to rounding: ties stay or go together
        return {"keep": x.entropy >= threshold - TIE * threshold.abs().clamp(min=1)}

    def keep(self, x: Tokens, plan: Plan) -> Tensor:
        return plan["top_entropy/keep"]


@dataclass(frozen=True)
class M2PO(TokenMask):
    """Drops the tokens with the largest d² until the mean d² of the rest is below `threshold`.

    Over the whole optimizer step; tokens with the same d² go or stay together. tokens all: every
    valid token is counted and may go. tokens clippable: only those that ppo could clip (A>0 and
    d>0, or A<0 and d<0) are counted and may go, the others stay.

    Source: arXiv 2510.01161 (clippable; threshold 0.04; stops at a mean of at most the threshold;
    averages over all tokens, as the denominators do here). AReaL: m2_threshold, off by default;
    its mask counts all tokens, always leaves one, and takes the others out of the denominators;
    its later versions make clip bounds of it.
    """

    name: ClassVar[str] = "m2po"
    plans: ClassVar[bool] = True

    threshold: float = setting(0.04, "the mean of d² stays below it", gt=0)
    tokens: Literal["all", "clippable"] = setting(
        "all", "all: every token; clippable: only those that ppo could clip"
    )

    def plan_rows(self, x: Tokens) -> Mapping[str, Tensor]:
        square = precise(x.d).square()
        counted = x.mask
        if self.tokens == "clippable":
            counted = counted & (x.advantages * x.d > 0)
        ordered = square[counted].sort().values
        means = ordered.cumsum(0) / torch.arange(1, len(ordered) + 1, device=ordered.device)
        over = (means >= self.threshold).nonzero()
        if not len(over):
            return {"keep": torch.ones_like(x.mask)}
        return {"keep": ~counted | (square < ordered[over[0]])}

    def keep(self, x: Tokens, plan: Plan) -> Tensor:
        return plan["m2po/keep"]


def quantile(values: Tensor, share: float) -> Tensor:
    """Linearly interpolated quantile of [n]; torch.quantile stops at 16 million values."""
    ordered = precise(values).flatten().sort().values
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below).to(values.dtype)
