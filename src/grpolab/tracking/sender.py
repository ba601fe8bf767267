"""Metrics on their way to a store that may be slow, locked or away: training never waits for it.

`log` appends to a list. A thread of its own meets the store, sends what has gathered every few
seconds, and keeps what it cannot send. metrics.jsonl has every point in any case, so that what the
store has missed when a run ends (or is killed) can be replayed: `grpolab sync`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from grpolab.tracking.mlflow import MlflowRun, Point, load

NAME = "grpolab-sender"
RETRY_SECONDS = 5.0
FINISH_SECONDS = 15.0
"""For what is left at the end of a run, before it is left to `grpolab sync`."""
IMPORT_SECONDS = 120.0
"""For MLflow's import, where a run ends before it."""


class Sender:
    """The thread between a run and its store.

    Args:
        open_run: meets the store and finds or makes the run; tried until it succeeds.
        flush_seconds: between two sendings.
    """

    def __init__(self, open_run: Callable[[], MlflowRun], flush_seconds: float = 15.0) -> None:
        self.open_run, self.flush_seconds = open_run, flush_seconds
        self.error: str | None = None
        """Of the last try, if it failed."""
        self.seconds = 0.0
        """CPU seconds spent on logging, in the caller and in the thread."""
        self._run: MlflowRun | None = None
        self._waiting: list[Point] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=NAME, daemon=True)
        self._ending = threading.Event()
        self._ended = threading.Event()
        self._deadline = float("inf")
        self._given_up = (
            False  # what is left is `grpolab sync`'s from then on, and never sent twice
        )
        self._last: Callable[[MlflowRun], None] = lambda run: None

    def start(self) -> None:
        """The store is met from now on."""
        if not self._thread.is_alive() and not self._ended.is_set():
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float], at: float | None = None) -> None:
        """A step's metrics, measured at that time (now)."""
        began = time.thread_time()
        with self._lock:
            self._waiting.append(Point(step, metrics, time.time() if at is None else at))
        self.seconds += time.thread_time() - began

    def finish(self, last: Callable[[MlflowRun], None], seconds: float | None = None) -> str | None:
        """Sends the rest, and then does the `last` thing with the run; None, or what kept it from
        that for so long."""
        seconds = FINISH_SECONDS if seconds is None else seconds
        # on a machine that is busy MLflow's import alone may take as long
        importing = threading.Thread(target=load, daemon=True)
        importing.start()
        importing.join(IMPORT_SECONDS)
        self._last, self._deadline = last, time.monotonic() + seconds
        self._ending.set()
        self.start()
        if not self._ended.wait(seconds):
            self._given_up = True
            return self.error or f"the store did not answer for {seconds:.0f} s"
        return self.error

    def send_now(self) -> bool:
        """Sends what has gathered, in the caller; whether that worked."""
        return self._try(ending=False)

    def _work(self) -> None:
        while True:
            ending = self._ending.is_set()
            sent = self._try(ending)
            pause = self.flush_seconds if sent else min(RETRY_SECONDS, self.flush_seconds)
            if not ending:
                self._ending.wait(pause)
            elif sent:
                break
            else:
                time.sleep(min(1.0, pause))
            if self._given_up or time.monotonic() > self._deadline:
                break
        self._ended.set()

    def _try(self, ending: bool) -> bool:
        began = time.thread_time()
        with self._lock:
            batch, self._waiting = self._waiting, []
        try:
            if self._run is None:
                self._run = self.open_run()
            if self._given_up:
                return False
            self._run.send(batch)
            batch = []
            if ending:
                self._last(self._run)
            self.error = None
        except Exception as error:  # whatever a store, its server or the way there may raise
            self.error = f"{type(error).__name__}: {error}"
            with self._lock:
                self._waiting = batch + self._waiting
        self.seconds += time.thread_time() - began
        return self.error is None
