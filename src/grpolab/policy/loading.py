"""Weights from safetensors, copies of them, adapters around them, and the tokens that end a
completion."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from grpolab.component import ConfigError
from grpolab.config import Lora
from grpolab.rng import global_stream

if TYPE_CHECKING:
    from grpolab.policy.policy import Encoder


def frozen(model: Any, dtype: torch.dtype) -> Any:
    """A copy without gradients, its parameters in `dtype`. Buffers stay as they are: rotary
    frequencies rounded to bfloat16 would turn far positions by whole radians."""
    copied = copy.deepcopy(model).requires_grad_(False)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype)
    return copied


def quiet() -> None:
    """Transformers' bars say nothing that our own progress does not, and its warnings on loading
    (lengths, kinds) nothing that our checks do not, which refuse in a sentence."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_model(encoder: Encoder, dtype: torch.dtype, seed: int) -> Any:
    """The weights, from safetensors only; or random ones of the same shapes."""
    from transformers import AutoModelForCausalLM

    attention = encoder.settings.attention
    if encoder.settings.random_weights:
        with global_stream(seed, "init"):
            return AutoModelForCausalLM.from_config(
                encoder.config, dtype=dtype, attn_implementation=attention
            )
    try:
        return AutoModelForCausalLM.from_pretrained(
            encoder.path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention,
        )
    except (OSError, ValueError, ImportError) as error:  # no safetensors, no such attention
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model: {encoder.settings.name!r} does not load with model.attention={attention} "
            f"({reason}); allowed: safetensors weights and an attention the model family has."
        ) from error


def with_lora(model: Any, lora: Lora, seed: int) -> Any:
    """The model with adapters; they start as the identity."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(
            "model.lora needs the package peft: pip install 'grpolab[lora]'."
        ) from error
    with global_stream(seed, "init"):
        return get_peft_model(
            model,
            LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                target_modules=lora.target_modules,
                task_type="CAUSAL_LM",
            ),
        )


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a completion: the generation config's, or else the tokenizer's."""
    found = getattr(model.generation_config, "eos_token_id", None)
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        raise ConfigError("model.name: the model has no end token; allowed: one with an eos token.")
    ids = list(found) if isinstance(found, (list, tuple)) else [int(found)]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(int(tokenizer.eos_token_id))
    return ids
