"""The policy losses' gradients in closed form, on-policy and off, and how the losses relate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grpolab.component import component, component_class, names
from grpolab.objective.clip.ratio import discounted_from_here_on

F64 = torch.float64
SEEDS = range(4)
EVERY = names("clip")
# no token is chosen at random: on-policy some would lose their gradient
SETTINGS: dict[str, dict[str, Any]] = {"clip_cov": {"lo": 1e9, "hi": 1e10}}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def inputs(seed: int, spread: float = 0.4) -> dict[str, Tensor]:
    """Five completions of 6, 1, 3, 0 and 4 tokens; logps to be differentiated."""
    generator = torch.Generator().manual_seed(seed)
    logps = -3 * torch.rand(5, 6, dtype=F64, generator=generator)
    old = logps + spread * torch.randn(5, 6, dtype=F64, generator=generator)
    return {
        "logps": logps.requires_grad_(),
        "old_logps": old.clamp(max=0),  # probabilities
        "advantages": torch.randn(5, 1, dtype=F64, generator=generator),
        "mask": torch.arange(6) < torch.tensor([[6], [1], [3], [0], [4]]),
    }


def outcome(name: str, given: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor]:
    """The loss per token, and the gradient of its sum."""
    loss = component("clip", name, **settings)(**given).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), given["logps"])[0]


def ratios(given: dict[str, Tensor]) -> Tensor:
    """r where valid, and 1 elsewhere."""
    difference = given["logps"].detach() - given["old_logps"]
    return torch.where(given["mask"], difference, 0.0).exp()


def side(a: Tensor, positive: float, other: float) -> Tensor:
    """One number where A>0, another elsewhere, in double precision."""
    return torch.where(a > 0, torch.tensor(positive, dtype=F64), torch.tensor(other, dtype=F64))


def sequence_sum(values: Tensor) -> Tensor:
    return values.sum(dim=1, keepdim=True)


def lengths(given: dict[str, Tensor]) -> Tensor:
    return sequence_sum(given["mask"]).clamp(min=1)


# --- On-policy: r = 1 --------------------------------------------------------------------------

MINUS_A = "none ppo dual two_sided dppo fipo gspo gspo_token luspo gmpo clip_cov kl_cov bapo"
VALUE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: lambda lp, a: -a.expand_as(lp) for name in MINUS_A.split()},
    **{
        name: lambda lp, a: -a * lp
        for name in ("reinforce", "cispo", "tis_pg", "topr", "vespo", "quadratic")
    },
    "sapo": lambda lp, a: -2 * a.expand_as(lp) / side(a, 1.0, 1.05),
}
SEQUENCE_GRADIENT = {"gspo", "luspo", "gmpo"}  # a token's gradient is that of its sequence's mean


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("seed", SEEDS)
def test_on_policy_value_and_gradient(seed: int, name: str) -> None:
    given = inputs(seed)
    given["old_logps"] = given["logps"].detach()
    loss, gradient = outcome(name, given, **SETTINGS.get(name, {}))
    mask, advantages = given["mask"], given["advantages"]
    close(loss, torch.where(mask, VALUE[name](given["logps"].detach(), advantages), 0.0))
    # summed over a sequence that carries its value len times, 1/len of each is whole again
    close(gradient, torch.where(mask, -advantages, 0.0))
    weighted = component("clip", name, **SETTINGS.get(name, {}))(**given).loss
    mean = (weighted / lengths(given) * (1 + torch.arange(6))).sum()  # tokens weighing differently
    found = torch.autograd.grad(mean, given["logps"])[0]
    weight = (1 + torch.arange(6)).to(F64).expand(5, 6)
    if name in SEQUENCE_GRADIENT:
        weight = sequence_sum(torch.where(mask, weight, 0.0)) / lengths(given)
    close(found, torch.where(mask, -advantages * weight / lengths(given), 0.0))


def test_the_level_says_whose_the_ratio_is() -> None:
    found = {n for n in EVERY if component_class("clip", n).level == "sequence"}  # type: ignore[attr-defined]
    assert found == SEQUENCE_GRADIENT | {"gspo_token", "vespo"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_policy_every_clip_of_the_ratio_is_inert(dtype: torch.dtype) -> None:
    given = {k: v if k == "mask" else v.detach().to(dtype) for k, v in inputs(3).items()}
    given["old_logps"] = given["logps"].clone()
    given["logps"].requires_grad_()
    plain = outcome("none", given)
    for name in ("ppo", "dual", "two_sided", "dppo", "fipo", "bapo", "clip_cov"):
        found = outcome(name, given, **SETTINGS.get(name, {}))
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


# --- Off-policy: the closed form ---------------------------------------------------------------


def ppo_gradient(r: Tensor, a: Tensor, low: float = 0.2, high: float = 0.2) -> Tensor:
    cut = ((a > 0) & (r > 1 + high)) | ((a < 0) & (r < 1 - low))
    return torch.where(cut, 0.0, -r * a)


def sapo_gradient(r: Tensor, a: Tensor, lp: Tensor) -> Tensor:
    gate = torch.sigmoid(side(a, 1.0, 1.05) * (r - 1))
    return -4 * gate * (1 - gate) * r * a


def vespo_gradient(r: Tensor, a: Tensor, lp: Tensor) -> Tensor:
    w = r.prod(dim=1, keepdim=True)
    positive, negative = w**2 * (3 - 3 * w).exp(), w**3 * (2 - 2 * w).exp()
    return -torch.where(a >= 0, positive, negative) * a


def dppo_gradient(r: Tensor, a: Tensor, lp: Tensor) -> Tensor:
    moved = lp.exp() * (1 - 1 / r)  # p − μ
    return torch.where(torch.where(a > 0, moved <= 0.2, moved >= -0.2), -r * a, 0.0)


TOKEN_GRADIENT: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reinforce": lambda r, a, lp: -a,
    "none": lambda r, a, lp: -r * a,
    "ppo": lambda r, a, lp: ppo_gradient(r, a),
    "dual": lambda r, a, lp: torch.where((a < 0) & (r > 3), 0.0, ppo_gradient(r, a)),
    "two_sided": lambda r, a, lp: torch.where((a < 0) & (r > 4), 0.0, ppo_gradient(r, a)),
    "cispo": lambda r, a, lp: -r.clamp(max=5) * a,
    "tis_pg": lambda r, a, lp: -r.clamp(max=1) * a,
    "topr": lambda r, a, lp: -torch.where(a > 0, 1.0, r.clamp(max=1)) * a,
    "sapo": sapo_gradient,
    "vespo": vespo_gradient,
    "dppo": dppo_gradient,
    "quadratic": lambda r, a, lp: -a + 0.1 * r.log(),
}


@pytest.mark.parametrize("name", sorted(TOKEN_GRADIENT))
@pytest.mark.parametrize("spread", [0.4, 1.5])
@pytest.mark.parametrize("seed", SEEDS)
def test_closed_form(seed: int, spread: float, name: str) -> None:
    given = inputs(seed, spread)
    r, a = ratios(given), given["advantages"].expand(5, 6)
    expected = TOKEN_GRADIENT[name](r, a, given["logps"].detach())
    close(outcome(name, given)[1], torch.where(given["mask"], expected, 0.0))


@pytest.mark.parametrize("name", ["gspo", "luspo", "gspo_token"])
def test_closed_form_of_sequences(name: str) -> None:
    bounds, cut = {"low": 2e-3, "high": 2.5e-3}, []
    for seed in SEEDS:
        given = inputs(seed, spread=0.02)
        s = (sequence_sum(ratios(given).log()) / lengths(given)).exp()
        expected = ppo_gradient(s, given["advantages"], **bounds).expand(5, 6)
        found = outcome(name, given, **bounds)[1]
        close(found, torch.where(given["mask"], expected, 0.0))
        cut += (found == 0)[given["mask"]].tolist()
    assert 0 < sum(cut) < len(cut)


@pytest.mark.parametrize("seed", SEEDS)
def test_closed_form_of_gmpo(seed: int) -> None:
    given = inputs(seed)
    d, a = ratios(given).log(), given["advantages"]
    kept = torch.where(a > 0, d <= 0.4, d >= -0.4)
    clipped = torch.where(kept, d, side(a, 0.4, -0.4))
    coefficient = (sequence_sum(torch.where(given["mask"], clipped, 0.0)) / lengths(given)).exp()
    expected = torch.where(given["mask"] & kept, -coefficient * a, 0.0)
    close(outcome("gmpo", given)[1], expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_is_cut_exactly_where_it_says(seed: int) -> None:
    """Dual and two_sided too, whose upper bound on bad tokens is counted as high."""
    given = inputs(seed, spread=1.5)
    given["mask"] = torch.ones(5, 6, dtype=torch.bool)
    r, a = ratios(given), given["advantages"].expand(5, 6)
    low, high = (a < 0) & (r < 0.8), (a > 0) & (r > 1.2)
    for name, bound in (("ppo", math.inf), ("dual", 3.0), ("two_sided", 4.0)):
        metrics = component("clip", name)(**given).metrics
        cut = outcome(name, given)[1] == 0
        upper = high | ((a < 0) & (r > bound))
        assert torch.equal(cut, low | upper)
        assert float(metrics["clip/low"]) == pytest.approx(float(low.double().mean()))
        assert float(metrics["clip/high"]) == pytest.approx(float(upper.double().mean()))


# --- How they relate ---------------------------------------------------------------------------

WIDE = {"low": math.inf, "high": math.inf}
SAME: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("ppo", WIDE, "none", {}),
    ("dual", {"c": 2.0}, "two_sided", {"delta": 2.0}),
    ("dual", {"c": 1e12}, "ppo", {}),
    ("two_sided", {"delta": math.inf}, "ppo", {}),
    ("cispo", {"ratio_max": 1.0}, "tis_pg", {}),
    ("tis_pg", {"ratio_max": 5.0}, "cispo", {}),
    ("dppo", WIDE, "none", {}),
    ("dppo", WIDE | {"divergence": "kl"}, "none", {}),
    ("dppo", WIDE | {"form": "logp", "cap": 5.0}, "cispo", {}),
    ("luspo", {"low": 3e-4, "high": 4e-4}, "gspo", {}),
    ("gspo_token", WIDE, "gspo", WIDE),
    ("gspo_token", {"low": 0.2, "high": 0.2}, "gspo", {"low": 0.2, "high": 0.2}),
    ("gmpo", WIDE, "gspo", WIDE),
    ("quadratic", {"beta": 0.0}, "reinforce", {}),
    ("quadratic", {"form": "kimi"}, "quadratic", {"form": "dro"}),
    ("kl_cov", {"c": 0.0}, "none", {}),
    ("clip_cov", {"lo": 1e9, "hi": 1e10}, "ppo", {}),
    ("clip_cov", WIDE | {"lo": 1e9, "hi": 1e10}, "none", {}),
    ("bapo", {"low": [0.7, 0.7], "high": [1.4, 1.4]}, "ppo", {"low": 0.3, "high": 0.4}),
    ("bapo", {"rho0": 0.0, "low": [0.8, 0.9]}, "ppo", {}),
    ("fipo", {"influence": 1e-12, "safety": None}, "ppo", {}),
]


@pytest.mark.parametrize(("name", "settings", "other", "its"), SAME)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_function(
    seed: int, name: str, settings: dict[str, Any], other: str, its: dict[str, Any]
) -> None:
    given = inputs(seed, spread=0.8)
    for found, expected in zip(
        outcome(name, given, **settings), outcome(other, given, **its), strict=True
    ):
        close(found, expected)
    assert outcome(other, given, **its)[0].any()


def test_dual_needs_no_room_above_the_clip() -> None:
    """c below 1+high, which two_sided could not have: bad tokens' loss still ends at c·|A|."""
    given = inputs(0, spread=0.8)
    loss, gradient = outcome("dual", given, c=1.1, high=0.5)
    r, a = ratios(given), given["advantages"].expand(5, 6)
    bad = given["mask"] & (a < 0)
    close(loss[bad], (r.clamp(0.8, 1.1) * a.abs())[bad])
    assert not gradient[bad & (r > 1.1)].any()


@pytest.mark.parametrize("form", ["dro", "sequence"])
def test_quadratic_sums_to_its_formula(form: str) -> None:
    given = inputs(1)
    loss = outcome("quadratic", given, form=form, beta=0.3)[0].sum(1)
    d, lp = ratios(given).log(), torch.where(given["mask"], given["logps"].detach(), 0.0)
    square = d.square().sum(1) if form == "dro" else d.sum(1).square()
    close(loss, -given["advantages"][:, 0] * lp.sum(1) + 0.15 * square)


def test_advantages_may_differ_between_tokens() -> None:
    """gspo_token then credits each token with its own, gspo the sequence with their mean."""
    given = inputs(2, spread=0.1)
    given["advantages"] = torch.randn(5, 6, dtype=F64, generator=torch.Generator().manual_seed(9))
    mask, a = given["mask"], given["advantages"]
    s = (sequence_sum(ratios(given).log()) / lengths(given)).exp()
    close(outcome("gspo_token", given, **WIDE)[1], torch.where(mask, -s * a, 0.0))
    mean = sequence_sum(torch.where(mask, a, 0.0)) / lengths(given)
    close(outcome("gspo", given, **WIDE)[1], torch.where(mask, -s * mean, 0.0))


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 20])
@pytest.mark.parametrize("discount", [0.5, 0.98, 1.0])
def test_discounted_from_here_on(width: int, discount: float) -> None:
    x = torch.randn(2, width, dtype=F64, generator=torch.Generator().manual_seed(width))
    expected = x.clone()
    for t in reversed(range(width - 1)):
        expected[:, t] += discount * expected[:, t + 1]
    close(discounted_from_here_on(x, discount), expected)


# --- Far off-policy ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_log_ratios_of_eighty(name: str, dtype: torch.dtype, sign: float) -> None:
    d = torch.tensor([[80.0, -80.0, 0.0], [80.0, 80.0, 80.0], [-80.0, -80.0, -80.0]], dtype=dtype)
    logps = torch.full_like(d, -90.0).requires_grad_()
    mask = torch.ones(3, 3, dtype=torch.bool)
    advantages = torch.tensor([[1.0], [0.5], [0.25]], dtype=dtype) * sign
    surrogate = component("clip", name)(logps, logps.detach() - d, advantages, mask)
    gradient = torch.autograd.grad(surrogate.loss.sum(), logps)[0]
    assert surrogate.loss.isfinite().all()
    assert gradient.isfinite().all()
    assert surrogate.loss.dtype == dtype
    assert float(surrogate.metrics["clip/clamped"]) == pytest.approx(8 / 9, rel=0.01)
    # Σd of the three rows is 0, 240 and −240
    if name == "vespo":
        assert float(surrogate.metrics["clip/high"]) == pytest.approx(1 / 3, rel=0.01)
        assert float(surrogate.metrics["clip/low"]) == pytest.approx(1 / 3, rel=0.01)


def vespo_weight(*d: float, **settings: float) -> float:
    """φ of one good completion with these log-ratios: its loss at lp = −1."""
    logps = torch.full((1, len(d)), -1.0, dtype=F64)
    ones = torch.ones(1, 1, dtype=F64)
    clip = component("clip", "vespo", **settings)
    loss = clip(logps, logps - torch.tensor([d], dtype=F64), ones, torch.ones_like(logps)).loss
    assert (loss == loss[0, 0]).all()
    return float(loss[0, 0])


def test_vespo_weight_at_the_ends_of_its_range() -> None:
    """ln w is held in [ln 1e-8, 20]: φ = e^λ·(1e-8)^k below, 0 where exp(−λ·e^20) vanishes."""

    def exactly(value: float) -> object:
        return pytest.approx(value, rel=1e-12, abs=0)

    for d in (-30.0, -19.0):
        assert vespo_weight(d) == exactly(math.exp(3 - 3e-8) * 1e-16)
    assert vespo_weight(-15.0) == exactly(math.exp(3 - 30 - 3 * math.exp(-15)))
    assert vespo_weight(30.0) == 0
    assert vespo_weight(30.0, -25.0) == 1  # each d is held in ±20 first
    # e^14673 does not exist; TRL makes it 0 too
    assert vespo_weight(15.0, k_positive=1e3, lambda_positive=1e-4) == 0
