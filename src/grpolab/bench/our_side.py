"""Our side of a benchmark: the trainer's own steps, one at a time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from grpolab.bench import recipe
from grpolab.bench.channel import Line, peak_gib, wait_for, work_of
from grpolab.config import Run
from grpolab.metrics import checked
from grpolab.policy.policy import Encoder
from grpolab.tracking.folder import RunFolder
from grpolab.training.collect import Collected
from grpolab.training.loop import Trainer

NO_TOKEN = -1
"""Stands where the tokens that end a completion are listed, when none shall."""
MOST_STEPS = 200  # in one flush to MLflow


class Ours:
    """A trainer that waits between its steps."""

    def __init__(self, spec: Line) -> None:
        work, scratch = work_of(spec), Path(spec["folder"])
        run = recipe.bind(work, spec["overrides"], scratch)
        folder = RunFolder(scratch / "run")
        folder.path.mkdir(parents=True, exist_ok=True)
        encoder = Encoder(run.model)
        examples = recipe.load_examples(run, work, encoder)
        self.trainer = trainer = Trainer(run, encoder, examples, folder)
        trainer.began = time.perf_counter()
        trainer.clock.wait = wait_for(trainer.policy.device.type)
        if work.forced:
            trainer.policy.end_ids = [NO_TOKEN]
        self.sampling_alone = bool(spec["sampling_alone"])
        self.mlflow = open_mlflow(run, scratch)
        self.logged: dict[str, float] = {}
        self.seen: Collected | None = None
        collect = trainer.collector.collect

        def remembered(step: int) -> Collected:
            self.seen = collect(step)
            return self.seen

        vars(trainer.collector)["collect"] = remembered

    def about(self) -> Line:
        """What the first reply says."""
        policy = self.trainer.policy
        name = torch.cuda.get_device_name() if policy.device.type == "cuda" else None
        return {"device": policy.device.type, "gpu": name, "model": policy.encoder.path}

    def prompts(self, steps: int) -> Line:
        """Token ids of the prompts of so many steps, for a side that has no tokenizer of ours."""
        collector = self.trainer.collector
        drawn = [collector.prompt_indices(step) for step in range(steps)]
        return {"prompts": [[collector._encoded[i] for i in indices] for indices in drawn]}

    def step(self) -> Line:
        """One step: its seconds, phases, and the tokens of each completion."""
        began = time.perf_counter()
        metrics = self._sample() if self.sampling_alone else self._train()
        seconds = time.perf_counter() - began
        assert self.seen is not None
        rollouts = self.seen.everything
        return {
            "seconds": seconds,
            "phases": dict(self.trainer.clock.seconds),
            "lengths": rollouts.lengths.tolist(),
            "prompt_lengths": rollouts.prompt_lengths[:: rollouts.group_size].tolist(),
            "prompts": rollouts.prompts,
            "reward": metrics.get("reward/mean"),
            "peak_gib": peak_gib(),
        }

    def _train(self) -> dict[str, float]:
        trainer = self.trainer
        metrics = trainer._train_step()
        trainer.step += 1
        with trainer.clock("log"):
            self.logged = checked(metrics | trainer._totals())
            trainer.folder.append_metrics(trainer.step, self.logged)
            if self.mlflow is not None:
                self.mlflow.log(trainer.step, self.logged)
        return metrics

    def tracking(self, step_seconds: float) -> Line:
        """Seconds that sending to MLflow takes for each step, as many in a flush as a run has."""
        if self.mlflow is None:
            return {"seconds": 0.0}
        flush = self.trainer.run.tracking.flush_seconds
        count = min(MOST_STEPS, max(1, int(flush / step_seconds)))
        self.mlflow.send_now()
        for place in range(count):
            self.mlflow.log(self.trainer.step + 1 + place, self.logged)
        began = time.perf_counter()
        self.mlflow.send_now()
        return {"seconds": (time.perf_counter() - began) / count}

    def _sample(self) -> dict[str, float]:
        trainer, collector = self.trainer, self.trainer.collector
        trainer.clock.reset()
        with trainer.clock("sample"):
            indices = collector.prompt_indices(trainer.step)
            rollouts = collector._sample(indices, trainer.step, 0)
        assert rollouts is not None
        trainer.step += 1
        self.seen = Collected(rollouts, rollouts)
        return {}


def open_mlflow(run: Run, scratch: Path) -> Any:
    """The run in MLflow that our side logs to, where it is on."""
    if not run.tracking.mlflow:
        return None
    from grpolab.tracking import mlflow as tracking
    from grpolab.tracking.sender import Sender

    client, experiment = tracking.connect(tracking.default_uri(scratch), scratch, "bench")
    run_id = tracking.start_run(client, experiment, name="bench", tags={}, params={})
    # its thread is not started: it would fall into the other side's steps
    return Sender(lambda: tracking.MlflowRun(client, run_id, new=True))
