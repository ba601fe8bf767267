"""The update over packed rows with shared prompts, and over Transformers' forward: the same loss,
gradient and metrics, whatever the objective is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from grpolab.component import ConfigError, component, names
from grpolab.config import Engine, Run
from grpolab.policy import head
from grpolab.rollouts import Rollouts
from grpolab.training.update import Updater

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

GROUP = 4
PROMPTS = [3, 11, 1]
LENGTHS = [4, 0, 12, 1, 7, 2, 1, 1, 9, 9, 16, 3]
"""Ragged; an empty one, as a mask on truncated completions leaves; one-token completions."""
ESTIMATORS, AGGREGATIONS = names("kl"), names("aggregation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return lab.random_model(tmp_path_factory.mktemp("model"), "Qwen3")


def run_with(
    folder: str, engine: Engine, *overrides: str, budget: int, aggregation: str = "token_mean"
) -> Run:
    """What differs between the two engines, and the aggregation, is put in afterwards: composing a
    configuration costs more than all else here."""
    run = lab.run_of(
        f"model.name={folder}",
        f"sampler.group_size={GROUP}",
        "sampler.max_new_tokens=16",
        f"prompts_per_step={len(PROMPTS)}",
        "updates_per_batch=2",
        "minibatches=2",  # so that the log-probs are computed beforehand
        *overrides,
    )
    hardware = replace(run.hardware, engine=engine, tokens_per_microbatch=budget)
    return replace(run, hardware=hardware, aggregation=component("aggregation", aggregation))


def with_kl(kl: str) -> list[str]:
    """The settings of an estimator."""
    return [f"kl={kl}", *(["reference=old"] if kl == "seed_kl_div" else [])]


def gradient(run: Run, *, exact: bool = True) -> tuple[Tensor, dict[str, float], Rollouts]:
    """(gradient, sums of the metrics, rollouts with their log-probs) of a batch, old policy and
    reference off by a little."""
    policy = lab.policy_of(run)
    if exact:
        lab.double(policy)
    updater = Updater(run, policy)
    rollouts = lab.made_up_rollouts(
        PROMPTS, LENGTHS, group_size=GROUP, dtype=torch.float64 if exact else torch.float32
    )
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        if updater.forward.reference is not None:
            for p in updater.forward.reference.parameters():
                p += 0.05 * torch.randn(p.shape, generator=source, dtype=p.dtype)
        updater.score_logps(rollouts, 0.1)
        if updater.kl_in_reward:
            rollouts.advantages = updater.advantages(rollouts, None)
        assert rollouts.old_logps is not None
        noise = torch.randn(rollouts.mask.shape, generator=source, dtype=rollouts.old_logps.dtype)
        rollouts.old_logps += 0.3 * noise
    rows = torch.arange(len(rollouts))
    plan = updater._plan(rollouts, rows, (0, 0)) if run.clip.needs_plan else None
    sums, _ = updater.backward(rollouts, rows, 0.1, plan)
    found = torch.cat([p.grad.flatten() for p in updater.parameters.values() if p.grad is not None])
    return found, sums.fetch(), rollouts


def assert_same(ours: Run, plain: Run, tolerance: float, *, exact: bool = True) -> None:
    found, sums, rollouts = gradient(ours, exact=exact)
    expected, plain_sums, plain_rollouts = gradient(plain, exact=exact)
    assert float(expected.norm()) > 1e-3
    assert float((found - expected).norm() / expected.norm()) < tolerance
    assert sums == pytest.approx(plain_sums, rel=tolerance, abs=tolerance)
    for name in ("old_logps", "ref_logps"):
        a, b = getattr(rollouts, name), getattr(plain_rollouts, name)
        if b is not None:
            gap = (a - b)[rollouts.mask].abs().max()
            assert float(gap) < 10 * tolerance


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kl", ESTIMATORS)
def test_every_kl_and_aggregation(folder: str, kl: str, aggregation: str) -> None:
    ours = run_with(folder, "auto", *with_kl(kl), budget=21, aggregation=aggregation)
    plain = run_with(folder, "plain", *with_kl(kl), budget=4096, aggregation=aggregation)
    assert_same(ours, plain, 1e-10)


@pytest.mark.parametrize("placement", ["reward", "reward_to_go"])
def test_a_kl_in_the_reward(folder: str, placement: str) -> None:
    overrides = ["kl=k3", f"kl.placement={placement}"]
    ours = run_with(folder, "auto", *overrides, budget=21)
    assert_same(ours, run_with(folder, "plain", *overrides, budget=4096), 1e-10)


@pytest.mark.parametrize("clip", ["ppo", "gspo", "cispo", "gmpo", "sapo", "bapo", "clip_cov"])
def test_clips_of_all_levels(folder: str, clip: str) -> None:
    ours = run_with(folder, "auto", f"clip={clip}", "kl=k3", budget=30)
    assert_same(ours, run_with(folder, "plain", f"clip={clip}", "kl=k3", budget=4096), 1e-10)


@pytest.mark.parametrize("budget", [1, 17, 40, 4096])
def test_any_split(folder: str, budget: int) -> None:
    """Also inside a group, whose prompt then runs once in each part."""
    ours = run_with(folder, "auto", "kl=k3", budget=budget)
    assert_same(ours, run_with(folder, "plain", "kl=k3", budget=4096), 1e-10)


@pytest.mark.parametrize("kind", ["tiny", "Llama", "Qwen2"])
def test_families(tmp_path: Path, kind: str) -> None:
    name = "tiny" if kind == "tiny" else lab.random_model(tmp_path, kind)
    ours = run_with(name, "auto", "kl=k2", budget=40)
    assert_same(ours, run_with(name, "plain", "kl=k2", budget=4096), 1e-10)


@pytest.mark.parametrize(
    ("kl", "aggregation"),
    [
        *((kl, "token_mean") for kl in ESTIMATORS),
        *(("k3", name) for name in AGGREGATIONS if name != "token_mean"),
    ],
)
def test_float32(folder: str, kl: str, aggregation: str) -> None:
    ours = run_with(folder, "auto", *with_kl(kl), budget=40, aggregation=aggregation)
    plain = run_with(folder, "plain", *with_kl(kl), budget=4096, aggregation=aggregation)
    assert_same(ours, plain, 1e-5, exact=False)


def test_gradient_checkpointing_changes_nothing(folder: str) -> None:
    ours = run_with(folder, "auto", "kl=k3", "hardware.gradient_checkpointing=true", budget=40)
    plain = run_with(folder, "auto", "kl=k3", budget=40)
    found, expected = gradient(ours)[0], gradient(plain)[0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("overrides", "given"),
    [
        (["hardware.engine=plain"], r"hardware\.engine=plain.*=auto\.$"),
        (["kl=full"], r"kl=full.*such as k3\.$"),
        (["sampler.match_support=true", "sampler.top_k=5"], r"match_support=true.*=false\.$"),
    ],
)
def test_gradient_checkpointing_is_refused_where_it_would_do_nothing(
    overrides: list[str], given: str
) -> None:
    lab.run_of(*overrides)
    message = rf"^hardware\.gradient_checkpointing: true given with .*{given}"
    with pytest.raises(ConfigError, match=message):
        lab.run_of(*overrides, "hardware.gradient_checkpointing=true")
    lab.run_of("sampler.match_support=true", "hardware.gradient_checkpointing=true")  # as any other


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_tempered_log_probs(folder: str, temperature: float) -> None:
    overrides = ["kl=k3", f"sampler.temperature={temperature}", "sampler.match_temperature=true"]
    ours = run_with(folder, "auto", *overrides, budget=40)
    assert_same(ours, run_with(folder, "plain", *overrides, budget=4096), 1e-10)


def test_adapters(folder: str) -> None:
    overrides = ["kl=k3", "model.lora={r: 4}"]
    ours = run_with(folder, "auto", *overrides, budget=40)
    assert_same(ours, run_with(folder, "plain", *overrides, budget=4096), 1e-10)


@pytest.mark.parametrize("keep", [0, 2**27])
@pytest.mark.parametrize("at_once", [58, 300, 2**24])
def test_the_heads_chunks_change_nothing(
    folder: str, keep: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_with(folder, "plain", "kl=k3", budget=4096)
    monkeypatch.setattr(head, "KEEP_BYTES", keep)
    monkeypatch.setattr(head, "CHUNK_LOGITS", at_once)
    assert_same(run_with(folder, "auto", "kl=k3", budget=60), plain, 1e-10)


@pytest.mark.parametrize("adapters", [[], ["model.lora={r: 4}"]])
@pytest.mark.parametrize("master", ["true", "false"])
def test_bfloat16_is_close_to_float32(folder: str, master: str, adapters: list[str]) -> None:
    lower = ["hardware.dtype=bfloat16", f"hardware.master_weights={master}"]
    ours = run_with(folder, "auto", "kl=k3", *lower, *adapters, budget=4096)
    plain = run_with(folder, "plain", "kl=k3", *adapters, budget=4096)
    found, expected = gradient(ours, exact=False)[0], gradient(plain, exact=False)[0]
    if master == "true":
        assert found.dtype == torch.float32
    found = found.float()
    cosine = torch.nn.functional.cosine_similarity(found, expected, dim=0)
    assert float(cosine) > 0.99
    assert math.isclose(float(found.norm()), float(expected.norm()), rel_tol=0.1)
