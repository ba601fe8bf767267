"""TRL's side of a benchmark: its own GRPOTrainer, which waits before each of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpolab.bench import recipe
from grpolab.bench.cases import Work
from grpolab.bench.channel import STEP, Channel, Line, peak_gib, wait_for, work_of
from grpolab.config import Run
from grpolab.policy.loading import load_model
from grpolab.policy.policy import Encoder, pick_device, pick_dtype
from grpolab.tasks.base import Example
from grpolab.training.clock import Clock
from grpolab.training.collect import correctness
from grpolab.training.loop import prepare_torch

FOREVER = 100_000  # optimizer steps; the other end of the line says when to stop


class Stop(Exception):
    """No further step is asked for."""


class Timed(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """GRPOTrainer with a clock around its phases; it computes what it always computes."""

    clock: Clock
    lengths: list[int]
    prompt_ids: list[list[int]]

    def _generate(self, prompts: list[Any]) -> Any:
        with self.clock("sample"):
            found = super()._generate(prompts)
        self.prompt_ids, self.lengths = found[0], [len(ids) for ids in found[1]]
        return found

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock("score"):
            return super()._calculate_rewards(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        # inside the loss it is the loss's forward pass, outside it is log-probs beforehand
        with self.clock("backward" if self.in_loss else "logps"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    in_loss = False

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.in_loss = True
        with self.clock("backward"):
            found = super().compute_loss(*args, **kwargs)
        self.in_loss = False
        return found

    def _clip_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock("optimizer"):
            return super()._clip_grad_norm(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock("log"):
            return super()._maybe_log_save_evaluate(*args, **kwargs)


class Gate(TrainerCallback):  # type: ignore[misc]  # Transformers is untyped
    """Reports the step that ended and waits until the next is asked for. A step runs from gate to
    gate: sampling, update, and its log."""

    def __init__(self, side: Trl, channel: Channel) -> None:
        self.side, self.channel = side, channel
        self.began: float | None = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Between two steps."""
        if self.began is None:
            self.side.clock_the_rest()
        else:
            self.channel.write(self.side.result(time.perf_counter() - self.began))
        if (self.channel.read() or {}).get("command") != STEP:
            raise Stop
        self.side.trainer.clock.reset()
        self.began = time.perf_counter()


class Trl:
    """A GRPOTrainer on the work that both sides do."""

    def __init__(self, spec: Line) -> None:
        work, scratch = work_of(spec), Path(spec["folder"])
        self.run = run = recipe.bind(work, spec["overrides"], scratch)
        prepare_torch(run)
        deterministic_off()
        encoder = Encoder(run.model)
        self.device = pick_device(run.hardware.device)
        examples = recipe.load_examples(run, work, encoder)
        self.drawn = recipe.step_examples(run, examples, work.steps + 2)
        self.expected = encoder.encode([e.prompt for e in self.drawn])
        self.done, self.rewards = 0, [0.0]
        encoder.tokenizer.padding_side = "left"
        rows = [{"prompt": as_given(encoder, e), "index": i} for i, e in enumerate(self.drawn)]
        self.trainer = Timed(
            model=load_model(encoder, pick_dtype("float32", self.device), run.seed),
            args=GRPOConfig(**arguments(run, work, scratch)),
            reward_funcs=[self._reward(work)],
            train_dataset=Dataset.from_list(rows),
            processing_class=encoder.tokenizer,
        )
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.clock = Clock(wait_for(self.device.type))

    def about(self) -> Line:
        """What the first reply says."""
        return {
            "device": self.device.type,
            "gradient_checkpointing": self.trainer.args.gradient_checkpointing,
            "loss_type": self.trainer.args.loss_type,
        }

    def serve(self, channel: Channel) -> None:
        """Trains, one step for each command."""
        self.trainer.add_callback(Gate(self, channel))
        try:
            self.trainer.train()
        except Stop:
            return

    def clock_the_rest(self) -> None:
        """Puts the clock around what exists only once training has begun."""
        trainer = self.trainer
        trainer.accelerator.backward = self._clocked("backward", trainer.accelerator.backward)
        trainer.optimizer.step = self._clocked("optimizer", trainer.optimizer.step)
        trainer.model.zero_grad = self._clocked("optimizer", trainer.model.zero_grad)

    def _clocked(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.trainer.clock(phase):
                return function(*args, **kwargs)

        return call

    def result(self, seconds: float) -> Line:
        """The step that just ended."""
        trainer, count = self.trainer, self.run.prompts_per_step
        group = self.run.sampler.group_size
        rows = slice(self.done * count, (self.done + 1) * count)
        self.done += 1
        given = trainer.prompt_ids[::group]
        if given != self.expected[rows]:
            raise RuntimeError("TRL was given other prompt tokens than our side")
        return {
            "seconds": seconds,
            "phases": dict(trainer.clock.seconds),
            "lengths": trainer.lengths,
            "prompt_lengths": [len(ids) for ids in given],
            "prompts": [e.prompt for e in self.drawn[rows]],
            "reward": sum(self.rewards) / len(self.rewards),
            "peak_gib": peak_gib(),
        }

    def _reward(self, work: Work) -> Callable[..., list[float]]:
        """The reward of our side as TRL's kind of function."""

        def reward(completions: list[Any], index: list[int], **_: Any) -> list[float]:
            texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
            examples = [self.drawn[i] for i in index]
            if work.rewards == "synthetic":
                self.rewards = recipe.synthetic(texts, examples)
            else:
                self.rewards = [float(r) for r in correctness(self.run.task, texts, examples)]
            return self.rewards

        return reward


def deterministic_off() -> None:
    """As TRL's users have it."""
    import torch

    torch.use_deterministic_algorithms(False)


def as_given(encoder: Encoder, example: Example) -> Any:
    """A prompt in TRL's form: messages where our side uses the chat template, else the text."""
    settings, tokenizer = encoder.settings, encoder.tokenizer
    if settings.template == "plain" or (
        settings.template == "auto" and tokenizer.chat_template is None
    ):
        return example.prompt
    system = [] if settings.system is None else [{"role": "system", "content": settings.system}]
    return [*system, {"role": "user", "content": example.prompt}]


def arguments(run: Run, work: Work, scratch: Path) -> dict[str, Any]:
    """GRPOConfig's: what both sides share; everything else is TRL's default (loss_type dapo, which
    is our token_mean; beta 0, one iteration, gradient checkpointing on)."""
    rows = work.peer_rows or work.rows
    return {
        "output_dir": str(scratch / "trl"),
        "max_steps": FOREVER,
        "num_generations": run.sampler.group_size,
        "max_completion_length": run.sampler.max_new_tokens,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": work.rows // rows,
        "learning_rate": run.optimizer.lr,
        "lr_scheduler_type": "constant",
        "temperature": run.sampler.temperature,
        "shuffle_dataset": False,
        "seed": run.seed,
        "bf16": work.dtype == "bfloat16",
        "fp16": work.dtype == "float16",
        "use_cpu": pick_device(run.hardware.device).type == "cpu",
        "generation_kwargs": {"min_new_tokens": work.max_new_tokens} if work.forced else None,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,  # ours logs every step, too
        "disable_tqdm": True,
    }
