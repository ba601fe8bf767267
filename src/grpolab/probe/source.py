"""The weights a probe looks from: a model, a run, or a checkpoint; and the state of its step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from grpolab.component import ConfigError
from grpolab.config import Run
from grpolab.policy.policy import Encoder, Policy
from grpolab.probe.request import Place


@dataclass
class State:
    """A policy at the beginning of a step, and what the step needs to know of those before."""

    policy: Policy
    reference: Any
    """The frozen start weights, where an arm needs them."""
    step: int = 0
    baseline: float | None = None
    beta: float | None = None


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
