"""Losses that read the whole optimizer step: what they choose, and that no split changes it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpolab.component import component, registry
from grpolab.objective.clip import Clip, Plan
from grpolab.objective.clip.batch import stairs
from tests.objective.test_invariances import (
    Batch,
    batches,
    close,
    make_batch,
    masked,
    plan_of,
    splits,
)

F64 = torch.float64
# settings under which something is chosen on small batches
EAGER: dict[str, list[dict[str, Any]]] = {
    "clip_cov": [{"share": 0.3, "lo": 0.05, "hi": 3.0}, {"share": 0.5, "lo": -0.2, "low": 0.0}],
    "kl_cov": [{"share": 0.3}, {}],
    "bapo": [
        {"rho0": rho0, "order": order, "counts": counts, "low_step": 0.11, "high_step": 0.3}
        for rho0 in (0.4, 0.7)
        for order in ("high_first", "low_first", "alternate")
        for counts in ("gradient", "loss")
    ],
}
PLANNED = [(name, settings) for name, tried in EAGER.items() for settings in tried]
every_plan = pytest.mark.parametrize(("name", "settings"), PLANNED)


def test_every_plan_is_tried() -> None:
    assert set(EAGER) == {n for n, cls in registry("clip").items() if cls.plans}  # type: ignore[attr-defined]


def outcome(clip: Clip, batch: Batch, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
    logps = batch.logps.clone().requires_grad_()
    loss = clip(
        logps, batch.old_logps, batch.advantages, batch.mask, **batch.beside(), plan=plan
    ).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), logps)[0]


# --- clip_cov and kl_cov by hand ---------------------------------------------------------------

LOGPS = torch.tensor([[-1.0, -3.0, -2.0], [-3.0, -1.0, -2.0]], dtype=F64)  # mean −2
TWO_ROWS = torch.tensor([[2.0], [-2.0]], dtype=F64)  # mean 0
# so the covariances are 2, −2, 0 and 2, −2, 0
NOISE = torch.tensor([[0.9, 0.5, 0.5], [0.1, 0.0, 0.0]], dtype=F64)


def chosen(
    name: str, old_logps: Tensor | None = None, noise: Tensor = NOISE, **settings: Any
) -> list[tuple[int, int]]:
    """Rows and columns of the tokens chosen of the two rows above."""
    clip = component("clip", name, **settings)
    everything = torch.ones(2, 3, dtype=torch.bool)
    old = LOGPS if old_logps is None else old_logps
    plan = clip.plan(LOGPS, old, TWO_ROWS, everything, noise=noise)
    assert len(plan) == 1
    (found,) = plan.values()
    return [(int(i), int(j)) for i, j in found.nonzero()]


def test_clip_cov_takes_the_candidate_with_the_least_noise() -> None:
    assert chosen("clip_cov") == [(1, 0)]  # ⌊2e-4·6⌋ = 0, at least one
    assert chosen("clip_cov", noise=NOISE.flip(0)) == [(0, 0)]
    assert chosen("clip_cov", share=0.33) == [(1, 0)]  # ⌊1.98⌋
    assert chosen("clip_cov", share=0.34) == [(0, 0), (1, 0)]  # ⌊2.04⌋
    assert chosen("clip_cov", share=1.0) == [(0, 0), (1, 0)]  # there are no more candidates


def test_covariances_do_not_move_with_either_mean() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    for name in ("clip_cov", "kl_cov"):
        clip = component("clip", name, share=0.34)
        for more_likely, better in ((0.0, 0.0), (-4.0, 0.0), (0.0, 3.0), (0.0, -3.0)):
            logps = LOGPS + more_likely
            plan = clip.plan(logps, logps, TWO_ROWS + better, mask, noise=NOISE)
            (found,) = plan.values()
            assert found.tolist() == [[True, False, False]] * 2


def test_clip_cov_bounds_are_exclusive() -> None:
    assert chosen("clip_cov", lo=2.0) == []
    assert chosen("clip_cov", hi=2.0) == []
    assert chosen("clip_cov", lo=1.99, hi=2.01) == [(1, 0)]
    assert chosen("clip_cov", lo=-1.0, hi=1.0) == [(1, 2)]  # covariance 0


def test_clip_cov_leaves_out_what_is_clipped_already() -> None:
    old = LOGPS.clone()
    old[1, 0] += 1.0  # r = e^−1 < 0.8 and A<0: clipped
    assert chosen("clip_cov", old) == [(0, 0)]
    old[1, 0] -= 2.0  # r = e, which ppo lets pass where A<0
    assert chosen("clip_cov", old) == [(1, 0)]
    old[0, 0] -= 1.0  # r = e > 1.2 and A>0
    assert chosen("clip_cov", old, share=1.0) == [(1, 0)]
    assert chosen("clip_cov", old, share=1.0, high=2.0) == [(0, 0), (1, 0)]


def test_clip_cov_takes_the_whole_loss_and_counts_it_as_clipped() -> None:
    logps = LOGPS.clone().requires_grad_()
    everything = torch.ones(2, 3, dtype=torch.bool)
    surrogate = component("clip", "clip_cov")(logps, LOGPS, TWO_ROWS, everything, noise=NOISE)
    assert surrogate.loss.tolist() == [[-2.0] * 3, [0.0, 2.0, 2.0]]
    gradient = torch.autograd.grad(surrogate.loss.sum(), logps)[0]
    assert gradient.tolist() == [[-2.0] * 3, [0.0, 2.0, 2.0]]
    for key, share in (("low", 1 / 6), ("negative", 1 / 6), ("high", 0), ("positive", 0)):
        assert float(surrogate.metrics[f"clip/{key}"]) == pytest.approx(share)
    other = component("clip", "clip_cov")(logps, LOGPS, TWO_ROWS, everything, noise=NOISE.flip(0))
    assert float(other.metrics["clip/high"]) == pytest.approx(1 / 6)
    assert float(other.metrics["clip/low"]) == 0


def test_kl_cov_takes_the_largest_and_breaks_ties_by_noise() -> None:
    assert chosen("kl_cov") == [(1, 0)]
    assert chosen("kl_cov", noise=NOISE.flip(0)) == [(0, 0)]
    assert chosen("kl_cov", share=0.34) == [(0, 0), (1, 0)]
    assert chosen("kl_cov", share=0.5) == [(0, 0), (1, 0), (1, 2)]  # then 0, by noise
    assert len(chosen("kl_cov", share=1.0)) == 6


def test_kl_cov_adds_the_size_of_the_log_ratio() -> None:
    d = torch.tensor([[0.5, 0.0, 0.0], [-0.25, 0.0, 0.0]], dtype=F64)
    logps = LOGPS.clone().requires_grad_()
    everything = torch.ones(2, 3, dtype=torch.bool)
    surrogate = component("clip", "kl_cov", share=0.34, c=3.0)(
        logps, LOGPS - d, TWO_ROWS, everything, noise=NOISE
    )
    r = [math.exp(0.5), math.exp(-0.25)]
    expected = [[-2 * r[0] + 1.5, -2, -2], [2 * r[1] + 0.75, 2, 2]]
    for row, values in zip(surrogate.loss.tolist(), expected, strict=True):
        assert row == pytest.approx(values)
    gradient = torch.autograd.grad(surrogate.loss.sum(), logps)[0]
    assert gradient[:, 0].tolist() == pytest.approx([-2 * r[0] + 3, 2 * r[1] - 3])
    assert float(surrogate.metrics["clip/share"]) == 0


def test_the_covariance_is_over_valid_tokens_only() -> None:
    """The third column masked, with values that would move both means."""
    logps, mask = LOGPS.clone(), torch.tensor([[True, True, False]] * 2)
    logps[:, 2] = torch.tensor([-50.0, 9.0])
    for name in ("clip_cov", "kl_cov"):
        clip = component("clip", name, share=1.0)
        plan = clip.plan(logps, logps, TWO_ROWS, mask, noise=NOISE)
        (found,) = plan.values()
        wanted = mask if name == "kl_cov" else torch.tensor([[True, False, False]] * 2)
        assert torch.equal(found, wanted)


# --- bapo by hand ------------------------------------------------------------------------------

# A = +1: r = 1.5, 1. A = −1: r = 2, 0.72, 1.
BAPO_RATIOS = torch.tensor([[1.5, 1.0, 1.0], [2.0, 0.72, 1.0]], dtype=F64)
BAPO_MASK = torch.tensor([[True, True, False], [True, True, True]])


def bounds_of(**settings: Any) -> tuple[float, float]:
    """(c_low, c_high) for the two rows above, c_high moving by 0.4."""
    clip = component("clip", "bapo", high_step=0.4, **settings)
    plan = clip.plan(
        BAPO_RATIOS.log(),
        torch.zeros(2, 3, dtype=F64),
        torch.tensor([[1.0], [-1.0]], dtype=F64),
        BAPO_MASK,
    )
    low, high = plan["low"], plan["high"]
    assert low.shape == high.shape == (2, 1)
    assert (low == low[0]).all()
    assert (high == high[0]).all()
    return round(float(low[0]), 9), round(float(high[0]), 9)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # at (0.6, 1.2): 1/(1 + 3.72) = 0.2119; c_high 1.6 lets 1.5 in: 2.5/6.22 = 0.4019
        ({"rho0": 0.2}, (0.6, 1.2)),
        ({}, (0.6, 1.6)),
        # c_high to its end, then c_low 0.75 takes 0.72 away: 2.5/5.5 = 0.4545
        ({"rho0": 0.45}, (0.75, 3.0)),
        ({"rho0": 0.46}, (0.9, 3.0)),  # out of reach
        # c_low to its end first (1/4), then c_high 1.6
        ({"order": "low_first"}, (0.9, 1.6)),
        ({"order": "low_first", "rho0": 0.24}, (0.75, 1.2)),
        # 1.6, 0.65, 2.0, 0.7, 2.4, 0.75
        ({"order": "alternate"}, (0.6, 1.6)),
        ({"order": "alternate", "rho0": 0.45}, (0.75, 2.4)),
        ({"order": "alternate", "rho0": 0.46}, (0.9, 3.0)),
        # clipped tokens count: (1.2 + 1)/(2.2 + 3.72) = 0.3716
        ({"counts": "loss", "rho0": 0.37}, (0.6, 1.2)),
        ({"counts": "loss", "rho0": 0.38}, (0.6, 1.6)),
        # a higher c_low makes bad tokens' loss larger: 2.5/(2.5 + 3.9) at the end
        ({"counts": "loss", "rho0": 0.41}, (0.9, 3.0)),
        ({"high": [1.6, 1.6], "low": [0.6, 0.6], "rho0": 1.0}, (0.6, 1.6)),
    ],
)
def test_bapo_bounds(settings: dict[str, Any], expected: tuple[float, float]) -> None:
    assert bounds_of(**settings) == expected


def test_bapo_is_ppo_between_its_bounds() -> None:
    logps = BAPO_RATIOS.log().requires_grad_()
    surrogate = component("clip", "bapo", high_step=0.4, rho0=0.45)(
        logps,
        torch.zeros(2, 3, dtype=F64),
        torch.tensor([[1.0], [-1.0]], dtype=F64),
        BAPO_MASK,
    )  # (0.75, 3.0)
    assert surrogate.loss[0].tolist() == pytest.approx([-1.5, -1.0, 0.0])
    assert surrogate.loss[1].tolist() == pytest.approx([2.0, 0.75, 1.0])
    gradient = torch.autograd.grad(surrogate.loss.sum(), logps)[0]
    assert gradient[0].tolist() == pytest.approx([-1.5, -1.0, 0.0])
    assert gradient[1].tolist() == pytest.approx([2.0, 0.0, 1.0])
    assert float(surrogate.metrics["clip/low"]) == pytest.approx(1 / 5)
    assert float(surrogate.metrics["clip/high"]) == 0


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, (0.6, 1.2)), (-1.0, (0.9, 3.0))])
def test_bapo_of_one_sign(advantage: float, expected: tuple[float, float]) -> None:
    """All good: the share is 1 from the start. All bad: it stays 0."""
    logps = torch.zeros(1, 2, dtype=F64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    plan = component("clip", "bapo").plan(logps, logps, torch.tensor([[advantage]]).to(F64), mask)
    assert (float(plan["low"]), float(plan["high"])) == expected


@pytest.mark.parametrize("mask", [True, False])
def test_bapo_without_anything_to_count(mask: bool) -> None:
    logps = torch.zeros(1, 2, dtype=F64)
    valid = torch.full((1, 2), mask)
    plan = component("clip", "bapo").plan(logps, logps, torch.zeros(1, 1, dtype=F64), valid)
    assert (float(plan["low"]), float(plan["high"])) == (0.6, 1.2)


def test_stairs() -> None:
    steps = stairs([1.2, 3.0], 0.05)
    assert len(steps) == 37
    assert steps == pytest.approx([1.2 + 0.05 * i for i in range(37)])
    assert steps[-1] == 3.0
    assert stairs([0.6, 0.9], 0.2) == pytest.approx([0.6, 0.8, 0.9])
    assert stairs([0.6, 0.9], 5.0) == [0.6, 0.9]
    assert stairs([0.6, 0.9], math.inf) == [0.6, 0.9]
    assert stairs([0.6, 0.6], 0.1) == [0.6]


# --- Any split, any padding, any order ---------------------------------------------------------


@every_plan
@given(batch=batches(), seed=st.integers(0, 99))
def test_micro_batches_of_one_plan(
    name: str, settings: dict[str, Any], batch: Batch, seed: int
) -> None:
    clip = component("clip", name, **settings)
    loss, gradient = outcome(clip, batch)
    plan = plan_of(clip, batch)
    for rows in splits(len(batch.mask), seed):
        own = {k: v[rows] for k, v in plan.items()}
        found = outcome(clip, batch.rows(rows), own)
        close(found[0], loss[rows])
        close(found[1], gradient[rows])


@every_plan
def test_a_micro_batch_alone_would_choose_otherwise(name: str, settings: dict[str, Any]) -> None:
    """Otherwise the test above could not fail."""
    clip = component("clip", name, **settings)
    for seed in range(20):
        batch = make_batch(seed, groups=3, width=5, spread=0.5)
        whole = outcome(clip, batch)[0]
        alone = torch.cat([outcome(clip, batch.rows([i]))[0] for i in range(len(whole))])
        if not torch.equal(whole, alone):
            return
    pytest.fail("no batch on which the whole step matters")


@every_plan
@given(batch=batches(), extra=st.integers(0, 3), garbage=st.sampled_from([math.nan, -1e30, 7.0]))
def test_plans_do_not_read_the_padding(
    name: str, settings: dict[str, Any], batch: Batch, extra: int, garbage: float
) -> None:
    clip = component("clip", name, **settings)
    plain, spoilt = plan_of(clip, batch), plan_of(clip, batch.spoilt(garbage, extra))
    width = batch.mask.shape[1]
    for key, value in plain.items():
        found = spoilt[key]
        if found.shape[1] == 1 and value.shape[1] == 1 and name == "bapo":
            assert torch.equal(found, value)
        else:
            assert torch.equal(found[:, :width] & batch.mask, value & batch.mask)


@every_plan
@given(batch=batches(), seed=st.integers(0, 99))
def test_plans_follow_the_rows(
    name: str, settings: dict[str, Any], batch: Batch, seed: int
) -> None:
    clip = component("clip", name, **settings)
    rows = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(seed)).tolist()
    plain, moved = plan_of(clip, batch), plan_of(clip, batch.rows(rows))
    for key, value in plain.items():
        assert torch.equal(moved[key], value[rows])


@every_plan
def test_plans_are_detached(name: str, settings: dict[str, Any]) -> None:
    batch = make_batch(3, groups=3).map(lambda v: v.requires_grad_())
    plan = plan_of(component("clip", name, **settings), batch)
    assert plan
    assert not any(v.requires_grad for v in plan.values())


@every_plan
@given(batch=batches())
def test_plans_in_single_precision(name: str, settings: dict[str, Any], batch: Batch) -> None:
    """Choices by covariance may differ at ties, their number may not."""
    clip = component("clip", name, **settings)
    double = batch.map(lambda v: v.float().double())
    exact, found = plan_of(clip, double), plan_of(clip, batch.map(lambda v: v.float()))
    for key, value in exact.items():
        if name == "bapo":
            torch.testing.assert_close(found[key].double(), value, rtol=1e-6, atol=1e-6)
        else:
            assert int(found[key].sum()) == int(value.sum())


@given(batch=batches(), extra=st.integers(1, 3))
def test_without_noise_the_draw_is_fixed_and_ignores_padding(batch: Batch, extra: int) -> None:
    clip = component("clip", "clip_cov", share=0.3, lo=-5.0)

    def taken(given: Batch) -> Tensor:
        found = clip.plan(given.logps, given.old_logps, given.advantages, given.mask)["taken"]
        assert isinstance(found, Tensor)
        return found

    width = batch.mask.shape[1]
    plain = taken(batch)
    assert torch.equal(taken(batch), plain)
    assert torch.equal(taken(batch.spoilt(0.0, extra))[:, :width], plain)


def test_clip_cov_draws_every_candidate_alike() -> None:
    """4000 draws of one token of four: 1000 each, give or take four standard deviations."""
    logps = torch.tensor([[-1.0, -1.0, -3.0, -3.0]] * 2, dtype=F64)
    advantages = torch.tensor([[2.0], [-2.0]], dtype=F64)  # four covariances of 2, four of −2
    mask = torch.ones(2, 4, dtype=torch.bool)
    clip, source = component("clip", "clip_cov"), torch.Generator().manual_seed(0)
    counts = torch.zeros(2, 4)
    for _ in range(4000):
        noise = torch.rand(2, 4, generator=source)
        counts += clip.plan(logps, logps, advantages, mask, noise=noise)["taken"]
    expected = torch.tensor([[1000.0, 1000, 0, 0], [0, 0, 1000, 1000]])
    assert (counts - expected).abs().max() < 4 * math.sqrt(4000 * 0.25 * 0.75)


def test_masks_and_a_planned_clip_share_one_plan() -> None:
    batch = make_batch(5, groups=3, width=5)
    clip = masked("kl_cov", "top_entropy", "m2po")
    plan = plan_of(clip, batch)
    assert set(plan) == {"chosen", "top_entropy/keep", "m2po/keep"}
    loss, gradient = outcome(clip, batch)
    for rows in splits(len(batch.mask), seed=4):
        found = outcome(clip, batch.rows(rows), {k: v[rows] for k, v in plan.items()})
        close(found[0], loss[rows])
        close(found[1], gradient[rows])
