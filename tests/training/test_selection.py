"""Which members train: against brute force over all subsets, and whatever their order."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpolab.component import ConfigError, component, registry
from grpolab.training.selection import Subset

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

NAN = math.nan
often = settings(deadline=None, max_examples=60, derandomize=True, database=None)
SUBSETS = sorted(n for n, c in registry("selection").items() if issubclass(c, Subset))
FEW = st.sampled_from([0.0, 1.0, 1.0, 0.5, -2.0, NAN, math.inf])
REWARDS = st.lists(FEW, min_size=1, max_size=7) | st.lists(
    st.floats(-10, 10, width=32), min_size=1, max_size=7
)


def noise_of(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def members(name: str, rewards: list[float], seed: int = 0, **settings: Any) -> list[int]:
    """The places that one group keeps."""
    row = torch.tensor([rewards], dtype=torch.float64)
    kept: Tensor = component("selection", name, **settings)(row, noise=noise_of(seed, *row.shape))
    return kept[0].nonzero().flatten().tolist()


def scored(rewards: list[float], places: list[int]) -> list[float]:
    return [rewards[i] for i in places if math.isfinite(rewards[i])]


def variance(values: list[float]) -> float:
    mean = sum(values) / max(1, len(values))
    return sum((v - mean) ** 2 for v in values)


def test_the_subsets_are_these() -> None:
    assert SUBSETS == ["best_and_worst", "max_variance", "random_subset"]


# -- max_variance ------------------------------------------------------------------------------


@often
@given(rewards=REWARDS, keep=st.integers(1, 7), seed=st.integers(0, 99))
def test_no_subset_has_a_larger_variance(rewards: list[float], keep: int, seed: int) -> None:
    kept = members("max_variance", rewards, seed, keep=keep)
    finite = [r for r in rewards if math.isfinite(r)]
    assert len(kept) == min(keep, len(rewards))
    found = scored(rewards, kept)
    assert len(found) == min(keep, len(finite))  # unscored ones only where nothing else is left
    best = max(variance(list(s)) for s in itertools.combinations(finite, len(found)))
    assert variance(found) == pytest.approx(best, rel=1e-9, abs=1e-9)


@often
@given(
    rewards=st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=7), keep=st.integers(1, 7)
)
def test_it_is_the_highest_and_the_lowest(rewards: list[float], keep: int) -> None:
    """The lemma: h highest and m − h lowest, so nothing inside is kept while an outer is not."""
    kept = members("max_variance", rewards, keep=keep)
    values, out = sorted(scored(rewards, kept)), sorted(rewards)
    keep = min(keep, len(rewards))
    assert any(values == sorted(out[: keep - h] + out[len(out) - h :]) for h in range(keep + 1))


HAND = [
    # h = 2: {0, .9, 1}, Σ(x − 19/30)² = .6067; h = 1: {0, .2, 1}, Σ(x − .4)² = .56
    ([0.0, 0.2, 0.5, 0.9, 1.0], 3, [0, 3, 4]),
    ([1.0, 0.1, 0.8, 0.0, 0.5], 3, [0, 1, 3]),  # the same reversed: {1, .1, 0} at .6067
    ([0.0, 0.0, 0.0, 0.0, 0.0, 1.0], 4, None),  # the one that differs is always in
    ([5.0, NAN, 7.0, NAN], 3, None),
    ([0.0, 10.0, 10.5, 11.0], 2, [0, 3]),
]


@pytest.mark.parametrize(("rewards", "keep", "expected"), HAND)
def test_max_variance_by_hand(rewards: list[float], keep: int, expected: list[int] | None) -> None:
    kept = members("max_variance", rewards, keep=keep)
    if expected is None:
        odd = {i for i, r in enumerate(rewards) if math.isfinite(r) and r != 0}
        assert odd <= set(kept)
        assert len(kept) == keep
    else:
        assert kept == expected


@pytest.mark.parametrize(("right", "expected"), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2), (7, 3)])
def test_binary_rewards_are_balanced(right: int, expected: int) -> None:
    """PODS's theorem for 0/1 rewards: m/2 of each where there are so many. 4 of 8, `right` of
    them 1; with 7 right, the one that is wrong and three others."""
    rewards = [1.0] * right + [0.0] * (8 - right)
    kept = members("max_variance", rewards, keep=4)
    assert sum(scored(rewards, kept)) == expected


def test_of_equal_splits_the_one_with_more_good_ones() -> None:
    # m = 3: {0, 0, 1} and {0, 1, 1} have the same variance
    rewards = [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    assert sorted(scored(rewards, members("max_variance", rewards, keep=3))) == [0, 1, 1]


def test_an_offset_costs_no_digits() -> None:
    rewards = [0.0, 0.2, 0.5, 0.9, 1.0]
    offset = [1e9 + r for r in rewards]
    assert members("max_variance", offset, keep=3) == [0, 3, 4]


# -- the others --------------------------------------------------------------------------------


@often
@given(rewards=REWARDS, keep=st.integers(1, 7), seed=st.integers(0, 99))
def test_best_and_worst(rewards: list[float], keep: int, seed: int) -> None:
    found = sorted(scored(rewards, members("best_and_worst", rewards, seed, keep=keep)))
    finite = sorted(r for r in rewards if math.isfinite(r))
    m = min(keep, len(rewards))
    high, low = (m + 1) // 2, m // 2  # ⌈m/2⌉ and ⌊m/2⌋
    expected = finite if len(finite) <= m else finite[:low] + finite[len(finite) - high :]
    assert found == expected


def test_best_and_worst_by_hand() -> None:
    rewards = [0.3, 0.9, 0.1, 0.5, 0.7]
    assert members("best_and_worst", rewards, keep=1) == [1]
    assert members("best_and_worst", rewards, keep=3) == [1, 2, 4]
    assert members("best_and_worst", rewards, keep=4) == [0, 1, 2, 4]
    assert members("best_and_worst", [NAN, 0.9, 0.1, NAN, 0.7], keep=2) == [1, 2]


def test_every_random_subset_is_equally_likely() -> None:
    """Under all 24 orders of the noise of 4 members, each of the 6 pairs comes up 4 times,
    whatever the rewards; with one member unscored, each pair of the other three 8 times."""
    select = component("selection", "random_subset", keep=2)
    for rewards, count in (([0.0, 1.0, 5.0, 5.0], 4), ([0.0, NAN, 5.0, 5.0], 8)):
        row = torch.tensor([rewards])
        found: Counter[tuple[int, ...]] = Counter()
        for order in itertools.permutations((0.1, 0.2, 0.3, 0.4)):
            kept = select(row, noise=torch.tensor([order]))
            found[tuple(kept[0].nonzero().flatten().tolist())] += 1
        scored_places = [i for i, r in enumerate(rewards) if math.isfinite(r)]
        assert found == dict.fromkeys(itertools.combinations(scored_places, 2), count)


def test_drop_zero_variance() -> None:
    rewards = torch.tensor([[0.0, 1.0, 0.0], [1, 1, 1], [NAN, 1, 1], [NAN, 0, 1], [NAN, NAN, 1]])
    select = component("selection", "drop_zero_variance")
    assert select(rewards).all(dim=1).tolist() == [True, False, False, True, False]
    assert select(rewards).any(dim=1).tolist() == select(rewards).all(dim=1).tolist()
    assert select.rounds == 1


# -- of all of them ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBSETS)
@often
@given(rewards=REWARDS, keep=st.integers(1, 5), seed=st.integers(0, 99), order=st.randoms())
def test_members_move_with_their_rewards_and_noise(
    name: str, rewards: list[float], keep: int, seed: int, order: Any
) -> None:
    row = torch.tensor([rewards])
    noise = noise_of(seed, *row.shape)
    places = list(range(len(rewards)))
    order.shuffle(places)
    select = component("selection", name, keep=keep)
    moved = select(row[:, places], noise=noise[:, places])
    assert torch.equal(moved, select(row, noise=noise)[:, places])


@pytest.mark.parametrize("name", SUBSETS)
def test_equal_members_are_told_apart_by_noise_and_not_by_place(name: str) -> None:
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    seen = {i for seed in range(40) for i in members(name, rewards, seed, keep=2)}
    assert seen == set(range(8))


@pytest.mark.parametrize("name", SUBSETS)
def test_groups_do_not_see_each_other(name: str) -> None:
    rewards = torch.tensor([[0.0, 1.0, 0.5, 0.2], [1.0, 1.0, 1.0, NAN], [NAN] * 4])
    noise = noise_of(4, 3, 4)
    select = component("selection", name, keep=3)
    together = select(rewards, noise=noise)
    assert together.sum(dim=1).tolist() == [3, 3, 3]
    for row in range(3):
        alone = select(rewards[row : row + 1], noise=noise[row : row + 1])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("name", SUBSETS)
def test_without_noise_the_draw_is_fixed(name: str) -> None:
    rewards = torch.zeros(5, 8)
    select = component("selection", name)
    assert torch.equal(select(rewards), select(rewards))
    assert len({tuple(r) for r in select(rewards).int().tolist()}) > 1  # but not by place


@pytest.mark.parametrize("name", SUBSETS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_groups_are_kept_whole(name: str, size: int) -> None:
    assert bool(component("selection", name, keep=3)(torch.rand(2, size)).all())


@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_can_drop_groups_too(name: str) -> None:
    rewards = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1, 1, 1, 1], [NAN, NAN, 1, 0], [NAN, NAN, 1, 1]])
    select = component("selection", name, keep=3, drop_zero_variance=True)
    # three of (0, 1, 1, 0), or the two scored ones of (NaN, NaN, 1, 0), always differ
    assert select(rewards).sum(dim=1).tolist() == [3, 0, 3, 0]


def test_what_counts_is_whether_the_kept_members_differ() -> None:
    row = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    select = component("selection", "random_subset", keep=2, drop_zero_variance=True)
    kept = [select(row, noise=noise_of(seed, 1, 4))[0] for seed in range(40)]
    assert {int(k.sum()) for k in kept} == {0, 2}
    assert all(bool(k[3]) for k in kept if k.any())


# -- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUBSETS)
def test_refused_configurations(name: str) -> None:
    chosen = f"selection={name}"
    with pytest.raises(ConfigError, match=r"selection\.keep: 9 given; .* sampler\.group_size"):
        lab.run_of(chosen, "selection.keep=9", "sampler.group_size=8")
    with pytest.raises(ConfigError, match=r"selection\.keep: 1 given with advantage=group_zscore"):
        lab.run_of(chosen, "selection.keep=1")
    with pytest.raises(ConfigError, match=r"selection\.keep: 1 given with drop_zero_variance"):
        lab.run_of(chosen, "selection.keep=1", "selection.drop_zero_variance=true")
    assert lab.run_of(chosen, "selection.keep=8", "sampler.group_size=8").selection.keep == 8


def test_one_member_is_enough_for_an_advantage_that_compares_with_no_other() -> None:
    run = lab.run_of("selection=random_subset", "selection.keep=1", "advantage=raw")
    assert run.selection.keep == 1
