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
    if hardware.memory_budget is None:
        return hardware.tokens_per_microbatch
    fits = int(hardware.memory_budget * 2**30 / policy.bytes_per_token())
    return max(1, min(hardware.tokens_per_microbatch, fits))
