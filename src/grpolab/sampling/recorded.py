"""Decode steps of fixed shapes at fixed addresses, so that CUDA replays each as one graph.

A step of a small model is a thousand kernels of a few microseconds each; launched one by one they
leave the GPU waiting for Python. A graph launches them at once, but what it does is settled when it
is recorded: it reads and writes the same addresses for ever. So nothing that changes from step to
step may be a Python number here. Which column is written comes from a tensor, columns still to come
are masked, and rows that are gone run on and are not looked at. To keep that waste small there is a
graph for each power of two of rows and each multiple of `COLUMNS` columns that a call meets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from grpolab.sampling.decoding import DecoderEngine

COLUMNS = 64

Step = Callable[[], None]


class Recorder:
    """Records steps as CUDA graphs that share one pool of memory. Elsewhere there is none to
    record."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def record(self, step: Step) -> Step | None:
        """A function that does what `step` did, on the same tensors; None off CUDA.

        `step` is run once before, since libraries set themselves up on first use, and on the stream
        that records, where cuBLAS then finds its workspace. Out of memory while recording is an
        error like any other; after anything else that ends a recording early the process is better
        ended too, since CUDA does not leave the recording.
        """
        if self.device.type != "cuda":
            return None
        side, graph = side_stream(self.device), torch.cuda.CUDAGraph()
        with undetermined():
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream(self.device).wait_stream(side)
            # other threads (NCCL's watchdog) may go on asking CUDA meanwhile
            with torch.cuda.graph(
                graph, pool=self.pool, stream=side, capture_error_mode="thread_local"
            ):
                step()
        replay: Step = graph.replay
        return replay


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for the whole process: cuBLAS keeps a workspace for each stream it has met."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def undetermined() -> Iterator[None]:
    """Without deterministic mode, in which `index_copy_` sorts its indices and may wait for them.
    One index cannot meet another, so the order of writes is no matter here."""
    mode = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)


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
        size = (doubled(rows, len(self.fed)), rounded(self.time + 1, COLUMNS, self.room))
        if size not in self.steps:
            self.steps[size] = self.recorder.record(lambda: self._step(*size))
        replay = self.steps[size]
        if replay is None:
            self._step(*size)
        else:
            replay()
        self.time += 1
        self.now += 1
        self.positions += 1
        return self.logits[:rows]

    def _fix(self, rows: int) -> None:
        """Everything that steps share, for at most so many rows."""
        self._allocate(rows)
        for written in (self.keys, self.values):
            written.zero_()  # masked columns are read: 0 · what lay there must be 0
        device, vocabulary = self.decoder.device, self.decoder.head.weight.shape[0]
        self.steps: dict[tuple[int, int], Step | None] = {}
        self.recorder = Recorder(device)
        self.fed = torch.zeros(rows, dtype=torch.long, device=device)
        self.now = torch.zeros(1, dtype=torch.long, device=device)
        self.places = torch.arange(self.room, device=device)
        self.positions = self.next_position.clone()
        self.fixed = self.groups.fixed()
        wide = torch.promote_types(self.weights.dtype, torch.float32)
        self.logits = torch.zeros((rows, vocabulary), dtype=wide, device=device)

    def _step(self, rows: int, seen: int) -> None:
        """One step over the first rows and columns of what was allocated."""
        self.groups = self.fixed.first(rows)
        later = self.places[:seen] > self.now
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
        self.fixed.refill(self.prompt_of)


def rounded(count: int, to: int, most: int) -> int:
    """The next multiple, and no more than there is."""
    return min(-(-count // to) * to, most)


def doubled(count: int, most: int) -> int:
    """The next power of two, and no more than there is."""
    return min(1 << (count - 1).bit_length(), most)
