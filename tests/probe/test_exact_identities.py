"""Published numbers and proven identities, from the laboratory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grpolab.probe.exact.arms import Arm
from grpolab.probe.exact.flow import ends, fixed_points, follow, reverse_kl_optimum
from grpolab.probe.exact.identities import identities, kl_alone, weight_of_pass_rate
from grpolab.probe.exact.identity_curves import identity_curves, two_tokens
from grpolab.probe.exact.schulman import closed_form, schulman_table
from grpolab.probe.exact.world import World, bandit

# (KL, estimator) → (bias / true, std / true), as published
PUBLISHED = {
    (0.1, "k1"): (0.0, 20.0),
    (0.1, "k2"): (0.0025, 1.4177),
    (0.1, "k3"): (0.0, 1.4166),
    (1.0, "k1"): (0.0, 2.0),
    (1.0, "k2"): (0.25, 1.7321),
    (1.0, "k3"): (0.0, 1.6950),
}
# ground truth of the bandit at β = .5
REVERSE = [0.1887, 0.2111, 0.1923, 0.2336, 0.1743]
FORWARD = [0.1860, 0.1713, 0.1303, 0.1815, 0.3309]


def test_schulman_closed_forms_are_the_published_numbers() -> None:
    for (mu, name), expected in PUBLISHED.items():
        assert closed_form(name, mu) == pytest.approx(expected, abs=5e-5)


def test_schulman_table_is_measured() -> None:
    found = schulman_table(np.random.default_rng(1), samples=1_000_000)
    for row in found.to_dict("records"):
        bias, std = PUBLISHED[(row["mu"], row["estimator"])]
        known = bias if row["quantity"] == "bias" else std
        assert row["theory"] == pytest.approx(known, abs=5e-5)
        assert row["low"] <= known <= row["high"], row
        assert row["high"] - row["low"] < 0.15  # of the KL
    assert found["holds"].all()
    again = schulman_table(np.random.default_rng(1), samples=1_000_000)
    assert again.equals(found)


def test_every_identity_holds() -> None:
    found = identities(seed=3, samples=4000)
    missed = found.loc[~found["holds"], ["identity", "theory", "measured"]]
    assert missed.empty, missed
    assert set(found["section"]) >= {"as a loss", "in the reward", "off-policy", "baseline"}
    # the claims that two gradients differ are of real differences
    apart = found.loc[found["identity"].str.contains("distance from ∇ reverse KL")]
    assert (apart["theory"] > 0.05).all()
    assert len(apart) == 2


def test_every_identity_holds_along_its_axis() -> None:
    found = identity_curves()
    missed = found.loc[~found["holds"], ["panel", "series", "x", "theory", "measured"]]
    assert missed.empty, missed
    counts = found.dropna(subset="measured").groupby("panel").size()
    assert counts.min() >= 4
    assert len(counts) == 13
    # what the claims set apart is apart by far more than the tolerance
    ends = found[(found["x"] == 2.0) & (found["figure"] == "kl_gradients")]
    slope = ends.set_index(["panel", "series"])["theory"]
    assert slope["in the loss", "k3"] - slope["in the loss", "k2"] > 0.05
    assert slope["in the reward", "k3"] < -0.05 < 0.3 < slope["in the reward", "k1"]
    assert slope["off-policy, in the loss", "k3"] - slope["in the loss", "k2"] > 0.3
    first = slope["first of two tokens"]
    assert first["k1 in the reward"] - first["k2 in the loss"] > 0.02


def test_the_sequence_s_slope_is_that_of_autograd() -> None:
    """The closed form of two tokens against the derivative of the enumerated KL."""
    world = two_tokens(0.7)
    table = world.policy.clone().requires_grad_()
    p, q = world.tree.probability(table), world.tree.probability(world.reference)
    (wanted,) = torch.autograd.grad((p * (p / q).log()).sum(), table)
    found = kl_alone(world, "k1", "reward")
    assert found.tolist() == pytest.approx(wanted.flatten().tolist(), abs=1e-12)
    theory = identity_curves().query("panel == 'first of two tokens' and x == 0.75")
    near = theory.set_index("series").loc["k1 in the reward", "theory"]
    assert near == pytest.approx(float(wanted[0, 0]), abs=0.02)


def test_pass_rate_weights_are_the_known_ones() -> None:
    for p, expected in ((0.1, 2.3277), (0.25, 2.0261), (0.5, 1.8557)):
        assert weight_of_pass_rate(8, p) == pytest.approx(expected, abs=5e-5)
    for size, expected in ((2, 1.0), (3, 2**0.5)):  # constant in p
        for p in (0.1, 0.4, 0.9):
            assert weight_of_pass_rate(size, p) == pytest.approx(expected, rel=1e-12)


def test_fixed_points() -> None:
    found = fixed_points(bandit())
    assert found["holds"].all()
    ends_at = {c: f["measured"].tolist() for c, f in found.groupby("course")}
    assert ends_at["k1 in the reward"] == pytest.approx(REVERSE, abs=1e-4)
    assert ends_at["k2 as a loss"] == pytest.approx(REVERSE, abs=1e-4)
    assert ends_at["k3 as a loss"] == pytest.approx(FORWARD, abs=1e-4)
    assert ends_at["k1 as a loss"] == pytest.approx([0, 0, 0, 0, 1], abs=1e-3)


def end(world: World, arm: Arm, beta: float) -> list[float]:
    """The probabilities that an arm with groups of four ends at."""
    *_, last = follow(world, arm, beta, steps=120, rate=0.4, group_size=4)
    found: list[float] = world.tree.probability(last).tolist()
    return found


def test_centring_makes_beta_larger_in_the_loss_and_not_in_the_reward() -> None:
    """E of the centred policy gradient is (G−1)/G of it, and the KL in the loss is not shrunk."""
    world, beta, size = bandit(), 0.5, 4
    loss = end(world, Arm(advantage="group_center", kl="k2"), beta)
    assert loss == pytest.approx(
        reverse_kl_optimum(world, beta * size / (size - 1)).tolist(), abs=1e-6
    )
    reward = end(world, Arm(advantage="group_center", kl="k1", placement="reward"), beta)
    assert reward == pytest.approx(reverse_kl_optimum(world, beta).tolist(), abs=1e-6)


def test_a_zscore_moves_the_optimum_of_a_kl_in_the_loss() -> None:
    arms = [Arm("group_zscore", kl="k2"), Arm("rloo", kl="k2")]
    zscore, rloo = ends(bandit(), arms, [0.5], steps=100, rate=0.4).to_dict("records")
    assert rloo["distance"] < 1e-6
    assert zscore["distance"] > 0.2
    assert zscore["kl"] > 3 * rloo["best_kl"]
