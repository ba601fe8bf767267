"""The laboratory's expectation is that of brute force: every ordered batch, one backward each."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from grpolab.component import ConfigError, component
from grpolab.objective.loss import Objective
from grpolab.probe.exact.arms import FACTORS, Arm, choices, chosen, one_factor, possible, product
from grpolab.probe.exact.batches import all_batches, count_batches, members
from grpolab.probe.exact.bias import Budget, bias_table, measure
from grpolab.probe.exact.gradients import Bench
from grpolab.probe.exact.moments import QUANTITIES
from grpolab.probe.exact.world import World, bandit, token_tree

BETA, SIZE = 0.3, 2
WORLDS = {
    "bandit": bandit(3, seed=1).stale(0.7),
    "two prompts": bandit(2, prompts=2, seed=2, rewards=[0.2, 1.0]).stale(0.7),
    "tree": token_tree(2, 2, ends=True, seed=3).stale(0.7),
    "another sampler": token_tree(2, 2, ends=True, seed=3).stale(0.4).mismatched(0.6, seed=5),
}
WHOLE = {"level": "sequence_sum", "cap": 1.1}
ARMS = [
    Arm(),
    Arm("group_zscore", "ppo", "k3", "loss", "seq_mean_token_mean"),
    Arm("batch_std", "gspo", "k1", "reward", "token_mean"),
    Arm("reinforce_pp", "bapo", "k2", "reward_to_go", "prompt_mean"),
    Arm("optimal_token_baseline", "fipo", "full", "loss", "token_mean"),
    Arm("remax", "topr", "sequence_k2", "loss", "seq_mean_token_sum_norm"),
    Arm("gpg", "vespo", "weighted_k3", "loss", "token_mean_micro"),
    Arm("group_center", "cispo", "k1", "loss", "token_mean", "truncate", {"correction": WHOLE}),
    Arm("rloo", "none", "none", "loss", "seq_mean_token_sum", "mask"),
]


def brute(world: World, arm: Arm) -> tuple[Tensor, float]:
    """(E g, E‖g‖²) over every ordered batch."""
    tree, mean, square = world.tree, torch.zeros(world.policy.numel(), dtype=torch.float64), 0.0
    own = [list(itertools.product(m, repeat=SIZE)) for m in members(tree)]
    for groups in itertools.product(*own):
        rows = torch.tensor(sum(groups, ()))
        drawn = world.old if world.sampler is None else world.sampler
        share = float(tree.probability(drawn)[rows].prod())
        g = -one_gradient(world, arm, rows)
        mean, square = mean + share * g, square + share * float(g @ g)
    return mean, square


def one_gradient(world: World, arm: Arm, rows: Tensor) -> Tensor:
    """The gradient of one batch's loss, with every step written as in a training loop."""
    tree = world.tree
    settings = {} if arm.kl == "none" else {"placement": arm.placement}
    kl = component("kl", arm.kl, **settings)
    old, ref, mask = tree.logps(world.old)[rows], tree.logps(world.reference)[rows], tree.mask[rows]
    number = BETA * kl(
        old,
        ref,
        mask,
        logits=tree.logits(world.old)[rows],
        ref_logits=tree.logits(world.reference)[rows],
    )
    rewards, penalty = world.rewards[rows], None
    if arm.placement == "reward":
        rewards = rewards - number.sum(dim=1)
    if arm.placement == "reward_to_go":
        later = [number[:, t:].sum(dim=1) for t in range(tree.limit)]
        penalty = torch.where(mask, torch.stack(later, dim=1), 0.0)
    collision = world.old.softmax(-1).square().sum(-1)[tree.place[rows]]
    advantages = component("advantage", arm.advantage)(
        rewards.reshape(-1, SIZE),
        lengths=mask.sum(dim=1).reshape(-1, SIZE),
        mask=mask,
        penalty=penalty,
        greedy=torch.stack([world.rewards[greedy(world, p)] for p in range(tree.prompts)]),
        logps=old,
        collision=collision,
    ).reshape(len(rows), -1)
    table = world.policy.clone().requires_grad_()
    correction = component("correction", arm.correction, **arm.settings.get("correction", {}))
    losses = Objective(component("clip", arm.clip), kl, correction)(
        tree.logps(table)[rows],
        old,
        advantages,
        mask,
        beta=BETA,
        ref_logps=ref,
        logits=tree.logits(table)[rows],
        ref_logits=tree.logits(world.reference)[rows],
        rewards=world.rewards[rows].unsqueeze(1),
        sampler_logps=None if world.sampler is None else tree.logps(world.sampler)[rows],
    )
    loss = component("aggregation", arm.aggregation)(
        losses.total, mask, group_size=SIZE, max_length=tree.limit
    )
    return torch.autograd.grad(loss, table, materialize_grads=True)[0].flatten()


def greedy(world: World, prompt: int) -> int:
    """The completion of the likeliest token at each state, walked step by step."""
    tree, left = world.tree, members(world.tree)[prompt]
    for t in range(tree.limit):
        going = [i for i in left if bool(tree.mask[i, t])]
        if not going:
            break
        best = int(world.old[tree.place[going[0], t]].argmax())
        left = [i for i in going if int(tree.ids[i, t]) == best]
    (only,) = left
    return only


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
@pytest.mark.parametrize("arm", ARMS, ids=lambda a: a.label)
def test_expectation_is_brute_force(world: World, arm: Arm) -> None:
    mean, square = brute(world, arm)
    (row,) = measure(world, [arm], SIZE, BETA, Budget(), 0)
    truth = world.true_gradient(BETA if arm.kl != "none" else 0.0)
    assert row["exact"]
    assert row["bias"] == pytest.approx(float((mean - truth).norm()), rel=1e-9, abs=1e-12)
    assert row["mean_norm"] == pytest.approx(float(mean.norm()), rel=1e-9, abs=1e-12)
    variance = square - float(mean @ mean)
    assert row["variance"] == pytest.approx(variance, rel=1e-9, abs=1e-12)
    mse = square - 2 * float(mean @ truth) + float(truth @ truth)
    assert row["mse"] == pytest.approx(mse, rel=1e-9, abs=1e-12)
    assert row["mse"] == pytest.approx(row["bias"] ** 2 + row["variance"], rel=1e-9, abs=1e-12)


def test_the_true_gradient_is_that_of_the_sum() -> None:
    world = WORLDS["bandit"]
    p, q = world.policy.softmax(-1)[0], world.reference.softmax(-1)[0]
    value = world.rewards - BETA * (p / q).log()
    exact = p * (value - (p * value).sum())  # Σ_a p_a v_a ∇ln p_a; the KL's own log adds nothing
    assert world.true_gradient(BETA).tolist() == pytest.approx(exact.tolist(), rel=1e-12)


def test_multisets_have_all_the_probability() -> None:
    for world in WORLDS.values():
        batches = all_batches(world.tree, world.old, 3)
        assert float(batches.weights.sum()) == pytest.approx(1.0, abs=1e-12)
        assert len(batches.rows) == count_batches(world.tree, 3)


def frame(**given: Any) -> pd.DataFrame:
    arms = [Arm(), Arm("group_zscore"), Arm(kl="k3")]
    return bias_table(bandit(3, seed=1), arms, group_sizes=[3], staleness=[0.5], **given)


def test_samples_agree_with_the_sum_and_with_themselves() -> None:
    exact = frame()
    budget = Budget(enumerate=0, samples=20_000, seed=3)
    sampled, again = frame(budget=budget), frame(budget=budget)
    pd.testing.assert_frame_equal(sampled, again)
    assert exact["exact"].all()
    assert not sampled["exact"].any()
    for name in QUANTITIES:
        assert (sampled[f"{name}_low"] <= exact[name] + 1e-12).all(), name
        assert (exact[name] <= sampled[f"{name}_high"] + 1e-12).all(), name
        assert (exact[f"{name}_low"] == exact[f"{name}_high"]).all(), name


def test_intervals_cover() -> None:
    """95 % at least: the ball around a mean is wider than any one of its shadows."""
    exact = frame()
    hits = dict.fromkeys(("bias", "cosine", "mse"), 0)
    for seed in range(60):
        found = frame(budget=Budget(enumerate=0, samples=400, seed=seed))
        for name in hits:
            low, high = found[f"{name}_low"], found[f"{name}_high"]
            hits[name] += int(((low <= exact[name]) & (exact[name] <= high)).sum())
    for name, count in hits.items():
        assert count >= 0.92 * 180, (name, count)  # .95 less two standard errors of 180 tries


def test_what_cannot_be_is_left_out_with_a_reason() -> None:
    factors = {f: choices(f) for f in FACTORS}
    kept, refused = possible(product(factors | {"advantage": ["rloo"], "clip": ["none"]}, {}), 4)
    assert all("placement" in line for line in refused)
    assert {a.kl for a in kept} == set(choices("kl"))
    kept, refused = possible(one_factor({"advantage": ["raw", "rloo"]}, {}), 1)
    assert [a.advantage for a in kept] == ["raw"]
    assert "group_size: 1 given with advantage=rloo" in refused[0]
    with pytest.raises(ConfigError, match=r"clip: 'ppoo' given; allowed: all, .*did you mean ppo"):
        chosen("clip", ["ppoo"])


@pytest.mark.parametrize("clip", ["clip_cov", "kl_cov"])
def test_lots_are_summed_over(clip: str) -> None:
    """One fixed draw over all orders is every order of the lots over every group."""
    world = bandit(3, seed=1).stale(0.1)
    given = {"clip": {"lo": 1e-3, "share": 0.4}}  # so that there are several to choose from
    arm = Arm("group_zscore", clip, settings=given)
    (row,) = measure(world, [arm], 3, BETA, Budget(), 0)
    batches = all_batches(world.tree, world.drawn_from, 3)
    mean, square = torch.zeros(3, dtype=torch.float64), 0.0
    found = []
    for order in itertools.permutations([0.1, 0.2, 0.3]):
        bench = Bench(world, batches, BETA)
        bench.noise = torch.tensor(order).reshape(1, 3, 1).expand(len(batches.rows), -1, -1)
        gradients = bench.gradients(arm)
        found.append(batches.weights @ gradients)
        mean += found[-1] / 6
        square += float(batches.weights @ gradients.square().sum(dim=1)) / 6
    assert row["exact"]
    assert row["batches"] == 3**3
    assert row["mean_norm"] == pytest.approx(float(mean.norm()), rel=1e-9)
    assert row["variance"] == pytest.approx(square - float(mean @ mean), rel=1e-9)
    if clip == "clip_cov":  # its lots decide something here: one draw is not the whole
        assert max(float((one - mean).norm()) for one in found) > 1e-3 * float(mean.norm())


def test_lots_of_longer_completions_are_sampled() -> None:
    (row,) = measure(WORLDS["tree"], [Arm(clip="clip_cov")], 2, BETA, Budget(samples=50), 0)
    assert not row["exact"]
