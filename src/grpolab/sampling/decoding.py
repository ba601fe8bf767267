"""Prefill and decode steps over our own decoder: the prompt's keys and values once per group."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from grpolab.policy.decoder import Decoder, Rotation
from grpolab.policy.inference import InferenceWeights, attention_dtype
from grpolab.sampling.groups import Groups


def flash(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """PyTorch's CPU kernel: attention [B, H, L, D], and log Σ exp of each query's scores
    [B, H, L]."""
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=mask, scale=scale
    )
    return found


@cache
def has_flash() -> bool:
    """Whether this build of PyTorch has the kernel, and it says what it is read for."""
    q = torch.linspace(-1, 1, 8).view(1, 1, 2, 4)
    k, v = torch.linspace(-2, 1, 12).view(1, 1, 3, 4), torch.linspace(3, -1, 12).view(1, 1, 3, 4)
    mask = torch.tensor([0.0, 0.0, -torch.inf]).expand(1, 1, 2, 3)
    scores = 0.7 * q @ k.mT + mask
    try:
        out, total = flash(q, k, v, mask, 0.7)
    except (AttributeError, RuntimeError, TypeError):
        return False
    same = torch.allclose(out, scores.softmax(dim=-1) @ v, atol=1e-6)
    return same and torch.allclose(total, scores.logsumexp(dim=-1), atol=1e-6)


class DecoderEngine:
    """Rows of completions that share the keys and values of their prompt.

    A prompt is held once, however many completions read it. Rows stand in slots of one allocated
    cache; a row that leaves is overwritten by the last one, so those that stay are always a prefix,
    and a step costs nothing for those that are gone.
    """

    moves_cheaply = True

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        room: int,
        dtype: torch.dtype,
    ) -> None:
        self.decoder, self.samples = decoder, samples
        self.dtype = attention_dtype(dtype, decoder.device)
        device, rows = decoder.device, len(prompts) * samples
        self.weights = InferenceWeights(decoder, dtype, rows)
        self.repeats = decoder.heads // decoder.kv_heads
        self.lengths = torch.tensor([len(p) for p in prompts], device=device)
        self.tokens = torch.tensor([t for p in prompts for t in p], device=device)
        self.prompt_of = torch.arange(len(prompts), device=device).repeat_interleave(samples)
        self.shared: list[tuple[Tensor, Tensor]] = []
        self.outside: Tensor | None = None
        self.time = 0
        self.room = room
        self.next_position = self.lengths[self.prompt_of]
        positions = torch.arange(int(self.lengths.max()) + room, device=device)
        self.turns = decoder.rotation(positions, self.dtype)  # of every position there will be
        self.groups = Groups.of(self.prompt_of, len(prompts))

    # -- the prompts ---------------------------------------------------------------------------

    def prefill(self) -> Tensor:
        """Logits [N, V] after the prompts."""
        width = int(self.lengths.max())
        columns = torch.arange(width, device=self.decoder.device)
        valid = columns < self.lengths.unsqueeze(1)  # [P, S]
        positions = columns.expand(len(self.lengths), -1)[valid]
        x = self.decoder.embed(self.tokens)
        hidden = self.weights.hidden(
            x, self._turn(positions), lambda i, q, k, v: self._among(q, k, v, valid)
        )
        last = self.lengths.cumsum(0) - 1
        logits = self.weights.logits(hidden[last])
        if not bool(valid.all()):  # [P, 1, 1, S]
            self.outside = torch.where(valid, 0.0, -torch.inf)[:, None, None].to(self.shared[0][0])
        return logits.repeat_interleave(self.samples, dim=0)

    def _among(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
        """Causal attention within each prompt; keeps its keys and values."""
        q, k, v = (padded(t, valid) for t in (q, k, v))  # [P, H, S, D]
        self.shared.append((k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.decoder.scaling, enable_gqa=self.repeats > 1
        )
        return out.transpose(1, 2)[valid].flatten(1)  # [n, H·D]

    # -- the completions -----------------------------------------------------------------------

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits [R, V] after the next token of every running row."""
        if not self.time:
            self._allocate(len(tokens))
        x = self.decoder.embed(tokens)
        turn = self._turn(self.next_position)
        logits = self.weights.logits(self.weights.hidden(x, turn, self._attend))
        self.time += 1
        self.next_position = self.next_position + 1
        return logits

    def _turn(self, positions: Tensor) -> Rotation:
        """That of positions [n]."""
        cos, sin = self.turns
        return cos.index_select(0, positions), sin.index_select(0, positions)

    def _allocate(self, rows: int) -> None:
        """[layers, R, Hkv, T, D], for what the completions add."""
        like, d = self.shared[0][0], self.decoder
        shape = (len(d.layers), rows, d.kv_heads, self.room, d.head_dim)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)

    def _attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one query a row to its prompt and to its own tokens so far."""
        d, rows, seen = self.decoder, len(q), self.time + 1
        keys, values = self.keys[index, :rows], self.values[index, :rows]
        keys[:, :, self.time], values[:, :, self.time] = k, v
        q = q.view(rows, d.kv_heads, self.repeats, d.head_dim)
        keys, values = keys[:, :, :seen], values[:, :, :seen]
        if q.device.type == "cpu" and has_flash():
            return self._flash(q, keys, values, *self.shared[index])
        return self._products(q * d.scaling, keys, values, *self.shared[index])

    def _products(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        of_k: Tensor,
        of_v: Tensor,
        later: Tensor | None = None,
    ) -> Tensor:
        """[R, H·D] from scaled q [R, Hkv, h, D], the rows' own k and v [R, Hkv, t, D] and their
        prompts' [P, Hkv, S, D]: one softmax over the scores of both, to the rows' own of which
        `later` [t] is added."""
        own = q @ k.mT  # [R, Hkv, h, t]
        if later is not None:
            own = own + later
        shared = self.groups.to_prompts(q) @ of_k.mT  # [P, Hkv, C·h, S]
        if self.outside is not None:
            shared = shared + self.outside
        weights = torch.cat([self.groups.to_rows(shared), own], dim=-1).softmax(dim=-1)
        width = shared.shape[-1]
        of_prompts = self.groups.to_prompts(weights[..., :width]) @ of_v
        out = weights[..., width:] @ v
        return out.add_(self.groups.to_rows(of_prompts)).flatten(1)

    def _flash(self, q: Tensor, k: Tensor, v: Tensor, of_k: Tensor, of_v: Tensor) -> Tensor:
        """The same by two calls of PyTorch's CPU kernel. Each says the log of its softmax's
        denominator, so that the two results are weighed by σ(log own − log prompt): half as many
        operators, each of which costs its caches in the midst of a model's weights."""
        scale = self.decoder.scaling
        own, own_total = flash(q, k, v, None, scale)
        queries = self.groups.to_prompts(q)
        mask = self.outside
        if mask is not None:
            mask = mask.expand(-1, 1, queries.shape[2], -1)
        shared, total = flash(queries, of_k, of_v, mask, scale)
        # both come out with the heads behind the queries: rows are a view of prompts there
        rows = shared.transpose(1, 2).reshape(-1, self.repeats, q.shape[1], q.shape[3])
        totals = total.transpose(1, 2).reshape(-1, self.repeats, q.shape[1])
        if not self.groups.in_order:
            cell = self.groups.cell
            rows, totals = rows[cell], totals[cell]
        share = own_total.transpose(1, 2).sub(totals).sigmoid_()
        merged = torch.lerp(rows, own.transpose(1, 2), share.unsqueeze(-1))  # [R, h, Hkv, D]
        return merged.transpose(1, 2).flatten(1)

    def keep(self, rows: Tensor) -> None:
        """Only these rows [R'], in this order, go on."""
        self.next_position = self.next_position[rows]
        self._move(rows)
        self.prompt_of = self.prompt_of[rows]
        alive, self.prompt_of = torch.unique(self.prompt_of, return_inverse=True)
        if len(alive) < len(self.lengths):
            self.lengths = self.lengths[alive]
            self.shared = [(k[alive], v[alive]) for k, v in self.shared]
            self.outside = None if self.outside is None else self.outside[alive]
        self.groups = Groups.of(self.prompt_of, len(self.lengths))

    def _move(self, rows: Tensor) -> None:
        """What these rows have written, into the first slots of the cache."""
        if self.time:
            moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(1)
            for cache in (self.keys, self.values):
                cache[:, moved, :, : self.time] = cache[:, rows[moved], :, : self.time]


def padded(packed: Tensor, valid: Tensor) -> Tensor:
    """[n, H, D] in the places that are valid [P, S]: [P, H, S, D], zeros elsewhere."""
    out = packed.new_zeros(*valid.shape, *packed.shape[1:])
    out[valid] = packed
    return out.transpose(1, 2)
