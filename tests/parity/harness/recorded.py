"""The fixed completions and rewards that both trainers learn from."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

PROMPTS, GROUP, LIMIT, BATCHES = 4, 4, 12, 3
"""Prompts per batch, completions per prompt, token limit of a completion, batches."""
END, FIRST, LAST = 2, 3, 57
"""The end token, and the range of the others."""
LENGTHS = [1, 2, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12, 12]
"""Tokens of a batch's completions, in an order of its own; those of 12 were truncated."""
PARTS = ("first", "second")
"""Labels of the rewards."""


@dataclass(frozen=True)
class Batch:
    """One batch of groups, prompt-major."""

    prompts: list[str]
    completions: list[list[int]]
    """Token ids; an end token closes those that were not truncated."""
    rewards: dict[str, list[float | None]]
    """By label; None is unscorable. Cases with one reward read the first."""
    sampler_logps: list[list[float]]
    """What the sampler says of each token; 0 where nobody reads it."""


def recorded(*, one_prompt_length: bool, unscorable: bool, parts: bool) -> list[Batch]:
    """Random batches, the same every time.

    Args:
        one_prompt_length: all prompts are equally long; otherwise of 4 to 6 tokens.
        unscorable: one reward of the first group is None, and all but one of the last.
        parts: with the second reward.
    """
    source = random.Random(0)
    made = [_batch(source, one_prompt_length, unscorable) for _ in range(BATCHES)]
    if parts:
        return made
    return [replace(b, rewards={PARTS[0]: b.rewards[PARTS[0]]}) for b in made]


def _batch(source: random.Random, one_prompt_length: bool, unscorable: bool) -> Batch:
    sums = [(source.randint(1, 9), source.randint(1, 9)) for _ in range(PROMPTS)]
    tens = [(1, 1)] * PROMPTS if one_prompt_length else [(0, 0), (1, 0), (1, 1), (0, 1)]
    prompts = [f"{a * 10**i}+{b * 10**j}=" for (a, b), (i, j) in zip(sums, tens, strict=True)]
    lengths = LENGTHS.copy()
    source.shuffle(lengths)
    completions = [[source.randint(FIRST, LAST) for _ in range(n)] for n in lengths]
    for ids in completions:
        if len(ids) < LIMIT:
            ids[-1] = END
    # eighths are exact in float32, in which TRL keeps rewards
    scores: dict[str, list[float | None]] = {
        label: [source.randint(-8, 8) / 8 for _ in lengths] for label in PARTS
    }
    first = scores[PARTS[0]]
    first[GROUP : 2 * GROUP] = [0.5] * GROUP  # a group with nothing to learn from
    if unscorable:
        first[0] = None
        first[-GROUP:-1] = [None] * (GROUP - 1)
    return Batch(prompts, completions, scores, [[0.0] * len(ids) for ids in completions])
