"""Advantages for each token: [N, T]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.advantage.base import Advantage, Scored, needed
from grpolab.objective.advantage.statistics import (
    EpsAt,
    centred,
    comparable,
    quotient,
    whitened,
)
from grpolab.objective.masked import valid
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class ReinforcePP(Advantage):
    """whiten(G_t) over all valid tokens of the batch, G_t = R − β·KL to go: REINFORCE++ → [N, T].

    Source: arXiv 2501.03262. The KL is that of `kl.placement=reward_to_go`; without it every token
    of a completion has the same G_t, and long completions weigh more in the statistics.
    baseline=group is REINFORCE++-baseline (R − mean_g in place of R): a group whose rewards do not
    differ has G_t = 0 before the whitening and −mean/std after it. There is no discount.

    verl and slime: ddof 1, eps 1e-8, eps_at=variance (the defaults). OpenRLHF and NeMo-RL: ddof 0,
    eps 1e-8, eps_at=floor; NeMo-RL subtracts each token's own KL and not the KL to go.
    """

    name: ClassVar[str] = "reinforce_pp"
    token_level: ClassVar[bool] = True

    baseline: Literal["none", "group"] = setting(
        "none", "what is subtracted before the whitening; group: the group's mean"
    )
    ddof: int = setting(1, "delta degrees of freedom of the variance", ge=0, le=1)
    eps: float = setting(1e-8, "keeps the division defined", ge=0)
    eps_at: EpsAt = setting(
        "variance", "/(std + eps), /√(variance + eps) or floor: /√max(variance, eps)"
    )

    @property
    def needs_group(self) -> bool:  # type: ignore[override]  # depends on a setting
        """Whether the group's mean is subtracted."""
        return self.baseline == "group"

    def formula(self, x: Scored) -> Tensor:
        mask = needed(x.mask, "mask", self.name).bool()
        rewards = x.rewards
        if self.baseline == "group":
            differ = comparable(x.rewards, x.scored)
            rewards = torch.where(differ, centred(x.rewards, x.scored), 0.0)
        counted = mask & x.scored.reshape(-1, 1)
        return whitened(returns(rewards, x, mask), counted, self.ddof, self.eps, self.eps_at)


@dataclass(frozen=True)
class OptimalTokenBaseline(Advantage):
    """G_t − Σ_i G_it·W_it / (Σ_i W_it + eps), W_t = Σ_{s≤t} (1 − 2π_s + Σ_v π_s(v)²) → [N, T].

    Source: arXiv 2602.07078; verl: optimal_token_baseline. At each time step the sums run over the
    scored members of the group that still have a token there. π is the policy that generated the
    batch; 1 − 2π + Σπ² is the squared norm of the logits' gradient, and W what a completion has
    gathered of it. G_t = R − β·KL to go (`kl.placement=reward_to_go`), R throughout without it.

    Where a single member has a token left the baseline would be its own G_t: zero_tail sets it to 0
    there, as verl does by default (handle_zero_tail). Not from verl: a group with fewer than two
    scored members, or with identical rewards and no KL, gets 0 throughout (verl: G_t), and what
    rounding takes below 0 in 1 − 2π + Σπ² counts as 0. Importance weights do not enter W.
    """

    name: ClassVar[str] = "optimal_token_baseline"
    token_level: ClassVar[bool] = True
    needs_distribution: ClassVar[bool] = True

    eps: float = setting(1e-8, "added to the sum of the weights", ge=0)
    zero_tail: bool = setting(True, "no baseline where only one completion has a token left")

    def live(self, x: Scored) -> Tensor:
        if x.penalty is None:
            return super().live(x)
        return x.scored & (x.scored.sum(dim=1, keepdim=True) > 1)

    def formula(self, x: Scored) -> Tensor:
        mask = needed(x.mask, "mask", self.name).bool()
        logps = needed(x.logps, "logps", self.name).to(x.rewards)
        collision = needed(x.collision, "collision", self.name).to(x.rewards)
        to_go = returns(x.rewards, x, mask)
        norms = valid(1 - 2 * logps.exp() + collision, mask).clamp(min=0)
        here = mask & x.scored.reshape(-1, 1)
        weights = valid(norms.cumsum(dim=1), here)

        def over_group(values: Tensor) -> Tensor:
            """[N, T] → the sum over each group's members, for each of them."""
            summed = values.reshape(*x.rewards.shape, -1).sum(dim=1, keepdim=True)
            return summed.expand(*x.rewards.shape, -1).reshape(mask.shape)

        baseline = quotient(over_group(weights * to_go), over_group(weights) + self.eps)
        if self.zero_tail:
            baseline = torch.where(over_group(here.to(baseline)) > 1, baseline, 0.0)
        return valid(to_go - baseline, mask & self.live(x).reshape(-1, 1))


def returns(rewards: Tensor, x: Scored, mask: Tensor) -> Tensor:
    """[N, T] R less the penalty still to come from each token on, 0 where masked."""
    to_go = rewards.reshape(-1, 1).expand(mask.shape)
    return valid(to_go if x.penalty is None else to_go - x.penalty.to(to_go), mask)
