"""What must hold for every registered component of the objective, at its default settings.

The names come from the registry, so a component that is added is tested without a line here. Only
what a formula claims for itself (shift and scale, stopped gradients) is listed by name.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpolab.component import component, registry
from grpolab.objective.loss import Objective, kl_estimates, ratio_sums

F64 = torch.float64
VOCABULARY = 4
LIMIT = 16  # max_length of the aggregations
ADVANTAGES, CLIPS, KLS, AGGREGATIONS, CORRECTIONS, SELECTIONS = (
    sorted(registry(g))
    for g in ("advantage", "clip", "kl", "aggregation", "correction", "selection")
)
PER_TOKEN = [("clip", n) for n in CLIPS] + [("kl", n) for n in KLS]
GARBAGE = [math.nan, math.inf, -math.inf, 1e30, -1e30]

per_token = pytest.mark.parametrize(("group", "name"), PER_TOKEN)
every_advantage = pytest.mark.parametrize("name", ADVANTAGES)
every_aggregation = pytest.mark.parametrize("name", AGGREGATIONS)


def fact(group: str, name: str, attribute: str) -> bool:
    """A class variable of a component."""
    return bool(getattr(registry(group)[name], attribute))


def close(a: Tensor, b: Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


# --- Inputs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Everything a clip, a KL or the objective reads; rows prompt-major."""

    logps: Tensor
    old_logps: Tensor
    ref_logps: Tensor
    sampler_logps: Tensor
    advantages: Tensor
    logits: Tensor
    ref_logits: Tensor
    mask: Tensor
    group_size: int

    def tensors(self) -> dict[str, Tensor]:
        """All but the mask."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in values.items() if isinstance(v, Tensor) and k != "mask"}

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {k: change(v) for k, v in self.tensors().items()}
        return dataclasses.replace(self, **changed)

    def rows(self, rows: list[int]) -> Batch:
        return dataclasses.replace(self.map(lambda v: v[rows]), mask=self.mask[rows])

    def spoilt(self, garbage: float, extra: int) -> Batch:
        """Wider by `extra` columns, and with `garbage` at every masked position."""
        wider = torch.nn.functional.pad(self.mask, (0, extra))

        def spoil(value: Tensor) -> Tensor:
            tail = value.new_zeros(value.shape[0], extra, *value.shape[2:])
            keep = wider if value.dim() == 2 else wider[:, :, None]
            return torch.where(keep, torch.cat([value, tail], dim=1), garbage)

        return dataclasses.replace(self.map(spoil), mask=wider)


def make_batch(
    seed: int, groups: int = 2, group_size: int = 2, width: int = 4, spread: float = 0.3
) -> Batch:
    """Completions of 0 to `width` tokens, whose log-ratios are of the size of `spread`."""
    generator = torch.Generator().manual_seed(seed)
    n = groups * group_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=generator)

    logits = normal(n, width, VOCABULARY)
    logps = -3 * torch.rand(n, width, dtype=F64, generator=generator)
    return Batch(
        logps=logps,
        old_logps=logps + spread * normal(n, width),
        ref_logps=logps + spread * normal(n, width),
        sampler_logps=logps + spread * normal(n, width),
        advantages=normal(n, 1).expand(n, width).clone(),
        logits=logits,
        ref_logits=logits + spread * normal(n, width, VOCABULARY),
        mask=torch.arange(width) < torch.randint(0, width + 1, (n, 1), generator=generator),
        group_size=group_size,
    )


def batches(spreads: tuple[float, ...] = (0.01, 0.3, 3.0)) -> st.SearchStrategy[Batch]:
    return st.builds(
        make_batch,
        seed=st.integers(0, 10**6),
        groups=st.integers(1, 3),
        group_size=st.integers(1, 3),
        width=st.integers(1, 5),
        spread=st.sampled_from(spreads),
    )


@dataclass(frozen=True)
class Outcome:
    """Per-token values, and the gradients of a weighted sum of them."""

    value: Tensor
    metrics: dict[str, Tensor]
    gradient: Tensor
    logits_gradient: Tensor


def evaluate(group: str, name: str, batch: Batch) -> Outcome:
    logps = batch.logps.clone().requires_grad_()
    logits = batch.logits.clone().requires_grad_()
    metrics: dict[str, Tensor] = {}
    if group == "clip":
        surrogate = component("clip", name)(logps, batch.old_logps, batch.advantages, batch.mask)
        value, metrics = surrogate.loss, surrogate.metrics
    else:
        value = component("kl", name)(
            logps,
            batch.ref_logps,
            batch.mask,
            old_logps=batch.old_logps,
            logits=logits,
            ref_logits=batch.ref_logits,
        )
    total = (value * (1 + torch.arange(value.shape[1]))).sum()
    gradients = [torch.zeros_like(logps), torch.zeros_like(logits)]
    if total.requires_grad:
        gradients = list(torch.autograd.grad(total, [logps, logits], materialize_grads=True))
    return Outcome(value.detach(), metrics, *gradients)


def finite(outcome: Outcome) -> bool:
    values = [outcome.value, outcome.gradient, outcome.logits_gradient, *outcome.metrics.values()]
    return all(bool(v.isfinite().all()) for v in values)


def rewards_of(seed: int, groups: int, size: int, binary: bool, unscorable: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(groups, size, dtype=F64, generator=generator)
    if binary:
        rewards = (rewards > 0).to(F64)
    missing = torch.rand(groups, size, dtype=F64, generator=generator) < unscorable
    return torch.where(missing, math.nan, rewards)


def reward_batches(unscorable: float = 0.2) -> st.SearchStrategy[Tensor]:
    return st.builds(
        rewards_of,
        seed=st.integers(0, 10**6),
        groups=st.integers(1, 4),
        size=st.integers(2, 6),
        binary=st.booleans(),
        unscorable=st.just(unscorable),
    )


def advantages_of(name: str, rewards: Tensor, **settings: float) -> Tensor:
    """[P, G, 1 or T], whatever the estimator returns; the completions are 1 to 3 tokens long."""
    groups, size = rewards.shape
    lengths = torch.arange(size).expand(groups, size) % 3 + 1
    found: Tensor = component("advantage", name, **settings)(
        rewards,
        lengths=lengths,
        parts={"whole": rewards},
        mask=torch.arange(3) < lengths.reshape(-1, 1),
    )
    return found.reshape(groups, size, -1)


# --- Clip and KL: per token --------------------------------------------------------------------


@per_token
@given(batch=batches(), garbage=st.sampled_from(GARBAGE), extra=st.integers(0, 3))
def test_padding_changes_nothing(
    group: str, name: str, batch: Batch, garbage: float, extra: int
) -> None:
    clean = evaluate(group, name, batch.spoilt(0.0, 0))
    spoilt = evaluate(group, name, batch.spoilt(garbage, extra))
    width = batch.mask.shape[1]
    close(spoilt.value[:, :width], clean.value)
    close(spoilt.gradient[:, :width], clean.gradient)
    close(spoilt.logits_gradient[:, :width][batch.mask], clean.logits_gradient[batch.mask])
    assert not spoilt.value[:, width:].any()
    assert not spoilt.gradient[:, width:].any()
    assert spoilt.metrics.keys() == clean.metrics.keys()
    for key, value in clean.metrics.items():
        close(spoilt.metrics[key], value)


@per_token
@given(batch=batches(), seed=st.integers(0, 99))
def test_order_of_the_rows_does_not_matter(group: str, name: str, batch: Batch, seed: int) -> None:
    rows = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(seed)).tolist()
    plain, moved = (evaluate(group, name, b) for b in (batch, batch.rows(rows)))
    close(moved.value, plain.value[rows])
    close(moved.gradient, plain.gradient[rows])
    close(moved.logits_gradient, plain.logits_gradient[rows])
    for key, value in plain.metrics.items():
        close(moved.metrics[key], value)


@per_token
def test_nothing_valid_gives_zero(group: str, name: str) -> None:
    batch = make_batch(0)
    found = evaluate(group, name, dataclasses.replace(batch, mask=torch.zeros_like(batch.mask)))
    zeros = [found.value, found.gradient, found.logits_gradient, *found.metrics.values()]
    assert not any(v.any() for v in zeros)  # NaN would count as true


@per_token
@pytest.mark.parametrize("width", [1, 3])
def test_one_token_and_empty_completions(group: str, name: str, width: int) -> None:
    batch = make_batch(1, groups=1, group_size=3, width=width)
    mask = torch.arange(width) < torch.tensor([[1], [0], [1]])
    found = evaluate(group, name, dataclasses.replace(batch, mask=mask))
    assert finite(found)
    assert not found.value[1].any()
    assert not found.gradient[1].any()
    alone = evaluate(group, name, dataclasses.replace(batch, mask=mask).rows([0]))
    close(found.value[:1], alone.value)
    close(found.gradient[:1], alone.gradient)


@per_token
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("size", [80.0, 800.0])  # e^800 overflows in every precision
def test_extreme_log_ratios_stay_finite(
    group: str, name: str, dtype: torch.dtype, sign: float, size: float
) -> None:
    batch = make_batch(2, width=3)
    shift = torch.tensor([size, -size, 0.0], dtype=F64)
    batch = dataclasses.replace(
        batch,
        old_logps=batch.logps - shift,
        ref_logps=batch.logps + shift,
        advantages=sign * batch.advantages.abs(),
        logits=size * batch.logits.sign(),
        mask=torch.ones_like(batch.mask),
    )
    assert finite(evaluate(group, name, batch.map(lambda v: v.to(dtype))))
    constant = dataclasses.replace(batch, old_logps=batch.logps - size)  # the whole sequence
    assert finite(evaluate(group, name, constant.map(lambda v: v.to(dtype))))


@per_token
@given(batch=batches())
def test_single_and_double_precision_agree(group: str, name: str, batch: Batch) -> None:
    single = batch.map(lambda v: v.float())
    double = single.map(lambda v: v.double())
    found, exact = (evaluate(group, name, b) for b in (single, double))
    assert found.value.dtype == torch.float32
    close(found.value.double(), exact.value, rtol=1e-4, atol=1e-5)
    close(found.gradient.double(), exact.gradient, rtol=1e-4, atol=1e-5)
    for key, value in exact.metrics.items():
        close(found.metrics[key].double(), value, rtol=1e-4, atol=1e-5)


@per_token
@given(batch=batches(spreads=(0.3,)))
def test_bfloat16_is_accepted(group: str, name: str, batch: Batch) -> None:
    half = batch.map(lambda v: v.bfloat16())
    found, exact = (evaluate(group, name, b) for b in (half, half.map(lambda v: v.double())))
    assert finite(found)
    close(found.value.double(), exact.value, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", CLIPS)
def test_clip_metrics_are_detached_scalars(name: str) -> None:
    metrics = evaluate("clip", name, make_batch(3)).metrics
    names = ("low", "high", "share", "positive", "negative", "clamped")
    assert {f"clip/{n}" for n in names} <= metrics.keys()
    for value in metrics.values():
        assert value.dim() == 0
        assert not value.requires_grad


@pytest.mark.parametrize("name", CLIPS)
def test_clip_broadcasts_advantages(name: str) -> None:
    batch = make_batch(4)
    rows = dataclasses.replace(batch, advantages=batch.advantages[:, :1])
    wide, narrow = (evaluate("clip", name, b) for b in (batch, rows))
    close(narrow.value, wide.value, rtol=0, atol=0)
    close(narrow.gradient, wide.gradient, rtol=0, atol=0)


@pytest.mark.parametrize("name", CLIPS)
def test_clip_learns_from_nothing_but_logps(name: str) -> None:
    batch = make_batch(5).map(lambda v: v.requires_grad_())
    loss = component("clip", name)(
        batch.logps, batch.old_logps, batch.advantages, torch.ones_like(batch.mask)
    ).loss
    loss.sum().backward()
    assert batch.logps.grad is not None
    assert batch.logps.grad.any()
    assert batch.old_logps.grad is None
    assert batch.advantages.grad is None


@pytest.mark.parametrize("name", [n for n in KLS if fact("kl", n, "needs_reference")])
def test_kl_learns_nothing_for_the_reference(name: str) -> None:
    batch = make_batch(6).map(lambda v: v.requires_grad_())
    value = component("kl", name)(
        batch.logps,
        batch.ref_logps,
        torch.ones_like(batch.mask),
        old_logps=batch.old_logps,
        logits=batch.logits,
        ref_logits=batch.ref_logits,
    )
    value.sum().backward()
    learner = batch.logits if fact("kl", name, "needs_logits") else batch.logps
    assert learner.grad is not None
    assert learner.grad.any()
    for constant in (batch.ref_logps, batch.old_logps, batch.ref_logits):
        assert constant.grad is None


@pytest.mark.parametrize("name", KLS)
def test_kl_of_equal_policies_is_zero(name: str) -> None:
    batch = make_batch(7)
    equal = dataclasses.replace(
        batch, old_logps=batch.logps, ref_logps=batch.logps, ref_logits=batch.logits
    )
    close(evaluate("kl", name, equal).value, torch.zeros_like(batch.logps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_kl_leaves_out_impossible_tokens(dtype: torch.dtype) -> None:
    batch = make_batch(8).map(lambda v: v.to(dtype))
    batch = dataclasses.replace(batch, mask=torch.ones_like(batch.mask))
    dead = torch.full_like(batch.logits[:, :, :1], -math.inf)
    widened = dataclasses.replace(
        batch,
        logits=torch.cat([batch.logits, dead], dim=2),
        ref_logits=torch.cat([batch.ref_logits, dead], dim=2),
    )
    plain, found = (evaluate("kl", "full", b) for b in (batch, widened))
    close(found.value, plain.value, rtol=1e-5, atol=1e-6)
    close(found.logits_gradient[:, :, :-1], plain.logits_gradient, rtol=1e-5, atol=1e-6)
    assert not found.logits_gradient[:, :, -1].any()


# --- Advantages --------------------------------------------------------------------------------


@every_advantage
@given(rewards=reward_batches(), seed=st.integers(0, 99))
def test_advantages_follow_a_permutation(name: str, rewards: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randperm(rewards.shape[0], generator=generator)
    found = advantages_of(name, rewards)
    close(advantages_of(name, rewards[groups]), found[groups])
    # members: lengths move along, so permute by hand rather than through `advantages_of`
    members = torch.randperm(rewards.shape[1], generator=generator)
    lengths = torch.arange(rewards.shape[1]).expand_as(rewards) % 3 + 1

    def call(order: Tensor) -> Tensor:
        moved, long = rewards[:, order], lengths[:, order]
        mask = torch.arange(3) < long.reshape(-1, 1)
        value: Tensor = component("advantage", name)(
            moved, lengths=long, parts={"whole": moved}, mask=mask
        )
        return value.reshape(*moved.shape, -1)

    close(call(members), found[:, members])


@every_advantage
@given(rewards=reward_batches(unscorable=0.4), bad=st.sampled_from(GARBAGE[:3]))
def test_unscorable_rewards_get_zero(name: str, rewards: Tensor, bad: float) -> None:
    found = advantages_of(name, rewards)
    assert found.isfinite().all()
    assert not found[rewards.isnan()].any()
    close(advantages_of(name, rewards.nan_to_num(nan=bad)), found, rtol=0, atol=0)


@every_advantage
@given(rewards=reward_batches(unscorable=0.0), extra=st.integers(1, 3))
def test_unscorable_rewards_stay_out_of_the_statistics(
    name: str, rewards: Tensor, extra: int
) -> None:
    missing = torch.full((rewards.shape[0], extra), math.nan, dtype=F64)
    found = advantages_of(name, torch.cat([rewards, missing], dim=1))
    close(found[:, : rewards.shape[1]], advantages_of(name, rewards))


@pytest.mark.parametrize("name", [n for n in ADVANTAGES if fact("advantage", n, "needs_group")])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e6 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_rewards_teach_nothing(name: str, value: float, dtype: torch.dtype) -> None:
    for rewards in (
        torch.full((2, 8), value, dtype=dtype),
        torch.tensor([[value, value, math.nan], [value, math.nan, math.nan]], dtype=dtype),
        torch.full((1, 4), math.nan, dtype=dtype),
        torch.full((3, 1), value, dtype=dtype),
    ):
        assert not advantages_of(name, rewards).any()
        if "eps" in {f.name for f in dataclasses.fields(registry("advantage")[name])}:
            assert not advantages_of(name, rewards, eps=0.0).any()


# Claims of single formulas.
GROUP_LOCAL = ["group_zscore", "group_center", "rloo"]
SCALE_POWER = {"group_zscore": 0, "group_center": 1, "rloo": 1}


@pytest.mark.parametrize("name", sorted(SCALE_POWER))
@given(
    rewards=reward_batches(),
    shift=st.floats(-100, 100),
    scale=st.floats(0.01, 100),
)
def test_shift_and_scale(name: str, rewards: Tensor, shift: float, scale: float) -> None:
    settings = {"eps": 0.0} if name == "group_zscore" else {}
    found = advantages_of(name, rewards, **settings)
    moved = advantages_of(name, scale * rewards + shift, **settings)
    close(moved, scale ** SCALE_POWER[name] * found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", GROUP_LOCAL)
def test_one_group_does_not_move_another(name: str) -> None:
    rewards = rewards_of(0, 3, 4, binary=False, unscorable=0.0)
    changed = rewards.clone()
    changed[1] *= 100
    close(advantages_of(name, changed)[[0, 2]], advantages_of(name, rewards)[[0, 2]])


@every_advantage
@given(rewards=reward_batches())
def test_advantages_in_lower_precision(name: str, rewards: Tensor) -> None:
    single, half = rewards.float(), rewards.bfloat16()
    close(advantages_of(name, single).double(), advantages_of(name, single.double()), 1e-4, 1e-4)
    close(advantages_of(name, half).double(), advantages_of(name, half.double()), 1e-4, 1e-4)


@every_advantage
def test_advantages_are_clipped(name: str) -> None:
    rewards = 100 * rewards_of(1, 3, 6, binary=False, unscorable=0.0)
    plain = advantages_of(name, rewards)
    clipped = component("advantage", name, clip=[-0.5, 0.25])
    groups, size = rewards.shape
    lengths = torch.arange(size).expand(groups, size) % 3 + 1
    mask = torch.arange(3) < lengths.reshape(-1, 1)
    found = clipped(rewards, lengths=lengths, parts={"whole": rewards}, mask=mask)
    close(found.reshape(plain.shape), plain.clamp(-0.5, 0.25))
    assert plain.min() < -0.5
    assert plain.max() > 0.25


# --- Aggregation -------------------------------------------------------------------------------


def aggregate(name: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """The scalar of the per-token values `batch.logps`, and its gradient."""
    values = batch.logps.clone().requires_grad_()
    scalar = component("aggregation", name)(
        values, batch.mask, group_size=batch.group_size, max_length=LIMIT
    )
    return scalar.detach(), torch.autograd.grad(scalar, values)[0]


@every_aggregation
@given(batch=batches(), garbage=st.sampled_from(GARBAGE), extra=st.integers(0, 3))
def test_aggregation_ignores_padding(name: str, batch: Batch, garbage: float, extra: int) -> None:
    scalar, gradient = aggregate(name, batch.spoilt(0.0, 0))
    found, found_gradient = aggregate(name, batch.spoilt(garbage, extra))
    assert found.dim() == 0
    close(found, scalar)
    close(found_gradient, torch.nn.functional.pad(gradient, (0, extra)))


@every_aggregation
@given(batch=batches(), seed=st.integers(0, 99))
def test_aggregation_ignores_the_order(name: str, batch: Batch, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(batch.mask)).reshape(-1, batch.group_size)
    rows = rows[torch.randperm(rows.shape[0], generator=generator)]
    rows = torch.stack([r[torch.randperm(len(r), generator=generator)] for r in rows])
    order = rows.flatten().tolist()
    scalar, gradient = aggregate(name, batch)
    found, found_gradient = aggregate(name, batch.rows(order))
    close(found, scalar)
    close(found_gradient, gradient[order])


def splits(n: int, seed: int) -> list[list[int]]:
    """Rows 0 … n−1 in micro-batches of uneven size."""
    sizes = torch.randint(1, 4, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    ends = [min(n, e) for e in itertools.accumulate(sizes)]
    parts = [list(range(a, b)) for a, b in itertools.pairwise([0, *ends])]
    return [p for p in parts if p]


@every_aggregation
@given(batch=batches(), seed=st.integers(0, 99))
def test_aggregation_is_exact_under_micro_batches(name: str, batch: Batch, seed: int) -> None:
    scalar, gradient = aggregate(name, batch)
    weights = component("aggregation", name).weights(
        batch.mask, group_size=batch.group_size, max_length=LIMIT
    )
    assert weights.shape in [(len(batch.mask), 1), batch.mask.shape]
    values = batch.logps.clone().requires_grad_()
    total = torch.zeros((), dtype=F64)
    for rows in splits(len(batch.mask), seed):
        part = (torch.where(batch.mask[rows], values[rows], 0.0) * weights[rows]).sum()
        part.backward()
        total += part.detach()
    close(total, scalar, rtol=1e-13, atol=1e-15)
    assert values.grad is not None
    close(values.grad, gradient, rtol=0, atol=0)


@every_aggregation
def test_aggregation_of_nothing_is_zero(name: str) -> None:
    batch = make_batch(0)
    scalar, gradient = aggregate(name, dataclasses.replace(batch, mask=batch.mask & False))
    assert float(scalar) == 0.0
    assert not gradient.any()


@every_aggregation
def test_aggregation_of_empty_and_one_token_completions(name: str) -> None:
    batch = make_batch(1, groups=1, group_size=3, width=3)
    mask = torch.arange(3) < torch.tensor([[0], [1], [3]])
    scalar, gradient = aggregate(name, dataclasses.replace(batch, mask=mask))
    assert scalar.isfinite()
    assert not gradient[~mask].any()
    assert (gradient[mask] > 0).all()


@every_aggregation
@given(batch=batches())
def test_aggregation_in_lower_precision(name: str, batch: Batch) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        low = dataclasses.replace(batch, logps=batch.logps.to(dtype))
        found, _ = aggregate(name, low)
        exact, _ = aggregate(name, low.map(lambda v: v.double()))
        assert found.dtype == dtype
        close(found.double(), exact, rtol=tolerance, atol=tolerance)


# --- Correction and selection ------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRECTIONS)
@given(batch=batches(), garbage=st.sampled_from(GARBAGE), extra=st.integers(0, 3))
def test_correction_weights(name: str, batch: Batch, garbage: float, extra: int) -> None:
    correct = component("correction", name)
    weights = correct(batch.old_logps.requires_grad_(), batch.sampler_logps, batch.mask)
    assert weights.shape == batch.mask.shape
    assert not weights.requires_grad
    assert (weights[batch.mask] >= 0).all()
    spoilt = batch.map(lambda v: v.detach()).spoilt(garbage, extra)
    found = correct(spoilt.old_logps, spoilt.sampler_logps, spoilt.mask)
    close(found[spoilt.mask], weights[batch.mask])


@pytest.mark.parametrize("name", CORRECTIONS)
def test_correction_of_an_exact_sampler_is_one(name: str) -> None:
    batch = make_batch(2)
    weights = component("correction", name)(batch.old_logps, batch.old_logps, batch.mask)
    assert (weights[batch.mask] == 1).all()
    assert batch.mask.any()


@pytest.mark.parametrize("name", SELECTIONS)
@given(rewards=reward_batches())
def test_selection_names_groups(name: str, rewards: Tensor) -> None:
    select = component("selection", name)
    noise = torch.rand(rewards.shape, generator=torch.Generator().manual_seed(1))
    kept = select(rewards, noise=noise)
    assert kept.dtype == torch.bool
    assert kept.shape == rewards.shape
    assert len(set(kept.sum(dim=1).tolist()) - {0}) <= 1  # groups stay of one size
    assert select.rounds >= 1


# --- The whole objective -----------------------------------------------------------------------

# Their gradient is not the derivative of their value: part of it is held fixed.
STOPPED: dict[str, Callable[[Tensor], Tensor]] = {"cispo": lambda ratio: ratio.clamp(0, 5)}
SMOOTH_KLS = ["k1", "k2", "k3", "full"]


def objective(clip: str, kl: str, **settings: object) -> Objective:
    return Objective(
        clip=component("clip", clip),
        kl=component("kl", kl, **settings),
        correction=component("correction", "none"),
    )


def total_loss(parts: Objective, batch: Batch, beta: float = 0.3) -> Tensor:
    return parts(
        batch.logps,
        batch.old_logps,
        batch.advantages,
        batch.mask,
        beta=beta,
        ref_logps=batch.ref_logps,
        sampler_logps=batch.sampler_logps,
        logits=batch.logits,
        ref_logits=batch.ref_logits,
    ).total


def smooth_batch() -> Batch:
    """No ratio, of a token or of a sequence, near a default clip bound."""
    log_ratios = torch.tensor([[0.05, -0.1, 0.4], [-0.5, 0.9, -0.6], [0.1, 0.12, 0.0]], dtype=F64)
    batch = make_batch(9, groups=1, group_size=3, width=3)
    return dataclasses.replace(
        batch,
        old_logps=batch.logps - log_ratios,
        advantages=torch.tensor([[1.3], [-0.8], [-0.4]], dtype=F64).expand(3, 3),
        mask=torch.arange(3) < torch.tensor([[3], [3], [2]]),
    )


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kl", SMOOTH_KLS)
@every_aggregation
def test_gradients_by_finite_differences(name: str, clip: str, kl: str) -> None:
    batch = smooth_batch()
    parts = objective(clip, kl)
    weights = None
    if clip in STOPPED:
        weights = STOPPED[clip]((batch.logps - batch.old_logps).exp())

    def scalar(logps: Tensor, logits: Tensor, frozen: bool) -> Tensor:
        moved = dataclasses.replace(batch, logps=logps, logits=logits)
        per_token = total_loss(parts, moved)
        if frozen and weights is not None:  # the same loss, with what is held fixed held fixed
            beside = total_loss(objective("reinforce", kl), moved, beta=0.0)
            policy = total_loss(parts, moved, beta=0.0)
            per_token = per_token - policy + weights * beside
        value: Tensor = component("aggregation", name)(
            per_token, batch.mask, group_size=3, max_length=LIMIT
        )
        return value

    logps, logits = (v.clone().requires_grad_() for v in (batch.logps, batch.logits))
    assert torch.autograd.gradcheck(
        lambda a, b: scalar(a, b, frozen=True), (logps, logits), eps=1e-6, atol=1e-8
    )
    found = torch.autograd.grad(
        scalar(logps, logits, False), [logps, logits], materialize_grads=True
    )
    exact = torch.autograd.grad(
        scalar(logps, logits, True), [logps, logits], materialize_grads=True
    )
    for a, b in zip(found, exact, strict=True):
        close(a, b)
    assert found[0].any()


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kl", KLS)
def test_objective_is_exact_under_micro_batches(clip: str, kl: str) -> None:
    batch = make_batch(10, groups=3, group_size=3, width=5)
    parts = objective(clip, kl)
    for name in AGGREGATIONS:
        aggregation = component("aggregation", name)
        sizes = {"group_size": batch.group_size, "max_length": LIMIT}
        whole = batch.map(lambda v: v.clone().requires_grad_())
        scalar = aggregation(total_loss(parts, whole), batch.mask, **sizes)
        scalar.backward()
        weights = aggregation.weights(batch.mask, **sizes)
        split = batch.map(lambda v: v.clone().requires_grad_())
        total = 0.0
        for rows in splits(len(batch.mask), seed=1):
            part = (total_loss(parts, split.rows(rows)) * weights[rows]).sum()
            part.backward()
            total += float(part.detach())
        assert total == pytest.approx(float(scalar.detach()), rel=1e-12, abs=1e-14)
        assert split.logps.grad is not None
        assert whole.logps.grad is not None
        close(split.logps.grad, whole.logps.grad)
        assert (split.logits.grad is None) == (whole.logits.grad is None)
        if split.logits.grad is not None and whole.logits.grad is not None:
            close(split.logits.grad, whole.logits.grad)


def test_objective_adds_beta_times_kl() -> None:
    batch = make_batch(11)
    found = objective("ppo", "k3")(
        batch.logps, batch.old_logps, batch.advantages, batch.mask,
        beta=0.3, ref_logps=batch.ref_logps,
    )  # fmt: skip
    close(found.policy, evaluate("clip", "ppo", batch).value)
    close(found.kl, evaluate("kl", "k3", batch).value)
    close(found.total, found.policy + 0.3 * found.kl)


@pytest.mark.parametrize(
    ("kl", "settings", "beta"),
    [("k3", {"placement": "reward"}, 0.3), ("none", {}, 0.3), ("k3", {}, 0.0)],
)
def test_objective_without_kl_is_the_clip(
    kl: str, settings: dict[str, object], beta: float
) -> None:
    batch = make_batch(12)
    batch = dataclasses.replace(batch, ref_logps=batch.ref_logps - math.inf)  # KL would be inf
    found = total_loss(objective("ppo", kl, **settings), batch, beta=beta)
    close(found, evaluate("clip", "ppo", batch).value, rtol=0, atol=0)


@given(batch=batches(), garbage=st.sampled_from(GARBAGE), extra=st.integers(0, 3))
def test_logged_sums(batch: Batch, garbage: float, extra: int) -> None:
    d = (batch.logps - batch.old_logps)[batch.mask]
    ratio, zero = d.exp(), torch.zeros((), dtype=F64)
    expected = {
        "sum": ratio.sum(),
        "squares": ratio.square().sum(),
        "max": ratio.max() if len(ratio) else zero,
        "k1": d.sum(),
        "k2": (d.square() / 2).sum(),
        "k3": ((-d).exp() + d - 1).sum(),
    }
    spoilt = batch.spoilt(garbage, extra)
    spoilt.logps.requires_grad_()
    arguments = spoilt.logps, spoilt.old_logps, spoilt.mask
    found = {**ratio_sums(*arguments), **kl_estimates(*arguments)}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dim() == 0
        assert not found[key].requires_grad
        close(found[key], value)
