"""One GRPO run, top to bottom: sample groups, score them, turn scores into advantages, update."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from grpolab.config import Run
from grpolab.metrics import checked
from grpolab.objective.beta import Beta
from grpolab.policy.policy import Encoder, Policy
from grpolab.rollouts import Rollouts
from grpolab.tasks.base import Examples
from grpolab.tracking.disk import replaced
from grpolab.tracking.folder import RunFolder
from grpolab.training import checkpoint
from grpolab.training.clock import Clock
from grpolab.training.collect import Collected, Collector, correctness
from grpolab.training.evaluate import Evaluator
from grpolab.training.failures import RankFailed, TrainingFailed
from grpolab.training.memory import Heap, keep_freed_memory
from grpolab.training.metrics import (
    advantage_metrics,
    difficulty_metrics,
    length_metrics,
    peak_memory_gib,
    reward_metrics,
)
from grpolab.training.ranks import ALONE, Ranks
from grpolab.training.update import Updater

Log = Callable[[int, dict[str, float]], None]


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the step was finished and a checkpoint written."""


class Trainer:
    """The state of one run. `fit` is the whole of it."""

    def __init__(
        self,
        run: Run,
        encoder: Encoder,
        examples: Examples,
        folder: RunFolder,
        ranks: Ranks = ALONE,
    ) -> None:
        self.run, self.examples, self.folder, self.ranks = run, examples, folder, ranks
        prepare_torch(run)
        keep_freed_memory()
        self.clock = Clock()
        shares = run.hardware.shard == "fsdp2" and not ranks.alone
        peers = ranks if shares else None
        self.policy = Policy(encoder, run.hardware, seed=run.seed, peers=peers)
        self.updater = Updater(run, self.policy, self.clock, ranks)
        self.collector = Collector(run, self.policy, examples, self.clock, ranks)
        self.evaluator = Evaluator(run, self.policy, examples, ranks)
        self.beta = Beta(run.kl, run.steps)
        self.baseline: float | None = None
        self.step = 0
        self.tokens = 0
        self.wall_before = 0.0
        self.stop_asked = False
        self.heap = Heap()

    def fit(self, log: Log) -> None:
        """Trains to the last step; logs every step through `log(step, metrics)`. Every rank runs
        it, and the first one writes.

        Raises:
            TrainingFailed: with the reason.
            Interrupted: after a checkpoint.
        """
        self._resume()
        self.began = time.perf_counter()
        with self._signals():
            if self.step == 0:
                log(0, checked({**self._evaluate(0), **self._totals()}))
            while self.step < self.run.steps:
                metrics = self._train_step()
                self.heap.after_step()
                self.step += 1
                if self._due(self.run.eval.every) or self.step == self.run.steps:
                    metrics |= self._evaluate(self.step)
                with self.clock("log"):
                    log(self.step, checked(metrics | self._totals()))
                # a signal that comes meanwhile is answered after the next step, by all ranks
                stopping = any(self.ranks.gather(self.stop_asked))
                if stopping and self.step < self.run.steps:
                    self._checkpoint()
                    raise Interrupted
                if self._due(self.run.checkpoint.every) and self.step < self.run.steps:
                    self._checkpoint()

    # -- a step --------------------------------------------------------------------------------

    def _train_step(self) -> dict[str, float]:
        began = time.perf_counter()
        self.clock.reset()
        collected = self.collector.collect(self.step)
        metrics = self._reward_side(collected)
        with self.clock("log"):
            self._log_samples(collected.everything)
        before_update = time.perf_counter()
        metrics |= collected.metrics | self._learn(collected.rollouts)
        self.collector.remember(collected.rollouts, self.step)
        self.updater.forward.move_reference(self.step + 1)
        now = time.perf_counter()
        generated = int(collected.everything.mask.sum())
        self.tokens += generated
        step_seconds = now - began
        return metrics | {
            "time/sample": self.clock.seconds["sample"],
            "time/score": self.clock.seconds["score"],
            "time/update": now - before_update,
            "time/step": step_seconds,
            "speed/tokens_per_second": generated / step_seconds,
            "memory/peak_gib": max(self.ranks.gather(peak_memory_gib(self.policy.device))),
            "memory/microbatch_tokens": float(min(self.ranks.gather(self.updater.forward.budget))),
        }

    def _reward_side(self, collected: Collected) -> dict[str, float]:
        seen = collected.everything
        assert seen.rewards is not None
        metrics = reward_metrics(seen.rewards, seen.reward_parts)
        unscorable = metrics["reward/unscorable_share"]
        if unscorable > self.run.max_unscorable:
            why = getattr(self.run.reward, "first_error", None)
            raise TrainingFailed(
                f"{unscorable:.0%} of a batch's samples were unscorable "
                f"(max_unscorable is {self.run.max_unscorable:.0%})"
                + (f"; the reward's first error: {why}" if why else "")
            )
        examples = [
            self.examples.train[i]
            for i in seen.prompt_index.tolist()
            for _ in range(seen.group_size)
        ]
        with self.clock("score"):
            right = correctness(self.run.task, seen.texts, examples, collected.verified)
        return metrics | length_metrics(seen, right)

    def _learn(self, rollouts: Rollouts) -> dict[str, float]:
        beta = self.beta.at(self.step)
        metrics = {"kl/beta": beta}
        if not rollouts.groups:  # dynamic sampling found no group to learn from
            return metrics | {"optim/updates": 0.0, "tokens/contributing_share": 0.0}
        with self.clock("logps"):
            self.updater.score_logps(rollouts, beta)
        assert rollouts.rewards is not None
        rollouts.advantages = self.updater.advantages(rollouts, self.baseline)
        self.baseline = self.run.advantage.track(self.baseline, self.updater.returns(rollouts)[0])
        metrics |= advantage_metrics(rollouts.advantages, rollouts.mask)
        metrics |= difficulty_metrics(rollouts.rewards, rollouts.advantages, rollouts.mask)
        metrics |= self.updater.update(rollouts, self.step, beta)
        measured = metrics.get(f"kl/ref_{self.run.kl.name}", metrics.get("kl/ref_k3", math.nan))
        self.beta.observe(measured, len(rollouts))
        return metrics

    def _evaluate(self, step: int) -> dict[str, float]:
        began = time.perf_counter()
        metrics = self.evaluator.evaluate(step)
        return metrics | {"time/eval": time.perf_counter() - began}

    def _totals(self) -> dict[str, float]:
        return {"tokens/generated": float(self.tokens), "time/wall": self._wall()}

    def _wall(self) -> float:
        return self.wall_before + time.perf_counter() - self.began

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _log_samples(self, rollouts: Rollouts) -> None:
        if not self.ranks.first:
            return
        assert rollouts.rewards is not None
        rewards = rollouts.rewards.flatten().tolist()
        count = min(self.run.tracking.log_samples, len(rollouts))
        self.folder.append_samples(
            [
                {
                    "step": self.step + 1,
                    "prompt": rollouts.prompts[row // rollouts.group_size],
                    "completion": rollouts.texts[row],
                    "reward": None if math.isnan(rewards[row]) else rewards[row],
                    "truncated": bool(rollouts.truncated[row]),
                }
                for row in range(count)
            ]
        )

    # -- resuming ------------------------------------------------------------------------------

    def export(self) -> None:
        """Writes the trained model. Every rank calls it, and the first one writes."""
        if self.ranks.first:
            with replaced(self.folder.path / "model") as folder:
                self.policy.save(folder)
        elif self.policy.sharded:
            for _ in self.policy.hand_over():
                pass

    def _checkpoint(self) -> None:
        updater = self.updater
        reference = updater.forward.moving_reference()
        if not self.ranks.first:
            if self.policy.sharded:
                own = updater.parameters, updater.optimizer, reference
                checkpoint.kept(*own, self.ranks.transfer)
            return
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "wall": self._wall(),
            "beta": self.beta.adaptive,
            "baseline": self.baseline,
            "skipped": self.updater.skipped,
            "budget": self.updater.forward.budget,
            "scaler": self.updater.scaler.state_dict(),
        }
        checkpoint.save(
            self.folder.path,
            updater.parameters,
            updater.optimizer,
            state,
            reference=reference,
            extra=self._extra(),
            around=self.ranks.transfer,
        )

    def _extra(self) -> dict[str, dict[str, Tensor]]:
        buffer = self.collector.buffer
        return {} if buffer is None else {"replay": buffer.tensors()}

    def _resume(self) -> None:
        updater = self.updater
        state = checkpoint.load(
            self.folder.path,
            updater.parameters,
            updater.optimizer,
            reference=updater.forward.moving_reference(),
        )
        if state is None:
            self._begin_at(0)
            return
        self.step, self.tokens = state["step"], state["tokens"]
        self.wall_before = state["wall"]
        self.beta.adaptive = state["beta"]
        self.baseline = state["baseline"]
        self.updater.skipped = state["skipped"]
        self.updater.forward.budget = state["budget"]
        self.updater.scaler.load_state_dict(state["scaler"])
        if self.collector.buffer is not None:
            self.collector.buffer.restore(state["extra"]["replay"])
        self.policy.sync()
        self._begin_at(self.step + 1)

    def _begin_at(self, step: int) -> None:
        """Drops what was logged at or after a step."""
        found = self.ranks.gather(step)
        if len(set(found)) > 1:
            raise RankFailed(
                f"the ranks found checkpoints of different steps ({found}); output_dir must be one "
                "folder for all of them"
            )
        if self.ranks.first:
            self.folder.truncate(step)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the step at hand; a second Ctrl-C at once.

        torchrun hands on each Ctrl-C that the terminal has sent to all ranks already, and sends
        SIGTERM once one has ended: with several ranks none ends anything at once, nor afterwards.
        """

        def ask(number: int, frame: Any) -> None:
            if self.stop_asked and number == signal.SIGINT and self.ranks.alone:
                raise KeyboardInterrupt
            self.stop_asked = True

        try:
            before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever owns it handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items() if self.ranks.alone else ():
                signal.signal(number, handler)


def prepare_torch(run: Run) -> None:
    """Threads and determinism of this process."""
    if run.hardware.threads is not None:
        torch.set_num_threads(run.hardware.threads)
    torch.use_deterministic_algorithms(run.hardware.deterministic, warn_only=True)
    # what deterministic mode writes into every new tensor, at a tenth of a step's time; that none
    # is read before it is written, a test asks with this on
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
