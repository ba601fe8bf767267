"""This project's sampler: each prompt is prefilled once for its whole group, the cache is
allocated once, finished rows leave the batch, and log-probs are captured while sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from grpolab.policy.policy import Policy
from grpolab.rng import generator
from grpolab.sampling.base import Draw, Sampler, Samples, choose, finish, pad_left, token_logp
from grpolab.sampling.stops import Stops

COMPACT_BELOW = 0.75  # rows alive / rows run, below which the batch is rebuilt without the rest
CHECK_EVERY = {"cpu": 1}  # elsewhere asking how many rows are alive waits for the device: every 8


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # Transformers is untyped
    """A cache layer that writes into room allocated once, where DynamicLayer copies everything it
    holds at every token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.keys: Any
        self.values: Any
        self.key_room: Tensor | None = None
        self.value_room: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends [n, H, t, D]; returns views of all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.key_room is None or self.value_room is None or end > self.key_room.shape[-2]:
            self.key_room = self._make_room(self.keys, key_states, start, end)
            self.value_room = self._make_room(self.values, value_states, start, end)
        self.key_room[:, :, start:end] = key_states
        self.value_room[:, :, start:end] = value_states
        self.keys = self.key_room[:, :, :end]
        self.values = self.value_room[:, :, :end]
        return self.keys, self.values

    def _make_room(self, held: Any, new: Tensor, start: int, end: int) -> Tensor:
        n, heads, _, width = new.shape
        room = new.new_empty((n, heads, max(self.room, end), width))
        if start:
            room[:, :, :start] = held
        return room

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, for the completions of one prompt."""
        super().batch_repeat_interleave(repeats)
        self.key_room = self.value_room = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only the given rows."""
        super().batch_select_indices(indices)
        self.key_room = self.value_room = None


def make_cache(model: Any, room: int) -> Cache:
    """A cache for `room` tokens. Layers that are no plain attention (sliding windows, state-space)
    keep Transformers' own kind."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


@dataclass(frozen=True)
class Static(Sampler):
    """Prefill once per group, one allocated cache, finished rows leave, log-probs on the way."""

    name: ClassVar[str] = "static"

    @torch.no_grad()
    def __call__(self, policy: Policy, prompts: Sequence[Sequence[int]], draw: Draw) -> Samples:
        return _Decoding(self, policy, prompts, draw).run()


class _Decoding:
    """The state of one call: rows still running, their cache, and what was written so far."""

    def __init__(
        self, sampler: Static, policy: Policy, prompts: Sequence[Sequence[int]], draw: Draw
    ) -> None:
        self.sampler, self.policy, self.draw = sampler, policy, draw
        self.device = policy.device
        n, width = len(prompts) * draw.samples, sampler.max_new_tokens
        source = generator(draw.seed, "sampling", *draw.indices)
        self.uniforms = torch.rand((n, width), generator=source).to(self.device)
        ids, mask = pad_left(prompts, policy.pad_id)
        self.prompt_ids, self.prompt_mask = ids.to(self.device), mask.to(self.device)
        self.padded = bool((mask == 0).any())
        self.end_ids = torch.tensor(policy.end_ids, device=self.device)
        self.ids = torch.full((n, width), policy.pad_id, device=self.device)
        dtype = torch.promote_types(policy.dtype, torch.float32)
        self.logps = torch.zeros((n, width), dtype=dtype, device=self.device)
        self.policy_logps = torch.zeros_like(self.logps)
        self.rows = torch.arange(n, device=self.device)  # output row of each running row
        self.alive = torch.ones(n, dtype=torch.bool, device=self.device)
        self.stops: Stops | None = None
        if sampler.stop:
            self.stops = Stops(sampler.stop, policy.encoder.tokenizer, n)
        self.searched = 0  # tokens of every running row that were searched for stop strings
        self.cache = make_cache(policy.sampling_model, ids.shape[1] + width)

    def run(self) -> Samples:
        logits = self._prefill()
        check_every = CHECK_EVERY.get(self.device.type, 8)
        for t in range(self.sampler.max_new_tokens):
            tokens = self._choose(logits, t)
            last = t + 1 == self.sampler.max_new_tokens
            if last or (t + 1) % check_every == 0:
                self._search(t + 1)
                tokens = tokens if last else self._compact(tokens)
            if last or not len(tokens):
                break
            logits = self._decode(tokens, t)
        stopped = None if self.stops is None else self.stops.places(self.device)
        mask, truncated = finish(self.ids, self.end_ids, stopped)
        width = int(mask.sum(dim=1).max())
        mask = mask[:, :width]
        return Samples(
            self.ids[:, :width].where(mask, self.policy.pad_id),
            mask,
            truncated,
            self.logps[:, :width].where(mask, 0.0),
            self.policy_logps[:, :width].where(mask, 0.0),
        )

    def _prefill(self) -> Tensor:
        """Logits [N, V] after the prompts, which run once each."""
        positions = (self.prompt_mask.cumsum(dim=1) - 1).clamp(min=0)
        output = self.policy.sampling_model(
            input_ids=self.prompt_ids,
            attention_mask=self.prompt_mask if self.padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        samples = self.draw.samples
        self.cache.batch_repeat_interleave(samples)
        self.next_position = (positions[:, -1] + 1).repeat_interleave(samples).unsqueeze(1)
        width = self.prompt_mask.shape[1] + self.sampler.max_new_tokens
        self.mask = self.prompt_mask.new_ones((len(self.rows), width))
        self.mask[:, : self.prompt_mask.shape[1]] = self.prompt_mask.repeat_interleave(samples, 0)
        logits: Tensor = output.logits[:, -1].repeat_interleave(samples, dim=0)
        return logits

    def _choose(self, logits: Tensor, t: int) -> Tensor:
        """Picks and records token t of every running row [n]."""
        if self.draw.greedy:
            tokens = logits.argmax(dim=-1)
        else:
            warped = self.sampler.warp(logits)
            tokens = choose(warped, self.uniforms[self.rows, t])
            self.logps[self.rows, t] = token_logp(warped, tokens)
        if self.sampler.matched and not self.draw.greedy:
            self.policy_logps[self.rows, t] = self.logps[self.rows, t]
        else:
            evaluated, _ = self.sampler.evaluate(logits, tokens)
            self.policy_logps[self.rows, t] = token_logp(evaluated, tokens)
        self.ids[self.rows, t] = tokens
        self.alive &= ~torch.isin(tokens, self.end_ids)
        return tokens

    def _search(self, seen: int) -> None:
        """Ends the rows whose newest tokens, of `seen` in all, complete a stop string."""
        if self.stops is None:
            return
        new = self.ids[self.rows, self.searched : seen].tolist()
        rows = zip(self.rows.tolist(), new, strict=True)
        ended = [self.stops.feed(row, tokens) for row, tokens in rows]
        self.alive &= ~torch.tensor(ended, device=self.device)
        self.searched = seen

    def _compact(self, tokens: Tensor) -> Tensor:
        """Drops finished rows once enough have finished; the tokens of those that go on."""
        count = int(self.alive.sum())
        if count == 0:
            return tokens[:0]
        if count > COMPACT_BELOW * len(tokens):
            return tokens
        keep = self.alive.nonzero().squeeze(1)
        self.cache.batch_select_indices(keep)
        self.rows, self.alive = self.rows[keep], self.alive[keep]
        self.next_position, self.mask = self.next_position[keep], self.mask[keep]
        return tokens[keep]

    def _decode(self, tokens: Tensor, t: int) -> Tensor:
        """Logits [n, V] after token t."""
        seen = self.prompt_mask.shape[1] + t + 1
        output = self.policy.sampling_model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=self.mask[:, :seen] if self.padded else None,
            position_ids=self.next_position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.next_position = self.next_position + 1
        logits: Tensor = output.logits[:, -1]
        return logits
