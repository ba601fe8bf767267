"""40 variants on one batch of the embedded model: the frames, the figures, and the times.

    python experiments/probe/run.py [out=experiments/probe/out]

The times are seconds of processor time on one thread, so that a busy machine does not count.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from grpolab.probe.arms import arms_of
from grpolab.probe.session import probe, write
from grpolab.sweep.compose import Command
from grpolab.sweep.preflight import check

BASE = (
    "hardware.device=cpu", "hardware.threads=1", "tracking=jsonl", "prompts_per_step=16",
    "sampler.max_new_tokens=24", "optimizer.lr=2e-4",
)  # fmt: skip
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
STALE = ["clip=ppo", "clip=none", "clip=reinforce", "clip=cispo", "clip=gspo", "clip=sapo",
         "clip=vespo", "clip=tis_pg"]  # fmt: skip


def main() -> None:
    """Runs the probe, then training's own backward pass on the same batch for comparison."""
    out = Path(next((a[4:] for a in sys.argv[1:] if a.startswith("out=")), "experiments/probe/out"))
    probe(["clip=ppo"], overrides=BASE)  # imports and first calls are nobody's
    began = time.process_time()
    found = probe(VARIANTS, overrides=BASE)
    whole = time.process_time() - began
    began = time.process_time()
    probe(["clip=ppo"], overrides=BASE)
    one = time.process_time() - began
    backward = backward_seconds()
    times = {
        "arms": len(VARIANTS),
        "seconds": round(whole, 2),
        "seconds_with_one_arm": round(one, 2),
        "passes_over_single_completions": found.passes,
        "seconds_of_a_backward_pass_in_training": round(backward, 4),
        "seconds_of_as_many": round(len(VARIANTS) * backward, 2),
    }
    write(found, out)
    (out / "times.json").write_text(json.dumps(times, indent=2) + "\n")
    print(times)
    probe(STALE, overrides=BASE, staleness=[0, 1, 4, 16], out=out / "stale")


def backward_seconds(repeats: int = 5) -> float:
    """Processor seconds of training's own forward and backward pass over that batch."""
    import torch

    from grpolab.policy.policy import Policy
    from grpolab.training.collect import Collector
    from grpolab.training.update import Updater

    base, _ = arms_of(Command(list(BASE)), [["clip=ppo"]])
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
