"""Memory of an update: how many tokens fit into a budget, what running out of it looks like, and
what becomes of memory that was freed."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path

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


def problem_of(error: BaseException) -> str:
    """An error's first line, or its type where it says nothing, as Python's MemoryError does."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def token_budget(hardware: Hardware, policy: Policy) -> int:
    """Tokens of a micro-batch: `tokens_per_microbatch`, or fewer where `memory_budget` asks so."""
    if hardware.memory_budget is None:
        return hardware.tokens_per_microbatch
    fits = int(hardware.memory_budget * 2**30 / policy.bytes_per_token())
    return max(1, min(hardware.tokens_per_microbatch, fits))


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT = (2**30, 2**31 - 1)
"""Bytes: blocks smaller than this, and so many that were freed at the heap's end, stay."""


def keep_freed_memory(limits: tuple[int, int] = KEPT) -> bool:
    """Lets this process use again what it freed, where the C library is glibc; whether it is.

    By default glibc returns each block of some megabytes to the system as soon as a tensor is
    freed, and the next tensor of that size is given pages that the kernel has to clear first: half
    a million page faults a step of SmolLM2, up to a quarter of its time. The peak stays as it was;
    after it, the process keeps what it had.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    # versions before 2.34 or so allow 32 MiB at most, and say 0 to more
    blocks = mallopt(M_MMAP_THRESHOLD, limits[0]) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(mallopt(M_TRIM_THRESHOLD, limits[1]) and blocks)


GROWTH = 1.2  # a process this much larger than after its second step gives freed memory back


class Heap:
    """Bounds what gaps between tensors add to a process that keeps freed memory."""

    def __init__(self) -> None:
        self.settling, self.usual = 2, 0  # the first step makes the optimizer's state

    def after_step(self) -> None:
        """Gives back what is free, where there is too much of it. What the step after that holds is
        usual from then on: a run that needs more than at first is not trimmed at every step."""
        now = resident()
        if self.settling:
            self.settling -= 1
            self.usual = max(self.usual, now)
        elif now > GROWTH * self.usual:
            self.settling = 1
            give_back()


def give_back() -> None:
    """Returns freed memory to the system, where the C library is glibc."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * mmap.PAGESIZE
