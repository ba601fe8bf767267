"""pass@k, evaluation, selection, and the metrics that follow from rollouts alone."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, product
from typing import TYPE_CHECKING

import pytest
import torch

from grpolab.component import component
from grpolab.training import evaluate
from grpolab.training.evaluate import Evaluator, pass_at_k, powers_of_two
from grpolab.training.metrics import (
    advantage_metrics,
    difficulty_metrics,
    length_metrics,
    reward_metrics,
)

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

NAN = math.nan


# -- pass@k ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "correct", "k", "value"),
    [(10, 3, 5, 11 / 12), (10, 0, 5, 0.0), (10, 10, 1, 1.0), (4, 1, 1, 0.25), (4, 3, 2, 1.0)],
)
def test_pass_at_k(n: int, correct: int, k: int, value: float) -> None:
    assert pass_at_k(n, correct, k) == pytest.approx(value, abs=1e-12)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    for n, k in [(5, 1), (5, 3), (6, 2), (6, 6)]:
        for correct in range(n + 1):
            subsets = list(combinations([i < correct for i in range(n)], k))
            share = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(n, correct, k) == pytest.approx(share)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.83])
def test_pass_at_k_is_unbiased(p: float) -> None:
    for n, k in [(4, 2), (6, 4), (5, 5)]:
        expected = 0.0
        for outcome in product([0, 1], repeat=n):
            chance = math.prod(p if right else 1 - p for right in outcome)
            expected += chance * pass_at_k(n, sum(outcome), k)
        assert expected == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_refuses_the_undefined(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="undefined"):
        pass_at_k(n, correct, k)


def test_powers_of_two() -> None:
    found = {n: powers_of_two(n) for n in (1, 2, 6, 8)}
    assert found == {1: [1], 2: [1, 2], 6: [1, 2, 4, 6], 8: [1, 2, 4, 8]}


def test_evaluation_repeats_and_counts() -> None:
    run = lab.run_of("task.train_size=4", "task.held_out_size=12", "eval.samples=4")
    policy = lab.policy_of(run)
    evaluator = Evaluator(run, policy, run.task.load())
    metrics = evaluator.evaluate(0)
    assert metrics == evaluator.evaluate(5)  # the same noise at every step
    assert set(metrics) == {"eval/accuracy", "eval/length"} | {f"eval/pass@{k}" for k in (1, 2, 4)}
    assert 0 < metrics["eval/pass@1"] <= metrics["eval/pass@2"] <= metrics["eval/pass@4"] <= 1
    assert metrics["eval/accuracy"] * 12 == pytest.approx(round(metrics["eval/accuracy"] * 12))
    fewer = replace(run, eval=replace(run.eval, prompts=3, samples=0))
    evaluator = Evaluator(fewer, policy, run.task.load())
    assert len(evaluator.examples) == 3
    assert set(evaluator.evaluate(0)) == {"eval/accuracy", "eval/length"}


def test_evaluation_in_chunks_judges_the_right_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run_of("task.train_size=4", "task.held_out_size=12", "eval.samples=0")
    policy = lab.policy_of(run)
    whole = Evaluator(run, policy, run.task.load()).evaluate(0)
    monkeypatch.setattr(evaluate, "MAX_ROWS", 5)
    assert Evaluator(run, policy, run.task.load()).evaluate(0) == whole


# -- selection ---------------------------------------------------------------------------------


def test_dynamic_keeps_groups_that_differ() -> None:
    rewards = torch.tensor(
        [[0.0, 1.0, 0.0], [1, 1, 1], [NAN, 1, 1], [NAN, 0, 1], [NAN, NAN, NAN], [NAN, NAN, 1]]
    )
    assert component("selection", "dynamic")(rewards)[:, 0].tolist() == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    assert bool(component("selection", "all")(rewards).all())


# -- metrics -----------------------------------------------------------------------------------


def test_reward_metrics_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.5, 0.5], [NAN, 1.0], [NAN, NAN]])
    parts = {"format": torch.tensor([[1.0, 1.0], [0.0, NAN], [NAN, NAN], [NAN, 0.0]])}
    metrics = reward_metrics(rewards, parts)
    mean = (1 + 0 + 0.5 + 0.5 + 1) / 5
    squares = sum((x - mean) ** 2 for x in (1, 0, 0.5, 0.5, 1))
    assert metrics == pytest.approx(
        {
            "reward/mean": mean,
            "reward/std": math.sqrt(squares / 4),
            "reward/zero_std_share": 2 / 4,  # [.5, .5] and [NaN, 1]; nothing is known of the last
            "reward/unscorable_share": 3 / 8,
            "reward/format": 2 / 4,
        }
    )


@pytest.mark.parametrize(("value", "mean"), [(NAN, NAN), (2.0, 2.0)])
def test_reward_metrics_of_one_sample(value: float, mean: float) -> None:
    metrics = reward_metrics(torch.tensor([[value]]), {})
    assert metrics["reward/mean"] == pytest.approx(mean, nan_ok=True)
    assert metrics["reward/std"] == 0.0


def test_length_metrics_by_hand() -> None:
    rollouts = lab.made_up_rollouts([3, 2], [4, 0, 12, 2], group_size=2)
    rollouts.truncated = torch.tensor([False, False, True, False])
    metrics = length_metrics(rollouts, [True, False, False, True])
    assert metrics == {
        "length/mean": 4.5,
        "length/max": 12.0,
        "length/correct": 3.0,
        "length/wrong": 6.0,
        "length/truncated_share": 0.25,
    }
    assert math.isnan(length_metrics(rollouts, [False] * 4)["length/correct"])


def test_advantage_metrics_by_hand() -> None:
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    metrics = advantage_metrics(torch.tensor([[1.0, -1.0], [0.0, -2.0]]), mask)
    assert metrics["advantage/std"] == pytest.approx(math.sqrt((1.5**2 + 0.5**2 * 2 + 1.5**2) / 3))
    assert metrics["advantage/abs_max"] == 2.0
    tokens = torch.tensor([[1.0, -1.0], [0.0, 9.0], [-2.0, 0.0], [0.0, 0.0]])  # 9: in the padding
    metrics = advantage_metrics(tokens, mask)
    assert metrics["advantage/abs_max"] == 2.0
    assert metrics["advantage/std"] == pytest.approx(tokens[mask].double().std().item())
    empty = advantage_metrics(torch.zeros(0, 2), mask[:0])
    assert empty == {"advantage/std": 0.0, "advantage/abs_max": 0.0}


def test_difficulty_metrics_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [math.nan, 1, 1, 0]])
    advantages = torch.tensor([[-1.0, 3, -1, -1], [2, -0.5, -0.5, -1], [0, 0, 0, 0], [9, 9, 9, 9]])
    mask = torch.ones(16, 2, dtype=torch.bool)
    expected = {"advantage/abs_at_1_of_4": 1.25, "advantage/abs_at_4_of_4": 0.0}
    assert difficulty_metrics(rewards, advantages, mask) == expected
    # of tokens: the mean over a completion's valid ones
    tokens = advantages.reshape(-1, 1).repeat(1, 2)
    mask[:, 1] = False
    tokens[:, 1] = 77.0  # padding
    assert difficulty_metrics(rewards, tokens, mask) == expected


@pytest.mark.parametrize(
    "rewards",
    [
        torch.zeros(2, 4),
        torch.tensor([[0.0, 0.5, 1.0, 0.0]]),
        torch.full((1, 4), math.nan),
        torch.tensor([[0.0], [1.0]]),
        torch.tensor([[0.0, 1.0] * 20]),
        torch.zeros(0, 4),
    ],
)
def test_difficulty_needs_two_rewards_and_groups_of_some(rewards: torch.Tensor) -> None:
    mask = torch.ones(rewards.numel(), 3, dtype=torch.bool)
    assert difficulty_metrics(rewards, torch.zeros_like(rewards), mask) == {}


@pytest.mark.parametrize(
    ("ddof", "p", "f"), [(0, 0.1, 2.3277), (0, 0.25, 2.0261), (0, 0.5, 1.8557)]
)
def test_the_mean_over_groups_gives_the_known_weight(ddof: int, p: float, f: float) -> None:
    """f_G(p) of a z-score: E[mean |A|] / 2p(1 − p) over the right answers of a group of 8."""
    rows = torch.tensor([[1.0] * k + [0.0] * (8 - k) for k in range(9)])
    advantages = component("advantage", "group_zscore", ddof=ddof, eps=0.0)(rows.double())
    found = difficulty_metrics(rows, advantages, torch.ones(72, 1, dtype=torch.bool))
    expected = sum(
        math.comb(8, k) * p**k * (1 - p) ** (8 - k) * found[f"advantage/abs_at_{k}_of_8"]
        for k in range(9)
    )
    assert expected / (2 * p * (1 - p)) == pytest.approx(f, abs=5e-5)
