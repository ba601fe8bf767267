"""Selection: which rollouts train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpolab.objective.settings import setting


@dataclass(frozen=True)
class Selection(ABC):
    """Base: which members of which groups are kept, and whether more are drawn for the rest."""

    group: ClassVar[str] = "selection"
    name: ClassVar[str]
    replays: ClassVar[bool] = False
    """Groups of earlier steps may stand in for those that fell out."""

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
    scored = torch.isfinite(rewards)
    highest = torch.where(scored, rewards, -torch.inf).amax(dim=1)
    lowest = torch.where(scored, rewards, torch.inf).amin(dim=1)
    return highest > lowest


def whole(groups: Tensor, rewards: Tensor) -> Tensor:
    """Groups [P] as members [P, G]."""
    return groups.unsqueeze(1).expand_as(rewards).clone()


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

    max_rounds: int = setting(4, "rounds of sampling at most, the first one included", ge=1)

    @property
    def rounds(self) -> int:
        return self.max_rounds

    def __call__(self, rewards: Tensor, *, noise: Tensor | None = None) -> Tensor:
        return whole(informative(rewards), rewards)
