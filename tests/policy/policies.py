"""Small policies, made-up rollouts, and log-probs computed plainly, sequence by sequence."""

from __future__ import annotations

import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from grpolab.config import Run, bind_run
from grpolab.policy.locate import TINY
from grpolab.policy.policy import Encoder, Policy
from grpolab.rollouts import Rollouts
from grpolab.sweep.compose import expand, parse_command

VOCABULARY = 58
"""Of the random models; the embedded tokenizer knows at least these."""
END = 2
SHAPES: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 4, "max_position_embeddings": 128},
    "Qwen2": {"num_key_value_heads": 2, "max_position_embeddings": 128},
    "Qwen3": {"num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 12},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 5, "max_position_embeddings": 128},
    "Gemma2": {"num_key_value_heads": 2, "sliding_window": 5, "head_dim": 8},
}


@cache
def run_of(*overrides: str) -> Run:
    """A bound configuration on the CPU."""
    command = parse_command(["hardware.device=cpu", "tracking.mlflow=false", *overrides])
    return bind_run(expand(command).jobs[0].raw)


def policy_of(run: Run) -> Policy:
    """The policy of a run."""
    return Policy(Encoder(run.model), run.hardware, seed=run.seed)


def random_model(folder: Path, kind: str, **changes: Any) -> str:
    """Saves a random model of a family with the embedded tokenizer; its folder. The weights are
    large, so that its distributions are far from uniform and depend on every position."""
    settings: dict[str, Any]
    if kind == "GPT2":
        settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    else:
        settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        settings |= {"num_attention_heads": 4, **SHAPES[kind]}
    ends = {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0}
    settings |= {"vocab_size": VOCABULARY, "initializer_range": 0.25, **ends, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = getattr(transformers, f"{kind}Config")(**settings)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    return str(folder)


def family(folder: Path, kind: str) -> Policy:
    """A random model of a family as a policy; "tiny" is the embedded one."""
    if kind == "tiny":
        return policy_of(run_of())
    attention = "eager" if kind == "Gemma2" else "sdpa"  # Gemma 2 caps its scores
    name = random_model(folder, kind)
    return policy_of(run_of(f"model.name={name}", f"model.attention={attention}"))


NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


def wide_norms(model: Any) -> None:
    """Norms as wide as what they are given: Transformers' compute in float32 even in float64, which
    costs a comparison at 1e-10 nine digits."""
    for module in model.modules():
        if type(module).__name__ in NORMS:
            module.forward = partial(_norm, module)


def _norm(module: Any, x: Tensor) -> Tensor:
    variance = x.square().mean(dim=-1, keepdim=True)
    weight: Tensor = module.weight
    return weight * (x * torch.rsqrt(variance + module.variance_epsilon))


def double(policy: Policy) -> Policy:
    """The policy in float64, for comparisons at rounding error."""
    policy.model.double()
    wide_norms(policy.model)
    policy.dtype = torch.float64
    return policy


def made_up_rollouts(
    prompt_lengths: list[int],
    lengths: list[int],
    *,
    group_size: int,
    seed: int = 0,
    width: int | None = None,
    prompt_width: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Rollouts:
    """Random tokens of given lengths, random advantages; padding holds garbage. Its content does
    not depend on the paddings' widths."""
    source = torch.Generator().manual_seed(seed)
    n, groups = len(lengths), len(lengths) // group_size
    prompt_width = prompt_width or max(prompt_lengths)
    width = width or max(1, *lengths)
    prompts = torch.randint(3, VOCABULARY, (groups, 60), generator=source)
    completions = torch.randint(3, VOCABULARY, (n, 60), generator=source)
    advantages = torch.randn(groups, group_size, generator=source, dtype=dtype)
    sampled = -torch.rand(n, 60, generator=source, dtype=dtype)
    sizes = torch.tensor(prompt_lengths).repeat_interleave(group_size)
    return Rollouts(
        prompt_ids=prompts.repeat_interleave(group_size, 0)[:, :prompt_width],
        prompt_lengths=sizes,
        completion_ids=completions[:, :width],
        mask=torch.arange(width) < torch.tensor(lengths).unsqueeze(1),
        group_size=group_size,
        prompt_index=torch.arange(groups),
        truncated=torch.zeros(n, dtype=torch.bool),
        sampler_logps=sampled[:, :width],
        sampler_policy_logps=sampled[:, :width],
        rewards=torch.randn(groups, group_size, generator=source, dtype=dtype),
        advantages=advantages,
    )


def plain_logits(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """[len(completion), V] from one sequence without padding, cache or masks."""
    logits: Tensor = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : len(prompt) - 1 + len(completion)]


def plain_logps(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """[len(completion)] log-probs of a completion."""
    logits = plain_logits(model, prompt, completion)
    chosen = torch.tensor(completion, dtype=torch.long).unsqueeze(1)
    return logits.log_softmax(dim=-1).gather(1, chosen).squeeze(1)


def sequence(rollouts: Rollouts, row: int) -> tuple[list[int], list[int]]:
    """(prompt, completion) of one row."""
    prompt = rollouts.prompt_ids[row, : int(rollouts.prompt_lengths[row])].tolist()
    return prompt, rollouts.completion_ids[row][rollouts.mask[row]].tolist()
