"""What the environment says of the processes that were started together, as torchrun sets it."""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes train one run; 1 unless they were started by torchrun or its like."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def leads() -> bool:
    """Whether this process is the first of them, which writes and speaks."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"
