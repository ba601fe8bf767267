"""On a CUDA machine: does the GPU path compute what the CPU path does, and how long is a step?

    make gpu-check            (or: PYTHONPATH=src python3 experiments/benchmarks/gpu_check.py)

Needs torch, transformers, pydantic and filelock alone: no Hydra, no MLflow. Prints one JSON line
per check. With device=cpu it runs the same code there, slowly, to test itself. How a step compares
with `generate` and with the hardware's limit is the matter of `grpolab bench case=gpu_1.5b`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grpolab.bench.shapes import shaped_model
from grpolab.config import COMPONENTS, SETTINGS, Run, bind_run
from grpolab.policy.policy import Encoder, Policy
from grpolab.sampling.base import Draw
from grpolab.tracking.folder import RunFolder
from grpolab.training.collect import encode_examples
from grpolab.training.draw import sample_rollouts
from grpolab.training.loop import Trainer, prepare_torch

DEFAULTS = {
    "task": "arithmetic", "sampler": "static", "selection": "all", "reward": "task",
    "advantage": "group_zscore", "reference": "frozen", "kl": "k3", "clip": "ppo",
    "aggregation": "token_mean", "correction": "none", "design": "product", "search": "none",
}  # fmt: skip

GRAPHS = {False: "", True: ", decode steps as CUDA graphs"}


def make_run(device: str, dtype: str, **changes: Any) -> Run:
    """The demo's settings, without Hydra."""
    raw: dict[str, Any] = {group: {"name": DEFAULTS[group]} for group in COMPONENTS}
    raw |= {group: {} for group in SETTINGS}
    raw["sampler"] |= {"group_size": 8, "max_new_tokens": changes.pop("max_new_tokens", 24)}
    raw["sampler"]["cuda_graphs"] = changes.pop("cuda_graphs", False)
    raw["optimizer"] = {"lr": 2e-4}
    raw["hardware"] = {"device": device, "dtype": dtype}
    raw["tracking"] = {"mlflow": False, "log_samples": 0}
    raw["eval"] = {"every": 0, "samples": 4}
    raw["model"] = changes.pop("model", {})
    return bind_run(raw | changes)


def train(run: Run, name: str) -> dict[str, Any]:
    """A short run; medians of its steps after the first two, and its accuracy."""
    with tempfile.TemporaryDirectory() as scratch:
        examples = run.task.load()
        rows: list[dict[str, float]] = []
        trainer = Trainer(run, Encoder(run.model), examples, RunFolder(Path(scratch)))
        trainer.fit(lambda _, metrics: rows.append(metrics))
    steps = [r for r in rows if "time/step" in r][2:]
    keys = ("time/sample", "time/update", "time/step", "speed/tokens_per_second", "memory/peak_gib")
    result: dict[str, Any] = {"check": name, "steps": len(steps)}
    result |= {k: statistics.median(r[k] for r in steps) for k in keys}
    accuracy = [r["eval/accuracy"] for r in rows if "eval/accuracy" in r]
    return result | {"accuracy_first": accuracy[0], "accuracy_last": accuracy[-1]}


def agreement(device: str, cuda_graphs: bool) -> dict[str, Any]:
    """Log-probs of the same tokens: sampled on the device, recomputed there and on the CPU."""
    run = make_run(device, "float32", cuda_graphs=cuda_graphs, max_new_tokens=80)
    prepare_torch(run)
    examples = run.task.load()
    encoder = Encoder(run.model)
    policy = Policy(encoder, run.hardware)
    cpu = Policy(encoder, replace(run.hardware, device="cpu"))
    prompts = encode_examples(encoder, examples.train[:16])
    r = sample_rollouts(run.sampler, policy, prompts, Draw(0, (0, 0), 8))
    with torch.no_grad():
        here = policy.token_logps(r.prompt_ids, r.prompt_lengths, r.completion_ids, r.mask).logps
        rows = [x.cpu() for x in (r.prompt_ids, r.prompt_lengths, r.completion_ids, r.mask)]
        there = cpu.token_logps(*rows).logps
    assert r.sampler_policy_logps is not None
    mask = r.mask.cpu()
    sampler = (here - r.sampler_policy_logps).abs().cpu()[mask].max()
    return {
        "check": "agreement float32",
        "cuda_graphs": cuda_graphs,
        "sampler_against_trainer": float(sampler),
        "device_against_cpu": float((here.cpu() - there).abs()[mask].max()),
    }


def main(arguments: list[str]) -> None:
    """All checks; one JSON line each."""
    given = dict(word.split("=", 1) for word in arguments)
    device = given.get("device", "cuda")
    name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
    print(json.dumps({"hardware": name, "torch": torch.__version__}), flush=True)
    for graphs in (False, True):
        print(json.dumps(agreement(device, graphs)), flush=True)
    for graphs, dtype in ((False, "float32"), (False, "bfloat16"), (True, "bfloat16")):
        run = make_run(device, dtype, steps=int(given.get("steps", 60)), cuda_graphs=graphs)
        print(json.dumps(train(run, f"tiny {dtype}{GRAPHS[graphs]}")), flush=True)
    for size in ("0.5b", "1.5b") if device == "cuda" else ():
        for graphs in (False, True):
            with tempfile.TemporaryDirectory() as scratch:
                model = {"name": shaped_model(Path(scratch), size), "random_weights": True}
                changes = {"model": model, "max_new_tokens": 256, "cuda_graphs": graphs}
                run = make_run(device, "bfloat16", steps=8, **changes)
                name = f"qwen2 {size} random weights bfloat16{GRAPHS[graphs]}"
                print(json.dumps(train(run, name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
