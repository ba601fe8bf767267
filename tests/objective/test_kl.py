"""KL estimators by hand: values, gradients, what is detached, clamps, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from grpolab.component import ConfigError, component, registry

F64 = torch.float64
ESTIMATORS = sorted(set(registry("kl")) - {"none"})


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=F64)


def value_and_gradient(
    name: str, logps: Tensor, ref: Tensor, old: Tensor | None = None, **settings: Any
) -> tuple[list[float], list[float]]:
    """Per token, and the derivative of their sum; every token valid."""
    logps = logps.clone().requires_grad_()
    mask = torch.ones_like(logps, dtype=torch.bool)
    value = component("kl", name, **settings)(logps, ref, mask, old_logps=old)
    gradient = torch.autograd.grad(value.sum(), logps)[0]
    return value.detach().flatten().tolist(), gradient.flatten().tolist()


LOGPS = tensor([[0.5, 0.25]]).log()
REF = tensor([[0.25, 0.5]]).log()  # D = ln 2, −ln 2
OLD = tensor([[0.25, 0.125]]).log()  # r = 2, 2
LN2 = math.log(2)
K3 = [0.5 + LN2 - 1, 2 - LN2 - 1]  # e^−D + D − 1
BY_HAND: list[tuple[str, dict[str, Any], list[float], list[float]]] = [
    ("k1", {}, [LN2, -LN2], [1, 1]),
    ("abs", {}, [LN2, LN2], [1, -1]),
    ("k2", {}, [LN2**2 / 2] * 2, [LN2, -LN2]),
    ("k3", {}, K3, [1 - 0.5, 1 - 2]),
    ("straight_through", {}, K3, [LN2, -LN2]),
    ("straight_through", {"base": "k1"}, [LN2, -LN2], [LN2, -LN2]),
    ("straight_through", {"base": "abs"}, [LN2, LN2], [LN2, -LN2]),
    # 2·k3, and 2·k3 + 2·(1 − e^−D) = 2·D
    ("weighted_k3", {}, [2 * K3[0], 2 * K3[1]], [2 * LN2, -2 * LN2]),
    # s = e^(mean ln 2) = 2; each lp moves s by s/2, so 2·(k3_1 + k3_2)/2 + 2·(1 − e^−D)
    (
        "weighted_k3",
        {"level": "sequence"},
        [2 * K3[0], 2 * K3[1]],
        [sum(K3) + 2 * 0.5, sum(K3) - 2 * 1],
    ),
    ("weighted_k2", {}, K3, [2 * LN2, -2 * LN2]),
    ("weighted_k2", {"c": 1.5}, K3, [1.5 * LN2, -1.5 * LN2]),
    ("weighted_k2", {"c": 2.5, "base": "k2"}, [LN2**2 / 2] * 2, [2 * LN2, -2 * LN2]),
]


@pytest.mark.parametrize(("name", "settings", "value", "gradient"), BY_HAND)
def test_by_hand(
    name: str, settings: dict[str, Any], value: list[float], gradient: list[float]
) -> None:
    found = value_and_gradient(name, LOGPS, REF, OLD, **settings)
    assert found[0] == pytest.approx(value, abs=1e-14)
    assert found[1] == pytest.approx(gradient, abs=1e-14)


def test_sequence_k2_by_hand() -> None:
    # D = ln 4, ln 2 | ln 2, padding: Σ = 3 ln 2 and ln 2
    logps, ref = tensor([[-1.0, -1.0], [-1.0, 7.0]]), tensor([[-1.0, -1.0], [-1.0, math.nan]])
    logps = logps + tensor([[2 * LN2, LN2], [LN2, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    logps.requires_grad_()
    value = component("kl", "sequence_k2")(logps, ref, mask)
    each = 9 * LN2**2 / 2 / 2  # half of 4.5 ln² 2 for each of two tokens
    assert value.flatten().tolist() == pytest.approx([each, each, LN2**2 / 2, 0.0], abs=1e-14)
    gradient = torch.autograd.grad(value.sum(), logps)[0]
    assert gradient.flatten().tolist() == pytest.approx([3 * LN2, 3 * LN2, LN2, 0.0], abs=1e-14)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("weighted_k3", [LN2, -LN2]),  # r = 1, but live: k3's own would be .5, −1
        ("weighted_k2", [LN2, -LN2]),
    ],
)
def test_without_old_log_probs_the_ratio_is_one_and_live(name: str, gradient: list[float]) -> None:
    value, found = value_and_gradient(name, LOGPS, REF)
    assert value == pytest.approx(K3, abs=1e-14)
    assert found == pytest.approx(gradient, abs=1e-14)
    assert value_and_gradient(name, LOGPS, REF, LOGPS) == (value, found)


# --- Clamps -------------------------------------------------------------------------------------

FAR = tensor([[-1.0, -9.0, -2.0]])
FAR_REF = tensor([[-4.0, -1.0, -1.5]])  # D = 3, −8, −.5


@pytest.mark.parametrize(
    ("name", "clamp", "value", "gradient"),
    [
        ("k1", [6.0, 2.0], [2, -2, -0.5], [0, 0, 1]),
        ("k1", [2.0, 6.0], [2, -2, -0.5], [0, 0, 1]),
        ("abs", [2.0, 1.0], [1, 1, 0.5], [0, 0, -1]),
        ("k2", [4.0, 5.0], [4.5, 5, 0.125], [3, 0, -0.5]),  # 3²/2; min(4²/2, 5)
        ("k3", [20.0, 10.0], [math.exp(-3) + 2, 10, math.exp(0.5) - 1.5],
         [1 - math.exp(-3), 0, 1 - math.exp(0.5)]),
        # the value is clamped by both, the gradient by the first alone
        ("straight_through", [4.0, 2.0], [2, 2, math.exp(0.5) - 1.5], [3, 0, -0.5]),
        ("weighted_k2", [4.0, 2.0], [2, 2, math.exp(0.5) - 1.5], [3, 0, -0.5]),
    ],
)  # fmt: skip
def test_clamp_by_hand(
    name: str, clamp: list[float], value: list[float], gradient: list[float]
) -> None:
    found = value_and_gradient(name, FAR, FAR_REF, FAR, clamp=clamp)
    assert found[0] == pytest.approx(value, abs=1e-13)
    assert found[1] == pytest.approx(gradient, abs=1e-13)


def test_clamp_bounds_each_log_ratio_of_the_full_kl() -> None:
    # π = (.9, .1), π_ref = (.1, .9): log-ratios ±2.197, held at ±1: .9·1 − .1·1
    logits, ref = tensor([[[0.9, 0.1]]]).log(), tensor([[[0.1, 0.9]]]).log()
    one = torch.ones(1, 1, dtype=torch.bool)
    zero = tensor([[0.0]])
    full = component("kl", "full", clamp=[1.0, 5.0])
    assert float(full(zero, zero, one, logits=logits, ref_logits=ref)) == pytest.approx(0.8)
    full = component("kl", "full", clamp=[3.0, 0.5])
    assert float(full(zero, zero, one, logits=logits, ref_logits=ref)) == 0.5


def test_k3_stops_where_its_exponential_would_overflow() -> None:
    value, gradient = value_and_gradient("k3", tensor([[-90.0, 30.0]]), tensor([[0.0, 0.0]]))
    assert value == pytest.approx([math.exp(20) - 21, 29 + math.exp(-30)], rel=1e-14)
    assert gradient == pytest.approx([0, 1], abs=1e-12)


def test_the_ratio_stops_at_twenty() -> None:
    # ln r = 30: the weight is e^20 and no longer live, so only k3's own derivative is left
    value, gradient = value_and_gradient(
        "weighted_k3", tensor([[-1.0]]), tensor([[-1.5]]), tensor([[-31.0]])
    )
    assert value == pytest.approx([math.exp(20) * (math.exp(-0.5) - 0.5)], rel=1e-12)
    assert gradient == pytest.approx([math.exp(20) * (1 - math.exp(-0.5))], rel=1e-12)


def test_k3_of_a_small_difference_is_above_rounding() -> None:
    # k3(d) = d²/2 − d³/6 …: 5e-9 at d = 1e-4, where 1 − 1e-4 + 1e-4 − 1 in float32 gives 0 or 6e-8
    d = torch.tensor([[1e-4, -1e-4, 1e-3]], dtype=torch.float32)
    found = component("kl", "k3")(d, torch.zeros_like(d), torch.ones_like(d, dtype=torch.bool))
    exact = [5e-9, 5e-9, 5e-7]
    assert found.flatten().tolist() == pytest.approx(exact, rel=2e-3)


# --- What is refused ----------------------------------------------------------------------------


def refused(name: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        component("kl", name, **settings)
    return str(caught.value)


@pytest.mark.parametrize("placement", ["reward", "reward_to_go"])
@pytest.mark.parametrize(
    "name", ["straight_through", "weighted_k2", "weighted_k3", "seed_kl_div", "sequence_k2"]
)
def test_placements_that_make_no_sense(name: str, placement: str) -> None:
    if (name, placement) == ("sequence_k2", "reward"):
        assert component("kl", name, placement=placement).placement == placement
        return
    message = refused(name, placement=placement)
    assert message.startswith(f"kl.placement: {placement} given with kl={name}, ")
    assert message.split("allowed: ")[1] == ("loss, reward." if name == "sequence_k2" else "loss.")


@pytest.mark.parametrize("name", ["k1", "abs", "k2", "k3", "full"])
@pytest.mark.parametrize("placement", ["loss", "reward", "reward_to_go"])
def test_placements_that_do(name: str, placement: str) -> None:
    assert component("kl", name, placement=placement).placement == placement


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("k3", {"schedule": "adaptive", "beta": 0.0}, "kl.beta: 0 given, but kl.schedule is adap"),
        ("seed_kl_div", {"clamp": [1.0, 1.0]}, "kl.clamp: [1.0, 1.0] given with kl=seed_kl_div"),
        ("straight_through", {"base": "k2"}, "kl.base: 'k2' is not allowed; allowed: k1, k3, abs"),
        ("weighted_k2", {"base": "full"}, "kl.base: 'full' is not allowed; allowed: k1, k2, k3"),
        ("weighted_k2", {"c": 0.0}, "kl.c: 0.0 is out of bounds"),
        ("weighted_k3", {"level": "batch"}, "kl.level: 'batch' is not allowed"),
        ("k1", {"base": "k3"}, "kl.base: unknown setting of kl=k1"),
    ],
)
def test_settings_that_make_no_sense(name: str, settings: dict[str, Any], message: str) -> None:
    assert refused(name, **settings).startswith(message)


def test_full_needs_logits() -> None:
    with pytest.raises(ValueError, match="needs logits and ref_logits"):
        component("kl", "full")(LOGPS, REF, torch.ones(1, 2, dtype=torch.bool))


def test_every_estimator_is_here_by_hand() -> None:
    elsewhere = {"full", "seed_kl_div"}  # tests/objective/test_ground_truth.py
    assert {case[0] for case in BY_HAND} | {"sequence_k2"} | elsewhere == set(ESTIMATORS)
