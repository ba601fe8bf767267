"""KL(π‖π_ref) per token: (logps, ref_logps, mask) → [N, T], before β. D = logps − ref_logps.

exp never overflows: k3 keeps D at −20 or above (its gradient is 0 below), a ratio keeps its
log-ratio within ±20. `clamp: [in, out]` clamps D to ±in and the value to ±out for every estimator
(verl: [20, 10]; TRL: none); gradients vanish where it binds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.masked import EXP_CLAMP, safe_exp, valid
from grpolab.objective.settings import setting

Placement = Literal["loss", "reward", "reward_to_go"]
Schedule = Literal["constant", "linear", "cosine", "adaptive"]
PLACEMENTS: tuple[Placement, ...] = ("loss", "reward", "reward_to_go")


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
            ref_logps: [N, T] under the reference; detached here.
            mask: [N, T], true on the sampled tokens.
            old_logps: [N, T] under the policy that generated the batch; detached here. Where
                absent, it is taken to be the trained policy.
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
    """The settings every estimator shares: where the KL stands, and how large β is when.

    Placement. loss: β·KL is added to the policy loss of each token and aggregated with it (TRL
    GRPO, verl use_kl_loss). reward: β·Σ_t KL is subtracted from the completion's reward before
    the advantage is formed, so that it is centred and normalised along with it (TRL RLOO).
    reward_to_go: β·Σ_{k≥t} KL_k is subtracted from the advantage of token t, after any
    normalisation; a token pays for itself and what follows, not for what stood before (verl and
    OpenRLHF with the KL in a token-level reward and γ = 1). In a reward the KL is a number of the
    policy before the batch's first update: it is computed once and has no gradient.

    target_kl is measured by k3 against the policy that generated the batch, over the tokens of an
    update and before its step: the update that finds it passed is still made, those after it are
    not. It concerns updates_per_batch > 1 alone; the first update of a batch is at 0.
    """

    refuses: ClassVar[Mapping[str, str]] = {}
    """{placement: why the estimator makes no sense there}."""

    placement: Placement = setting(
        "loss",
        "loss: added to each token's; reward: the sum, off the reward; reward_to_go: what is "
        "still to come, off each token's advantage",
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
        if self.placement in self.refuses:
            allowed = ", ".join(p for p in PLACEMENTS if p not in self.refuses)
            raise ValueError(
                f"placement: {self.placement} given with kl={self.name}, "
                f"{self.refuses[self.placement]}; allowed: {allowed}."
            )
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
        if self.schedule == "adaptive" and self.beta == 0:
            raise ValueError(
                "beta: 0 given, but kl.schedule is adaptive, which multiplies it; allowed: above 0."
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
        carrier = self.carrier(d, mask, logps=logps, old_logps=old_logps)
        if carrier is not None:
            value = value.detach() + (carrier - carrier.detach())
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

    def carrier(
        self, d: Tensor, mask: Tensor, *, logps: Tensor, old_logps: Tensor | None
    ) -> Tensor | None:
        """[N, T] whose gradient takes the place of that of `formula`; None: it has its own."""
        return None


def k3(d: Tensor) -> Tensor:
    """exp(−d) + d − 1, with d kept at −20 or above, where exp(−d) would overflow.

    In both terms: clamping the exponential alone would leave the gradient of +d, which pushes the
    policy further away just where it has strayed furthest. expm1 keeps the value of a small d,
    which is d²/2, above the rounding of 1.
    """
    d = d.clamp(min=-EXP_CLAMP)
    return torch.expm1(-d) + d


def ratio(logps: Tensor, old_logps: Tensor | None, mask: Tensor) -> Tensor:
    """exp(logps − old_logps) [N, T] with the gradient of logps; 1 where masked, and everywhere
    (with a gradient all the same) where old_logps is absent."""
    old = logps if old_logps is None else old_logps
    return safe_exp(valid(logps, mask) - valid(old.detach(), mask))
