"""Scores that are begun before they are asked for: of completions that have ended while the sampler
still runs others."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from grpolab.tasks.base import Example

T = TypeVar("T")


class Ahead(Generic[T]):
    """Calls in threads, and which of them a completion's score will come from.

    A reward puts what it begins, takes it when it is asked for the score, and forgets what nobody
    asked for, so that nothing is handed out in another step.
    """

    def __init__(self, workers: int) -> None:
        """`workers` calls run at a time."""
        self.workers, self._owner = workers, os.getpid()
        self._threads = ThreadPoolExecutor(workers)
        # the example is kept beside its id, which so remains its own
        self._begun: dict[tuple[str, int], list[tuple[Example, Future[T], int]]] = {}

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queues a call."""
        if self._owner != os.getpid():  # a forked process has none of the threads
            self.__init__(self.workers)  # type: ignore[misc]
        return self._threads.submit(call)

    def put(self, completion: str, example: Example, future: Future[T], place: int = 0) -> None:
        """Says which call a completion's score will come from, and its place there."""
        self._begun.setdefault((completion, id(example)), []).append((example, future, place))

    def take(self, completion: str, example: Example) -> tuple[Future[T], int] | None:
        """Where its score comes from, said once for each time it was put; None: nowhere yet."""
        begun = self._begun.get((completion, id(example)))
        return begun.pop()[1:] if begun else None

    def forget(self) -> None:
        """Drops what was put and not taken; what of it has not started will not."""
        begun, self._begun = self._begun, {}
        for found in begun.values():
            for _, future, _ in found:
                future.cancel()
