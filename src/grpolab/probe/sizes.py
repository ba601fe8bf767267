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

import numpy as np
import torch
from torch import Tensor

from grpolab.probe import measures
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
    """Of each arm and group size, its own last, what one group of that size is worth.

    arm, group_size, groups; signal |E g|², noise E|g − E g|², snr, the share of the noise that the
    prompts make, each with its jackknife standard error over prompts.
    """
    found = []
    whole = {r.rollouts.group_size for r in readings}
    for size in sorted({*sizes, *whole}):
        chosen = [i for i, r in enumerate(readings) if r.rollouts.group_size % size == 0]
        smaller = [
            Reading(r.arm, regrouped(r.rollouts, size), r.beta)
            for r in (readings[i] for i in chosen)
        ]
        own = Pool(pool.rows, [pool.places[i] for i in chosen])
        for reading, places in zip(smaller, own.places, strict=True):
            read(reading, places)
        passes = Passes(pool.rows)
        arms = slopes_of(smaller, own, state)
        owner, scale, _ = alike([arm.pooled(*pool.rows.mask.shape) for arm in arms])
        known: dict[int, Terms] = {}
        for reading, first, factor in zip(smaller, owner, scale, strict=True):
            if first not in known:
                known[first] = terms(passes, arms[first], size)
            row = known[first].row(factor)
            found.append({"arm": reading.arm.name, "group_size": size, **row})
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


@dataclass(frozen=True)
class Terms:
    """Of the gradient G = Σ_p G_p of an arm, G_p = Σ_g g over the prompt's groups; [P] each."""

    counts: measures.Array
    """Groups of each prompt."""
    groups: measures.Array
    """Σ_g |g|²."""
    prompts: measures.Array
    """|G_p|²."""
    along: measures.Array
    """⟨G_p, G⟩."""

    def moments(self, without: int | None = None) -> Moments:
        """Unbiased, of all prompts or of all but one."""
        kept = np.arange(len(self.counts)) != (-1 if without is None else without)
        total = float(self.along.sum())
        if without is not None:
            total -= float(2 * self.along[without] - self.prompts[without])
        counts, prompts = self.counts[kept], float(self.prompts[kept].sum())
        groups, n = float(self.groups[kept].sum()), float(counts.sum())
        across, pairs = n**2 - float((counts**2).sum()), float((counts * (counts - 1)).sum())
        return Moments(
            (total - prompts) / across if across else math.nan,
            (prompts - groups) / pairs if pairs else math.nan,
            groups / n if n else math.nan,
        )

    def row(self, scale: float) -> dict[str, float]:
        """As a line of the table, with standard errors."""
        left = [self.moments(p).row(scale) for p in range(len(self.counts))]
        found = {"groups": float(self.counts.sum()), **self.moments().row(scale)}
        for name in left[0]:
            values = np.array([row[name] for row in left])
            found[f"{name}_error"] = float(measures.jackknife_error(values))
        return found


def terms(passes: Passes, arm: Slopes, size: int) -> Terms:
    """The squares of an arm's gradients of groups of `size` and of prompts, one of them in memory
    at a time beside the whole; then a forward-mode pass along the whole."""
    prompt = passes.prompt[arm.places]
    groups = torch.arange(len(arm.places)) // size
    learns = torch.stack([v.flatten(1).any(dim=1) for v in arm.by_output.values()]).any(dim=0)
    numbers = sorted(set(prompt.tolist()))
    counts, squares, prompts = np.zeros((3, len(numbers)))
    whole = None
    for i, p in enumerate(numbers):
        own = None
        members = sorted(set(groups[prompt == p].tolist()))
        counts[i] = len(members)
        for g in members:
            rows = (groups == g).nonzero()[:, 0]
            if not bool(learns[rows].any()):
                continue
            gradient = passes.vjps(arm.forward, *_together(arm, rows))[0]
            squares[i] += float(squares_of(gradient.unsqueeze(0)))
            own = gradient if own is None else own.add_(gradient)
        if own is not None:
            prompts[i] = float(squares_of(own.unsqueeze(0)))
            whole = own if whole is None else whole.add_(own)
    along = np.zeros(len(numbers))
    if whole is not None:
        by_row = _along(passes, arm, learns.nonzero()[:, 0], whole)
        for i, p in enumerate(numbers):
            along[i] = float(by_row[passes.prompt == p].sum())
    return Terms(counts, squares, prompts, along)


def _along(passes: Passes, arm: Slopes, rows: Tensor, gradient: Tensor) -> Tensor:
    """[U] the inner product of each unique row's term with a gradient; some of the arm's rows."""
    places, (slopes,) = _together(arm, rows)
    found = torch.zeros(len(passes.prompt), dtype=torch.float64)
    for at, outputs in passes.jvp(arm.forward, places, gradient):
        for name, slope in slopes.items():
            own = slope[at, : outputs[name].shape[1]] * outputs[name]
            found[places[at]] += own.flatten(1).sum(dim=1)
    return found


def _together(arm: Slopes, rows: Tensor) -> tuple[Tensor, list[Outputs]]:
    """(the unique rows behind some of an arm's, their slopes as one cotangent)."""
    places, inverse = torch.unique(arm.places[rows], return_inverse=True)
    own = Slopes(inverse, {n: v[rows] for n, v in arm.by_output.items()}, arm.forward)
    return places, [own.pooled(len(places), arm.by_output["logps"].shape[1])]
