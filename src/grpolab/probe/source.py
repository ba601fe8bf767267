"""The weights a probe looks from: a model, a run, or a checkpoint; and the state of its step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

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

        _restore(policy.trainable(), load_file(found / "weights.safetensors"), place, run)
        if (found / "reference.safetensors").exists() and state.reference is not None:
            saved = load_file(found / "reference.safetensors")
            _restore(dict(state.reference.named_parameters()), saved, place, run)
        known = json.loads((found / "state.json").read_text())
        state.step, state.baseline, state.beta = known["step"], known["baseline"], known["beta"]
    else:
        if run.model.lora is not None:
            raise ConfigError(
                f"{place.key}: its adapters are merged into the saved model; allowed: a run with a "
                "checkpoint (checkpoint.keep_on_done=true)."
            )
        from transformers import AutoModelForCausalLM

        saved_model = AutoModelForCausalLM.from_pretrained(found, trust_remote_code=False)
        own = dict(policy.model.named_parameters())  # frozen ones, too: a saved model is whole
        _restore(own, dict(saved_model.named_parameters()), place, run)
        state.step = run.steps
    policy.sync()
    return state


def _restore(
    parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor], place: Place, run: Run
) -> None:
    """Copies weights in, if they are this model's: another one's may agree in some names, and the
    rest would stay as it was.

    Raises:
        ConfigError: the names or shapes are another model's.
    """
    own, other = ({name: list(t.shape) for name, t in them.items()} for them in (parameters, saved))
    if own != other:
        name = min(n for n in own.keys() | other.keys() if own.get(n) != other.get(n))
        raise ConfigError(
            f"{place.key}: {str(place.weights)!r} holds the weights of another model than "
            f"{run.model.name}: {name} is {_shape(other, name)} there, {_shape(own, name)} here; "
            "allowed: weights of this model."
        )
    for name, parameter in parameters.items():
        parameter.data.copy_(saved[name])


def _shape(shapes: Mapping[str, list[int]], name: str) -> str:
    return "×".join(map(str, shapes[name])) if name in shapes else "missing"
