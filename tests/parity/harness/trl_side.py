"""TRL's GRPOTrainer on recorded completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer, utils

from .recorded import BATCHES, GROUP, LIMIT, PROMPTS, Batch

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

COMMON: dict[str, Any] = {
    "num_generations": GROUP,
    "max_completion_length": LIMIT,
    "per_device_train_batch_size": PROMPTS * GROUP // 2,
    "gradient_accumulation_steps": 2,
    "shuffle_dataset": False,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}
"""What all cases share; everything else is TRL's default."""


class Replay(GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer whose one sampling method reads out a record."""

    batches: Sequence[Batch] = ()
    drawn = 0

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        batch = self.batches[self.drawn]
        self.drawn += 1
        expected = [self._tokenizer(p)["input_ids"] for p in batch.prompts for _ in range(GROUP)]
        assert prompt_ids == expected
        return batch.completions, batch.sampler_logps if self.use_vllm else None

    def score(self, label: str) -> list[float | None]:
        """A recorded reward of the batch just drawn."""
        return self.batches[self.drawn - 1].rewards[label]


def train(
    model_folder: str,
    batches: Sequence[Batch],
    settings: Mapping[str, Any],
    scratch: Path,
    *,
    dtype: torch.dtype,
    shuffles: bool = True,
    as_vllm: bool = False,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """(parameters after all batches, the log of each optimizer step).

    Args:
        shuffles: False leaves rows in their order before they are split into micro-batches.
        as_vllm: the sampler's log-probs count as reported by vLLM, without vLLM.
    """
    chosen = {**COMMON, **settings}
    accumulated = chosen["gradient_accumulation_steps"]
    updates = chosen.get("steps_per_generation", accumulated) // accumulated
    total = BATCHES * updates * chosen["num_iterations"]
    args = GRPOConfig(output_dir=str(scratch), max_steps=total, **chosen)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
    if dtype == torch.float64:
        lab.wide_norms(model)

    def reward(label: str) -> Any:
        def score(**_: Any) -> list[float | None]:
            return trainer.score(label)

        score.__name__ = label
        return score

    with in_precision(dtype), unshuffled(not shuffles):
        trainer = Replay(
            model=model,
            args=args,
            reward_funcs=[reward(label) for label in batches[0].rewards],
            train_dataset=Dataset.from_dict({"prompt": [p for b in batches for p in b.prompts]}),
            processing_class=AutoTokenizer.from_pretrained(model_folder, padding_side="left"),
        )
        trainer.remove_callback(PrinterCallback)
        if dtype == torch.float64 and trainer.ref_model is not None:
            lab.wide_norms(trainer.ref_model)
        trainer.batches, trainer.use_vllm = batches, as_vllm
        trainer.train()
    assert trainer.drawn == len(batches)
    assert trainer.state.global_step == total
    parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
    return parameters, [record for record in trainer.state.log_history if "grad_norm" in record]


@contextmanager
def in_precision(dtype: torch.dtype) -> Iterator[None]:
    """What float64 takes: rewards in it, and log-probs from a plain log-softmax, since TRL's fused
    head computes them in float32 whatever it is given."""
    with ExitStack() as stack:
        if dtype == torch.float64:
            torch.set_default_dtype(dtype)
            stack.callback(torch.set_default_dtype, torch.float32)
            stack.enter_context(patch.object(utils, "_ChunkedLogProbFunction", PlainHead))
        yield


class PlainHead:
    """Log-probs and entropies of hidden states [n, H], in their own precision."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        *_: Any,
    ) -> tuple[Tensor, Tensor, None, None, None]:
        logps = (torch.nn.functional.linear(hidden, weight, bias) / temperature).log_softmax(-1)
        entropy = -(logps.exp() * logps).sum(dim=-1)
        return logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy, None, None, None


@contextmanager
def unshuffled(wanted: bool) -> Iterator[None]:
    """Leaves the rows of a batch in their order."""
    with ExitStack() as stack:
        if wanted:
            stack.enter_context(patch.object(grpo_trainer, "shuffle_sequence_dict", lambda d: d))
        yield
