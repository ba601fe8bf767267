"""The record: rows stay prompt-major and right-padded whatever is dropped or joined."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from grpolab.rollouts import Rollouts, concatenate


def make(start: int, groups: int, group_size: int = 2, prompt: int = 2, width: int = 3) -> Rollouts:
    """Rollouts whose every value tells where it comes from: group number · 100 + member · 10."""
    rows = torch.tensor(
        [(start + g) * 100 + m * 10 for g in range(groups) for m in range(group_size)]
    )
    lengths = 1 + torch.arange(len(rows)) % width

    def tokens(columns: int) -> Tensor:
        return rows[:, None] + torch.arange(columns)

    rewards = rows.reshape(groups, group_size).double()
    return Rollouts(
        prompt_ids=tokens(prompt),
        prompt_lengths=torch.full_like(rows, prompt),
        completion_ids=tokens(width),
        mask=torch.arange(width) < lengths[:, None],
        group_size=group_size,
        prompt_index=torch.arange(start, start + groups),
        truncated=rows % 20 == 0,
        prompts=[f"prompt {start + g}" for g in range(groups)],
        texts=[f"text {r}" for r in rows.tolist()],
        sampler_logps=-tokens(width).double(),
        sampler_policy_logps=-2.0 * tokens(width),
        old_logps=-3.0 * tokens(width),
        ref_logps=-4.0 * tokens(width),
        rewards=rewards,
        reward_parts={"one": rewards + 1, "two": rewards + 2},
        advantages=rewards - 5,
    )


def same(a: Rollouts, b: Rollouts) -> None:
    for field in dataclasses.fields(Rollouts):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, Tensor):
            assert torch.equal(left, right), field.name
            assert left.dtype == right.dtype, field.name
        elif field.name == "reward_parts":
            assert left.keys() == right.keys()
            assert all(torch.equal(left[k], right[k]) for k in left)
        else:
            assert left == right, field.name


def test_sizes() -> None:
    rollouts = make(0, groups=3, group_size=2)
    assert len(rollouts) == 6
    assert rollouts.groups == 3
    assert rollouts.lengths.tolist() == [1, 2, 3, 1, 2, 3]


def test_keep_groups() -> None:
    kept = make(0, groups=4).keep_groups(torch.tensor([True, False, False, True]))
    assert kept.prompt_index.tolist() == [0, 3]
    assert kept.prompts == ["prompt 0", "prompt 3"]
    assert kept.texts == ["text 0", "text 10", "text 300", "text 310"]
    assert kept.completion_ids[:, 0].tolist() == [0, 10, 300, 310]
    assert kept.rewards is not None
    assert kept.rewards.tolist() == [[0, 10], [300, 310]]
    assert kept.reward_parts["two"].tolist() == [[2, 12], [302, 312]]
    assert kept.groups == 2


@pytest.mark.parametrize("group_size", [1, 2, 3])
def test_keep_groups_takes_every_field_along(group_size: int) -> None:
    both = make(4, groups=2, group_size=group_size)
    same(both.keep_groups(torch.tensor([True, True])), both)
    whole = concatenate([make(9, groups=1, group_size=group_size), both])
    same(
        whole.keep_groups(torch.tensor([True, False, False])),
        make(9, groups=1, group_size=group_size),
    )


def test_keep_no_group() -> None:
    kept = make(0, groups=2).keep_groups(torch.tensor([False, False]))
    assert (len(kept), kept.groups, kept.texts, kept.prompts) == (0, 0, [], [])
    assert kept.completion_ids.shape == (0, 3)


def test_keep_groups_leaves_the_original() -> None:
    rollouts = make(0, groups=2)
    rollouts.keep_groups(torch.tensor([False, True]))
    same(rollouts, make(0, groups=2))


def test_keep_groups_with_token_advantages() -> None:
    rollouts = make(0, groups=2)
    tokens = torch.arange(12.0).reshape(4, 3)
    rollouts.advantages = tokens
    kept = rollouts.keep_groups(torch.tensor([False, True]))
    assert kept.advantages is not None
    assert torch.equal(kept.advantages, tokens[2:])


def test_keep_groups_without_later_fields() -> None:
    rollouts = dataclasses.replace(
        make(0, groups=2), rewards=None, advantages=None, old_logps=None, reward_parts={}
    )
    kept = rollouts.keep_groups(torch.tensor([False, True]))
    assert (kept.rewards, kept.advantages, kept.old_logps) == (None, None, None)
    assert kept.prompt_index.tolist() == [1]


def test_concatenate_pads_on_the_right() -> None:
    narrow, wide = make(0, groups=1, width=2, prompt=4), make(1, groups=2, width=5, prompt=1)
    joined = concatenate([narrow, wide])
    assert joined.completion_ids.shape == (6, 5)
    assert joined.prompt_ids.shape == (6, 4)
    assert joined.completion_ids[:2].tolist() == [[0, 1, 0, 0, 0], [10, 11, 0, 0, 0]]
    assert torch.equal(joined.completion_ids[2:], wide.completion_ids)
    assert torch.equal(joined.prompt_ids[:2], narrow.prompt_ids)
    assert joined.prompt_ids[2].tolist() == [100, 0, 0, 0]
    assert joined.mask.dtype == torch.bool
    assert not joined.mask[:2, 2:].any()
    assert torch.equal(joined.lengths, torch.cat([narrow.lengths, wide.lengths]))
    assert joined.prompt_lengths.tolist() == [4, 4, 1, 1, 1, 1]


def test_concatenate_is_prompt_major() -> None:
    joined = concatenate([make(7, groups=1), make(2, groups=2), make(5, groups=1)])
    assert joined.prompt_index.tolist() == [7, 2, 3, 5]
    assert joined.prompts == ["prompt 7", "prompt 2", "prompt 3", "prompt 5"]
    first = [700, 710, 200, 210, 300, 310, 500, 510]
    assert joined.completion_ids[:, 0].tolist() == first
    assert joined.texts == [f"text {r}" for r in first]
    assert joined.rewards is not None
    assert joined.rewards.flatten().tolist() == first
    assert joined.reward_parts["one"].flatten().tolist() == [r + 1 for r in first]
    assert joined.groups == 4


@pytest.mark.parametrize("group_size", [1, 3])
def test_concatenate_undoes_keep_groups(group_size: int) -> None:
    rollouts = make(0, groups=4, group_size=group_size)
    keep = torch.tensor([True, True, False, False])
    same(concatenate([rollouts.keep_groups(keep), rollouts.keep_groups(~keep)]), rollouts)


def test_concatenate_of_one_and_of_missing_fields() -> None:
    one = make(0, groups=2)
    same(concatenate([one]), one)
    bare = [
        dataclasses.replace(make(i, groups=1), ref_logps=None, advantages=None) for i in range(2)
    ]
    joined = concatenate(bare)
    assert (joined.ref_logps, joined.advantages) == (None, None)
    assert joined.old_logps is not None
    assert joined.old_logps.shape == (4, 3)


@pytest.mark.parametrize("name", ["old_logps", "sampler_logps", "sampler_policy_logps"])
def test_what_only_some_batches_know_is_nan_in_the_others(name: str) -> None:
    known, bare = make(0, groups=1, width=2), make(1, groups=2, width=4)
    setattr(bare, name, None)
    for batches in ([known, bare], [bare, known]):
        joined = concatenate(batches)
        value = getattr(joined, name)
        of_known = joined.prompt_index.repeat_interleave(2) == 0
        assert value.shape == (6, 4)
        assert torch.equal(value[of_known][:, :2], getattr(known, name))
        assert value[~of_known].isnan().all()
        assert value.dtype == getattr(known, name).dtype
    assert getattr(concatenate([bare, bare]), name) is None


@pytest.mark.parametrize("name", ["ref_logps", "rewards", "advantages"])
def test_anything_else_all_batches_have_or_none(name: str) -> None:
    known, bare = make(0, groups=1), make(1, groups=1)
    setattr(bare, name, None)
    for batches in ([known, bare], [bare, known]):
        with pytest.raises(ValueError, match=f"only some have {name}"):
            concatenate(batches)


def test_groups_of_different_sizes_are_not_joined() -> None:
    with pytest.raises(ValueError, match=r"different sizes: \[2, 3\]"):
        concatenate([make(0, groups=1), make(1, groups=1, group_size=3)])


def test_empty_batches_do_not_count() -> None:
    whole = make(1, groups=2, group_size=2, width=2)
    empty = make(0, groups=1, group_size=4, width=5).keep_groups(torch.tensor([False]))
    for batches in ([empty, whole], [whole, empty], [empty, whole, empty]):
        same(concatenate(batches), whole)
    assert concatenate([empty, empty]).groups == 0


def test_ages_go_with_their_groups() -> None:
    first, second = make(0, groups=2), make(2, groups=1)
    assert first.ages.tolist() == [0, 0]
    second.ages = torch.tensor([7])
    joined = concatenate([first, second])
    assert joined.ages.tolist() == [0, 0, 7]
    assert joined.keep_groups(torch.tensor([False, True, True])).ages.tolist() == [0, 7]


def test_members_are_kept_with_all_that_belongs_to_them() -> None:
    rollouts = make(0, groups=3, group_size=3)
    members = torch.tensor([[True, False, True], [False] * 3, [False, True, True]])
    kept = rollouts.keep(members)
    assert (kept.group_size, kept.groups) == (2, 2)
    assert kept.prompt_index.tolist() == [0, 2]
    assert kept.prompts == ["prompt 0", "prompt 2"]
    assert kept.texts == ["text 0", "text 20", "text 210", "text 220"]
    assert kept.completion_ids[:, 0].tolist() == [0, 20, 210, 220]
    assert kept.rewards is not None
    assert kept.rewards.tolist() == [[0, 20], [210, 220]]
    assert kept.reward_parts["one"].tolist() == [[1, 21], [211, 221]]
    with pytest.raises(ValueError, match=r"different sizes: \[1, 2\]"):
        rollouts.keep(torch.tensor([[True, False, True], [False] * 3, [False, True, False]]))


def test_to_a_device_moves_everything() -> None:
    rollouts = make(0, groups=2)
    same(rollouts.to("cpu"), rollouts)
    moved = rollouts.to("meta")
    for field in dataclasses.fields(Rollouts):
        value = getattr(moved, field.name)
        assert not isinstance(value, Tensor) or value.device.type == "meta", field.name
    assert all(v.device.type == "meta" for v in moved.reward_parts.values())
    assert moved.texts == rollouts.texts


def test_advantage_rows() -> None:
    rollouts = make(0, groups=2)
    assert rollouts.advantage_rows().tolist() == [[-5], [5], [95], [105]]
    rollouts.advantages = torch.arange(12.0).reshape(4, 3)
    assert torch.equal(rollouts.advantage_rows(), rollouts.advantages)
    rollouts.advantages = None
    with pytest.raises(ValueError, match="no advantages yet"):
        rollouts.advantage_rows()
