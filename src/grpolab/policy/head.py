"""Log-probs of given tokens from hidden states, some tokens at a time: no [M, V] tensor stands.

The logits of a chunk are made, read and dropped; the backward pass makes them again. What is kept
between the two, as exp(z − max), is bounded by `KEEP_BYTES`, whatever the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpolab.policy import kernels

CHUNK_LOGITS = 2**24
"""Logits at once."""
KEEP_BYTES = 2**28
"""Logits that are kept for the backward pass rather than made again: for small batches and small
vocabularies that spares a quarter of the head's products."""


@dataclass(frozen=True)
class HeadResult:
    """[M] each."""

    logps: Tensor
    entropy: Tensor
    """No gradient."""
    collision: Tensor | None
    """Σ_v π(v)², where asked for; no gradient."""


def shifted(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """[m, V] scaled logits less the largest of their row; float32 at least."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    z = kernels.linear(hidden, weight, bias).to(wide)
    if scale != 1:
        z.mul_(scale)
    return z.sub_(z.amax(dim=-1, keepdim=True))


def statistics(z: Tensor, tokens: Tensor, collision: bool) -> tuple[Tensor, ...]:
    """(log-probs of tokens [m], entropy, Σπ² or nothing, Σ exp(z)) [m] each, and exp(z), of shifted
    logits z [m, V], whose memory is used up."""
    chosen = z.gather(1, tokens.unsqueeze(1)).squeeze(1)
    e = z.exp()
    total = e.sum(dim=-1)
    mean = z.mul_(e).sum(dim=-1) / total  # E[z]
    squares = torch.linalg.vector_norm(e, dim=-1).square() / total.square() if collision else total
    return chosen - total.log(), total.log() - mean, squares, total, e


class TokenHead(torch.autograd.Function):
    """(log-probs, entropy, Σπ²) of softmax(scale · (h Wᵀ + b)) at given tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        scale: float,
        collision: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        lower = lowered(hidden, weight, bias)
        keeps = len(hidden) * len(weight) * 4 <= KEEP_BYTES and any(ctx.needs_input_grad)
        parts, kept = [], []
        for rows in chunks(len(hidden), len(weight)):
            z = shifted(hidden[rows], *lower, scale)
            *found, e = statistics(z, tokens[rows], collision)
            parts.append(found)
            if keeps:
                kept.append(e)
        logps, entropy, squares, total = (torch.cat(p) for p in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, bias, tokens, total, *kept)
        ctx.save_for_forward(hidden, weight, bias, tokens)
        ctx.scale = scale
        ctx.mark_non_differentiable(entropy, squares)
        return logps, entropy, squares

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, None, None]:
        hidden, weight, bias, tokens = ctx.saved_tensors
        dhidden, dweight, dbias = tangents[:3]
        lower, dlower = lowered(hidden, weight, bias), lowered(hidden, dweight, dbias)
        found = []
        for rows in chunks(len(hidden), len(weight)):
            weights = shifted(hidden[rows], *lower, ctx.scale).softmax(dim=-1)
            slope = kernels.linear(dhidden[rows], lower[0]).to(weights.dtype)
            slope = slope.add_(kernels.linear(hidden[rows], *dlower)).mul_(ctx.scale)
            chosen = slope.gather(1, tokens[rows].unsqueeze(1)).squeeze(1)
            found.append(chosen - (weights * slope).sum(dim=-1))
        return torch.cat(found), None, None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, total, *kept = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        lower = lowered(hidden, weight, bias)
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight) if needs_weight else None
        bias_grad = torch.zeros_like(bias) if needs_bias else None
        for index, rows in enumerate(chunks(len(hidden), len(weight))):
            e = kept[index] if kept else shifted(hidden[rows], *lower, ctx.scale).exp_()
            # ∂ log π(token) / ∂ logits = one-hot − π, times the gradient that comes in
            grad = grads[0][rows] * ctx.scale
            share = (-grad / total[rows]).unsqueeze(1)
            slope = e * share if kept else e.mul_(share)  # kept ones serve again
            slope.scatter_add_(1, tokens[rows].unsqueeze(1), grad.unsqueeze(1))
            slope = slope.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[rows] = kernels.linear(slope, lower[0].t())
            if weight_grad is not None:
                add_product(weight_grad, slope, hidden[rows])
            if bias_grad is not None:
                bias_grad += slope.sum(dim=0)
        return hidden_grad, weight_grad, bias_grad, None, None, None


def lowered(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The head in the dtype of the hidden states."""
    return weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)


def add_product(total: Tensor, slope: Tensor, hidden: Tensor) -> None:
    """total [V, d] += slopeᵀ [V, m] hidden [m, d]."""
    if slope.dtype == total.dtype:
        total.addmm_(slope.t(), hidden)
    else:
        total.add_(slope.t() @ hidden)


def chunks(rows: int, vocabulary: int) -> list[slice]:
    """Slices of rows whose logits are made at once."""
    size = max(1, CHUNK_LOGITS // vocabulary)
    return [slice(start, start + size) for start in range(0, max(1, rows), size)]


def token_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    *,
    scale: float = 1.0,
    collision: bool = False,
) -> HeadResult:
    """Of tokens [M] after hidden states [M, d], over a head of weight [V, d] and bias [V].

    Args:
        scale: logits are multiplied by it: 1 / temperature.
        collision: whether Σπ² is wanted.
    """
    logps, entropy, squares = TokenHead.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, tokens, scale, collision
    )
    return HeadResult(logps, entropy, squares if collision else None)
