"""Estimators of the KL whose gradient was made on purpose: weighed by the ratio, or put in place
of the value's own.

ratio r = exp(lp − old): of the trained policy to the one that generated the batch, token by token.
It corrects each token for the policy that drew it, not for the policy that drew the tokens before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from grpolab.objective.kl.base import ReferenceKL, k3, ratio
from grpolab.objective.masked import safe_exp, sequence_mean, valid
from grpolab.objective.settings import setting

VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": k3,
    "abs": lambda d: d.abs(),
}
NO_GRADIENT = "of which a reward sees the value alone, that of its base"
IN_REWARD = {"reward": NO_GRADIENT, "reward_to_go": NO_GRADIENT}


@dataclass(frozen=True)
class StraightThrough(ReferenceKL):
    """value of `base`, gradient of D²/2: a good number to log and to steer by, a right gradient.

    value.detach() + D²/2 − sg(D²/2). The gradient is that of the reverse KL on-policy, token by
    token, whatever the base; `clamp` bounds D in both, and the value alone by its second number.
    Not in the reward, where it would be its base. Source: verl's "k1+", "k3+" (low_var_kl+) and
    "abs+".
    """

    name: ClassVar[str] = "straight_through"
    refuses: ClassVar[Mapping[str, str]] = IN_REWARD

    base: Literal["k1", "k3", "abs"] = setting("k3", "the estimator whose value it has")

    def formula(self, d: Tensor, mask: Tensor, **_: Any) -> Tensor:
        return VALUES[self.base](d)

    def carrier(
        self, d: Tensor, mask: Tensor, *, logps: Tensor, old_logps: Tensor | None
    ) -> Tensor:
        return d.square() / 2


@dataclass(frozen=True)
class WeightedK3(ReferenceKL):
    """r·(exp(−D) + D − 1) with r = exp(lp − old) live: the reverse KL's gradient, off-policy too.

    The gradient runs through r as well, so that on-policy, where r = 1, it is still not k3's: it is
    D·∇lp in place of (1 − exp(−D))·∇lp. Without old log-probs r = exp(lp − sg lp). Not in the
    reward, which is made while r = 1: there it would be k3. Source: DeepSeek-V3.2, arXiv
    2512.02556. TRL: use_bias_correction_kl (on by default in 1.16), with
    importance_sampling_level="sequence" the sequence's ratio exp(mean_t(lp − old)) on each of its
    tokens (`level`); slime: use_unbiased_kl; NeMo-RL: exp(lp − sg lp) by default.
    """

    name: ClassVar[str] = "weighted_k3"
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("reward", "reward_to_go"), "which is k3 there: a reward is made while the ratio is 1"
    )

    level: Literal["token", "sequence"] = setting(
        "token", "whose ratio: the token's, or exp of the mean log-ratio of its sequence"
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
        if self.level == "token":
            return ratio(logps, old_logps, mask) * k3(d)
        old = logps if old_logps is None else old_logps
        mean = sequence_mean(valid(logps, mask) - valid(old.detach(), mask), mask)  # [N, 1]
        return safe_exp(mean) * k3(d)


@dataclass(frozen=True)
class WeightedK2(ReferenceKL):
    """value of `base`, gradient of sg(min(r, c))·D²/2 with r = exp(lp − old).

    The gradient is that of the reverse KL token by token, for tokens of another policy too, as
    long as c does not bind. Without old log-probs r = 1, and it is `straight_through`. `clamp`
    bounds D in both, and the value alone by its second number. Not in the reward, where it would
    be its base. Source: OpenRLHF (c = 10).
    """

    name: ClassVar[str] = "weighted_k2"
    refuses: ClassVar[Mapping[str, str]] = IN_REWARD

    base: Literal["k1", "k2", "k3", "abs"] = setting("k3", "the estimator whose value it has")
    c: float = setting(10.0, "largest weight", gt=0)

    def formula(self, d: Tensor, mask: Tensor, **_: Any) -> Tensor:
        return VALUES[self.base](d)

    def carrier(
        self, d: Tensor, mask: Tensor, *, logps: Tensor, old_logps: Tensor | None
    ) -> Tensor:
        weight = ratio(logps, old_logps, mask).clamp(max=self.c).detach()
        return weight * d.square() / 2
