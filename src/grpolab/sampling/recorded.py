"""Decode steps of fixed shapes at fixed addresses, so that CUDA replays each as one graph.

A step of a small model is a thousand kernels of a few microseconds each; launched one by one they
leave the GPU waiting for Python. A graph launches them at once, but what it does is settled when it
is recorded: it reads and writes the same addresses for ever. So nothing that changes from step to
step may be a Python number here. Which column is written comes from a tensor, columns still to come
are masked, and rows that are gone run on and are not looked at. To keep that waste small, rows and
columns are rounded up, to `ROWS` and `COLUMNS`, and there is a graph for each pair of sizes that a
call meets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grpolab.sampling.decoding import DecoderEngine
from grpolab.sampling.groups import FixedGroups

ROWS, COLUMNS = 16, 64  # sizes of a recorded step are multiples of these

Step = Callable[[], None]


class Recorder:
    """Records steps as CUDA graphs that share one pool of memory; elsewhere a step is what it
    was."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def record(self, step: Step) -> Step:
        """A function that does what `step` did, on the same tensors. `step` is run here, once
        before it is recorded, since libraries set themselves up on first use."""
        if self.device.type != "cuda":
            return step
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            step()
        replay: Step = graph.replay
        return replay


class RecordedEngine(DecoderEngine):
    """The same rows, prompts and numbers; what a step reads and writes lies still.

    All is allocated at the first decode, for the rows that run then; prompts whose rows have all
    finished are kept. Writing the same token twice changes nothing, so a step can be run again.
    """

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits [R, V] after the next token of every running row; overwritten by the next call."""
        rows = len(tokens)
        if not self.time:
            self._fix(rows)
        self.fed[:rows] = tokens
        size = (rounded(rows, ROWS, len(self.fed)), rounded(self.time + 1, COLUMNS, self.room))
        if size not in self.steps:
            self.steps[size] = self.recorder.record(lambda: self._step(*size))
        self.steps[size]()
        self.time += 1
        self.now += 1
        self.positions += 1
        return self.logits[:rows]

    def _fix(self, rows: int) -> None:
        """Everything that steps share, for at most so many rows."""
        self._allocate(rows)
        for cache in (self.keys, self.values):
            cache.zero_()  # masked columns are read: 0 · what lay there must be 0
        device, vocabulary = self.decoder.device, self.decoder.head.weight.shape[0]
        self.steps: dict[tuple[int, int], Step] = {}
        self.recorder = Recorder(device)
        self.fed = torch.zeros(rows, dtype=torch.long, device=device)
        self.now = torch.zeros(1, dtype=torch.long, device=device)
        self.columns = torch.arange(self.room, device=device)
        self.positions = self.next_position.clone()
        self.fixed = FixedGroups(self.prompt_of, len(self.lengths), self.groups.columns)
        self.fixed.update(self.prompt_of)
        wide = torch.promote_types(self.weights.dtype, torch.float32)
        self.logits = torch.zeros((rows, vocabulary), dtype=wide, device=device)

    def _step(self, rows: int, seen: int) -> None:
        """One step over the first rows and columns of what was allocated."""
        self.groups = self.fixed.first(rows)
        later = self.columns[:seen] > self.now
        self.later = torch.zeros_like(later, dtype=self.keys.dtype).masked_fill_(later, -torch.inf)
        x = self.decoder.embed(self.fed[:rows])
        hidden = self.weights.hidden(x, self._turn(self.positions[:rows]), self._attend)
        self.logits[:rows] = self.weights.logits(hidden)

    def _attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention to the prompt and to all columns up to now."""
        d, rows, seen = self.decoder, len(q), len(self.later)
        keys, values = self.keys[index, :rows], self.values[index, :rows]
        keys.index_copy_(2, self.now, k.unsqueeze(2))
        values.index_copy_(2, self.now, v.unsqueeze(2))
        q = q.view(rows, d.kv_heads, self.repeats, d.head_dim) * d.scaling
        keys, values = keys[:, :, :seen], values[:, :, :seen]
        return self._products(q, keys, values, *self.shared[index], self.later)

    def keep(self, rows: Tensor) -> None:
        """Only these rows [R'], in this order, go on."""
        if not self.time:
            super().keep(rows)
            return
        self._move(rows)
        self.prompt_of = self.prompt_of[rows]
        self.positions[: len(rows)] = self.positions[rows]
        self.fixed.update(self.prompt_of)


def rounded(count: int, to: int, most: int) -> int:
    """The next multiple, and no more than there is."""
    return min(-(-count // to) * to, most)
