"""What a sampler is: prompts in, G completions each out, with the log-probs they were drawn at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpolab.objective.settings import setting
from grpolab.policy.policy import Policy


@dataclass(frozen=True)
class Draw:
    """One request: which random stream, how many completions per prompt, greedy or sampled."""

    seed: int
    indices: tuple[int, ...]
    """Indices of the "sampling" stream, such as (step, round)."""
    samples: int
    greedy: bool = False


@dataclass
class Samples:
    """N = P·samples completions, prompt-major, padded on the right; on the policy's device."""

    completion_ids: Tensor
    """[N, T]"""
    mask: Tensor
    """[N, T] bool"""
    truncated: Tensor
    """[N] bool: no end token within the limit."""
    sampler_logps: Tensor
    """[N, T] under the distribution sampled from (0 where greedy)."""
    policy_logps: Tensor
    """[N, T] under the untempered, untruncated policy."""


@dataclass(frozen=True)
class Sampler(ABC):
    """Base: the settings all samplers share."""

    group: ClassVar[str] = "sampler"
    name: ClassVar[str]

    group_size: int = setting(8, "G, completions per prompt", ge=1)
    temperature: float = setting(1.0, "logits are divided by it", gt=0)
    top_k: int = setting(0, "only the k likeliest tokens; 0: all", ge=0)
    top_p: float = setting(1.0, "only the likeliest tokens that sum to p; 1: all", gt=0, le=1)
    min_p: float = setting(
        0.0, "only tokens at least so likely relative to the likeliest; 0: all", ge=0, lt=1
    )
    max_new_tokens: int = setting(64, "token limit of a completion", ge=1)

    @abstractmethod
    def __call__(self, policy: Policy, prompts: Sequence[Sequence[int]], draw: Draw) -> Samples:
        """Completions of each prompt's tokens."""

    @property
    def plain(self) -> bool:
        """Whether the distribution sampled from is the policy itself."""
        whole = self.top_k == 0 and self.top_p == 1 and self.min_p == 0
        return whole and self.temperature == 1

    def warp(self, logits: Tensor) -> Tensor:
        """Logits [n, V] of the distribution sampled from, float32: temperature, then top-k,
        top-p and min-p in the order of Transformers' `generate`."""
        logits = logits.float() / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p > 0:
            probabilities = logits.softmax(dim=-1)
            floor = self.min_p * probabilities.amax(dim=-1, keepdim=True)
            logits = logits.masked_fill(probabilities < floor, -torch.inf)
        return logits


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Masks all but the smallest set of likeliest tokens whose probability reaches top_p."""
    ordered, order = logits.sort(dim=-1, descending=False)
    below = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    below[:, -1] = False  # the likeliest token always stays
    return logits.masked_fill(below.scatter(1, order, below), -torch.inf)


def choose(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row [n] by inverse CDF of softmax(logits [n, V]) at uniforms [n].

    1.6 ms where torch.multinomial takes 30 ms (32 × 49,152), and the token is a function of a
    number that was drawn beforehand: devices and batch layouts cannot change the noise.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # u·total may round up to the total
    target = torch.minimum(uniforms.unsqueeze(1).to(cumulative) * total, below)
    # right=True: the first entry *above* the target, so a token of probability 0 is never chosen
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def token_logp(logits: Tensor, tokens: Tensor) -> Tensor:
    """[n] log-probability of tokens [n] under softmax(logits [n, V])."""
    logits = logits.float()
    return logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=-1)


def finish(ids: Tensor, end_ids: Tensor) -> tuple[Tensor, Tensor]:
    """(mask [N, T] up to and including the first end token, truncated [N])."""
    ends = torch.isin(ids, end_ids)
    before = ends.long().cumsum(dim=1) - ends.long()  # ends strictly before a position
    return before == 0, ~ends.any(dim=1)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids [P, S], mask [P, S]) with the padding on the left, as decoding needs it."""
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids, mask
