"""Reductions over valid tokens, their precision, and the one exponential."""

from __future__ import annotations

import torch
from torch import Tensor

EXP_CLAMP = 20.0
"""|x| beyond which `safe_exp` stops: e^20 ≈ 4.9e8 stays finite in every dtype's products."""


def precise(x: Tensor) -> Tensor:
    """In float32 at least: float64 stays, whole numbers and what is below become float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def valid(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is true, 0 elsewhere: whatever stands in the padding, NaN included."""
    return torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over all valid tokens; 0 where there are none. Scalar."""
    return valid(x, mask).sum() / mask.sum().clamp(min=1)


def sequence_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's valid tokens, 0 for an empty row: [N, T] → [N, 1]."""
    return valid(x, mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def safe_exp(x: Tensor) -> Tensor:
    """exp of x clamped to ±20; the gradient is 0 where the clamp binds."""
    return x.clamp(-EXP_CLAMP, EXP_CLAMP).exp()


def from_here_on(x: Tensor, mask: Tensor) -> Tensor:
    """Σ_{k≥t} of a row's valid tokens, 0 where masked: [N, T] → [N, T]."""
    x = valid(x, mask)
    return valid(x.flip(1).cumsum(dim=1).flip(1), mask)
