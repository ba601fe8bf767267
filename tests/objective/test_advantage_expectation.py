"""What advantage estimators claim in expectation or as an identity, by enumeration.

A tabular policy draws groups of one-token completions; the expectation over all groups is a sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grpolab.component import component

F64 = torch.float64
SEEDS = range(3)
Estimator = Callable[[Tensor], Tensor]


def close(a: Tensor, b: Tensor, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def make(name: str, **settings: Any) -> Any:
    return component("advantage", name, **settings)


def policy(seed: int, arms: int = 3) -> tuple[Tensor, Tensor]:
    """(logits, rewards of the arms)."""
    source = torch.Generator().manual_seed(seed)
    theta = torch.randn(arms, dtype=F64, generator=source).requires_grad_()
    return theta, torch.randn(arms, dtype=F64, generator=source)


def groups(theta: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(all groups of `size` draws [M, G], their probability [M] with its gradient)."""
    draws = torch.tensor(list(itertools.product(range(len(theta)), repeat=size)))
    return draws, theta.log_softmax(0)[draws].sum(1).exp()


def expected_gradient(estimator: Estimator, theta: Tensor, rewards: Tensor, size: int) -> Tensor:
    """E[(1/G) Σ_i A_i ∇lp_i], every group a batch of its own."""
    draws, probability = groups(theta, size)
    found = torch.stack([estimator(rewards[d].unsqueeze(0)).squeeze(0) for d in draws])
    logps = theta.log_softmax(0)[draws]
    weighted = probability.detach() * (found * logps).mean(1)
    return torch.autograd.grad(weighted.sum(), theta)[0]


def true_gradient(value: Callable[[Tensor], Tensor], theta: Tensor, size: int) -> Tensor:
    """∇E[value of a group of `size` draws]; `value` maps draws [M, G] to [M]."""
    draws, probability = groups(theta, size)
    return torch.autograd.grad((probability * value(draws)).sum(), theta)[0]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_outside_baseline_leaves_the_gradient_unbiased(seed: int, size: int) -> None:
    theta, rewards = policy(seed)
    exact = true_gradient(lambda draws: rewards[draws[:, 0]], theta, 1)
    remax, greedy = make("remax"), rewards[theta.argmax()].reshape(1)
    for estimator in (make("raw"), lambda r: remax(r, greedy=greedy)):
        close(expected_gradient(estimator, theta, rewards, size), exact)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_baseline_with_the_own_reward_in_it_shrinks_the_gradient(seed: int, size: int) -> None:
    theta, rewards = policy(seed)
    exact = true_gradient(lambda draws: rewards[draws[:, 0]], theta, 1)
    opo, lengths = make("opo"), torch.ones(1, size)
    for estimator in (
        make("group_center"),
        make("global_center"),  # over a batch of N = G
        lambda r: opo(r, lengths=lengths),
    ):
        close(expected_gradient(estimator, theta, rewards, size), exact * (size - 1) / size)
    # of the moving average, (1 − decay)/N is the own reward
    moving = make("ema_baseline", decay=0.7, start=5.0)
    shrunk = exact * (1 - 0.3 / size)
    close(expected_gradient(moving, theta, rewards, size), shrunk)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.85])
def test_maxrl_truncates_the_log_likelihood(size: int, p: float) -> None:
    """∇ Σ_{k<G} pass@k / k = Σ_{k<G} (1−p)^(k−1) ∇p, which tends to ∇p / p = ∇ log p."""
    theta = torch.tensor([p, 1 - p], dtype=F64).log().requires_grad_()
    right = torch.tensor([1.0, 0.0], dtype=F64)
    of_p = true_gradient(lambda draws: right[draws[:, 0]], theta, 1)
    weight = sum((1 - p) ** (k - 1) for k in range(1, size))
    close(expected_gradient(make("maxrl", eps=0.0), theta, right, size), weight * of_p)


# --- Pass@k ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "k"), [(2, 1), (3, 1), (3, 2), (4, 2), (4, 3), (5, 3)])
@pytest.mark.parametrize("seed", SEEDS)
def test_analytic_pass_at_k_is_the_gradient_of_the_best_of_k(size: int, k: int, seed: int) -> None:
    theta, rewards = policy(seed, arms=3 if size < 5 else 2)
    exact = true_gradient(lambda draws: rewards[draws].amax(1), theta, k)
    estimator = make("pass_at_k", k=k, normalise=False)
    found = expected_gradient(estimator, theta, rewards, size)
    close(found, exact * (size - k) / (size * k))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_best_only_is_the_gradient_of_the_best_of_all(size: int, seed: int) -> None:
    theta, rewards = policy(seed)
    exact = true_gradient(lambda draws: rewards[draws].amax(1), theta, size)
    found = expected_gradient(make("pass_at_k", mode="best_only"), theta, rewards, size)
    close(found, exact / size)


def subset_advantages(rewards: list[float], k: int) -> list[float]:
    """The definition, over every subset."""
    subsets = list(itertools.combinations(range(len(rewards)), k))
    maxima = [max(rewards[i] for i in s) for s in subsets]
    mean = sum(maxima) / len(maxima)
    std = math.sqrt(sum((m - mean) ** 2 for m in maxima) / len(maxima))
    found = []
    for i in range(len(rewards)):
        own = [m for m, s in zip(maxima, subsets, strict=True) if i in s]
        found.append((sum(own) / len(own) - mean) / std if std > 1e-12 else 0.0)
    return found


@pytest.mark.parametrize("size", range(2, 8))
@pytest.mark.parametrize("draws", ["real", "ties"])
def test_analytic_pass_at_k_by_enumeration(size: int, draws: str) -> None:
    source = torch.Generator().manual_seed(size)
    rewards = torch.randn(5, size, dtype=F64, generator=source)
    if draws == "ties":
        rewards = torch.randint(0, 3, (5, size), generator=source).to(F64) - 0.1
    for k in range(1, size + 1):
        expected = torch.tensor([subset_advantages(r, k) for r in rewards.tolist()], dtype=F64)
        close(make("pass_at_k", k=k)(rewards), expected)
        # a member of which nothing is known is in no subset
        unknown = torch.full((5, 1), math.nan, dtype=F64)
        padded = torch.cat([rewards[:, :1], unknown, rewards[:, 1:]], dim=1)
        found = make("pass_at_k", k=k)(padded)
        close(found[:, [0, *range(2, size + 1)]], expected)


@pytest.mark.parametrize(("size", "k"), [(3, 1), (3, 2), (8, 4), (16, 8), (64, 2), (64, 8)])
def test_analytic_pass_at_k_is_the_published_closed_form(size: int, k: int) -> None:
    for wrong in range(1, size):
        right = size - wrong
        rewards = torch.tensor([[1.0] * right + [0.0] * wrong], dtype=F64)
        found = make("pass_at_k", k=k)(rewards)[0]
        failure = math.comb(wrong, k) / math.comb(size, k)  # 1 − R̄
        if wrong < k:  # every subset holds a right one: the published σ is 0
            assert failure == 0
            assert not found.any()
            continue
        std = math.sqrt((1 - failure) * failure)
        given_wrong = math.comb(wrong - 1, k - 1) / math.comb(size - 1, k - 1)
        expected = [failure / std] * right + [(failure - given_wrong) / std] * wrong
        assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_pass_at_1_is_the_zscore() -> None:
    rewards = torch.randn(4, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    close(make("pass_at_k", k=1)(rewards), make("group_zscore", ddof=0, eps=0.0)(rewards))


# --- Identities --------------------------------------------------------------------------------


def drawn(seed: int) -> dict[str, Tensor]:
    """Rewards [3, 4] and completions of 1 to 5 tokens."""
    source = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (3, 4), generator=source)
    probabilities = torch.rand(12, 5, dtype=F64, generator=source)
    return {
        "rewards": torch.randn(3, 4, dtype=F64, generator=source),
        "lengths": lengths,
        "mask": torch.arange(5) < lengths.reshape(-1, 1),
        "logps": probabilities.log(),
        "collision": probabilities.square() + (1 - probabilities).square() / 3,
        "penalty": torch.rand(12, 5, dtype=F64, generator=source),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_opo_s_baseline_has_the_least_weighted_variance(seed: int) -> None:
    x = drawn(seed)
    rewards, lengths = x["rewards"], x["lengths"]
    found = make("opo")(rewards, lengths=lengths)
    close((lengths * found).sum(1), torch.zeros(3, dtype=F64))
    for shift in (-0.01, 0.01):
        moved = (lengths * (found + shift).square()).sum(1)
        assert (moved > (lengths * found.square()).sum(1)).all()
    same = make("opo")(rewards, lengths=torch.full_like(lengths, 7))
    close(same, make("group_center")(rewards))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("baseline", ["none", "group"])
def test_whitened_tokens_have_mean_zero_and_variance_one(
    seed: int, ddof: int, baseline: str
) -> None:
    x = drawn(seed)
    estimator = make("reinforce_pp", ddof=ddof, eps=0.0, baseline=baseline)
    found = estimator(x["rewards"], mask=x["mask"], penalty=x["penalty"])
    tokens = found[x["mask"]]
    assert float(tokens.mean()) == pytest.approx(0, abs=1e-12)
    assert float(tokens.square().sum()) == pytest.approx(len(tokens) - ddof)
    assert not found[~x["mask"]].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_reinforce_pp_of_one_token_completions_is_the_zscore_of_the_batch(seed: int) -> None:
    rewards = drawn(seed)["rewards"]
    settings = {"eps": 0.1, "eps_at": "std"}
    found = make("reinforce_pp", **settings)(rewards, mask=torch.ones(12, 1, dtype=torch.bool))
    whole = make("group_zscore", eps=0.1)(rewards.reshape(1, -1))
    close(found.reshape(1, -1), whole)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("with_kl", [False, True])
def test_optimal_token_baseline_written_out(seed: int, with_kl: bool) -> None:
    x = drawn(seed)
    penalty = x["penalty"] if with_kl else torch.zeros_like(x["penalty"])
    found = make("optimal_token_baseline")(
        x["rewards"],
        **{k: x[k] for k in ("mask", "logps", "collision")},
        penalty=penalty if with_kl else None,
    )
    rewards, lengths = x["rewards"].tolist(), x["lengths"].tolist()
    for p in range(3):
        for t in range(5):
            top = bottom = 0.0
            present = [i for i in range(4) if lengths[p][i] > t]
            for i in present:
                row = 4 * p + i
                weight = sum(
                    1 - 2 * math.exp(x["logps"][row, s]) + float(x["collision"][row, s])
                    for s in range(t + 1)
                )
                top += weight * (rewards[p][i] - float(penalty[row, t]))
                bottom += weight
            baseline = top / (bottom + 1e-8) if len(present) > 1 else 0.0
            for i in range(4):
                expected = rewards[p][i] - float(penalty[4 * p + i, t]) - baseline
                value = float(found[4 * p + i, t])
                assert value == pytest.approx(expected if i in present else 0, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_optimal_token_baseline_of_equal_weights_is_the_mean(seed: int) -> None:
    x = drawn(seed)
    full = torch.ones_like(x["mask"])
    flat = torch.full_like(x["logps"], math.log(0.5))
    found = make("optimal_token_baseline", eps=0.0)(
        x["rewards"], mask=full, logps=flat, collision=flat.exp()
    )
    close(found, make("group_center")(x["rewards"]).reshape(-1, 1).expand(12, 5))


@pytest.mark.parametrize("seed", SEEDS)
def test_gdpo_of_one_part(seed: int) -> None:
    rewards = drawn(seed)["rewards"]
    zscore = make("group_zscore")(rewards)
    close(make("gdpo", batch="none")(rewards), zscore)
    # every group's z-scores sum to 0, so that the batch's step only divides
    close(make("gdpo")(rewards), zscore / (zscore.std() + 1e-4))
    even = make("gdpo", batch="tokens")(rewards, lengths=torch.full((3, 4), 2))
    both = torch.cat([zscore.flatten(), zscore.flatten()])  # two tokens each
    close(even, zscore / (both.std() + 1e-4))


@pytest.mark.parametrize("seed", SEEDS)
def test_loo_zscore_written_out(seed: int) -> None:
    rewards = drawn(seed)["rewards"]
    found = make("loo_zscore")(rewards)
    for group, values in zip(rewards, found, strict=True):
        for i in range(4):
            others = torch.cat([group[:i], group[i + 1 :]])
            expected = (group[i] - others.mean()) / (others.std() + 1e-6)
            close(values[i], expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_gpg_is_centring_where_no_group_is_silent(seed: int) -> None:
    rewards = drawn(seed)["rewards"]
    centred = make("group_center")(rewards)
    close(make("gpg")(rewards), centred)
    silent = torch.cat([rewards, torch.full((6, 4), 0.1, dtype=F64)])
    close(make("gpg")(silent)[:3], 3 * centred)  # nine groups, three of which differ
