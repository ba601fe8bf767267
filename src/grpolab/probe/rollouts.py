"""The same completions for every arm, and the unique rows among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grpolab.config import Run
from grpolab.policy.policy import Policy
from grpolab.probe.table import SharedForward, Table
from grpolab.rollouts import Rollouts
from grpolab.tasks.base import Examples
from grpolab.training.clock import Clock
from grpolab.training.collect import Collector, encode_examples
from grpolab.training.draw import Room
from grpolab.training.ranks import ALONE
from grpolab.training.replay import ReplayBuffer


class SharedCollector(Collector):
    """Training's collector for one arm; what it samples is kept for the others."""

    def __init__(
        self, run: Run, policy: Policy, examples: Examples, memory: dict[Any, Any]
    ) -> None:
        self.run, self.policy, self.examples, self.ranks = run, policy, examples, ALONE
        self.clock, self.memory, self.room = Clock(), memory, Room()
        if "encoded" not in memory:
            memory["encoded"] = encode_examples(policy.encoder, examples.train)
        self._encoded = memory["encoded"]
        self.buffer = ReplayBuffer(run.selection) if run.selection.replays else None

    def _sample(self, indices: Sequence[int], step: int, round_: int) -> Rollouts | None:
        key = (tuple(indices), step, round_)
        if key not in self.memory:
            self.memory[key] = super()._sample(indices, step, round_)
        found: Rollouts = self.memory[key]
        return replace(found, reward_parts={})


@dataclass
class Pool:
    """The unique rows (prompt, completion) of all arms, each a group of its own."""

    rows: Rollouts
    places: list[Tensor]
    """Of each arm's rows [N]."""


def make_pool(batches: Sequence[Rollouts]) -> Pool:
    """The unique rows of some batches."""
    known: dict[tuple[Any, ...], int] = {}
    chosen: list[tuple[list[int], list[int]]] = []
    places = []
    for batch in batches:
        prompts = zip(batch.prompt_ids.tolist(), batch.prompt_lengths.tolist(), strict=True)
        prompt_rows = [ids[:n] for ids, n in prompts]
        own = []
        for prompt, completion in zip(prompt_rows, batch.completion_tokens(), strict=True):
            key = (tuple(prompt), tuple(completion))
            if key not in known:
                known[key] = len(chosen)
                chosen.append((prompt, completion))
            own.append(known[key])
        places.append(torch.tensor(own))
    device = batches[0].mask.device
    return Pool(_as_rollouts(chosen, device), places)


def _as_rollouts(rows: Sequence[tuple[list[int], list[int]]], device: torch.device) -> Rollouts:
    lengths = torch.tensor([len(p) for p, _ in rows])
    sizes = torch.tensor([len(c) for _, c in rows])
    prompts = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    completions = torch.zeros(len(rows), max(1, int(sizes.max())), dtype=torch.long)
    for i, (prompt, completion) in enumerate(rows):
        prompts[i, : len(prompt)] = torch.tensor(prompt)
        completions[i, : len(completion)] = torch.tensor(completion, dtype=torch.long)
    mask = torch.arange(completions.shape[1]) < sizes.unsqueeze(1)
    nothing = torch.zeros(completions.shape)
    return Rollouts(
        prompts, lengths, completions, mask, 1, torch.arange(len(rows)),
        torch.zeros(len(rows), dtype=torch.bool),
        sampler_logps=nothing, sampler_policy_logps=nothing,
    ).to(device)  # fmt: skip


@torch.no_grad()
def make_table(
    run: Run, policy: Policy, reference: Any, pool: Rollouts, needs: set[str], *, ref: bool
) -> Table:
    """Forward passes over a pool.

    Args:
        run: any arm's whose KL needs what `needs` says, since it decides what is kept.
        needs: of collision, logits, whole.
        ref: whether the reference is run too.
    """
    forward = SharedForward(run, policy, reference)
    table = Table({})
    for rows, width in forward.microbatches(pool, torch.arange(len(pool))):
        part = forward.part(pool, rows, width)
        now = forward.logps(part, collision="collision" in needs)
        values = {"logps": now.logps, "entropy": now.entropy, "collision": now.collision}
        values |= {"logits": now.logits, "whole": now.whole if "whole" in needs else None}
        _fill(table.now, values, pool, rows, width)
        if ref:
            if reference is not None:
                base = forward.logps(part, reference)
            else:
                with policy.base_weights() as model:
                    base = forward.logps(part, model)
            _fill(table.ref, {"logps": base.logps, "logits": base.logits}, pool, rows, width)
    return table


def _fill(
    into: dict[str, Tensor], values: dict[str, Any], pool: Rollouts, rows: Tensor, width: int
) -> None:
    for name, value in values.items():
        if value is None:
            continue
        if name not in into:
            into[name] = value.new_zeros(*pool.mask.shape, *value.shape[2:])
        into[name][rows, :width] = value
