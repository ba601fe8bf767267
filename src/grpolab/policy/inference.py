"""A decoder's weights laid out for sampling, and its layers over them; no gradients."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from grpolab.policy.decoder import Attend, Decoder, Layer, Rotation, effective, rotate
from grpolab.policy.kernels import PackedLinear


class InferenceWeights:
    """A snapshot of a decoder: adapters merged, products that read the same tokens joined, weights
    in `dtype` and in the layout of the fastest kernel. Norms, embedding and the residual stream
    stay float32 at least, as under autocast.

    Args:
        rows: tokens of a decode step, which the layout is best for.
    """

    @torch.no_grad()
    def __init__(self, decoder: Decoder, dtype: torch.dtype, rows: int) -> None:
        self.decoder, self.dtype = decoder, dtype
        self.layers = [InferenceLayer(decoder, layer, dtype, rows) for layer in decoder.layers]
        self.head = joined([decoder.head], dtype, rows)

    def hidden(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """All layers over embedded tokens x [n, d]; the last norm is `logits`'s."""
        for index, layer in enumerate(self.layers):
            q, k, v = layer.qkv(x, rotation)
            x = layer.o.plus(attend(index, q, k, v).to(self.dtype), x)
            x = layer.plus_mlp(x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """[n, V] float32 at least, after hidden states x [n, d]."""
        found = self.head(norm(self.decoder.norm, x).to(self.dtype))
        return found.to(torch.promote_types(self.dtype, torch.float32))


class InferenceLayer:
    """One layer's snapshot."""

    def __init__(self, decoder: Decoder, layer: Layer, dtype: torch.dtype, rows: int) -> None:
        self.decoder, self.modules, self.dtype = decoder, layer, dtype
        self._qkv = joined([layer.q, layer.k, layer.v], dtype, rows)
        self.o = joined([layer.o], dtype, rows)
        self._gate = joined([layer.gate], dtype, rows)
        self._up = joined([layer.up], dtype, rows)
        self._down = joined([layer.down], dtype, rows)

    def qkv(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [n, H, D], rotated keys and values [n, Hkv, D]."""
        d = self.decoder
        joint = self._qkv(norm(self.modules.input_norm, x).to(self.dtype))
        joint = joint.to(attention_dtype(joint.dtype, joint.device)).view(len(x), -1, d.head_dim)
        if self.modules.q_norm is None:
            turned = rotate(joint[:, : d.heads + d.kv_heads], rotation)
            return turned[:, : d.heads], turned[:, d.heads :], joint[:, d.heads + d.kv_heads :]
        q, k, v = torch.split(joint, [d.heads, d.kv_heads, d.kv_heads], dim=1)
        q, k = norm(self.modules.q_norm, q), norm(self.modules.k_norm, k)
        return rotate(q, rotation), rotate(k, rotation), v

    def plus_mlp(self, x: Tensor) -> Tensor:
        """x [n, d] + mlp(x)."""
        seen = norm(self.modules.mlp_norm, x).to(self.dtype)
        return self._down.plus(self._up.times(seen, self._gate.silu(seen)), x)


def joined(modules: list[Any], dtype: torch.dtype, rows: int) -> PackedLinear:
    """One product in place of several over the same tokens."""
    pairs = [effective(m) for m in modules]
    weight = torch.cat([w.to(dtype) for w, _ in pairs]) if len(pairs) > 1 else pairs[0][0].to(dtype)
    biases = [b.to(dtype) for _, b in pairs if b is not None]
    return PackedLinear(weight, torch.cat(biases) if biases else None, rows)


def norm(module: Any, x: Tensor) -> Tensor:
    """Root-mean-square norm of x [..., d] in its own dtype: a third of the time that PyTorch's own
    takes on the few rows of a decode step."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    eps = constant(module.variance_epsilon, x.dtype, x.device)
    scale = torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_()
    found: Tensor = (x * scale).mul_(module.weight)
    return found


@cache
def constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor, made once."""
    return torch.tensor(value, dtype=dtype, device=device)


def attention_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Small products in bfloat16 are slow on a CPU: there attention is float32."""
    return torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype
