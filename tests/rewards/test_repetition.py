"""The penalty for repeated n-grams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpolab.component import ConfigError, component
from grpolab.rewards.base import RewardInputs

Inputs = Callable[..., RewardInputs]


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        # abc bca cab abc: 3 distinct of 4.
        ({}, "a b c a b c", -0.25),
        # aaa, four times: 1 of 4.
        ({}, "a a a a a a", -0.75),
        ({}, "a b c d e f", 0.0),
        ({}, "A b\tC a\nB c", -0.25),
        ({}, "a b", 0.0),
        ({}, "a b c", 0.0),
        ({}, "", 0.0),
        ({"n": 1}, "a b a", -1 / 3),
        ({"n": 1}, "a a", -0.5),
        ({"n": 2}, "a b a b", -1 / 3),
        ({"n": 2, "penalty": -0.5}, "a b a b", -1 / 6),
        ({"n": 2}, "aaaa", 0.0),
        # Punctuation belongs to its word: "a." is not "a".
        ({"n": 1}, "a. a", 0.0),
    ],
)
def test_by_hand(inputs: Inputs, settings: dict[str, Any], text: str, expected: float) -> None:
    (score,) = component("reward", "repetition", **settings)(inputs([text])).total
    assert score == pytest.approx(expected)
    assert math.copysign(1, score) == (-1 if expected else 1)  # no −0.0


def test_of_tokens(inputs: Inputs) -> None:
    # TRL's example: 5 5 5 5 5 has 1 distinct pair of 4.
    reward = component("reward", "repetition", n=2, of="tokens")
    given = inputs(["same same same", "x", "y"], tokens=[[1, 2, 3, 4], [5] * 5, [7]])
    assert reward(given).total == [0.0, -0.75, 0.0]


def test_of_tokens_without_tokens(inputs: Inputs) -> None:
    with pytest.raises(ValueError, match=r"^reward.of: tokens given"):
        component("reward", "repetition", of="tokens")(inputs(["a"]))


words = st.lists(st.sampled_from("abc"), max_size=30)


@given(
    texts=st.lists(words, max_size=4),
    n=st.integers(1, 5),
    penalty=st.floats(-3, 0, allow_subnormal=False),
)
def test_between_the_penalty_and_zero(
    inputs: Inputs, texts: list[list[str]], n: int, penalty: float
) -> None:
    reward = component("reward", "repetition", n=n, penalty=penalty)
    got = reward(inputs([" ".join(text) for text in texts])).total
    assert len(got) == len(texts)
    for text, score in zip(texts, got, strict=True):
        assert penalty < score <= 0 or score == 0
        grams = [" ".join(text[i : i + n]) for i in range(len(text) - n + 1)]
        assert (score == 0) == (len(set(grams)) == len(grams) or penalty == 0)


@given(text=words, n=st.integers(1, 4), other=st.permutations("xyz"))
def test_only_equality_of_words_counts(
    inputs: Inputs, text: list[str], n: int, other: list[str]
) -> None:
    renamed = [dict(zip("abc", other, strict=True))[word] for word in text]
    reward = component("reward", "repetition", n=n)
    first, second, backwards = reward(
        inputs([" ".join(text), " ".join(renamed), " ".join(reversed(text))])
    ).total
    assert first == second == backwards


@given(text=words, n=st.integers(1, 4))
def test_words_and_their_tokens_agree(inputs: Inputs, text: list[str], n: int) -> None:
    given = inputs([" ".join(text)], tokens=[[ord(word) for word in text]])
    scores = [component("reward", "repetition", n=n, of=of)(given) for of in ("words", "tokens")]
    assert scores[0] == scores[1]


def test_mistakes_are_refused() -> None:
    for settings, message in (
        ({"n": 0}, "reward.n: 0 is out of bounds"),
        ({"penalty": 1.0}, "reward.penalty: 1.0 is out of bounds"),
        ({"of": "letters"}, "reward.of: 'letters' is not allowed"),
    ):
        with pytest.raises(ConfigError, match=message):
            component("reward", "repetition", **settings)
