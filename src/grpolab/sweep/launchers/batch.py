"""Batch systems behind one interface: Slurm, and submitit's processes on this machine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from grpolab.sweep.errand import Errand
from grpolab.sweep.launchers.local import python_path

GONE = "GONE"
"""The state of a job that the queue no longer knows."""
OVER = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "REVOKED", "TIMEOUT", GONE,
    }
)  # fmt: skip
"""States of jobs that will do nothing more; whatever else Slurm says is none of an end."""
OURS = frozenset(
    {
        "array", "error", "job-name", "nodes", "ntasks", "no-requeue", "open-mode", "output",
        "requeue", "signal", "wrap",
    }
)  # fmt: skip
"""Options of sbatch that the launcher needs for itself."""
MOST_IN_ARRAY = 500  # Slurm's MaxArraySize is 1001 unless an administrator says otherwise
FOREVER = 60 * 24 * 365  # minutes


class Refused(RuntimeError):
    """The batch system took no job. The text is its own, in one line."""


class Queue(Protocol):
    """A batch system."""

    def submit(self, errands: Sequence[Errand]) -> list[str]:
        """The ids of the jobs that it makes of these; Refused if it takes none."""

    def states(self) -> dict[str, str] | None:
        """{id: state} of the jobs that it remembers, in Slurm's words; None: it does not answer."""

    def stop(self, ids: Iterable[str]) -> None:
        """SIGTERM to those that run; those that wait are taken back."""

    def kill(self, ids: Iterable[str]) -> None:
        """Ends them."""


@dataclass(frozen=True)
class Resources:
    """What is asked for each job."""

    partition: str | None
    cpus: int
    gpus: int
    memory: str | None
    minutes: int | None
    notice: int
    """Seconds between the signal and the end of the minutes."""
    setup: Sequence[str]
    more: Mapping[str, Any]
    """Other options of sbatch."""

    def options(self) -> dict[str, Any]:
        """By the names of sbatch's long options."""
        asked: dict[str, Any] = {
            "partition": self.partition, "time": self.minutes, "cpus-per-task": self.cpus,
            "gpus-per-node": self.gpus or None, "mem": self.memory,
        }  # fmt: skip
        return {k: v for k, v in asked.items() if v is not None} | dict(self.more)


class SlurmQueue:
    """Slurm, asked through its own commands: `sacct`, which submitit asks, needs an accounting
    database that small clusters lack.

    Args:
        asked: for each job.
        folder: for submitit's files; shared by the nodes.
        name: of the jobs; what else is in the queue is not ours.
    """

    def __init__(self, asked: Resources, folder: Path, name: str) -> None:
        import submitit

        self.name = name
        self._executor = submitit.SlurmExecutor(folder=folder)
        options = asked.options()
        self._executor.update_parameters(
            job_name=name,
            time=options.pop("time", None),
            nodes=1,
            ntasks_per_node=1,
            cpus_per_task=options.pop("cpus-per-task"),
            signal_delay_s=asked.notice,
            array_parallelism=MOST_IN_ARRAY,
            wckey=None,
            setup=[*asked.setup, f"export PYTHONPATH={shlex.quote(python_path())}"],
            # one authority decides what runs again, and that is the sweep's driver
            additional_parameters={**options, "no-requeue": True},
        )

    def submit(self, errands: Sequence[Errand]) -> list[str]:
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(errand) for errand in errands]
        except Exception as error:  # submitit's own, around what sbatch prints
            raise Refused(last_words(str(error))) from error
        return [str(job.job_id) for job in jobs]

    def states(self) -> dict[str, str] | None:
        words = ["squeue", "--noheader", "--array", "--states=all", "--me", f"--name={self.name}"]
        done = command([*words, "--format=%i %T"])
        if done.returncode != 0:
            return None
        return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())

    def stop(self, ids: Iterable[str]) -> None:
        asked = list(ids)
        if asked:
            command(["scancel", "--state=PENDING", *asked])
            command(["scancel", "--signal=TERM", *asked])

    def kill(self, ids: Iterable[str]) -> None:
        asked = list(ids)
        if asked:
            command(["scancel", *asked])


class LocalQueue:
    """submitit's local executor, to try the launcher out without a cluster: every job starts at
    once."""

    def __init__(self, asked: Resources, folder: Path) -> None:
        import submitit

        self._executor = submitit.LocalExecutor(folder=folder)
        self._executor.update_parameters(
            timeout_min=asked.minutes or FOREVER,
            signal_delay_s=asked.notice,
            gpus_per_node=asked.gpus,
            setup=list(asked.setup),
        )
        self._jobs: dict[str, Any] = {}

    def submit(self, errands: Sequence[Errand]) -> list[str]:
        with surroundings():
            jobs = [self._executor.submit(errand) for errand in errands]
        self._jobs |= {str(job.job_id): job for job in jobs}
        return [str(job.job_id) for job in jobs]

    def states(self) -> dict[str, str] | None:
        words = {"RUNNING": "RUNNING", "FINISHED": "COMPLETED"}
        return {key: words.get(job.state, "FAILED") for key, job in self._jobs.items()}

    def stop(self, ids: Iterable[str]) -> None:
        self._signal(ids, signal.SIGTERM)  # submitit's controller passes it on

    def kill(self, ids: Iterable[str]) -> None:
        for key in self._at_work(ids):
            with suppress(OSError):
                for job in Path(f"/proc/{key}/task/{key}/children").read_text().split():
                    os.kill(int(job), signal.SIGKILL)

    def _signal(self, ids: Iterable[str], number: int) -> None:
        for key in self._at_work(ids):
            with suppress(ProcessLookupError):
                os.kill(int(key), number)

    def _at_work(self, ids: Iterable[str]) -> list[str]:
        return [key for key in ids if self._jobs[key].state == "RUNNING"]


@contextmanager
def surroundings() -> Iterator[None]:
    """Of a process that submitit starts here: our sources on its path, and a Ctrl-C that does not
    reach it, as the driver passes that on."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = python_path()
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def refusal(asked: Resources) -> str | None:
    """Why sbatch would not take a job that asks for this, in its own words; None if it would."""
    flags = [f"--{k}" if v is True else f"--{k}={v}" for k, v in asked.options().items()]
    done = command(["sbatch", "--test-only", *flags, f"--wrap={shlex.quote(sys.executable)}"])
    return last_words(done.stderr) if done.returncode != 0 else None


def command(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs one of Slurm's commands."""
    return subprocess.run(words, capture_output=True, text=True, check=False)


def last_words(text: str) -> str:
    """The last line, without the name of the command that says it."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith('Try "')]  # sbatch --help
    said = lines[-1] if lines else "it gave no reason"
    for prefix in ("sbatch: error: ", "sbatch: ", "allocation failure: "):
        said = said.removeprefix(prefix)
    return said.rstrip(".")
