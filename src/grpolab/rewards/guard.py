"""The one place where a reward may fail: what raises or takes too long is NaN for its sample.

The time limit uses SIGALRM in the main thread of a POSIX process: it interrupts Python code, and
`re` while it backtracks. Elsewhere (Windows, a worker thread) the call runs in a thread of its own,
which is interrupted when its time is up if it runs Python code, and left behind if it does not.
Neither can stop a long call into other compiled code; a process can be, see `isolated`.

A call that forks may let its child return as well, which would train on as a second writer of the
run, and fork again at the next sample: the child ends where it comes back.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TimeLimitExceeded(BaseException):
    """Raised inside the call whose time is up. No Exception: user code must not swallow it."""


class Guard:
    """Runs scoring calls for one reward, counts what fails, and warns once with the first error."""

    def __init__(self, label: str, time_limit: float | None = None) -> None:
        """`label` names the reward in the warning; `time_limit` is in seconds, None for none."""
        self.label = label
        self.time_limit = time_limit
        self.failures = 0
        self.first_error: str | None = None

    def score(self, call: Callable[[], Any]) -> float:
        """The number that `call` returns; NaN if it raises, is too slow or returns no number.

        A NaN returned means unscorable and is no failure. An infinite score is a failure: it would
        make every statistic of its batch infinite.
        """
        return self.scores(lambda: [call()], 1, self.time_limit)[0]

    def scores(
        self, call: Callable[[], Any], count: int, time_limit: float | None = None
    ) -> list[float]:
        """`count` numbers from one call; all NaN if it raises, is too slow or gives another count.

        A single value that is no number makes its own sample NaN.
        """
        try:
            values = limited(lambda: list(call()), time_limit)
            if len(values) != count:
                raise ValueError(f"{len(values)} scores for {count} completions")
        # SystemExit would end the run as if all was well
        except (Exception, TimeLimitExceeded, SystemExit) as error:
            self._failed(error, count)
            return [math.nan] * count
        return [self._number(value) for value in values]

    def _number(self, value: Any) -> float:
        try:
            if isinstance(value, (str, bytes)):  # float("1.0") would hide a mistake
                raise TypeError(f"the score {value!r} is text, not a number")
            number = float(value)
            if math.isinf(number):
                raise ValueError(f"the score {number} is not finite")
        except Exception as error:
            self._failed(error, 1)
            return math.nan
        return number

    def _failed(self, error: BaseException, count: int) -> None:
        self.failures += count
        if self.first_error is None:
            self.first_error = f"{type(error).__name__}: {error}"
            logger.warning(
                "reward %s: a sample is unscorable (%s); further failures are counted, not logged",
                self.label,
                self.first_error,
            )


def only_here(call: Callable[[], T]) -> T:
    """The result of `call` in this process; one that it forked ends, however it comes back."""
    own = os.getpid()
    try:
        return call()
    finally:
        if os.getpid() != own:
            os._exit(0)


def limited(call: Callable[[], T], seconds: float | None) -> T:
    """The result of `call`; TimeLimitExceeded once `seconds` have passed (None: never). A process
    that it forked ends where it comes back."""
    call = partial(only_here, call)
    if seconds is None:
        return call()
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        with _alarm(seconds) as rang:
            result = call()
        if rang:  # code with a bare except swallowed the interruption and went on
            raise TimeLimitExceeded(_message(seconds))
        return result
    return _in_thread(call, seconds)


@contextmanager
def _alarm(seconds: float) -> Iterator[list[bool]]:
    """Raise TimeLimitExceeded inside the block after so many seconds; an outer alarm goes on."""
    rang: list[bool] = []
    inside = True

    def ring(_signal: int, _frame: Any) -> None:
        if inside:
            rang.append(True)
            raise TimeLimitExceeded(_message(seconds))

    handler = signal.signal(signal.SIGALRM, ring)
    start = time.monotonic()
    # It rings again and again: a bare except in a loop cannot outlive it.
    outer, interval = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield rang
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            left = max(outer - (time.monotonic() - start), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def _in_thread(call: Callable[[], T], seconds: float) -> T:
    results: list[T] = []
    errors: list[BaseException] = []
    ended: list[bool] = []
    ending = threading.Lock()

    def run() -> None:
        with suppress(TimeLimitExceeded):  # it may ring once the call is over
            try:
                results.append(call())
            except BaseException as error:
                errors.append(error)
            with ending:
                ended.append(True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if results:
        return results[0]
    if errors:
        raise errors[0]
    with ending:  # the thread cannot end here, so its number is still its own
        if not ended:
            _interrupt(thread)
    raise TimeLimitExceeded(_message(seconds))


def _interrupt(thread: threading.Thread) -> None:
    """Raise TimeLimitExceeded in a thread, at the next step of its Python code."""
    number = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(TimeLimitExceeded))


def _message(seconds: float) -> str:
    return f"no score after the time limit of {seconds:g} s"
