"""Which settings of TRL correspond to which of ours."""

from __future__ import annotations

from .case import Case
from .losses import FREE, GRPO, GSPO, KLS, LOSSES, NO_BIAS_CORRECTION, ONE_MICRO_BATCH

TIES = (
    "A group's first tokens have one entropy; where the threshold falls on it, rounding decides in "
    "both. The shares here are such that it does not."
)
SCHEDULE = (
    "TRL moves the learning rate with each optimizer step, here it is a batch's. Equal with one "
    "update per batch."
)


ADVANTAGES = [
    Case(
        "scale_rewards=group",
        {"scale_rewards": "group"},
        {"advantage": "group_zscore"},
        {"advantage.ddof": 0},
    ),
    Case(
        "scale_rewards=batch",
        {"scale_rewards": "batch"},
        {"advantage": "batch_std"},
        {"advantage.std_of": "centered"},
    ),
    Case(
        "scale_rewards=none",
        {"scale_rewards": "none"},
        {"advantage": "group_center"},
        {"advantage": "rloo"},
    ),
    Case(
        "unscorable rewards, group",
        {"scale_rewards": "group"},
        {"advantage": "group_zscore"},
        {"advantage": "group_center"},
        unscorable=True,
    ),
    Case(
        "unscorable rewards, batch",
        {"scale_rewards": "batch"},
        {"advantage": "batch_std"},
        {"advantage": "group_zscore"},
        unscorable=True,
    ),
    Case(
        "normalize_then_sum",
        {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [2.0, 0.5]},
        {
            "advantage": "gdpo",
            "reward": "mixture",
            "reward.parts": "{first:{name:task,weight:2.0},second:{name:task,weight:0.5}}",
        },
        {"advantage.batch": "none"},
        parts=True,
    ),
]

MASKS = [
    Case(
        "truncated masked, grpo",
        {"loss_type": "grpo", "mask_truncated_completions": True},
        {"clip.masks": "[truncated]", **GRPO},
        {"clip.masks": "[]"},
    ),
    Case(
        "truncated masked, dapo, β > 0",
        {"loss_type": "dapo", "mask_truncated_completions": True, "beta": 0.1},
        {"clip.masks": "[truncated]", "kl": "weighted_k3", "kl.beta": 0.1},
        {"clip.masks": "[]"},
    ),
    Case(
        "truncated masked, dr_grpo",
        {"loss_type": "dr_grpo", "mask_truncated_completions": True},
        {"clip.masks": "[truncated]", "aggregation": "seq_mean_token_sum_norm"},
        {"aggregation.count_empty": False},
    ),
    Case(
        "truncated masked, gspo",
        {"loss_type": "grpo", "mask_truncated_completions": True, **GSPO},
        {"clip": "gspo", "clip.masks": "[truncated]", **GRPO},
        {"clip.masks": "[]"},
    ),
    Case(
        "top entropy",
        {"top_entropy_quantile": 0.48, **ONE_MICRO_BATCH},
        {"clip.masks": "[{name:top_entropy,share:0.48}]"},
        {"clip.masks": "[]"},
        note=TIES,
    ),
    Case(
        "top entropy, β > 0, truncated masked",
        {
            "top_entropy_quantile": 0.35,
            "beta": 0.1,
            "mask_truncated_completions": True,
            **ONE_MICRO_BATCH,
        },
        {
            "clip.masks": "[{name:top_entropy,share:0.35},truncated]",
            "kl": "weighted_k3",
            "kl.beta": 0.1,
        },
        {"clip.masks": "[truncated]"},
        note=TIES,
    ),
    Case(
        "off-policy sequences",
        {"off_policy_mask_threshold": 0.1},
        {"clip.masks": "[{name:off_policy_sequence,delta:0.1}]"},
        {"clip.masks": "[]"},
    ),
    Case(
        "off-policy sequences, cispo, β > 0",
        {
            "loss_type": "cispo",
            "epsilon_high": 1.2,
            "off_policy_mask_threshold": 0.1,
            **NO_BIAS_CORRECTION,
        },
        {
            "clip": "cispo",
            "clip.ratio_max": 1.2,
            "clip.masks": "[{name:off_policy_sequence,delta:0.1}]",
            "kl": "k3",
            "kl.beta": 0.1,
        },
        {"clip.masks": "[]"},
    ),
]

TRUNCATE = {"correction": "truncate", "correction.cap": 1.2, "correction.floor": 0.8}
MASK = {"correction": "mask", "correction.high": 1.2, "correction.low": 0.8}
WHOLE_SEQUENCE = {"correction.level": "sequence_sum"}
UNCORRECTED = {
    "correction": "none",
    **dict.fromkeys(f"correction.{k}" for k in ("cap", "floor", "high", "low", "level")),
}
CORRECTIONS = [
    Case(
        f"sampler corrected, {mode}",
        {
            "vllm_importance_sampling_mode": mode,
            "vllm_importance_sampling_clip_max": 1.2,
            "vllm_importance_sampling_clip_min": 0.8,
            "beta": 0.1,
        },
        {**ours, "kl": "weighted_k3", "kl.beta": 0.1},
        UNCORRECTED,
        corrects=True,
    )
    for mode, ours in {
        "token_truncate": TRUNCATE,
        "token_mask": MASK,
        "sequence_truncate": TRUNCATE | WHOLE_SEQUENCE,
        "sequence_mask": MASK | WHOLE_SEQUENCE,
    }.items()
]

OPTIMIZER = [
    Case(
        "max_grad_norm=0.3",
        {"max_grad_norm": 0.3},
        {"optimizer.max_grad_norm": 0.3},
        {"optimizer.max_grad_norm": 1e6},
    ),
    Case(
        "linear schedule",
        {"lr_scheduler_type": "linear"},
        {"optimizer.schedule": "linear"},
        {"optimizer.schedule": "constant"},
        iterations=1,
        note=SCHEDULE,
    ),
    Case(
        "cosine schedule",
        {"lr_scheduler_type": "cosine"},
        {"optimizer.schedule": "cosine"},
        {"optimizer.schedule": "constant"},
        iterations=1,
        note=SCHEDULE,
    ),
    Case(
        "warm-up",
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2},
        {"optimizer.warmup_steps": 2},
        {},
        iterations=1,
        first_step=-1,
        note="TRL's warm-up begins at 0, so that its first step changes nothing; ours reaches the "
        "peak one step earlier. Run with our steps counted from −1.",
    ),
    Case(
        "weight decay",
        {"weight_decay": 0.5},
        {"optimizer.weight_decay": 0.5, "optimizer.decay": "matrices"},
        {"optimizer.decay": "all"},
        note="TRL spares biases and normalisation layers; here that is a setting, and by default "
        "all weights decay.",
    ),
    Case(
        "temperature",
        {"temperature": 0.7},
        {"sampler.temperature": 0.7, "sampler.match_temperature": "true"},
        {"sampler.match_temperature": "false"},
        note="TRL always trains the tempered policy; here that is a setting, and by default the "
        "temperature is the sampler's alone.",
    ),
]

APART = [
    Case(
        "top entropy, two micro-batches",
        {"top_entropy_quantile": 0.48},
        {"clip.masks": "[{name:top_entropy,share:0.48}]"},
        {},
        apart=True,
        note="TRL's threshold is each micro-batch's, ours the optimizer step's. Equal with one "
        "micro-batch.",
    ),
    Case(
        "bnpo, shuffled",
        {"loss_type": "bnpo"},
        {"aggregation": "token_mean_micro", "aggregation.rows": 8},
        {},
        apart=True,
        note="Whom a row shares its micro-batch with is chance in TRL. Equal without its shuffle.",
    ),
    Case(
        "learned positions, left padding",
        {"loss_type": "grpo", "disable_dropout": True},
        GRPO,
        {},
        model="GPT2",
        apart=True,
        note="TRL pads prompts on the left and gives no positions, so that those of GPT-2 begin "
        "behind the padding; here they count from 0. Rotary positions do not mind. Equal with "
        "prompts of one length.",
    ),
    Case(
        "vespo, sampler corrected",
        {
            "loss_type": "vespo",
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": 1.2,
            "vllm_importance_sampling_clip_min": 0.8,
        },
        {"clip": "vespo", **TRUNCATE},
        {},
        corrects=True,
        apart=True,
        note="TRL adds the logarithms of the correction's weights to that of the sequence's; here "
        "they multiply the loss, as everywhere else. Equal without a correction.",
    ),
    Case(
        "off-policy sequences, sampler corrected",
        {
            "off_policy_mask_threshold": 0.05,
            "vllm_importance_sampling_mode": "token_truncate",
            "vllm_importance_sampling_clip_max": 1.2,
            "vllm_importance_sampling_clip_min": 0.8,
        },
        {"clip.masks": "[{name:off_policy_sequence,delta:0.05}]", **TRUNCATE},
        {},
        corrects=True,
        apart=True,
        note="TRL measures how far a sequence strayed from the sampler's log-probs where it has "
        "them, here always from the trainer's own. Equal without the sampler's.",
    ),
]
GPT2 = Case(
    "learned positions, prompts of one length",
    {"loss_type": "grpo", "disable_dropout": True, "adam_epsilon": 1e-4},
    GRPO | {"optimizer.eps": 1e-4},
    FREE,
    model="GPT2",
    one_prompt_length=True,
    note="TRL trains with the model's dropout unless disable_dropout; ours never does. Adam's "
    "eps is larger since the gradient of GPT-2's key biases is 0: Adam would follow its rounding.",
)
CASES = [*LOSSES, *KLS, *ADVANTAGES, *MASKS, *CORRECTIONS, *OPTIMIZER, GPT2, *APART]
