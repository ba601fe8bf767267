"""Worker processes on this machine: several jobs at once, each with its own threads and GPU.

A worker (`grpolab.sweep.worker`) reads a job as a JSON line, runs it, answers with its state, and
takes the next one: what imports cost is paid once. With `fresh`, each job gets a new process. A
worker whose driver is gone sees its stdin end, and stops like after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from grpolab.component import ConfigError
from grpolab.objective.settings import setting
from grpolab.sweep.launchers.base import DIED, EarlyPool, Ended, Launcher, Pool
from grpolab.sweep.worker import CHECK, PASSED

LOG = "workers.log"
PATIENCE = 10.0  # seconds an idle worker has to end by itself


@dataclass(frozen=True)
class Local(Launcher):
    """Processes on this machine."""

    workers: int | None = setting(
        None,
        "jobs at once; null: a job per GPU, or on a CPU as many as hardware.threads leaves room "
        "for (one if that is null, too); 0: all in this process, for a debugger",
        ge=0,
    )
    fresh: bool = setting(False, "a new process for each job, instead of one after the other")
    gpus: list[int] | None = setting(None, "which GPUs to use; null: all that are visible")
    jobs_per_gpu: int = setting(1, "jobs that share a GPU", ge=1)

    @property
    def in_process(self) -> bool:
        return self.workers == 0

    def pool(self, raws: Sequence[Mapping[str, Any]], scratch: Path) -> Pool:
        return InProcess() if self.in_process else self._processes(raws, scratch)

    def early_pool(self, raws: Sequence[Mapping[str, Any]]) -> EarlyPool | None:
        return None if self.in_process else self._processes(raws, None)

    def _processes(self, raws: Sequence[Mapping[str, Any]], scratch: Path | None) -> LocalPool:
        gpus = self._gpus(raws)
        places: list[int | None] = [g for _ in range(self.jobs_per_gpu) for g in gpus] or [None]
        count = self.workers or (len(places) if gpus else workers_on_a_cpu(raws))
        count = min(count, len(raws))
        return LocalPool([places[i % len(places)] for i in range(count)], self.fresh, scratch)

    def check(self, raws: Sequence[Mapping[str, Any]]) -> None:
        """The GPUs that are asked for must be there."""
        self._gpus(raws)

    def _gpus(self, raws: Sequence[Mapping[str, Any]]) -> list[int]:
        """Indices among the visible GPUs; none where the jobs want the CPU."""
        if self.gpus is None and any(
            raw["hardware"]["device"] not in ("auto", "cuda") for raw in raws
        ):
            return []
        import torch

        visible = list(range(torch.cuda.device_count()))
        if self.gpus is None:
            return visible
        absent = sorted(set(self.gpus) - set(visible))
        if absent:
            raise ConfigError(
                f"hydra.launcher.gpus: {absent[0]} given; allowed: {visible or 'none is visible'}."
            )
        return self.gpus


def workers_on_a_cpu(raws: Sequence[Mapping[str, Any]]) -> int:
    """As many jobs as have cores of their own. Jobs that leave their threads to torch take all
    cores: two of them at once would be slower than one after the other."""
    threads: list[int | None] = [raw["hardware"]["threads"] for raw in raws]
    known = [t for t in threads if t is not None]
    if len(known) < len(threads):
        return 1
    return max(1, cores() // max(known))


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class InProcess:
    """No pool at all: each job runs where it is submitted."""

    size = 1

    def __init__(self) -> None:
        self._ended: list[Ended] = []

    def prepare(self, jobs: int) -> None:
        """This process is there."""

    def submit(self, key: str, raw: Mapping[str, Any]) -> None:
        from grpolab.sweep.job import run_job
        from grpolab.sweep.manifest import run_folder

        state = run_job(dict(raw))
        self._ended.append(Ended(key, state, run_folder(raw).status()["reason"]))

    def wait(self, seconds: float) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self, keys: Sequence[str]) -> None:
        """The trainer handles signals itself."""

    def close(self, *, kill: bool = False) -> None:
        """Nothing is open."""


class LocalPool:
    """Worker processes, made ahead or when a job comes.

    Args:
        places: the GPU of each, or None.
        fresh: a new one for each job.
        scratch: the folder of their log; None: it is named later (`move_in`).
    """

    def __init__(self, places: Sequence[int | None], fresh: bool, scratch: Path | None) -> None:
        self.size, self.fresh, self.scratch = len(places), fresh, scratch
        self._events: queue.Queue[Ended] = queue.Queue()
        self._free = list(places)
        self._idle: list[WorkerProcess] = []
        self._running: dict[str, WorkerProcess] = {}

    def prepare(self, jobs: int) -> None:
        for _ in range(min(jobs, len(self._free))):  # one by one: `close` finds those that started
            self._idle.append(self._start())

    def passes(
        self, raws: Sequence[Mapping[str, Any]], meanwhile: Callable[[], None] = lambda: None
    ) -> bool:
        """Whether the idle ones, which share the work, refuse none; one that dies refuses."""
        count = len(self._idle)
        for i, worker in enumerate(self._idle):
            worker.check(raws[i::count])
        meanwhile()
        answers = [self._events.get() for _ in range(count)]
        return all(ended.state == PASSED for ended in answers)

    def move_in(self, scratch: Path) -> None:
        self.scratch = scratch
        for worker in self._idle:
            worker.move_in(scratch)

    def submit(self, key: str, raw: Mapping[str, Any]) -> None:
        worker = self._idle.pop() if self._idle else self._start()
        self._running[key] = worker
        worker.run(key, raw)

    def _start(self) -> WorkerProcess:
        return WorkerProcess(self._free.pop(), self.scratch, self._events)

    def wait(self, seconds: float) -> list[Ended]:
        found: list[Ended] = []
        with suppress(queue.Empty):
            found.append(self._events.get(timeout=seconds))
            while True:
                found.append(self._events.get_nowait())
        for ended in found:
            worker = self._running.pop(ended.key)
            if ended.state == DIED or self.fresh:
                worker.close(kill=ended.state == DIED)
                self._free.append(worker.gpu)
            else:
                self._idle.append(worker)
        return found

    def stop(self, keys: Sequence[str]) -> None:
        for key in keys:
            if key in self._running:
                self._running[key].stop()

    def close(self, *, kill: bool = False) -> None:
        workers = [*self._idle, *self._running.values()]
        for worker in workers:  # all of them, before any is waited for
            worker.dismiss(kill=kill)
        for worker in workers:
            worker.close(kill=kill)


class WorkerProcess:
    """One process. Not in our process group, so that a Ctrl-C reaches it only through us."""

    def __init__(self, gpu: int | None, scratch: Path | None, events: queue.Queue[Ended]) -> None:
        self.gpu, self.events = gpu, events
        self._key: str | None = None  # the job it has not answered for
        self._gone = False
        self._lock = threading.Lock()
        environment = {**os.environ, "PYTHONPATH": python_path()}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible_gpu(gpu)
        self._unfiled = None if scratch else tempfile.TemporaryFile()  # noqa: SIM115
        with nullcontext(self._unfiled) if scratch is None else log_file(scratch) as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "grpolab.sweep.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def run(self, key: str, raw: Mapping[str, Any]) -> None:
        """Gives it a job."""
        self._ask(key, {"key": key, "raw": raw})

    def check(self, raws: Sequence[Mapping[str, Any]]) -> None:
        """Has it check configurations; the answer is the end of CHECK, PASSED or something else."""
        self._ask(CHECK, {"key": CHECK, "raws": raws})

    def move_in(self, scratch: Path) -> None:
        """What it has printed so far, and prints from now on, goes to the log in this folder."""
        if self._unfiled is None:
            return
        with self._unfiled as before, log_file(scratch) as log:
            # not by seek: the worker writes at the same place of the same open file
            size = os.fstat(before.fileno()).st_size
            log.write(os.pread(before.fileno(), size, 0))
        self._unfiled = None
        self._send({"log": str(scratch.absolute() / LOG)})

    def _ask(self, key: str, message: Mapping[str, Any]) -> None:
        with self._lock:
            if self._gone:
                self.events.put(Ended(key, DIED, cause_of_death(self.process.returncode)))
                return
            self._key = key
        self._send(message)

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it has just died, which `_watch` will say
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """As `kill` would: the trainer finishes its step and checkpoints."""
        self.process.send_signal(signal.SIGTERM)

    def dismiss(self, *, kill: bool) -> None:
        """Has the process end, in its own time or at once; does not wait for that."""
        if kill:
            self.process.kill()
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def close(self, *, kill: bool) -> None:
        """Ends the process, in its own time or at once."""
        self.dismiss(kill=kill)
        if self._unfiled is not None:
            self._unfiled.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        """Hands on its answers."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            with self._lock:
                self._key = None
            self.events.put(Ended(said["key"], said["state"], said["reason"]))

    def _watch(self) -> None:
        """Says that it died while it had a job. The end of its output would not tell: a process
        that a reward function forked may hold that open."""
        code = self.process.wait()
        self._reader.join(1.0)  # its last answer may still be on the way
        with self._lock:
            self._gone = True
            key, self._key = self._key, None
        if key is not None:
            self.events.put(Ended(key, DIED, cause_of_death(code)))


def log_file(scratch: Path) -> BinaryIO:
    """The log of a sweep's workers, open to append; its folder is made."""
    scratch.mkdir(parents=True, exist_ok=True)
    return (scratch / LOG).open("ab")


def cause_of_death(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"its process was killed by {name}{hint}"


def python_path() -> str:
    """The sources at hand, installed or not, and what this process was given."""
    package = str(Path(__file__).parents[3])
    return os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), package) if p)


def visible_gpu(index: int) -> str:
    """What CUDA_VISIBLE_DEVICES names the GPU that this process counts as `index`."""
    given = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
    return given[index] if given else str(index)
