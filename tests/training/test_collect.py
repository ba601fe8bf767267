"""Which prompts a step gets, dynamic sampling, and a step that is left with nothing."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from grpolab.component import component, registry
from grpolab.config import Run
from grpolab.policy.policy import Encoder, Policy
from grpolab.rewards.base import RewardInputs, Scores
from grpolab.rollouts import Rollouts
from grpolab.tracking.folder import RunFolder
from grpolab.training.collect import Collector, correctness
from grpolab.training.loop import Trainer
from grpolab.training.update import Updater

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

SMALL = ("task.train_size=10", "task.held_out_size=4", "prompts_per_step=4")
QUICK = ("sampler.group_size=2", "sampler.max_new_tokens=6")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return lab.policy_of(lab.run_of())


def collector_of(policy: Policy, *overrides: str, **parts: Any) -> Collector:
    run = replace(lab.run_of(*SMALL, *QUICK, *overrides), **parts)
    return Collector(run, policy, run.task.load())


def alternating(inputs: RewardInputs) -> Scores:
    """Every group holds both 0 and 1."""
    return Scores([float(i % 2) for i in range(len(inputs))], {})


def flat_reward(inputs: RewardInputs) -> Scores:
    """No group says anything."""
    return Scores([1.0] * len(inputs), {"flat": [1.0] * len(inputs)})


def some(inputs: RewardInputs) -> Scores:
    """Only prompts with an even sum tell their completions apart."""
    scores = []
    for i, example in enumerate(inputs.examples):
        even = (example.meta["a"] + example.meta["b"]) % 2 == 0
        scores.append(float(i % 2) if even else 0.0)
    return Scores(scores, {})


# -- order -------------------------------------------------------------------------------------


def order(collector: Collector, steps: int) -> list[int]:
    return [i for step in range(steps) for i in collector.prompt_indices(step)]


def test_every_example_once_an_epoch(policy: Policy) -> None:
    places = order(collector_of(policy), 10)
    epochs = [places[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # each in an order of its own


def test_more_prompts_a_step_than_examples(policy: Policy) -> None:
    collector = collector_of(policy, "prompts_per_step=25")
    assert Counter(order(collector, 2)) == dict.fromkeys(range(10), 5)


def test_order_is_the_seed_s_alone(policy: Policy) -> None:
    first = order(collector_of(policy), 5)
    assert order(collector_of(policy, "seed=1"), 5) != first
    variants = [
        ("clip=cispo",),
        ("kl=k3", "reference=old"),
        ("selection=dynamic",),
        ("sampler=hf", "sampler.group_size=5", "sampler.temperature=0.5"),
        ("updates_per_batch=4", "minibatches=2", "optimizer.lr=0.1"),
        ("selection=replay",),
        ("selection=random_subset", "sampler.group_size=4"),
    ]
    for overrides in variants:
        assert order(collector_of(policy, *overrides), 5) == first


def test_order_does_not_depend_on_how_it_is_walked(policy: Policy) -> None:
    collector = collector_of(policy)
    last = collector.prompt_indices(7)
    order(collector, 12)
    collector.prompt_indices(3, 2)
    assert collector.prompt_indices(7) == last


# -- collecting --------------------------------------------------------------------------------


def test_rollouts_hold_prompts_and_scores_in_place(policy: Policy) -> None:
    collector = collector_of(policy, reward=some)
    collected = collector.collect(3)
    rollouts, run = collected.rollouts, collector.run
    indices = collector.prompt_indices(3)
    assert (collected.rounds, rollouts.groups, len(rollouts)) == (1, 4, 8)
    assert rollouts.prompt_index.tolist() == indices
    assert rollouts.rewards is not None
    for group, index in enumerate(indices):
        example = collector.examples.train[index]
        assert rollouts.prompts[group] == example.prompt
        even = (example.meta["a"] + example.meta["b"]) % 2 == 0
        assert rollouts.rewards[group].tolist() == ([0.0, 1.0] if even else [0.0, 0.0])
        for row in (2 * group, 2 * group + 1):
            prompt, completion = lab.sequence(rollouts, row)
            assert prompt == policy.encoder.encode([example.prompt])[0]
            text = policy.encoder.tokenizer.decode(completion, skip_special_tokens=True)
            assert rollouts.texts[row] == text
    assert int(rollouts.lengths.max()) <= run.sampler.max_new_tokens


def test_collecting_is_a_function_of_seed_and_step(policy: Policy) -> None:
    first = collector_of(policy).collect(1).rollouts
    again = collector_of(policy).collect(1).rollouts
    assert first.texts == again.texts
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert collector_of(policy).collect(2).rollouts.texts != first.texts


def dynamic(policy: Policy, reward: Callable[[RewardInputs], Scores], rounds: int = 4) -> Collector:
    selection = component("selection", "dynamic", max_rounds=rounds)
    return collector_of(policy, reward=reward, selection=selection)


def test_dynamic_sampling_stops_once_full(policy: Policy) -> None:
    collected = dynamic(policy, alternating).collect(0)
    assert (collected.rounds, collected.rollouts.groups) == (1, 4)


def test_dynamic_sampling_refills_and_never_overfills(policy: Policy) -> None:
    rounds = set()
    for step in range(8):
        collector = dynamic(policy, some)
        collected = collector.collect(step)
        rounds.add(collected.rounds)
        rollouts = collected.rollouts
        assert rollouts.groups <= 4
        assert rollouts.groups == 4 or collected.rounds == 4
        assert rollouts.rewards is not None
        assert rollouts.rewards.shape == (rollouts.groups, 2)
        assert bool((rollouts.rewards[:, 0] != rollouts.rewards[:, 1]).all())
        assert len(rollouts.texts) == len(rollouts) == 2 * len(rollouts.prompts)
        assert collected.everything.groups >= rollouts.groups
        assert collected.everything.prompt_index[:4].tolist() == collector.prompt_indices(step)
        again = dynamic(policy, some).collect(step)
        assert again.rollouts.texts == rollouts.texts
        assert torch.equal(again.rollouts.prompt_index, rollouts.prompt_index)
        assert torch.equal(again.everything.completion_ids, collected.everything.completion_ids)
    assert len(rounds) > 1


@pytest.mark.parametrize("limit", [1, 3])
def test_dynamic_sampling_gives_up_after_its_rounds(policy: Policy, limit: int) -> None:
    collected = dynamic(policy, flat_reward, limit).collect(0)
    assert collected.rounds == limit
    assert collected.rollouts.groups == 0
    assert collected.everything.groups == 4 * limit


def graded(inputs: RewardInputs) -> Scores:
    """0, 1, NaN, 3, 4, 5 in each group of six."""
    return Scores([math.nan if i % 6 == 2 else float(i % 6) for i in range(len(inputs))], {})


@pytest.mark.parametrize("name", ["max_variance", "best_and_worst"])
def test_members_are_cut_before_the_advantage(policy: Policy, name: str) -> None:
    selection = component("selection", name, keep=3)
    collector = collector_of(policy, "sampler.group_size=6", reward=graded, selection=selection)
    collected = collector.collect(0)
    rollouts, seen = collected.rollouts, collected.everything
    assert (seen.group_size, len(seen), rollouts.group_size, rollouts.groups) == (6, 24, 3, 4)
    # {0, 4, 5}: Σ(x − 3)² = 14, as of {0, 1, 5}; of equals the one with more of the best
    assert rollouts.rewards is not None
    assert rollouts.rewards.tolist() == [[0.0, 4.0, 5.0]] * 4
    rows = [6 * g + m for g in range(4) for m in (0, 4, 5)]
    assert rollouts.texts == [seen.texts[r] for r in rows]
    assert torch.equal(rollouts.completion_ids, seen.completion_ids[rows])
    assert torch.equal(rollouts.sampler_logps, seen.sampler_logps[rows])  # type: ignore[arg-type, index]
    # their own mean 3 and std √(14/2), not those of the six
    advantages = Updater(collector.run, policy).advantages(rollouts, None)
    expected = [x / math.sqrt(7) for x in (-3.0, 1.0, 2.0)]
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-3)  # eps 1e-4


def test_refills_shift_no_other_step(policy: Policy) -> None:
    plain, refilled = collector_of(policy), dynamic(policy, some)
    for step in range(3):
        assert refilled.collect(step).everything.prompts[:4] == plain.collect(step).rollouts.prompts


def trainer(run: Run, folder: Path) -> Trainer:
    folder.mkdir()
    return Trainer(run, Encoder(run.model), run.task.load(), RunFolder(folder))


def test_a_step_without_a_group_goes_on(tmp_path: Path) -> None:
    run = lab.run_of(*SMALL, *QUICK, "selection=dynamic", "steps=2", "eval.samples=0", "kl=k3")
    run = replace(run, reward=flat_reward)
    job = trainer(run, tmp_path / "run")
    before = [p.detach().clone() for p in job.policy.trainable().values()]
    logged: list[dict[str, float]] = []
    try:
        job.fit(lambda step, metrics: logged.append(metrics))
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(logged) == 3
    for metrics in logged[1:]:
        assert metrics["optim/updates"] == 0
        assert metrics["reward/zero_std_share"] == 1.0
        assert metrics["reward/mean"] == metrics["reward/flat"] == 1.0
    after = job.policy.trainable().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def one_step(run: Run, folder: Path) -> dict[str, float]:
    """The metrics of a run's first step."""
    logged: list[dict[str, float]] = []
    try:
        trainer(run, folder).fit(lambda step, metrics: logged.append(metrics))
    finally:
        torch.use_deterministic_algorithms(False)
    return logged[1]


@pytest.mark.parametrize("name", sorted(registry("selection")))
def test_a_step_with_each_selection(name: str, tmp_path: Path) -> None:
    run = lab.run_of(
        *SMALL, *QUICK, "sampler.group_size=6", "steps=1", "eval.samples=0", f"selection={name}"
    )
    whole = one_step(
        replace(run, reward=graded, selection=component("selection", "all")), tmp_path / "all"
    )
    found = one_step(replace(run, reward=graded), tmp_path / "run")
    assert found["optim/updates"] == 1
    assert found["reward/mean"] == whole["reward/mean"] == pytest.approx(13 / 5)
    assert found["tokens/generated"] == whole["tokens/generated"]
    cut = found["tokens/trained"] < whole["tokens/trained"]
    assert cut == hasattr(run.selection, "keep")


@pytest.mark.parametrize("level", ["token", "sequence_sum", "sequence_mean"])
def test_a_step_with_each_correction(level: str, tmp_path: Path) -> None:
    """A hotter sampler: what is logged does not depend on the bound, what is learnt does."""
    overrides = (*SMALL, *QUICK, "steps=1", "eval.samples=0", "sampler.temperature=1.5")
    run = replace(lab.run_of(*overrides), reward=alternating)
    names = {
        "free": component("correction", "truncate", level=level, cap=math.inf),
        "truncate": component("correction", "truncate", level=level, cap=1.05),
        "mask": component("correction", "mask", level=level, low=0.9, high=1.05),
    }
    found = {k: one_step(replace(run, correction=c), tmp_path / k) for k, c in names.items()}
    for key in ("mean", "std", "min", "max"):
        values = {m[f"correction/{key}"] for m in found.values()}
        assert len(values) == 1
        assert math.isfinite(values.pop())
    assert found["free"]["correction/clipped_share"] == 0
    assert found["free"]["correction/min"] < 0.9 < 1.05 < found["free"]["correction/max"]
    for name in ("truncate", "mask"):
        assert 0 < found[name]["correction/clipped_share"] <= 1
        assert found[name]["optim/grad_norm"] != found["free"]["optim/grad_norm"]


def test_runs_of_one_seed_are_paired_until_they_differ(tmp_path: Path) -> None:
    found = {}
    for name in ("ppo", "cispo"):
        run = lab.run_of(*SMALL, *QUICK, "steps=1", "eval.samples=2", f"clip={name}")
        job = trainer(run, tmp_path / name)
        logged: list[dict[str, float]] = []
        try:
            job.fit(lambda step, metrics, to=logged: to.append(metrics))  # type: ignore[misc]
        finally:
            torch.use_deterministic_algorithms(False)
        found[name] = logged
    for step, key in ((0, "eval/accuracy"), (0, "eval/pass@2"), (1, "reward/mean")):
        assert found["ppo"][step][key] == found["cispo"][step][key]
    assert found["ppo"][1]["length/mean"] == found["cispo"][1]["length/mean"]


class Counting:
    """Asks a task's verifier and counts; an answer of 7 it fails to judge."""

    def __init__(self, task: Any) -> None:
        self.task, self.asked = task, Counter[str]()

    def load(self) -> Any:
        return self.task.load()

    def verify(self, completion: str, example: Any) -> float:
        self.asked[completion + example.prompt] += 1
        if completion.strip() == "7":
            raise RuntimeError("no judge of 7")
        return float(self.task.verify(completion, example))


@pytest.mark.parametrize(
    ("overrides", "times"),
    [
        (["reward=task"], 1),
        (["reward=task", "reward.time_limit=60"], 2),
        (["reward=cosine_length"], 1),
        (["reward=numeric"], 1),
        (["reward=mixture", "reward.parts={a:{name:numeric},b:{name:task,weight:0}}"], 1),
    ],
)
def test_what_scoring_has_verified_is_not_verified_again(
    policy: Policy, overrides: list[str], times: int
) -> None:
    run = replace(lab.run_of(*SMALL, *QUICK, *overrides))
    task = Counting(run.task)
    collected = Collector(replace(run, task=task), policy, run.task.load()).collect(0)
    seen = collected.everything
    load = run.task.load().train
    examples = [load[i] for i in seen.prompt_index.tolist() for _ in range(seen.group_size)]
    found = correctness(task, seen.texts, examples, collected.verified)  # type: ignore[arg-type]
    rows = Counter(t + e.prompt for t, e in zip(seen.texts, examples, strict=True))
    judged = {k: n for k, n in task.asked.items() if not k.startswith("7")}
    assert judged == {k: times * n for k, n in rows.items() if k in judged}
    assert judged
    assert found == correctness(task, seen.texts, examples)  # type: ignore[arg-type]


def test_only_what_scoring_could_not_verify_is_asked_again() -> None:
    task = Counting(component("task", "arithmetic", train_size=2))
    examples = [next(iter(task.load().train))] * 4
    texts = [examples[0].answer, "nothing", "7", examples[0].answer]
    known = [0.0, 1.0, math.nan, math.nan]
    assert correctness(task, texts, examples, known) == [  # type: ignore[arg-type]
        False, True, False, True,
    ]  # fmt: skip
    assert sum(task.asked.values()) == 2


def test_correctness_is_the_task_s_own() -> None:
    task = component("task", "arithmetic", train_size=2)
    examples = list(task.load().train)
    texts = [f"so {examples[0].answer}", "nothing"]
    assert correctness(task, texts, examples) == [True, False]

    class Broken:
        def verify(self, completion: str, example: Any) -> float:
            if completion == "nothing":
                raise RuntimeError("no")
            return math.nan

    assert correctness(Broken(), texts, examples) == [False, False]  # type: ignore[arg-type]


# -- scoring beside the sampler ----------------------------------------------------------------

JUDGE = """
calls = []

def judge(completion, example):
    calls.append((completion, example.prompt))
    return float(len(completion))
"""


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    name = f"judge_{tmp_path.name}"  # another module for each test, none of which is found loaded
    (tmp_path / f"{name}.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module(name)


def judged(policy: Policy, judge: Any, workers: int) -> Collector:
    function = f"reward.function='{judge.__name__}:judge'"
    words = ["reward=python", function, f"reward.workers={workers}"]
    return collector_of(policy, *words, "sampler.group_size=8")


@pytest.mark.parametrize("room", [None, 1, 3])
def test_completions_are_scored_while_others_are_sampled(
    policy: Policy, judge: Any, room: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = judged(policy, judge, 1).collect(1).rollouts
    judge.calls.clear()
    collector = judged(policy, judge, 2)
    collector.room.prompts = room
    ahead: list[tuple[str, str]] = []
    begin = type(collector.run.reward).ahead

    def seen(self: Any, completions: Any, examples: Any, elsewhere: bool) -> None:
        assert not elsewhere  # the sampler runs on this processor
        ahead.extend((c, e.prompt) for c, e in zip(completions, examples, strict=True))
        begin(self, completions, examples, elsewhere)

    monkeypatch.setattr(type(collector.run.reward), "ahead", seen)
    found = collector.collect(1).rollouts
    assert found.texts == expected.texts
    assert torch.equal(scored(found), scored(expected))
    whole = Counter((t, p) for t, p in zip(found.texts, rows_prompts(found), strict=True))
    assert Counter(judge.calls) == whole  # each once
    assert 0 < len(ahead) < len(found.texts)
    assert not Counter(ahead) - whole


def scored(rollouts: Rollouts) -> torch.Tensor:
    assert rollouts.rewards is not None
    return rollouts.rewards


def rows_prompts(rollouts: Rollouts) -> list[str]:
    return [prompt for prompt in rollouts.prompts for _ in range(rollouts.group_size)]


def test_a_sampler_that_fails_leaves_nothing_begun(
    policy: Policy, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = judged(policy, judge, 2)
    reward = collector.run.reward
    begin = type(reward).ahead

    def fails(self: Any, completions: Any, examples: Any, elsewhere: bool) -> None:
        begin(self, completions, examples, elsewhere)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(reward), "ahead", fails)
    with pytest.raises(KeyboardInterrupt):
        collector.collect(1)
    assert not reward._ahead._begun


def test_a_reward_that_fails_leaves_nothing_begun(
    policy: Policy, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = judged(policy, judge, 2)
    reward = collector.run.reward
    forget, forgot = type(reward).forget, []

    def interrupted(self: Any, inputs: Any) -> Any:
        assert reward._ahead._begun
        raise KeyboardInterrupt

    def seen(self: Any) -> None:
        forget(self)
        forgot.append(len(reward._ahead._begun))

    monkeypatch.setattr(type(reward), "__call__", interrupted)
    monkeypatch.setattr(type(reward), "forget", seen)
    with pytest.raises(KeyboardInterrupt):
        collector.collect(1)
    assert forgot == [0]


def test_a_call_that_begins_again_has_nothing_scored_twice(
    policy: Policy, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = judged(policy, judge, 2)
    begin, begun = type(collector.run.reward).ahead, []

    def fails_once(self: Any, completions: Any, examples: Any, elsewhere: bool) -> None:
        begin(self, completions, examples, elsewhere)
        if completions:
            begun.append(len(completions))
        if len(begun) == 1:
            begun.append(0)
            raise MemoryError

    monkeypatch.setattr(type(collector.run.reward), "ahead", fails_once)
    with pytest.warns(UserWarning, match="out of memory while sampling"):
        found = collector.collect(1).rollouts
    assert collector.room.prompts == 2
    assert sorted(c for c, _ in judge.calls) == sorted(found.texts)
    assert scored(found).flatten().tolist() == [float(len(text)) for text in found.texts]


def test_nothing_is_told_where_the_reward_does_not_look_ahead(policy: Policy, judge: Any) -> None:
    assert judged(policy, judge, 1)._finished([0, 1]) is None
    assert judged(policy, judge, 2)._finished([0, 1]) is not None
