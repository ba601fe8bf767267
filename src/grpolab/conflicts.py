"""Settings that contradict each other, refused before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpolab.component import ConfigError

if TYPE_CHECKING:
    from grpolab.config import Run


def check_conflicts(run: Run) -> None:
    """Refuses settings that contradict each other, before anything is loaded."""
    check_advantage(run)
    if run.seed in run.tracking.tuned_on:
        raise ConfigError(
            f"seed: {run.seed} given, on which this configuration was tuned (tracking.tuned_on: "
            f"{run.tracking.tuned_on}); allowed: other seeds."
        )
    if run.kl.needs_reference and not run.reference.exists:
        raise ConfigError(
            f"reference: none given with kl={run.kl.name}, which needs one; "
            "allowed: reference=frozen or reference=old, or kl=none."
        )
    if run.kl.needs_logits and not run.reference.needs_model:
        raise ConfigError(
            f"reference: {run.reference.name} given with kl={run.kl.name}, which needs the "
            "reference's whole distribution; allowed: reference=frozen, sync or ema."
        )
    partial = run.sampler.match_support and run.sampler.truncates
    if partial and run.kl.needs_reference and not run.reference.needs_model:
        raise ConfigError(
            f"reference: {run.reference.name} given with sampler.match_support, under which the "
            "old policy is known on the sampler's support alone while the KL needs the whole; "
            "allowed: reference=frozen, sync or ema, or kl=none."
        )
    if run.reference.moves and run.model.lora is not None:
        raise ConfigError(
            f"reference: {run.reference.name} given with model.lora, which keeps no second copy "
            "of the weights that could move; allowed: reference=frozen, old or none."
        )
    placement = getattr(run.kl, "placement", "loss")
    if placement != "loss" and not run.reference.needs_model and not run.selection.replays:
        raise ConfigError(
            f"reference: {run.reference.name} given with kl.placement={placement}, where "
            "the KL to the policy that generated the batch is 0; allowed: a reference of frozen, "
            "sync or ema, or kl.placement=loss."
        )
    if run.kl.name == "seed_kl_div" and run.reference.needs_model:
        raise ConfigError(
            f"reference: {run.reference.name} given with kl=seed_kl_div, whose other distribution "
            "is the old policy; allowed: reference=old."
        )
    if getattr(run.sampler, "cuda_graphs", False) and run.hardware.engine == "plain":
        raise ConfigError(
            "sampler.cuda_graphs: true given with hardware.engine=plain, whose steps are "
            "Transformers' own; allowed: false, or hardware.engine=auto."
        )
    target_kl = getattr(run.kl, "target_kl", None)
    if target_kl is not None and run.updates_per_batch == 1:
        raise ConfigError(
            f"kl.target_kl: {target_kl} given with updates_per_batch=1, where there is no further "
            "update to stop; allowed: null, or updates_per_batch of at least 2."
        )
    check_selection(run)
    check_hardware(run)
    if run.updates_per_batch % run.minibatches:
        raise ConfigError(
            f"updates_per_batch: {run.updates_per_batch} given with minibatches="
            f"{run.minibatches}; allowed: a multiple of minibatches (epochs × minibatches)."
        )
    if run.minibatches > run.prompts_per_step:
        raise ConfigError(
            f"minibatches: {run.minibatches} given; allowed: at most prompts_per_step "
            f"({run.prompts_per_step}), since groups stay together."
        )
    try:
        run.reward.check_limit(run.sampler.max_new_tokens)
    except ValueError as error:
        raise ConfigError(f"reward.{error}") from error
    bad = set(run.study) & set('/\\:*?"<>|')
    if bad or not run.study.strip() or run.study.startswith("."):
        raise ConfigError(f"study: {run.study!r} given; allowed: a plain folder name.")


def check_advantage(run: Run) -> None:
    """Refuses what contradicts the advantage estimator."""
    name, size = run.advantage.name, run.sampler.group_size
    if run.advantage.needs_group and size < 2:
        raise ConfigError(
            f"sampler.group_size: {size} given with advantage="
            f"{name}, which compares within a group; allowed: at least 2."
        )
    trained = getattr(run.selection, "keep", None) or size
    if name == "pass_at_k" and run.advantage.mode == "analytic" and run.advantage.k >= trained:
        raise ConfigError(
            f"advantage.k: {run.advantage.k} given with {trained} trained completions a prompt, "
            "whose subsets of k all have the same best member; allowed: less than their number."
        )
    placement = getattr(run.kl, "placement", "loss")
    if name == "gdpo" and placement == "reward" and getattr(run.reward, "weights", None):
        raise ConfigError(
            "kl.placement: reward given with advantage=gdpo and a mixture, whose parts the KL is "
            "none of; allowed: loss or reward_to_go."
        )
    by_token = run.advantage.token_level or placement == "reward_to_go"
    if run.clip.level == "sequence" and by_token and not run.clip.token_wise:
        key, given = (
            ("advantage", name) if run.advantage.token_level else ("kl.placement", placement)
        )
        raise ConfigError(
            f"{key}: {given} given with clip={run.clip.name}, which has one loss for a whole "
            "sequence while the advantages differ from token to token; allowed: clips with an "
            "advantage for each token, such as ppo, gspo_token or vespo."
        )


def check_checkpointing(run: Run) -> None:
    """Refuses `gradient_checkpointing` where the update runs through Transformers' layers."""
    cases = (
        (run.hardware.engine == "plain", "hardware.engine=plain", "hardware.engine=auto"),
        (run.kl.needs_logits, f"kl={run.kl.name}", "a kl that needs no whole logits, such as k3"),
        (
            not run.sampler.evaluation().scales,
            "sampler.match_support=true",
            "sampler.match_support=false",
        ),
    )
    for given, key, allowed in cases:
        if given:
            raise ConfigError(
                f"hardware.gradient_checkpointing: true given with {key}, where the layers keep "
                f"all they compute; allowed: false, or {allowed}."
            )


def check_hardware(run: Run) -> None:
    """Refuses what an engine does not do, and what cannot be shared out over ranks, also where one
    process alone has it all."""
    if run.hardware.gradient_checkpointing:
        check_checkpointing(run)
    if run.hardware.shard == "none":
        return
    key, given, allowed = "", "", ""
    if run.model.lora is not None:
        key, given, allowed = "model.lora", "adapters", "null, or hardware.shard=none"
    elif run.hardware.dtype == "float16":
        key, given, allowed = "hardware.dtype", "float16", "bfloat16 or float32"
    if key:
        raise ConfigError(
            f"{key}: {given} given with hardware.shard={run.hardware.shard}; allowed: {allowed}."
        )


def check_selection(run: Run) -> None:
    """Refuses a selection of members that the groups or the advantage cannot give or use."""
    if run.selection.compares and run.sampler.group_size < 2:
        raise ConfigError(
            f"sampler.group_size: {run.sampler.group_size} given with selection="
            f"{run.selection.name}, which drops every group of one; allowed: at least 2."
        )
    keep = getattr(run.selection, "keep", None)
    if keep is None:
        return
    if keep > run.sampler.group_size:
        raise ConfigError(
            f"selection.keep: {keep} given; allowed: at most sampler.group_size "
            f"({run.sampler.group_size})."
        )
    if keep < 2 and run.advantage.needs_group:
        raise ConfigError(
            f"selection.keep: {keep} given with advantage={run.advantage.name}, which compares "
            "within a group; allowed: at least 2."
        )
