"""Token masks: each by hand, on top of every clip, and together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpolab.component import ConfigError, component, names
from grpolab.objective.clip import Clip, Surrogate
from grpolab.objective.clip.masks import quantile
from grpolab.objective.loss import Objective
from tests.objective.test_invariances import (
    Batch,
    batches,
    close,
    evaluate,
    make_batch,
    masked,
    plan_of,
    splits,
)

F64 = torch.float64
CLIPS, MASKS = names("clip"), names("mask")
# strict enough to drop something on small batches
STRICT: dict[str, dict[str, Any]] = {
    "truncated": {},
    "off_policy_sequence": {"delta": 0.05},
    "top_entropy": {"share": 0.5},
    "m2po": {"threshold": 0.02},
}
every_mask = pytest.mark.parametrize("mask", MASKS)


def strict(clip: str, *masks: str) -> Clip:
    made: Clip = component("clip", clip, masks=[{"name": m, **STRICT[m]} for m in masks])
    return made


def kept(
    mask: str | dict[str, Any],
    d: Tensor,
    advantages: Tensor | None = None,
    valid: Tensor | None = None,
    **beside: Tensor,
) -> list[list[int]]:
    """1 for each token whose loss, −lp with A = ±1 and lp = −1, stays; 0 otherwise."""
    clip = component("clip", "reinforce", masks=[mask])
    logps = torch.full_like(d, -1.0)
    advantages = torch.ones(len(d), 1, dtype=d.dtype) if advantages is None else advantages
    valid = torch.ones_like(d, dtype=torch.bool) if valid is None else valid
    surrogate = clip(logps, logps - d, advantages, valid, **beside)
    found: list[list[int]] = (surrogate.loss != 0).int().tolist()
    dropped = 1 - sum(map(sum, found)) / int(valid.sum())
    if mask != "truncated":  # whose tokens are not there to be counted
        assert float(surrogate.metrics["clip/dropped"]) == pytest.approx(dropped)
    return found


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=F64)


# --- By hand -----------------------------------------------------------------------------------


def test_off_policy_sequence() -> None:
    """Means of old − lp over the valid tokens: 0.75, 0.5, −0.75, 0.75, 0.75."""
    d = -torch.tensor([[1.0, 0.5], [0.75, 0.25], [-1.0, -0.5], [1.0, 0.5], [0.75, -90.0]]).to(F64)
    advantages = torch.tensor([[-1.0], [-1.0], [-1.0], [1.0], [-1.0]], dtype=F64)
    valid = torch.tensor([[True, True]] * 4 + [[True, False]])
    found = kept("off_policy_sequence", d, advantages, valid)
    assert found == [[0, 0], [1, 1], [1, 1], [1, 1], [0, 0]]
    looser = {"name": "off_policy_sequence", "delta": 0.75}
    assert kept(looser, d, advantages, valid)[0] == [1, 1]  # at delta it stays
    tighter = {"name": "off_policy_sequence", "delta": 0.49}
    assert kept(tighter, d, advantages, valid)[1] == [0, 0]


def test_off_policy_sequence_goes_by_each_tokens_advantage() -> None:
    advantages = row(-1.0, 1.0, -5.0)
    assert kept("off_policy_sequence", row(-1.0, -1.0, -1.0), advantages) == [[0, 1, 0]]


def test_off_policy_sequence_keeps_an_advantage_of_zero() -> None:
    """Whose loss need not be zero: here it is d²/20."""
    clip = component("clip", "quadratic", masks=["off_policy_sequence"])
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert float(clip(row(-1.0), row(0.0), row(0.0), mask).loss) == pytest.approx(0.05)
    assert float(clip(row(-1.0), row(0.0), row(-1e-9), mask).loss) == 0


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.4, [0, 1, 0, 1, 0]),  # the quantile at 0.6 is 0.6·4 = 2.4
        (0.5, [0, 1, 1, 1, 0]),  # at 0.5 it is 2, which stays
        (0.01, [0, 0, 0, 1, 0]),
        (1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_top_entropy(share: float, expected: list[int]) -> None:
    entropy = row(1.0, 3.0, 2.0, 4.0, 0.0)
    zeros = torch.zeros(1, 5, dtype=F64)
    assert kept({"name": "top_entropy", "share": share}, zeros, entropy=entropy) == [expected]


def test_top_entropy_reads_valid_tokens_only() -> None:
    entropy, valid = row(1.0, 3.0, 2.0, 99.0, math.nan), torch.tensor([[True] * 3 + [False] * 2])
    mask = {"name": "top_entropy", "share": 0.5}  # 2 of 1, 2, 3
    assert kept(mask, torch.zeros(1, 5).to(F64), valid=valid, entropy=entropy) == [[0, 1, 1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_top_entropy_keeps_what_is_all_the_same(dtype: torch.dtype) -> None:
    entropy = torch.full((1, 7), 0.1, dtype=dtype)  # no fraction of any of them
    assert kept("top_entropy", torch.zeros(1, 7, dtype=dtype), entropy=entropy) == [[1] * 7]


@given(values=st.lists(st.floats(0, 9), min_size=1, max_size=30), share=st.floats(0.01, 1))
def test_quantile_is_torchs(values: list[float], share: float) -> None:
    found = torch.tensor(values, dtype=F64)
    torch.testing.assert_close(quantile(found, share), torch.quantile(found, share))


@pytest.mark.parametrize(
    ("d", "threshold", "expected"),
    [
        # d² = 0.01 0.04 0.09 0.25: means of the smallest one, two, … 0.01 0.025 0.0467 0.0975
        ((0.1, -0.2, 0.3, -0.5), 0.02, [1, 0, 0, 0]),
        ((0.1, -0.2, 0.3, -0.5), 0.03, [1, 1, 0, 0]),
        ((0.1, -0.2, 0.3, -0.5), 0.05, [1, 1, 1, 0]),
        ((0.1, -0.2, 0.3, -0.5), 0.1, [1, 1, 1, 1]),
        ((-0.5, 0.3, 0.1, -0.2), 0.03, [0, 0, 1, 1]),
        ((0.1, -0.2, 0.3, -0.5), 0.005, [0, 0, 0, 0]),
        # the mean has to come below the threshold: 0.25 is not below 0.25
        ((0.5, 0.5), 0.25, [0, 0]),
        ((0.5, 0.5), 0.26, [1, 1]),
        # 0, 0.25, 0.25: the means are 0, 0.125, 0.1667; the equal ones go together
        ((0.0, 0.5, -0.5), 0.15, [1, 0, 0]),
        ((0.0, 0.5, -0.5), 0.2, [1, 1, 1]),
        ((80.0, -80.0, 0.0), 0.04, [0, 0, 1]),
    ],
)
def test_m2po(d: tuple[float, ...], threshold: float, expected: list[int]) -> None:
    assert kept({"name": "m2po", "threshold": threshold}, row(*d)) == [expected]


def test_m2po_of_tokens_that_ppo_could_clip() -> None:
    """A>0 with d>0 and A<0 with d<0 count, here 0.01, 0.16 and 0.04, 0.25; the others stay."""
    d = torch.tensor([[0.1, -9.0, 0.4], [-0.2, -0.5, 9.0]], dtype=F64)
    advantages = torch.tensor([[1.0], [-1.0]], dtype=F64)
    mask = {"name": "m2po", "threshold": 0.08, "tokens": "clippable"}
    assert kept(mask, d, advantages) == [[1, 1, 1], [1, 0, 1]]  # mean of 0.01 0.04 0.16: 0.07
    mask["threshold"] = 0.06
    assert kept(mask, d, advantages) == [[1, 1, 0], [1, 0, 1]]
    mask["tokens"] = "all"
    assert kept(mask, d, advantages) == [[1, 0, 0], [1, 0, 0]]  # 81 goes too; 0.025, then 0.07


def test_m2po_reads_valid_tokens_only() -> None:
    valid = torch.tensor([[True, True, False]])
    assert kept({"name": "m2po", "threshold": 0.03}, row(0.1, 0.2, 0.0), valid=valid) == [[1, 1, 0]]
    assert kept({"name": "m2po", "threshold": 0.02}, row(0.1, 0.2, 0.0), valid=valid) == [[1, 0, 0]]


def test_truncated() -> None:
    d = torch.zeros(3, 2, dtype=F64)
    truncated = torch.tensor([[False], [True], [False]])
    assert kept("truncated", d, truncated=truncated) == [[1, 1], [0, 0], [1, 1]]
    assert kept("truncated", d, truncated=truncated.flatten()) == [[1, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("mask", "message"), [("truncated", "needs `truncated`"), ("top_entropy", "needs `entropy`")]
)
def test_inputs_that_a_mask_needs(mask: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"clip\.masks: {mask} {message}"):
        kept(mask, torch.zeros(1, 2, dtype=F64))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (["m2op"], r"clip\.masks\[0\]: unknown mask 'm2op'.*mean m2po\?"),
        ([{"name": "m2po", "threshold": 0.0}], r"clip\.masks\[0\]\.threshold: 0\.0 is out of"),
        ([{"name": "m2po", "tokens": "some"}], r"clip\.masks\[0\]\.tokens: 'some' is not allowed"),
        (["truncated", {"name": "top_entropy", "share": 1.5}], r"clip\.masks\[1\]\.share: 1\.5"),
        ([{"name": "off_policy_sequence", "delta": 0.0}], r"clip\.masks\[0\]\.delta: 0\.0"),
        (["m2po", {"name": "m2po"}], r"clip\.masks: .* allowed: each mask once"),
        ([3], r"clip\.masks: 3 given; allowed: a name, or a mapping"),
    ],
)
def test_refused(masks: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        component("clip", "ppo", masks=masks)


# --- What a mask leaves alone ------------------------------------------------------------------


@every_mask
def test_only_truncated_leaves_the_counts_and_the_kl(mask: str) -> None:
    batch = dataclasses.replace(
        make_batch(1, groups=2, group_size=3, width=4),
        truncated=torch.tensor([[True], [False]] * 3),
    )
    clip = strict("ppo", mask)
    found = clip.trained(batch.mask, batch.truncated.flatten())
    leaves = mask == "truncated"
    assert torch.equal(found, batch.mask & ~batch.truncated if leaves else batch.mask)
    assert found.shape == batch.mask.shape
    correction = component("correction", "none")
    parts = Objective(clip, component("kl", "k3"), correction)
    given: dict[str, Any] = {"beta": 0.3, "ref_logps": batch.ref_logps, **batch.beside()}
    given.pop("noise")
    losses = parts(batch.logps, batch.old_logps, batch.advantages, found, **given)
    whole = component("kl", "k3")(batch.logps, batch.ref_logps, batch.mask)
    close(losses.kl, torch.where(found, whole, 0.0))
    close(losses.total, losses.policy + 0.3 * losses.kl)


@every_mask
@pytest.mark.parametrize("clip", CLIPS)
def test_a_mask_on_a_clip(clip: str, mask: str) -> None:
    """The clip's own loss on the tokens that stay, nothing on the others; its shares unmoved."""
    dropped = 0
    for seed in range(4):
        batch = make_batch(seed, groups=3, width=5)
        both = outcome(strict(clip, mask), batch)
        if mask == "truncated":  # the clip alone, on a step without them
            batch = dataclasses.replace(batch, mask=batch.mask & ~batch.truncated)
        alone = outcome(component("clip", clip), batch)
        stays = kept_by(mask, batch)
        dropped += int((batch.mask & ~stays).sum())
        close(both.loss, torch.where(stays, alone.loss, 0.0))
        shares = {k: v for k, v in both.metrics.items() if k != "clip/dropped"}
        assert shares.keys() == alone.metrics.keys()
        for key, value in shares.items():
            close(value, alone.metrics[key])
    assert dropped or mask == "truncated"


def kept_by(mask: str, batch: Batch) -> Tensor:
    """The tokens that a strict mask leaves, by a loss that is nowhere 0: −A·lp."""
    shifted = dataclasses.replace(batch, logps=batch.logps - 5, old_logps=batch.old_logps - 5)
    return (outcome(strict("reinforce", mask), shifted).loss != 0) | ~batch.mask


def outcome(clip: Clip, batch: Batch) -> Surrogate:
    found: Surrogate = clip(
        batch.logps, batch.old_logps, batch.advantages, batch.mask, **batch.beside()
    )
    return found


@every_mask
@pytest.mark.parametrize("clip", CLIPS)
def test_gradients_pass_only_through_what_stays(clip: str, mask: str) -> None:
    batch = make_batch(7, groups=3, width=5)
    logps = batch.logps.clone().requires_grad_()
    arguments = logps, batch.old_logps, batch.advantages
    found = strict(clip, mask)(*arguments, batch.mask, **batch.beside()).loss
    gradient = torch.autograd.grad(found.sum(), logps)[0]
    trained = batch.mask & ~batch.truncated if mask == "truncated" else batch.mask
    alone = component("clip", clip)(*arguments, trained, **batch.beside()).loss
    stays = kept_by(mask, dataclasses.replace(batch, mask=trained))
    expected = torch.autograd.grad(torch.where(stays, alone, 0.0).sum(), logps)[0]
    close(gradient, expected)


@every_mask
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_far_off_policy(clip: str, mask: str, sign: float) -> None:
    """Nothing infinite reaches the gradient through what is dropped."""
    batch = make_batch(2, groups=2, width=3)
    shift = sign * torch.tensor([80.0, -80.0, 0.0], dtype=F64)
    for change in (shift, torch.full_like(shift, 80.0 * sign)):
        far = dataclasses.replace(batch, old_logps=batch.logps - change)
        for dtype in (torch.float32, torch.bfloat16):
            given = far.map(lambda v, to=dtype: v.to(to))  # type: ignore[misc]
            logps = given.logps.requires_grad_()
            loss = outcome(strict(clip, mask), given).loss
            assert loss.isfinite().all()
            assert torch.autograd.grad(loss.sum(), logps)[0].isfinite().all()


# --- Any split, any padding, any order; all of them at once ------------------------------------

SETS = [(m,) for m in MASKS] + [tuple(MASKS)]


@pytest.mark.parametrize("masks", SETS)
@given(batch=batches(), seed=st.integers(0, 99))
def test_micro_batches_of_one_plan(masks: tuple[str, ...], batch: Batch, seed: int) -> None:
    clip = strict("ppo", *masks)
    whole, plan = outcome(clip, batch).loss, plan_of(clip, batch)
    for rows in splits(len(batch.mask), seed):
        own, part = {k: v[rows] for k, v in plan.items()}, batch.rows(rows)
        found = clip(
            part.logps, part.old_logps, part.advantages, part.mask, **part.beside(), plan=own
        )
        close(found.loss, whole[rows])


@pytest.mark.parametrize("masks", SETS)
@given(batch=batches(), extra=st.integers(0, 3), seed=st.integers(0, 99))
def test_padding_and_order(masks: tuple[str, ...], batch: Batch, extra: int, seed: int) -> None:
    clip = strict("ppo", *masks)
    width, plain = batch.mask.shape[1], outcome(clip, batch).loss
    close(outcome(clip, batch.spoilt(math.nan, extra)).loss[:, :width], plain)
    rows = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(seed)).tolist()
    close(outcome(clip, batch.rows(rows)).loss, plain[rows])


def test_masks_act_together() -> None:
    """A token stays where all of them let it; truncated ones also leave what the others count."""
    for seed in range(6):
        batch = make_batch(seed, groups=3, width=5)
        remaining = dataclasses.replace(batch, mask=batch.mask & ~batch.truncated)
        stays = remaining.mask
        for mask in MASKS:
            if mask != "truncated":
                stays = stays & kept_by(mask, remaining)
        found = outcome(strict("reinforce", *MASKS), batch).loss
        assert torch.equal(found != 0, stays)


def test_truncated_completions_move_no_statistic() -> None:
    """Neither quantiles nor covariances nor bounds: as if they had been left out."""
    readers: list[Callable[[], Clip]] = [
        lambda: strict("none", "truncated", "top_entropy"),
        lambda: strict("none", "truncated", "m2po"),
        lambda: component("clip", "kl_cov", share=0.3, masks=["truncated"]),
        lambda: component("clip", "clip_cov", share=0.3, lo=0.05, masks=["truncated"]),
        lambda: component("clip", "bapo", masks=["truncated"]),
    ]
    for seed in range(6):
        batch = make_batch(seed, groups=3, width=5, spread=0.6)
        rows = [i for i, gone in enumerate(batch.truncated.flatten().tolist()) if not gone]
        for make in readers:
            close(outcome(make(), batch).loss[rows], outcome(make(), batch.rows(rows)).loss)


def test_no_masks_no_share_dropped() -> None:
    assert "clip/dropped" not in evaluate("clip", "ppo", make_batch(0)).metrics
    found = evaluate("mask", "top_entropy", make_batch(0)).metrics
    assert 0 < float(found["clip/dropped"]) < 1
    assert masked("ppo", "top_entropy").needs_entropy
    assert not masked("ppo", "m2po", "truncated", "off_policy_sequence").needs_entropy
    assert masked("ppo", "m2po").needs_plan
    assert not masked("ppo", "truncated", "off_policy_sequence").needs_plan
