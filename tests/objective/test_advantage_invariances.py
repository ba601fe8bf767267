"""What must hold for every registered advantage estimator, and for the settings that change it.

The names come from the registry, so an estimator that is added is tested without a line here. Only
what a formula claims for itself (shift, scale, silence, locality) is listed by name.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from grpolab.component import component, registry

F64 = torch.float64
WIDTH = 4
GARBAGE = [math.nan, math.inf, -math.inf, 1e30, -1e30]

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in sorted(registry("advantage"))},
    "batch_std centered": ("batch_std", {"std_of": "centered"}),
    "gpg rewards": ("gpg", {"count": "rewards"}),
    "pass_at_k 2": ("pass_at_k", {"k": 2}),
    "pass_at_k plain": ("pass_at_k", {"k": 2, "normalise": False}),
    "pass_at_k best": ("pass_at_k", {"mode": "best_only"}),
    "pass_at_k best normalised": ("pass_at_k", {"mode": "best_only", "normalise": True}),
    "gdpo none": ("gdpo", {"batch": "none"}),
    "gdpo tokens": ("gdpo", {"batch": "tokens", "batch_eps": 1e-8, "batch_eps_at": "variance"}),
    "ema_baseline started": ("ema_baseline", {"decay": 0.5, "start": 2.0}),
    "reinforce_pp group": ("reinforce_pp", {"baseline": "group"}),
    "reinforce_pp floor": ("reinforce_pp", {"ddof": 0, "eps_at": "floor"}),
    "optimal_token_baseline tail": ("optimal_token_baseline", {"zero_tail": False}),
}
every = pytest.mark.parametrize("variant", list(SETTINGS))


def make(variant: str, **settings: Any) -> Any:
    name, own = SETTINGS[variant]
    return component("advantage", name, **(own | settings))


BY_TOKEN = [v for v in SETTINGS if make(v).token_level]
WITHIN_GROUPS = [v for v in SETTINGS if make(v).needs_group]


def close(a: Tensor, b: Tensor, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


# --- Inputs ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Batch:
    """All that an estimator may read, a member's and a token's values as [P, G] and [P, G, T]."""

    rewards: Tensor
    other: Tensor
    """A second part of the reward, beside the first: the reward itself."""
    lengths: Tensor
    greedy: Tensor
    """[P]"""
    logps: Tensor
    collision: Tensor
    penalty: Tensor | None = None

    def map(self, **changes: Tensor | None) -> Batch:
        fields: dict[str, Any] = changes
        return dataclasses.replace(self, **fields)

    def every(self, change: Any, fields: tuple[str, ...]) -> Batch:
        values = {f: getattr(self, f) for f in fields}
        return self.map(**{f: change(v) for f, v in values.items() if v is not None})

    def groups(self, index: Tensor) -> Batch:
        return self.every(lambda v: v[index], tuple(f.name for f in dataclasses.fields(self)))

    def members(self, index: Tensor) -> Batch:
        return self.every(lambda v: v[:, index], MEMBER + TOKEN)

    def __call__(self, variant: str, width: int = WIDTH, **settings: Any) -> Tensor:
        """[P, G, 1 or T]"""
        p, g = self.rewards.shape
        tokens = {f: getattr(self, f) for f in TOKEN}
        found: Tensor = make(variant, **settings)(
            self.rewards,
            lengths=self.lengths,
            parts={"whole": self.rewards, "other": self.other},
            part_weights={"whole": 1.0, "other": 2.0},
            mask=torch.arange(width) < self.lengths.reshape(-1, 1),
            greedy=self.greedy,
            **{f: None if v is None else v.reshape(p * g, -1) for f, v in tokens.items()},
        )
        return found.reshape(p, g, -1)


MEMBER = ("rewards", "other", "lengths")
TOKEN = ("logps", "collision", "penalty")
FLOATS = ("rewards", "other", "greedy", *TOKEN)


def make_batch(
    seed: int, groups: int, size: int, binary: bool, unscorable: float, kl: bool = False
) -> Batch:
    """Completions of 0 to 4 tokens."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=source)

    rewards, other = normal(groups, size), normal(groups, size)
    if binary:
        rewards, other = (rewards > 0).to(F64), (other > 0).to(F64)
    missing = torch.rand(groups, size, dtype=F64, generator=source) < unscorable
    probability = 0.1 + 0.8 * torch.rand(groups, size, WIDTH, dtype=F64, generator=source)
    penalty = 0.1 * normal(groups, size, WIDTH)
    return Batch(
        rewards=torch.where(missing, math.nan, rewards),
        other=other,
        lengths=torch.randint(0, WIDTH + 1, (groups, size), generator=source),
        greedy=normal(groups),
        logps=probability.log(),
        collision=probability.square() + (1 - probability).square() / 2,
        penalty=penalty if kl else None,
    )


def batches(unscorable: float = 0.2, kl: bool = True) -> st.SearchStrategy[Batch]:
    return st.builds(
        make_batch,
        seed=st.integers(0, 10**6),
        groups=st.integers(1, 4),
        size=st.integers(2, 7),
        binary=st.booleans(),
        unscorable=st.just(unscorable),
        kl=st.booleans() if kl else st.just(False),
    )


def alike(value: float, groups: int = 2, size: int = 8) -> Batch:
    """Identical rewards and parts, different completions."""
    batch = make_batch(1, groups, size, binary=False, unscorable=0.0)
    same = torch.full_like(batch.rewards, value)
    return batch.map(rewards=same, other=same)


# --- For all of them ---------------------------------------------------------------------------


@every
@given(batch=batches(), seed=st.integers(0, 99))
def test_advantages_follow_a_permutation(variant: str, batch: Batch, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    groups, members = (torch.randperm(n, generator=source) for n in batch.rewards.shape)
    found = batch(variant)
    close(batch.groups(groups)(variant), found[groups])
    close(batch.members(members)(variant), found[:, members])


@every
@given(batch=batches(unscorable=0.4), bad=st.sampled_from(GARBAGE[:3]))
def test_unscorable_rewards_get_zero(variant: str, batch: Batch, bad: float) -> None:
    found = batch(variant)
    assert found.isfinite().all()
    assert not found[batch.rewards.isnan()].any()
    again = batch.map(rewards=batch.rewards.nan_to_num(nan=bad))
    close(again(variant), found, rtol=0, atol=0)


@every
@given(batch=batches(), extra=st.integers(1, 3))
def test_unscorable_rewards_stay_out_of_the_statistics(
    variant: str, batch: Batch, extra: int
) -> None:
    groups, size = batch.rewards.shape
    more = make_batch(7, groups + 1, size + extra, binary=False, unscorable=0.0, kl=True)
    rewards = torch.full_like(more.rewards, math.nan)
    joined = more.map(rewards=rewards, penalty=more.penalty if batch.penalty is not None else None)
    for name in MEMBER + TOKEN + ("greedy",):
        value = getattr(batch, name)
        if value is not None:
            getattr(joined, name)[(slice(groups), slice(size))[: min(2, value.dim())]] = value
    found = joined(variant)
    close(found[:groups, :size], batch(variant))
    assert not found[groups:].any()
    assert not found[:, size:].any()


@every
@given(batch=batches(kl=False))
def test_advantages_in_lower_precision(variant: str, batch: Batch) -> None:
    single, half = (
        batch.every(lambda v, dtype=dtype: v.to(dtype), FLOATS)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for low in (single, half):
        found, exact = low(variant), low.every(lambda v: v.double(), FLOATS)(variant)
        assert found.dtype == torch.float32
        bound = 1 + float(exact.abs().max())
        close(found.double(), exact, rtol=1e-3, atol=1e-4 * bound)


@every
def test_whole_numbers_are_rewards(variant: str) -> None:
    batch = make_batch(5, 3, 6, binary=True, unscorable=0.0)
    whole = batch.map(rewards=batch.rewards.long())
    close(whole(variant).double(), batch(variant), rtol=1e-4, atol=1e-5)


@every
def test_advantages_are_clipped(variant: str) -> None:
    batch = make_batch(1, 3, 7, binary=False, unscorable=0.0)
    batch = batch.every(lambda v: 10 * v, ("rewards", "other", "greedy"))
    plain = batch(variant)
    close(batch(variant, clip=[-0.125, 0.25]), plain.clamp(-0.125, 0.25), rtol=0, atol=0)
    assert plain.max() > 0.25
    assert plain.min() < -0.125 or variant.startswith("pass_at_k best")


@every
@pytest.mark.parametrize("lengths", [0, 1])
def test_one_token_and_empty_completions(variant: str, lengths: int) -> None:
    batch = make_batch(2, 2, 6, binary=False, unscorable=0.2, kl=True)
    batch = batch.map(lengths=torch.full_like(batch.lengths, lengths))
    found = batch(variant)
    assert found.isfinite().all()
    if variant in BY_TOKEN:
        assert not found[:, :, lengths:].any()
        assert bool(found.any()) == bool(lengths)


@every
@given(batch=batches(unscorable=0.3))
def test_nothing_is_written_into_the_inputs(variant: str, batch: Batch) -> None:
    names = [f.name for f in dataclasses.fields(batch)]
    given = {name: v for name in names if (v := getattr(batch, name)) is not None}
    before = {name: v.clone() for name, v in given.items()}
    batch(variant)
    for name, value in given.items():
        assert torch.equal(value.nan_to_num(nan=9.0), before[name].nan_to_num(nan=9.0))


@pytest.mark.parametrize("variant", [v for v in SETTINGS if v not in BY_TOKEN])
@given(batch=batches(unscorable=0.3))
def test_the_kl_to_go_is_subtracted_behind_the_estimator(variant: str, batch: Batch) -> None:
    penalty = torch.ones(*batch.rewards.shape, WIDTH, dtype=F64) * torch.arange(1, WIDTH + 1)
    found = batch.map(penalty=penalty)(variant)
    expected = batch.map(penalty=None)(variant) - penalty
    close(found, torch.where(batch.rewards.isnan().unsqueeze(2), 0.0, expected))


@pytest.mark.parametrize("variant", BY_TOKEN)
@given(batch=batches(), garbage=st.sampled_from(GARBAGE), extra=st.integers(0, 3))
def test_padding_changes_nothing(variant: str, batch: Batch, garbage: float, extra: int) -> None:
    found = batch(variant)
    width = WIDTH + extra
    mask = torch.arange(width) < batch.lengths.unsqueeze(2)

    def spoil(value: Tensor) -> Tensor:
        wider = torch.nn.functional.pad(value, (0, extra))
        return torch.where(mask, wider, garbage)

    spoilt = batch.every(spoil, TOKEN)(variant, width)
    close(spoilt[:, :, :WIDTH], found)
    assert not spoilt[~mask].any()


# --- Groups that teach nothing -----------------------------------------------------------------

# Their step over the batch's tokens has a mean that is not 0, which a silent group gets too.
MOVED_BY_THE_BATCH = ["gdpo tokens", "reinforce_pp group"]


@pytest.mark.parametrize("variant", WITHIN_GROUPS)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e6 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_rewards_teach_nothing(variant: str, value: float, dtype: torch.dtype) -> None:
    fields = {f.name for f in dataclasses.fields(registry("advantage")[SETTINGS[variant][0]])}
    bare: dict[str, Any] = {f: 0.0 for f in ("eps", "batch_eps") if f in fields}
    full = alike(value)
    holes = alike(value, 2, 3)
    holes.rewards[0, 2] = holes.rewards[1, 1] = holes.rewards[1, 2] = math.nan
    levels = alike(value, 3)  # each group's mean rounds in its own way
    for part in (levels.rewards, levels.other):
        part *= torch.tensor([[1.0], [3.0], [7.0]], dtype=F64)
    for batch in (full, holes, levels, alike(math.nan, 1, 4), alike(value, 3, 1)):
        low = batch.every(lambda v: v.to(dtype), FLOATS)
        assert not low(variant).any()
        assert not low(variant, **bare).any()


@pytest.mark.parametrize("variant", WITHIN_GROUPS)
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_silent_group_among_others(variant: str, value: float) -> None:
    batch = make_batch(3, 3, 6, binary=False, unscorable=0.0)
    for part in (batch.rewards.abs_(), batch.other):
        part[1] = value
        part[2, 1:] = math.nan  # a single scored member
    batch.lengths.clamp_(min=1)
    found = batch(variant)
    assert found[0].any()
    silent = found[1, :, 0]
    if variant not in MOVED_BY_THE_BATCH:
        assert not found[1:].any()
        return
    assert (silent == silent[0]).all()
    assert silent.all()
    close(found[2, 0, 0], silent[0])


@pytest.mark.parametrize("seed", range(5))
def test_a_part_of_weight_zero_wakes_no_group(seed: int) -> None:
    rewards, other = torch.randn(
        2, 3, 5, dtype=F64, generator=torch.Generator().manual_seed(seed)
    ).unbind()
    rewards[1] = 0.1
    found = make("gdpo")(
        rewards, parts={"a": rewards, "b": other}, part_weights={"a": 1.0, "b": 0.0}
    )
    assert not found[1].any()
    assert found[0].all()


@pytest.mark.parametrize("variant", ["global_center", "reinforce_pp", "reinforce_pp floor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_without_a_difference_is_centred_to_zero(variant: str, dtype: torch.dtype) -> None:
    low = alike(0.1).every(lambda v: v.to(dtype), FLOATS)
    assert not low(variant).any()


def test_whether_a_group_of_one_makes_sense_is_the_instance_s_answer() -> None:
    assert make("reinforce_pp group").needs_group
    assert not make("reinforce_pp").needs_group
    alone = [v for v in SETTINGS if v not in WITHIN_GROUPS]
    names = {"global_center", "raw", "remax", "ema_baseline", "reinforce_pp"}
    assert {SETTINGS[v][0] for v in alone} == names
    batch = make_batch(4, 5, 1, binary=False, unscorable=0.0)
    for variant in alone:
        assert batch(variant).any()


# --- Claims of single formulas -----------------------------------------------------------------

NO_EPS = {"eps": 0.0}
BARE = {"eps": 0.0, "batch_eps": 0.0}
# (settings, moves with a constant added to every reward?, power of a factor on every reward)
CLAIMS: dict[str, tuple[dict[str, Any], bool, int | None]] = {
    "group_zscore": (NO_EPS, True, 0),
    "group_center": ({}, True, 1),
    "rloo": ({}, True, 1),
    "loo_zscore": (NO_EPS, True, None),  # what is not divided scales, the rest does not
    "batch_std": (NO_EPS, True, 0),
    "batch_std centered": (NO_EPS, True, 0),
    "global_center": ({}, True, 1),
    "raw": ({}, False, 1),
    "opo": ({}, True, 1),
    "maxrl": (NO_EPS, False, 0),
    "gpg": ({}, True, 1),
    "gpg rewards": ({}, False, 1),
    "pass_at_k 2": ({}, True, 0),
    "pass_at_k plain": ({}, True, 1),
    "pass_at_k best": ({}, True, 1),
    "pass_at_k best normalised": (NO_EPS, True, 0),
    "gdpo": (BARE, True, 0),
    "gdpo none": (NO_EPS, True, 0),
    "gdpo tokens": (BARE, True, 0),
    "remax": ({}, True, 1),
    "ema_baseline": ({}, False, 1),
    "reinforce_pp": (NO_EPS, True, 0),
    "reinforce_pp group": (NO_EPS, True, 0),
    "reinforce_pp floor": (NO_EPS, True, 0),
    "optimal_token_baseline": (NO_EPS, False, 1),
    "optimal_token_baseline tail": (NO_EPS, True, 1),
}


def test_every_estimator_has_a_claim() -> None:
    assert {SETTINGS[v][0] for v in CLAIMS} == set(registry("advantage"))


@pytest.mark.parametrize("variant", sorted(CLAIMS))
@given(
    batch=batches(kl=False),
    shift=st.floats(-100, 100),
    scale=st.floats(0.01, 100),
)
def test_shift_and_scale(variant: str, batch: Batch, shift: float, scale: float) -> None:
    settings, shift_free, power = CLAIMS[variant]
    scale = 1.0 if power is None else scale
    shift = shift if shift_free else 0.0
    read = ("rewards", "other", "greedy")
    moved = batch.every(lambda v: scale * v + shift, read)(variant, **settings)
    expected = scale ** (power or 0) * batch(variant, **settings)
    close(moved, expected, rtol=1e-6, atol=1e-6 * scale ** (power or 0))


@pytest.mark.parametrize("variant", sorted(v for v in CLAIMS if not CLAIMS[v][1]))
def test_these_do_move_with_a_constant(variant: str) -> None:
    batch = make_batch(6, 2, 6, binary=False, unscorable=0.0)
    batch = batch.every(lambda v: v - v.min() + 0.5, ("rewards", "greedy"))
    settings = CLAIMS[variant][0]
    moved = batch.map(rewards=batch.rewards + 1)(variant, **settings)
    if variant == "gpg rewards":  # from all zero but one to none zero
        batch = batch.map(rewards=batch.rewards.clone())
        batch.rewards[0, :3] = 0
        moved = batch.map(rewards=batch.rewards + 1)(variant)
    assert float((moved - batch(variant, **settings)).abs().max()) > 0.01


GROUP_LOCAL = [
    "group_zscore", "group_center", "rloo", "loo_zscore", "raw", "opo", "maxrl", "pass_at_k",
    "pass_at_k 2", "pass_at_k plain", "pass_at_k best", "pass_at_k best normalised", "gdpo none",
    "remax", "optimal_token_baseline", "optimal_token_baseline tail",
]  # fmt: skip


@pytest.mark.parametrize("variant", list(SETTINGS))
def test_whether_one_group_moves_another(variant: str) -> None:
    batch = make_batch(0, 3, 5, binary=False, unscorable=0.0)
    changed = batch.map(rewards=batch.rewards.clone(), other=batch.other.clone())
    changed.rewards[1] = 5.0 + 100 * changed.rewards[1]
    changed.other[1, :2] = 7.0
    if SETTINGS[variant][0] == "gpg":  # which only counts
        changed.rewards[1] = 0.0
    before, after = (b(variant)[[0, 2]] for b in (batch, changed))
    if variant in GROUP_LOCAL:
        close(after, before)
    else:
        assert float((after - before).abs().max()) > 1e-3


@given(batch=batches(unscorable=0.0, kl=False))
def test_group_advantages_sum_to_zero(batch: Batch) -> None:
    assume(batch.rewards.shape[1] > 2)
    for variant in ("group_zscore", "rloo", "maxrl", "pass_at_k 2", "pass_at_k plain", "gpg"):
        total = batch(variant).sum(dim=1)
        close(total, torch.zeros_like(total), atol=1e-6)
