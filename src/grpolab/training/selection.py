"""Selection: which rollouts train.

What is left out is gone before the advantage: its statistics are those of the members that were
kept, and G becomes their number. PODS does so (arXiv 2504.13818). The metrics of rewards and
lengths describe everything that was sampled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.advantage.statistics import comparable
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class Selection(ABC):
    """Base: which members of which groups are kept, and whether more are drawn for the rest."""

    group: ClassVar[str] = "selection"
    name: ClassVar[str]
    replays: ClassVar[bool] = False
    """Groups of earlier steps may stand in for those that fell out."""
    compares: ClassVar[bool] = False
    """Drops groups whose members do not differ, which those of one member never do."""

    @property
    def rounds(self) -> int:
        """Rounds of sampling at most, the first one included."""
        return 1

    @abstractmethod
    def __call__(self, rewards: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """[P, G] bool: the members that train; of each group none, or as many as of any other.

        Args:
            rewards: [P, G], NaN where unscorable.
            noise: [P, G] uniform in [0, 1), for selections that choose at random; a fixed draw
                where absent.
        """


def informative(rewards: Tensor) -> Tensor:
    """[P] true where a group has two scored members that differ."""
    return comparable(rewards, torch.isfinite(rewards)).squeeze(1)


def whole(groups: Tensor, rewards: Tensor) -> Tensor:
    """Groups [P] as members [P, G]."""
    return groups.unsqueeze(1).expand_as(rewards).clone()


# -- whole groups ------------------------------------------------------------------------------


@dataclass(frozen=True)
class All(Selection):
    """Every group trains."""

    name: ClassVar[str] = "all"

    def __call__(self, rewards: Tensor, *, noise: Tensor | None = None) -> Tensor:
        return torch.ones_like(rewards, dtype=torch.bool)


@dataclass(frozen=True)
class Dynamic(Selection):
    """DAPO's dynamic sampling: groups whose scored rewards are all equal are dropped, and further
    prompts are drawn until the batch is full or `max_rounds` are over.

    Source: arXiv 2503.14476. verl: filter_groups (max_num_gen_batches). A batch that stays short
    trains on what it has.
    """

    name: ClassVar[str] = "dynamic"
    compares: ClassVar[bool] = True

    max_rounds: int = setting(4, "rounds of sampling at most, the first one included", ge=1)

    @property
    def rounds(self) -> int:
        return self.max_rounds

    def __call__(self, rewards: Tensor, *, noise: Tensor | None = None) -> Tensor:
        return whole(informative(rewards), rewards)


@dataclass(frozen=True)
class DropZeroVariance(Selection):
    """Groups whose scored rewards are all equal are dropped, and nothing takes their place.

    Their advantages would be 0 under any estimator that compares within the group: what changes is
    the denominators (token means, sequence means, statistics over the batch), in which they no
    longer count, and their KL, which is gone. SkyRL (tolerance 1e-6) and open-instruct filter so;
    TRL trains on them and logs their share.
    """

    name: ClassVar[str] = "drop_zero_variance"
    compares: ClassVar[bool] = True

    def __call__(self, rewards: Tensor, *, noise: Tensor | None = None) -> Tensor:
        return whole(informative(rewards), rewards)


@dataclass(frozen=True)
class Replay(Selection):
    """Groups whose scored rewards are all equal are replaced by informative groups of the past.

    After each step its fresh groups that were informative enter a buffer of `size` groups, with
    the log-probs of the policy that generated them; the oldest leave. At the next steps the
    places of groups that fell out are filled by groups drawn from it, none twice in a batch and
    none older than `max_staleness` steps; what is left over stays empty. A replayed group stays in
    the buffer. The ratio of a replayed group is against the policy that generated it, so a loss
    without a ratio (reinforce) treats it as if it were fresh; its advantage and reference
    log-probs are computed anew. kl/old_k3, and with it `kl.target_kl`, counts its staleness.

    priority: `uniform`, or `by_std`, drawn in proportion to the standard deviation (ddof 0) of
    the group's scored rewards.

    Who does it differently
        TRL (the experimental grpo_with_replay_buffer, removed before 1.16) replaced the same
        groups, drawn in proportion to Σ|A|·std and, where the buffer held too few, with
        repetition. It kept the groups of highest priority whatever their age, let a group in
        before its own step (so that it could stand in one batch twice), replayed the advantage of
        its time, and stored old log-probs only where the trainer computed them anyway: else the
        ratio of a replayed group was 1. slime has a buffer; verl's and NeMo-RL's are queues of
        asynchronous rollouts.
    """

    name: ClassVar[str] = "replay"
    compares: ClassVar[bool] = True
    replays: ClassVar[bool] = True

    size: int = setting(64, "groups that the buffer holds", ge=1)
    max_staleness: int = setting(8, "steps after which a group is no longer replayed", ge=1)
    max_share: float = setting(1.0, "largest share of a batch from the buffer", gt=0, le=1)
    priority: Literal["uniform", "by_std"] = setting("uniform", "how past groups are drawn")

    def __call__(self, rewards: Tensor, *, noise: Tensor | None = None) -> Tensor:
        return whole(informative(rewards), rewards)


# -- members of each group ---------------------------------------------------------------------


@dataclass(frozen=True)
class Subset(Selection):
    """Base: `keep` members of each group, unscored ones last. Ties are broken by the noise, never
    by the position. Groups of `keep` members or fewer are kept whole."""

    keep: int = setting(4, "m, members of each group that train", ge=1)
    drop_zero_variance: bool = setting(
        False, "drop groups whose kept members' scored rewards are all equal; no refill"
    )

    def __post_init__(self) -> None:
        if self.drop_zero_variance and self.keep < 2:
            raise ValueError(
                f"keep: {self.keep} given with drop_zero_variance, which would drop every group; "
                "allowed: at least 2."
            )

    def __call__(self, rewards: Tensor, *, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            source = torch.Generator().manual_seed(0)
            noise = torch.rand(rewards.shape, generator=source).to(rewards.device)
        kept = self.members(rewards, noise, min(self.keep, rewards.shape[1]))
        if self.drop_zero_variance:
            kept &= informative(torch.where(kept, rewards, torch.nan)).unsqueeze(1)
        return kept

    @abstractmethod
    def members(self, rewards: Tensor, noise: Tensor, keep: int) -> Tensor:
        """[P, G] bool, `keep` of each group; keep ≤ G."""


@dataclass(frozen=True)
class RandomSubset(Subset):
    """`keep` of each group's scored members at random: the control for every other subset."""

    name: ClassVar[str] = "random_subset"

    def members(self, rewards: Tensor, noise: Tensor, keep: int) -> Tensor:
        order = ascending(torch.where(torch.isfinite(rewards), 0.0, torch.nan), noise)
        return torch.zeros_like(rewards, dtype=torch.bool).scatter(1, order[:, :keep], True)


@dataclass(frozen=True)
class BestAndWorst(Subset):
    """The ⌈m/2⌉ highest and the ⌊m/2⌋ lowest rewards of each group.

    With 0/1 rewards and an even m this is max_variance wherever there are m/2 of each.
    """

    name: ClassVar[str] = "best_and_worst"

    def members(self, rewards: Tensor, noise: Tensor, keep: int) -> Tensor:
        order = ascending(rewards, noise)
        scored = torch.isfinite(rewards).sum(dim=1, keepdim=True)
        chosen = ends(scored, rewards.shape[1], keep, (keep + 1) // 2)
        return torch.zeros_like(chosen).scatter(1, order, chosen)


@dataclass(frozen=True)
class MaxVariance(Subset):
    """PODS: of all subsets of m members of a group, one whose rewards have the largest variance.

    It consists of the h highest and the m − h lowest rewards for some h, so m + 1 candidates
    decide. Of several h that do equally well, the one nearest to ⌈m/2⌉ is taken.

    Source: arXiv 2504.13818; there, too, the advantage is computed on the kept members. TRL, verl
    and OpenRLHF have nothing like it.
    """

    name: ClassVar[str] = "max_variance"

    def members(self, rewards: Tensor, noise: Tensor, keep: int) -> Tensor:
        order = ascending(rewards, noise)
        scored = torch.isfinite(rewards).sum(dim=1, keepdim=True)  # [P, 1]
        middle = (keep + 1) // 2
        splits = sorted(range(keep + 1), key=lambda h: abs(h - middle))
        candidates = torch.stack([ends(scored, rewards.shape[1], keep, h) for h in splits])
        spread = spreads(rewards.gather(1, order), candidates)  # [m + 1, P]
        best = spread.argmax(dim=0)  # [P], the first of equals
        chosen = candidates[best, torch.arange(len(rewards), device=best.device)]
        return torch.zeros_like(chosen).scatter(1, order, chosen)


def ascending(rewards: Tensor, noise: Tensor) -> Tensor:
    """[P, G] places of each group's members, lowest reward first, unscored members last; equal
    ones in the order of their noise."""
    by_noise = noise.argsort(dim=1, stable=True)
    keys = torch.where(torch.isfinite(rewards), rewards, torch.nan).gather(1, by_noise)
    return by_noise.gather(1, keys.argsort(dim=1, stable=True))  # NaN sorts last


def ends(scored: Tensor, size: int, keep: int, high: int) -> Tensor:
    """[P, G] bool over members in ascending order: the `high` last scored ones and the first
    others up to `keep`. Where fewer are scored, all of them and the first unscored ones.

    Args:
        scored: [P, 1] scored members of each group, which come first.
        size: G.
        keep: m.
        high: h.
    """
    place = torch.arange(size, device=scored.device)
    top = (place >= scored - high) & (place < scored)
    return torch.where(scored < keep, place < keep, (place < keep - high) | top)


def spreads(ordered: Tensor, candidates: Tensor) -> Tensor:
    """[C, P] m·Σx² − (Σx)² over the scored members [P, G] of each candidate [C, P, G]: the
    variance up to a factor. x is measured from the group's lowest reward, so that an offset costs
    no digits and small whole numbers are exact."""
    scored = torch.isfinite(ordered)
    lowest = torch.where(scored, ordered, torch.inf).amin(dim=1, keepdim=True)
    x = torch.where(scored, ordered - lowest, 0.0)
    x = (x if x.device.type == "mps" else x.double()) * candidates
    # A group with too few scored members has one candidate, m + 1 times: the count needs no care.
    return candidates.sum(dim=2) * x.square().sum(dim=2) - x.sum(dim=2).square()
