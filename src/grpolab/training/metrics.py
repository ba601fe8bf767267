"""The metrics that follow from a step's rollouts, before any update."""

from __future__ import annotations

import math
import resource
import sys

import torch
from torch import Tensor

from grpolab.rollouts import Rollouts

MOST_MEMBERS = 32
"""Of a group whose advantages are told apart by difficulty: a metric a number of right answers."""


def reward_metrics(rewards: Tensor, parts: dict[str, Tensor]) -> dict[str, float]:
    """Of scored rewards [P, G] before the KL; NaN is unscorable and left out."""
    rewards = rewards.cpu().double()
    scored = torch.isfinite(rewards)
    values = rewards[scored]
    same = [
        bool(s.any()) and bool((r[s] == r[s][0]).all())
        for r, s in zip(rewards, scored, strict=True)
    ]
    metrics = {
        "reward/mean": _mean(values),
        "reward/std": float(values.std()) if len(values) > 1 else 0.0,
        "reward/zero_std_share": sum(same) / max(1, len(same)),
        "reward/unscorable_share": 1 - float(scored.double().mean()) if scored.numel() else 0.0,
    }
    for name, part in parts.items():
        part = part.cpu().double()
        metrics[f"reward/{name}"] = _mean(part[torch.isfinite(part)])
    return metrics


def length_metrics(rollouts: Rollouts, correct: list[bool]) -> dict[str, float]:
    """In tokens, the end token included; `correct` [N] by the task's own verifier."""
    lengths = rollouts.lengths.cpu().double()
    right = torch.tensor(correct)
    return {
        "length/mean": _mean(lengths),
        "length/max": float(lengths.max()),
        "length/correct": _mean(lengths[right]),
        "length/wrong": _mean(lengths[~right]),
        "length/truncated_share": float(rollouts.truncated.cpu().double().mean()),
    }


def advantage_metrics(advantages: Tensor, mask: Tensor) -> dict[str, float]:
    """Spread and extremes of a batch's advantages: of the completions [P, G], or of the valid
    tokens where the advantages are those of tokens, as `mask` [N, T]."""
    if advantages.shape == mask.shape:
        advantages = advantages[mask]
    values = advantages.cpu().double().flatten()
    return {
        "advantage/std": float(values.std()) if len(values) > 1 else 0.0,
        "advantage/abs_max": float(values.abs().max()) if len(values) else 0.0,
    }


def difficulty_metrics(rewards: Tensor, advantages: Tensor, mask: Tensor) -> dict[str, float]:
    """Mean |A| of the groups with so many right answers, for each number that some group has.

    Only of batches whose rewards take two values, the larger being the right answer's, and in
    groups of 2 to MOST_MEMBERS; a group with an unscorable member is left out.

    Args:
        rewards: [P, G], NaN where unscorable.
        advantages: [P, G], or [N, T] where they are those of tokens.
        mask: [N, T], the valid tokens.
    """
    right = right_answers(rewards)
    if right is None or not 2 <= rewards.shape[1] <= MOST_MEMBERS:
        return {}
    size = rewards.shape[1]
    per_group = absolute_advantages(advantages, mask).reshape(-1, size).mean(dim=1)
    return {
        f"advantage/abs_at_{k}_of_{size}": float(per_group[right == k].mean())
        for k in sorted(set(right[right >= 0].tolist()))
    }


def right_answers(rewards: Tensor) -> Tensor | None:
    """[P] how many of a group's rewards [P, G] are right (see `right_mask`), −1 with an unscorable
    one; None where right is not told from wrong."""
    right = right_mask(rewards)
    if right is None:
        return None
    whole = torch.isfinite(rewards.cpu()).all(dim=1)
    return torch.where(whole, right.sum(dim=1), -1)


def right_mask(rewards: Tensor) -> Tensor | None:
    """[P, G] which rewards are the larger of the two values that all scored ones take, those of
    groups with an unscorable member included; None where there are not two."""
    rewards = rewards.cpu()
    values = sorted(set(rewards[torch.isfinite(rewards)].tolist()))
    if len(values) != 2 or rewards.dim() != 2:
        return None
    found: Tensor = rewards == values[1]
    return found


def absolute_advantages(advantages: Tensor, mask: Tensor) -> Tensor:
    """[N] |A| of each completion, the mean over its tokens [N, T] where they have their own."""
    weights = advantages.abs()
    if advantages.shape == mask.shape:
        weights = (weights * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return weights.flatten().cpu().double()


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far: allocated on CUDA, resident of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB elsewhere


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
