"""The policy losses by hand: one worked value for each, and where its gradient is cut.

Every case states the ratios r, the advantages A and, where the loss reads them, lp. Gradients are
those of the sum of the losses, in lp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from grpolab.component import ConfigError, component, names

F64 = torch.float64
LN2 = math.log(2)


@dataclass(frozen=True)
class Case:
    """One completion, all its tokens valid."""

    name: str
    ratios: list[float]
    advantage: float
    loss: list[float]
    gradient: list[float]
    low: list[int] = field(default_factory=list)
    high: list[int] = field(default_factory=list)
    logps: list[float] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    reward: float | None = None


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


HALF_AND_TWO = [0.5, 2.0]
FALL = 1 / math.e**1.5

CASES = [
    Case("reinforce", HALF_AND_TWO, 2.0, [2.0, 4.0], [-2, -2], logps=[-1.0, -2.0]),
    Case("none", HALF_AND_TWO, 2.0, [-1.0, -4.0], [-1, -4]),
    # A>0: min(2, 1.2)·2 on the right
    Case("ppo", HALF_AND_TWO, 2.0, [-1.0, -2.4], [-1, 0], high=[1]),
    # A<0: −min(−1, −1.6), −min(−4, −2.4)
    Case("ppo", HALF_AND_TWO, -2.0, [1.6, 4.0], [0, 4], low=[0]),
    # r = 5: ppo's 10 is cut to c·|A| = 6; r = 2 and ½ as in ppo
    Case("dual", [5.0, 2.0, 0.5], -2.0, [6.0, 4.0, 1.6], [0, 4, 0], low=[2], high=[0]),
    Case("dual", [5.0, 2.0, 0.5], 2.0, [-2.4, -2.4, -1.0], [0, 0, -1], high=[0, 1]),
    # r = 5 becomes 4 in the unclipped branch: −min(−8, −2.4)
    Case("two_sided", [5.0, 2.0, 0.5], -2.0, [8.0, 4.0, 1.6], [0, 4, 0], low=[2], high=[0]),
    Case("two_sided", [5.0, 2.0, 0.5], 2.0, [-2.4, -2.4, -1.0], [0, 0, -1], high=[0, 1]),
    # weights 0.5 and 5 (from 6): 0.5·2·1, 5·2·2
    Case("cispo", [0.5, 6.0], 2.0, [1.0, 20.0], [-1, -10], high=[1], logps=[-1.0, -2.0]),
    Case("tis_pg", HALF_AND_TWO, 2.0, [1.0, 4.0], [-1, -2], high=[1], logps=[-1.0, -2.0]),
    # a good completion counts in full, whatever its ratios and its advantage
    Case("topr", HALF_AND_TWO, -2.0, [-2.0, -4.0], [2, 2], logps=[-1.0, -2.0], reward=1.0),
    # a bad one with weights ½ and 1 (from 2)
    Case("topr", HALF_AND_TWO, 2.0, [1.0, 4.0], [-1, -2], high=[1], logps=[-1.0, -2.0], reward=0),
    # without a reward the sign of A decides
    Case("topr", HALF_AND_TWO, 2.0, [2.0, 4.0], [-2, -2], logps=[-1.0, -2.0]),
    Case("topr", HALF_AND_TWO, -2.0, [-1.0, -4.0], [1, 2], high=[1], logps=[-1.0, -2.0]),
    # 4σ(½) = 2.4898; gradient 4σ(1−σ)·r = 0.9400·1.5
    Case("sapo", [1.5], 1.0, [-4 * sigmoid(0.5)], [-0.9400 * 1.5]),
    # 4/1.05·σ(0.525) = 2.3936; 0.9341·1.5, against A
    Case("sapo", [1.5], -1.0, [4 / 1.05 * sigmoid(0.525)], [0.9341 * 1.5]),
    # w = 2·½·1.5 = 1.5: φ = e³·1.5²·e^−4.5 = 2.25·e^−1.5 = 0.5020
    Case("vespo", [2.0, 0.5, 1.5], 1.0, [2.25 * FALL, 4.5 * FALL, 6.75 * FALL], [-2.25 * FALL] * 3,
         logps=[-1.0, -2.0, -3.0]),
    # φ = e²·1.5³·e^−3 = 3.375/e = 1.2416
    Case("vespo", [2.0, 0.5, 1.5], -1.0, [-3.375 / math.e] * 3, [3.375 / math.e] * 3,
         logps=[-1.0, -1.0, -1.0]),
    # p−μ = 0.4 and −0.3 around μ = 0.5: with A>0 the first goes, with A<0 the second
    Case("dppo", [1.8, 0.4, 1.3], 2.0, [0, -0.8, -2.6], [0, -0.8, -2.6], high=[0],
         logps=[math.log(p) for p in (0.9, 0.2, 0.65)]),
    Case("dppo", [1.8, 0.4, 1.3], -2.0, [3.6, 0, 2.6], [3.6, 0, 2.6], low=[1],
         logps=[math.log(p) for p in (0.9, 0.2, 0.65)]),
    # binary KL(½‖p): ½ln(½/p) + ½ln(½/(1−p)) = 0.5108, 0.2231, 0.0472 for p = 0.9, 0.2, 0.65
    Case("dppo", [1.8, 0.4, 1.3], 2.0, [0, -0.8, -2.6], [0, -0.8, -2.6], high=[0],
         logps=[math.log(p) for p in (0.9, 0.2, 0.65)], settings={"divergence": "kl"}),
    Case("dppo", [1.8, 0.4, 1.3], -2.0, [3.6, 0, 2.6], [3.6, 0, 2.6], low=[1],
         logps=[math.log(p) for p in (0.9, 0.2, 0.65)], settings={"divergence": "kl"}),
    Case("dppo", [1.8, 0.4, 1.3], -2.0, [3.6, 0.8, 2.6], [3.6, 0.8, 2.6],
         logps=[math.log(p) for p in (0.9, 0.2, 0.65)],
         settings={"divergence": "kl", "low": 0.23}),
    # weights min(r, 1.5) = 1.5 (cut) and 0.4
    Case("dppo", [1.8, 0.4], 2.0, [-3 * math.log(0.55), -0.8 * math.log(0.2)], [-3, -0.8],
         high=[0], logps=[math.log(0.55), math.log(0.2)],
         settings={"form": "logp", "cap": 1.5, "high": 0.25}),
    # γ = ½, d = (1, −1, 1)·ln 2: sums 0.75 ln 2, −0.5 ln 2, ln 2; weights 1.68→1.2, 0.71→1, 2→1.2
    Case("fipo", [2.0, 0.5, 2.0], 1.0, [-1.44, -0.5, -1.44], [0, -0.5, 0], high=[0, 2],
         settings={"half_life": 1.0}),
    Case("fipo", [2.0, 0.5, 2.0], 1.0, [-1.44, -0.4, -1.44], [0, -0.4, 0], high=[0, 2],
         settings={"half_life": 1.0, "high_only": False}),
    Case("fipo", [2.0, 0.5, 2.0], 1.0, [-1.2 * 2**0.75, -0.5 * 2**-0.5, -2.4],
         [0, -0.5 * 2**-0.5, 0], high=[0, 2], settings={"half_life": 1.0, "influence": None}),
    # the weight 1.2 of r = 5 is held at 1, that of r = 3 is not: 5·1 and 3·1.2
    Case("fipo", [5.0], -1.0, [5.0], [5.0]),
    Case("fipo", [3.0], -1.0, [3.6], [3.6]),
    Case("fipo", [5.0], 1.0, [-1.44], [0], high=[0]),  # nor that of a good token
    Case("fipo", [5.0], -1.0, [6.0], [6.0], settings={"safety": None}),
    # 1/8 ahead: weight 5·⅛ = 0.625 → 0.8 on the unsafe token, not below
    Case("fipo", [5.0, 0.125], -1.0, [4.0, 0.1], [4.0, 0], low=[1],
         settings={"half_life": math.inf, "influence": 0.9, "high_only": False}),
    # r = 5 stays out of the sum: exp(ln 1.1) at both tokens
    Case("fipo", [5.0, 1.1], -1.0, [5.5, 1.21], [5.5, 1.21],
         settings={"half_life": math.inf, "outlier": 3.0, "safety": None}),
    # s = (1.2·0.8·1.5)^⅓ = 1.44^⅓ = 1.1292; each lp moves all three copies of s by a third
    Case("gspo", [1.2, 0.8, 1.5], -1.0, [1.44 ** (1 / 3)] * 3, [1.44 ** (1 / 3)] * 3),
    Case("gspo", [1.2, 0.8, 1.5], 1.0, [-1.0004] * 3, [0] * 3, high=[0, 1, 2]),
    Case("gspo", [0.5, 0.8, 1.5], -1.0, [0.9997] * 3, [0] * 3, low=[0, 1, 2]),
    Case("gspo_token", [1.2, 0.8, 1.5], -1.0, [1.44 ** (1 / 3)] * 3, [1.44 ** (1 / 3)] * 3),
    Case("gspo_token", [1.2, 0.8, 1.5], 1.0, [-1.0004] * 3, [0] * 3, high=[0, 1, 2]),
    Case("luspo", [1.2, 0.8, 1.5], 1.0, [-1.0025] * 3, [0] * 3, high=[0, 1, 2]),
    Case("luspo", [0.5, 0.8, 1.5], -1.0, [0.998] * 3, [0] * 3, low=[0, 1, 2]),
    # A>0: d = ln 2 → 0.4, −ln 2 stays, 0.1: mean (0.5−ln 2)/3 = −0.0644, coefficient 0.9376
    Case("gmpo", [2.0, 0.5, math.exp(0.1)], 2.0, [-2 * math.exp((0.5 - LN2) / 3)] * 3,
         [0] + [-2 * math.exp((0.5 - LN2) / 3)] * 2, high=[0]),
    # A<0: ln 2 stays, −ln 2 → −0.4, 0.1: mean (ln 2−0.3)/3 = 0.1310, coefficient 1.1400
    Case("gmpo", [2.0, 0.5, math.exp(0.1)], -2.0, [2 * math.exp((LN2 - 0.3) / 3)] * 3,
         [2 * math.exp((LN2 - 0.3) / 3), 0, 2 * math.exp((LN2 - 0.3) / 3)], low=[1]),
    # d = 0.3 and 0.5: −2·lp + 0.05·d²; gradient −2 + 0.1·d
    Case("quadratic", [math.exp(0.3), math.exp(0.5)], 2.0, [2.0045, 4.0125], [-1.97, -1.95],
         logps=[-1.0, -2.0]),
    Case("quadratic", [math.exp(0.3), math.exp(0.5)], 2.0, [2.0045, 4.0125], [-1.97, -1.95],
         logps=[-1.0, -2.0], settings={"form": "kimi"}),
    # 0.05·0.8² = 0.032, half of it on each token; gradient −2 + 0.1·0.8
    Case("quadratic", [math.exp(0.3), math.exp(0.5)], 2.0, [2.016, 4.016], [-1.92, -1.92],
         logps=[-1.0, -2.0], settings={"form": "sequence"}),
]  # fmt: skip
# what they choose over the optimizer step is worked by hand in test_clip_plans
PLANNED = {"bapo", "clip_cov", "kl_cov"}


def of(case: Case) -> tuple[Any, Tensor]:
    ratios = torch.tensor([case.ratios], dtype=F64)
    start = torch.tensor([case.logps or [0.0] * len(case.ratios)], dtype=F64)
    logps = start.clone().requires_grad_()
    surrogate = component("clip", case.name, **case.settings)(
        logps,
        start - ratios.log(),
        torch.tensor([[case.advantage]], dtype=F64),
        torch.ones_like(ratios, dtype=torch.bool),
        rewards=None if case.reward is None else torch.tensor([[case.reward]], dtype=F64),
    )
    return surrogate, torch.autograd.grad(surrogate.loss.sum(), logps)[0]


def by_name(case: Case) -> str:
    return "-".join([case.name, f"{case.advantage:+g}", *map(str, case.settings.values())])


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_by_hand(case: Case) -> None:
    surrogate, gradient = of(case)
    assert surrogate.loss[0].tolist() == pytest.approx(case.loss, abs=1e-12)
    tolerance = 1e-4 if case.name == "sapo" else 1e-12  # published figures of four digits
    assert gradient[0].tolist() == pytest.approx(case.gradient, abs=tolerance)
    count = len(case.ratios)
    sides = {"low": case.low, "high": case.high, "share": case.low + case.high}
    for key, tokens in sides.items():
        assert float(surrogate.metrics[f"clip/{key}"]) == pytest.approx(len(tokens) / count)
    own, other = ("positive", "negative")[:: 1 if case.advantage > 0 else -1]
    assert float(surrogate.metrics[f"clip/{own}"]) == pytest.approx(len(sides["share"]) / count)
    assert float(surrogate.metrics[f"clip/{other}"]) == 0


def test_every_clip_is_worked_by_hand() -> None:
    assert {c.name for c in CASES} | PLANNED == set(names("clip"))


def test_luspo_sums_what_gspo_averages() -> None:
    surrogate, _ = of(Case("luspo", [1.2, 0.8, 1.5], -1.0, [], []))
    sizes: dict[str, Any] = {"group_size": 1, "max_length": 9}
    everything = torch.ones(1, 3, dtype=torch.bool)
    whole = component("aggregation", "seq_mean_token_sum")(surrogate.loss, everything, **sizes)
    assert float(whole.detach()) == pytest.approx(3 * 1.44 ** (1 / 3))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("dual", {"c": 1.0}, r"clip\.c: 1\.0 is out of bounds; allowed: a number > 1"),
    ("dual", {"c": math.inf}, r"clip\.c: inf is out of bounds"),
    ("two_sided", {"delta": 1.2}, r"clip\.delta: 1\.2 given; allowed: above 1 \+ high.* 1\.2\."),
    ("two_sided", {"delta": 1.5, "high": 0.5}, r"clip\.delta: 1\.5 given.* 1\.5\."),
    ("two_sided", {"delta": 0.9}, r"clip\.delta: 0\.9 is out of bounds"),
    ("sapo", {"tau_positive": 0.0}, r"clip\.tau_positive: 0\.0 is out of bounds"),
    ("vespo", {"lambda_negative": 0.0}, r"clip\.lambda_negative: 0\.0 is out of bounds"),
    ("dppo", {"divergence": "js"}, r"clip\.divergence: 'js' is not allowed; allowed: tv, kl"),
    ("dppo", {"form": "log"}, r"clip\.form: 'log' is not allowed.*mean logp\?"),
    ("clip_cov", {"share": 0.0}, r"clip\.share: 0\.0 is out of bounds"),
    ("clip_cov", {"lo": 5.0}, r"clip\.lo: 5\.0 given; allowed: below hi, which is 5\.0\."),
    ("kl_cov", {"share": 1.5}, r"clip\.share: 1\.5 is out of bounds"),
    ("kl_cov", {"c": -1.0}, r"clip\.c: -1\.0 is out of bounds"),
    ("quadratic", {"form": "k15"}, r"clip\.form: 'k15' is not allowed"),
    ("tis_pg", {"ratio_max": 0.0}, r"clip\.ratio_max: 0\.0 is out of bounds"),
    ("fipo", {"half_life": 0.0}, r"clip\.half_life: 0\.0 is out of bounds"),
    ("bapo", {"low": [0.9, 0.6]}, r"clip\.low: \[0\.9, 0\.6\] given; allowed: \[first, largest\]"),
    ("bapo", {"low": [0.6]}, r"clip\.low: \[0\.6\] given"),
    ("bapo", {"high": [3.0, 1.2]}, r"clip\.high: \[3\.0, 1\.2\] given"),
    ("bapo", {"high": [1.2, math.inf]}, r"clip\.high: \[1\.2, inf\] is out of bounds"),
    ("bapo", {"low": [0.6, 1.3]}, r"clip\.low: \[0\.6, 1\.3\] given; allowed: at most high.* 1\.2"),
    ("bapo", {"high_step": 0.0}, r"clip\.high_step: 0\.0 is out of bounds"),
    ("bapo", {"rho0": 1.1}, r"clip\.rho0: 1\.1 is out of bounds"),
]


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED)
def test_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        component("clip", name, **settings)


@pytest.mark.parametrize("name", names("clip"))
def test_a_token_without_an_advantage_is_never_clipped(name: str) -> None:
    old = torch.full((2, 3), -2.0, dtype=F64)
    logps = old + torch.tensor([[-4.0, 1.9, 0.5], [1.9, 1.9, 1.9]], dtype=F64)
    mask = torch.ones_like(old, dtype=torch.bool)
    metrics = component("clip", name)(logps, old, torch.zeros(2, 1, dtype=F64), mask).metrics
    assert [float(metrics[f"clip/{k}"]) for k in ("low", "high", "share")] == [0, 0, 0]


def test_dppo_takes_no_probability_above_one() -> None:
    # p = min(e^.01, 1) = 1 and μ = .805: p − μ = .195 ≤ .2 stays; e^.01 − μ = .205 would not
    logps, old = torch.tensor([[0.01]], dtype=F64), torch.tensor([[math.log(0.805)]], dtype=F64)
    found = component("clip", "dppo")(logps, old, torch.ones(1, 1, dtype=F64), logps > 0)
    assert float(found.metrics["clip/share"]) == 0.0
    assert float(found.loss) == pytest.approx(-math.exp(0.01) / 0.805)


def test_fipo_holds_back_bad_tokens_alone() -> None:
    # r = 5 > safety, A = ½: the weight is 1.2 (from 5), and −1.2·min(5·½, 1.2·½) = −.72; 1·… = −.6
    old = torch.full((1, 1), -3.0, dtype=F64)
    mask = torch.ones_like(old, dtype=torch.bool)
    found = component("clip", "fipo")(
        old + math.log(5), old, torch.full((1, 1), 0.5, dtype=F64), mask
    )
    assert float(found.loss) == pytest.approx(-0.72)
