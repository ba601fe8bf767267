"""The record that flows through a step: it gains fields and never goes back."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

PER_GROUP = ("prompt_index", "greedy_rewards", "ages")
"""Fields [P]."""
PER_MEMBER = ("rewards", "advantages")
"""Fields [P, G]; advantages may be [N, T] instead."""
FILLED = ("old_logps", "collision", "sampler_logps", "sampler_policy_logps")
"""Fields [N, T] that some batches may lack when they are joined; they are NaN there."""


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
    """[N, T] under the distribution that the trainer evaluates: by default the policy itself."""
    old_logps: Tensor | None = None
    """[N, T] under the policy that generated the batch, recomputed by the trainer."""
    ref_logps: Tensor | None = None
    """[N, T] under the reference policy."""
    rewards: Tensor | None = None
    """[P, G]; NaN is unscorable."""
    reward_parts: dict[str, Tensor] = field(default_factory=dict)
    """{name: [P, G]} before weights."""
    greedy_rewards: Tensor | None = None
    """[P] of the prompt's greedy completion, where the advantage compares with it."""
    ages: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """[P] steps since a group was generated; 0 unless it was replayed."""
    kl_penalty: Tensor | None = None
    """[N, T] β·KL per token, where the KL stands in the reward."""
    collision: Tensor | None = None
    """[N, T] Σ_v π(v)² at each position, under the policy that generated the batch."""
    advantages: Tensor | None = None
    """[P, G], or [N, T] from a token-level estimator."""

    def __post_init__(self) -> None:
        if len(self.ages) != self.groups:
            self.ages = torch.zeros(self.groups, dtype=torch.long, device=self.mask.device)

    def __len__(self) -> int:
        return self.completion_ids.shape[0]

    @property
    def groups(self) -> int:
        return len(self) // self.group_size

    @property
    def lengths(self) -> Tensor:
        """[N] valid tokens of each completion."""
        return self.mask.sum(dim=1)

    def completion_tokens(self) -> list[list[int]]:
        """N lists of token ids, without the padding."""
        rows = zip(self.completion_ids.tolist(), self.lengths.tolist(), strict=True)
        return [ids[:length] for ids, length in rows]

    def advantage_rows(self) -> Tensor:
        """The advantages as [N, 1] or [N, T], for broadcasting against tokens."""
        if self.advantages is None:
            raise ValueError("the rollouts have no advantages yet")
        if self.advantages.shape == (self.groups, self.group_size):
            return self.advantages.reshape(-1, 1)
        return self.advantages

    def keep_groups(self, keep: Tensor) -> Rollouts:
        """The groups where `keep` [P] is true."""
        return self.keep(keep.unsqueeze(1).expand(-1, self.group_size))

    def keep(self, members: Tensor) -> Rollouts:
        """The rows where `members` [P, G] is true: of each group none, or as many as of any other.

        Raises:
            ValueError: the groups would differ in size.
        """
        counts = members.sum(dim=1)
        groups = counts > 0
        sizes = set(counts[groups].tolist())
        if len(sizes) > 1:
            raise ValueError(f"groups of different sizes: {sorted(sizes)}")
        size = sizes.pop() if sizes else self.group_size
        rows = members.flatten()
        chosen = groups.nonzero().flatten().tolist()
        row_list = rows.nonzero().flatten().tolist()
        changed: dict[str, object] = {
            "group_size": size,
            "prompts": [self.prompts[i] for i in chosen] if self.prompts else [],
            "texts": [self.texts[i] for i in row_list] if self.texts else [],
            "reward_parts": {k: v[members].reshape(-1, size) for k, v in self.reward_parts.items()},
        }
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, Tensor):
                continue
            if item.name in PER_GROUP:
                changed[item.name] = value[groups]
            elif value.shape == members.shape and item.name in PER_MEMBER:
                changed[item.name] = value[members].reshape(-1, size)
            else:
                changed[item.name] = value[rows]
        return replace(self, **changed)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Rollouts:
        """The same record on a device."""
        changed: dict[str, object] = {
            item.name: value.to(device)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        parts = {name: value.to(device) for name, value in self.reward_parts.items()}
        return replace(self, reward_parts=parts, **changed)  # type: ignore[arg-type]


def concatenate(batches: list[Rollouts]) -> Rollouts:
    """Several batches of groups of one size as one, padded to the widest; empty ones do not count.

    Raises:
        ValueError: only some have a field that is not one of `FILLED`, or the group sizes differ.
    """
    batches = [b for b in batches if b.groups] or batches[:1]
    first = batches[0]
    if len(batches) == 1:
        return first
    sizes = sorted({b.group_size for b in batches})
    if len(sizes) > 1:
        raise ValueError(f"cannot join groups of different sizes: {sizes}")
    changed: dict[str, object] = {
        "prompts": [p for b in batches for p in b.prompts],
        "texts": [t for b in batches for t in b.texts],
        "reward_parts": {
            k: torch.cat([b.reward_parts[k] for b in batches]) for k in first.reward_parts
        },
    }
    for item in fields(first):
        values = [getattr(b, item.name) for b in batches]
        known = next((v for v in values if isinstance(v, Tensor)), None)
        if item.name in FILLED and known is not None:
            values = [
                known.new_full(b.mask.shape, torch.nan) if v is None else v
                for v, b in zip(values, batches, strict=True)
            ]
        if all(isinstance(v, Tensor) for v in values):
            changed[item.name] = _cat_padded(values)
        elif known is not None:
            raise ValueError(f"cannot join rollouts of which only some have {item.name}")
    return replace(first, **changed)  # type: ignore[arg-type]


def _cat_padded(values: list[Tensor]) -> Tensor:
    if values[0].dim() < 2:
        return torch.cat(values)
    width = max(v.shape[1] for v in values)
    return torch.cat([torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in values])
