"""The vLLM side of a benchmark: vLLM's engine behind the same line protocol as the other sides.

Run as a script by the interpreter that has vLLM (an environment of its own, since it pins other
versions), so it imports nothing of this package. One JSON object a line:

    in   {"model", "dtype", "threads", "compile", "seed"}, then one
         {"prompts": [[token ids]], "group_size", "max_new_tokens", "forced"} a step
    out  {"ready": {…}}, then {"seconds": …, "phases": {"sample": …}, "lengths": […], …} a step
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

Line = dict[str, Any]


def main() -> None:
    """Loads once, then samples once for each line."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the engine prints goes where its log goes

    def reply(content: Line) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    spec = json.loads(sys.stdin.readline())
    prepare(spec)
    engine = load(spec)
    reply({"ready": versions()})
    for number, line in enumerate(sys.stdin):
        reply(step(engine, json.loads(line), spec["seed"] + number))


def prepare(spec: Line) -> None:
    """The settings that vLLM reads from its environment; one process, so that its peak is seen."""
    cores = sorted(os.sched_getaffinity(0))[: spec["threads"]]
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def load(spec: Line) -> Any:
    """The engine, compiled unless told otherwise."""
    from vllm import LLM  # type: ignore[import-not-found]  # lives elsewhere

    return LLM(
        model=spec["model"],
        dtype=spec["dtype"],
        enforce_eager=not spec["compile"],
        max_model_len=spec["context"],
        max_num_seqs=spec["rows"],
        seed=spec["seed"],
        disable_log_stats=True,
    )


def step(engine: Any, work: Line, seed: int) -> Line:
    """Samples a group for each prompt; seconds, and the tokens of each completion."""
    from vllm import SamplingParams

    limit = work["max_new_tokens"]
    sampling = SamplingParams(
        n=work["group_size"],
        temperature=1.0,
        max_tokens=limit,
        min_tokens=limit if work["forced"] else 0,
        ignore_eos=work["forced"],
        seed=None if work["group_size"] > 1 else seed,
    )
    prompts = [{"prompt_token_ids": ids} for ids in work["prompts"]]
    began = time.perf_counter()
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "phases": {"sample": seconds},
        "lengths": [len(c.token_ids) for o in outputs for c in o.outputs],
        "prompt_lengths": [len(ids) for ids in work["prompts"]],
        "peak_gib": peak_gib(),
    }


def peak_gib() -> float:
    """Peak resident memory of this process."""
    with open("/proc/self/status") as status:
        kib = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(kib) / 2**20


def versions() -> Line:
    """What ran."""
    import torch
    import vllm

    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
