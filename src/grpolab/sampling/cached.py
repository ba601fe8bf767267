"""Prefill and decode steps through Transformers' own forward, for any model with a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from grpolab.sampling.base import pad_left


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


class CacheEngine:
    """Rows of completions over a cache that holds their prompt once for each row."""

    moves_cheaply = False

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        room: int,
        pad_id: int,
        device: torch.device,
    ) -> None:
        self.model, self.samples = model, samples
        ids, mask = pad_left(prompts, pad_id)
        self.prompt_ids, self.prompt_mask = ids.to(device), mask.to(device)
        self.padded = bool((mask == 0).any())
        self.width = ids.shape[1]
        self.room = room
        self.time = 0
        self.cache = make_cache(model, self.width + room)

    def prefill(self) -> Tensor:
        """Logits [N, V] after the prompts, which run once each."""
        positions = (self.prompt_mask.cumsum(dim=1) - 1).clamp(min=0)
        output = self.model(
            input_ids=self.prompt_ids,
            attention_mask=self.prompt_mask if self.padded else None,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache.batch_repeat_interleave(self.samples)
        self.next_position = (positions[:, -1] + 1).repeat_interleave(self.samples).unsqueeze(1)
        rows = len(self.next_position)
        self.mask = self.prompt_mask.new_ones((rows, self.width + self.room))
        self.mask[:, : self.width] = self.prompt_mask.repeat_interleave(self.samples, 0)
        logits: Tensor = output.logits[:, -1].repeat_interleave(self.samples, dim=0)
        return logits

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits [R, V] after the next token of every running row."""
        self.time += 1
        output = self.model(
            input_ids=tokens.unsqueeze(1),
            attention_mask=self.mask[:, : self.width + self.time] if self.padded else None,
            position_ids=self.next_position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.next_position = self.next_position + 1
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: Tensor) -> None:
        """Only these rows [R'], in this order, go on."""
        self.cache.batch_select_indices(rows)
        self.next_position, self.mask = self.next_position[rows], self.mask[rows]
