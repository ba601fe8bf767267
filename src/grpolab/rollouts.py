"""The record that flows through a step: it gains fields and never goes back."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor


@dataclass
class Rollouts:
    """N = P·G completions, prompt-major: rows g·G … g·G+G−1 answer prompt g.

    Padding stands on the right everywhere; a masked position's values mean nothing.
    """

    prompt_ids: Tensor
    """[N, S] tokens of the prompts."""
    prompt_lengths: Tensor
    """[N] tokens of each prompt."""
    completion_ids: Tensor
    """[N, T] sampled tokens; the end token, where there is one, is the last valid token."""
    mask: Tensor
    """[N, T] bool, true on the tokens that were sampled (the end token included)."""
    group_size: int
    prompt_index: Tensor
    """[P] which training example each group answers."""
    truncated: Tensor
    """[N] bool, true where the token limit came before an end token."""
    prompts: list[str] = field(default_factory=list)
    """P texts."""
    texts: list[str] = field(default_factory=list)
    """N completions, decoded without special tokens."""
    sampler_logps: Tensor | None = None
    """[N, T] log-probabilities under the distribution that was sampled from."""
    sampler_policy_logps: Tensor | None = None
    """[N, T] the same tokens under the sampler's untempered, untruncated policy."""
    old_logps: Tensor | None = None
    """[N, T] under the policy that generated the batch, recomputed by the trainer."""
    ref_logps: Tensor | None = None
    """[N, T] under the reference policy."""
    rewards: Tensor | None = None
    """[P, G]; NaN is unscorable."""
    reward_parts: dict[str, Tensor] = field(default_factory=dict)
    """{name: [P, G]} before weights."""
    advantages: Tensor | None = None
    """[P, G], or [N, T] from a token-level estimator."""

    def __len__(self) -> int:
        return self.completion_ids.shape[0]

    @property
    def groups(self) -> int:
        return len(self) // self.group_size

    @property
    def lengths(self) -> Tensor:
        """[N] valid tokens of each completion."""
        return self.mask.sum(dim=1)

    def advantage_rows(self) -> Tensor:
        """The advantages as [N, 1] or [N, T], for broadcasting against tokens."""
        if self.advantages is None:
            raise ValueError("the rollouts have no advantages yet")
        if self.advantages.shape == (self.groups, self.group_size):
            return self.advantages.reshape(-1, 1)
        return self.advantages

    def keep_groups(self, keep: Tensor) -> Rollouts:
        """The groups where `keep` [P] is true."""
        rows = keep.repeat_interleave(self.group_size)
        chosen = keep.nonzero().flatten().tolist()
        row_list = rows.nonzero().flatten().tolist()
        changed: dict[str, object] = {
            "prompts": [self.prompts[i] for i in chosen] if self.prompts else [],
            "texts": [self.texts[i] for i in row_list] if self.texts else [],
            "reward_parts": {k: v[keep] for k, v in self.reward_parts.items()},
        }
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = value[rows if value.shape[0] == len(self) else keep]
        return replace(self, **changed)  # type: ignore[arg-type]


def concatenate(batches: list[Rollouts]) -> Rollouts:
    """Several batches of groups as one, padded to the widest."""
    first = batches[0]
    if len(batches) == 1:
        return first
    changed: dict[str, object] = {
        "prompts": [p for b in batches for p in b.prompts],
        "texts": [t for b in batches for t in b.texts],
        "reward_parts": {
            k: torch.cat([b.reward_parts[k] for b in batches]) for k in first.reward_parts
        },
    }
    for item in fields(first):
        values = [getattr(b, item.name) for b in batches]
        if all(isinstance(v, Tensor) for v in values):
            changed[item.name] = _cat_padded(values)
        elif any(isinstance(v, Tensor) for v in values):
            raise ValueError(f"cannot join rollouts of which only some have {item.name}")
    return replace(first, **changed)  # type: ignore[arg-type]


def _cat_padded(values: list[Tensor]) -> Tensor:
    if values[0].dim() < 2:
        return torch.cat(values)
    width = max(v.shape[1] for v in values)
    return torch.cat([torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in values])
