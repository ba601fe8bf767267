"""What a person sees while a run trains."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from grpolab.config import Run


class Progress:
    """A bar with reward, accuracy, KL, clip share, tokens per second and the time left; without
    a terminal, one line per evaluation."""

    def __init__(self, run: Run, identity: Mapping[str, Any], *, enabled: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.run, self.enabled = run, enabled
        self.label = f"{identity['arm']} seed {identity['seed']}"
        self.console = Console(stderr=True)
        self.live = enabled and self.console.is_terminal
        self.accuracy = ""
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task(self.label, total=run.steps, state="")

    def __enter__(self) -> Progress:
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Puts a step's numbers on the screen."""
        if "eval/accuracy" in metrics:
            self.accuracy = f"held-out {metrics['eval/accuracy']:.2f} "
            if self.enabled and not self.live:
                print(f"{self.label}: step {step}/{self.run.steps} {self._state(metrics)}",
                      file=sys.stderr, flush=True)  # fmt: skip
        if self.live:
            self.bar.update(self.task, completed=step, state=self._state(metrics))

    def _state(self, metrics: Mapping[str, float]) -> str:
        wanted = (
            ("reward/mean", "reward {:.2f}"),
            ("kl/ref_k3", "kl {:.3f}"),
            ("clip/share", "clip {:.1%}"),
            ("speed/tokens_per_second", "{:.0f} tok/s"),
        )
        found = [form.format(metrics[key]) for key, form in wanted if key in metrics]
        return self.accuracy + " ".join(found)
