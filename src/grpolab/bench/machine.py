"""Measures what the machine can do, at the shapes of a model, in a process of its own."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpolab.bench import recipe
from grpolab.bench.channel import Line, wait_for, work_of
from grpolab.policy.kernels import PackedLinear, linear
from grpolab.policy.policy import Encoder, pick_device, pick_dtype

BUFFER_BYTES = {"cpu": 2**29, "cuda": 2**32}  # far beyond any cache
MOST_TOKENS = {"cpu": 4096, "cuda": 16384}  # rates do not grow beyond
CALLS = {"cuda": 50}  # in a row, so that launching and waiting do not count
SECONDS = 0.1  # of each measurement at least
Kernel = Callable[[], Any]


class Machine:
    """Bandwidth and matmul rates; the best time of each kernel counts."""

    def __init__(self, spec: Line) -> None:
        work = work_of(spec)
        run = recipe.bind(work, spec["overrides"], Path(spec["folder"]))
        if run.hardware.threads is not None:
            torch.set_num_threads(run.hardware.threads)
        self.device = pick_device(run.hardware.device)
        self.wait = wait_for(self.device.type) or (lambda: None)
        self.dtype = pick_dtype(work.dtype, self.device)
        self.config = Encoder(run.model).config

    def about(self) -> Line:
        """What the first reply says."""
        return {"device": self.device.type, "cpu": torch.backends.cpu.get_cpu_capability()}

    @torch.no_grad()
    def measure(self, rows: int, update_tokens: int, head_tokens: int) -> Line:
        """Rates and sizes, for `grpolab.bench.limit`.

        Args:
            rows: completions that run side by side.
            update_tokens: that the body sees in an update.
            head_tokens: that the head sees in an update.
        """
        sizes, shapes, head = model_sizes(self.config)
        most = MOST_TOKENS.get(self.device.type, 4096)
        return {
            "sizes": sizes,
            "rates": {
                "bandwidth": self.bandwidth(),
                "decode_body": self.rate(shapes, rows),
                "decode_head": self.rate(head, rows),
                "update_body": self.rate(shapes, min(update_tokens, most)),
                "update_head": self.rate(head, min(head_tokens, most)),
                "weight_bytes": self.dtype.itemsize,
            },
        }

    def bandwidth(self) -> float:
        """Bytes read per second."""
        size = BUFFER_BYTES.get(self.device.type, 2**29)
        buffer = torch.ones(size // 4, device=self.device)
        matrix, vector = buffer.view(-1, 4096), buffer[:4096].clone()
        return size / min(self.best(buffer.sum), self.best(lambda: torch.mv(matrix, vector)))

    def rate(self, shapes: Counter[tuple[int, int]], rows: int) -> float:
        """FLOP per second of [rows, in] × [in, out], over all (out, in) shapes together."""
        work = seconds = 0.0
        for (width, depth), count in shapes.items():
            x = torch.randn((rows, depth), device=self.device).to(self.dtype)
            weight = torch.randn((width, depth), device=self.device).to(self.dtype)
            seconds += count * min(self.best(kernel) for kernel in kernels(x, weight))
            work += count * 2.0 * rows * width * depth
        return work / seconds

    def best(self, kernel: Kernel) -> float:
        """The least seconds of a call, over calls that take SECONDS in all and three at least."""
        calls = CALLS.get(self.device.type, 1)
        self._timed(kernel)
        times: list[float] = []
        while len(times) < 3 or sum(times) * calls < SECONDS:
            times.append(self._timed(kernel))
        return min(times)

    def _timed(self, kernel: Kernel) -> float:
        calls = CALLS.get(self.device.type, 1)
        self.wait()
        began = time.perf_counter()
        for _ in range(calls):
            kernel()
        self.wait()
        return (time.perf_counter() - began) / calls


def kernels(x: Tensor, weight: Tensor) -> list[Kernel]:
    """The ways to multiply x [n, in] with weight [out, in] that this build has."""
    packed = PackedLinear(weight, None, len(x))
    return [
        lambda: torch.nn.functional.linear(x, weight),
        lambda: linear(x, weight),
        lambda: packed(x),
    ]


def model_sizes(config: Any) -> tuple[Line, Counter[tuple[int, int]], Counter[tuple[int, int]]]:
    """({body, head, total} parameters, the body's matrices, the head's), no weight allocated."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    inputs = model.get_input_embeddings().weight
    outputs = model.get_output_embeddings().weight
    matrices = [p for p in model.parameters() if p.dim() == 2 and p is not inputs]
    body = Counter((p.shape[0], p.shape[1]) for p in matrices if p is not outputs)
    sizes = {
        "body": sum(a * b * count for (a, b), count in body.items()),
        "head": outputs.numel(),
        "total": sum(p.numel() for p in model.parameters()),
    }
    return sizes, body, Counter({(outputs.shape[0], outputs.shape[1]): 1})
