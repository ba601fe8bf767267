"""The buffer of past groups: what it holds, and what it gives back."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpolab.component import component
from grpolab.rollouts import Rollouts
from grpolab.training.replay import ReplayBuffer, fill, replay_metrics

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

NAN = math.nan
often = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def buffer_of(**settings: Any) -> ReplayBuffer:
    return ReplayBuffer(component("selection", "replay", **settings))


def batch(
    rewards: Sequence[Sequence[float]], seed: int = 0, ages: Sequence[int] | None = None
) -> Rollouts:
    """Scored groups with everything a step's rollouts have; padding holds garbage."""
    groups, size = len(rewards), len(rewards[0])
    source = torch.Generator().manual_seed(100 + seed)
    lengths = torch.randint(1, 6, (groups * size,), generator=source).tolist()
    prompts = torch.randint(1, 5, (groups,), generator=source).tolist()
    found = lab.made_up_rollouts(
        prompts, lengths, group_size=size, seed=seed, width=7, prompt_width=6, dtype=torch.float32
    )
    found.rewards = torch.tensor(rewards)
    found.reward_parts = {"task.ü": 2 * found.rewards}
    found.truncated = torch.rand(groups * size, generator=source) < 0.5
    found.prompts = [f"prompt {seed}.{g}" for g in range(groups)]
    found.texts = [f'{seed}: "é\n{n}' for n in range(groups * size)]
    for name in ("old_logps", "ref_logps", "kl_penalty", "collision"):
        setattr(found, name, torch.randn(found.mask.shape, generator=source))
    found.greedy_rewards = torch.rand(groups, generator=source)
    if ages is not None:
        found.ages = torch.tensor(ages)
    return found


def names(groups: Sequence[Rollouts]) -> list[str]:
    return [g.prompts[0] for g in groups]


def draw(buffer: ReplayBuffer, step: int, count: int = 99, seed: int = 0) -> list[Rollouts]:
    return buffer.draw(step, count, torch.Generator().manual_seed(seed))


def held(buffer: ReplayBuffer) -> list[str]:
    return names([e.group for e in buffer.entries])


# -- what enters, and what leaves --------------------------------------------------------------


def test_fresh_informative_groups_enter() -> None:
    buffer = buffer_of()
    rewards = [[0.0, 1.0], [1.0, 1.0], [NAN, 1.0], [0.5, 0.0], [1.0, 0.0]]
    buffer.add(batch(rewards, ages=[0, 0, 0, 2, 0]), step=3)
    assert held(buffer) == ["prompt 0.0", "prompt 0.4"]  # 0.3 was replayed: it is in already
    assert [e.step for e in buffer.entries] == [3, 3]


def test_a_group_is_kept_as_it_was_without_padding_and_on_its_own() -> None:
    rollouts = batch([[0.0, 1.0, NAN], [1.0, 0.0, 0.0]])
    before = copy.deepcopy(rollouts)
    buffer = buffer_of()
    buffer.add(rollouts, step=0)
    for value in (getattr(rollouts, f.name) for f in fields(rollouts)):
        if isinstance(value, Tensor):
            value.zero_()  # the buffer must not notice
    for place, entry in enumerate(buffer.entries):
        rows, group = slice(3 * place, 3 * place + 3), entry.group
        width, prompt = int(group.lengths.max()), int(group.prompt_lengths.max())
        assert group.mask.shape == (3, width)
        assert group.prompt_ids.shape == (3, prompt)
        assert torch.equal(group.prompt_ids, before.prompt_ids[rows, :prompt])
        for name in ("completion_ids", "mask", "old_logps", "sampler_logps", "collision"):
            assert torch.equal(getattr(group, name), getattr(before, name)[rows, :width]), name
        assert torch.equal(group.truncated, before.truncated[rows])
        assert group.texts == before.texts[rows]
        assert group.prompts == [before.prompts[place]]
        assert before.rewards is not None
        assert before.greedy_rewards is not None
        assert group.rewards is not None
        assert torch.equal(group.rewards[0].isnan(), before.rewards[place].isnan())
        assert torch.equal(
            group.reward_parts["task.ü"].nan_to_num(), 2 * group.rewards.nan_to_num()
        )
        assert group.greedy_rewards is not None
        assert float(group.greedy_rewards[0]) == float(before.greedy_rewards[place])
        # what the step that replays it computes anew
        assert (group.ref_logps, group.advantages, group.kl_penalty) == (None, None, None)


def test_the_oldest_leave_a_full_buffer() -> None:
    buffer = buffer_of(size=3)
    for step in range(3):
        buffer.add(batch([[0.0, 1.0], [1.0, 0.0]], seed=step), step)
        assert len(buffer) == min(3, 2 * (step + 1))
    assert held(buffer) == ["prompt 1.1", "prompt 2.0", "prompt 2.1"]


def test_staleness() -> None:
    buffer = buffer_of(max_staleness=2)
    buffer.add(batch([[0.0, 1.0]], seed=5), step=5)
    buffer.add(batch([[0.0, 1.0]], seed=6), step=6)
    found = draw(buffer, step=7)
    assert {g.prompts[0]: g.ages.tolist() for g in found} == {"prompt 5.0": [2], "prompt 6.0": [1]}
    assert names(draw(buffer, step=8)) == ["prompt 6.0"]
    assert len(buffer) == 1
    assert draw(buffer, step=9) == []


# -- what is drawn -----------------------------------------------------------------------------


def full(priority: str = "uniform", rewards: Sequence[Sequence[float]] = ()) -> ReplayBuffer:
    buffer = buffer_of(priority=priority)
    for seed, row in enumerate(rewards or [[0.0, 1.0]] * 4):
        buffer.add(batch([row], seed=seed), step=0)
    return buffer


@often
@given(count=st.integers(0, 6), seed=st.integers(0, 999))
def test_no_group_is_drawn_twice(count: int, seed: int) -> None:
    buffer = full()
    found = names(draw(buffer, 1, count, seed))
    assert len(found) == len(set(found)) == min(4, count)
    assert set(found) <= set(held(buffer))
    assert found == names(draw(buffer, 1, count, seed))  # and it stays to be drawn again


@pytest.mark.parametrize(
    ("priority", "rewards", "expected"),
    [
        ("uniform", [[0.0, 9.0], [0.0, 1.0], [0.0, 2.0]], [1 / 3, 1 / 3, 1 / 3]),
        # standard deviations 2, 1/2 and, of (1, 0, 1, 0) with the NaN left out, 1/2
        ("by_std", [[0.0, 4.0], [0.0, 1.0]], [4 / 5, 1 / 5]),
        ("by_std", [[1.0, 0.0, 1.0, 0.0, NAN], [3.0, 3.0, -1.0, -1.0, NAN]], [1 / 5, 4 / 5]),
    ],
)
def test_priorities(priority: str, rewards: list[list[float]], expected: list[float]) -> None:
    buffer = full(priority, rewards)
    n = 4000
    first = Counter(names(draw(buffer, 1, 1, seed))[0] for seed in range(n))
    for place, share in enumerate(expected):
        sigma = math.sqrt(share * (1 - share) / n)
        assert abs(first[f"prompt {place}.0"] / n - share) < 4 * sigma


def test_the_rest_is_drawn_in_proportion_too() -> None:
    """Weights 4, 1, 1: after the first, the second draw has (4 of 5 after a light one; 1/2 after
    the heavy one): P(second is the heavy one) = 2/6 · 4/5 = 4/15."""
    buffer = full("by_std", [[0.0, 8.0], [0.0, 2.0], [0.0, 2.0]])
    n = 4000
    second = sum(names(draw(buffer, 1, 2, seed))[1] == "prompt 0.0" for seed in range(n)) / n
    assert abs(second - 4 / 15) < 4 * math.sqrt(4 / 15 * 11 / 15 / n)


@pytest.mark.parametrize(
    ("share", "fresh", "places", "expected"),
    [
        (1.0, 0, 4, 4), (1.0, 3, 1, 1), (1.0, 4, 0, 0),
        (0.5, 2, 6, 2), (0.5, 0, 4, 0), (0.5, 3, 1, 1),
        (0.7, 3, 9, 7), (0.29, 71, 40, 29),  # though .29 · 100 is a rounding below 29
        (0.25, 3, 5, 1), (0.25, 2, 6, 0),
    ],
)  # fmt: skip
def test_share_of_the_buffer(share: float, fresh: int, places: int, expected: int) -> None:
    assert buffer_of(max_share=share).allowed(fresh, places) == expected


@often
@given(share=st.floats(0.01, 1), fresh=st.integers(0, 12), places=st.integers(0, 12))
def test_the_share_is_never_exceeded_and_used_up(share: float, fresh: int, places: int) -> None:
    n = buffer_of(max_share=share).allowed(fresh, places)
    assert n <= share * (fresh + n) + 1e-6
    assert n == places or n + 1 > share * (fresh + n + 1)


# -- filling a batch ---------------------------------------------------------------------------


def test_past_groups_take_the_places_of_those_that_fell_out() -> None:
    fresh = replace(
        batch([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], seed=1),
        old_logps=None, ref_logps=None, kl_penalty=None, collision=None, advantages=None,
    )  # fmt: skip
    kept = torch.tensor([True, False, False, True, False])
    buffer = buffer_of()
    buffer.add(batch([[0.0, 5.0], [5.0, 0.0]], seed=7), step=2)
    past = draw(buffer, step=5)
    first, second = names(past)
    found = fill(fresh, kept, past)
    assert found.prompts == ["prompt 1.0", first, second, "prompt 1.3"]
    assert found.ages.tolist() == [0, 3, 3, 0]
    assert found.texts[:2] == fresh.texts[:2]
    assert found.texts[2:4] == past[0].texts
    assert found.rewards is not None
    assert found.rewards.shape == (4, 2)
    assert found.old_logps is not None
    assert found.old_logps[:2].isnan().all()  # to be scored
    assert past[0].old_logps is not None
    rows = found.old_logps[2:4][found.mask[2:4]]
    assert torch.equal(rows, past[0].old_logps[past[0].mask])
    assert torch.equal(found.lengths[2:4], past[0].lengths)
    assert replay_metrics(found, len(buffer)) == {
        "replay/size": 2.0, "replay/used_share": 0.5, "replay/age": 3.0
    }  # fmt: skip


def test_nothing_to_fill_in() -> None:
    fresh = batch([[0.0, 1.0], [1.0, 1.0]])
    assert fill(fresh, torch.tensor([True, False]), []).prompts == ["prompt 0.0"]
    empty = fill(fresh, torch.tensor([False, False]), [])
    assert empty.groups == 0
    metrics = replay_metrics(empty, 0)
    assert metrics["replay/used_share"] == 0
    assert math.isnan(metrics["replay/age"])


# -- checkpoint --------------------------------------------------------------------------------


def same(a: ReplayBuffer, b: ReplayBuffer) -> None:
    assert [e.step for e in a.entries] == [e.step for e in b.entries]
    for left, right in zip(a.entries, b.entries, strict=True):
        for item in fields(Rollouts):
            x, y = getattr(left.group, item.name), getattr(right.group, item.name)
            if item.name == "reward_parts":
                assert x.keys() == y.keys()
                assert all(torch.equal(x[k].nan_to_num(), y[k].nan_to_num()) for k in x)
            elif isinstance(x, Tensor):
                assert (x.dtype, x.shape) == (y.dtype, y.shape), item.name
                assert x.contiguous().numpy().tobytes() == y.contiguous().numpy().tobytes()
            else:
                assert x == y, item.name


@pytest.mark.parametrize("groups", [0, 1, 3])
def test_a_buffer_survives_its_file(groups: int, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    buffer = buffer_of()
    for step in range(groups):
        rewards = [[0.0, 1.0, NAN]] if step % 2 else [[0.0, 0.25, 1.0]]
        buffer.add(batch(rewards, seed=step), step)
    save_file(buffer.tensors(), tmp_path / "replay.safetensors")
    other = full()  # whatever it held is gone
    other.restore(load_file(tmp_path / "replay.safetensors"))
    same(buffer, other)
    assert names(draw(other, groups, 2)) == names(draw(buffer, groups, 2))
