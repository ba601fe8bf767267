"""Prompts to fresh rollouts, in as many calls of the sampler as its memory asks for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from grpolab.policy.policy import Policy
from grpolab.rollouts import Rollouts, concatenate
from grpolab.sampling.base import Draw, Sampler
from grpolab.training.failures import TrainingFailed
from grpolab.training.memory import is_out_of_memory, problem_of
from grpolab.training.ranks import Ranks


@dataclass
class Room:
    """How many prompts a call of the sampler takes; running out of memory halves it for the rest
    of the run."""

    prompts: int | None = None
    """None: all of them."""

    def at_once(self, prompts: int) -> int:
        """Of so many, those that one call takes."""
        return prompts if self.prompts is None else min(self.prompts, prompts)

    def halve(self, prompts: int) -> bool:
        """After a call with so many did not fit; False where it was a single one."""
        if prompts <= 1:
            return False
        self.prompts = prompts // 2
        return True


def sample_part(
    ranks: Ranks,
    sampler: Sampler,
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    draw: Draw,
    room: Room,
) -> Rollouts | None:
    """This rank's groups of a draw, the same as if one process had drawn all of them; None where
    it has no group."""
    own = ranks.part(len(prompts))
    if own.start == own.stop:
        return None
    if ranks.alone or sampler.splits:
        draw = replace(draw, first=own.start, total=len(prompts))
        return sample_rollouts(sampler, policy, prompts[own], draw, room)
    whole = sample_rollouts(sampler, policy, prompts, draw, room)
    places = torch.arange(len(prompts), device=policy.device)
    return whole.keep_groups((places >= own.start) & (places < own.stop))


def sample_rollouts(
    sampler: Sampler,
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    draw: Draw,
    room: Room | None = None,
) -> Rollouts:
    """A fresh record of the completions of some prompts.

    Out of memory, a sampler that `splits` begins again with half the prompts a call, and the same
    noise. With another the run ends.

    Raises:
        TrainingFailed: a single group does not fit, or the sampler does not split.
    """
    room = Room() if room is None else room
    while True:
        try:
            return _in_calls(sampler, policy, prompts, draw, room)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            attempted = room.at_once(len(prompts))
            if not (sampler.splits and room.halve(attempted)):
                raise TrainingFailed(
                    f"out of memory while sampling {attempted} groups at once with "
                    f"sampler={sampler.name}; {_advice(sampler)}"
                ) from error
            problem = problem_of(error)
        # behind the handler: the traceback holds on to the tensors of the failed call
        warnings.warn(
            f"out of memory while sampling ({problem}); it goes on with {room.prompts} prompts a "
            "call",
            stacklevel=2,
        )


def _advice(sampler: Sampler) -> str:
    if sampler.splits:
        return "a smaller sampler.group_size or sampler.max_new_tokens needs less"
    return "a smaller prompts_per_step needs less, and sampler=static would split the call"


def _in_calls(
    sampler: Sampler,
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    draw: Draw,
    room: Room,
) -> Rollouts:
    size = room.at_once(len(prompts))
    total = draw.total or len(prompts)
    parts = [
        _one_call(
            sampler,
            policy,
            prompts[start : start + size],
            replace(draw, first=draw.first + start, total=total),
        )
        for start in range(0, len(prompts), size)
    ]
    found = concatenate(parts)
    found.prompt_index = torch.arange(len(prompts), device=policy.device)
    return found


def _one_call(
    sampler: Sampler, policy: Policy, prompts: Sequence[Sequence[int]], draw: Draw
) -> Rollouts:
    samples = sampler(policy, prompts, draw)
    lengths = torch.tensor([len(p) for p in prompts])
    ids = torch.full((len(prompts), int(lengths.max())), policy.pad_id)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(list(prompt))
    return Rollouts(
        prompt_ids=ids.repeat_interleave(draw.samples, 0).to(policy.device),
        prompt_lengths=lengths.repeat_interleave(draw.samples).to(policy.device),
        completion_ids=samples.completion_ids,
        mask=samples.mask,
        group_size=draw.samples,
        prompt_index=torch.arange(len(prompts), device=policy.device),
        truncated=samples.truncated,
        texts=policy.encoder.decode(samples.completion_ids, samples.mask),
        sampler_logps=samples.sampler_logps,
        sampler_policy_logps=samples.policy_logps,
    )
