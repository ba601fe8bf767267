"""A decoder's layers for training: the same mathematics as Transformers', with less kept for the
backward pass, over packed tokens.

Each function below saves what its gradient needs and no more, and knows its derivative in forward
mode (`jvp`), which the probe takes; products run on the kernels of `grpolab.policy.kernels`. Below
float32 the products run in the lower dtype while norms, residual stream and gradients of weights
stay wide, as under autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from grpolab.policy import kernels
from grpolab.policy.attention import attend_packed
from grpolab.policy.decoder import Attend, Decoder, Layer, Rotation, rotate
from grpolab.policy.packing import Packing
from grpolab.policy.sharding import within


class Norm(torch.autograd.Function):
    """y = w · x / rms(x) over the last dimension; keeps x and 1/rms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        ctx.save_for_forward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        x, weight, scale = ctx.saved_tensors
        dx, dweight, _ = tangents
        unit = x * scale
        dunit = (dx - unit * (unit * dx).mean(dim=-1, keepdim=True)).mul_(scale)
        found: Tensor = dunit.mul_(weight).add_(unit.mul_(dweight))
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        (grad,) = grads
        unit = x * scale
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = (grad * unit).flatten(0, -2).sum(dim=0)
        grad = grad * weight
        # d/dx of x·scale: the part of the gradient along x is taken off
        along = (grad * unit).mean(dim=-1, keepdim=True)
        return grad.sub_(unit.mul_(along)).mul_(scale), weight_grad, None


class Linear(torch.autograd.Function):
    """y = x Wᵀ + b. Products run in the dtype of x; W's gradient has W's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        lower = None if bias is None else bias.to(x.dtype)
        return kernels.linear(x, weight.to(x.dtype), lower)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        x, weight = ctx.saved_tensors
        dx, dweight, dbias = tangents
        lower = None if dbias is None else dbias.to(x.dtype)
        found = kernels.linear(dx, weight.to(x.dtype), lower)
        return found.add_(kernels.linear(x, dweight.to(x.dtype)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        x_grad = kernels.linear(grad, weight.to(grad.dtype).t()) if needs_x else None
        weight_grad = (grad.t() @ x).to(weight.dtype) if needs_weight else None
        bias_grad = grad.sum(dim=0).to(ctx.bias_dtype) if needs_bias else None
        return x_grad, weight_grad, bias_grad


class Rotate(torch.autograd.Function):
    """Rotary positions; keeps nothing, since turning back is turning by −θ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.save_for_forward(cos, sin)
        return rotate(x, (cos, sin))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        cos, sin = ctx.saved_tensors
        return rotate(tangents[0], (cos, sin))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return rotate(grads[0], (cos, -sin)), None, None


class Gated(torch.autograd.Function):
    """y = (silu(gate) · up) Wᵀ; keeps gate and up, and computes their product again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        ctx.save_for_forward(gate, up, weight)
        return kernels.linear(functional.silu(gate).mul_(up), weight.to(gate.dtype))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        gate, up, weight = ctx.saved_tensors
        dgate, dup, dweight = tangents
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        slope = sigmoid.addcmul_(silu, 1 - sigmoid)
        inner = slope.mul_(dgate).mul_(up).addcmul_(silu, dup)
        found = kernels.linear(inner, weight.to(gate.dtype))
        return found.add_(kernels.linear(silu.mul_(up), dweight.to(gate.dtype)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        (grad,) = grads
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        weight_grad = None
        if ctx.needs_input_grad[2]:
            weight_grad = (grad.t() @ (silu * up)).to(weight.dtype)
        inner = kernels.linear(grad, weight.to(grad.dtype).t())
        up_grad = inner * silu
        # silu'(z) = σ(z) + silu(z)·(1 − σ(z))
        slope = silu.mul_(1 - sigmoid).add_(sigmoid)
        return inner.mul_(up).mul_(slope), up_grad, weight_grad


def project(module: Any, x: Tensor) -> Tensor:
    """A linear module on x [n, K]; LoRA's own forward where it is one."""
    if type(module) is torch.nn.Linear:
        plain: Tensor = Linear.apply(x, module.weight, module.bias)  # type: ignore[no-untyped-call]
        return plain
    with torch.autocast(x.device.type, dtype=x.dtype, enabled=x.dtype != module_dtype(module)):
        found: Tensor = module(x)
        return found


def module_dtype(module: Any) -> torch.dtype:
    """Of a module's weights."""
    found: torch.dtype = next(module.parameters()).dtype
    return found


def norm(module: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., d] → [..., d] in `dtype`, computed as wide as x."""
    found: Tensor = Norm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return found.to(dtype)


def hidden_states(
    decoder: Decoder, packing: Packing, dtype: torch.dtype, *, checkpointing: bool = False
) -> Tensor:
    """[M, d] in `dtype`, after the last norm: those that predict the packed rows' completions.

    Args:
        dtype: of the products; norms and the residual stream are float32 at least.
        checkpointing: keep each layer's input alone, and run the layer again in the backward pass.
    """
    x = decoder.embed(packing.tokens)
    rotation = decoder.rotation(packing.positions, torch.promote_types(dtype, torch.float32))

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_packed(q, k, v, packing.blocks, decoder.scaling)

    for index, modules in enumerate(decoder.layers):
        layer = TrainingLayer(decoder, modules, dtype)
        run = remembered(layer) if checkpointing and torch.is_grad_enabled() else layer
        x = within(modules.module, run, x, rotation, attend, index)
    return norm(decoder.norm, x.index_select(0, packing.predicting), dtype)


def remembered(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, of which its arguments alone are kept for the backward pass."""
    return partial(checkpoint, layer, use_reentrant=False)


class TrainingLayer:
    """One layer over the trained parameters."""

    def __init__(self, decoder: Decoder, layer: Layer, dtype: torch.dtype) -> None:
        self.decoder, self.modules, self.dtype = decoder, layer, dtype

    def __call__(self, x: Tensor, rotation: Rotation, attend: Attend, index: int) -> Tensor:
        """x [n, d] → [n, d]."""
        q, k, v = self.qkv(x, rotation)
        x = x + project(self.modules.o, attend(index, q, k, v).to(self.dtype))
        return x + self.mlp(norm(self.modules.mlp_norm, x, self.dtype))

    def qkv(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [n, H, D], rotated keys and values [n, Hkv, D]."""
        m = self.modules
        seen = norm(m.input_norm, x, self.dtype)
        q, k, v = (
            project(module, seen).view(len(x), -1, self.decoder.head_dim)
            for module in (m.q, m.k, m.v)
        )
        if m.q_norm is not None:
            q, k = norm(m.q_norm, q, q.dtype), norm(m.k_norm, k, k.dtype)
        return self._rotate(q, rotation), self._rotate(k, rotation), v

    def _rotate(self, x: Tensor, rotation: Rotation) -> Tensor:
        cos, sin = (r.to(x.dtype) for r in rotation)
        found: Tensor = Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
        return found

    def mlp(self, x: Tensor) -> Tensor:
        """[n, d] → [n, d]."""
        m = self.modules
        gate, up = project(m.gate, x), project(m.up, x)
        if type(m.down) is torch.nn.Linear and m.down.bias is None:
            found: Tensor = Gated.apply(gate, up, m.down.weight)
            return found
        return project(m.down, functional.silu(gate) * up)
