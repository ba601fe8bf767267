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

from grpolab.component import component, registry, settings_of
from grpolab.objective.clip import Clip, Plan
from grpolab.objective.loss import Objective, kl_estimates, ratio_sums

F64 = torch.float64
VOCABULARY = 4
LIMIT = 16  # max_length of the aggregations
CLIPS, MASKS, KLS, AGGREGATIONS, CORRECTIONS, SELECTIONS = (
    sorted(registry(g)) for g in ("clip", "mask", "kl", "aggregation", "correction", "selection")
)
PER_TOKEN = [(g, n) for g, known in (("clip", CLIPS), ("mask", MASKS), ("kl", KLS)) for n in known]
GARBAGE = [math.nan, math.inf, -math.inf, 1e30, -1e30]

per_token = pytest.mark.parametrize(("group", "name"), PER_TOKEN)
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
    entropy: Tensor
    noise: Tensor
    rewards: Tensor
    truncated: Tensor
    mask: Tensor
    group_size: int

    def tensors(self) -> dict[str, Tensor]:
        """All of numbers: neither the mask nor what was truncated."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()}

    def beside(self) -> dict[str, Any]:
        """What some clips and masks read besides the log-probs and advantages."""
        return {k: getattr(self, k) for k in ("rewards", "entropy", "truncated", "noise")}

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {k: change(v) for k, v in self.tensors().items()}
        return dataclasses.replace(self, **changed)

    def rows(self, rows: list[int]) -> Batch:
        own: dict[str, Any] = {"mask": self.mask[rows], "truncated": self.truncated[rows]}
        return dataclasses.replace(self.map(lambda v: v[rows]), **own)

    def spoilt(self, garbage: float, extra: int) -> Batch:
        """Wider by `extra` columns, and with `garbage` at every masked position."""
        wider = torch.nn.functional.pad(self.mask, (0, extra))

        def spoil(value: Tensor) -> Tensor:
            if value is self.rewards:  # [N, 1]: no padding
                return value
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
        entropy=normal(n, width).abs(),
        noise=torch.rand(n, width, dtype=F64, generator=generator),
        rewards=normal(n, 1),
        truncated=torch.rand(n, 1, generator=generator) < 0.3,
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


def clip_of(group: str, name: str) -> Clip:
    """A clip by its name, or the plainest one under a mask."""
    made: Clip = component("clip", name) if group == "clip" else masked("none", name)
    return made


def masked(clip: str, *masks: str) -> Clip:
    made: Clip = component("clip", clip, masks=list(masks))
    return made


def plan_of(clip: Clip, batch: Batch) -> Plan:
    return clip.plan(batch.logps, batch.old_logps, batch.advantages, batch.mask, **batch.beside())


def plan_for(group: str, name: str, batch: Batch) -> Plan | None:
    """Made of all rows, where the component knows of other rows at all."""
    if group == "kl" or not clip_of(group, name).needs_plan:
        return None
    return plan_of(clip_of(group, name), batch)


def evaluate(group: str, name: str, batch: Batch, plan: Plan | None = None) -> Outcome:
    logps = batch.logps.clone().requires_grad_()
    logits = batch.logits.clone().requires_grad_()
    metrics: dict[str, Tensor] = {}
    if group in ("clip", "mask"):
        surrogate = clip_of(group, name)(
            logps, batch.old_logps, batch.advantages, batch.mask, **batch.beside(), plan=plan
        )
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
    batch = dataclasses.replace(batch, mask=mask)
    plan = plan_for(group, name, batch)
    own = None if plan is None else {k: v[:1] for k, v in plan.items()}
    alone = evaluate(group, name, batch.rows([0]), own)
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
    plan = plan_for(group, name, double)  # one for both: a choice of tokens may jump at a tie
    found, exact = (evaluate(group, name, b, plan) for b in (single, double))
    assert found.value.dtype == torch.float32
    close(found.value.double(), exact.value, rtol=1e-4, atol=1e-5)
    close(found.gradient.double(), exact.gradient, rtol=1e-4, atol=1e-5)
    for key, value in exact.metrics.items():
        close(found.metrics[key].double(), value, rtol=1e-4, atol=1e-5)


@per_token
@given(batch=batches(spreads=(0.3,)))
def test_bfloat16_is_accepted(group: str, name: str, batch: Batch) -> None:
    half = batch.map(lambda v: v.bfloat16())
    double = half.map(lambda v: v.double())
    plan = plan_for(group, name, double)
    found, exact = (evaluate(group, name, b, plan) for b in (half, double))
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
    everything = torch.ones_like(batch.mask)
    loss = component("clip", name)(
        batch.logps, batch.old_logps, batch.advantages, everything, **batch.beside()
    ).loss
    loss.sum().backward()
    assert batch.logps.grad is not None
    assert batch.logps.grad.any()
    constants = (batch.old_logps, batch.advantages, batch.rewards, batch.entropy, batch.noise)
    assert all(v.grad is None for v in constants)


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


# Their gradient is another's: tests/objective/test_kl.py has it by hand.
SUBSTITUTED = {"straight_through": "k2", "weighted_k2": None}


@pytest.mark.parametrize("name", [n for n in KLS if fact("kl", n, "needs_reference")])
def test_kl_gradients_by_finite_differences(name: str) -> None:
    batch = smooth_batch()
    differentiated = SUBSTITUTED.get(name, name)

    def value(logps: Tensor, logits: Tensor) -> Tensor:
        ratio = (batch.logps - batch.old_logps).exp() if differentiated is None else 1.0
        found: Tensor = component("kl", differentiated or "k2")(
            logps,
            batch.ref_logps,
            batch.mask,
            old_logps=batch.old_logps,
            logits=logits,
            ref_logits=batch.ref_logits,
        )
        return (ratio * found * (1 + torch.arange(found.shape[1]))).sum()

    logps, logits = (v.clone().requires_grad_() for v in (batch.logps, batch.logits))
    assert torch.autograd.gradcheck(value, (logps, logits), eps=1e-6, atol=1e-8)
    exact = torch.autograd.grad(value(logps, logits), [logps, logits], materialize_grads=True)
    found = evaluate("kl", name, batch)
    close(found.gradient, exact[0])
    close(found.logits_gradient, exact[1])
    assert found.gradient.any() or found.logits_gradient.any()


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
    if name == "token_mean_micro":  # by its micro-batches of 8 rows in order; here there is one
        whole = 8 // batch.group_size * batch.group_size
        batch = batch.rows(list(range(len(batch.mask)))[:whole])
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


CORRECTED = [
    (name, {} if level is None else {"level": level})
    for name in CORRECTIONS
    for level in (
        ("token", "sequence_sum", "sequence_mean")
        if "level" in settings_of(registry("correction")[name])
        else (None,)
    )
]
every_correction = pytest.mark.parametrize(("name", "settings"), CORRECTED)


@every_correction
@given(batch=batches(), garbage=st.sampled_from(GARBAGE), extra=st.integers(0, 3))
def test_correction_weights(
    name: str, settings: dict[str, str], batch: Batch, garbage: float, extra: int
) -> None:
    correct = component("correction", name, **settings)
    weights = correct(batch.old_logps.requires_grad_(), batch.sampler_logps, batch.mask)
    assert weights.shape == batch.mask.shape
    assert not weights.requires_grad
    assert (weights[batch.mask] >= 0).all()
    assert (weights[~batch.mask] == 1).all()
    spoilt = batch.map(lambda v: v.detach()).spoilt(garbage, extra)
    arguments = spoilt.old_logps, spoilt.sampler_logps, spoilt.mask
    found = correct(*arguments)
    close(found[spoilt.mask], weights[batch.mask])
    assert (found[~spoilt.mask] == 1).all()
    metrics = correct.metrics(*arguments)
    for key, value in correct.metrics(batch.old_logps, batch.sampler_logps, batch.mask).items():
        assert value.dim() == 0
        assert not value.requires_grad
        close(metrics[key], value)


@every_correction
@given(batch=batches(), seed=st.integers(0, 99))
def test_correction_follows_the_rows(
    name: str, settings: dict[str, str], batch: Batch, seed: int
) -> None:
    rows = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(seed)).tolist()
    correct = component("correction", name, **settings)
    moved = batch.rows(rows)
    close(
        correct(moved.old_logps, moved.sampler_logps, moved.mask),
        correct(batch.old_logps, batch.sampler_logps, batch.mask)[rows],
    )


@every_correction
def test_correction_of_an_exact_sampler_is_one(name: str, settings: dict[str, str]) -> None:
    batch = make_batch(2)
    correct = component("correction", name, **settings)
    weights = correct(batch.old_logps, batch.old_logps, batch.mask)
    assert (weights[batch.mask] == 1).all()
    assert batch.mask.any()


@pytest.mark.parametrize("name", SELECTIONS)
@given(rewards=reward_batches(), seed=st.integers(0, 99))
def test_selection_names_groups(name: str, rewards: Tensor, seed: int) -> None:
    select = component("selection", name)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(rewards.shape, generator=generator)
    kept = select(rewards, noise=noise)
    assert kept.dtype == torch.bool
    assert kept.shape == rewards.shape
    assert len(set(kept.sum(dim=1).tolist()) - {0}) <= 1  # groups stay of one size
    assert select.rounds >= 1
    groups, members = (torch.randperm(n, generator=generator) for n in rewards.shape)
    moved = [x[groups][:, members] for x in (rewards, noise, kept)]
    assert torch.equal(select(moved[0], noise=moved[1]), moved[2])


# --- The whole objective -----------------------------------------------------------------------

Held = Callable[[Batch, Tensor], Tensor]


def held_weight(weight: Callable[[Batch, Tensor], Tensor]) -> Held:
    """−w·A·lp with w of the batch and its ratios."""

    def loss(batch: Batch, logps: Tensor) -> Tensor:
        return -weight(batch, (batch.logps - batch.old_logps).exp()) * batch.advantages * logps

    return loss


def vespo_weight(batch: Batch, ratio: Tensor) -> Tensor:
    w = torch.where(batch.mask, ratio, 1.0).prod(dim=1, keepdim=True)
    k, rate = (torch.where(batch.advantages >= 0, a, b) for a, b in ((2.0, 3.0), (3.0, 2.0)))
    return w**k * (rate - rate * w).exp()


def gspo_token_loss(batch: Batch, logps: Tensor) -> Tensor:
    log_ratios = torch.where(batch.mask, batch.logps - batch.old_logps, 0.0)
    s = (log_ratios.sum(1, keepdim=True) / batch.mask.sum(1, keepdim=True)).exp()
    s = s * (logps - batch.logps).exp()
    clipped = s.clamp(1 - 3e-4, 1 + 4e-4)
    return -torch.minimum(s * batch.advantages, clipped * batch.advantages)


def fipo_loss(batch: Batch, logps: Tensor) -> Tensor:
    log_ratios = torch.where(batch.mask, batch.logps - batch.old_logps, 0.0)
    steps = torch.arange(log_ratios.shape[1])
    future = (2 ** (-(steps - steps[:, None]) / 32)).to(F64).triu()  # γ^(k−t) for k ≥ t
    weight = (log_ratios @ future.T).exp().clamp(1.0, 1.2)
    ppo = component("clip", "ppo")(logps, batch.old_logps, batch.advantages, batch.mask).loss
    loss: Tensor = weight * ppo
    return loss


# Their gradient is not the derivative of their value: part of it is held fixed, at the batch's
# own log-probs. Here is the same loss per token, in which it is.
STOPPED: dict[str, Held] = {
    "cispo": held_weight(lambda batch, ratio: ratio.clamp(0, 5)),
    "tis_pg": held_weight(lambda batch, ratio: ratio.clamp(max=1)),
    "topr": held_weight(
        lambda batch, ratio: torch.where(batch.rewards > 0, 1.0, ratio.clamp(max=1))
    ),
    "vespo": held_weight(vespo_weight),
    "gspo_token": gspo_token_loss,
    "fipo": fipo_loss,
}
SMOOTH_KLS = ["k3"]  # the others: test_kl_gradients_by_finite_differences


def objective(clip: str, kl: str, **settings: object) -> Objective:
    return Objective(
        clip=component("clip", clip),
        kl=component("kl", kl, **settings),
        correction=component("correction", "none"),
    )


def total_loss(
    parts: Objective, batch: Batch, beta: float = 0.3, plan: Plan | None = None
) -> Tensor:
    if plan is None and parts.clip.needs_plan:
        plan = plan_of(parts.clip, batch)
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
        rewards=batch.rewards,
        entropy=batch.entropy,
        truncated=batch.truncated,
        plan=plan,
    ).total


def smooth_batch() -> Batch:
    """No ratio, of a token or of a sequence, near a default clip bound."""
    log_ratios = torch.tensor([[0.05, -0.1, 0.45], [-0.5, 0.9, -0.6], [0.1, 0.12, 0.0]], dtype=F64)
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

    def scalar(logps: Tensor, logits: Tensor, frozen: bool) -> Tensor:
        moved = dataclasses.replace(batch, logps=logps, logits=logits)
        per_token = total_loss(parts, moved)
        if frozen and clip in STOPPED:
            per_token = per_token - total_loss(parts, moved, beta=0.0) + STOPPED[clip](batch, logps)
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
        plan = plan_of(parts.clip, batch)
        split = batch.map(lambda v: v.clone().requires_grad_())
        total = 0.0
        for rows in splits(len(batch.mask), seed=1):
            own = {k: v[rows] for k, v in plan.items()}
            part = (total_loss(parts, split.rows(rows), plan=own) * weights[rows]).sum()
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
        "excess": (ratio - 1).sum(),
        "squares": (ratio - 1).square().sum(),
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
