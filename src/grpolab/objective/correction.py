"""Correction for a sampler that is not quite the trainer: (old_logps, sampler_logps, mask) →
weights [N, T] on the policy loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Correction(ABC):
    """Base of the corrections."""

    group: ClassVar[str] = "correction"
    name: ClassVar[str]
    needs_old_logps: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, old_logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> Tensor:
        """Detached weights [N, T], from w = exp(old_logps − sampler_logps)."""


@dataclass(frozen=True)
class NoCorrection(Correction):
    """1: the sampler is taken to be the policy the trainer recomputes."""

    name: ClassVar[str] = "none"
    needs_old_logps: ClassVar[bool] = False

    def __call__(self, old_logps: Tensor, sampler_logps: Tensor, mask: Tensor) -> Tensor:
        return torch.ones_like(old_logps)
