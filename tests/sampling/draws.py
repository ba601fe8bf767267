"""Samples as the tests of this folder ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpolab.component import component, names
from grpolab.policy.policy import Policy
from grpolab.sampling.base import Draw, Samples

PROMPTS = ["47+85=", "3+4=", "99+1=", "7+60="]
SAMPLERS = names("sampler")


def sample(
    policy: Policy,
    name: str = "static",
    *,
    prompts: Sequence[str] = PROMPTS,
    samples: int = 4,
    greedy: bool = False,
    seed: int = 0,
    indices: tuple[int, ...] = (0, 0),
    **settings: Any,
) -> Samples:
    """What a sampler draws for some prompts; at most 20 tokens each unless told."""
    sampler = component("sampler", name, **{"max_new_tokens": 20, **settings})
    draw = Draw(seed, indices, samples, greedy)
    samples_: Samples = sampler(policy, policy.encoder.encode(prompts), draw)
    return samples_
