"""KL(π‖π_ref) per token: (logps, ref_logps, mask) → [N, T], before β. D = logps − ref_logps.

exp never overflows: k3 keeps D at −20 or above (its gradient is 0 below). `clamp: [in, out]` clamps
D to ±in and the value to ±out for every estimator (verl: [20, 10]; TRL: none); gradients vanish
where it binds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from grpolab.objective.masked import EXP_CLAMP, valid
from grpolab.objective.settings import setting

Placement = Literal["loss", "reward"]
Schedule = Literal["constant", "linear", "cosine", "adaptive"]


@dataclass(frozen=True)
class KL(ABC):
    """Base of every estimator and, through `ReferenceKL`, of the common settings."""

    group: ClassVar[str] = "kl"
    name: ClassVar[str]
    needs_reference: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        logps: Tensor,
        ref_logps: Tensor,
        mask: Tensor,
        *,
        old_logps: Tensor | None = None,
        logits: Tensor | None = None,
        ref_logits: Tensor | None = None,
    ) -> Tensor:
        """The estimate per token [N, T], 0 where masked.

        Args:
            logps: [N, T] of the sampled tokens under the trained policy, with gradient.
            ref_logps: [N, T] under the reference.
            mask: [N, T], true on the sampled tokens.
            old_logps: [N, T] under the policy that generated the batch.
            logits, ref_logits: [N, T, V], where `needs_logits`.
        """


@dataclass(frozen=True)
class NoKL(KL):
    """0, and no reference model is loaded or run."""

    name: ClassVar[str] = "none"
    needs_reference: ClassVar[bool] = False

    def __call__(self, logps: Tensor, ref_logps: Tensor, mask: Tensor, **_: Any) -> Tensor:
        return torch.zeros_like(logps)


@dataclass(frozen=True)
class ReferenceKL(KL):
    """The settings every estimator shares: where the KL stands, and how large β is when."""

    placement: Placement = setting(
        "loss", "loss: β·KL is added to the loss; reward: β·ΣKL is subtracted from the reward"
    )
    beta: float = setting(0.04, "weight of the KL", ge=0)
    schedule: Schedule = setting("constant", "how β moves over the run")
    warmup_steps: int = setting(0, "β rises linearly from 0 over so many steps first", ge=0)
    beta_final: float | None = setting(None, "linear, cosine: β at the last step (0)", ge=0)
    target: float | None = setting(None, "adaptive: the KL per token to hold (0.1)", gt=0)
    horizon: int | None = setting(None, "adaptive: completions per e-fold of β (10000)", ge=1)
    clamp: list[float] | None = setting(None, "[in, out]: D to ±in, the value to ±out", gt=0)
    target_kl: float | None = setting(
        None, "stop a batch's updates once the KL to the old policy passes this", gt=0
    )

    def __post_init__(self) -> None:
        fixed = self.schedule in ("constant", "adaptive")
        if fixed and self.beta_final is not None:
            raise ValueError(
                f"beta_final: {self.beta_final} given, but kl.schedule is {self.schedule}; "
                "allowed: null, or a schedule of linear or cosine."
            )
        for name in ("target", "horizon"):
            given = getattr(self, name)
            if self.schedule != "adaptive" and given is not None:
                raise ValueError(
                    f"{name}: {given} given, but kl.schedule is {self.schedule}; "
                    "allowed: null, or the schedule adaptive."
                )
        if self.clamp is not None and len(self.clamp) != 2:
            raise ValueError(f"clamp: {self.clamp} given; allowed: [in, out], or null.")

    def __call__(
        self,
        logps: Tensor,
        ref_logps: Tensor,
        mask: Tensor,
        *,
        old_logps: Tensor | None = None,
        logits: Tensor | None = None,
        ref_logits: Tensor | None = None,
    ) -> Tensor:
        mask = mask.bool()
        d = valid(logps, mask) - valid(ref_logps.detach(), mask)
        if self.clamp is not None:
            d = d.clamp(-self.clamp[0], self.clamp[0])
        value = self.formula(
            d, mask, logps=logps, old_logps=old_logps, logits=logits, ref_logits=ref_logits
        )
        if self.clamp is not None:
            value = value.clamp(-self.clamp[1], self.clamp[1])
        return valid(value, mask)

    @abstractmethod
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
        """The estimator of D = `d` [N, T]."""


@dataclass(frozen=True)
class K1(ReferenceKL):
    """D. Unbiased, high variance, can be negative.

    As a loss its expected gradient is zero (tokens are not differentiated): use it in the reward,
    where it gives the gradient of the reverse KL. Source: Schulman, "Approximating KL divergence".
    """

    name: ClassVar[str] = "k1"

    def formula(self, d: Tensor, mask: Tensor, **_: Any) -> Tensor:
        return d


@dataclass(frozen=True)
class K2(ReferenceKL):
    """D²/2. As a loss its on-policy gradient is that of the reverse KL, token by token.

    Source: Schulman, "Approximating KL divergence". The value is biased at third order.
    """

    name: ClassVar[str] = "k2"

    def formula(self, d: Tensor, mask: Tensor, **_: Any) -> Tensor:
        return d.square() / 2


def k3(d: Tensor) -> Tensor:
    """exp(−d) + d − 1, with d kept at −20 or above, where exp(−d) would overflow.

    In both terms: clamping the exponential alone would leave the gradient of +d, which pushes the
    policy further away just where it has strayed furthest.
    """
    d = d.clamp(min=-EXP_CLAMP)
    return (-d).exp() + d - 1


@dataclass(frozen=True)
class K3(ReferenceKL):
    """exp(−D) + D − 1 ≥ 0: unbiased and of low variance as a value.

    As a loss its gradient is that of the *forward* KL(π_ref‖π). Source: Schulman; GRPO's choice,
    arXiv 2402.03300. TRL clamps nothing, verl uses clamp [20, 10]. TRL 1.16 multiplies it by the
    live ratio by default (use_bias_correction_kl), which is another estimator.
    """

    name: ClassVar[str] = "k3"

    def formula(self, d: Tensor, mask: Tensor, **_: Any) -> Tensor:
        return k3(d)


@dataclass(frozen=True)
class FullKL(ReferenceKL):
    """Σ_v π(v) · log(π(v)/π_ref(v)) over the whole vocabulary: exact value, exact gradient.

    Needs both models' logits at every position, so it costs memory [tokens, V] twice. In the
    reward it enters as a number. Source: ROLL's `full`.
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
        return (log_p.exp() * log_ratio).sum(dim=-1)


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
        return F.kl_div(log_p, q, reduction="none")
