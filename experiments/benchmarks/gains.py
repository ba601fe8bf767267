"""What each optimisation of sampling and update gains: the same work with one of them taken away.

    python experiments/benchmarks/gains.py [dtype=bfloat16] [repeats=3] [out=FILE.json]

SmolLM2-135M, 4 prompts × 8 completions. Sampling: 64 forced tokens each. Update: completions of 8
to 64 tokens, one optimizer step. The columns are seconds with everything, seconds without the one,
and their ratio; `expected` was written down before the measurement, from single kernels or from
counting tokens. All in one process, in turns, so read ratios rather than seconds.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from grpolab.component import component
from grpolab.config import Run, bind_run
from grpolab.policy import head, kernels, packing
from grpolab.policy.policy import Encoder, Policy
from grpolab.rollouts import Rollouts
from grpolab.sampling import decoding, static
from grpolab.sampling.base import Draw
from grpolab.sampling.decoding import DecoderEngine
from grpolab.sweep.compose import expand, parse_command
from grpolab.training.loop import prepare_torch
from grpolab.training.memory import keep_freed_memory
from grpolab.training.update import Updater

GROUPS, SIZE, LIMIT = 4, 8, 64


@contextmanager
def plain_kernels() -> Iterator[None]:
    """PyTorch's own linear."""
    with patch.object(kernels, "has_onednn", lambda: False):
        yield


def other_maker() -> Any:
    """The product that is the faster on the other maker's processors."""
    found = kernels.on_intel()
    return patch.object(kernels, "on_intel", lambda: not found)


@contextmanager
def no_engine(policy: Policy) -> Iterator[None]:
    """Transformers' forward."""
    decoder, policy.decoder = policy.decoder, None
    try:
        yield
    finally:
        policy.decoder = decoder


def separate_prompts() -> Any:
    """Each row runs its prompt itself."""
    return patch.object(packing, "_first_of_group", lambda rows, _, device: torch.arange(rows))


def plain_draw() -> Any:
    """torch.multinomial, and a log-softmax for the log-prob."""

    def choose(logits: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logps = logits.log_softmax(-1)
        tokens = torch.multinomial(logps.exp(), 1)
        return tokens.squeeze(1), logps.gather(1, tokens).squeeze(1)

    return patch.object(static, "choose", choose)


def keeping_finished() -> Any:
    """Rows run on when they have finished."""
    stack = ExitStack()
    stack.enter_context(patch.object(DecoderEngine, "moves_cheaply", False))
    stack.enter_context(patch.object(static, "COMPACT_BELOW", 0.0))
    return stack


def attention_by_products() -> Any:
    """Plain products and one softmax over prompt and own tokens."""
    return patch.object(decoding, "has_flash", lambda: False)


@contextmanager
def returning_memory() -> Iterator[None]:
    """Freed tensors go back to the system, as glibc has it once it has seen large ones."""
    keep_freed_memory((2**25, 2**26))
    try:
        yield
    finally:
        keep_freed_memory()


@contextmanager
def filling() -> Iterator[None]:
    """Every new tensor is filled with NaN, as deterministic mode has it by default."""
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def run_of(dtype: str) -> Run:
    """The smollm2 benchmark's settings."""
    words = ["model=smollm2_135m", f"hardware.dtype={dtype}", "tracking.mlflow=false"]
    words += ["optimizer.lr=1e-5", f"prompts_per_step={GROUPS}"]
    return bind_run(expand(parse_command(words)).jobs[0].raw)


def made_up(seed: int = 0) -> Rollouts:
    """Random tokens, ragged completions, an advantage for every row."""
    source = random.Random(seed)
    lengths = [source.choice([8, 20, 30, 40, 64, 64]) for _ in range(GROUPS * SIZE)]
    draws = torch.Generator().manual_seed(seed)
    n = len(lengths)
    prompts = torch.randint(3, 49_000, (GROUPS, 43), generator=draws)
    return Rollouts(
        prompt_ids=prompts.repeat_interleave(SIZE, 0),
        prompt_lengths=torch.full((n,), 43),
        completion_ids=torch.randint(3, 49_000, (n, LIMIT), generator=draws),
        mask=torch.arange(LIMIT) < torch.tensor(lengths).unsqueeze(1),
        group_size=SIZE,
        prompt_index=torch.arange(GROUPS),
        truncated=torch.zeros(n, dtype=torch.bool),
        sampler_logps=torch.zeros(n, LIMIT),
        sampler_policy_logps=torch.zeros(n, LIMIT),
        rewards=torch.rand(GROUPS, SIZE, generator=draws),
        advantages=torch.randn(GROUPS, SIZE, generator=draws),
    )


def idle_half(rollouts: Rollouts) -> Rollouts:
    """Two of the four groups all right or all wrong."""
    assert rollouts.advantages is not None
    rollouts.advantages[: GROUPS // 2] = 0.0
    return rollouts


class Bench:
    """One policy, timed with and without."""

    def __init__(self, dtype: str, repeats: int) -> None:
        self.run, self.repeats = run_of(dtype), repeats
        prepare_torch(self.run)
        keep_freed_memory()
        self.policy = Policy(Encoder(self.run.model), self.run.hardware)
        self.updater = Updater(self.run, self.policy)
        pairs = ((1, 2), (3, 4), (5, 9), (7, 7))
        questions = [f"What is {a} + {b}? Answer with the number." for a, b in pairs]
        self.prompts = self.policy.encoder.encode(questions)
        self.sampler = component("sampler", "static", max_new_tokens=LIMIT)
        self.rows: list[dict[str, Any]] = []

    def sample(self, forced: bool = True) -> None:
        ends = self.policy.end_ids
        self.policy.end_ids = [] if forced else ends
        self.sampler(self.policy, self.prompts, Draw(0, (0,), SIZE))
        self.policy.end_ids = ends

    def update(self, rollouts: Rollouts) -> None:
        self.updater.update(rollouts, 0, 0.0)

    def compare(self, name: str, expected: str, work: Callable[[], None], without: Any) -> None:
        """Times `work`, and the same in the context `without()`, in turns."""
        times: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(self.repeats + 1):
            for off in (False, True):
                with without() if off else ExitStack():
                    began = time.perf_counter()
                    work()
                    if turn:  # the first warms up
                        times[off].append(time.perf_counter() - began)
        ours, plain = (statistics.median(times[off]) for off in (False, True))
        row = {"optimisation": name, "with": ours, "without": plain, "gain": plain / ours}
        self.rows.append(row | {"expected": expected})
        print(f"{name:<58} {ours:7.2f} {plain:8.2f} {plain / ours:6.2f}×   {expected}", flush=True)


def main(arguments: list[str]) -> None:
    """All comparisons; one line each."""
    given = dict(word.split("=", 1) for word in arguments)
    bench = Bench(given.get("dtype", "float32"), int(given.get("repeats", 3)))
    rollouts, half = made_up(), idle_half(made_up())
    clip = type(bench.run.clip)

    def ragged() -> None:
        bench.sample(forced=False)

    def update() -> None:
        bench.update(rollouts)

    def idle() -> None:
        bench.update(half)

    def transformers() -> Any:
        return no_engine(bench.policy)

    def forgetful() -> Any:
        return patch.object(head, "KEEP_BYTES", 0)

    def all_learn() -> Any:
        return patch.object(clip, "needs_advantage", False)

    print(f"{'':<58} {'with':>7} {'without':>8}   gain   expected")
    bench.compare("sampling: own decode loop", "1.5×", bench.sample, transformers)
    bench.compare("sampling: oneDNN, packed weights", "1.5×", bench.sample, plain_kernels)
    bench.compare("sampling: inverse CDF by blocks", "1.3×", bench.sample, plain_draw)
    bench.compare("sampling: fused attention", "1.1×", bench.sample, attention_by_products)
    bench.compare("sampling: new tensors stay unfilled", "1.1×", bench.sample, filling)
    bench.compare("sampling: finished rows leave", "1.5×", ragged, keeping_finished)
    bench.compare("update: own layers, packed, chunked head", "2.7×", update, transformers)
    bench.compare("update: prompts once a group", "1.8×", update, separate_prompts)
    bench.compare("update: the maker's linear", "1.2× AMD, 1.07× Intel", update, other_maker)
    bench.compare("update: the head's probabilities kept", "1.05×", update, forgetful)
    bench.compare("update: freed memory is kept", "1.3×", update, returning_memory)
    bench.compare("update: new tensors stay unfilled", "1.1×", update, filling)
    bench.compare("update: half the groups idle, forward alone", "1.5×", idle, all_learn)
    if "out" in given:
        text = {"dtype": given.get("dtype", "float32"), "torch": torch.__version__}
        Path(given["out"]).write_text(json.dumps(text | {"rows": bench.rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
