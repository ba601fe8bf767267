"""Signal and noise of the gradient in smaller groups, from the same completions.

The G completions of a prompt are cut into G/G′ groups of G′, each with advantages of its own. Two
groups of one prompt share the prompt and nothing else, so what they have in common beyond two
prompts' is the prompt's part of the noise, which no number of completions takes away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpolab.probe.gradients import Slopes, alike, squares_of
from grpolab.probe.passes import Outputs, Passes
from grpolab.probe.records import Reading
from grpolab.probe.rollouts import Pool
from grpolab.probe.source import State
from grpolab.probe.summary import slopes_of
from grpolab.rollouts import Rollouts

Read = Callable[[Reading, Tensor], None]
"""Fills in a reading's slopes, given its rows' places."""


def regrouped(rollouts: Rollouts, size: int) -> Rollouts:
    """The same completions in groups of `size`, a divisor of their own; not yet read."""
    times = rollouts.group_size // size
    assert rollouts.rewards is not None
    greedy = rollouts.greedy_rewards
    return replace(
        rollouts,
        group_size=size,
        prompt_index=rollouts.prompt_index.repeat_interleave(times),
        ages=rollouts.ages.repeat_interleave(times),
        prompts=[p for p in rollouts.prompts for _ in range(times)],
        rewards=rollouts.rewards.reshape(-1, size),
        reward_parts={k: v.reshape(-1, size) for k, v in rollouts.reward_parts.items()},
        greedy_rewards=None if greedy is None else greedy.repeat_interleave(times),
        advantages=None,
        kl_penalty=None,
    )


def by_size(
    readings: Sequence[Reading], pool: Pool, state: State, sizes: Sequence[int], read: Read
) -> list[dict[str, Any]]:
    """Of each arm and group size what one group of that size is worth: arm, group_size, signal
    |E g|², noise E|g − E g|², snr, and the share of the noise that the prompts make."""
    found = []
    for size in sizes:
        smaller = [Reading(r.arm, regrouped(r.rollouts, size), r.beta) for r in readings]
        for reading, places in zip(smaller, pool.places, strict=True):
            read(reading, places)
        passes = Passes(pool.rows)
        arms = slopes_of(smaller, pool, state)
        owner, scale, _ = alike([arm.pooled(*pool.rows.mask.shape) for arm in arms])
        known: dict[int, Moments] = {}
        for reading, first, factor in zip(smaller, owner, scale, strict=True):
            if first not in known:
                known[first] = moments(passes, arms[first], size)
            found.append({"arm": reading.arm.name, "group_size": size, **known[first].row(factor)})
    return found


@dataclass(frozen=True)
class Moments:
    """Of the gradient of one group."""

    mean: float
    """|E g|²."""
    prompt: float
    """E_p |E[g | prompt]|²."""
    square: float
    """E |g|²."""

    def row(self, scale: float) -> dict[str, float]:
        """As a line of the table, for slopes so many times these."""
        noise = self.square - self.mean
        return {
            "signal": scale**2 * self.mean,
            "noise": scale**2 * noise,
            "snr": self.mean / noise if noise > 0 else math.nan,
            "prompt_share": (self.prompt - self.mean) / noise if noise > 0 else math.nan,
        }


def moments(passes: Passes, arm: Slopes, size: int) -> Moments:
    """Unbiased, from the squares of sums: over everything, over each prompt, over each group."""
    prompt = passes.prompt[arm.places]
    groups = torch.arange(len(arm.places)) // size
    whole, by_prompt, by_group, pairs, counts = None, 0.0, 0.0, 0.0, []
    for p in sorted(set(prompt.tolist())):
        own = None
        numbers = sorted(set(groups[prompt == p].tolist()))
        for g in numbers:
            rows = (groups == g).nonzero()[:, 0]
            if not any(bool(v[rows].any()) for v in arm.by_output.values()):
                continue
            gradient = passes.vjps(arm.forward, *_together(arm, rows))[0]
            by_group += float(squares_of(gradient.unsqueeze(0)))
            own = gradient if own is None else own.add_(gradient)
        counts.append(len(numbers))
        pairs += len(numbers) * (len(numbers) - 1)
        if own is not None:
            by_prompt += float(squares_of(own.unsqueeze(0)))
            whole = own if whole is None else whole.add_(own)
    total = 0.0 if whole is None else float(squares_of(whole.unsqueeze(0)))
    n = sum(counts)
    across = n**2 - sum(c**2 for c in counts)
    return Moments(
        (total - by_prompt) / across if across else math.nan,
        (by_prompt - by_group) / pairs if pairs else math.nan,
        by_group / n,
    )


def _together(arm: Slopes, rows: Tensor) -> tuple[Tensor, list[Outputs]]:
    """(the unique rows behind some of an arm's, their slopes as one cotangent)."""
    places, inverse = torch.unique(arm.places[rows], return_inverse=True)
    own = Slopes(inverse, {n: v[rows] for n, v in arm.by_output.items()}, arm.forward)
    return places, [own.pooled(len(places), arm.by_output["logps"].shape[1])]
