"""Scores that are begun before they are asked for: of completions that have ended while the sampler
still runs others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from grpolab.tasks.base import Example

T = TypeVar("T")


class Ahead(Generic[T]):
    """Calls in threads, and which of them a completion's score will come from.

    Its threads live from the first call to `forget`, with which a step ends.
    """

    def __init__(self, workers: int) -> None:
        """`workers` calls run at a time."""
        self.workers = workers
        self._threads: ThreadPoolExecutor | None = None
        # the example is kept beside its id, which so remains its own
        self._begun: dict[tuple[str, int], list[tuple[Example, Future[T], int]]] = {}

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Queues a call."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.workers)
        return self._threads.submit(call)

    def begin(self, completion: str, example: Example, call: Callable[[], T]) -> None:
        """Queues the call that gives a completion's score."""
        self.put(completion, example, self.submit(call))

    def begun(
        self, threads: ThreadPoolExecutor, completion: str, example: Example, call: Callable[[], T]
    ) -> Future[T]:
        """The call that was begun for a completion; where none was, in these threads now."""
        found = self.take(completion, example)
        return threads.submit(call) if found is None else found[0]

    def put(self, completion: str, example: Example, future: Future[T], place: int = 0) -> None:
        """Says which call a completion's score will come from, and its place there."""
        self._begun.setdefault((completion, id(example)), []).append((example, future, place))

    def take(self, completion: str, example: Example) -> tuple[Future[T], int] | None:
        """Where its score comes from, said once for each time it was put; None: nowhere yet."""
        begun = self._begun.get((completion, id(example)))
        return begun.pop(0)[1:] if begun else None

    def forget(self) -> None:
        """Drops what was begun: what has not started will not, and what runs is not waited for."""
        self._begun = {}
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
