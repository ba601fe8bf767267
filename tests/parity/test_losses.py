"""TRL's own loss on the same tensors: value, gradient and clip shares.

`GRPOTrainer._compute_loss` is run on log-probs that are given to it; no model takes part.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpolab.component import component
from grpolab.objective.loss import Objective
from tests.objective.test_invariances import Batch, make_batch

pytest.importorskip("trl", minversion="1.16")
GRPO: Any = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer

LIMIT, BETA, EPSILON = 16, 0.3, (0.2, 0.28)
AGGREGATION = {
    "grpo": "seq_mean_token_mean",
    "sapo": "seq_mean_token_mean",
    "dapo": "token_mean",
    "cispo": "token_mean",
    "vespo": "token_mean",
    "dr_grpo": "seq_mean_token_sum_norm",
    "luspo": "seq_mean_token_sum",
}


def trainer(batch: Batch, logps: Tensor, **settings: Any) -> SimpleNamespace:
    """What `_compute_loss` reads of its trainer."""
    low, high = settings.get("epsilon", EPSILON)
    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, dim, pad_index: x,
    )
    made = SimpleNamespace(
        args=SimpleNamespace(
            delta=settings.get("delta"),
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            vespo_k_pos=2.0,
            vespo_lambda_pos=3.0,
            vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
            use_bias_correction_kl=False,
            steps_per_generation=1,
        ),
        accelerator=accelerator,
        loss_type=settings.get("loss_type", "grpo"),
        importance_sampling_level=settings.get("level", "token"),
        epsilon_low=low,
        epsilon_high=high,
        beta=settings.get("beta", 0.0),
        top_entropy_quantile=settings.get("top_entropy_quantile", 1.0),
        off_policy_mask_threshold=settings.get("off_policy_mask_threshold"),
        max_completion_length=LIMIT,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, batch.entropy, None),
        get_off_policy_mask=GRPO.get_off_policy_mask,
        get_gamma_weights=GRPO.get_gamma_weights,
    )
    made.get_high_entropy_mask = functools.partial(GRPO.get_high_entropy_mask, made)
    return made


def trl(
    batch: Batch, compute: Any = None, **settings: Any
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """(loss, gradient in the log-probs, what TRL logged)."""
    logps = batch.logps.clone().requires_grad_()
    prompt = torch.ones(len(logps), 1, dtype=torch.long)
    made = trainer(batch, logps, **settings)
    given = {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": torch.ones_like(batch.mask).long(),
        "completion_mask": batch.mask.long(),
        "advantages": batch.advantages[:, 0],
        "old_per_token_logps": batch.old_logps,
        "ref_per_token_logps": batch.ref_logps,
        "num_items_in_batch": batch.mask.sum(),
    }
    loss = (compute or GRPO._compute_loss)(made, None, given)
    logged = {k: float(v[-1]) for k, v in made._metrics["train"].items()}
    return loss.detach(), torch.autograd.grad(loss, logps)[0], logged


def ours(
    batch: Batch, clip: str, aggregation: str, beta: float = 0.0, **settings: Any
) -> tuple[Tensor, Tensor, dict[str, float]]:
    parts = Objective(
        component("clip", clip, **settings),
        component("kl", "k3"),
        component("correction", "none"),
    )
    logps = batch.logps.clone().requires_grad_()
    beside = batch.beside()
    beside.pop("noise")
    mask = parts.clip.trained(batch.mask, batch.truncated.flatten())
    found = parts(
        logps,
        batch.old_logps,
        batch.advantages,
        mask,
        beta=beta,
        ref_logps=batch.ref_logps,
        **beside,
    )
    loss = component("aggregation", aggregation)(
        found.total, mask, group_size=batch.group_size, max_length=LIMIT
    )
    metrics = {k: float(v) for k, v in found.metrics.items()}
    return loss.detach(), torch.autograd.grad(loss, logps)[0], metrics


def same(found: tuple[Any, ...], expected: tuple[Any, ...], rtol: float = 1e-10) -> None:
    assert expected[1].any()
    for a, b in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * 1e-2)


LOSSES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ppo", {"low": 0.2, "high": 0.28}, {"loss_type": "grpo"}),
    ("ppo", {"low": 0.2, "high": 0.28}, {"loss_type": "dapo"}),
    ("ppo", {"low": 0.2, "high": 0.28}, {"loss_type": "dr_grpo"}),
    ("two_sided", {"low": 0.2, "high": 0.28, "delta": 1.5}, {"delta": 1.5}),
    ("dual", {"low": 0.2, "high": 0.28, "c": 1.5}, {"delta": 1.5}),
    ("cispo", {"ratio_max": 1.4}, {"loss_type": "cispo", "epsilon": (0.2, 1.4)}),
    ("sapo", {}, {"loss_type": "sapo"}),
    ("vespo", {}, {"loss_type": "vespo"}),
    ("gspo", {"low": 0.1, "high": 0.1}, {"level": "sequence", "epsilon": (0.1, 0.1)}),
    (
        "luspo",
        {"low": 0.1, "high": 0.15},
        {"loss_type": "luspo", "level": "sequence", "epsilon": (0.1, 0.15)},
    ),
]


@pytest.mark.parametrize(("clip", "its", "trls"), LOSSES)
@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_losses(
    seed: int, spread: float, clip: str, its: dict[str, Any], trls: dict[str, Any]
) -> None:
    batch = make_batch(seed, groups=3, group_size=3, width=6, spread=spread)
    aggregation = AGGREGATION[trls.get("loss_type", "grpo")]
    # TRL makes the temperatures of sapo in single precision
    tolerance = 1e-6 if clip == "sapo" else 1e-10
    for beta in (0.0, BETA):
        expected = trl(batch, beta=beta, **trls)
        found = ours(batch, clip, aggregation, beta=beta, **its)
        same(found, expected, tolerance)
        if clip == "ppo":
            for key in ("low", "high"):
                logged = expected[2][f"clip_ratio/{key}_mean"]
                assert found[2][f"clip/{key}"] == pytest.approx(logged)
            assert found[2]["clip/share"] == pytest.approx(expected[2]["clip_ratio/region_mean"])


MASKS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"name": "top_entropy", "share": 0.2}, {"top_entropy_quantile": 0.2}),
    ({"name": "top_entropy", "share": 0.5}, {"top_entropy_quantile": 0.5}),
    ({"name": "off_policy_sequence", "delta": 0.05}, {"off_policy_mask_threshold": 0.05}),
]


@pytest.mark.parametrize(("mask", "trls"), MASKS)
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("seed", range(3))
def test_masks(seed: int, loss_type: str, mask: dict[str, Any], trls: dict[str, Any]) -> None:
    """The KL and the denominators keep what a mask drops."""
    batch = make_batch(seed, groups=3, group_size=3, width=6)
    # TRL's threshold is in single precision
    batch = batch.map(lambda v: v.float())
    expected = trl(batch, loss_type=loss_type, beta=BETA, **trls)
    settings = {"low": 0.2, "high": 0.28, "masks": [mask]}
    found = ours(batch, "ppo", AGGREGATION[loss_type], beta=BETA, **settings)
    assert found[2]["clip/dropped"] > 0
    same(found, expected, rtol=1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("seed", range(3))
def test_truncated(seed: int, loss_type: str) -> None:
    """TRL: mask_truncated_completions clears the mask of those rows before anything is computed."""
    batch = make_batch(seed, groups=3, group_size=3, width=6)
    settings = {"low": 0.2, "high": 0.28, "masks": ["truncated"]}
    found = ours(batch, "ppo", AGGREGATION[loss_type], beta=BETA, **settings)
    cleared = batch.mask * (~batch.truncated).int()
    assert not torch.equal(cleared.bool(), batch.mask)
    expected = trl(Batch(**{**vars(batch), "mask": cleared.bool()}), loss_type=loss_type, beta=BETA)
    same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.01, 0.5, 3.0, 40.0])
@pytest.mark.parametrize("seed", range(3))
def test_vespo_weights_to_the_last_bit(seed: int, spread: float, dtype: torch.dtype) -> None:
    batch = make_batch(seed, groups=3, group_size=3, width=6, spread=spread)
    batch = batch.map(lambda v: v.to(dtype))
    advantages = batch.advantages[:, :1]
    expected = GRPO.get_gamma_weights(
        advantages, batch.logps - batch.old_logps, batch.mask.to(dtype), None
    )
    clip = component("clip", "vespo")
    clamped = torch.where(batch.mask, batch.logps - batch.old_logps, 0.0).clamp(-20, 20)
    assert torch.equal(clip.phi(clamped.sum(-1, keepdim=True), advantages), expected)
    loss = clip(batch.logps, batch.old_logps, advantages, batch.mask).loss
    assert torch.equal(loss, torch.where(batch.mask, -expected * advantages * batch.logps, 0.0))


@pytest.mark.parametrize("seed", range(3))
def test_high_entropy_mask(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(6, 9, generator=generator)
    entropy = (entropy * 8).round() / 8  # with ties
    mask = torch.arange(9) < torch.tensor([[9], [1], [0], [5], [7], [9]])
    made = SimpleNamespace(
        accelerator=SimpleNamespace(
            gather=lambda x: x, pad_across_processes=lambda x, dim, pad_index: x
        )
    )
    ones = torch.ones(6, 9)
    for share in (0.1, 0.2, 0.37, 0.5, 0.8, 1.0):
        expected = GRPO.get_high_entropy_mask(made, entropy, mask, 1 - share)
        clip = component("clip", "reinforce", masks=[{"name": "top_entropy", "share": share}])
        found = clip(-ones, -ones, ones[:, :1], mask, entropy=entropy).loss != 0
        assert torch.equal(found, expected)


@pytest.mark.parametrize("seed", range(3))
def test_off_policy_mask(seed: int) -> None:
    batch = make_batch(seed, groups=4, group_size=3, width=6)
    for delta in (0.01, 0.1, 0.5):
        clip = component("clip", "none", masks=[{"name": "off_policy_sequence", "delta": delta}])
        found = clip(batch.logps, batch.old_logps, batch.advantages, batch.mask).loss != 0
        keep = GRPO.get_off_policy_mask(
            batch.advantages[:, :1], batch.logps, batch.old_logps, batch.mask.double(), delta
        )
        assert torch.equal(found, keep.bool() & batch.mask)


@pytest.mark.parametrize("spread", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_gmpo(seed: int, spread: float) -> None:
    gmpo: Any = pytest.importorskip("trl.experimental.gmpo.gmpo_trainer").GMPOTrainer
    batch = make_batch(seed, groups=3, group_size=3, width=6, spread=spread)
    batch.mask[:, 0] = True  # TRL gives an empty completion the constant loss −A
    for beta in (0.0, BETA):
        expected = trl(batch, compute=gmpo._compute_loss, epsilon=(0.3, 0.4), beta=beta)
        found = ours(batch, "gmpo", "seq_mean_token_mean", beta=beta, low=0.3, high=0.4)
        same(found, expected)
        for key in ("low", "high"):
            assert found[2][f"clip/{key}"] == pytest.approx(expected[2][f"clip_ratio/{key}_mean"])


def test_extreme_log_ratios_where_trl_stays_finite() -> None:
    """Good tokens far above the clip: TRL has no clamp, and e^30 does not need one in double."""
    batch = make_batch(0, groups=1, group_size=2, width=3)
    batch = Batch(
        **{
            **vars(batch),
            "old_logps": batch.logps - 30.0,
            "advantages": batch.advantages.abs(),
            "mask": torch.ones_like(batch.mask),
        }
    )
    found, expected = (
        ours(batch, "ppo", "token_mean"),
        trl(batch, loss_type="dapo", epsilon=(0.2, 0.2)),
    )
    assert float(found[0]) == pytest.approx(float(expected[0]))
    assert not found[1].any()
    assert not expected[1].any()
    assert math.isfinite(float(expected[0]))
