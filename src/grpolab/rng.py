"""Named random streams. Every draw comes from a generator derived from (seed, name, indices), so
nothing needs to be stored to resume, and no variant can shift another stream's draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STREAMS = ("init", "prompts", "sampling", "selection", "reward", "dropout")


def derive(seed: int, stream: str, *indices: int) -> int:
    """A 63-bit seed for one draw of a stream, such as `derive(0, "sampling", step)`."""
    if stream not in STREAMS:
        raise ValueError(f"unknown random stream {stream!r}; allowed: {', '.join(STREAMS)}")
    text = "/".join([str(seed), stream, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, stream: str, *indices: int) -> torch.Generator:
    """A CPU generator for one draw: the numbers are the same whatever device uses them."""
    return torch.Generator().manual_seed(derive(seed, stream, *indices))


@contextmanager
def global_stream(seed: int, stream: str, *indices: int) -> Iterator[None]:
    """Runs code that knows only torch's global generator (dropout, `model.generate`) on a stream,
    and leaves the global state as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, stream, *indices))
        yield


def permutation(n: int, seed: int, stream: str, *indices: int) -> list[int]:
    """A permutation of range(n) drawn from a stream."""
    return torch.randperm(n, generator=generator(seed, stream, *indices)).tolist()
