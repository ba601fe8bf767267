"""A random reward in a run: where its draws come from, and who shares them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from grpolab.component import component
from grpolab.config import Run
from grpolab.policy.policy import Policy
from grpolab.rewards.base import RewardInputs, Scores
from grpolab.training.collect import Collector, score
from grpolab.training.ranks import Ranks

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

SMALL = ("task.train_size=8", "task.held_out_size=4", "prompts_per_step=3")
QUICK = ("sampler.group_size=4", "sampler.max_new_tokens=3")


class Half(Ranks):
    """One of two ranks that never has to talk to the other."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


@pytest.fixture(scope="module")
def run() -> Run:
    return lab.run_of(*SMALL, *QUICK, "reward=random")


@pytest.fixture(scope="module")
def policy(run: Run) -> Policy:
    return lab.policy_of(run)


def rewards(run: Run, policy: Policy, step: int) -> list[float]:
    found = Collector(run, policy, run.task.load()).collect(step).rollouts.rewards
    assert found is not None
    return found.flatten().tolist()


def test_drawn_by_seed_and_step(run: Run, policy: Policy) -> None:
    first = rewards(run, policy, 0)
    assert set(first) == {0.0, 1.0}
    assert rewards(run, policy, 0) == first
    assert rewards(run, policy, 1) != first
    assert rewards(replace(run, seed=run.seed + 1), policy, 0) != first


def test_the_completions_do_not_count(run: Run, policy: Policy) -> None:
    drawn = rewards(run, policy, 0)
    colder = replace(run, sampler=replace(run.sampler, temperature=0.01))
    assert rewards(colder, policy, 0) == drawn


def test_ranks_draw_what_one_process_draws(run: Run, policy: Policy) -> None:
    examples = run.task.load()
    whole = Collector(run, policy, examples)._reward_noise(3, 5, 0)
    parts = [
        Collector(run, policy, examples, ranks=Half(rank))._reward_noise(3, 5, 0) for rank in (0, 1)
    ]
    for _ in range(2):  # the second call draws others
        assert parts[0](4) + parts[1](4) == whole(4)


def test_parts_of_a_mixture_do_not_share_their_noise(run: Run, policy: Policy) -> None:
    part = {"name": "random"}
    mixed = replace(run, reward=component("reward", "mixture", parts={"a": part, "b": part}))
    examples = run.task.load()
    collector = Collector(mixed, policy, examples)
    parts = collector.collect(0).rollouts.reward_parts
    assert not torch.equal(parts["a"], parts["b"])


def test_a_scorer_without_noise_still_scores(run: Run, policy: Policy) -> None:
    seen: list[bool] = []

    def watching(inputs: RewardInputs) -> Scores:
        seen.append(inputs.noise is None)
        return Scores([1.0] * len(inputs))

    examples = run.task.load()
    rollouts = Collector(run, policy, examples).collect(0).rollouts
    score(replace(run, reward=watching), rollouts, [examples.train[0]] * rollouts.groups)
    assert seen == [True]
