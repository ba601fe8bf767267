"""Means and standard deviations over groups [P, G] and over a whole batch.

What is identical is recognised by comparing values, never by a variance: eight times 0.1 has a
rounding variance above 0, which a normaliser with eps 0 would blow up to ±1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EpsAt = Literal["std", "variance", "floor"]


def comparable(rewards: Tensor, scored: Tensor) -> Tensor:
    """[P, 1] true where a group has two scored members that differ."""
    highest = torch.where(scored, rewards, -torch.inf).amax(dim=1, keepdim=True)
    lowest = torch.where(scored, rewards, torch.inf).amin(dim=1, keepdim=True)
    return highest > lowest


def group_mean(rewards: Tensor, scored: Tensor) -> Tensor:
    """[P, 1] mean over each group's scored members; `rewards` is 0 where not `scored`."""
    return rewards.sum(dim=1, keepdim=True) / scored.sum(dim=1, keepdim=True).clamp(min=1)


def centred(rewards: Tensor, scored: Tensor) -> Tensor:
    """[P, G] rewards minus their group's mean, 0 where unscored."""
    return torch.where(scored, rewards - group_mean(rewards, scored), 0.0)


def group_std(rewards: Tensor, scored: Tensor, ddof: int) -> Tensor:
    """[P, 1] standard deviation over each group's scored members."""
    count = scored.sum(dim=1, keepdim=True)
    squares = centred(rewards, scored).square().sum(dim=1, keepdim=True)
    return (squares / (count - ddof).clamp(min=1)).sqrt()


def quotient(x: Tensor, by: Tensor) -> Tensor:
    """x / by where `by` is above 0, and 0 elsewhere."""
    positive = by > 0
    return torch.where(positive, x / torch.where(positive, by, 1.0), 0.0)


def group_zscore(rewards: Tensor, scored: Tensor, ddof: int, eps: float) -> Tensor:
    """[P, G] (R − mean_g) / (std_g + eps), and exactly 0 in a group without a difference."""
    found = quotient(centred(rewards, scored), group_std(rewards, scored, ddof) + eps)
    return torch.where(comparable(rewards, scored), found, 0.0)


def batch_spread(values: Tensor, weights: Tensor, ddof: int) -> tuple[Tensor, Tensor]:
    """(values minus their weighted mean, their variance), over all entries of positive weight.

    The mean is Σwv/Σw and the variance Σw(v − mean)²/(Σw − ddof): with a mask as weights, those of
    the entries where it is true. What has no weight becomes 0, whatever stands there.
    """
    counted = weights > 0
    kept = values[counted]
    if not len(kept):
        return torch.zeros_like(values), values.new_zeros(())
    # From the largest value rather than from 0, so that equal values differ from it by exactly 0.
    shifted = torch.where(counted, values - kept.max(), 0.0)
    weights = weights.to(values)
    total = weights.sum()
    centred_values = torch.where(counted, shifted - (weights * shifted).sum() / total, 0.0)
    squares = (weights * centred_values.square()).sum()
    return centred_values, squares / (total - ddof).clamp(min=1)


def whitened(values: Tensor, weights: Tensor, ddof: int, eps: float, eps_at: EpsAt) -> Tensor:
    """Values minus their weighted mean, divided by their standard deviation over the batch.

    `eps_at` says where eps stands: std: / (std + eps); variance: / √(variance + eps);
    floor: / √max(variance, eps).
    """
    found, variance = batch_spread(values, weights, ddof)
    scale = {
        "std": variance.sqrt() + eps,
        "variance": (variance + eps).sqrt(),
        "floor": variance.clamp(min=eps).sqrt(),
    }[eps_at]
    return quotient(found, scale)
