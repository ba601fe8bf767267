"""A phase is booked for itself alone, and a step starts at nothing."""

from __future__ import annotations

import time

import pytest

from grpolab.training.clock import PHASES, Clock


class Ticks:
    """A stand-in for time.perf_counter that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    found = Ticks()
    monkeypatch.setattr(time, "perf_counter", found)
    return found


def test_nested_phases_count_once(ticks: Ticks) -> None:
    clock = Clock()
    with clock("sample"):
        ticks.now += 2
        with clock("score"):
            ticks.now += 3
        ticks.now += 4
    ticks.now += 50  # between phases: nobody's
    with clock("sample"):
        ticks.now += 1
    assert clock.seconds == {**dict.fromkeys(PHASES, 0.0), "sample": 7.0, "score": 3.0}
    clock.reset()
    assert set(clock.seconds.values()) == {0.0}


def test_an_error_ends_its_phase(ticks: Ticks) -> None:
    clock = Clock()

    def broken() -> None:
        with clock("backward"):
            ticks.now += 5
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    ticks.now += 1
    with clock("log"):
        ticks.now += 2
    assert (clock.seconds["backward"], clock.seconds["log"]) == (5.0, 2.0)


def test_a_device_is_waited_for_at_every_turn(ticks: Ticks) -> None:
    def finish() -> None:
        ticks.now += 10  # what the device had still to do

    clock = Clock(wait=finish)
    with clock("backward"):
        ticks.now += 1
    assert clock.seconds["backward"] == 11.0
