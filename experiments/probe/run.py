"""40 variants on one batch: the frames, the figures, and the times.

    python experiments/probe/run.py [on=tiny|smollm2] [parts=signal,shares,tokens] [out=…/out] …

Other words are overrides of the batch, such as prompts_per_step=8 sampler.max_new_tokens=16.
The times are seconds of processor time on one thread, so that a busy machine counts less.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from grpolab.config import Run
from grpolab.probe.request import PARTS, Request
from grpolab.probe.session import measure, probe, write
from grpolab.sweep.compose import Command
from grpolab.sweep.preflight import check

COMMON = ("hardware.device=cpu", "hardware.threads=1", "tracking=jsonl", "sampler.group_size=8")
BASES = {
    "tiny": (
        *COMMON, "prompts_per_step=16", "sampler.max_new_tokens=24", "optimizer.lr=2e-4",
    ),
    "smollm2": (
        *COMMON, "experiment=smollm2_addition", "prompts_per_step=4", "sampler.max_new_tokens=6",
    ),
}  # fmt: skip
CLIPS = (
    "ppo", "none", "reinforce", "dual", "two_sided", "cispo", "gspo", "gspo_token", "gmpo", "luspo",
    "sapo", "vespo", "dppo", "clip_cov", "kl_cov", "topr", "tis_pg", "quadratic", "bapo", "fipo",
)  # fmt: skip
ADVANTAGES = (
    "group_center", "batch_std", "rloo", "global_center", "raw", "opo", "maxrl", "gpg",
    "reinforce_pp", "optimal_token_baseline", "pass_at_k", "gdpo",
)  # fmt: skip
AGGREGATIONS = (
    "token_mean_micro", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm",
    "prompt_mean",
)  # fmt: skip
VARIANTS: list[list[str]] = [
    *([f"clip={name}"] for name in CLIPS),
    *([f"advantage={name}"] for name in ADVANTAGES),
    *([f"aggregation={name}"] for name in AGGREGATIONS),
    ["selection=drop_zero_variance"],
    ["clip.masks=[{name: top_entropy, share: 0.2}]"],
    ["clip.masks=[truncated]"],
]


def main() -> None:
    """Runs the probe, then training's own backward pass on the same batch for comparison."""
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    on, out = given.get("on", "tiny"), Path(given.get("out", "experiments/probe/out"))
    parts = tuple(given.get("parts", ",".join(PARTS)).split(","))
    base = dict(word.split("=", 1) for word in BASES[on])
    own = {k: v for k, v in given.items() if k not in ("on", "out", "parts")}
    words = tuple(f"{k}={v}" for k, v in {**base, **own}.items())
    if on == "tiny":
        probe(["clip=ppo"], overrides=words)  # imports and first calls are nobody's
    began = time.process_time()
    asked = Request(Command(list(words)), VARIANTS, parts=parts).resolved()
    composing = time.process_time() - began
    began = time.process_time()
    found = measure(asked)
    measuring = time.process_time() - began
    write(found, out)
    backward = backward_seconds(asked.base, 5 if on == "tiny" else 1)
    as_many = len(VARIANTS) * backward
    times = {
        "model": asked.base.model.name,
        "arms": len(VARIANTS),
        "seconds_composing_the_arms": round(composing, 2),
        "seconds_of_rollouts_and_gradients": round(measuring, 2),
        "backward_passes": round(found.passes.backward, 2),
        "forward_mode_passes": round(found.passes.forward_mode, 2),
        "seconds_of_a_backward_pass_in_training": round(backward, 4),
        "seconds_of_as_many": round(as_many, 2),
        "ratio": round((composing + measuring) / as_many, 2),
        "ratio_without_composing": round(measuring / as_many, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    (out / "times.json").write_text(json.dumps(times, indent=2) + "\n")
    print(times)


def backward_seconds(base: Run, repeats: int) -> float:
    """Processor seconds of training's own forward and backward pass over that batch."""
    import torch

    from grpolab.policy.policy import Policy
    from grpolab.training.collect import Collector
    from grpolab.training.update import Updater

    ready = check(base)
    policy = Policy(ready.encoder, base.hardware, seed=base.seed)
    updater = Updater(base, policy)
    rollouts = Collector(base, policy, ready.examples).collect(0).rollouts
    rollouts.advantages = updater.advantages(rollouts, None)
    rows = torch.arange(len(rollouts))
    updater.backward(rollouts, rows, 0.0)
    began = time.process_time()
    for _ in range(repeats):
        updater.optimizer.zero_grad(set_to_none=True)
        updater.backward(rollouts, rows, 0.0)
    return (time.process_time() - began) / repeats


if __name__ == "__main__":
    main()
