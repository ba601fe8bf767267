"""The worker's end of the line: one JSON object in, one out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpolab.bench.cases import Work

Line = dict[str, Any]
STEP = "step"


class Channel:
    """Reads commands from stdin and writes replies to what was stdout. Whatever else the process
    prints goes to stderr, which its log keeps."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def read(self) -> Line | None:
        """The next line, or None where there will be none."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def write(self, content: Line) -> None:
        """One line."""
        self._replies.write(json.dumps(content) + "\n")
        self._replies.flush()


def peak_gib() -> float:
    """Peak memory of this process so far: allocated on CUDA, resident elsewhere.

    On Linux from the process's own status: getrusage would count what the parent held when it
    started this one.
    """
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        from grpolab.training.metrics import peak_memory_gib

        return peak_memory_gib(torch.device("cpu"))
    return int(next(x.split()[1] for x in lines if x.startswith("VmHWM"))) / 2**20


def wait_for(device: str) -> Callable[[], None] | None:
    """What makes the clock wait until a device has finished."""
    import torch

    return torch.cuda.synchronize if device == "cuda" else None


def work_of(spec: Line) -> Work:
    """The work that a worker's first line describes."""
    return Work(**spec["work"])
