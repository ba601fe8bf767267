"""Advantages from the statistics of the whole batch, or of the batches before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.advantage.base import Advantage, Scored, needed, token_counts
from grpolab.objective.advantage.statistics import (
    EpsAt,
    batch_spread,
    centred,
    comparable,
    group_zscore,
    quotient,
    whitened,
)
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class BatchStd(Advantage):
    """(R − mean_g) / (std_batch + eps): the group's mean, the batch's standard deviation.

    Source: arXiv 2508.08221 (Lite PPO). Over all scored members of the batch; std_of says of what:
    of the rewards (TRL scale_rewards="batch", ms-swift "batch"), which also counts how much prompts
    differ, or of the centred rewards (ms-swift's REINFORCE++ at sequence level).
    """

    name: ClassVar[str] = "batch_std"

    std_of: Literal["rewards", "centered"] = setting(
        "rewards", "rewards: as they are; centered: minus their group's mean"
    )
    ddof: int = setting(1, "delta degrees of freedom of the standard deviation", ge=0, le=1)
    eps: float = setting(1e-4, "added to the standard deviation", ge=0)

    def formula(self, x: Scored) -> Tensor:
        found = centred(x.rewards, x.scored)
        _, variance = batch_spread(
            x.rewards if self.std_of == "rewards" else found, x.scored, self.ddof
        )
        return quotient(found, variance.sqrt() + self.eps)


@dataclass(frozen=True)
class GlobalCenter(Advantage):
    """R − mean over the batch: FlashREINFORCE.

    Source: OpenRLHF (flash_reinforce, 0.11.2). No whitening follows. The mean is over the scored
    members; a prompt that is harder than the others gets negative advantages throughout.
    """

    name: ClassVar[str] = "global_center"
    needs_group: ClassVar[bool] = False

    def formula(self, x: Scored) -> Tensor:
        return batch_spread(x.rewards, x.scored, ddof=0)[0]


@dataclass(frozen=True)
class Raw(Advantage):
    """R: REINFORCE without a baseline.

    NeMo-RL's raw_reward whitens this over the batch's tokens: reinforce_pp with ddof 0 and
    eps_at=floor.
    """

    name: ClassVar[str] = "raw"
    needs_group: ClassVar[bool] = False

    def formula(self, x: Scored) -> Tensor:
        return x.rewards


@dataclass(frozen=True)
class GPG(Advantage):
    """(R − mean_g) · N / count(A ≠ 0): GPG, with the batch's silent members made up for.

    Source: arXiv 2504.02546 (α = B/(B−M), M samples without a gradient; its F_norm is 1). N counts
    the scored members that reach the estimator: a selection that drops silent groups leaves N equal
    to the count. count=advantages counts the scored members of the groups whose rewards differ,
    which with rewards of 0 and 1 are those with A ≠ 0; a member that happens to lie on its group's
    mean counts as well, since otherwise its rounding would scale the whole batch. count=rewards
    counts R ≠ 0, as verl's gpg does: another number, which grows with each failure.
    """

    name: ClassVar[str] = "gpg"

    count: Literal["advantages", "rewards"] = setting(
        "advantages", "advantages: N / count(A ≠ 0); rewards: N / count(R ≠ 0), as verl has it"
    )

    def formula(self, x: Scored) -> Tensor:
        counted = comparable(x.rewards, x.scored) if self.count == "advantages" else x.rewards != 0
        contributing = (x.scored & counted).sum().clamp(min=1)
        return centred(x.rewards, x.scored) * x.scored.sum() / contributing


@dataclass(frozen=True)
class GDPO(Advantage):
    """Σ_k w_k · zscore_g(R_k), then z-scored over the batch: normalise, then sum.

    Source: arXiv 2601.05242. R_k are the parts of a mixture and w_k its weights; a reward without
    parts is its own only part. A part that is unscorable for a member is left out of that member's
    sum and of the part's statistics. A group is silent only if no part differs in it.

    | | ddof / eps | batch | batch_ddof / batch_eps | batch_eps_at |
    |---|---|---|---|---|
    | TRL normalize_then_sum (the defaults) | 1 / 1e-4 | sequences | 1 / 1e-4 | std |
    | verl gdpo | 1 / 1e-6 | tokens | 1 / 1e-8 | variance |

    ms-swift has eps 1e-8. NeMo-RL z-scores with leave-one-out statistics (loo_zscore) instead and
    divides by the batch's bare std. batch=tokens weighs each completion by its number of tokens
    (`lengths`, or else the mask), as masked whitening does, so that the batch's mean is not 0 and a
    silent group gets −mean/std; with batch=sequences the mean is 0 and so is a silent group.
    """

    name: ClassVar[str] = "gdpo"

    ddof: int = setting(1, "delta degrees of freedom of each group's std", ge=0, le=1)
    eps: float = setting(1e-4, "added to each group's std", ge=0)
    batch: Literal["sequences", "tokens", "none"] = setting(
        "sequences", "what the batch's z-score counts; none: no such step"
    )
    batch_ddof: int = setting(1, "delta degrees of freedom of the batch's std", ge=0, le=1)
    batch_eps: float = setting(1e-4, "eps of the batch's z-score", ge=0)
    batch_eps_at: EpsAt = setting(
        "std", "/(std + eps), /√(variance + eps) or floor: /√max(variance, eps)"
    )

    def parts(self, x: Scored) -> Iterator[tuple[float, Tensor, Tensor]]:
        """(weight, rewards [P, G] with 0 for what is unscored, scored [P, G]) of each part."""
        if not x.parts:
            yield 1.0, x.rewards, x.scored
            return
        weights = dict.fromkeys(x.parts, 1.0) if x.part_weights is None else x.part_weights
        for part, weight in weights.items():
            if part not in x.parts:
                raise ValueError(f"part_weights: {part!r} given; allowed: {', '.join(x.parts)}.")
            if weight:
                rewards = x.parts[part].to(x.rewards)
                scored = x.scored & torch.isfinite(rewards)
                yield weight, torch.where(scored, rewards, 0.0), scored

    def live(self, x: Scored) -> Tensor:
        if self.batch == "tokens":
            return x.scored
        differs = torch.zeros_like(x.scored)
        for _, rewards, scored in self.parts(x):
            differs |= comparable(rewards, scored)
        return x.scored & differs

    def formula(self, x: Scored) -> Tensor:
        found = torch.zeros_like(x.rewards)
        for weight, rewards, scored in self.parts(x):
            found += weight * group_zscore(rewards, scored, self.ddof, self.eps)
        if self.batch == "none":
            return found
        weights = x.scored
        if self.batch == "tokens":
            weights = torch.where(x.scored, token_counts(x, self.name), 0.0)
        return whitened(found, weights, self.batch_ddof, self.batch_eps, self.batch_eps_at)


@dataclass(frozen=True)
class ReMax(Advantage):
    """R − reward of the prompt's greedy completion: ReMax.

    Source: arXiv 2310.10505; verl: remax. The baseline depends on no sampled completion, so that
    the gradient is unbiased with a group of one, at the price of one more completion per prompt.
    Where the greedy completion is unscorable there is no baseline, and A = 0. A KL in the reward is
    charged to the sampled completions only.
    """

    name: ClassVar[str] = "remax"
    needs_group: ClassVar[bool] = False
    needs_greedy: ClassVar[bool] = True

    def formula(self, x: Scored) -> Tensor:
        greedy = needed(x.greedy, "greedy", self.name).to(x.rewards).reshape(-1, 1)
        return torch.where(torch.isfinite(greedy), x.rewards - greedy, 0.0)


@dataclass(frozen=True)
class EMABaseline(Advantage):
    """R − b, b ← decay·b + (1−decay)·mean(R): an exponential moving average over the batches.

    Source: SPIRAL's role-conditioned advantage, arXiv 2506.24119 (prime-rl: rae), with the one role
    there is here. b is updated with the batch before it is subtracted, so the batch's own rewards
    are in it with weight 1−decay. SPIRAL updates after each trajectory, here the batch's mean over
    its scored members counts as one observation.
    """

    name: ClassVar[str] = "ema_baseline"
    needs_group: ClassVar[bool] = False

    decay: float = setting(0.95, "share of b that each batch keeps", ge=0, le=1)
    start: float = setting(0.0, "b before the first batch")

    def track(self, baseline: float | None, rewards: Tensor) -> float:
        before = self.start if baseline is None else baseline
        scored = rewards[torch.isfinite(rewards)].cpu().double()
        if not len(scored):
            return before
        return self.decay * before + (1 - self.decay) * float(scored.mean())

    def formula(self, x: Scored) -> Tensor:
        return x.rewards - self.track(x.baseline, torch.where(x.scored, x.rewards, torch.nan))
