"""What a person sees of a sweep: the runs at work and the time left; without a terminal, a line for
each run that ends."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpolab.sweep.state import JobState, job_state, time_left, with_guesses
from grpolab.tracking.folder import RunFolder

LOOK_SECONDS = 1.0
ENDED = ("done", "failed", "pruned")


class SweepProgress:
    """Reads the run folders every second.

    Args:
        study: the folder of the runs.
        members: the sweep's jobs, as in its manifest.
    """

    def __init__(self, study: Path, members: Sequence[Mapping[str, Any]], *, enabled: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self.study, self.members, self.enabled = study, members, enabled
        console = Console(stderr=True)
        self.live: Live | None = None
        if enabled and console.is_terminal:
            self.live = Live(console=console, transient=True, auto_refresh=False)
        self._looked = -math.inf
        self._said = {s.job_id for s in self._states() if s.state in ENDED}
        if self._said and enabled:
            print(f"{len(self._said)} of {len(members)} runs were done before.", file=sys.stderr)

    def __enter__(self) -> SweepProgress:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        if self.live is not None:
            self.live.stop()

    def show(self, running: Sequence[str]) -> None:
        """Looks, if the last look is some time ago."""
        if self.enabled and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()

    def _states(self) -> list[JobState]:
        return [job_state(RunFolder(self.study / m["job_id"]), m) for m in self.members]

    def _look(self) -> None:
        self._looked = time.monotonic()
        if not self.enabled:
            return
        states = self._states()
        for state in states:
            if state.state in ENDED and state.job_id not in self._said:
                self._said.add(state.job_id)
                self._say(f"{len(self._said)}/{len(states)} {summary(state)}")
        if self.live is not None:
            self.live.update(table(states), refresh=True)

    def _say(self, line: str) -> None:
        if self.live is not None:
            self.live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def summary(state: JobState) -> str:
    """A run in a line."""
    name = f"{state.arm} seed {state.seed}"
    if state.state == "failed":
        return f"{name}: failed: {state.reason}"
    accuracy = "" if state.accuracy is None else f", held-out {state.accuracy:.2f}"
    return f"{name}: {state.state}{accuracy} ({duration(state.seconds)})"


def table(states: Sequence[JobState]) -> Any:
    """The runs at work, and a last line for the whole."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    for state in states:
        if state.state == "running":
            grid.add_row(
                f"{state.arm} seed {state.seed}",
                ProgressBar(total=max(1, state.steps), completed=state.step, width=20),
                f"{state.step}/{state.steps}",
                numbers(state),
                duration(state.seconds_left),
            )
    done = sum(s.state == "done" for s in states)
    total = len(states)
    left = duration(time_left(with_guesses(states)))
    bar = ProgressBar(total=total, completed=done, width=20)
    grid.add_row("runs", bar, f"{done}/{total}", "", left)
    return grid


def numbers(state: JobState) -> str:
    """Reward and accuracy, as far as they are known."""
    found = []
    if state.reward is not None:
        found.append(f"reward {state.reward:.2f}")
    if state.accuracy is not None:
        found.append(f"held-out {state.accuracy:.2f}")
    return " ".join(found)


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 42 s, 3:07, 2:05:00."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
