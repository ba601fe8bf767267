"""Jobs on a Slurm cluster, through submitit: one Slurm job for each run.

The driver waits on the login node. What is to start together is one array; the driver asks
`squeue` how it stands, and finds what a job says of itself in the sweep's folder, which the nodes
must share with it, like `output_dir`.

Some time before a job's minutes are up (`notice`), or when it is preempted, Slurm sends a signal:
the run finishes its step and checkpoints, and the driver submits it again. A job that somebody
takes away with `scancel` is left pending. Jobs go on without their driver; the next one, of the
same command or `grpolab resume`, finds again those that it would submit. Ctrl-C takes back what is
queued and has the others checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from grpolab.component import ConfigError
from grpolab.objective.settings import setting
from grpolab.sweep.errand import Errand
from grpolab.sweep.launchers.base import DIED, Ended, Launcher, Pool, require
from grpolab.sweep.launchers.batch import (
    GONE,
    MOST_IN_ARRAY,
    OURS,
    OVER,
    LocalQueue,
    Queue,
    Refused,
    Resources,
    SlurmQueue,
    refusal,
)
from grpolab.sweep.manifest import run_folder
from grpolab.sweep.state import tail
from grpolab.tracking.folder import write_atomically

TICK = 0.2  # seconds between two looks into the folder
STOPPING_POLL = 2.0  # seconds between two calls of squeue while somebody waits for the end
REFUSALS = 10  # by the batch system, one after the other, until the sweep gives up
REFUSED_SECONDS = 30.0  # between them


@dataclass(frozen=True)
class Slurm(Launcher):
    """Slurm jobs."""

    partition: str | None = setting(None, "Slurm's partition; null: its default")
    workers: int | None = setting(
        None, "jobs in the queue or running at once; null: all of the sweep", ge=1
    )
    cpus_per_job: int | None = setting(
        None, "CPUs of a job; null: hardware.threads, or one if that is null, too", ge=1
    )
    gpus_per_job: int = setting(0, "GPUs of a job", ge=0)
    memory: str | None = setting(None, "of a job, as Slurm writes it: 16G; null: its default")
    minutes: int | None = setting(
        None, "time limit of a job, after which it is submitted again; null: the partition's", ge=1
    )
    notice: int = setting(
        90,
        "seconds before the time limit at which a run is told to checkpoint: several steps",
        ge=1,
    )
    sbatch: dict[str, Any] | None = setting(  # not {}, which Hydra would let nobody add to
        None, "other options of sbatch by their long names: {account: me, constraint: a100}"
    )
    setup: list[str] = setting([], "shell commands before a job: [module load cuda]")
    poll: float = setting(10.0, "seconds between two calls of squeue", gt=0)
    executor: Literal["slurm", "local"] = setting(
        "slurm", "local: submitit's processes on this machine, to try it out"
    )

    def __post_init__(self) -> None:
        require("submitit", "slurm")
        for key in self.sbatch or {}:
            if str(key).replace("_", "-") in OURS:
                raise ConfigError(
                    f"hydra.launcher.sbatch: {key} given; allowed: options that the launcher does "
                    f"not set itself, which are {', '.join(sorted(OURS))}."
                )

    def check(self, raws: Sequence[Mapping[str, Any]]) -> None:
        if self.executor == "local":
            return
        absent = [c for c in ("sbatch", "srun", "squeue", "scancel") if shutil.which(c) is None]
        if absent:
            raise ConfigError(
                f"hydra/launcher: slurm given, but this machine has no {absent[0]}; allowed: on a "
                "machine that submits to Slurm, or with hydra.launcher.executor=local."
            )
        if why := refusal(self._resources(raws)):
            raise ConfigError(f"hydra.launcher: sbatch would refuse such a job ({why}).")

    def pool(self, raws: Sequence[Mapping[str, Any]], scratch: Path) -> Pool:
        folder = scratch.absolute() / "slurm"
        folder.mkdir(parents=True, exist_ok=True)
        asked = self._resources(raws)
        queue: Queue
        if self.executor == "local":
            queue = LocalQueue(asked, folder)
        else:
            queue = SlurmQueue(asked, folder, f"grpolab-{scratch.name}")
        return SlurmPool(self.workers or len(raws), queue, folder, self.poll)

    def _resources(self, raws: Sequence[Mapping[str, Any]]) -> Resources:
        threads = max((raw["hardware"]["threads"] or 1 for raw in raws), default=1)
        return Resources(
            partition=self.partition,
            cpus=self.cpus_per_job or threads,
            gpus=self.gpus_per_job,
            memory=self.memory,
            minutes=self.minutes,
            notice=self.notice,
            setup=self.setup,
            more={str(k).replace("_", "-"): v for k, v in (self.sbatch or {}).items()},
        )


@dataclass(frozen=True)
class Submitted:
    """A job in the batch system's hands."""

    errand: Errand
    id: str
    step: int
    """That the run had reached when it was submitted."""
    interrupted: bool = False
    """It has ended after a checkpoint; why, the queue will say."""
    missed: int = 0
    """How often the queue was asked since it knew of the job's end, without an answer."""


class SlurmPool:
    """Jobs in a batch system.

    Args:
        size: how many at once.
        folder: of the errands.
        poll: seconds between two questions to the queue.
    """

    def __init__(self, size: int, queue: Queue, folder: Path, poll: float) -> None:
        self.size, self.queue, self.folder, self.poll = size, queue, folder, poll
        self._new: list[Errand] = []
        self._jobs: dict[str, Submitted] = {}
        self._ended: list[Ended] = []
        self._stopped: set[str] = set()
        self._looked = -math.inf
        self._refusals, self._not_before = 0, -math.inf

    def prepare(self, jobs: int) -> None:
        """Places are asked for job by job: what waits would keep them from others."""

    def submit(self, key: str, raw: Mapping[str, Any]) -> None:
        self._new.append(Errand(key, raw, str(self.folder)))

    def wait(self, seconds: float) -> list[Ended]:
        deadline = time.monotonic() + seconds
        while True:
            self._submit_new()
            self._read_answers()
            if time.monotonic() - self._looked >= (
                min(self.poll, 2.0) if self._stopped else self.poll
            ):
                self._ask_queue()
            left = deadline - time.monotonic()
            if self._ended or left <= 0:
                found, self._ended = self._ended, []
                return found
            time.sleep(min(TICK, left))

    def stop(self, keys: Sequence[str]) -> None:
        self._stopped |= set(keys)
        self._ended += [Ended(e.key, "interrupted") for e in self._new if e.key in self._stopped]
        self._new = [e for e in self._new if e.key not in self._stopped]
        asked = [self._jobs[key] for key in keys if key in self._jobs]
        for job in asked:
            job.errand.ask_to_stop()
        self.queue.stop(job.id for job in asked)
        self._looked = -math.inf

    def close(self, *, kill: bool = False) -> None:
        if kill:
            self.queue.kill(job.id for job in self._jobs.values())

    # -- what is to be submitted ----------------------------------------------------------------

    def _submit_new(self) -> None:
        """All at once, as an array; those that a driver before us submitted are found again."""
        if not self._new or time.monotonic() < self._not_before:
            return
        states = self.queue.states() or {}
        left = []
        for errand in self._new:
            known = self._recorded(errand, states)
            if known is None:
                left.append(errand)
            else:
                self._jobs[errand.key] = known
        self._new = left
        while self._new:
            part = self._new[:MOST_IN_ARRAY]
            try:
                ids = self.queue.submit(part)
            except Refused as error:
                self._put_off(error)
                return
            self._refusals = 0
            self._new = self._new[len(part) :]
            for errand, id in zip(part, ids, strict=True):
                self._jobs[errand.key] = Submitted(errand, id, step_of(errand))
                slip = json.dumps({"id": id, "token": errand.token})
                write_atomically(self._slip(errand.key), slip)

    def _put_off(self, error: Refused) -> None:
        """A controller that restarts, or a limit on jobs: it is asked again."""
        self._refusals += 1
        self._not_before = time.monotonic() + REFUSED_SECONDS
        if self._refusals >= REFUSALS and not self._jobs:
            raise ConfigError(f"hydra.launcher: Slurm takes no job ({error}).")

    def _slip(self, key: str) -> Path:
        return self.folder / f"{key}.job.json"

    def _recorded(self, errand: Errand, states: Mapping[str, str]) -> Submitted | None:
        """The job that another driver has submitted for it, if that is still at work."""
        try:
            slip = json.loads(self._slip(errand.key).read_text())
        except FileNotFoundError:
            return None
        known = self._jobs.get(errand.key)
        if states.get(slip["id"], GONE) in OVER or (known and known.id == slip["id"]):
            return None
        found = replace(errand, token=slip["token"])
        if found.stop_asked() or found.read_answer() is not None:
            return None
        return Submitted(found, slip["id"], step_of(errand))

    # -- what becomes of it ----------------------------------------------------------------------

    def _read_answers(self) -> None:
        for key, job in list(self._jobs.items()):
            answer = None if job.interrupted else job.errand.read_answer()
            if answer is None:
                continue
            state, reason = answer
            if state == "interrupted" and key not in self._stopped:
                self._jobs[key] = replace(job, interrupted=True)
            else:
                self._end(key, state, reason)

    def _ask_queue(self) -> None:
        self._looked = time.monotonic()
        if not self._jobs:
            return
        states = self.queue.states()
        if states is None:
            return
        for key, job in list(self._jobs.items()):
            state = states.get(job.id, GONE)
            if state not in OVER:
                continue
            if job.interrupted or state in ("CANCELLED", "PREEMPTED") or job.missed:
                self._settle(key, job, state)
            else:  # a file system may show the answer some time after the queue shows the end
                self._jobs[key] = replace(job, missed=job.missed + 1)

    def _settle(self, key: str, job: Submitted, state: str) -> None:
        """A job that is over, without having done, or failed, what it was to do."""
        what = f"its Slurm job {job.id} ended ({state})"
        if state == "CANCELLED" or key in self._stopped:
            leave_pending(job.errand.raw, what)
            self._end(key, "interrupted", what)
        elif state == "PREEMPTED" or (job.interrupted and step_of(job.errand) > job.step):
            leave_pending(job.errand.raw, what)
            del self._jobs[key]
            self._new.append(Errand(key, job.errand.raw, str(self.folder)))
        elif job.interrupted or state == "TIMEOUT":
            self._end(key, DIED, f"{what} before a step was done: hydra.launcher.minutes, notice")
        else:
            self._end(key, DIED, what)

    def _end(self, key: str, state: str, reason: str | None) -> None:
        del self._jobs[key]
        self._stopped.discard(key)
        self._ended.append(Ended(key, state, reason))


def step_of(errand: Errand) -> int:
    """The last step that a run has logged; -1 before any."""
    return int(tail(run_folder(errand.raw).path / "metrics.jsonl")[0].get("step", -1))


def leave_pending(raw: Mapping[str, Any], reason: str) -> None:
    """A run whose process is known to be gone does not look as if it were at work."""
    folder = run_folder(raw)
    if folder.status()["state"] == "running":
        folder.set_status("pending", reason)
