"""Known answers: published tables, hand-worked values and identities checked by enumeration.

Policies are tabular softmaxes, so every expectation is an exact sum and every reference gradient
comes from differentiating that sum. Tokens are sampled from a policy that is not differentiated:
expected gradients weigh the per-token losses with detached probabilities.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from grpolab.component import component

F64 = torch.float64
SEEDS = range(5)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=F64)


def full_mask(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def rounded(value: float, places: int = 4) -> object:
    """Equal to a published figure within half a unit of its last digit."""
    return pytest.approx(value, abs=0.5 * 10**-places + 1e-9)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def random_policy(seed: int, arms: int) -> tuple[Tensor, Tensor]:
    """Logits of a policy (a leaf) and of a reference."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(arms, generator=generator, dtype=F64).requires_grad_()
    return theta, torch.randn(arms, generator=generator, dtype=F64)


def gradient(value: Tensor, *inputs: Tensor) -> Tensor:
    found = torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def clip_loss(
    name: str, logps: Tensor, old: Tensor, advantages: Tensor, **settings: float
) -> Tensor:
    """Per-token losses where every token is valid."""
    mask = torch.ones_like(logps, dtype=torch.bool)
    loss: Tensor = component("clip", name, **settings)(logps, old, advantages, mask).loss
    return loss


def kl_value(name: str, logps: Tensor, ref_logps: Tensor) -> Tensor:
    mask = torch.ones_like(logps, dtype=torch.bool)
    value: Tensor = component("kl", name)(logps, ref_logps, mask)
    return value


# --- 1. The worked example --------------------------------------------------------------------

EIGHT = tensor([[1.0, 0, 1, 0, 1, 0, 1, 0]])
TWO_GROUPS = tensor([[1.0, 0, 0, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("ddof", "eps", "size"),
    [(1, 0.0, 0.9354), (1, 1e-4, 0.9352), (0, 0.0, 1.0)],
)
def test_advantages_of_eight(ddof: int, eps: float, size: float) -> None:
    advantages = component("advantage", "group_zscore", ddof=ddof, eps=eps)(EIGHT)
    assert advantages.flatten().tolist() == [rounded(size), rounded(-size)] * 4


@pytest.mark.parametrize(("ddof", "std"), [(1, 0.5345), (0, 0.5)])
def test_mean_and_std_of_eight(ddof: int, std: float) -> None:
    centred = component("advantage", "group_center")(EIGHT)
    assert (EIGHT - centred).unique().tolist() == [0.5]  # the mean
    scaled = component("advantage", "group_zscore", ddof=ddof, eps=0.0)(EIGHT)
    assert (centred / scaled).flatten().tolist() == [rounded(std)] * 8


@pytest.mark.parametrize(("eps", "size"), [(1e-8, 0.8660), (1e-4, 0.8659)])
def test_advantages_of_two_groups_of_four(eps: float, size: float) -> None:
    advantages = component("advantage", "group_zscore", eps=eps)(TWO_GROUPS)
    signs = (2 * TWO_GROUPS - 1).flatten().tolist()
    assert advantages.flatten().tolist() == [rounded(s * size) for s in signs]


def test_std_of_two_groups_of_four() -> None:
    centred = component("advantage", "group_center")(TWO_GROUPS)
    scaled = component("advantage", "group_zscore", eps=0.0)(TWO_GROUPS)
    assert (centred / scaled).flatten().tolist() == [rounded(0.5774)] * 8


def test_clipped_ratios() -> None:
    # cispo's gradient in lp is −(clipped ratio)·A: it shows the clipped ratio itself
    logps = tensor([[0.9, 0.2, 0.7]]).log().requires_grad_()
    old = tensor([[0.5, 0.5, 0.5]]).log()
    ratio = gradient(clip_loss("none", logps, old, tensor([[-1.0]])).sum(), logps)
    assert ratio.tolist() == pytest.approx([1.8, 0.4, 1.4])
    loss = clip_loss("cispo", logps, old, tensor([[-1.0]]), ratio_min=0.8, ratio_max=1.2)
    assert gradient(loss.sum(), logps).tolist() == pytest.approx([1.2, 0.8, 1.2])


@pytest.mark.parametrize(
    ("advantage", "surrogate", "passes"),
    [
        (0.9354, [1.1225, 0.3742, 1.1225], [False, True, False]),
        (-0.9354, [-1.6837, -0.7483, -1.3096], [True, False, True]),
    ],
)
def test_min_surrogate(advantage: float, surrogate: list[float], passes: list[bool]) -> None:
    ratios = tensor([[1.8, 0.4, 1.4]])
    logps = ratios.log().requires_grad_()
    exact = math.copysign(math.sqrt(7 / 8), advantage)  # 0.9354 before rounding
    old = torch.zeros_like(ratios)
    result = component("clip", "ppo")(logps, old, tensor([[exact]]), full_mask(1, 3))
    assert (-result.loss).flatten().tolist() == [rounded(s) for s in surrogate]
    expected = torch.where(torch.tensor([passes]), -exact * ratios, 0.0)
    close(gradient(result.loss.sum(), logps), expected.flatten())
    assert float(result.metrics["clip/share"]) == pytest.approx(1 - sum(passes) / 3)


def test_script_losses() -> None:
    advantages = component("advantage", "group_zscore")(TWO_GROUPS).reshape(-1, 1)
    correct = TWO_GROUPS.reshape(-1, 1) == 1
    old = torch.full((8, 1), -2.0, dtype=F64)
    logps = torch.where(correct, old + 0.5, old - 0.5)
    ratios = clip_loss("none", logps, old, tensor([[-1.0]]))
    assert ratios[correct].tolist() == [rounded(1.6487)] * 4
    assert ratios[~correct].tolist() == [rounded(0.6065)] * 4

    policy = clip_loss("ppo", logps, old, advantages)
    assert policy[correct].tolist() == [rounded(-1.0391)] * 4
    assert policy[~correct].tolist() == [rounded(0.6927)] * 4

    distance = kl_value("k1", logps, old).abs()  # its KL term: |Δlogp|, the old policy as reference
    total = policy + 0.01 * distance
    assert total[correct].tolist() == [rounded(-1.0341)] * 4
    assert total[~correct].tolist() == [rounded(0.6977)] * 4

    for name in ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm"):
        mean = component("aggregation", name)
        sizes = {"group_size": 4, "max_length": 1}
        assert float(mean(policy, full_mask(8, 1), **sizes)) == rounded(-0.1732)
        assert float(mean(total, full_mask(8, 1), **sizes)) == rounded(-0.1682)


def test_script_kl_div_is_zero_for_one_token() -> None:
    logps, old, ref = torch.randn(3, 8, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    value = component("kl", "seed_kl_div")(logps, ref, full_mask(8, 1), old_logps=old)
    assert torch.equal(value, torch.zeros_like(logps))


@pytest.mark.parametrize("seed", SEEDS)
def test_script_kl_div_ignores_a_constant_log_ratio(seed: int) -> None:
    old = torch.randn(2, 5, dtype=F64, generator=torch.Generator().manual_seed(seed))
    value = component("kl", "seed_kl_div")(old + 0.7, old, full_mask(2, 5), old_logps=old)
    torch.testing.assert_close(value, torch.zeros_like(old), rtol=0, atol=1e-12)


# --- 2. Schulman's table -----------------------------------------------------------------------

SCHULMAN = [
    (0.005, "k1", 0.0, 20.0),
    (0.005, "k2", 0.0025, 1.4177),
    (0.005, "k3", 0.0, 1.4166),
    (0.5, "k1", 0.0, 2.0),
    (0.5, "k2", 0.25, 1.7321),
    (0.5, "k3", 0.0, 1.6950),
]


def closed_form(name: str, kl: float) -> tuple[float, float]:
    """(bias, std) over the true KL, for q = N(0, 1) and p = N(μ, 1)."""
    square = 2 * kl  # μ²
    if name == "k1":
        return 0.0, 2 / math.sqrt(square)
    if name == "k2":
        return square / 4, math.sqrt(2 + square)
    return 0.0, 2 * math.sqrt(math.exp(square) - 1 - square) / square


def gaussian_estimates(name: str, x: Tensor, kl: float) -> Tensor:
    """Estimates of KL(q‖p) at samples x of q."""
    mean = math.sqrt(2 * kl)
    constant = -0.5 * math.log(2 * math.pi)
    return kl_value(name, constant - x.square() / 2, constant - (x - mean).square() / 2)


@pytest.mark.parametrize(("kl", "name", "bias", "std"), SCHULMAN)
def test_schulman_closed_forms(kl: float, name: str, bias: float, std: float) -> None:
    exact_bias, exact_std = closed_form(name, kl)
    assert (exact_bias, exact_std) == (rounded(bias), rounded(std))
    nodes, weights = hermegauss(64)  # exact for these integrands to machine precision
    share = torch.from_numpy(weights / weights.sum())[None]
    values = gaussian_estimates(name, torch.from_numpy(nodes)[None], kl)
    mean = float((share * values).sum())
    deviation = math.sqrt(float((share * (values - mean).square()).sum()))
    assert (mean - kl) / kl == pytest.approx(exact_bias, abs=1e-8)
    assert deviation / kl == pytest.approx(exact_std, abs=1e-8)


@pytest.mark.parametrize(("kl", "name", "bias", "std"), SCHULMAN)
def test_schulman_monte_carlo(kl: float, name: str, bias: float, std: float) -> None:
    n = 1_000_000
    x = torch.randn(1, n, dtype=F64, generator=torch.Generator().manual_seed(17))
    values = gaussian_estimates(name, x, kl) / kl
    error = float(values.std()) / math.sqrt(n)
    assert abs(float(values.mean()) - 1 - bias) < 4 * error + 5e-5
    centred = values - values.mean()
    variance = float(centred.square().mean())
    fourth = float(centred.pow(4).mean())
    error = math.sqrt((fourth - variance**2) / n) / (2 * math.sqrt(variance))
    assert abs(math.sqrt(variance) - std) < 4 * error + 5e-5


# --- 3. KL gradients ---------------------------------------------------------------------------

ARMS = (2, 3, 6)


def reverse_kl(theta: Tensor, phi: Tensor) -> Tensor:
    p, q = theta.log_softmax(-1), phi.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def forward_kl(theta: Tensor, phi: Tensor) -> Tensor:
    return reverse_kl(phi, theta)


def one_token_values(name: str, theta: Tensor, phi: Tensor) -> Tensor:
    """The estimate for each arm [V]: one completion of one token per arm."""
    logps, ref_logps = theta.log_softmax(0)[:, None], phi.log_softmax(0)[:, None]
    arms = len(theta)
    value: Tensor = component("kl", name)(
        logps,
        ref_logps,
        full_mask(arms, 1),
        logits=theta.expand(arms, 1, arms),
        ref_logits=phi.expand(arms, 1, arms),
    )
    return value[:, 0]


def gradient_as_loss(name: str, theta: Tensor, phi: Tensor) -> Tensor:
    p = theta.softmax(0).detach()
    return gradient((p * one_token_values(name, theta, phi)).sum(), theta)


def gradient_in_reward(name: str, theta: Tensor, phi: Tensor) -> Tensor:
    """Of the loss, so with the sign of a penalty: the reward is −KL."""
    p, logps = theta.softmax(0).detach(), theta.log_softmax(0)[:, None]
    reward = -one_token_values(name, theta, phi).detach()[:, None]
    loss = clip_loss("reinforce", logps, logps, reward)[:, 0]
    return gradient((p * loss).sum(), theta)


@pytest.mark.parametrize("arms", ARMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_k1_and_k3_are_unbiased_and_k3_is_nonnegative(seed: int, arms: int) -> None:
    theta, phi = random_policy(seed, arms)
    p, truth = theta.softmax(0), reverse_kl(theta, phi)
    close((p * one_token_values("k1", theta, phi)).sum(), truth)
    close((p * one_token_values("k3", theta, phi)).sum(), truth)
    assert (one_token_values("k3", theta, phi) >= 0).all()
    close(one_token_values("full", theta, phi), truth.expand(arms))


@pytest.mark.parametrize("seed", SEEDS)
def test_k2_is_biased_at_third_order(seed: int) -> None:
    theta, direction = random_policy(seed, 4)

    def bias(step: float) -> float:
        phi = (theta + step * direction).detach()
        values = theta.softmax(0) * one_token_values("k2", theta, phi)
        return float((values.sum() - reverse_kl(theta, phi)).detach())

    assert bias(2e-3) / bias(1e-3) == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("arms", ARMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_as_loss(seed: int, arms: int) -> None:
    theta, phi = random_policy(seed, arms)
    reverse = gradient(reverse_kl(theta, phi), theta)
    close(gradient_as_loss("k1", theta, phi), torch.zeros_like(theta))
    close(gradient_as_loss("k2", theta, phi), reverse)
    close(gradient_as_loss("k3", theta, phi), gradient(forward_kl(theta, phi), theta))
    close(gradient_as_loss("full", theta, phi), reverse)


@pytest.mark.parametrize("arms", ARMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_in_the_reward(seed: int, arms: int) -> None:
    theta, phi = random_policy(seed, arms)
    reverse = gradient(reverse_kl(theta, phi), theta)
    forward = gradient(forward_kl(theta, phi), theta)
    close(gradient_in_reward("k1", theta, phi), reverse)
    close(gradient_in_reward("k3", theta, phi), reverse - forward)
    close(gradient_in_reward("k3", theta, phi) + gradient_as_loss("k3", theta, phi), reverse)


@pytest.mark.parametrize("seed", SEEDS)
def test_off_policy_k3_needs_the_ratio(seed: int) -> None:
    theta, phi = random_policy(seed, 4)
    old = random_policy(seed + 100, 4)[0].detach().log_softmax(0)
    reverse = gradient(reverse_kl(theta, phi), theta)
    ratio = clip_loss("none", theta.log_softmax(0)[:, None], old[:, None], tensor([[-1.0]]))[:, 0]

    def expected(per_arm: Tensor) -> Tensor:
        return gradient((old.exp() * per_arm).sum(), theta)

    close(expected(ratio * one_token_values("k3", theta, phi)), reverse)
    close(expected(ratio.detach() * one_token_values("k2", theta, phi)), reverse)
    unweighted = expected(one_token_values("k3", theta, phi))
    assert (unweighted - reverse).abs().max() > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_sequence_kl_gradients(seed: int) -> None:
    """Two tokens, the second depending on the first; every sequence is one row."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(s, dtype=F64, generator=generator) for s in ((3,), (3, 3)))
    first.requires_grad_()
    second.requires_grad_()
    phi1, phi2 = (torch.randn(s, dtype=F64, generator=generator) for s in ((3,), (3, 3)))
    x, y = torch.tensor(list(itertools.product(range(3), repeat=2))).T

    def token_logps(one: Tensor, two: Tensor) -> Tensor:
        return torch.stack([one.log_softmax(0)[x], two.log_softmax(1)[x, y]], dim=1)

    logps, ref_logps = token_logps(first, second), token_logps(phi1, phi2)
    sequence, ref_sequence = (v.sum(1, keepdim=True) for v in (logps, ref_logps))
    p = sequence.exp().detach()
    exact = gradient((sequence.exp() * (sequence - ref_sequence)).sum(), first, second)

    def expected(per_token: Tensor) -> Tensor:
        return gradient((p * per_token).sum(), first, second)

    k1 = kl_value("k1", logps, ref_logps).detach()
    total, to_go = k1.sum(1, keepdim=True), k1.flip(1).cumsum(1).flip(1)
    close(expected(clip_loss("reinforce", logps, logps, -total)), exact)
    close(expected(clip_loss("reinforce", logps, logps, -to_go)), exact)
    close(expected(kl_value("k2", sequence, ref_sequence)), exact)
    per_token_k2 = expected(kl_value("k2", logps, ref_logps))
    assert (per_token_k2 - exact).abs().max() > 1e-3
    close(per_token_k2[3:], exact[3:])  # the last token has no later ones to affect


BANDIT_REFERENCE = tensor([0.4, 0.3, 0.15, 0.1, 0.05])
BANDIT_REWARDS = tensor([0.0, 0.2, 0.5, 0.8, 1.0])
BANDIT_BETA = 0.5


def bandit_gradient(
    kl_gradient: Callable[[str, Tensor, Tensor], Tensor], name: str, p: Tensor
) -> Tensor:
    """The expected gradient of −E[R] + β·KL at the policy p."""
    theta = p.log().requires_grad_()
    reward = gradient((theta.softmax(0) * BANDIT_REWARDS).sum(), theta)
    return -reward + BANDIT_BETA * kl_gradient(name, theta, BANDIT_REFERENCE.log())


def test_bandit_optimum_of_the_reverse_kl() -> None:
    p = (BANDIT_REFERENCE.log() + BANDIT_REWARDS / BANDIT_BETA).softmax(0)
    assert p.tolist() == [rounded(v) for v in (0.1887, 0.2111, 0.1923, 0.2336, 0.1743)]
    zero = torch.zeros(5, dtype=F64)
    close(bandit_gradient(gradient_in_reward, "k1", p), zero)
    close(bandit_gradient(gradient_as_loss, "k2", p), zero)
    close(bandit_gradient(gradient_as_loss, "full", p), zero)
    assert bandit_gradient(gradient_as_loss, "k3", p).abs().max() > 1e-2


def test_bandit_optimum_of_k3_as_loss() -> None:
    def policy(shift: float) -> Tensor:
        return BANDIT_BETA * BANDIT_REFERENCE / (BANDIT_BETA + shift - BANDIT_REWARDS)

    low, high = 0.5 + 1e-9, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(policy(middle).sum()) > 1 else (low, middle)
    p = policy(low)
    assert p.tolist() == [rounded(v) for v in (0.1860, 0.1713, 0.1303, 0.1815, 0.3309)]
    close(bandit_gradient(gradient_as_loss, "k3", p), torch.zeros(5, dtype=F64))


def test_bandit_k1_as_loss_does_not_regularise() -> None:
    p = tensor([0.1, 0.1, 0.1, 0.1, 0.6])
    theta = p.log().requires_grad_()
    plain = -gradient((theta.softmax(0) * BANDIT_REWARDS).sum(), theta)
    found = bandit_gradient(gradient_as_loss, "k1", p)
    close(found, plain)
    assert found.argmin() == 4  # descent still moves mass to the best arm


# --- 4. Advantages -----------------------------------------------------------------------------


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_zscore_sums(seed: int, ddof: int) -> None:
    rewards = torch.randn(3, 7, dtype=F64, generator=torch.Generator().manual_seed(seed))
    advantages = component("advantage", "group_zscore", ddof=ddof, eps=0.0)(rewards)
    close(advantages.sum(1), torch.zeros(3, dtype=F64))
    close(advantages.square().sum(1), torch.full((3,), 7.0 - ddof, dtype=F64))
    for name in ("group_center", "rloo"):
        close(component("advantage", name)(rewards).sum(1), torch.zeros(3, dtype=F64))


def test_ddof_is_a_constant_factor() -> None:
    rewards = torch.randn(3, 7, dtype=F64, generator=torch.Generator().manual_seed(0))
    one, zero = (component("advantage", "group_zscore", ddof=d, eps=0.0)(rewards) for d in (1, 0))
    close(one, zero * math.sqrt(6 / 7))


PASS_RATES = [2.6458, 1.7321, 1.2910, 1.0, 0.7746, 0.5774, 0.3780]


@pytest.mark.parametrize(("correct", "positive"), list(enumerate(PASS_RATES, start=1)))
def test_binary_zscore(correct: int, positive: float) -> None:
    p = correct / 8
    rewards = tensor([[1.0] * correct + [0.0] * (8 - correct)])
    found = component("advantage", "group_zscore", ddof=0, eps=0.0)(rewards)[0]
    assert float(found[0]) == rounded(positive)
    expected = [math.sqrt((1 - p) / p)] * correct + [-math.sqrt(p / (1 - p))] * (8 - correct)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def expected_group_gradient(advantage: object, theta: Tensor, rewards: Tensor, size: int) -> Tensor:
    """E of the mean of A·∇lp over a group of `size` draws, over all V^size groups."""
    assert callable(advantage)
    draws = torch.tensor(list(itertools.product(range(len(theta)), repeat=size)))
    logps = theta.log_softmax(0)
    probability = logps[draws].sum(1).exp().detach()
    rows = logps[draws].reshape(-1, 1)
    loss = clip_loss("reinforce", rows, rows, advantage(rewards[draws]).reshape(-1, 1))
    return gradient(-(probability * loss.reshape(-1, size).mean(1)).sum(), theta)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_rloo_is_unbiased_and_centring_is_shrunk(seed: int, size: int) -> None:
    theta, rewards = random_policy(seed, 3)
    exact = gradient((theta.softmax(0) * rewards).sum(), theta)
    rloo, centred = component("advantage", "rloo"), component("advantage", "group_center")
    close(expected_group_gradient(rloo, theta, rewards, size), exact)
    shrunk = exact * (size - 1) / size
    close(expected_group_gradient(centred, theta, rewards, size), shrunk)


@pytest.mark.parametrize(("ddof", "size"), [(0, 1.0), (1, 0.7071)])
def test_zscore_of_two_is_the_sign(ddof: int, size: float) -> None:
    advantage = component("advantage", "group_zscore", ddof=ddof, eps=0.0)
    found = advantage(tensor([[3.0, -2.0], [0.1, 0.2], [5.0, 5.0]]))
    assert found.flatten().tolist() == [rounded(s * size) for s in (1, -1, -1, 1, 0, 0)]


@pytest.mark.parametrize("seed", SEEDS)
def test_shift_and_scale(seed: int) -> None:
    rewards = torch.randn(3, 5, dtype=F64, generator=torch.Generator().manual_seed(seed))
    moved = 3.7 * rewards - 11
    zscore = component("advantage", "group_zscore", eps=0.0)
    close(zscore(moved), zscore(rewards))
    for name in ("group_center", "rloo"):
        advantage = component("advantage", name)
        close(advantage(moved), 3.7 * advantage(rewards))


def binary_weight(p: float, size: int) -> float:
    """f_G(p) = E_k[√(k(G−k))] / (G·p·(1−p))."""
    mean = sum(
        math.comb(size, k) * p**k * (1 - p) ** (size - k) * math.sqrt(k * (size - k))
        for k in range(size + 1)
    )
    return mean / (size * p * (1 - p))


@pytest.mark.parametrize(("p", "figure"), [(0.1, 2.3277), (0.25, 2.0261), (0.5, 1.8557)])
def test_zscore_weight_of_a_binary_prompt(p: float, figure: float) -> None:
    assert binary_weight(p, 8) == rounded(figure)
    theta = tensor([p, 1 - p]).log().requires_grad_()
    zscore = component("advantage", "group_zscore", ddof=0, eps=0.0)
    found = expected_group_gradient(zscore, theta, tensor([1.0, 0.0]), 8)
    close(found, binary_weight(p, 8) * gradient(theta.softmax(0)[0], theta))


@pytest.mark.parametrize(("size", "constant"), [(2, 1.0), (3, math.sqrt(2))])
def test_zscore_weight_is_constant_for_two_and_three(size: int, constant: float) -> None:
    zscore = component("advantage", "group_zscore", ddof=0, eps=0.0)
    for p in (0.05, 0.3, 0.9):
        theta = tensor([p, 1 - p]).log().requires_grad_()
        found = expected_group_gradient(zscore, theta, tensor([1.0, 0.0]), size)
        close(found, constant * gradient(theta.softmax(0)[0], theta))


@pytest.mark.parametrize(
    ("p", "share"), [(0.05, 0.6634), (0.1, 0.4305), (0.25, 0.1001), (0.5, 0.0078)]
)
def test_share_of_zero_variance_groups(p: float, share: float) -> None:
    rewards = tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    probability = torch.where(rewards == 1, p, 1 - p).prod(1)
    kept = component("selection", "dynamic")(rewards)[:, 0]
    assert float(probability[~kept].sum()) == rounded(share)
    advantages = component("advantage", "group_zscore")(rewards)
    assert torch.equal((advantages != 0).any(1), kept)


def test_sum_then_normalise_forgets_the_scale() -> None:
    zscore = component("advantage", "group_zscore", eps=0.0)
    close(zscore(tensor([[0.0, 1.0]])), zscore(tensor([[0.0, 2.0]])))


# --- 5. Surrogates and aggregation -------------------------------------------------------------

ON_POLICY_VALUE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda lp, a: -a.expand_as(lp),
    "ppo": lambda lp, a: -a.expand_as(lp),
    "gspo": lambda lp, a: -a.expand_as(lp),
    "reinforce": lambda lp, a: -a * lp,
    "cispo": lambda lp, a: -a * lp,
}


@pytest.mark.parametrize("name", sorted(ON_POLICY_VALUE))
@pytest.mark.parametrize("seed", SEEDS)
def test_on_policy_gradients_agree(seed: int, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(4, 6, dtype=F64, generator=generator).mul(3)
    logps.requires_grad_()
    advantages = torch.randn(4, 1, dtype=F64, generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [4]])
    surrogate = component("clip", name)(logps, logps.detach(), advantages, mask)
    close(surrogate.loss, torch.where(mask, ON_POLICY_VALUE[name](logps, advantages), 0.0))
    mean = component("aggregation", "seq_mean_token_mean")
    loss = mean(surrogate.loss, mask, group_size=2, max_length=6)
    expected = torch.where(mask, -advantages / (4 * mask.sum(1, keepdim=True)), 0.0)
    close(gradient(loss, logps), expected.flatten())
    if component("clip", name).level == "token":
        per_token = torch.where(mask, -advantages.expand_as(mask), 0.0)
        close(gradient(surrogate.loss.sum(), logps), per_token.flatten())


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_gradient_is_zero_exactly_where_the_clip_binds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logps = torch.randn(6, 8, dtype=F64, generator=generator).mul(0.4).requires_grad_()
    advantages = torch.randn(6, 8, dtype=F64, generator=generator)
    ratio = logps.detach().exp()
    result = component("clip", "ppo", low=0.2, high=0.28)(
        logps, torch.zeros_like(ratio), advantages, full_mask(6, 8)
    )
    high = (advantages > 0) & (ratio > 1.28)
    low = (advantages < 0) & (ratio < 0.8)
    assert high.any()
    assert low.any()
    expected = torch.where(high | low, 0.0, -advantages * ratio)
    close(gradient(result.loss.sum(), logps), expected.flatten())
    for key, share in (("clip/high", high), ("clip/low", low), ("clip/share", high | low)):
        assert float(result.metrics[key]) == pytest.approx(float(share.double().mean()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipping_is_inert_on_policy(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    advantages = torch.randn(5, 1, dtype=dtype, generator=generator)
    logps = -torch.rand(5, 7, dtype=dtype, generator=generator).requires_grad_()
    outcomes = []
    for name, settings in (
        ("ppo", {}),
        ("ppo", {"low": math.inf, "high": math.inf}),
        ("none", {}),
    ):
        loss = clip_loss(name, logps, logps.detach(), advantages, **settings)
        outcomes.append(torch.cat([loss.detach().flatten(), gradient(loss.sum(), logps)]))
    assert torch.equal(outcomes[0], outcomes[1])
    assert torch.equal(outcomes[0], outcomes[2])


def test_gspo_ratio() -> None:
    logps = tensor([[1.2, 0.8, 1.5]]).log()
    loss = clip_loss("gspo", logps, torch.zeros_like(logps), tensor([[-1.0]]), low=9, high=9)
    assert loss.flatten().tolist() == [rounded(1.1292)] * 3


@pytest.mark.parametrize("seed", SEEDS)
def test_aggregations_agree_on_equal_lengths(seed: int) -> None:
    per_token = torch.randn(4, 9, dtype=F64, generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(9) < 5).expand(4, 9)
    found = {
        name: component("aggregation", name)(per_token, mask, group_size=2, max_length=20)
        for name in ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm")
    }
    close(found["token_mean"], per_token[:, :5].mean())
    close(found["seq_mean_token_mean"], found["token_mean"])
    close(found["seq_mean_token_sum_norm"], found["token_mean"] * 5 / 20)


def test_mean_of_micro_batch_token_means_is_another_number() -> None:
    per_token = tensor([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    mean = component("aggregation", "token_mean")
    whole = mean(per_token, mask, group_size=1, max_length=3)
    halves = [mean(per_token[i], mask[i], group_size=1, max_length=3) for i in ([0], [1])]
    assert float(whole) == pytest.approx(7 / 4)
    assert float(sum(halves) / 2) == pytest.approx(5 / 2)


# --- One value by hand for every component -----------------------------------------------------

HAND_ADVANTAGES = {
    # mean 2, deviations −1 0 1, std (ddof 1) 1
    "group_zscore": [-1 / 1.0001, 0.0, 1 / 1.0001],
    "group_center": [-1.0, 0.0, 1.0],
    # 1 − 2.5, 2 − 2, 3 − 1.5
    "rloo": [-1.5, 0.0, 1.5],
}


@pytest.mark.parametrize("name", sorted(HAND_ADVANTAGES))
def test_advantage_by_hand(name: str) -> None:
    found = component("advantage", name)(tensor([[1.0, 2.0, 3.0]]))
    assert found[0].tolist() == pytest.approx(HAND_ADVANTAGES[name], abs=1e-12)


def test_advantage_clip_by_hand() -> None:
    found = component("advantage", "group_center", clip=[-0.5, 2.0])(tensor([[1.0, 2.0, 3.0]]))
    assert found[0].tolist() == [-0.5, 0.0, 1.0]


HAND_CLIPS = {
    # lp = ln ½ and ln 2 against old = 0, A = 2: r = ½ and 2
    "reinforce": [2 * math.log(2), -2 * math.log(2)],
    "none": [-1.0, -4.0],
    "ppo": [-1.0, -2.4],
    "cispo": [-0.5 * 2 * math.log(0.5), -2 * 2 * math.log(2)],
    # the mean log-ratio is 0: s = 1
    "gspo": [-2.0, -2.0],
}


@pytest.mark.parametrize("name", sorted(HAND_CLIPS))
def test_clip_by_hand(name: str) -> None:
    logps = tensor([[0.5, 2.0]]).log()
    loss = clip_loss(name, logps, torch.zeros_like(logps), tensor([[2.0]]))
    assert loss[0].tolist() == pytest.approx(HAND_CLIPS[name], abs=1e-12)


HAND_KLS = {
    # lp = ln ½ and ln ¼ against ref = ln ¼ both: D = ln 2 and 0
    "none": [0.0, 0.0],
    "k1": [math.log(2), 0.0],
    "k2": [math.log(2) ** 2 / 2, 0.0],
    "k3": [0.5 + math.log(2) - 1, 0.0],
    # π = (½, ½), π_ref = (¼, ¾) at both positions: ½ ln 2 + ½ ln ⅔
    "full": [0.5 * math.log(4 / 3)] * 2,
    # over time, π ∝ (½, ¼) = (⅔, ⅓) and the other ∝ (¼, ¼) = (½, ½)
    "seed_kl_div": [0.5 * math.log(0.5 / (2 / 3)), 0.5 * math.log(0.5 / (1 / 3))],
}


@pytest.mark.parametrize("name", sorted(HAND_KLS))
def test_kl_by_hand(name: str) -> None:
    logps, ref_logps = tensor([[0.5, 0.25]]).log(), tensor([[0.25, 0.25]]).log()
    found = component("kl", name)(
        logps,
        ref_logps,
        full_mask(1, 2),
        logits=tensor([0.5, 0.5]).log().expand(1, 2, 2),
        ref_logits=tensor([0.25, 0.75]).log().expand(1, 2, 2),
    )
    assert found[0].tolist() == pytest.approx(HAND_KLS[name], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "clamp", "expected"),
    [
        ("k2", [4.0, 5.0], [4.5, 5.0]),  # 3²/2; min(4²/2, 5)
        ("k1", [6.0, 2.0], [2.0, -2.0]),
        ("k1", [2.0, 6.0], [2.0, -2.0]),
    ],
)
def test_kl_clamp_by_hand(name: str, clamp: list[float], expected: list[float]) -> None:
    logps, ref_logps = tensor([[-1.0, -9.0]]), tensor([[-4.0, -1.0]])  # D = 3, −8
    found = component("kl", name, clamp=clamp)(logps, ref_logps, full_mask(1, 2))
    assert found[0].tolist() == expected


def test_script_kl_div_by_hand_reads_the_old_policy() -> None:
    logps, ref_logps, old = (
        tensor([[0.5, 0.25]]).log(),
        tensor([[0.7, 0.1]]),
        tensor([[0.25, 0.25]]),
    )
    found = component("kl", "seed_kl_div")(logps, ref_logps, full_mask(1, 2), old_logps=old.log())
    assert found[0].tolist() == pytest.approx(HAND_KLS["seed_kl_div"], abs=1e-12)


def test_the_exponential_stops_at_twenty() -> None:
    logps = tensor([[30.0, -30.0, 1.0, 0.0]]).requires_grad_()
    result = component("clip", "none")(logps, torch.zeros(1, 4), tensor([[-1.0]]), full_mask(1, 4))
    exact = [math.exp(20), math.exp(-20), math.e, 1.0]
    assert result.loss[0].tolist() == pytest.approx(exact, rel=1e-12)
    assert gradient(result.loss.sum(), logps).tolist() == pytest.approx([0, 0, math.e, 1.0])
    assert float(result.metrics["clip/clamped"]) == 0.5


def test_clip_shares_are_measured_before_the_clamp() -> None:
    bound = 1e12  # between e^20, where the clamp binds, and e^30
    clip = component("clip", "ppo", high=bound)
    result = clip(tensor([[30.0, 25.0]]), torch.zeros(1, 2), tensor([[1.0]]), full_mask(1, 2))
    assert float(result.metrics["clip/high"]) == 0.5


HAND_AGGREGATIONS = {
    # rows (1, 2, 3) and (6), limit 4
    "token_mean": 12 / 4,
    "seq_mean_token_mean": (2 + 6) / 2,
    "seq_mean_token_sum_norm": 12 / (2 * 4),
}


@pytest.mark.parametrize("name", sorted(HAND_AGGREGATIONS))
def test_aggregation_by_hand(name: str) -> None:
    per_token = tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = component("aggregation", name)(per_token, mask, group_size=2, max_length=4)
    assert float(found) == pytest.approx(HAND_AGGREGATIONS[name], abs=1e-12)


def test_correction_by_hand() -> None:
    weights = component("correction", "none")(
        tensor([[-1.0, -2.0]]), tensor([[-3.0, -1.0]]), full_mask(1, 2)
    )
    assert weights.tolist() == [[1.0, 1.0]]


def test_selection_by_hand() -> None:
    rewards = tensor([[1.0, 1.0], [0.0, 1.0], [math.nan, 1.0], [math.nan, math.nan], [0.0, 0.0]])
    assert bool(component("selection", "all")(rewards).all())
    assert component("selection", "dynamic")(rewards)[:, 0].tolist() == [
        False,
        True,
        False,
        False,
        False,
    ]
