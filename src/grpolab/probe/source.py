"""The weights a probe looks from: a model, a run, or a checkpoint; and the state of its step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpolab.component import ConfigError
from grpolab.config import Run
from grpolab.policy.policy import Encoder, Policy
from grpolab.training import checkpoint


@dataclass
class Place:
    """Where a run's weights lie; None: the model of the configuration."""

    folder: Path | None = None
    weights: Path | None = None
    """A checkpoint's folder, or a saved model's."""


@dataclass
class State:
    """A policy at the beginning of a step, and what the step needs to know of those before."""

    policy: Policy
    reference: Any
    """The frozen start weights, where an arm needs them."""
    step: int = 0
    baseline: float | None = None
    beta: float | None = None


def run_folder_of(job: str, output_dir: str) -> Path:
    """The folder of a run of any study.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(p for p in Path(output_dir).glob(f"*/{job}") if (p / "config.yaml").exists())
    if not found:
        raise ConfigError(
            f"run: no run {job!r} below {output_dir!r}; allowed: the job_id of a run that has "
            "started, as `grpolab status` shows them."
        )
    return found[0]


def place_of(path: Path, key: str = "checkpoint") -> Place:
    """What lies at a path: a run's folder, its checkpoint/ or model/, or any saved model.

    Raises:
        ConfigError: no weights are there.
    """
    for folder in (path, path.parent):
        if (folder / "config.yaml").exists():
            found = checkpoint.find(folder) if path.name != "model" else None
            saved = folder / "model"
            if found is None and (saved / "config.json").exists():
                found = saved
            if found is not None:
                return Place(folder, found)
            raise ConfigError(
                f"{key}: {str(path)!r} has no weights yet; allowed: a run that is done, or that "
                "has a checkpoint (checkpoint.every=10)."
            )
    if (path / "config.json").exists():
        return Place(None, path)
    raise ConfigError(
        f"{key}: no weights at {str(path)!r}; allowed: a run's folder, its checkpoint, or a saved "
        "model."
    )


def load_state(run: Run, encoder: Encoder, place: Place, *, needs_reference: bool) -> State:
    """The policy at a place. The reference is the run's start weights, as in training."""
    policy = Policy(encoder, run.hardware, seed=run.seed)
    state = State(policy, policy.frozen_copy() if needs_reference else None)
    if place.folder is None or place.weights is None:
        return state
    found = place.weights
    if (found / "weights.safetensors").exists():
        from safetensors.torch import load_file

        _restore(policy, load_file(found / "weights.safetensors"))
        if (found / "reference.safetensors").exists() and state.reference is not None:
            saved = load_file(found / "reference.safetensors")
            for name, parameter in state.reference.named_parameters():
                parameter.data.copy_(saved[name])
        known = json.loads((found / "state.json").read_text())
        state.step, state.baseline, state.beta = known["step"], known["baseline"], known["beta"]
    else:
        if run.model.lora is not None:
            raise ConfigError(
                "run: its adapters are merged into the saved model; allowed: a run with a "
                "checkpoint (checkpoint.keep_on_done=true)."
            )
        from transformers import AutoModelForCausalLM

        saved_model = AutoModelForCausalLM.from_pretrained(found, trust_remote_code=False)
        _restore(policy, dict(saved_model.named_parameters()))
        state.step = run.steps
    policy.sync()
    return state


def _restore(policy: Policy, saved: dict[str, Any]) -> None:
    for name, parameter in policy.trainable().items():
        parameter.data.copy_(saved[name])
