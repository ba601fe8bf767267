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
    """Base: which groups are kept, and how often more are drawn in place of the others."""

    group: ClassVar[str] = "selection"
    name: ClassVar[str]
    max_rounds: int
    """Rounds of sampling at most, the first one included."""

    @abstractmethod
    def __call__(self, rewards: Tensor) -> Tensor:
        """[P] bool: the groups of rewards [P, G] (NaN unscorable) that train."""


@dataclass(frozen=True)
class All(Selection):
    """Every group trains."""

    name: ClassVar[str] = "all"
    max_rounds: ClassVar[int] = 1  # type: ignore[misc]

    def __call__(self, rewards: Tensor) -> Tensor:
        return torch.ones(rewards.shape[0], dtype=torch.bool, device=rewards.device)


@dataclass(frozen=True)
class Dynamic(Selection):
    """DAPO's dynamic sampling: groups whose scored rewards are all equal are dropped, and further
    prompts are drawn until the batch is full or `max_rounds` are over.

    Source: arXiv 2503.14476. verl: filter_groups (max_num_gen_batches). A batch that stays short
    trains on what it has.
    """

    name: ClassVar[str] = "dynamic"

    max_rounds: int = setting(4, "rounds of sampling at most, the first one included", ge=1)

    def __call__(self, rewards: Tensor) -> Tensor:
        scored = torch.isfinite(rewards)
        highest = torch.where(scored, rewards, -torch.inf).amax(dim=1)
        lowest = torch.where(scored, rewards, torch.inf).amin(dim=1)
        return highest > lowest
