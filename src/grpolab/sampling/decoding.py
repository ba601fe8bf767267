"""Prefill and decode steps over our own decoder: the prompt's keys and values once per group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpolab.policy.decoder import Decoder
from grpolab.policy.inference import InferenceWeights, attention_dtype


class DecoderEngine:
    """Rows of completions that share the keys and values of their prompt.

    A prompt is held once, however many completions read it. Rows stand in slots of one allocated
    cache; a row that finishes is overwritten by the last one, so the running ones are always a
    prefix, and a step costs nothing for those that are gone.
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
        self._regroup()

    # -- the prompts ---------------------------------------------------------------------------

    def prefill(self) -> Tensor:
        """Logits [N, V] after the prompts."""
        width = int(self.lengths.max())
        columns = torch.arange(width, device=self.decoder.device)
        valid = columns < self.lengths.unsqueeze(1)  # [P, S]
        positions = columns.expand(len(self.lengths), -1)[valid]
        x = self.decoder.embed(self.tokens)
        rotation = self.decoder.rotation(positions, self.dtype)
        hidden = self.weights.hidden(x, rotation, lambda i, q, k, v: self._among(q, k, v, valid))
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
        rotation = self.decoder.rotation(self.next_position, self.dtype)
        logits = self.weights.logits(self.weights.hidden(x, rotation, self._attend))
        self.time += 1
        self.next_position = self.next_position + 1
        return logits

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
        q = q.view(rows, d.kv_heads, self.repeats, d.head_dim) * d.scaling
        own = q @ keys[:, :, :seen].transpose(-1, -2)  # [R, Hkv, H/Hkv, t]
        prompt_keys, prompt_values = self.shared[index]
        shared = self._to_prompts(q) @ prompt_keys.transpose(-1, -2)  # [P, Hkv, C·H/Hkv, S]
        if self.outside is not None:
            shared = shared + self.outside
        scores = torch.cat([self._to_rows(shared), own], dim=-1)
        weights = scores.softmax(dim=-1)
        width = shared.shape[-1]
        out = weights[..., width:] @ values[:, :, :seen]
        of_prompts = self._to_prompts(weights[..., :width]) @ prompt_values
        return out.add_(self._to_rows(of_prompts)).flatten(1)

    # -- rows by prompt ------------------------------------------------------------------------

    def _regroup(self) -> None:
        """Where each running row stands among those of its prompt: its column in a table of
        prompts × C, C the most that one prompt still has."""
        prompts = len(self.lengths)
        counts = torch.bincount(self.prompt_of, minlength=prompts)
        order = self.prompt_of.argsort(stable=True)
        first = (counts.cumsum(0) - counts)[self.prompt_of[order]]
        column = torch.empty_like(order)
        column[order] = torch.arange(len(order), device=order.device) - first
        self.columns = int(counts.max())
        self.cell = self.prompt_of * self.columns + column  # [R] cell of each row
        self.in_order = bool((self.cell == torch.arange(len(order), device=order.device)).all())
        self.in_order &= len(order) == prompts * self.columns
        self.row = torch.zeros(prompts * self.columns, dtype=torch.long, device=order.device)
        self.row[self.cell] = torch.arange(len(order), device=order.device)

    def _to_prompts(self, rows: Tensor) -> Tensor:
        """[R, Hkv, h, x] → [P, Hkv, C·h, x]; a cell without a row repeats some row."""
        _, heads, each, width = rows.shape
        table = rows if self.in_order else rows[self.row]
        table = table.view(-1, self.columns, heads, each, width).transpose(1, 2)
        return table.reshape(-1, heads, self.columns * each, width)

    def _to_rows(self, table: Tensor) -> Tensor:
        """The way back."""
        prompts, heads, all_, width = table.shape
        each = all_ // self.columns
        rows = table.view(prompts, heads, self.columns, each, width).transpose(1, 2)
        rows = rows.reshape(-1, heads, each, width)
        return rows if self.in_order else rows[self.cell]

    def keep(self, rows: Tensor) -> None:
        """Only these rows [R'], in this order, go on."""
        self.next_position = self.next_position[rows]
        if self.time:
            moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().squeeze(1)
            for cache in (self.keys, self.values):
                cache[:, moved, :, : self.time] = cache[:, rows[moved], :, : self.time]
        self.prompt_of = self.prompt_of[rows]
        alive, self.prompt_of = torch.unique(self.prompt_of, return_inverse=True)
        if len(alive) < len(self.lengths):
            self.lengths = self.lengths[alive]
            self.shared = [(k[alive], v[alive]) for k, v in self.shared]
            self.outside = None if self.outside is None else self.outside[alive]
        self._regroup()


def padded(packed: Tensor, valid: Tensor) -> Tensor:
    """[n, H, D] in the places that are valid [P, S]: [P, H, S, D], zeros elsewhere."""
    out = packed.new_zeros(*valid.shape, *packed.shape[1:])
    out[valid] = packed
    return out.transpose(1, 2)
