"""Correction for a sampler that is not quite the trainer: (old_logps, sampler_logps, mask) →
weights [N, T] on the policy loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.masked import masked_mean, safe_exp, sequence_mean, valid
from grpolab.objective.settings import setting

Level = Literal["token", "sequence_sum", "sequence_mean"]
LEVEL_HELP = "w of each token, of the sequence (product), or its geometric mean"


def log_ratios(old_logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> Tensor:
    """d = old_logps − sampler_logps [N, T], detached; 0 where masked, or where the sampler told
    no log-prob (NaN), so that such a token is left uncorrected."""
    d = (old_logps - sampler_logps).detach()
    return valid(d, mask.bool() & ~sampler_logps.isnan())


def at_level(d: Tensor, mask: Tensor, level: Level) -> Tensor:
    """log w [N, T] of log-ratios d: each token's own, or one value for all of a sequence."""
    if level == "token":
        return d
    whole = d.sum(dim=1, keepdim=True) if level == "sequence_sum" else sequence_mean(d, mask)
    return whole.expand_as(d)


@dataclass(frozen=True)
class Correction(ABC):
    """Base: what the importance weight w = π_old/π_sampler does to the policy loss.

    `old_logps` are the trainer's own, of the policy that generated the batch; `sampler_logps` are
    of the distribution that was sampled from, temperature and truncation included. The two differ
    by numerics (another engine, another precision) or on purpose: a temperature or a truncation
    that the sampler's match_temperature and match_support do not hand on to the trainer.

    log w by level, with d_t = old_t − sampler_t over a sequence's valid tokens:
        token: d_t. The variance is small; biased, since it forgets how a state was reached.
        sequence_sum: Σ_t d_t. Unbiased; its spread grows with the length.
        sequence_mean: the mean of d_t, the geometric mean of the token weights; biased, and
            independent of the length.
    exp stops at ±20. Weights are detached, multiply the policy loss alone (ms-swift weighs the KL
    too) and are 1 at masked positions. verl can also divide the weights by their batch mean: that
    needs the whole step at once, and is left out.
    """

    group: ClassVar[str] = "correction"
    name: ClassVar[str]

    @abstractmethod
    def __call__(self, old_logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> Tensor:
        """Detached weights [N, T]; 1 where masked."""

    def log_weights(self, d: Tensor, mask: Tensor) -> Tensor:
        """log w [N, T] before any bound, from `log_ratios`."""
        return d

    def bounded(self, log_w: Tensor) -> Tensor:
        """[N, T] bool: where a bound changes w."""
        return torch.zeros_like(log_w, dtype=torch.bool)

    def metrics(self, old_logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Of w before any bound, at the correction's level; 0-d. Means over valid tokens, except
        min and max. `square` is the mean of (w − 1)², from which the standard deviation follows
        without cancellation."""
        log_w = self.log_weights(log_ratios(old_logps, sampler_logps, mask), mask)
        w, mask = safe_exp(log_w), mask.bool()
        none = w.new_full((1,), torch.inf)  # neutral, for a batch without a valid token
        return {
            "correction/mean": masked_mean(w, mask),
            "correction/square": masked_mean((w - 1).square(), mask),
            "correction/min": torch.cat([torch.where(mask, w, none).flatten(), none]).amin(),
            "correction/max": torch.cat([torch.where(mask, w, -none).flatten(), -none]).amax(),
            "correction/clipped_share": masked_mean(self.bounded(log_w).to(w), mask),
        }


@dataclass(frozen=True)
class NoCorrection(Correction):
    """1: the sampler is taken to be the policy the trainer recomputes."""

    name: ClassVar[str] = "none"

    def __call__(self, old_logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> Tensor:
        return torch.ones_like(old_logps, requires_grad=False)


@dataclass(frozen=True)
class Truncate(Correction):
    """min(w, cap): truncated importance sampling (TIS).

    Source: arXiv 1802.01561 truncates so (V-trace); for language models "Your efficient RL
    framework secretly brings you off-policy RL training" (Yao et al., 2025).

    Who does it differently
        TRL: token_truncate and sequence_truncate (the sum), within [min, max]: min off, max 3.0;
            exp is not clamped, and the ratio it logs is taken after the bound, here before.
        verl: token or sequence (the sum), 2.0, exp clamped to ±20 as here.
        OpenRLHF: tis clamps to [0.5, 5.0]; slime, miles: to [0, 2.0]; open-instruct, oat: 2.0;
            AReaL: 5.0; ROLL: 1.2; SkyRL: token 2.0, sequence 5.0.
        ms-swift: 2.0; its sequence level is the geometric mean.
    """

    name: ClassVar[str] = "truncate"

    cap: float = setting(2.0, "largest weight", gt=0)
    floor: float = setting(0.0, "smallest weight; 0: none", ge=0)
    level: Level = setting("token", LEVEL_HELP)

    def __post_init__(self) -> None:
        if self.floor > self.cap:
            raise ValueError(f"floor: {self.floor:g} given; allowed: at most cap ({self.cap:g}).")

    def __call__(self, old_logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> Tensor:
        log_w = self.log_weights(log_ratios(old_logps, sampler_logps, mask), mask)
        weights = safe_exp(log_w).clamp(self.floor, self.cap)
        return torch.where(mask.bool(), weights, 1.0)

    def log_weights(self, d: Tensor, mask: Tensor) -> Tensor:
        return at_level(d, mask, self.level)

    def bounded(self, log_w: Tensor) -> Tensor:
        return outside(log_w, self.floor, self.cap)


@dataclass(frozen=True)
class Mask(Correction):
    """w where low ≤ w ≤ high, else 0: masked importance sampling (IcePop at the token level).

    A token whose weight is 0 still counts in the denominator of the aggregation. The bounds
    themselves are inside.

    `kept` is the weight of what lies inside: `ratio` is w of the level, `token_ratio` the token's
    own w whatever level decides, `one` is 1 (rejection alone).

    Source: IcePop, arXiv 2510.18855 (token level, kept=ratio).

    Who does it differently
        TRL: token_mask and, its default, sequence_mask: the sum, min off (low=0), max 3.0,
            kept=ratio.
        verl: a "lo_hi" threshold is IcePop with kept=ratio; its rejection sampling filters apart
            from the weights (kept=one), also by k2 and k3, 0.999 to 1.001 for the mean.
        OpenRLHF, NeMo-RL: icepop is level=token, kept=ratio; seq-mask-tis is
            level=sequence_mean, kept=token_ratio; [0.5, 5.0], in NeMo-RL 0.999 to 1.002 for it.
        SkyRL: filters apart from its weights, the product to [0.5, 2.0], the mean to
            [0.99, 1.01]; ROLL likewise, to [0.8, 1.2]. ms-swift: its sequence level is the mean.
    """

    name: ClassVar[str] = "mask"

    low: float = setting(0.5, "smallest weight that is kept; 0: none", ge=0)
    high: float = setting(2.0, "largest weight that is kept; .inf: none", gt=0)
    level: Level = setting("token", LEVEL_HELP)
    kept: Literal["ratio", "token_ratio", "one"] = setting(
        "ratio", "weight inside the bounds: the level's w, the token's own w, or 1"
    )

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low:g} given; allowed: less than high ({self.high:g}).")

    def __call__(self, old_logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> Tensor:
        d = log_ratios(old_logps, sampler_logps, mask)
        log_w = self.log_weights(d, mask)
        inside = {"ratio": log_w, "token_ratio": d, "one": torch.zeros_like(d)}[self.kept]
        weights = torch.where(self.bounded(log_w), 0.0, safe_exp(inside))
        return torch.where(mask.bool(), weights, 1.0)

    def log_weights(self, d: Tensor, mask: Tensor) -> Tensor:
        return at_level(d, mask, self.level)

    def bounded(self, log_w: Tensor) -> Tensor:
        return outside(log_w, self.low, self.high)


def outside(log_w: Tensor, low: float, high: float) -> Tensor:
    """Where w < low or w > high; compared as logarithms, before exp stops anywhere."""
    lower = math.log(low) if low > 0 else -math.inf
    return (log_w < lower) | (log_w > math.log(high))
