"""Recipes: each binds, carries the numbers of the paper or library it is named after, and trains.

The numbers below were read from the sources themselves (papers; TRL 1.16.0, verl 0.9.1, OpenRLHF
0.11.2, open-instruct of August 2026) and not from the recipes. What depends on scale (learning
rate, batch, token limit) is no part of them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from grpolab.cli import main
from grpolab.config import Run, bind_run
from grpolab.sweep.compose import Command, expand
from grpolab.sweep.explain import conf_dir

RECIPES = sorted(p.stem for p in (conf_dir() / "experiment" / "recipe").glob("*.yaml"))
every_recipe = pytest.mark.parametrize("recipe", RECIPES)

ADAM = {"betas": [0.9, 0.999], "weight_decay": 0.0, "max_grad_norm": 1.0, "schedule": "constant"}
ZSCORE = {"name": "group_zscore", "clip": None, "ddof": 1}
PPO = {"name": "ppo", "masks": [], "low": 0.2, "high": 0.2}
NONE = {"name": "none"}

DECISIVE: dict[str, dict[str, dict[str, Any]]] = {
    # 2402.03300: β 0.04, one update per exploration stage, 1/G Σ 1/|o|, (r − mean)/std
    "deepseekmath": {
        "advantage": {**ZSCORE, "eps": 0.0},
        "clip": PPO,
        "kl": {"name": "k3", "beta": 0.04, "placement": "loss", "clamp": None},
        "aggregation": {"name": "seq_mean_token_mean", "count_empty": True},
        "run": {"updates_per_batch": 1, "minibatches": 1},
        "optimizer": ADAM,
    },
    # 2503.14476: ε 0.2 and 0.28, token mean, no KL, dynamic sampling; weight decay of the script
    "dapo": {
        "advantage": {**ZSCORE, "eps": 1e-6},
        "clip": {**PPO, "high": 0.28},
        "kl": NONE,
        "aggregation": {"name": "token_mean"},
        "selection": {"name": "dynamic", "max_rounds": 10},
        "optimizer": {**ADAM, "weight_decay": 0.1},
        "sampler": {"temperature": 1.0, "top_p": 1.0, "match_temperature": True},
        "run": {"updates_per_batch": 8, "minibatches": 8},
    },
    # 2503.20783 and oat: centring alone, the token limit as divisor, betas (0.9, 0.95)
    "dr_grpo": {
        "advantage": {"name": "group_center", "clip": None},
        "clip": PPO,
        "kl": NONE,
        "aggregation": {"name": "seq_mean_token_sum_norm", "length": "limit", "count_empty": True},
        "optimizer": {**ADAM, "betas": [0.9, 0.95]},
        "run": {"updates_per_batch": 8, "minibatches": 8},
    },
    # 2507.18071, section 5.1: 3e-4 and 4e-4, four mini-batches
    "gspo": {
        "advantage": {**ZSCORE, "eps": 0.0},
        "clip": {"name": "gspo", "masks": [], "low": 3e-4, "high": 4e-4},
        "kl": NONE,
        "aggregation": {"name": "seq_mean_token_mean"},
        "run": {"updates_per_batch": 4, "minibatches": 4},
    },
    # 2506.13585: no lower bound, betas (0.9, 0.95), eps 1e-15; the maximum of 2510.13786
    "cispo": {
        "advantage": {**ZSCORE, "eps": 0.0},
        "clip": {"name": "cispo", "ratio_min": 0.0, "ratio_max": 5.0},
        "kl": NONE,
        "aggregation": {"name": "token_mean"},
        "selection": {"name": "dynamic"},
        "optimizer": {**ADAM, "betas": [0.9, 0.95], "eps": 1e-15},
    },
    # 2402.14740: leave-one-out, k1 of the sequence in the reward, β 0.03, no ratio
    "rloo": {
        "advantage": {"name": "rloo", "clip": None},
        "clip": {"name": "reinforce", "masks": []},
        "kl": {"name": "k1", "beta": 0.03, "placement": "reward", "clamp": None},
        "aggregation": {"name": "seq_mean_token_sum"},
        "run": {"updates_per_batch": 1},
        "optimizer": ADAM,
    },
    # OpenRLHF: masked variance over all tokens (ddof 0), clamp(min=1e-8), k1 to go, β 0.01
    "reinforce_pp": {
        "advantage": {
            "name": "reinforce_pp", "baseline": "none", "ddof": 0, "eps": 1e-8, "eps_at": "floor",
        },
        "clip": PPO,
        "kl": {"name": "k1", "beta": 0.01, "placement": "reward_to_go", "clamp": [10.0, 10.0]},
        "aggregation": {"name": "token_mean"},
        "sampler": {"group_size": 1, "match_temperature": True},
        "optimizer": {**ADAM, "betas": [0.9, 0.95], "schedule": "cosine"},
    },
    # 2508.08221 as TRL runs it: std of the batch's raw rewards, eps 1e-4, its sampling
    "lite_ppo": {
        "advantage": {"name": "batch_std", "std_of": "rewards", "ddof": 1, "eps": 1e-4},
        "clip": PPO,
        "kl": NONE,
        "aggregation": {"name": "token_mean"},
        "sampler": {"temperature": 0.99, "top_k": 100, "top_p": 0.99, "group_size": 8},
        "run": {"updates_per_batch": 8, "minibatches": 8},
    },
    # 2507.20673: log-ratios within ±0.4
    "gmpo": {
        "advantage": {**ZSCORE, "eps": 1e-8},
        "clip": {"name": "gmpo", "low": 0.4, "high": 0.4},
        "kl": NONE,
        "aggregation": {"name": "seq_mean_token_mean"},
        "optimizer": {**ADAM, "betas": [0.9, 0.95]},
    },
    # 2511.20347: τ 1.0 and 1.05
    "sapo": {
        "advantage": {**ZSCORE, "eps": 0.0},
        "clip": {"name": "sapo", "tau_positive": 1.0, "tau_negative": 1.05},
        "kl": NONE,
        "aggregation": {"name": "seq_mean_token_mean"},
        "run": {"updates_per_batch": 4, "minibatches": 4},
    },
    # GRPOConfig(): epsilon 0.2, scale_rewards "group" (1e-4), loss_type "dapo", beta 0, linear
    "trl_default": {
        "advantage": {**ZSCORE, "eps": 1e-4},
        "clip": PPO,
        "kl": NONE,
        "aggregation": {"name": "token_mean"},
        "correction": NONE,
        "sampler": {"group_size": 8, "temperature": 1.0, "top_k": 0, "match_temperature": True},
        "optimizer": {
            **ADAM, "schedule": "linear", "eps": 1e-8, "warmup_steps": 0, "decay": "matrices",
        },
        "run": {"updates_per_batch": 1},
    },
    # ppo_trainer.yaml: clip_ratio 0.2, clip_ratio_c 3, token-mean, no KL, 1024 prompts by 256
    "verl_default": {
        "advantage": {**ZSCORE, "eps": 1e-6},
        "clip": {"name": "dual", "low": 0.2, "high": 0.2, "c": 3.0},
        "kl": NONE,
        "aggregation": {"name": "token_mean"},
        "correction": NONE,
        "sampler": {"temperature": 1.0, "match_temperature": True},
        "optimizer": {**ADAM, "weight_decay": 0.01},
        "run": {"updates_per_batch": 4, "minibatches": 4},
    },
    # train_ppo_ray: group_norm 1e-9, k1 ×0.01 token by token in the reward, betas (0.9, 0.95)
    "openrlhf_default": {
        "advantage": {**ZSCORE, "eps": 1e-9},
        "clip": PPO,
        "kl": {"name": "k1", "beta": 0.01, "placement": "reward_to_go", "clamp": [10.0, 10.0]},
        "aggregation": {"name": "token_mean"},
        "correction": NONE,
        "sampler": {"match_temperature": True},
        "optimizer": {**ADAM, "betas": [0.9, 0.95], "schedule": "cosine"},
        "run": {"updates_per_batch": 8, "minibatches": 8},
    },
    # GRPOExperimentConfig: 0.2/0.272, k3 ×0.05 clamped at ±40, cap 2, centred, zero-std filtered
    "open_instruct_default": {
        "advantage": {"name": "group_center", "clip": None},
        "clip": {**PPO, "high": 0.272},
        "kl": {"name": "k3", "beta": 0.05, "placement": "loss", "clamp": [40.0, math.inf]},
        "aggregation": {"name": "token_mean"},
        "correction": {"name": "truncate", "level": "token", "cap": 2.0, "floor": 0.0},
        "selection": {"name": "drop_zero_variance"},
        "sampler": {"group_size": 4, "temperature": 1.0, "match_temperature": True},
        "optimizer": {**ADAM, "schedule": "linear"},
        "run": {"updates_per_batch": 1, "prompts_per_step": 16},
    },
}  # fmt: skip

REWARD_WEIGHTS = {
    "dapo": {"answer": 2.0, "overlong": 1.0},  # right 1 and wrong −1, beside 0 … −1
    "cispo": {"answer": 2.0, "overlong": 1.0},
    "open_instruct_default": {"answer": 10.0},  # verification_reward
}


def bound(recipe: str, *overrides: str) -> Run:
    """A recipe as the command line binds it."""
    (job,) = expand(Command([f"experiment=recipe/{recipe}", *overrides])).jobs
    return bind_run(job.raw)


def test_every_recipe_is_held_against_its_source() -> None:
    assert set(RECIPES) == set(DECISIVE)


@every_recipe
def test_the_decisive_numbers_are_bound(recipe: str) -> None:
    run = bound(recipe)
    for part, expected in DECISIVE[recipe].items():
        component = run if part == "run" else getattr(run, part)
        assert {k: getattr(component, k) for k in expected} == expected, part
    assert getattr(run.reward, "weights", {}) == REWARD_WEIGHTS.get(recipe, {})


@every_recipe
def test_model_and_task_stay_the_defaults(recipe: str) -> None:
    run = bound(recipe)
    assert (run.model.name, run.task.name, run.study) == ("tiny", "arithmetic", "recipes")


@every_recipe
def test_the_head_says_how_to_run_it(recipe: str) -> None:
    lines = (conf_dir() / "experiment" / "recipe" / f"{recipe}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"#   grpolab train experiment=recipe/{recipe}" in lines


HINTS = {
    "deepseekmath": ["reference=sync"],
    "dapo": ["clip.masks=[truncated]", "clip=dual clip.c=10"],
    "reinforce_pp": ["advantage.baseline=group sampler.group_size=8"],
    "trl_default": [
        "kl=weighted_k3",
        "correction=mask correction.level=sequence_sum correction.low=0.0 correction.high=3.0",
    ],
    "verl_default": [
        "kl=k3 kl.beta=0.001 kl.clamp=[20,10]",
        "kl=k1 kl.placement=reward_to_go kl.beta=0.001",
    ],
}


@pytest.mark.parametrize(("recipe", "hint"), [(r, h) for r, hs in HINTS.items() for h in hs])
def test_what_a_recipe_s_comment_proposes_binds(recipe: str, hint: str) -> None:
    text = (conf_dir() / "experiment" / "recipe" / f"{recipe}.yaml").read_text()
    assert hint in " ".join(text.replace("\n#", " ").split())
    assert bound(recipe, *hint.split())


def test_recipes_can_be_swept() -> None:
    command = Command(["experiment=recipe/dapo,recipe/gspo", "seed=0,1"], multirun=True)
    sweep = expand(command)
    assert sweep.factors == ["experiment", "seed"]
    assert [bind_run(j.raw).clip.name for j in sweep.jobs] == ["ppo", "ppo", "gspo", "gspo"]


QUICK = (
    "steps=2", "eval.every=0", "eval.prompts=2", "eval.samples=0", "tracking=jsonl",
    "hardware.device=cpu", "hardware.threads=1", "sampler.max_new_tokens=16",
)  # fmt: skip


@every_recipe
def test_two_steps_of_it(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"experiment=recipe/{recipe}", *QUICK]) == 0
    (found,) = (tmp_path / "outputs" / "recipes").glob("*/metrics.jsonl")
    steps = [json.loads(line)["metrics"] for line in found.read_text().splitlines()]
    assert len(steps) == 3  # before the first, and after each
    for metrics in steps[1:]:
        assert math.isfinite(metrics["loss/total"])
        assert metrics["optim/grad_norm"] > 0
        assert metrics["optim/skipped"] == 0
        assert metrics["optim/updates"] == bound(recipe).updates_per_batch
