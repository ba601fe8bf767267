"""On the sampler's support in training: ratios and metrics there, KL and reference on the whole."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from grpolab.component import ConfigError
from grpolab.policy.policy import Policy
from grpolab.rollouts import Rollouts
from grpolab.sampling.base import Draw
from grpolab.training.draw import sample_rollouts
from grpolab.training.update import Updater

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

GROUP, TEMPERATURE, TOP_K, BETA = 2, 0.8, 5, 0.3
PROMPTS, LENGTHS = [3, 9, 1], [4, 0, 12, 1, 7, 2]
SETTINGS = (f"sampler.temperature={TEMPERATURE}", f"sampler.top_k={TOP_K}")
MATCHED = (*SETTINGS, "sampler.match_temperature=true", "sampler.match_support=true")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return lab.random_model(tmp_path_factory.mktemp("llama"), "Llama")


def updater_of(folder: str, *overrides: str, budget: int = 8192) -> Updater:
    """In float64 with plain gradient descent at lr 1: the weights' change is the gradient. The
    reference, if any, differs from the policy."""
    run = lab.run_of(
        f"model.name={folder}",
        f"sampler.group_size={GROUP}",
        "sampler.max_new_tokens=16",
        "aggregation=token_mean",
        *overrides,
    )
    hardware = replace(run.hardware, tokens_per_microbatch=budget)
    optimizer = replace(run.optimizer, lr=1.0, max_grad_norm=math.inf)
    run = replace(run, hardware=hardware, optimizer=optimizer)
    updater = Updater(run, lab.double(lab.policy_of(run)))
    updater.optimizer = torch.optim.SGD(updater.parameters.values(), lr=1.0)  # type: ignore[assignment]
    if updater.forward.reference is not None:
        stray(updater.forward.reference, 0.05, seed=3)
    return updater


def stray(model: Any, scale: float, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * torch.randn(p.shape, generator=source, dtype=p.dtype)


def step(updater: Updater, rollouts: Rollouts) -> tuple[Tensor, dict[str, float]]:
    def flat() -> Tensor:
        return torch.cat([p.detach().flatten() for p in updater.parameters.values()]).clone()

    before = flat()
    metrics = updater.update(rollouts, 0, BETA)
    return before - flat(), metrics


def logps_of(model: Any, rollouts: Rollouts, row: int) -> tuple[Tensor, Tensor]:
    """[t] of a row's tokens over the tempered top five and themselves, and over all."""
    prompt, completion = lab.sequence(rollouts, row)
    logits = lab.plain_logits(model, prompt, completion) / TEMPERATURE
    tokens = torch.tensor(completion, dtype=torch.long).unsqueeze(1)
    least = logits.detach().sort(dim=-1, descending=True).values[:, TOP_K - 1 : TOP_K]
    kept = (logits >= least).scatter(1, tokens, True)
    both = (logits.masked_fill(~kept, -torch.inf), logits)
    on_support, whole = (z.log_softmax(-1).gather(1, tokens).squeeze(1) for z in both)
    return on_support, whole


def naive_gradient(updater: Updater, rollouts: Rollouts, old: list[Tensor]) -> Tensor:
    """PPO's clip on the support plus β·k3 on the whole vocabulary, token by token."""
    model, reference = updater.policy.model, updater.forward.reference
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(rollouts)):
        logps, whole = logps_of(model, rollouts, row)
        with torch.no_grad():
            _, ref = logps_of(reference, rollouts, row)
        advantage = rollouts.advantage_rows()[row]
        ratio = (logps - old[row]).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        d = whole - ref
        total = total + (-surrogate + BETA * ((-d).exp() + d - 1)).sum()
    loss = total / rollouts.mask.sum()
    found = torch.autograd.grad(loss, list(updater.parameters.values()))
    return torch.cat([g.flatten() for g in found])


def old_of(policy: Policy, rollouts: Rollouts) -> list[Tensor]:
    """Of a policy that has strayed since, on its own support."""
    model = copy.deepcopy(policy.model)
    stray(model, 0.02, seed=8)
    with torch.no_grad():
        return [logps_of(model, rollouts, row)[0] for row in range(len(rollouts))]


def padded(rows: list[Tensor], mask: Tensor) -> Tensor:
    found = torch.full(mask.shape, math.nan, dtype=torch.float64)
    for row, values in enumerate(rows):
        found[row, : len(values)] = values
    return found


@pytest.mark.parametrize(("budget", "width"), [(8192, 12), (1, 12), (40, 20)])
def test_update_is_the_naive_one(folder: str, budget: int, width: int) -> None:
    updater = updater_of(folder, "kl=k3", "clip=ppo", *MATCHED, budget=budget)
    rollouts = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=GROUP, width=width)
    old = old_of(updater.policy, rollouts)
    rollouts.old_logps = padded(old, rollouts.mask)
    expected = naive_gradient(updater, rollouts, old)
    found, _ = step(updater, rollouts)
    assert float((found - expected).norm() / expected.norm()) < 1e-9


def test_kl_metrics_are_of_the_whole_vocabulary(folder: str) -> None:
    updater = updater_of(folder, "kl=k3", *MATCHED)
    rollouts = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=GROUP)
    differences = []
    with torch.no_grad():
        for row in range(len(rollouts)):
            _, whole = logps_of(updater.policy.model, rollouts, row)
            _, ref = logps_of(updater.forward.reference, rollouts, row)
            differences.append(whole - ref)
    d = torch.cat(differences)
    _, metrics = step(updater, rollouts)
    assert metrics["kl/ref_k1"] == pytest.approx(float(d.mean()), rel=1e-5)
    assert metrics["kl/ref_k3"] == pytest.approx(float(((-d).exp() + d - 1).mean()), rel=1e-5)


@pytest.mark.parametrize("kl", ["full", "k1"])
def test_before_anything_is_learnt_the_kl_is_zero(folder: str, kl: str) -> None:
    run = lab.run_of(f"model.name={folder}", "sampler.group_size=2", f"kl={kl}", *MATCHED)
    updater = Updater(run, lab.policy_of(run))
    rollouts = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=GROUP, dtype=torch.float32)
    metrics = updater.update(rollouts, 0, BETA)
    assert metrics["loss/kl"] == pytest.approx(0.0, abs=1e-7)
    assert metrics["kl/ref_k3"] == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("placement", ["reward", "reward_to_go"])
def test_kl_in_the_reward_is_of_the_whole_vocabulary(folder: str, placement: str) -> None:
    updater = updater_of(folder, "kl=k1", f"kl.placement={placement}", *MATCHED)
    rollouts = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=GROUP)
    updater.score_logps(rollouts, BETA)
    assert rollouts.old_logps is not None
    assert rollouts.ref_logps is not None
    assert rollouts.kl_penalty is not None
    with torch.no_grad():
        for row in range(len(rollouts)):
            n = int(rollouts.mask[row].sum())
            logps, whole = logps_of(updater.policy.model, rollouts, row)
            _, ref = logps_of(updater.forward.reference, rollouts, row)
            torch.testing.assert_close(rollouts.old_logps[row, :n], logps)
            torch.testing.assert_close(rollouts.ref_logps[row, :n], ref)
            torch.testing.assert_close(rollouts.kl_penalty[row, :n], BETA * (whole - ref))


@pytest.mark.parametrize("sampler", ["static", "hf", "continuous"])
@pytest.mark.parametrize(
    "flags",
    [(), ("match_temperature",), ("match_support",), ("match_temperature", "match_support")],
    ids=str,
)
def test_sampler_and_trainer_are_compared_like_with_like(
    folder: str, sampler: str, flags: tuple[str, ...]
) -> None:
    overrides = [*SETTINGS, f"sampler={sampler}", *(f"sampler.{f}=true" for f in flags)]
    run = lab.run_of(
        f"model.name={folder}", f"sampler.group_size={GROUP}", "correction=truncate", *overrides
    )
    updater = Updater(run, lab.policy_of(run))
    prompts = updater.policy.encoder.encode(["47+85=", "3+4="])
    rollouts = sample_rollouts(run.sampler, updater.policy, prompts, Draw(0, (0, 0), GROUP))
    rollouts.rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    rollouts.advantages = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    metrics = updater.update(rollouts, 0, 0.0)
    assert metrics["kl/sampler_k3"] == pytest.approx(0.0, abs=1e-6)
    # What `correction` weighs is the trainer against the distribution that was sampled from: the
    # same with both flags alone
    if len(flags) == 2:
        assert metrics["correction/mean"] == pytest.approx(1.0, abs=1e-4)
        assert metrics["correction/std"] < 1e-4
    else:
        assert metrics["correction/std"] > 0.05


def test_the_old_policy_as_reference_is_refused_on_a_support() -> None:
    refused = ("reference=old", "kl=k3", *MATCHED)
    with pytest.raises(ConfigError, match=r"reference: old given with sampler\.match_support"):
        lab.run_of(*refused)
    for allowed in ("sampler.match_support=false", "kl=none", "reference=frozen"):
        lab.run_of(*refused, allowed)
    lab.run_of(*refused, "sampler.top_k=0")
