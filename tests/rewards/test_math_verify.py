"""Mathematical equality: what counts as equal, what is unscorable, and what is stopped."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpolab.component import ConfigError, component
from grpolab.rewards.base import RewardInputs
from grpolab.rewards.isolated import HelperFailed

pytest.importorskip("math_verify")

Inputs = Callable[..., RewardInputs]
Score = Callable[..., float]

FAR = "no, that is not it; " * 5
# gold answer, completion, equal?
TABLE: list[tuple[str, str, bool]] = [
    # fractions and decimals
    (r"\frac{3}{4}", r"\boxed{0.75}", True),
    ("3/4", r"\boxed{\frac{6}{8}}", True),
    ("0.75", r"\boxed{\dfrac{3}{4}}", True),
    (r"\frac{1}{3}", r"\boxed{0.333333}", True),
    (r"\frac{1}{3}", r"\boxed{0.33}", False),
    (r"1\frac{1}{2}", r"\boxed{1.5}", True),
    ("-5", r"\boxed{5}", False),
    ("-5", r"\boxed{-5}", True),
    ("1,234", r"\boxed{1234}", True),
    (r"12,\!000", r"\boxed{12000}", True),
    (r"1.5 \times 10^3", r"\boxed{1500}", True),
    # roots, powers, functions
    (r"\sqrt{8}", r"\boxed{2\sqrt{2}}", True),
    (r"11\sqrt2", r"\boxed{11\sqrt{2}}", True),
    (r"11\sqrt2", r"\boxed{11}", False),
    ("2^{10}", r"\boxed{1024}", True),
    ("5", r"\boxed{\frac{10}{\sqrt{4}}}", True),
    ("7!", r"\boxed{5040}", True),
    (r"\log_2 8", r"\boxed{3}", True),
    (r"\binom{5}{2}", r"\boxed{10}", True),
    (r"\pi", r"\boxed{3.141593}", True),
    (r"\pi", r"\boxed{3.14159}", False),
    (r"\infty", r"\boxed{\infty}", True),
    # units, currency, per cent
    (r"5\text{ cm}", r"\boxed{5}", True),
    ("5", r"\boxed{5\mathrm{~cm}}", True),
    (r"90^\circ", r"\boxed{90}", True),
    (r"\$18.90", r"\boxed{18.9}", True),
    ("$5", r"\boxed{5}", True),
    (r"50\%", r"\boxed{50\%}", True),
    (r"50\%", r"\boxed{\frac{1}{2}}", True),
    ("0.5", r"\boxed{50\%}", True),
    (r"50\%", r"\boxed{50}", True),
    ("0.5", r"\boxed{50}", False),
    (r"50\%", r"\boxed{51\%}", False),
    # intervals and sets
    ("[1,2)", r"\boxed{[1,2)}", True),
    ("[1,2)", r"\boxed{[1,2]}", False),
    ("(1,2)", r"\boxed{(1,2)}", True),
    ("(1,2)", r"\boxed{(2,1)}", False),
    (r"(-\infty,2)\cup(3,\infty)", r"\boxed{(3,\infty)\cup(-\infty,2)}", True),
    (r"\{1,2,3\}", r"\boxed{\{3,1,2\}}", True),
    (r"\{1,2,3\}", r"\boxed{3,2,1}", True),
    (r"\{1,2,3\}", r"\boxed{\{1,2\}}", False),
    (r"5 \pm 2", r"\boxed{3,7}", True),
    # equations, inequalities, expressions
    ("x=5", r"\boxed{5}", True),
    ("5", r"\boxed{x=5}", True),
    ("x=5", r"\boxed{y=5}", False),
    ("x>5", r"\boxed{5<x}", True),
    ("x>5", r"\boxed{x\geq 5}", False),
    ("x^2+3x+2", r"\boxed{(x+1)(x+2)}", True),
    ("x^2", r"\boxed{y^2}", False),
    (r"\sin^2 x+\cos^2 x", r"\boxed{1}", True),
    ("3+4i", r"\boxed{4i+3}", True),
    ("6 - 5i", r"\boxed{5}", False),
    # matrices and words
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\boxed{\begin{bmatrix}1&2\\3&4\end{bmatrix}}",
        True,
    ),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\boxed{\begin{pmatrix}1&2\\4&3\end{pmatrix}}",
        False,
    ),
    (r"\text{Evelyn}", r"\boxed{Evelyn}", True),
    (r"\text{Evelyn}", r"\boxed{Eve}", False),
    # where the answer stands
    (r"\frac{1}{2}", r"\boxed{\boxed{\frac{1}{2}}}", True),
    (r"\frac{1}{2}", rf"\boxed{{3}}, {FAR}\boxed{{\frac{{1}}{{2}}}}", True),
    ("3", rf"\boxed{{3}}, {FAR}\boxed{{4}}", False),
    ("3,4", r"\boxed{3} and \boxed{4}", True),
    ("5", r"\boxed{5", False),
    ("5", "The answer is $5$.", True),
    ("5", "The answer is 5.", False),
    ("5", "$5$", False),
    ("5", "", False),
    # gold answers with LaTeX marks of their own
    (r"\boxed{7}", r"\boxed{7}", True),
    ("$7$", r"\boxed{7}", True),
    ("The answer is $7$.", r"\boxed{7}", True),
    (r"\(\frac{1}{2}\)", r"\boxed{0.5}", True),
]


@pytest.fixture(scope="session")
def score(inputs: Inputs) -> Score:
    """The score of one completion; the rewards keep their helpers from test to test."""
    made: dict[str, Any] = {}

    def of(gold: str, completion: str, /, **settings: Any) -> float:
        key = repr(sorted(settings.items()))
        reward = made.setdefault(key, component("reward", "math_verify", **settings))
        return float(reward(inputs([completion], gold)).total[0])

    return of


def boxed(answer: str) -> str:
    return rf"so it is \boxed{{{answer}}}."


@pytest.mark.parametrize(("gold", "completion", "equal"), TABLE)
def test_what_is_equal(score: Score, gold: str, completion: str, equal: bool) -> None:
    assert score(gold, completion) == float(equal)


rationals = st.fractions(-1000, 1000, max_denominator=50)


@settings(deadline=None, max_examples=40)
@given(gold=rationals, other=rationals, factor=st.integers(1, 9))
def test_rationals_in_any_form(score: Score, gold: Fraction, other: Fraction, factor: int) -> None:
    expanded = rf"\frac{{{gold.numerator * factor}}}{{{gold.denominator * factor}}}"
    assert score(str(gold), boxed(expanded)) == 1.0
    assert score(expanded, boxed(f"{gold.numerator}/{gold.denominator}")) == 1.0
    assert score(str(gold), boxed(str(other))) == float(gold == other)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=5, unique=True), st.randoms())
def test_sets_have_no_order(score: Score, items: list[int], random: Any) -> None:
    gold = rf"\{{{', '.join(map(str, items))}\}}"
    mixed = random.sample(items, len(items))
    assert score(gold, boxed(rf"\{{{', '.join(map(str, mixed))}\}}")) == 1.0
    assert score(gold, boxed(rf"\{{{', '.join(map(str, [*mixed[1:], 99]))}\}}")) == 0.0


@settings(deadline=None, max_examples=40)
@given(gold=st.text(max_size=30), completion=st.text(max_size=60))
def test_any_text_gets_a_score(score: Score, gold: str, completion: str) -> None:
    got = score(gold, completion, plain=True, anchored=False, candidates="any")
    assert got in (0.0, 1.0) or math.isnan(got)


# --- The settings in which the published rewards differ ------------------------------------------


@pytest.mark.parametrize(
    ("changed", "gold", "completion", "before", "after"),
    [
        ({"anchored": False}, "5", "it is $5$", 0.0, 1.0),
        ({"boxed_first": False}, "5", r"\boxed{3}. The final answer is $5$.", 0.0, 1.0),
        ({"plain": True}, "5", "The answer is 5.", 0.0, 1.0),
        ({"plain": True}, "5", "it is 5.", 0.0, 0.0),
        ({"repair": True}, r"\frac{1}{2}", r"\boxed{\frac12}", 0.0, 1.0),
        ({"repair": True}, r"11\sqrt{2}", r"\boxed{11\sqrt2}", 0.0, 1.0),
        ({"candidates": "any"}, "5", r"The answer is $5$, \boxed{\frac{1}{}}", 0.0, 1.0),
        ({"after": "</think>"}, "5", r"<think>\boxed{5}", 1.0, 0.0),
        ({"after": "</think>"}, "5", r"\boxed{4}</think>\boxed{4}</think>\boxed{5}", 0.0, 1.0),
        ({"after": "</think>"}, "5", r"\boxed{5}</think> that is it", 1.0, 0.0),
        # How the gold answer is read: TRL's search takes the first number that it finds.
        ({"gold": "text"}, r"11\sqrt2", r"\boxed{11}", 0.0, 1.0),
        ({"gold": "text"}, "6 - 5i", r"\boxed{5}", 0.0, 1.0),
        ({"gold": "text"}, "The answer is 12.", r"\boxed{12}", 0.0, 1.0),
    ],
)
def test_what_a_setting_changes(
    score: Score,
    changed: dict[str, Any],
    gold: str,
    completion: str,
    before: float,
    after: float,
) -> None:
    assert score(gold, completion) == before
    assert score(gold, completion, **changed) == after


@pytest.mark.parametrize(
    ("gold", "completion", "expected"),
    [
        ("42", "it is 42.", 1.0),
        ("14", "so 2*(3+4) = 14", 1.0),
        ("14", "that is 2*(3+4)", 1.0),
        ("1234.5", "x = 1,234.5 dollars", 1.0),
        ("5", "I paid $5.", 1.0),
        ("1024", "2^10", 1.0),
        ("8", "2**(1+2)", 1.0),
        ("5", "(see 5)", 1.0),
        ("5", "it is (5)", 1.0),
        ("5", "**5**", 1.0),
        ("10", "10km", 1.0),
        ("3", "2 - 3i", 1.0),
        ("-1", "2 - 3i", 0.0),
        ("0.12", "12 percent", 1.0),
        ("0.12", r"12\%", 1.0),
        ("-0.75", "-3/4", 1.0),
        ("4", "7 - 3", 1.0),
        ("3.5", "7 ÷ 2", 1.0),
        ("21", "7 × 3", 1.0),
        ("0.5", ".5", 1.0),
        ("3", "7 is odd, so 3", 1.0),
        ("7", "7 is odd, so 3", 0.0),
        ("1", "x12", 0.0),
        ("2", r"\frac{1}{2}", 0.0),
        (r"\frac{1}{2}", r"\frac{1}{2}", 1.0),
        ("5", "$x$ is 5", 1.0),
        ("3", r"\sqrt{3}", 0.0),
    ],
)
def test_plain_expressions(score: Score, gold: str, completion: str, expected: float) -> None:
    settings = {"plain": True, "anchored": False, "candidates": "any"}
    assert score(gold, completion, **settings) == expected


# --- What is unscorable, and what is refused -----------------------------------------------------


@pytest.mark.parametrize("gold", ["", "  ", "$$", r"\boxed{}", "$", r"\text{}"])
def test_a_gold_answer_without_mathematics_is_unscorable(score: Score, gold: str) -> None:
    assert math.isnan(score(gold, r"\boxed{5}"))
    assert math.isnan(score(gold, "no answer"))


@pytest.mark.parametrize("gold", ["two", r"\sqrt{3}", "x^2", "[1,2]"])
def test_searched_as_text_more_gold_answers_are_unscorable(score: Score, gold: str) -> None:
    assert math.isnan(score(gold, boxed(gold), gold="text"))
    assert score(gold, boxed(gold)) == 1.0


def test_the_unscorable_are_counted(inputs: Inputs) -> None:
    reward = component("reward", "math_verify")
    got = reward(inputs([r"\boxed{1}"] * 4, ["1", "", "2", " "])).total
    assert [got[0], got[2]] == [1.0, 0.0]
    assert [math.isnan(s) for s in got] == [False, True, False, True]
    assert reward._guard.failures == 2
    assert reward._guard.first_error == "ValueError: the gold answer '' holds no mathematics"


def test_an_empty_batch(inputs: Inputs) -> None:
    assert component("reward", "math_verify")(inputs([])).total == []


def test_a_missing_package_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, package: str | None = None) -> None:
        assert name == "math_verify"

    monkeypatch.setattr(importlib.util, "find_spec", find)
    sentence = (
        "needs the package math-verify, which is not installed; allowed: math_verify after "
        "pip install 'grpolab[math]'."
    )
    with pytest.raises(ConfigError) as caught:
        component("reward", "math_verify")
    assert str(caught.value) == f"reward.name: math_verify {sentence}"
    with pytest.raises(ConfigError) as caught:
        component("reward", "mixture", parts={"a": {"name": "math_verify"}})
    assert str(caught.value) == f"reward.parts.a.name: math_verify {sentence}"


def test_a_helper_that_cannot_start_ends_the_run(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpolab.rewards.math_verify.JUDGE", "grpolab.rewards.nobody")
    with pytest.raises(HelperFailed, match=r"grpolab.rewards.nobody does not start"):
        component("reward", "math_verify")(inputs(["1"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"after": ""}, "reward.after: '' given"),
        ({"gold": "whloe"}, "did you mean whole?"),
        ({"time_limit": 0.0}, "reward.time_limit: 0.0 is out of bounds"),
        ({"timed_out": -1.0}, "reward.timed_out: -1.0 is out of bounds"),
        ({"workers": 0}, "reward.workers: 0 is out of bounds"),
    ],
)
def test_mistakes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        component("reward", "math_verify", **settings)
    assert message in str(caught.value)


# --- The time limit ------------------------------------------------------------------------------

# None of them ends within hours, or in the memory there is.
BOMBS = [
    r"9^{9^{9^{9}}}",
    r"10^{10^{10}}",
    r"(10^{10})!",
    r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_huge_expressions_are_stopped(score: Score, bomb: str) -> None:
    assert math.isnan(score("3", boxed(bomb), time_limit=1.0))
    assert score("3", boxed("3")) == 1.0


def test_a_bomb_hits_its_own_sample_alone(inputs: Inputs) -> None:
    reward = component("reward", "math_verify", time_limit=3.0, workers=2)
    completions = [boxed("3"), boxed(BOMBS[0]), boxed("4"), boxed("3")]
    got = reward(inputs(completions, "3")).total
    assert [got[0], got[2], got[3]] == [1.0, 0.0, 1.0]
    assert math.isnan(got[1])
    assert reward._guard.failures == 1
    assert "time limit of 3 s" in str(reward._guard.first_error)


@pytest.mark.parametrize(("there", "used"), [(1, 1), (3, 3), (64, 8)])
def test_as_many_helpers_as_processors(
    there: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpolab.rewards.math_verify.processors", lambda: there)
    assert component("reward", "math_verify")._pool._idle.qsize() == used
    assert component("reward", "math_verify", workers=2)._pool._idle.qsize() == 2


def test_scores_keep_their_order_whatever_hangs_beside_them(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpolab.rewards.math_verify.processors", lambda: 3)
    golds = [str(i) for i in range(12)]
    completions = [boxed(BOMBS[0]) if i in (0, 5, 6) else boxed(str(i - i % 2)) for i in range(12)]
    reward = component("reward", "math_verify", time_limit=3.0)
    got = reward(inputs(completions, golds)).total
    assert [i for i, score in enumerate(got) if math.isnan(score)] == [0, 5, 6]
    assert [s for s in got if not math.isnan(s)] == [
        float(i % 2 == 0) for i in range(12) if i not in (0, 5, 6)
    ]
    assert reward(inputs(completions[1:5], golds[1:5])).total == got[1:5]


def test_the_time_limit_can_have_a_score(score: Score) -> None:
    assert score("3", boxed(BOMBS[0]), time_limit=1.0, timed_out=0.0) == 0.0


def test_the_time_limit_holds_in_many_threads(inputs: Inputs) -> None:
    reward = component("reward", "math_verify", time_limit=3.0, workers=2)

    def one(index: int) -> float:
        answer = BOMBS[0] if index == 2 else str(index)
        return float(reward(inputs([boxed(answer)], "4")).total[0])

    with ThreadPoolExecutor(6) as threads:
        got = list(threads.map(one, range(6)))
    assert math.isnan(got.pop(2))
    assert got == [0.0, 0.0, 0.0, 1.0, 0.0]


def test_threads_and_workers_give_the_same_scores(inputs: Inputs) -> None:
    golds, completions, equal = zip(*TABLE[::2], strict=True)
    expected = [float(e) for e in equal]
    reward = component("reward", "math_verify", workers=2)

    def rotated(by: int) -> list[float]:
        turned = reward(
            inputs(completions[by:] + completions[:by], [*golds[by:], *golds[:by]])
        ).total
        return list(turned[len(turned) - by :] + turned[: len(turned) - by])

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(rotated, (0, 7, 19, 30))) == [expected] * 4
