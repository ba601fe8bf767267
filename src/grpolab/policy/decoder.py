"""The parts of a Llama-like model, by the role they play: what the fast paths are written over.

Which family a model is of is decided here alone. All others run through Transformers' own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""(cos, sin) [n, 1, head_dim / 2] of n tokens."""
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries [n, H, D], keys [n, Hkv, D], values [n, Hkv, D]) → [n, H·D]. Who sees whom is its
affair alone: all else in a decoder works on single tokens."""

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
"""`model_type`s whose layer is: norm, attention with rotary positions (and, Qwen3, a norm of
queries and keys), norm, gated SiLU. SmolLM2 and the embedded model are Llamas."""
STATIC_ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary kinds whose frequencies do not depend on the length of the sequence."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer's modules: `nn.Linear`, or LoRA's around one."""

    module: Any
    """Transformers' own, which the others are parts of."""
    input_norm: Any
    q: Any
    k: Any
    v: Any
    o: Any
    q_norm: Any
    """None but for Qwen3."""
    k_norm: Any
    mlp_norm: Any
    gate: Any
    up: Any
    down: Any


@dataclass(frozen=True)
class Decoder:
    """A causal language model with `layers` of one kind, each attending to all positions before."""

    module: Any
    """Transformers' own."""
    embedding: Any
    layers: list[Layer]
    norm: Any
    head: Any
    rotary: Any
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    """Scores are multiplied by it."""

    @staticmethod
    def of(model: Any) -> Decoder | None:
        """The parts of a Transformers model, PEFT's wrapper taken off; None if it has others."""
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        config = model.config
        if not is_known(config):
            return None
        attention = model.model.layers[0].self_attn
        return Decoder(
            module=model,
            embedding=model.model.embed_tokens,
            layers=[_layer(layer) for layer in model.model.layers],
            norm=model.model.norm,
            head=model.lm_head,
            rotary=model.model.rotary_emb,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            scaling=float(attention.scaling),
        )

    @property
    def device(self) -> torch.device:
        found: torch.device = self.embedding.weight.device
        return found

    def embed(self, tokens: Tensor) -> Tensor:
        """[n] → [n, d], the start of the residual stream: float32 at least."""
        x = torch.nn.functional.embedding(tokens, self.embedding.weight)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """At positions [n]. Half of it: Transformers' second half repeats the first."""
        like = torch.empty(0, dtype=dtype, device=positions.device)
        cos, sin = self.rotary(like, positions.unsqueeze(0))
        half = self.head_dim // 2
        return cos[0, :, None, :half], sin[0, :, None, :half]


def is_known(config: Any) -> bool:
    """Whether a Transformers configuration is of a family that this decoder is written for."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) is not None
    windowed = windowed and getattr(config, "use_sliding_window", True)
    rotary = getattr(config, "rope_parameters", None) or {}
    return (
        getattr(config, "model_type", None) in FAMILIES
        and set(kinds) == {"full_attention"}
        and not windowed
        and config.hidden_act in ("silu", "swish")
        and getattr(config, "pretraining_tp", 1) == 1
        and rotary.get("rope_type", "default") in STATIC_ROTARY
        and rotary.get("partial_rotary_factor", 1.0) == 1.0
    )


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        layer,
        layer.input_layernorm,
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        getattr(attention, "q_norm", None),
        getattr(attention, "k_norm", None),
        layer.post_attention_layernorm,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    )


@torch.no_grad()
def effective(module: Any) -> tuple[Tensor, Tensor | None]:
    """(weight [N, K], bias [N] or None) that a linear module amounts to, adapters merged in."""
    if type(module) is torch.nn.Linear:
        return module.weight, module.bias
    base = module.get_base_layer()
    weight = base.weight
    if not module.disable_adapters:
        for name in module.active_adapters:
            weight = weight + module.get_delta_weight(name).to(weight)
    return weight, base.bias


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotary positions: x [n, H, D], the halves of each head turned."""
    cos, sin = rotation
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    a, b = x[..., :half], x[..., half:]
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin)
    return out
