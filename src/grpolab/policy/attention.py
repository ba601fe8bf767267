"""Attention over packed rows: each block of rows by itself, their contexts shared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from grpolab.policy.packing import Block

SCORES_AT_ONCE = 2**24
"""Up to so many scores, bfloat16 attention on a CPU is two plain products and a softmax: there the
backward pass of the fused kernel takes 4 to 6 times as long."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """[R, H, L, D] from q [R, H, L, D], k and v [R, Hkv, S + L, D]; causal without a mask [R, 1, L,
    S + L]."""
    rows, heads, length, width = q.shape
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or _scores(q, k) > SCORES_AT_ONCE:
        return functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=heads != k.shape[1],
        )
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool).tril()
    repeats = heads // k.shape[1]  # the queries of one key head as one matrix
    folded = q.reshape(rows, k.shape[1], repeats * length, width)
    scores = ((folded * scaling) @ k.transpose(-1, -2)).view(rows, -1, repeats, length, k.shape[2])
    weights = scores.masked_fill(~mask.unsqueeze(-3), -torch.inf).softmax(dim=-1)
    out: Tensor = weights.flatten(2, 3) @ v
    return out.view(rows, heads, length, width)


def _scores(q: Tensor, k: Tensor) -> int:
    return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]


class PackedAttention(torch.autograd.Function):
    """Attention of all blocks: [n, H·D] from q [n, H, D], k and v [n, Hkv, D].

    Keeps the packed q, k and v alone; the rows gathered from them, which hold a prompt once for
    each completion, are made again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: list[Block], scaling: float
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.save_for_forward(q, k, v)
        ctx.blocks, ctx.scaling = blocks, scaling
        out = torch.empty_like(q)
        for block in blocks:
            found = attend(*gathered(q, k, v, block), block.mask, scaling)
            out[block.queries[block.valid]] = found.transpose(1, 2)[block.valid]
        return out.flatten(1)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = tangents[:3]
        out = torch.empty_like(q)
        for whole in ctx.blocks:
            for block in whole.split(max(1, SCORES_AT_ONCE // (q.shape[1] * whole.scores))):
                found = turned(
                    gathered(q, k, v, block), gathered(dq, dk, dv, block), block, ctx.scaling
                )
                out[block.queries[block.valid]] = found.transpose(1, 2)[block.valid]
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        grad = grads[0].view_as(q)
        sums = [torch.zeros_like(t) for t in (q, k, v)]
        for block in ctx.blocks:
            a, b, c = (t.detach().requires_grad_() for t in gathered(q, k, v, block))
            with torch.enable_grad():
                out = attend(a, b, c, block.mask, ctx.scaling)
            padded = gather(grad, block.queries) * block.valid[:, :, None, None]
            parts = torch.autograd.grad(out, (a, b, c), padded.transpose(1, 2))
            for total, part, places in zip(
                sums, parts, (block.queries, block.keys, block.keys), strict=True
            ):
                total.index_add_(0, places.flatten(), part.transpose(1, 2).flatten(0, 1))
        return *sums, None, None


def turned(
    values: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor, Tensor, Tensor],
    block: Block,
    scaling: float,
) -> Tensor:
    """[R, H, L, D] the derivative of a block's attention along those of its q [R, H, L, D], k and
    v [R, Hkv, S + L, D]: with P = softmax(S), dP = P · (dS − Σ P · dS)."""
    repeats = values[0].shape[1] // values[1].shape[1]
    (q, k, v), (dq, dk, dv) = (
        (t[0], *(x.repeat_interleave(repeats, dim=1) for x in t[1:])) for t in (values, tangents)
    )
    mask = block.mask
    if mask is None:
        length = q.shape[2]
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    weights = ((q * scaling) @ k.mT).masked_fill(~mask, -torch.inf).softmax(dim=-1)
    slope = ((dq * scaling) @ k.mT).add_((q * scaling) @ dk.mT).mul_(weights)
    slope = slope - weights * slope.sum(dim=-1, keepdim=True)
    found: Tensor = slope @ v + weights @ dv
    return found


def gather(packed: Tensor, places: Tensor) -> Tensor:
    """[R, L, H, D] of packed [n, H, D] at places [R, L]."""
    return packed.index_select(0, places.flatten()).view(*places.shape, *packed.shape[1:])


def gathered(q: Tensor, k: Tensor, v: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """A block's queries [R, H, L, D], keys and values [R, Hkv, S + L, D]."""
    return (
        gather(q, block.queries).transpose(1, 2),
        gather(k, block.keys).transpose(1, 2),
        gather(v, block.keys).transpose(1, 2),
    )


def attend_packed(q: Tensor, k: Tensor, v: Tensor, blocks: list[Block], scaling: float) -> Tensor:
    """[n, H·D] from packed q [n, H, D], k and v [n, Hkv, D]."""
    found: Tensor = PackedAttention.apply(q, k, v, blocks, scaling)  # type: ignore[no-untyped-call]
    return found
