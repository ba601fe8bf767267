"""Corrections: by hand, against a plain rewriting, and by what importance weights promise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpolab.component import ConfigError, component
from grpolab.objective.loss import Objective
from grpolab.training.measure import Sums, measure, step_metrics

F64 = torch.float64
LEVELS = ["token", "sequence_sum", "sequence_mean"]
NAN = math.nan

# w per token: (3, 1/4, 3/2), and (4, 1/2) followed by padding.
WEIGHTS = torch.tensor([[3.0, 0.25, 1.5], [4.0, 0.5, NAN]], dtype=F64)
MASK = torch.tensor([[True, True, True], [True, True, False]])
OLD = torch.tensor([[-1.0, -2.0, -3.0], [0.0, 0.0, NAN]], dtype=F64)  # 0: d is log w exactly
SAMPLER = OLD - WEIGHTS.log()
# The products are 9/8 and 2, their roots (9/8)^(1/3) and √2.
SUM, MEAN = (1.125, 2.0), (1.125 ** (1 / 3), math.sqrt(2))


def weights(name: str, **settings: object) -> list[list[float]]:
    found: Tensor = component("correction", name, **settings)(OLD, SAMPLER, MASK)
    return found.tolist()


HAND = [
    ("truncate", {}, [[2, 0.25, 1.5], [2, 0.5, 1]]),
    ("truncate", {"cap": 3.5, "floor": 0.5}, [[3, 0.5, 1.5], [3.5, 0.5, 1]]),
    ("truncate", {"level": "sequence_sum"}, [[SUM[0]] * 3, [2, 2, 1]]),
    ("truncate", {"level": "sequence_sum", "cap": 1.25}, [[SUM[0]] * 3, [1.25, 1.25, 1]]),
    ("truncate", {"level": "sequence_mean"}, [[MEAN[0]] * 3, [MEAN[1], MEAN[1], 1]]),
    ("truncate", {"level": "sequence_mean", "cap": 1.2}, [[MEAN[0]] * 3, [1.2, 1.2, 1]]),
    # 1/2 lies on the bound, which is inside
    ("mask", {}, [[0, 0, 1.5], [0, 0.5, 1]]),
    ("mask", {"kept": "one"}, [[0, 0, 1], [0, 1, 1]]),
    ("mask", {"low": 0.0, "high": math.inf}, [[3, 0.25, 1.5], [4, 0.5, 1]]),
    # 2 lies on the bound
    ("mask", {"level": "sequence_sum"}, [[SUM[0]] * 3, [2, 2, 1]]),
    ("mask", {"level": "sequence_sum", "high": 1.9}, [[SUM[0]] * 3, [0, 0, 1]]),
    ("mask", {"level": "sequence_sum", "low": 1.2}, [[0] * 3, [2, 2, 1]]),
    ("mask", {"level": "sequence_mean", "high": 1.1}, [[MEAN[0]] * 3, [0, 0, 1]]),
    (
        "mask",
        {"level": "sequence_mean", "high": 1.1, "kept": "token_ratio"},
        [[3, 0.25, 1.5], [0, 0, 1]],
    ),
    ("mask", {"level": "sequence_mean", "high": 1.1, "kept": "one"}, [[1] * 3, [0, 0, 1]]),
]


@pytest.mark.parametrize(("name", "settings", "expected"), HAND)
def test_by_hand(name: str, settings: dict[str, object], expected: list[list[float]]) -> None:
    for found, row in zip(weights(name, **settings), expected, strict=True):
        assert found == pytest.approx(row, rel=1e-12, abs=0)


def test_none_is_one_whatever_the_sampler_did() -> None:
    assert weights("none") == [[1.0] * 3] * 2


# -- against TRL 1.16's formulas, sequence by sequence -----------------------------------------


def plain(name: str, level: str, low: float, high: float, d: list[float]) -> list[float]:
    """One sequence: ratios per token or of the sum, clamped, or 0 where outside the bounds."""
    of = {"sequence_sum": sum(d), "sequence_mean": sum(d) / len(d)}
    ratios = [math.exp(of.get(level, x)) for x in d]
    if name == "truncate":
        return [min(max(r, low), high) for r in ratios]
    return [0.0 if r < low or r > high else r for r in ratios]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["truncate", "mask"])
@given(
    d=st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    low=st.sampled_from([0.0, 0.3, 0.9]),
    high=st.sampled_from([1.1, 3.0, math.inf]),
    extra=st.integers(0, 2),
)
def test_against_the_plain_formula(
    name: str, level: str, d: list[float], low: float, high: float, extra: int
) -> None:
    bounds = {"floor": low, "cap": high} if name == "truncate" else {"low": low, "high": high}
    row = torch.tensor([d + [5.0] * extra], dtype=F64)
    mask = torch.arange(row.shape[1]).unsqueeze(0) < len(d)
    found = component("correction", name, level=level, **bounds)(row, 0 * row, mask)
    expected = plain(name, level, low, high, d)
    assert found[0, : len(d)].tolist() == pytest.approx(expected, rel=1e-12)
    assert found[0, len(d) :].tolist() == [1.0] * extra


# -- edges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("size", [90.0, 800.0, math.inf])
def test_nothing_overflows(level: str, dtype: torch.dtype, size: float) -> None:
    # sampler at −size: w = e^size; at +size (no log-prob, but a guard): e^−size
    old = torch.zeros(2, 3, dtype=dtype)
    sampler = torch.tensor([[-size] * 3, [size] * 3], dtype=dtype)
    mask = torch.ones(2, 3, dtype=torch.bool)
    free = component("correction", "truncate", level=level, cap=math.inf)
    found = free(old, sampler, mask)
    assert found[0].tolist() == pytest.approx([math.exp(20)] * 3, rel=0.01)
    assert found[1].tolist() == pytest.approx([math.exp(-20)] * 3, rel=0.01)
    assert component("correction", "truncate", level=level)(old, sampler, mask)[0, 0] == 2
    masked = component("correction", "mask", level=level)
    assert not masked(old, sampler, mask).any()
    metrics = masked.metrics(old, sampler, mask)
    assert all(bool(v.isfinite()) for v in metrics.values())
    assert metrics["correction/clipped_share"] == 1


def test_bounds_hold_beyond_the_clamp_of_exp() -> None:
    # w = e^−30 is below 1e-10; exp stops at e^−20 = 2e-9, which is not
    old, sampler = torch.zeros(1, 1), torch.full((1, 1), 30.0)
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert component("correction", "mask", low=1e-10)(old, sampler, mask).item() == 0
    assert component("correction", "mask", low=0.0)(old, sampler, mask).item() > 0


@pytest.mark.parametrize("level", LEVELS)
def test_a_token_without_a_sampler_log_prob_is_not_corrected(level: str) -> None:
    sampler = SAMPLER.clone()
    sampler[0, 0] = NAN  # of (3, 1/4, 3/2) there remain 1/4 and 3/2, and their product 3/8
    found = component("correction", "truncate", level=level)(OLD, sampler, MASK)[0].tolist()
    expected = {
        "token": [1, 0.25, 1.5],
        "sequence_sum": [0.375] * 3,
        "sequence_mean": [0.375 ** (1 / 3)] * 3,
    }
    assert found == pytest.approx(expected[level], rel=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["truncate", "mask"])
def test_no_gradient_and_empty_rows(name: str, level: str) -> None:
    old = OLD.nan_to_num().requires_grad_()
    correct = component("correction", name, level=level)
    nothing = torch.zeros_like(MASK)
    assert not correct(old, SAMPLER.nan_to_num(), MASK).requires_grad
    assert correct(old, SAMPLER, nothing).tolist() == [[1.0] * 3] * 2
    none = correct(OLD[:0], SAMPLER[:0], MASK[:0])
    assert none.shape == (0, 3)


def test_refused_settings() -> None:
    with pytest.raises(ConfigError, match=r"correction\.floor: 3 given; allowed: at most cap"):
        component("correction", "truncate", floor=3.0)
    with pytest.raises(ConfigError, match=r"correction\.low: 2 given; allowed: less than high"):
        component("correction", "mask", low=2.0)
    with pytest.raises(ConfigError, match=r"correction\.level: 'word'"):
        component("correction", "mask", level="word")


# -- what importance weights promise -----------------------------------------------------------


@pytest.mark.parametrize(("level", "exact"), [("sequence_sum", True), ("token", False)])
def test_only_whole_sequences_are_unbiased(level: str, exact: bool) -> None:
    """All 2-token sequences over 2 tokens, weighted by the sampler: the corrected policy gradient
    is that of the policy for the product of the weights, not for each token's own."""
    source = torch.Generator().manual_seed(3)
    policy = torch.randn(3, 2, generator=source, dtype=F64).requires_grad_()  # rows: state
    sampler = torch.randn(3, 2, generator=source, dtype=F64).log_softmax(dim=1)
    sequences = list(itertools.product((0, 1), repeat=2))
    reward = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=F64)

    def logps(table: Tensor) -> Tensor:
        return torch.stack([torch.stack([table[0, a], table[1 + a, b]]) for a, b in sequences])

    now = logps(policy.log_softmax(dim=1))
    probability = logps(sampler).sum(dim=1).exp()
    correct = component("correction", "truncate", level=level, cap=math.inf)
    w = correct(now.detach(), logps(sampler), torch.ones(4, 2, dtype=torch.bool))
    surrogate = (probability.unsqueeze(1) * w * now * reward.unsqueeze(1)).sum()
    value = (now.sum(dim=1).exp() * reward).sum()  # E_π[R]
    (found,) = torch.autograd.grad(surrogate, policy, retain_graph=True)
    (expected,) = torch.autograd.grad(value, policy)
    assert expected.norm() > 0.1
    assert bool(torch.allclose(found, expected, atol=1e-12)) == exact


def test_the_policy_loss_alone_is_weighted() -> None:
    source = torch.Generator().manual_seed(1)
    old, ref = (-torch.rand(2, 3, generator=source, dtype=F64) for _ in range(2))
    advantages = torch.tensor([[1.5], [-0.5]], dtype=F64)
    found = []
    for correction in (component("correction", "mask"), component("correction", "none")):
        parts = Objective(component("clip", "ppo"), component("kl", "k3"), correction)
        logps = old.clone().requires_grad_()
        losses = parts(
            logps, old, advantages, MASK, beta=0.3, ref_logps=ref, sampler_logps=old - WEIGHTS.log()
        )
        (gradient,) = torch.autograd.grad(losses.policy.sum(), logps)
        found.append((losses, gradient))
    (masked, slope), (free, unit) = found
    expected = torch.tensor([[0, 0, 1.5], [0, 0.5, 0]], dtype=F64)  # padding has no loss at all
    torch.testing.assert_close(slope, expected * unit)
    torch.testing.assert_close(masked.policy, expected * free.policy)
    torch.testing.assert_close(masked.kl, free.kl)
    torch.testing.assert_close(masked.total, masked.policy + 0.3 * free.kl)


# -- metrics -----------------------------------------------------------------------------------


def numbers(name: str, **settings: object) -> dict[str, float]:
    found = component("correction", name, **settings).metrics(OLD, SAMPLER, MASK)
    return {key.removeprefix("correction/"): float(value) for key, value in found.items()}


def test_metrics_by_hand() -> None:
    # 3, 1/4, 3/2, 4, 1/2: before any bound, so a cap of 2 leaves the maximum at 4
    mean, squares = 9.25 / 5, (4 + 0.5625 + 0.25 + 9 + 0.25) / 5  # of (w − 1)²
    common = {"mean": mean, "square": squares, "min": 0.25, "max": 4.0}
    assert numbers("truncate") == pytest.approx(common | {"clipped_share": 2 / 5})
    assert numbers("truncate", floor=0.3) == pytest.approx(common | {"clipped_share": 3 / 5})
    assert numbers("mask") == pytest.approx(common | {"clipped_share": 3 / 5})
    assert numbers("none") == pytest.approx(common | {"clipped_share": 0.0})
    sequences = numbers("mask", level="sequence_sum", high=1.5)
    assert sequences["mean"] == pytest.approx((3 * 1.125 + 2 * 2) / 5)
    assert (sequences["min"], sequences["max"]) == pytest.approx((1.125, 2.0))
    assert sequences["clipped_share"] == pytest.approx(2 / 5)


def logged(name: str, parts: list[list[int]], d: Tensor, mask: Tensor) -> dict[str, float]:
    """What a step logs of rows that went through the objective in some micro-batches."""
    sums = Sums()
    parts_of = Objective(
        component("clip", "ppo"), component("kl", "none"), component("correction", name)
    )
    for rows in parts:
        zeros, m = torch.zeros_like(d[rows]), mask[rows]
        losses = parts_of(zeros, zeros, zeros[:, :1], m, beta=0.0, sampler_logps=-d[rows])
        measure(
            sums,
            logps=zeros,
            old_logps=zeros,
            entropy=zeros,
            advantages=zeros,
            mask=m,
            sampler_policy_logps=zeros,
            ref=None,
            clip_metrics=losses.metrics,
        )
    found = step_metrics(sums, [], 1)
    return {k: v for k, v in found.items() if k.startswith("correction/")}


@pytest.mark.parametrize("name", ["none", "truncate", "mask"])
@pytest.mark.parametrize("parts", [[[0, 1, 2, 3]], [[3], [1], [0, 2]], [[2], [0, 1, 3]]])
def test_metrics_of_a_step_do_not_depend_on_micro_batches(
    name: str, parts: list[list[int]]
) -> None:
    d = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    mask = torch.arange(5) < torch.tensor([[5], [1], [0], [3]])  # one row has no token
    w = d[mask].exp()
    share = {
        "none": 0.0,
        "truncate": float((w > 2).double().mean()),
        "mask": float(((w > 2) | (w < 0.5)).double().mean()),
    }
    expected = {
        "correction/mean": float(w.mean()),
        "correction/std": float(w.std(correction=0)),
        "correction/min": float(w.min()),
        "correction/max": float(w.max()),
        "correction/clipped_share": share[name],
    }
    assert float(w.min()) < 1 < float(w.max())
    assert logged(name, parts, d, mask) == pytest.approx(expected, rel=1e-5)


def test_the_deviation_of_a_nearly_exact_sampler_survives_single_precision() -> None:
    d = 1e-4 * torch.tensor([[1.0, -1.0, 1.0, -1.0]])  # E[w²] − E[w]² would cancel to nothing
    found = logged("none", [[0]], d, torch.ones(1, 4, dtype=torch.bool))
    assert found["correction/std"] == pytest.approx(1e-4, rel=0.01)


def test_metrics_of_no_token() -> None:
    found = logged("mask", [[0, 1]], torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert math.isnan(found["correction/min"])
    assert math.isnan(found["correction/max"])
    assert found["correction/mean"] == found["correction/clipped_share"] == 0
