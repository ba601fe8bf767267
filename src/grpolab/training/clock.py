"""Where a step's seconds go, by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PHASES = ("sample", "score", "logps", "backward", "optimizer", "log")
"""Sampling; scoring; log-probs before the update (old, reference, a clip's plan); loss and
backward; the optimizer's step with the copy to the sampler; metrics and samples written."""


class Clock:
    """Seconds by phase since the last `reset`. A phase inside another counts for itself alone.

    Args:
        wait: called where a phase begins and ends, so that a device that works behind the program
            has finished (`torch.cuda.synchronize`). A run leaves it out: waiting costs time.
    """

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        self.wait = wait
        self.reset()

    def reset(self) -> None:
        """Starts a step."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._running: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._turn()
        self._running.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def _turn(self) -> None:
        """Books the time since the last turn on whichever phase is running."""
        if self.wait is not None:
            self.wait()
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
