"""Multiple choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpolab.component import ConfigError, component
from grpolab.rewards.base import RewardInputs
from grpolab.rewards.choice import Choice

Inputs = Callable[..., RewardInputs]


@pytest.mark.parametrize(
    ("completion", "stated"),
    [
        # in a box or in tags: before anything else
        (r"\boxed{B}", "B"),
        (r"so \boxed{\text{(B)}}, not the answer C", "B"),
        (r"\boxed{A} or rather \boxed{C}", "C"),
        ("<answer> E </answer> though (A) is close", "E"),
        # after the word answer
        ("The answer is B.", "B"),
        ("the answer is (C), because (A) is wrong", "C"),
        ("Answer: **D**", "D"),
        ("Answer\n\nB", "B"),
        ("ANSWER = A", "A"),
        ("The answer is B because it floats", "B"),
        ("The answer is A because it floats", "A"),
        ("the answer to this question is therefore C", "C"),
        ("The answer is option D", "D"),
        (r"The best answer is $\textbf{(D)}$", "D"),
        ("Final answer: B) Paris", "B"),
        ("The answer is A. No, wait: the answer is C.", "C"),
        ("The answer is B. Option C is a trap.", "B"),
        # after option or choice
        ("I first took option A, then option B", "B"),
        ("My choice: (E)", "E"),
        ("Option B it is, though (C) looked good", "B"),
        # in parentheses, in bold, before ) . :, alone on its line
        ("B", "B"),
        (" b\nB\n", "B"),
        ("A\nC", "C"),
        ("(A) is wrong, (D) is right", "D"),
        ("**C**", "C"),
        ("B) Paris", "B"),
        ("B. Paris", "B"),
        ("- D:", "D"),
        # no choice
        ("", None),
        ("A dog", None),
        ("It is a dog", None),
        ("the answer is not B", None),
        ("answers A", None),
        ("The answer is Berlin", None),
        ("The answer is F", None),
        ("ABC", None),
        ("A.b", None),
        ("vitamin B12", None),
    ],
)
def test_the_stated_choice(completion: str, stated: str | None) -> None:
    assert Choice().stated(completion) == stated


@pytest.mark.parametrize(
    ("gold", "score"),
    [
        ("B", 1.0), (" B\n", 1.0), ("(B)", 1.0), ("B) Paris", 1.0), ("B. Paris", 1.0),
        ("(B): Paris\nFrance", 1.0), ("C", 0.0), ("A", 0.0),
    ],
)  # fmt: skip
def test_against_the_gold_letter(inputs: Inputs, gold: str, score: float) -> None:
    assert component("reward", "choice")(inputs(["The answer is B"], gold)).total == [score]


@pytest.mark.parametrize("gold", ["", "Paris", "F", "b", "Berlin", "B Paris", "AB", "42"])
def test_a_gold_answer_that_is_no_letter_is_unscorable(inputs: Inputs, gold: str) -> None:
    assert math.isnan(component("reward", "choice")(inputs(["B"], gold)).total[0])


def test_a_completion_without_a_choice_is_wrong(inputs: Inputs) -> None:
    assert component("reward", "choice")(inputs(["no idea"], "B")).total == [0.0]


def test_the_letters_can_be_chosen(inputs: Inputs) -> None:
    reward = component("reward", "choice", letters="ABCDEFGHIJ")
    assert reward(inputs(["The answer is (J)"], "J")).total == [1.0]
    assert math.isnan(component("reward", "choice", letters="AB")(inputs(["C"], "C")).total[0])


@pytest.mark.parametrize(
    ("pattern", "completion", "score"),
    [
        (r"answer is \(?([A-J])\)?", "answer is A ... answer is (B)", 1.0),
        (r"answer is \(?([A-J])\)?", "Answer: B", 0.0),
        (r"(?i)Answer[ \t]*:[ \t]*\$?([A-D])\$?", "answer: $b$", 1.0),
    ],
)
def test_a_pattern_of_ones_own(inputs: Inputs, pattern: str, completion: str, score: float) -> None:
    reward = component("reward", "choice", pattern=pattern)
    assert reward(inputs([completion], "B")).total == [score]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"letters": "A"}, "reward.letters: 'A' given"),
        ({"letters": ""}, "reward.letters: '' given"),
        ({"letters": "AAB"}, "reward.letters: 'AAB' given"),
        ({"letters": "abc"}, "reward.letters: 'abc' given"),
        ({"letters": "A-C"}, "reward.letters: 'A-C' given"),
        ({"pattern": "B"}, "reward.pattern: 'B' has no group"),
        ({"pattern": "("}, "reward.pattern: '(' is no regular expression"),
    ],
)
def test_mistakes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        component("reward", "choice", **settings)
    assert str(caught.value).startswith(message)


@given(st.text(st.sampled_from("ABCab ()*.:\n$\\{}answeris")))
def test_any_text_gets_a_letter_or_none(text: str) -> None:
    assert Choice().stated(text) in (None, "A", "B", "C", "D", "E")


@given(before=st.text(), letter=st.sampled_from("ABCDE"))
def test_the_last_word_counts(before: str, letter: str) -> None:
    if "boxed" not in before and "<answer>" not in before:
        assert Choice().stated(f"{before}\nThe answer is {letter}.") == letter


@pytest.mark.parametrize("text", ["answer ", "\n", " ", "(", "\\a{", "answer is is ", "*"])
def test_long_texts_are_read_in_time(inputs: Inputs, text: str) -> None:
    given = inputs([text * 20_000, text * 20_000 + "\nThe answer is B!"], "B")
    assert component("reward", "choice")(given).total == [0.0, 1.0]
