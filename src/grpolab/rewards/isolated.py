"""Calls in helper processes, which are killed when their time is up.

`limited` interrupts Python code. It cannot end a call into compiled code outside the main thread,
and while such a call runs no other thread does: 9^(9^9) as one whole number stops everything for
hours. A process can always be ended, from any thread and on any system.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

from grpolab.rewards.guard import TimeLimitExceeded

READY = '"ready"'
# A helper whose owner was killed in the middle of a call ends itself so much later.
GRACE_SECONDS = 2.0


def processors() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class HelperFailed(RuntimeError):
    """A helper process did not start, ended by itself, or answered with an error."""


class Pool:
    """Up to `size` helper processes that answer requests: `python -m module` runs `serve` there.

    They start when needed, are started anew after one is killed, and end with the pool or with the
    program. Any number of threads may call; a forked process gets helpers of its own.
    """

    def __init__(self, module: str, size: int, time_limit: float) -> None:
        """`time_limit` is in seconds, for one request."""
        self.module, self.time_limit = module, time_limit
        self._idle: queue.LifoQueue[Helper | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)

    def __call__(self, request: Any) -> Any:
        """The answer to one request, both as JSON knows them.

        Raises:
            TimeLimitExceeded: no answer in time; the helper is gone.
            HelperFailed: the helper's own error.
        """
        return self._with_helper(lambda helper: helper.ask(request, self.time_limit))

    def start(self) -> None:
        """See that a helper starts, so that no request has to find out."""
        self._with_helper(lambda helper: None)

    def _with_helper(self, use: Callable[[Helper], Any]) -> Any:
        helper = self._idle.get()
        try:
            if helper is None or not helper.alive:
                helper = Helper(self.module)
            return use(helper)
        finally:
            self._idle.put(helper)


class Helper:
    """One helper process: a line of JSON in, a line of JSON out."""

    def __init__(self, module: str) -> None:
        """Start it and wait until it is ready, which no time limit counts."""
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            encoding="utf-8",
        )
        self.close = weakref.finalize(self, _end, self._process)
        if self._read() != READY:
            self.close()
            raise HelperFailed(f"the helper process {module} does not start")

    @property
    def alive(self) -> bool:
        """Whether it can be asked: not by a forked copy of its owner, whose child it is not."""
        return self.close.alive and self._process.poll() is None

    def ask(self, request: Any, seconds: float) -> Any:
        """The answer to a request; the errors are those of `Pool`."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            line = self._exchange(json.dumps([seconds, request]))
        except BaseException:  # its answer is still to come, and would be taken for the next one
            self.close()
            raise
        finally:
            timer.cancel()
            timer.join()
        if late.is_set() or not line:
            self.close()
        if not line:
            if late.is_set():
                raise TimeLimitExceeded(f"no score after the time limit of {seconds:g} s")
            raise HelperFailed("the helper process ended by itself")
        answer = json.loads(line)
        if "error" in answer:
            raise HelperFailed(answer["error"])
        return answer["value"]

    def _exchange(self, line: str) -> str:
        try:
            stdin = _pipe(self._process.stdin)
            stdin.write(line + "\n")
            stdin.flush()
        except BrokenPipeError:
            return ""
        return self._read()

    def _read(self) -> str:
        return _pipe(self._process.stdout).readline().rstrip("\n")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()  # nothing, in a forked copy of the owner
    process.wait()
    for stream in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):  # what was still to be written has no reader
            _pipe(stream).close()


def serve(answer: Callable[[Any], Any]) -> None:
    """The helper's side: answers requests until its owner is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no reply
    _reply(replies, READY)
    for line in sys.stdin:
        seconds, request = json.loads(line)
        _end_after(seconds + GRACE_SECONDS)
        try:
            reply = {"value": answer(request)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        _end_after(0)
        _reply(replies, json.dumps(reply))


def _reply(replies: IO[str], line: str) -> None:
    replies.write(line + "\n")
    replies.flush()


def _end_after(seconds: float) -> None:
    """End this process after so many seconds, whatever it is doing; 0 takes that back."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
