"""Both trainers on one case, and how far apart they end."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpolab.policy.locate import TINY

from . import our_side, trl_side
from .case import LR, Case, Overrides
from .recorded import Batch, recorded

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab


@dataclass(frozen=True)
class Gaps:
    """Relative differences between ours and TRL's; norms are over all parameters together."""

    parameters: float
    """‖θ_ours − θ_TRL‖ / ‖θ_TRL‖"""
    update: float
    """‖Δθ_ours − Δθ_TRL‖ / ‖Δθ_TRL‖, Δθ the change since the start."""
    gradient: float
    """Of the gradient's norm before it is clipped, the mean over a batch's updates; the largest of
    all batches. AdamW forgets the scale of a loss, this does not."""
    metrics: Mapping[str, tuple[float, float]]
    """The loss, and what the case names besides: (ours, TRL's), means over all updates."""

    @property
    def moved(self) -> float:
        """The larger of `update` and `gradient`."""
        return max(self.update, self.gradient)


class Comparison:
    """Both trainers on a case, in a precision.

    float64 takes prompts of one length: TRL pads them on the left, which shifts the positions,
    and Llama computes its rotations in float32.
    """

    def __init__(self, case: Case, dtype: torch.dtype, folder: Path) -> None:
        self.case, self.dtype = case, dtype
        self.model = model_of(case.model, folder)
        self.batches = recorded(
            one_prompt_length=case.one_prompt_length or dtype == torch.float64,
            unscorable=case.unscorable,
            parts=case.parts,
        )
        if case.corrects:
            self.batches = told_by_a_sampler(self.model, self.batches)
        loaded = AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype)
        self.start = dict(loaded.named_parameters())
        self.theirs = trl_side.train(
            self.model,
            self.batches,
            {"learning_rate": LR, "num_iterations": case.iterations, **case.trl},
            folder / "trl",
            dtype=dtype,
            shuffles=case.shuffles,
            as_vllm=case.corrects,
        )

    def gaps(self) -> Gaps:
        """Of the case."""
        case = self.case
        return self._gaps(case.ours, adjust=case.adjust, first_step=case.first_step)

    def gaps_when_off(self) -> Gaps:
        """Of the case without what it is about."""
        return self._gaps({**self.case.ours, **self.case.off})

    def _gaps(self, overrides: Overrides, **how: Any) -> Gaps:
        common = {"optimizer.lr": LR, "updates_per_batch": self.case.iterations}
        own, metrics = our_side.train(
            self.model, self.batches, {**common, **overrides}, dtype=self.dtype, **how
        )
        other, log = self.theirs
        assert own.keys() == other.keys() == self.start.keys()
        apart = norm({name: own[name] - other[name] for name in other})
        moved = norm({name: other[name] - self.start[name] for name in other})
        each = len(log) // len(metrics)  # updates per batch
        pairs = [
            (ours["optim/grad_norm"], mean(log[i * each : (i + 1) * each], "grad_norm"))
            for i, ours in enumerate(metrics)
        ]
        compared = {"loss/total": "loss", **self.case.metrics}
        return Gaps(
            parameters=apart / norm(other),
            update=apart / moved,
            gradient=max(abs(a / b - 1) for a, b in pairs),
            metrics={k: (mean(metrics, k), mean(log, v)) for k, v in compared.items()},
        )


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Of all tensors together."""
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors.values()))


def mean(records: Sequence[Mapping[str, float]], name: str) -> float:
    """Of one number over records."""
    return sum(record[name] for record in records) / len(records)


@cache
def model_of(kind: str, folder: Path) -> str:
    """The folder of the embedded model, or of a small random one of a family."""
    return str(TINY) if kind == "tiny" else lab.random_model(folder / kind, kind)


def told_by_a_sampler(model: str, batches: Sequence[Batch]) -> list[Batch]:
    """The batches with log-probs as of a sampler that is off by a tenth or so."""
    source = random.Random(1)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def told(prompt: str, completion: list[int]) -> list[float]:
        ids = tokenizer(prompt)["input_ids"]
        exact = lab.plain_logps(policy, ids, completion).tolist()
        # with few bits: TRL reads them as float32
        return [round((x + source.gauss(0, 0.1)) * 1024) / 1024 for x in exact]

    found = []
    for batch in batches:
        group = len(batch.completions) // len(batch.prompts)
        prompts = [p for p in batch.prompts for _ in range(group)]
        pairs = zip(prompts, batch.completions, strict=True)
        found.append(replace(batch, sampler_logps=[told(p, c) for p, c in pairs]))
    return found
