"""GRPO Lab's update on recorded completions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpolab.policy.policy import Policy
from grpolab.rollouts import Rollouts
from grpolab.training.update import Updater

from .recorded import BATCHES, END, GROUP, LIMIT, PROMPTS, Batch

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

COMMON = {
    "sampler.group_size": GROUP,
    "sampler.max_new_tokens": LIMIT,
    "prompts_per_step": PROMPTS,
    "steps": BATCHES,
    "hardware.tokens_per_microbatch": 90,
}
"""What all cases share: about four micro-batches, other ones than TRL's."""


def train(
    model: str,
    batches: Sequence[Batch],
    overrides: Mapping[str, object],
    *,
    dtype: torch.dtype,
    adjust: Callable[[Updater], None] | None = None,
    first_step: int = 0,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """(parameters after all batches, each batch's metrics)."""
    chosen = {"model.name": model, **COMMON, **overrides}
    run = lab.run_of(*(f"{key}={v}" for key, v in chosen.items() if v is not None))
    policy = lab.policy_of(run)
    if dtype == torch.float64:
        policy = lab.double(policy)
    updater = Updater(run, policy)
    if adjust is not None:
        adjust(updater)
    beta = getattr(run.kl, "beta", 0.0)
    metrics = []
    for step, batch in enumerate(batches, start=first_step):
        rollouts = as_rollouts(batch, policy, dtype)
        updater.score_logps(rollouts, beta)
        rollouts.advantages = updater.advantages(rollouts, None)
        metrics.append(updater.update(rollouts, step, beta))
        updater.forward.move_reference(step + 1)
    return {n: p.detach().clone() for n, p in policy.model.named_parameters()}, metrics


def as_rollouts(batch: Batch, policy: Policy, dtype: torch.dtype) -> Rollouts:
    """A recorded batch as the sampler and the reward would hand it on."""
    prompts = [ids for ids in policy.encoder.encode(batch.prompts) for _ in range(GROUP)]
    lengths = torch.tensor([len(ids) for ids in batch.completions])
    reported = padded(batch.sampler_logps, LIMIT).to(dtype)
    parts = {
        label: torch.tensor([math.nan if r is None else r for r in scores], dtype=dtype)
        for label, scores in batch.rewards.items()
    }
    parts = {label: scores.reshape(PROMPTS, GROUP) for label, scores in parts.items()}
    return Rollouts(
        prompt_ids=padded(prompts, max(map(len, prompts))),
        prompt_lengths=torch.tensor([len(ids) for ids in prompts]),
        completion_ids=padded(batch.completions, LIMIT),
        mask=torch.arange(LIMIT) < lengths.unsqueeze(1),
        group_size=GROUP,
        prompt_index=torch.arange(PROMPTS),
        truncated=torch.tensor([ids[-1] != END for ids in batch.completions]),
        sampler_logps=reported,
        sampler_policy_logps=reported,
        rewards=next(iter(parts.values())),
        reward_parts=parts,
    )


def padded(rows: Sequence[Sequence[float]], width: int) -> Tensor:
    """[n, width], padded with 0 on the right."""
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
