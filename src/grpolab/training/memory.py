"""Memory of an update: how many tokens fit into a budget, and what running out of it looks like."""

from __future__ import annotations

import torch

from grpolab.config import Hardware
from grpolab.policy.policy import Policy

ON_A_CPU = (
    "not enough memory", "can't allocate memory", "could not create a primitive",
    "Cannot allocate memory",
)  # fmt: skip
"""What PyTorch's allocator, oneDNN and the system say on a CPU; they have no exception of their
own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return any(words in text for words in ON_A_CPU)


def token_budget(hardware: Hardware, policy: Policy) -> int:
    """Tokens of a micro-batch: `tokens_per_microbatch`, or fewer where `memory_budget` asks so."""
    asked = hardware.tokens_per_microbatch
    tokens = default_tokens(policy) if asked is None else asked
    if hardware.memory_budget is None:
        return tokens
    fits = int(hardware.memory_budget * 2**30 / policy.bytes_per_token())
    return max(1, min(tokens, fits))


def default_tokens(policy: Policy) -> int:
    """Where nothing is asked for: on a CPU, so many that what a pass keeps is about half of what
    the weights take, or `KEPT` where that is more: memory follows the model and not the batch. A
    GPU needs more rows to be busy."""
    if policy.device.type != "cpu":
        return MOST
    weights: int = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    fits = max(KEPT, weights // 2) // policy.bytes_per_token()
    return min(MOST, max(FEWEST, fits))


KEPT = 2**28
"""Bytes."""
FEWEST = 256
"""Tokens at which a CPU's matrix products run near their full rate."""
MOST = 8192
