"""What raises or is too slow is NaN for its sample, counted, and logged once."""

from __future__ import annotations

import itertools
import logging
import math
import re
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from grpolab.rewards.guard import Guard, TimeLimitExceeded, limited


def spin() -> float:
    for _ in itertools.count():
        pass
    return 0.0


def stubborn() -> float:
    """User code that swallows everything, the interruption too."""
    try:
        spin()
    except BaseException:
        return 1.0
    return 0.0


def in_a_thread(call: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


def test_numbers_pass_and_failures_are_nan() -> None:
    guard = Guard("mine", 5.0)
    assert guard.score(lambda: 0.5) == 0.5
    assert guard.score(lambda: True) == 1.0
    assert math.isnan(guard.score(lambda: math.nan))
    assert (guard.failures, guard.first_error) == (0, None)
    for bad in (lambda: 1 / 0, lambda: "1.0", lambda: None, lambda: math.inf, lambda: [1.0]):
        assert math.isnan(guard.score(bad))
    assert guard.failures == 5
    assert guard.first_error == "ZeroDivisionError: division by zero"


def test_the_first_error_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard("mine")
    nothing: dict[str, float] = {}
    with caplog.at_level(logging.WARNING):
        for key in "abc":
            guard.score(partial(nothing.__getitem__, key))
    assert [record.getMessage() for record in caplog.records] == [
        "reward mine: a sample is unscorable (KeyError: 'a'); "
        "further failures are counted, not logged"
    ]


def test_a_batch_of_the_wrong_length_is_nan() -> None:
    guard = Guard("mine")
    assert guard.scores(lambda: [1.0, 0.0], 2) == [1.0, 0.0]
    assert all(map(math.isnan, guard.scores(lambda: [1.0], 2)))
    assert guard.first_error == "ValueError: 1 scores for 2 completions"
    scores = guard.scores(lambda: [1.0, "x"], 2)
    assert scores[0] == 1.0
    assert math.isnan(scores[1])
    assert guard.failures == 3


@pytest.mark.parametrize("call", [spin, stubborn])
def test_the_time_limit_ends_a_call(call: Callable[[], float]) -> None:
    guard = Guard("slow", 0.05)
    assert math.isnan(guard.score(call))
    assert guard.first_error == "TimeLimitExceeded: no score after the time limit of 0.05 s"


def test_the_time_limit_ends_a_backtracking_pattern() -> None:
    guard = Guard("slow", 0.05)
    assert math.isnan(guard.score(lambda: re.fullmatch("(a+)+b", "a" * 40) is not None))


def test_the_time_limit_holds_outside_the_main_thread() -> None:
    done = threading.Event()
    assert math.isnan(in_a_thread(lambda: Guard("slow", 0.05).score(done.wait)))
    done.set()
    assert in_a_thread(lambda: Guard("fast", 5.0).score(lambda: 2.0)) == 2.0
    assert math.isnan(in_a_thread(lambda: Guard("bad", 5.0).score(lambda: 1 / 0)))


def test_a_late_call_in_a_thread_is_interrupted() -> None:
    """Python code does not run on after its time, in competition with everything else."""
    ended = threading.Event()

    def slow() -> float:
        try:
            return spin()
        finally:
            ended.set()

    assert math.isnan(in_a_thread(lambda: Guard("slow", 0.05).score(slow)))
    assert ended.wait(60)


def test_what_a_thread_raises_is_raised() -> None:
    def caught() -> str:
        try:
            return str(limited(lambda: 1 / 0, 5.0))
        except ZeroDivisionError as error:
            return str(error)

    assert in_a_thread(caught) == "division by zero"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_an_outer_alarm_goes_on() -> None:
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        limited(lambda: 1, 5.0)
        with pytest.raises(TimeLimitExceeded):
            limited(spin, 0.05)
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left <= 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_an_interrupt_is_no_failure() -> None:
    def interrupt() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guard("mine", 5.0).score(interrupt)
