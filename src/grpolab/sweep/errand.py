"""A job sent to a batch system: what runs there, and the slips of paper between it and its driver.

submitit sends the errand as a pickle in a folder of the sweep: whoever can write there can have the
node run code. What comes back is no pickle that anyone loads: in the same folder the job leaves an
answer, the driver a wish that it stop. Both are named after the errand, which is one submission of
one job.
"""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpolab.tracking.folder import write_atomically

ANSWER, STOP = ".answer.json", ".stop"
NOTICE = signal.SIGUSR2
"""What Slurm sends some time before a job's time is up, or when it is preempted."""


@dataclass(frozen=True)
class Errand:
    """One submission of one job. Called on the node, it runs the job in this process."""

    key: str
    raw: Mapping[str, Any]
    folder: str
    """Where answer and wish lie; absolute."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.key}.{self.token}"

    def __call__(self) -> None:
        """Runs the job; what becomes of it is in the answer."""
        from grpolab.sweep.worker import attend

        try:
            signal.signal(NOTICE, pass_on)
            signal.signal(signal.SIGTERM, end)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, NOTICE})
            if self.stop_asked():
                raise KeyboardInterrupt  # the wish came before anyone listened to signals
            state, reason = attend(dict(self.raw))
            be_deaf()
        except KeyboardInterrupt:
            be_deaf()
            state, reason = "interrupted", None
        self.answer(state, reason)

    def answer(self, state: str, reason: str | None) -> None:
        """Leaves word for the driver."""
        text = json.dumps({"state": state, "reason": reason})
        write_atomically(Path(self.folder) / f"{self.name}{ANSWER}", text)

    def read_answer(self) -> tuple[str, str | None] | None:
        """(state, reason), once the job has ended by itself."""
        try:
            found = json.loads((Path(self.folder) / f"{self.name}{ANSWER}").read_text())
        except FileNotFoundError:
            return None
        return found["state"], found["reason"]

    def stop_asked(self) -> bool:
        """Whether the driver wishes that it stop."""
        return (Path(self.folder) / f"{self.name}{STOP}").exists()

    def ask_to_stop(self) -> None:
        """For a job whose process is not listening to signals yet."""
        (Path(self.folder) / f"{self.name}{STOP}").touch()


def pass_on(number: int, frame: Any) -> None:
    """The trainer knows SIGTERM: it finishes its step and checkpoints."""
    os.kill(os.getpid(), signal.SIGTERM)


def end(number: int, frame: Any) -> None:
    """SIGTERM while there is no trainer: there is nothing to finish."""
    raise KeyboardInterrupt


def be_deaf() -> None:
    """From the job's end on a signal is too late. A mask would not do: it is the main thread's
    alone, and Python gives its handlers up before the process is gone."""
    for number in (NOTICE, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
