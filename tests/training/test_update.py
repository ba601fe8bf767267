"""The update: exact under any micro-batches, equal to GRPO written out naively, safe from NaN."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from grpolab.component import component, registry
from grpolab.config import Run
from grpolab.policy.policy import Policy
from grpolab.rollouts import Rollouts
from grpolab.training.optimizer import lr_at
from grpolab.training.update import TrainingFailed, Updater

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

PROMPTS, LENGTHS = [3, 9, 1, 5], [4, 0, 12, 1, 7, 2, 5, 12]
GROUP = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return lab.random_model(tmp_path_factory.mktemp("llama"), "Llama")


def run_with(
    folder: str, *overrides: str, budget: int = 8192, lr: float = 1.0, **parts: Any
) -> Run:
    run = lab.run_of(
        f"model.name={folder}",
        f"sampler.group_size={GROUP}",
        "sampler.max_new_tokens=16",
        f"prompts_per_step={len(PROMPTS)}",
        *overrides,
    )
    hardware = replace(run.hardware, tokens_per_microbatch=budget)
    optimizer = replace(run.optimizer, lr=lr, max_grad_norm=math.inf)
    return replace(run, **{"hardware": hardware, "optimizer": optimizer, **parts})


def rollouts_like(**settings: Any) -> Rollouts:
    return lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=GROUP, **settings)


def stray(model: Any, scale: float = 0.05, seed: int = 3) -> None:
    """Moves a model's weights a little, the same way every time."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * torch.randn(p.shape, generator=source, dtype=p.dtype)


def exact_updater(run: Run) -> Updater:
    """In float64 with plain gradient descent at lr 1, so that the weights' change is the
    gradient; the reference model, if any, differs from the policy."""
    updater = Updater(run, lab.double(lab.policy_of(run)))
    updater.optimizer = torch.optim.SGD(updater.parameters.values(), lr=1.0)  # type: ignore[assignment]
    if updater.forward.reference is not None:
        stray(updater.forward.reference)
    return updater


def flat(parameters: dict[str, torch.nn.Parameter]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters.values()]).clone()


def old_logps(policy: Policy, rollouts: Rollouts) -> Tensor:
    """Log-probs [N, T] of a policy that has strayed since, computed sequence by sequence."""
    model = copy.deepcopy(policy.model)
    stray(model, 0.02, seed=8)
    old = torch.full(rollouts.mask.shape, math.nan, dtype=torch.float64)
    with torch.no_grad():
        for row in range(len(rollouts)):
            logps = lab.plain_logps(model, *lab.sequence(rollouts, row))
            old[row, : len(logps)] = logps
    return old


def step(
    updater: Updater, rollouts: Rollouts, beta: float = 0.1
) -> tuple[Tensor, dict[str, float]]:
    """(gradient, metrics) of one update."""
    before = flat(updater.parameters)
    metrics = updater.update(rollouts, 0, beta)
    return before - flat(updater.parameters), metrics


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# -- micro-batches and padding -----------------------------------------------------------------


@pytest.mark.parametrize("clip", sorted(registry("clip")))
@pytest.mark.parametrize("aggregation", sorted(registry("aggregation")))
def test_micro_batches_and_padding_change_nothing(folder: str, clip: str, aggregation: str) -> None:
    parts = {"clip": component("clip", clip), "aggregation": component("aggregation", aggregation)}
    found = []
    for budget, width, prompt_width in ((8192, 12, 9), (1, 12, 9), (40, 20, 30), (55, 12, 9)):
        run = run_with(folder, "kl=k3", budget=budget, **parts)
        updater = exact_updater(run)
        rollouts = rollouts_like(width=width, prompt_width=prompt_width)
        rollouts.old_logps = old_logps(updater.policy, rollouts)
        found.append(step(updater, rollouts))
    gradient, metrics = found[0]
    assert float(gradient.norm()) > 1e-3
    for other, others in found[1:]:
        assert gap(other, gradient) < 1e-10
        for name, value in metrics.items():
            assert others[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_micro_batches_hold_the_budget_and_every_row_once(folder: str, engine: str) -> None:
    rollouts = rollouts_like()
    run = run_with(folder, f"hardware.engine={engine}")
    updater = Updater(run, lab.policy_of(run))
    for budget in (1, 20, 33, 64, 1000):
        updater.forward.budget = budget
        parts = list(updater.forward.microbatches(rollouts, torch.arange(len(rollouts))))
        rows = torch.cat([r for r, _ in parts])
        assert sorted(rows.tolist()) == list(range(len(rollouts)))
        for chosen, width in parts:
            assert len(chosen) == 1 or size(rollouts, chosen.tolist(), engine) <= budget
            assert width == max(1, int(rollouts.lengths[chosen].max()))


def size(rollouts: Rollouts, rows: list[int], engine: str) -> int:
    """Tokens that a micro-batch runs: packed, with each prompt once and no last tokens, or
    padded."""
    prompts: list[int] = rollouts.prompt_lengths.tolist()
    lengths: list[int] = rollouts.lengths.tolist()
    if engine == "plain":
        return len(rows) * max(prompts[r] + lengths[r] for r in rows)
    groups = {r // GROUP: prompts[r] for r in rows}
    return sum(groups.values()) + sum(max(0, lengths[r] - 1) for r in rows)


def test_token_mean_is_global_and_not_the_mean_of_micro_batches(folder: str) -> None:
    updater = exact_updater(run_with(folder, "clip=reinforce", budget=1))
    rollouts = rollouts_like()
    _, metrics = step(updater, rollouts)
    policy = lab.double(lab.policy_of(updater.run))
    total = 0.0
    for row in range(len(rollouts)):
        logps = lab.plain_logps(policy.model, *lab.sequence(rollouts, row)).detach()
        total -= float(logps.sum() * rollouts.advantage_rows()[row])
    assert metrics["loss/total"] == pytest.approx(total / sum(LENGTHS), rel=1e-5)


# -- against GRPO written out ------------------------------------------------------------------


def naive_grpo(
    model: Any, reference: Any, rollouts: Rollouts, old: Tensor, rewards: Tensor, beta: float
) -> Tensor:
    """mean_i 1/|o_i| Σ_t −min(rA, clip(r, .8, 1.2)A) + β(e^{q−p} − (q−p) − 1)."""
    losses = []
    for row in range(len(rollouts)):
        group = rewards[row // GROUP]
        advantage = (rewards.flatten()[row] - group.mean()) / (group.std() + 1e-4)
        prompt, completion = lab.sequence(rollouts, row)
        if not completion:
            losses.append(torch.zeros((), dtype=torch.float64))
            continue
        logps = lab.plain_logps(model, prompt, completion)
        ref = lab.plain_logps(reference, prompt, completion).detach()
        terms = []
        for t in range(len(completion)):
            ratio = torch.exp(logps[t] - old[row, t])
            bounded = ratio.clamp(0.8, 1.2)
            kl = torch.exp(ref[t] - logps[t]) - (ref[t] - logps[t]) - 1
            terms.append(-torch.minimum(ratio * advantage, bounded * advantage) + beta * kl)
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("budget", [8192, 30])
def test_update_is_grpo_written_out(folder: str, budget: int) -> None:
    run = run_with(folder, "kl=k3", "clip=ppo", "aggregation=seq_mean_token_mean", budget=budget)
    run = replace(run, advantage=component("advantage", "group_zscore", eps=1e-4))
    updater = exact_updater(run)
    rollouts = rollouts_like()
    rollouts.old_logps = old_logps(updater.policy, rollouts)
    assert rollouts.rewards is not None
    rollouts.advantages = run.advantage(rollouts.rewards)
    parameters = list(updater.parameters.values())
    loss = naive_grpo(
        updater.policy.model,
        updater.forward.reference,
        rollouts,
        rollouts.old_logps,
        rollouts.rewards,
        0.1,
    )
    naive = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    gradient, metrics = step(updater, rollouts, beta=0.1)
    assert metrics["clip/share"] > 0
    assert metrics["kl/ref_k3"] > 0
    assert gap(gradient, naive) < 1e-10
    assert metrics["loss/total"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert metrics["optim/grad_norm"] == pytest.approx(float(naive.norm()), rel=1e-6)


def test_full_kl_is_the_sum_over_the_vocabulary(folder: str) -> None:
    updater = exact_updater(run_with(folder, "kl=full", "clip=none"))
    rollouts = rollouts_like()
    rollouts.advantages = torch.zeros(len(PROMPTS), GROUP, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(rollouts)):
        sequence = lab.sequence(rollouts, row)
        p = lab.plain_logits(updater.policy.model, *sequence).log_softmax(-1)
        q = lab.plain_logits(updater.forward.reference, *sequence).log_softmax(-1).detach()
        total = total + (p.exp() * (p - q)).sum()
    loss = 0.3 * total / sum(LENGTHS)
    parameters = list(updater.parameters.values())
    naive = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    gradient, metrics = step(updater, rollouts, beta=0.3)
    assert gap(gradient, naive) < 1e-9
    assert metrics["loss/total"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert metrics["loss/kl"] == pytest.approx(float(loss.detach()) / 0.3, rel=1e-5)


# -- one and several updates -------------------------------------------------------------------


def trained(run: Run, *, rescore: bool = True) -> tuple[dict[str, Tensor], dict[str, float]]:
    updater = Updater(run, lab.policy_of(run))
    rollouts = rollouts_like(dtype=torch.float32)
    if rescore:
        updater.score_logps(rollouts, 0.1)
    metrics = updater.update(rollouts, 0, 0.1)
    return {n: p.detach().clone() for n, p in updater.parameters.items()}, metrics


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_with_one_update_the_clip_is_inert(folder: str) -> None:
    clipped, metrics = trained(run_with(folder, "clip=ppo", lr=1e-2))
    free, _ = trained(run_with(folder, "clip=none", lr=1e-2))
    assert identical(clipped, free)
    assert metrics["policy/ratio_mean"] == metrics["policy/ratio_max"] == 1.0
    assert metrics["policy/ratio_std"] == metrics["clip/share"] == metrics["kl/old_k3"] == 0.0
    assert metrics["policy/ess"] == pytest.approx(1.0)


def test_with_several_updates_the_clip_matters(folder: str) -> None:
    clipped, metrics = trained(run_with(folder, "clip=ppo", "updates_per_batch=4", lr=1e-2))
    free, _ = trained(run_with(folder, "clip=none", "updates_per_batch=4", lr=1e-2))
    assert not identical(clipped, free)
    assert metrics["optim/updates"] == 4
    assert metrics["clip/share"] > 0
    assert metrics["kl/old_k3"] > 0


def test_old_log_probs_are_those_of_the_first_forward_pass(folder: str) -> None:
    run = run_with(folder, "clip=ppo", "updates_per_batch=2", "minibatches=2", lr=0.0)
    updater = Updater(run, lab.policy_of(run))
    rollouts = rollouts_like(dtype=torch.float32)
    updater.score_logps(rollouts, 0.0)
    assert rollouts.old_logps is not None
    metrics = updater.update(rollouts, 0, 0.0)
    assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    for row in range(len(rollouts)):
        logps = lab.plain_logps(updater.policy.model, *lab.sequence(rollouts, row)).detach()
        found = rollouts.old_logps[row][rollouts.mask[row]]
        torch.testing.assert_close(found, logps, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("minibatches", "updates"), [(1, 1), (2, 2), (2, 6), (3, 3), (4, 8)])
def test_minibatches_part_the_groups(folder: str, minibatches: int, updates: int) -> None:
    run = run_with(folder, f"minibatches={minibatches}", f"updates_per_batch={updates}")
    updater = Updater(run, lab.policy_of(run))
    parts = [p.tolist() for p in updater.minibatches(4)]
    assert len(parts) == updates
    for epoch in range(updates // minibatches):
        part = parts[epoch * minibatches : (epoch + 1) * minibatches]
        assert [g for p in part for g in p] == [0, 1, 2, 3]
    metrics = updater.update(rollouts_like(dtype=torch.float32), 0, 0.0)
    assert metrics["optim/updates"] == updates
    assert metrics["tokens/trained"] == sum(LENGTHS) * (updates // minibatches)


def test_fewer_groups_than_minibatches(folder: str) -> None:
    run = run_with(folder, "minibatches=4", "updates_per_batch=4", "clip=reinforce", lr=0.0)
    updater = Updater(run, lab.policy_of(run))
    rollouts = rollouts_like(dtype=torch.float32).keep_groups(
        torch.tensor([True, False, True, False])
    )
    metrics = updater.update(rollouts, 0, 0.0)
    losses = [
        updater.update(rollouts.keep_groups(one), 0, 0.0)["loss/total"]
        for one in torch.eye(2).bool()
    ]
    assert metrics["optim/updates"] == 2
    assert metrics["loss/total"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_updates_stop_at_the_target_kl(folder: str) -> None:
    overrides = ("kl=k3", "kl.target_kl=1e-4", "updates_per_batch=8")
    _, metrics = trained(run_with(folder, *overrides, lr=1e-2))
    assert metrics["optim/updates"] == 2  # the first is at KL 0, the second has moved


# -- references and KL in the reward -----------------------------------------------------------


def test_kl_in_the_reward_shifts_each_sequence(folder: str) -> None:
    run = run_with(folder, "kl=k1", "kl.placement=reward", budget=40)
    updater = exact_updater(run)
    rollouts = rollouts_like()
    assert rollouts.rewards is not None
    before = rollouts.rewards.clone()
    updater.score_logps(rollouts, 0.25)
    penalty = torch.zeros(len(rollouts), dtype=torch.float64)
    for row in range(len(rollouts)):
        sequence = lab.sequence(rollouts, row)
        p = lab.plain_logps(updater.policy.model, *sequence)
        q = lab.plain_logps(updater.forward.reference, *sequence)
        penalty[row] = (p - q).sum().detach()
    expected = before - 0.25 * penalty.reshape(before.shape)
    torch.testing.assert_close(
        updater.returns(rollouts)[0], expected, atol=1e-5, rtol=1e-5, check_dtype=False
    )
    torch.testing.assert_close(rollouts.rewards, before)  # the scores stay what they were
    _, metrics = step(updater, rollouts, beta=0.25)
    assert metrics["loss/kl"] == 0.0
    assert metrics["loss/total"] == metrics["loss/policy"]
    assert metrics["kl/ref_k1"] == pytest.approx(float(penalty.sum()) / sum(LENGTHS), rel=1e-4)


def test_unscorable_rewards_stay_so_under_a_kl_in_the_reward(folder: str) -> None:
    updater = exact_updater(run_with(folder, "kl=k1", "kl.placement=reward"))
    rollouts = rollouts_like()
    assert rollouts.rewards is not None
    rollouts.rewards[1, 0] = math.nan
    updater.score_logps(rollouts, 0.25)
    rewards, _ = updater.returns(rollouts)
    assert torch.isnan(rewards).sum() == 1
    assert bool(torch.isnan(rewards[1, 0]))


def test_reference_old_has_no_kl_at_first(folder: str) -> None:
    updater = exact_updater(run_with(folder, "kl=k3", "reference=old"))
    plain = exact_updater(run_with(folder))
    assert updater.forward.reference is None
    gradient, metrics = step(updater, rollouts_like(), beta=0.5)
    expected, _ = step(plain, rollouts_like())
    assert metrics["loss/kl"] == metrics["kl/ref_k3"] == 0.0
    assert gap(gradient, expected) < 1e-12


def test_reference_old_holds_back_later_updates(folder: str) -> None:
    bound, metrics = trained(
        run_with(folder, "kl=k3", "reference=old", "updates_per_batch=4", lr=1e-2)
    )
    free, _ = trained(run_with(folder, "updates_per_batch=4", lr=1e-2))
    assert metrics["kl/ref_k3"] == pytest.approx(metrics["kl/old_k3"], rel=1e-5)
    assert metrics["loss/kl"] > 0
    assert not identical(bound, free)


def test_frozen_reference_stays_at_the_start(folder: str) -> None:
    run = run_with(folder, "kl=k3", lr=1e-2)
    updater = Updater(run, lab.policy_of(run))
    start = {n: p.clone() for n, p in updater.forward.reference.named_parameters()}
    first = updater.update(rollouts_like(dtype=torch.float32), 0, 0.1)
    second = updater.update(rollouts_like(dtype=torch.float32), 1, 0.1)
    assert first["kl/ref_k3"] == pytest.approx(0.0, abs=1e-6)
    assert second["kl/ref_k3"] > 1e-6
    assert identical(start, dict(updater.forward.reference.named_parameters()))


def test_no_reference_loads_none(folder: str) -> None:
    run = run_with(folder, "reference=none")
    updater = Updater(run, lab.policy_of(run))
    assert updater.forward.reference is None
    metrics = updater.update(rollouts_like(dtype=torch.float32), 0, 0.0)
    assert not [name for name in metrics if name.startswith("kl/ref")]


# -- adapters ----------------------------------------------------------------------------------


def lora_run(folder: str, *overrides: str, **settings: Any) -> Run:
    pytest.importorskip("peft")
    run = run_with(folder, "kl=k3", *overrides, **settings)
    from grpolab.config import Lora

    return replace(run, model=replace(run.model, lora=Lora(r=4, alpha=8.0)))


def test_only_adapters_learn_and_the_base_is_the_reference(folder: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    start = AutoModelForCausalLM.from_pretrained(folder).eval()
    run = lora_run(folder, lr=1e-2)
    policy = lab.policy_of(run)
    updater = Updater(run, policy)
    assert updater.forward.reference is None
    assert updater.parameters
    assert all("lora_" in name for name in updater.parameters)
    fixed = {n: p.clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    first = updater.update(rollouts_like(dtype=torch.float32), 0, 0.1)
    second = updater.update(rollouts_like(dtype=torch.float32), 1, 0.1)
    assert first["kl/ref_k3"] == pytest.approx(0.0, abs=1e-6)
    assert second["kl/ref_k3"] > 1e-7
    after = dict(policy.model.named_parameters())
    assert all(torch.equal(after[name], p) for name, p in fixed.items())
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        own = policy.model(input_ids=ids).logits
        with policy.base_weights() as base:
            torch.testing.assert_close(base(input_ids=ids).logits, start(input_ids=ids).logits)
        assert not torch.allclose(own, start(input_ids=ids).logits, atol=1e-4)
        policy.save(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(input_ids=ids).logits, own, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(policy.model(input_ids=ids).logits, own)  # still training


def test_adapters_gradient_is_the_plain_one(folder: str) -> None:
    run = lora_run(folder, "clip=none", budget=40)
    policy = lab.double(lab.policy_of(run))
    for name, p in policy.trainable().items():
        if "lora_B" in name:
            p.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    updater = Updater(run, policy)
    updater.optimizer = torch.optim.SGD(updater.parameters.values(), lr=1.0)  # type: ignore[assignment]
    rollouts = rollouts_like()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(rollouts)):
        sequence = lab.sequence(rollouts, row)
        logps = lab.plain_logps(policy.model, *sequence)
        with torch.no_grad(), policy.base_weights() as base:
            ref = lab.plain_logps(base, *sequence)
        kl = torch.exp(ref - logps) - (ref - logps) - 1
        ratio = torch.exp(logps - logps.detach())
        total = total + (0.1 * kl - ratio * rollouts.advantage_rows()[row]).sum()
    parameters = list(updater.parameters.values())
    grads = torch.autograd.grad(total / sum(LENGTHS), parameters)
    gradient, _ = step(updater, rollouts, beta=0.1)
    assert gap(gradient, torch.cat([g.flatten() for g in grads])) < 1e-10


# -- lower precision ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("adapters", [False, True])
def test_lower_precision_keeps_float32_weights(folder: str, dtype: str, adapters: bool) -> None:
    run = run_with(folder, "kl=k3", f"hardware.dtype={dtype}", "updates_per_batch=2", lr=1e-2)
    if adapters:
        run = lora_run(folder, f"hardware.dtype={dtype}", "updates_per_batch=2", lr=1e-2)
    policy = lab.policy_of(run)
    updater = Updater(run, policy)
    before = flat(updater.parameters)
    for index in range(3):
        rollouts = rollouts_like(dtype=torch.float32)
        updater.score_logps(rollouts, 0.1)
        metrics = updater.update(rollouts, index, 0.1)
    assert all(math.isfinite(v) for v in metrics.values())
    assert not torch.equal(before, flat(updater.parameters))
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    pairs = zip(policy.sampling_model.parameters(), policy.model.parameters(), strict=True)
    for copied, own in pairs:
        assert torch.equal(copied, own.to(policy.dtype))
    exact = exact_updater(replace(run, hardware=replace(run.hardware, dtype="float32")))
    assert exact.scaler.is_enabled() is False
    assert updater.scaler.is_enabled() is (dtype == "float16")


def test_lower_precision_gradient_is_close(folder: str) -> None:
    def gradient(dtype: str) -> Tensor:
        run = run_with(folder, "clip=reinforce", f"hardware.dtype={dtype}")
        updater = Updater(run, lab.policy_of(run))
        updater.optimizer = torch.optim.SGD(updater.parameters.values(), lr=1.0)  # type: ignore[assignment]
        return step(updater, rollouts_like(dtype=torch.float32))[0]

    exact = gradient("float32")
    assert gap(gradient("bfloat16"), exact) < 0.1
    assert gap(gradient("float16"), exact) < 0.02


# -- the optimizer -----------------------------------------------------------------------------


def poison(rollouts: Rollouts) -> Rollouts:
    assert rollouts.advantages is not None
    rollouts.advantages[0, 0] = math.nan
    return rollouts


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_non_finite_updates_are_skipped_until_too_many(folder: str, dtype: str) -> None:
    run = run_with(folder, f"hardware.dtype={dtype}", lr=1e-2)
    run = replace(run, optimizer=replace(run.optimizer, max_skipped=2, max_grad_norm=1.0))
    policy = lab.policy_of(run)
    updater = Updater(run, policy)

    def fresh() -> Rollouts:
        return rollouts_like(dtype=torch.float32)

    updater.update(fresh(), 0, 0.0)
    weights = flat(updater.parameters)
    for count in (1, 2):
        metrics = updater.update(poison(fresh()), count, 0.0)
        assert metrics["optim/skipped"] == count
        assert math.isnan(metrics["optim/grad_norm"])
        assert torch.equal(weights, flat(updater.parameters))
    metrics = updater.update(fresh(), 3, 0.0)  # it recovers, and nothing of the NaN is left
    assert bool(torch.isfinite(flat(updater.parameters)).all())
    assert not torch.equal(weights, flat(updater.parameters))
    with pytest.raises(TrainingFailed, match=r"3 updates .*max_skipped is 2"):
        updater.update(poison(fresh()), 4, 0.0)


def test_gradient_norm_is_clipped(folder: str) -> None:
    run = run_with(folder, "clip=reinforce")
    free, metrics = step(exact_updater(run), rollouts_like())
    norm = float(free.norm())
    assert metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-6)
    limited = replace(run, optimizer=replace(run.optimizer, max_grad_norm=norm / 10))
    gradient, metrics = step(exact_updater(limited), rollouts_like())
    assert metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-6)  # before the clip
    assert gap(gradient, free / 10) < 1e-4


def lr_values(**settings: Any) -> Callable[[int], float]:
    run = lab.run_of()
    optimizer = replace(run.optimizer, lr=1.0, **settings)
    return lambda step: lr_at(optimizer, step, 10)


def test_learning_rates() -> None:
    assert [lr_values()(s) for s in (0, 5, 9)] == [1.0, 1.0, 1.0]
    warm = lr_values(warmup_steps=4)
    assert [warm(s) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    linear = lr_values(schedule="linear", warmup_steps=2)
    assert [linear(s) for s in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    cosine = lr_values(schedule="cosine")
    assert [cosine(s) for s in (0, 5)] == pytest.approx([1.0, 0.5])
    for schedule in (linear, cosine):
        rates = [schedule(s) for s in range(2, 10)]
        assert rates == sorted(rates, reverse=True)
        assert 0 < rates[-1] < 0.2


def test_the_learning_rate_reaches_the_optimizer(folder: str) -> None:
    run = run_with(folder, lr=1e-3)
    run = replace(run, optimizer=replace(run.optimizer, warmup_steps=4))
    updater = Updater(run, lab.policy_of(run))
    assert updater.update(rollouts_like(dtype=torch.float32), 1, 0.0)["optim/lr"] == 5e-4
    assert {g["lr"] for g in updater.optimizer.param_groups} == {5e-4}


def test_first_step_of_adamw_is_the_sign(folder: str) -> None:
    run = run_with(folder, lr=1e-3)
    updater = Updater(run, lab.policy_of(run))
    before = flat(updater.parameters)
    updater.update(rollouts_like(dtype=torch.float32), 0, 0.0)
    moved = (flat(updater.parameters) - before).abs()
    assert float(moved.max()) == pytest.approx(1e-3, rel=1e-2)


# -- metrics -----------------------------------------------------------------------------------


def test_metrics_by_hand(folder: str) -> None:
    updater = exact_updater(run_with(folder, "kl=k3", budget=40))
    rollouts = rollouts_like()
    assert rollouts.advantages is not None
    rollouts.advantages[2] = 0.0
    rollouts.old_logps = old_logps(updater.policy, rollouts)
    ratios, entropies, sampler = [], [], []
    for row in range(len(rollouts)):
        logits = lab.plain_logits(updater.policy.model, *lab.sequence(rollouts, row)).detach()
        logps = lab.plain_logps(updater.policy.model, *lab.sequence(rollouts, row)).detach()
        old = rollouts.old_logps[row, : len(logps)]
        assert rollouts.sampler_policy_logps is not None
        ratios.append((logps - old).exp())
        d = old - rollouts.sampler_policy_logps[row, : len(logps)]
        sampler.append((-d).exp() + d - 1)
        entropies.append(-(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1))
    ratio = torch.cat(ratios)
    _, metrics = step(updater, rollouts)
    expected = {
        "policy/ratio_mean": ratio.mean(),
        "policy/ratio_std": ratio.std(correction=0),
        "policy/ratio_max": ratio.max(),
        "policy/ess": ratio.sum() ** 2 / ratio.square().sum() / len(ratio),
        "policy/entropy": torch.cat(entropies).mean(),
        "kl/old_k3": (1 / ratio + ratio.log() - 1).mean(),
        "kl/sampler_k3": torch.cat(sampler).mean(),
        "tokens/contributing_share": torch.tensor(1 - (7 + 2) / sum(LENGTHS)),
        "tokens/trained": torch.tensor(float(sum(LENGTHS))),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-4), name
