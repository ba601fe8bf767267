"""Policy losses and KLs."""

from __future__ import annotations

from .case import Case

ONE_MICRO_BATCH = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
HALVES = {"per_device_train_batch_size": 4, "steps_per_generation": 4}
"""Two optimizer steps an iteration, of two micro-batches each."""
OUR_HALVES = {"minibatches": 2, "updates_per_batch": 4}
WHOLE = {"minibatches": 1, "updates_per_batch": 2}
GRPO = {"aggregation": "seq_mean_token_mean"}
FREE = {"clip.low": 1e6, "clip.high": 1e6}
GSPO = {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}
LUSPO = {"importance_sampling_level": "sequence", "epsilon": 2e-3, "epsilon_high": 2.5e-3}
NO_BIAS_CORRECTION = {"beta": 0.1, "use_bias_correction_kl": False}
CLIP_SHARES = {
    "clip/low": "clip_ratio/low_mean",
    "clip/high": "clip_ratio/high_mean",
    "clip/share": "clip_ratio/region_mean",
}

LOSSES = [
    Case(
        "grpo",
        {"loss_type": "grpo", **ONE_MICRO_BATCH},
        GRPO,
        FREE,
        metrics=CLIP_SHARES | {"policy/entropy": "entropy"},
    ),
    Case("grpo: two micro-batches", {"loss_type": "grpo"}, GRPO, FREE),
    Case(
        "grpo: one iteration",
        {"loss_type": "grpo"},
        GRPO,
        {"aggregation": "token_mean"},
        iterations=1,
    ),
    Case(
        "grpo: two optimizer steps an iteration",
        {"loss_type": "grpo", **HALVES},
        {**GRPO, **OUR_HALVES},
        WHOLE,
        shuffles=False,
        note="TRL shuffles rows, so that groups are torn over the steps; here they stay together. "
        "Run with the shuffle off.",
    ),
    Case(
        "grpo: the embedded model",
        {"loss_type": "grpo", "learning_rate": 1e-4},
        {**GRPO, "optimizer.lr": 1e-4},
        FREE,
        model="tiny",
    ),
    Case(
        "bnpo",
        {"loss_type": "bnpo"},
        {"aggregation": "token_mean_micro", "aggregation.rows": 8},
        {"aggregation.rows": 16},
        shuffles=False,
        note="The rows of a micro-batch are those that follow each other in the batch; TRL "
        "shuffles first. Run with the shuffle off.",
    ),
    Case(
        "dr_grpo",
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"aggregation": "seq_mean_token_sum_norm", "advantage": "group_center"},
        {"aggregation": "seq_mean_token_sum"},
    ),
    Case(
        "dapo, clip-higher",
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"clip.high": 0.28},
        {"clip.high": 0.2},
    ),
    Case(
        "dapo: two optimizer steps an iteration",
        {"loss_type": "dapo", **HALVES},
        {**OUR_HALVES, "aggregation": "constant", "aggregation.constant": 54.0},
        {"aggregation": "token_mean", "aggregation.constant": None},
        shuffles=False,
        note="TRL divides by the tokens of the generation batch times the step's share of it "
        "(108 / 2 here), token_mean by the tokens of the step. Equal with one step an iteration.",
    ),
    Case(
        "cispo",
        {"loss_type": "cispo", "epsilon_high": 1.2},
        {"clip": "cispo", "clip.ratio_max": 1.2},
        {"clip.ratio_max": 5.0},
    ),
    Case(
        "cispo, epsilon_high unset",
        {"loss_type": "cispo"},
        {"clip": "cispo", "clip.ratio_max": 0.2},
        {"clip.ratio_max": 1.2},
        note="Left unset, TRL's maximum is epsilon, 0.2: nearly every weight is 0.2. Ours is 5.",
    ),
    Case(
        "sapo",
        {"loss_type": "sapo"},
        {"clip": "sapo", **GRPO},
        {"clip.tau_negative": 2.0},
    ),
    Case(
        "luspo",
        {"loss_type": "luspo", **LUSPO},
        {"clip": "luspo", "aggregation": "seq_mean_token_sum"},
        {"clip.low": 1e6, "clip.high": 1e6},
    ),
    Case(
        "vespo",
        {"loss_type": "vespo"},
        {"clip": "vespo"},
        {"clip.k_negative": 1.0},
    ),
    Case("gspo", {"loss_type": "grpo", **GSPO}, {"clip": "gspo", **GRPO}, FREE),
    Case("gspo summed as dapo", {"loss_type": "dapo", **GSPO}, {"clip": "gspo"}, GRPO),
    Case(
        "two-sided delta",
        {"loss_type": "grpo", "epsilon": 0.05, "delta": 1.06},
        {
            "clip": "two_sided",
            "clip.low": 0.05,
            "clip.high": 0.05,
            "clip.delta": 1.06,
            **GRPO,
        },
        {"clip.delta": 1e6},
    ),
]

KLS = [
    Case(
        "β > 0, bias-corrected",
        {"loss_type": "grpo", "beta": 0.1},
        {"kl": "weighted_k3", "kl.beta": 0.1, **GRPO},
        {"kl": "k3"},
    ),
    Case(
        "β > 0, not bias-corrected",
        {"loss_type": "grpo", **NO_BIAS_CORRECTION, **ONE_MICRO_BATCH},
        {"kl": "k3", "kl.beta": 0.1, **GRPO},
        {"kl.beta": 0.0},
        metrics={"kl/ref_k3": "kl"},
    ),
    Case(
        "β > 0, bias-corrected, gspo",
        {"loss_type": "grpo", "beta": 0.1, **GSPO},
        {"clip": "gspo", "kl": "weighted_k3", "kl.beta": 0.1, "kl.level": "sequence", **GRPO},
        {"kl.level": "token"},
    ),
    Case(
        "β > 0, bias-corrected, luspo",
        {"loss_type": "luspo", "beta": 0.1, **LUSPO},
        {
            "clip": "luspo",
            "aggregation": "seq_mean_token_sum",
            "kl": "weighted_k3",
            "kl.beta": 0.1,
            "kl.level": "sequence",
        },
        {"kl.level": "token"},
    ),
    Case(
        "β > 0, vespo",
        {"loss_type": "vespo", **NO_BIAS_CORRECTION},
        {"clip": "vespo", "kl": "k3", "kl.beta": 0.1},
        {"kl.beta": 0.0},
    ),
    Case(
        "β > 0, reference follows",
        {
            "loss_type": "grpo",
            **NO_BIAS_CORRECTION,
            "sync_ref_model": True,
            "ref_model_mixup_alpha": 0.6,
            "ref_model_sync_steps": 2,
        },
        {"kl": "k3", "kl.beta": 0.1, "reference": "ema", "reference.every": 1, **GRPO},
        {"reference": "frozen", "reference.every": None},
        note="TRL counts optimizer steps, here batches of rollouts: 2 of its steps are 1 of ours.",
    ),
]
