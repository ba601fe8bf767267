"""Rewards of length: the soft overlong punishment and the cosine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpolab.component import ConfigError, component
from grpolab.rewards.base import RewardInputs
from grpolab.tasks.arithmetic import Arithmetic
from grpolab.tasks.base import Example

Inputs = Callable[..., RewardInputs]
LIMIT = 64  # the sampler's, in these inputs


@pytest.fixture(scope="session")
def scores(inputs: Inputs) -> Callable[..., list[float]]:
    """The scores of completions of some lengths, right where `right` says so."""

    def of(name: str, lengths: list[int], right: bool = True, **settings: Any) -> list[float]:
        given = inputs(["42" if right else "41"] * len(lengths), lengths=lengths)
        return list(component("reward", name, **settings)(given).total)

    return of


Score = Callable[..., list[float]]


# --- soft_overlong ------------------------------------------------------------------------------

DAPO = {"max_length": 20480, "cache": 4096}
LENGTHS = [0, 16383, 16384, 16385, 18432, 19456, 20479, 20480, 20481, 24576]


def test_dapos_own_numbers(scores: Score) -> None:
    # 20480 − 4096 = 16384; (16384 − 18432)/4096 = −1/2; (16384 − 19456)/4096 = −3/4; …
    expected = [0, 0, 0, -1 / 4096, -0.5, -0.75, -4095 / 4096, -1, -1, -1]
    assert scores("soft_overlong", LENGTHS, **DAPO) == expected


def test_without_a_floor_the_line_goes_on(scores: Score) -> None:
    # (16384 − 20481)/4096 and (16384 − 24576)/4096 = −2: verl, NeMo-RL and AReaL.
    expected = [0, 0, 0, -1 / 4096, -0.5, -0.75, -4095 / 4096, -1, -4097 / 4096, -2]
    assert scores("soft_overlong", LENGTHS, floor=False, **DAPO) == expected


def test_the_factor_scales(scores: Score) -> None:
    assert scores("soft_overlong", [18432, 24576], factor=0.5, **DAPO) == [-0.25, -0.5]
    assert scores("soft_overlong", [24576], factor=0.5, floor=False, **DAPO) == [-1.0]


def test_the_defaults_follow_the_sampler(scores: Score) -> None:
    # Lmax 64, Lc 64/5 = 12.8: (51.2 − 52)/12.8 = −.0625, (51.2 − 57.6)/12.8 = −.5.
    got = scores("soft_overlong", [51, 52, 64, 65])
    assert got == pytest.approx([0.0, -0.0625, -1.0, -1.0])
    assert scores("soft_overlong", [59, 60, 62, 64], cache=4) == [0.0, 0.0, -0.5, -1.0]


def test_no_cache_is_a_step(scores: Score) -> None:
    assert scores("soft_overlong", [64, 65], cache=0) == [0.0, -1.0]


def test_a_zero_is_no_negative_zero(scores: Score) -> None:
    assert all(math.copysign(1, s) == 1 for s in scores("soft_overlong", [0, 51]))


@given(
    lengths=st.lists(st.integers(0, 300), min_size=2, max_size=20),
    longest=st.integers(1, 200),
    share=st.floats(0.01, 1),
    factor=st.floats(0.1, 5),
    floor=st.booleans(),
)
def test_bounded_and_falling(
    scores: Score, lengths: list[int], longest: int, share: float, factor: float, floor: bool
) -> None:
    cache = max(1, int(share * longest))
    settings = {"max_length": longest, "cache": cache, "factor": factor, "floor": floor}
    got = scores("soft_overlong", sorted(lengths), **settings)
    assert got == sorted(got, reverse=True)
    assert max(got) <= 0
    if floor:
        assert min(got) >= -factor
    shifted = scores("soft_overlong", [longest - cache, longest], **settings)
    assert shifted == pytest.approx([0.0, -factor])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": 0, "floor": False}, "reward.floor: false given with cache=0"),
        ({"max_length": 10, "cache": 11}, "reward.cache: 11 given with max_length=10"),
        ({"cache": -1}, "reward.cache: -1 is out of bounds"),
        ({"factor": 0.0}, "reward.factor: 0.0 is out of bounds"),
    ],
)
def test_mistakes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        component("reward", "soft_overlong", **settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, None),
        ({"cache": 64}, None),
        ({"cache": 65}, "cache: 65 given with sampler.max_new_tokens=64"),
        ({"max_length": 80, "cache": 17}, None),  # 64 tokens are one beyond 80 − 17
        ({"max_length": 80, "cache": 16}, "max_length: 80 given with sampler.max_new_tokens=64"),
        ({"max_length": 20480}, "max_length: 20480 given with sampler.max_new_tokens=64"),
    ],
)
def test_what_the_sampler_can_never_reach_is_refused(
    settings: dict[str, Any], message: str | None
) -> None:
    reward = component("reward", "soft_overlong", **settings)
    if message is None:
        reward.check_limit(LIMIT)
        return
    with pytest.raises(ValueError, match=f"^{message}"):
        reward.check_limit(LIMIT)


# --- cosine_length ------------------------------------------------------------------------------


def test_the_cosine_by_hand(scores: Score) -> None:
    # cos 0 = 1, cos π/3 = ½, cos π/2 = 0, cos π = −1, with Lmax 60. Right: ½ + ¼(1 + cos).
    lengths = [0, 20, 30, 60, 90]
    expected = [1.0, 0.5 + 0.25 * 1.5, 0.75, 0.5, 0.5]
    assert scores("cosine_length", lengths, max_length=60) == pytest.approx(expected)
    # Wrong: −½ − ¼(1 + cos).
    expected = [-1.0, -0.5 - 0.25 * 1.5, -0.75, -0.5, -0.5]
    got = scores("cosine_length", lengths, right=False, max_length=60)
    assert got == pytest.approx(expected)


def test_the_limit_is_the_samplers_unless_given(scores: Score) -> None:
    assert scores("cosine_length", [32]) == pytest.approx([0.75])


def test_the_papers_own_scores(scores: Score) -> None:
    # arXiv 2502.03373: right 2 → 1, wrong −10 → 0, and −10 at Lmax.
    paper = {"correct_short": 2.0, "correct_long": 1.0, "wrong_short": -10.0, "wrong_long": 0.0}
    settings = {**paper, "exceeded": -10.0, "max_length": 64}
    assert scores("cosine_length", [0, 32, 64, 70], **settings) == pytest.approx([2, 1.5, -10, -10])
    wrong = scores("cosine_length", [0, 32, 63, 64], right=False, **settings)
    # −5(1 + cos(63π/64)) = −.00602
    assert wrong == pytest.approx([-10, -5, -0.00602, -10], abs=1e-5)


@given(lengths=st.lists(st.integers(0, 100), min_size=2, max_size=20), right=st.booleans())
def test_monotone_between_its_ends(scores: Score, lengths: list[int], right: bool) -> None:
    got = scores("cosine_length", sorted(lengths), right=right)
    assert got == sorted(got, reverse=right)
    low, high = (0.5, 1.0) if right else (-1.0, -0.5)
    assert all(low - 1e-12 <= s <= high + 1e-12 for s in got)


@given(st.permutations(range(6)))
def test_scores_follow_their_completions(inputs: Inputs, order: list[int]) -> None:
    texts, lengths = ["42", "41", "42", "x", "42", "0"], [1, 2, 40, 40, 64, 64]
    for name in ("cosine_length", "soft_overlong"):
        reward = component("reward", name)
        straight = reward(inputs(texts, lengths=lengths)).total
        mixed = reward(inputs([texts[i] for i in order], lengths=[lengths[i] for i in order])).total
        assert mixed == [straight[i] for i in order]


def test_what_the_verifier_cannot_score_is_unscorable(inputs: Inputs) -> None:
    class Moody(Arithmetic):
        def verify(self, completion: str, example: Example) -> float:
            return {"half": 0.5, "nan": math.nan, "nearly": 0.9991}.get(completion) or 1 / 0

    given = inputs(["half", "nan", "nearly", "raises"], task=Moody(), lengths=[0] * 4)
    got = component("reward", "cosine_length")(given).total
    assert [got[0], got[2]] == [-1.0, 1.0]  # half right is wrong
    assert math.isnan(got[1])
    assert math.isnan(got[3])


def test_a_score_that_nothing_gets_is_refused() -> None:
    reward = component("reward", "cosine_length", exceeded=-10.0, max_length=65)
    with pytest.raises(ValueError, match=r"^exceeded: -10.0 given with max_length=65"):
        reward.check_limit(LIMIT)
    reward.check_limit(65)
    component("reward", "cosine_length", exceeded=-10.0).check_limit(LIMIT)
