"""β over a run: the schedules, the warm-up, the adaptive rule, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from grpolab.component import ConfigError, component
from grpolab.objective.beta import Beta


def beta(steps: int = 11, **settings: Any) -> Beta:
    return Beta(component("kl", "k3", **settings), steps)


@pytest.mark.parametrize(
    ("settings", "expected"),  # at steps 0, 5 and 10 of 11
    [
        ({"beta": 0.2}, [0.2, 0.2, 0.2]),
        ({"beta": 0.2, "schedule": "linear"}, [0.2, 0.1, 0.0]),
        ({"beta": 0.2, "schedule": "linear", "beta_final": 0.4}, [0.2, 0.3, 0.4]),
        ({"beta": 0.2, "schedule": "cosine"}, [0.2, 0.1, 0.0]),
        ({"beta": 0.2, "schedule": "cosine", "beta_final": 0.1}, [0.2, 0.15, 0.1]),
        ({"beta": 0.2, "schedule": "adaptive"}, [0.2, 0.2, 0.2]),
    ],
)
def test_first_middle_and_last_step(settings: dict[str, Any], expected: list[float]) -> None:
    schedule = beta(**settings)
    assert [schedule.at(s) for s in (0, 5, 10)] == pytest.approx(expected, abs=1e-15)


def test_cosine_is_flat_at_both_ends() -> None:
    linear, cosine = beta(beta=1.0, schedule="linear"), beta(beta=1.0, schedule="cosine")
    assert cosine.at(1) == pytest.approx(0.5 * (1 + math.cos(math.pi / 10)))
    assert cosine.at(1) > linear.at(1)
    assert cosine.at(9) < linear.at(9)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_past_the_end_the_last_value_holds(schedule: str) -> None:
    settings: dict[str, Any] = {"beta": 1.0, "schedule": schedule, "beta_final": 0.5}
    assert beta(**settings).at(50) == pytest.approx(0.5)
    assert beta(steps=1, **settings).at(0) == 1.0


def test_warm_up_rises_to_the_schedule() -> None:
    schedule = beta(beta=0.4, warmup_steps=3)
    assert [schedule.at(s) for s in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_warm_up_multiplies_the_schedule() -> None:
    plain = beta(beta=0.4, schedule="linear")
    warm = beta(beta=0.4, schedule="linear", warmup_steps=1)
    assert warm.at(0) == pytest.approx(plain.at(0) / 2)
    assert [warm.at(s) for s in range(1, 11)] == [plain.at(s) for s in range(1, 11)]


@pytest.mark.parametrize(
    ("measured", "factor"),
    [
        (0.1, 1.0),  # on target
        (0.11, 1 + 0.1 * 64 / 1000),  # a tenth above
        (5.0, 1 + 0.2 * 64 / 1000),  # far above: the error stops at 0.2
        (0.0, 1 - 0.2 * 64 / 1000),
        (-1.0, 1 - 0.2 * 64 / 1000),
    ],
)
def test_adaptive_step(measured: float, factor: float) -> None:
    schedule = beta(beta=0.5, schedule="adaptive", target=0.1, horizon=1000)
    schedule.observe(measured, completions=64)
    assert schedule.at(1) == pytest.approx(0.5 * factor)
    schedule.observe(measured, completions=64)
    assert schedule.at(2) == pytest.approx(0.5 * factor**2)


def test_adaptive_defaults() -> None:
    schedule = beta(beta=0.5, schedule="adaptive")
    schedule.observe(0.11, completions=100)  # target 0.1, horizon 10000
    assert schedule.at(1) == pytest.approx(0.5 * (1 + 0.1 * 100 / 10_000))


@pytest.mark.parametrize("measured", [math.nan, math.inf, -math.inf])
def test_adaptive_ignores_what_is_not_a_number(measured: float) -> None:
    schedule = beta(beta=0.5, schedule="adaptive")
    schedule.observe(measured, completions=64)
    assert schedule.at(1) == 0.5


@pytest.mark.parametrize("settings", [{}, {"schedule": "linear"}, {"schedule": "cosine"}])
def test_only_adaptive_listens(settings: dict[str, Any]) -> None:
    schedule, silent = beta(**settings), beta(**settings)
    schedule.observe(5.0, completions=10_000)
    assert [schedule.at(s) for s in range(11)] == [silent.at(s) for s in range(11)]


def test_without_kl_it_is_zero() -> None:
    schedule = Beta(component("kl", "none"), 10)
    schedule.observe(1.0, completions=64)
    assert [schedule.at(s) for s in (0, 9)] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_final": 0.1}, r"kl\.beta_final: 0\.1 given, but kl\.schedule is constant"),
        ({"schedule": "adaptive", "beta_final": 0.1}, r"kl\.beta_final.*schedule is adaptive"),
        ({"target": 0.1}, r"kl\.target: 0\.1 given, but kl\.schedule is constant"),
        ({"schedule": "linear", "target": 0.1}, r"kl\.target.*schedule is linear"),
        ({"schedule": "cosine", "horizon": 10}, r"kl\.horizon: 10 given.*schedule is cosine"),
        ({"schedule": "adaptiv"}, r"kl\.schedule: 'adaptiv' is not allowed.*mean adaptive\?"),
        ({"beta": -0.1}, r"kl\.beta: -0\.1 is out of bounds.*≥ 0"),
        ({"warmup_steps": -1}, r"kl\.warmup_steps: -1 is out of bounds"),
        ({"schedule": "linear", "beta_final": -1.0}, r"kl\.beta_final: -1\.0 is out of bounds"),
        ({"schedule": "adaptive", "target": 0.0}, r"kl\.target: 0\.0 is out of bounds.*> 0"),
        ({"schedule": "adaptive", "horizon": 0}, r"kl\.horizon: 0 is out of bounds.*≥ 1"),
        ({"target_kl": 0.0}, r"kl\.target_kl: 0\.0 is out of bounds.*> 0"),
        ({"clamp": [20.0]}, r"kl\.clamp: \[20\.0\] given; allowed: \[in, out\]"),
        ({"clamp": [20.0, 0.0]}, r"kl\.clamp: \[20\.0, 0\.0\] is out of bounds"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        beta(**settings)
