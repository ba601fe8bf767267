"""Scores begun while others are still sampled: the same, asked for once, and nothing left over."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpolab.component import ConfigError, component
from grpolab.rewards.base import Reward, RewardInputs
from grpolab.rewards.neural import Classifier

Inputs = Callable[..., RewardInputs]

SOURCE = """
import threading, time

calls = []
together = threading.Barrier(3, timeout=20)

def judge(completion, example):
    calls.append((completion, example.answer))
    if completion == "wait":
        while True:
            time.sleep(0.01)
    if completion == "bad":
        raise RuntimeError("no such answer")
    return len(completion) + 0.5 * (completion == example.answer)

def meeting(completion, example):
    together.wait()
    return 1.0

def slow(completion, example):
    calls.append(completion)
    time.sleep(0.2)
    return 1.0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    name = f"judges_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return __import__(name)


def python(module: Any, function: str, **settings: Any) -> Reward:
    found: Reward = component(
        "reward", "python", function=f"{module.__name__}:{function}", **settings
    )
    return found


TEXTS = ["a", "42", "bad", "abc", "a"]


def begin(reward: Reward, given: RewardInputs, places: list[int], elsewhere: bool = True) -> None:
    assert reward.looks_ahead(elsewhere)
    completions = [given.completions[i] for i in places]
    reward.ahead(completions, [given.examples[i] for i in places], elsewhere)


def left_running() -> list[threading.Thread]:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]
        if not found:
            return []
        time.sleep(0.01)
    return found


def same(got: list[float], expected: list[float]) -> bool:
    return all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize("places", [[], [3], [2, 0], [4, 3, 2, 1, 0]])
def test_a_functions_scores_are_the_same(module: Any, inputs: Inputs, places: list[int]) -> None:
    given = inputs(TEXTS)
    expected = python(module, "judge")(given).total
    assert same(expected, [1.0, 2.5, math.nan, 3.0, 1.0])
    module.calls.clear()
    reward = python(module, "judge", workers=3)
    begin(reward, given, places)
    assert same(reward(given).total, expected)
    assert sorted(module.calls) == sorted((text, "42") for text in TEXTS)  # none twice
    reward.forget()
    assert not left_running()  # a thread that lives would hold up the process's end
    assert "no such answer" in str(reward.first_error)


def test_workers_call_at_once(module: Any, inputs: Inputs) -> None:
    assert python(module, "meeting", workers=3)(inputs(["a", "b", "c"])).total == [1.0] * 3


def test_a_call_is_under_way_before_it_is_asked_for(module: Any, inputs: Inputs) -> None:
    reward, given = python(module, "judge", workers=1 + 1), inputs(["a", "b"])
    begin(reward, given, [0, 1])
    until = time.monotonic() + 20
    while len(module.calls) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(module.calls) == 2
    assert reward(given).total == [1.0, 1.0]


def test_the_time_limit_holds_in_threads(module: Any, inputs: Inputs) -> None:
    reward = python(module, "judge", workers=2, time_limit=0.5)
    given = inputs(["wait", "abc", "wait", "ab"])
    begin(reward, given, [0, 1])
    assert same(reward(given).total, [math.nan, 3.0, math.nan, 2.0])
    assert "time limit of 0.5 s" in str(reward.first_error)


def test_waiting_for_its_turn_is_no_part_of_a_calls_time(module: Any, inputs: Inputs) -> None:
    reward = python(module, "slow", workers=2, time_limit=0.6)
    assert reward(inputs(["x"] * 12)).total == [1.0] * 12  # the last waits a second


def test_what_nobody_asked_for_is_forgotten(module: Any, inputs: Inputs) -> None:
    reward, given = python(module, "slow", workers=2), inputs([str(i) for i in range(20)])
    begin(reward, given, list(range(20)))
    reward.forget()
    time.sleep(0.5)
    assert len(module.calls) <= 4  # those that ran, and a pair that had begun
    assert reward(inputs(["0"])).total == [1.0]


def test_a_score_is_its_own_examples(module: Any, inputs: Inputs) -> None:
    given = inputs(["7", "7"], ["7", "8"])
    reward = python(module, "judge", workers=2)
    begin(reward, given, [1])
    assert reward(given).total == [1.5, 1.0]


def test_where_one_thread_calls_nothing_is_begun(module: Any) -> None:
    assert not python(module, "judge").looks_ahead(True)


def test_one_call_for_all_has_no_workers(module: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"reward\.workers: 2 given with batched=true.*allowed: 1"
    ):
        python(module, "judge", batched=True, workers=2)


def test_a_mixture_hands_on(module: Any, inputs: Inputs) -> None:
    function = f"{module.__name__}:judge"
    part = {"name": "python", "function": function}
    reward = component(
        "reward", "mixture", parts={"many": part | {"workers": 2}, "one": part | {"weight": 2.0}}
    )
    given = inputs(["a", "42"])
    begin(reward, given, [1])
    assert reward(given).total == [3.0, 7.5]
    assert len(module.calls) == 4
    begin(reward, given, [0])
    reward.forget()
    assert not reward._rewards["many"]._ahead._begun
    assert not component("reward", "mixture", parts={"one": part}).looks_ahead(True)


def test_mathematics_is_judged_ahead(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    golds = ["1/2", "3", "x^2", r"\sqrt{4}", "7"]
    texts = [f"\\boxed{{{a}}}" for a in ("0.5", "4", "x*x", "2", "7")]
    given = inputs(texts, golds)
    reward = component("reward", "math_verify", workers=2)
    expected = reward(given).total
    assert expected == [1.0, 0.0, 1.0, 1.0, 1.0]
    asked: list[str] = []
    pool = type(reward._pool)
    ask = pool.__call__

    def counted(self: Any, request: Any) -> Any:
        asked.append(request["completion"])
        return ask(self, request)

    monkeypatch.setattr(pool, "__call__", counted)
    begin(reward, given, [4, 0, 2])
    assert reward(given).total == expected
    assert sorted(asked) == sorted(texts)
    begin(reward, given, [0, 1, 2, 3, 4])  # more than there are helpers: none is waited for
    reward.forget()
    assert not reward._ahead._begun
    assert not reward.looks_ahead(False)  # on the sampler's own processors there is nothing to gain


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_a_classifier_scores_ahead(
    inputs: Inputs, neural: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(["42", "", "it is forty-two", "7", "no"])
    reward = component("reward", "neural", model=neural, device="cpu", batch_size=batch_size)
    expected = reward(given).total
    run: list[int] = []
    logits = Classifier.logits

    def counted(self: Classifier, texts: Any) -> Any:
        run.append(len(texts))
        return logits(self, texts)

    monkeypatch.setattr(Classifier, "logits", counted)
    begin(reward, given, [4, 1, 3])
    assert reward(given).total == pytest.approx(expected, abs=1e-5)
    ahead = 3 // batch_size
    assert run[:ahead] == [batch_size] * ahead
    assert sum(run) == len(given)  # none twice
    reward.forget()
    begin(reward, given, [2, 0])
    reward.forget()
    assert not reward._waiting
    assert not reward._ahead._begun
    assert not reward.looks_ahead(False)


def test_a_batch_that_failed_ahead_is_scored_with_the_rest(
    inputs: Inputs, neural: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(["42", "7", "no"])
    reward = component("reward", "neural", model=neural, device="cpu", batch_size=2)
    expected = reward(given).total
    logits = Classifier.logits
    failed: list[int] = []

    def fails_once(self: Classifier, texts: Any) -> Any:
        if not failed:
            failed.append(len(texts))
            raise RuntimeError("no memory")
        return logits(self, texts)

    monkeypatch.setattr(Classifier, "logits", fails_once)
    begin(reward, given, [0, 1])
    assert reward(given).total == pytest.approx(expected, abs=1e-5)
    assert failed == [2]


@pytest.fixture
def neural(tmp_path: Path) -> str:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    from grpolab.policy.locate import locate

    tokenizer = AutoTokenizer.from_pretrained(locate("tiny"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_rewards_that_do_not_look_ahead_take_nothing(inputs: Inputs) -> None:
    reward = component("reward", "exact_match")
    assert not reward.looks_ahead(True)
    given = inputs(["42", "41"])
    reward.ahead(given.completions, given.examples, True)
    reward.forget()
    assert reward(given).total == [1.0, 0.0]
