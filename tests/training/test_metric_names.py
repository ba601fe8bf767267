"""A run logs every metric of the list, under its name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from grpolab.metrics import METRICS
from grpolab.policy.policy import Encoder
from grpolab.tracking.folder import RunFolder
from grpolab.training.loop import Trainer

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

EVERYTHING = (
    "task.train_size=10", "task.held_out_size=4", "prompts_per_step=4", "steps=3",
    "sampler.group_size=4", "sampler.max_new_tokens=8", "eval.samples=2",
    "updates_per_batch=2", "kl=k3", "correction=truncate", "selection=replay",
    "clip.masks=[truncated,{name: top_entropy, share: 0.5}]", "reward=mixture",
    "reward.parts={right: {name: task}, layout: {name: repetition, weight: 0.1}}",
)  # fmt: skip


def test_a_run_with_everything_logs_the_whole_list(tmp_path: Path) -> None:
    run = lab.run_of(*EVERYTHING)
    job = Trainer(run, Encoder(run.model), run.task.load(), RunFolder(tmp_path))
    logged: list[dict[str, float]] = []
    try:
        job.fit(lambda step, metrics: logged.append(metrics))
    finally:
        torch.use_deterministic_algorithms(False)
    names = {name for metrics in logged for name in metrics}
    missing = {m.name for m in METRICS if "<" not in m.name} - names
    assert not missing
    assert {"reward/right", "reward/layout", "eval/pass@1", "eval/pass@2"} <= names
    shares = ("clip/low", "clip/high", "clip/positive", "clip/negative", "clip/dropped")
    for metrics in logged[1:]:
        assert all(0 <= metrics[name] <= 1 for name in shares)
        sides = metrics["clip/positive"] + metrics["clip/negative"]
        assert math.isclose(sides, metrics["clip/share"], abs_tol=1e-6)
    assert any(metrics["clip/dropped"] > 0 for metrics in logged[1:])
