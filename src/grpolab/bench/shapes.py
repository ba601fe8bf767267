"""Models that exist as shapes alone: Qwen2.5's, with weights drawn at load."""

from __future__ import annotations

from pathlib import Path

from grpolab.policy.locate import TINY

QWEN2 = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
             "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
             "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
}  # fmt: skip
COMMON = {"vocab_size": 151936, "max_position_embeddings": 4096}


def shaped_model(folder: Path, size: str, shrink: int = 1) -> str:
    """A folder with Qwen2.5's shapes and the tiny model's tokenizer; load it with
    `model.random_weights`.

    Args:
        shrink: divides layers and vocabulary, to test on a small machine.
    """
    from transformers import AutoTokenizer, Qwen2Config

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    shapes = {**COMMON, **QWEN2[size], "eos_token_id": tokenizer.eos_token_id}
    shapes["num_hidden_layers"] = max(1, shapes["num_hidden_layers"] // shrink)
    shapes["vocab_size"] = max(len(tokenizer), shapes["vocab_size"] // shrink)
    Qwen2Config(**shapes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
