"""Advantages in a run: what is refused beside them, what reaches them, and that each trains."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from grpolab.component import ConfigError, component, registry
from grpolab.policy.policy import Encoder
from grpolab.rollouts import Rollouts
from grpolab.tracking.folder import RunFolder
from grpolab.training.loop import Trainer
from grpolab.training.update import Updater

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

ADVANTAGES = sorted(registry("advantage"))
MIXTURE = (
    "reward=mixture",
    "reward.parts={right: {name: task}, digits: {name: format, pattern: '[0-9]+', weight: 0.5}}",
)
TO_GO = ("kl=k1", "kl.placement=reward_to_go")
SUMMED = ("kl=k1", "kl.placement=reward")


# --- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("advantage=rloo", "sampler.group_size=1"),
            "sampler.group_size: 1 given with advantage=rloo, which compares within a group; "
            "allowed: at least 2.",
        ),
        (
            ("advantage=reinforce_pp", "advantage.baseline=group", "sampler.group_size=1"),
            "sampler.group_size: 1 given with advantage=reinforce_pp, which compares",
        ),
        (
            ("advantage=pass_at_k", "advantage.k=8"),
            "advantage.k: 8 given with 8 trained completions a prompt, whose subsets of k all have "
            "the same best member; allowed: less than their number.",
        ),
        (
            ("advantage=pass_at_k", "selection=max_variance", "selection.keep=4"),
            "advantage.k: 4 given with 4 trained completions a prompt",
        ),
        (
            ("advantage=gdpo", *MIXTURE, *SUMMED),
            "kl.placement: reward given with advantage=gdpo and a mixture, whose parts the KL is "
            "none of; allowed: loss or reward_to_go.",
        ),
        (
            ("advantage=reinforce_pp", "clip=gspo"),
            "advantage: reinforce_pp given with clip=gspo, which has one loss for a whole sequence",
        ),
        (
            ("advantage=optimal_token_baseline", "clip=gspo"),
            "advantage: optimal_token_baseline given with clip=gspo",
        ),
        (("clip=gspo", *TO_GO), "kl.placement: reward_to_go given with clip=gspo, which has one"),
    ],
)
def test_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lab.run_of(*overrides)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "overrides",
    [
        ("advantage=reinforce_pp", "sampler.group_size=1"),
        ("advantage=remax", "sampler.group_size=1"),
        ("advantage=pass_at_k", "advantage.k=7"),
        ("advantage=pass_at_k", "advantage.mode=best_only", "advantage.k=9"),
        ("advantage=gdpo", *MIXTURE, *TO_GO),
        ("advantage=gdpo", *MIXTURE, "kl=k1"),
        ("advantage=gdpo", *SUMMED),
        ("advantage=group_zscore", "clip=gspo", *SUMMED),
        ("clip=ppo", *TO_GO),
    ],
)
def test_allowed(overrides: tuple[str, ...]) -> None:
    lab.run_of(*overrides)


@pytest.mark.parametrize("clip", sorted(registry("clip")))
def test_token_advantages_go_with_losses_of_tokens(clip: str) -> None:
    kind: Any = registry("clip")[clip]
    run = lab.run_of("advantage=reinforce_pp")
    if kind.level == "sequence" and not kind.token_wise:
        with pytest.raises(ConfigError, match="one loss for a whole sequence"):
            lab.run_of("advantage=reinforce_pp", f"clip={clip}")
        return
    lab.run_of("advantage=reinforce_pp", f"clip={clip}")
    # and indeed: a token's loss has its own advantage and no other token's
    logps = torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64)
    own = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss = component("clip", clip)(logps, logps, own, mask, rewards=own[:, :1]).loss
    changed = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    other = component("clip", clip)(logps, logps, changed, mask, rewards=own[:, :1]).loss
    assert run.advantage.token_level
    assert torch.equal(loss[:, :2], other[:, :2])


# --- What reaches an estimator -----------------------------------------------------------------


def scored_rollouts(rewards: list[list[float]]) -> Rollouts:
    rollouts = lab.made_up_rollouts([3, 5], [4, 1, 0, 2, 3, 4], group_size=3)
    rollouts.rewards = torch.tensor(rewards, dtype=torch.float64)
    return rollouts


REWARDS = [[1.0, 0.0, 0.0], [1.0, math.nan, 0.5]]


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("placement", ["loss", "reward", "reward_to_go"])
def test_every_estimator_gets_what_it_reads(name: str, placement: str) -> None:
    k = ("advantage.k=2",) if name == "pass_at_k" else ()
    run = lab.run_of(
        f"advantage={name}", *k, "kl=k1", f"kl.placement={placement}", "sampler.group_size=3"
    )
    rollouts = scored_rollouts(REWARDS)
    rollouts.greedy_rewards = torch.tensor([0.5, 0.25], dtype=torch.float64)
    updater = Updater(run, lab.policy_of(run))
    updater.score_logps(rollouts, beta=0.5)
    if placement != "loss":
        source = torch.Generator().manual_seed(0)
        noise = 0.1 * torch.rand(rollouts.mask.shape, generator=source, dtype=torch.float64)
        rollouts.kl_penalty = torch.where(rollouts.mask, noise, 0.0)
    found = updater.advantages(rollouts, None)
    by_token = run.advantage.token_level or placement == "reward_to_go"
    assert found.shape == (rollouts.mask.shape if by_token else (2, 3))
    rollouts.advantages = found
    assert found.isfinite().all()
    assert found.any()
    assert not found.reshape(2, 3, -1)[1, 1].any()
    before = [p.detach().clone() for p in updater.parameters.values()]
    metrics = updater.update(rollouts, 0, 0.5)
    assert math.isfinite(metrics["optim/grad_norm"])
    after = updater.parameters.values()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_mixture_reaches_gdpo() -> None:
    run = lab.run_of("advantage=gdpo", "advantage.batch=none", *MIXTURE, "sampler.group_size=3")
    rollouts = scored_rollouts([[1.0, 0.5, 0.5]] * 2)
    parts = {"right": [[1.0, 0.0, 0.0]] * 2, "digits": [[0.0, 1.0, 1.0]] * 2}
    rollouts.reward_parts = {k: torch.tensor(v, dtype=torch.float64) for k, v in parts.items()}
    found = Updater(run, lab.policy_of(run)).advantages(rollouts, None)
    # z of (1, 0, 0): deviations ⅔ −⅓ −⅓, variance (4/9 + 2/9)/2 = ⅓; digits is its opposite, at ½
    size = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    expected = [2 / 3 * size, -size / 3, -size / 3] * 2
    assert found.flatten().tolist() == pytest.approx(expected)


def test_the_greedy_completion_is_sampled_for_remax_alone(tmp_path: Path) -> None:
    for name, wanted in (("remax", True), ("rloo", False)):
        trainer = trainer_of(tmp_path / name, f"advantage={name}")
        rollouts = trainer.collector.collect(0).rollouts
        assert (rollouts.greedy_rewards is not None) is wanted


def trainer_of(folder: Path, *overrides: str) -> Trainer:
    run = lab.run_of(
        "steps=2", "prompts_per_step=2", "sampler.group_size=3", "sampler.max_new_tokens=6",
        "eval.prompts=2", "eval.samples=0", *overrides,
    )  # fmt: skip
    return Trainer(run, Encoder(run.model), run.task.load(), RunFolder(folder))


@pytest.mark.parametrize("placement", ["loss", "reward"])
def test_the_moving_average_is_of_the_rewards_that_were_centred(
    tmp_path: Path, placement: str
) -> None:
    trainer = trainer_of(tmp_path, "advantage=ema_baseline", "kl=k1", f"kl.placement={placement}")
    updater: Any = trainer.updater
    rewards = scored_rollouts(REWARDS)

    def score(rollouts: Rollouts, beta: float) -> None:
        if placement == "reward":  # 1 off every reward
            rollouts.kl_penalty = torch.zeros(6, 4, dtype=torch.float64)
            rollouts.kl_penalty[:, 0] = 1.0

    updater.score_logps = score
    updater.update = lambda *_: {}
    mean = 2.5 / 5 - (1.0 if placement == "reward" else 0.0)
    trainer._learn(replace(rewards))
    assert trainer.baseline == pytest.approx(0.05 * mean)
    rollouts = replace(rewards)
    trainer._learn(rollouts)
    expected = 0.95 * 0.05 * mean + 0.05 * mean
    assert trainer.baseline == pytest.approx(expected)
    assert rollouts.advantages is not None
    reached = 1.0 - (1.0 if placement == "reward" else 0.0)
    assert float(rollouts.advantages[0, 0]) == pytest.approx(reached - expected)
