"""Estimators of the KL at each token, whose gradient is the derivative of their value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from grpolab.objective.kl.base import ReferenceKL, k3

NO_DIFFERENCE = 1e-6
"""Log-ratios below which two policies are taken to be equal."""


@dataclass(frozen=True)
class K1(ReferenceKL):
    """D. Unbiased, high variance, can be negative.

    As a loss its expected gradient is zero (tokens are not differentiated): use it in the reward,
    where it gives the gradient of the reverse KL; of the whole sequence's, with either of the two
    placements in the reward. Source: Schulman, "Approximating KL divergence". OpenRLHF's default
    in the reward, clamped to ±10; AReaL's only one.
    """

    name: ClassVar[str] = "k1"

    def formula(self, d: Tensor, mask: Tensor, **_: Any) -> Tensor:
        return d


@dataclass(frozen=True)
class Abs(ReferenceKL):
    """|D|. No estimate of the KL: a distance that is ≥ 0 token by token.

    As a loss its gradient is sign(D)·∇lp, of one size however far the policy has strayed. Where
    |D| < 1e-6 value and gradient are 0: the sign of a rounding error must not train anything.
    verl, SkyRL and ROLL: abs, without that.
    """

    name: ClassVar[str] = "abs"

    def formula(self, d: Tensor, mask: Tensor, **_: Any) -> Tensor:
        return torch.where(d.abs() < NO_DIFFERENCE, torch.zeros_like(d), d.abs())


@dataclass(frozen=True)
class K2(ReferenceKL):
    """D²/2. As a loss its on-policy gradient is that of the reverse KL, token by token.

    Token by token: what a token does to the KL of those after it is left out (`sequence_k2` has
    it). The value is biased at third order. Source: Schulman, "Approximating KL divergence".
    verl: k2, mse.
    """

    name: ClassVar[str] = "k2"

    def formula(self, d: Tensor, mask: Tensor, **_: Any) -> Tensor:
        return d.square() / 2


@dataclass(frozen=True)
class K3(ReferenceKL):
    """exp(−D) + D − 1 ≥ 0: unbiased and of low variance as a value.

    As a loss its gradient is that of the *forward* KL(π_ref‖π); in the reward it gives ∇ reverse
    minus ∇ forward KL, which can push away from the reference. Source: Schulman; GRPO's choice,
    arXiv 2402.03300. TRL clamps nothing, verl uses clamp [20, 10] (low_var_kl). TRL 1.16
    multiplies it by the live ratio by default (use_bias_correction_kl): that is `weighted_k3`.
    """

    name: ClassVar[str] = "k3"

    def formula(self, d: Tensor, mask: Tensor, **_: Any) -> Tensor:
        return k3(d)


@dataclass(frozen=True)
class FullKL(ReferenceKL):
    """Σ_v π(v) · log(π(v)/π_ref(v)) over the whole vocabulary: exact value, exact gradient.

    Exact at each token; what a token does to the KL of those after it is left out as with k2. In
    the reward it is a number that does not depend on the token drawn, so it teaches only through
    later tokens: for completions of one token it is a constant. The two placements together would
    make up the gradient of the sequence's KL. Needs both models' logits at every position, so it
    costs memory [tokens, V] twice. `clamp` bounds each log-ratio. Source: ROLL's `full`.
    """

    name: ClassVar[str] = "full"
    needs_logits: ClassVar[bool] = True

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
        if logits is None or ref_logits is None:
            raise ValueError("kl=full needs logits and ref_logits [N, T, V]")
        log_p = torch.log_softmax(logits, dim=-1)  # [N, T, V]
        log_q = torch.log_softmax(ref_logits.detach(), dim=-1)
        # π = 0 (a masked-out vocabulary entry) contributes 0 to value and gradient, not 0 · inf
        log_ratio = torch.where(log_p > -torch.inf, log_p - log_q, 0.0)
        if self.clamp is not None:
            log_ratio = log_ratio.clamp(-self.clamp[0], self.clamp[0])
        return (log_p.exp() * log_ratio).sum(dim=-1)
