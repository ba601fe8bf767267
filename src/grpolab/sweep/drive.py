"""The sweep's driver: which jobs are left, who runs them, what becomes of those that end badly.

Nothing is kept in the driver that the run folders do not say: it may be killed at any moment, and
the same command, or `grpolab resume`, takes up what is left. Two drivers of one sweep share it: a
job belongs to whoever holds its lease, and both wait for the last one.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpolab.sweep.launchers.base import DIED, Ended, Pool
from grpolab.sweep.manifest import run_folder
from grpolab.tracking.folder import RunFolder, lease_is_live

POLL_SECONDS = 0.2
DEATHS = 2  # processes that may die over a job until it is left alone

Job = Mapping[str, Any]
"""A resolved configuration."""


class Driver:
    """Runs jobs through a pool.

    Args:
        jobs: resolved configurations by job id.
        pool: where they run.
        retry_failed: run those again that have failed.
        stop_on_error: after a failure start none, and let the running ones checkpoint and end.
        show: called a few times a second with the ids of those that are running.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        pool: Pool,
        *,
        retry_failed: bool = False,
        stop_on_error: bool = False,
        show: Callable[[list[str]], None] = lambda running: None,
    ) -> None:
        self.jobs, self.pool, self.show = jobs, pool, show
        self.stop_on_error = stop_on_error
        self.folders: dict[str, RunFolder] = {key: run_folder(raw) for key, raw in jobs.items()}
        settled = {"done"} if retry_failed else {"done", "failed"}
        self.waiting = deque(k for k in jobs if self._state(k) not in settled)
        self.running: list[str] = []
        self.elsewhere: set[str] = set()
        """Jobs whose lease another process holds."""
        self.deaths: Counter[str] = Counter()
        self.stopping = False

    def run(self) -> None:
        """Until nothing is left to do.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM, after the running jobs' checkpoints; the second
                one at once.
        """
        with self._signals():
            try:
                while self._goes_on():
                    self._start_some()
                    for ended in self.pool.wait(POLL_SECONDS):
                        self._settle(ended)
                    self._look_elsewhere()
                    self.show(self.running)
            except BaseException:
                self.pool.close(kill=True)
                raise
            self.pool.close()
        if self.interrupted:
            raise KeyboardInterrupt

    def _goes_on(self) -> bool:
        """Whether something is at work, or left to do."""
        return bool(self.running or (not self.stopping and (self.waiting or self.elsewhere)))

    def stop(self) -> None:
        """No further job starts; those that run finish their step and checkpoint."""
        self.stopping = True
        self.pool.stop(self.running)

    def _state(self, key: str) -> str:
        return str(self.folders[key].status()["state"])

    def _start_some(self) -> None:
        while self.waiting and len(self.running) < self.pool.size and not self.stopping:
            key = self.waiting.popleft()
            self.running.append(key)
            self.pool.submit(key, self.jobs[key])

    def _settle(self, ended: Ended) -> None:
        self.running.remove(ended.key)
        if ended.state == "busy":
            self.elsewhere.add(ended.key)
        elif ended.state == DIED:
            self._bury(ended)
        elif ended.state == "pending" and not self.stopping:
            self.stop()  # there is no room on the disk, which no other job would have either
        elif ended.state == "failed":
            self._note_refusal(ended)
            if self.stop_on_error and not self.stopping:
                self.stop()

    def _bury(self, ended: Ended) -> None:
        """A job whose process died: it is pending, and gets a second process."""
        folder, status = self.folders[ended.key], self.folders[ended.key].status()
        if status["state"] == "done":
            return
        if not lease_is_live(status):
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.set_status("pending", ended.reason)
        self.deaths[ended.key] += 1
        if self.deaths[ended.key] < DEATHS:
            self.waiting.append(ended.key)
        elif self.stop_on_error and not self.stopping:
            self.stop()

    def _note_refusal(self, ended: Ended) -> None:
        """A job that was refused before it had a STATUS is a failed one, too."""
        folder = self.folders[ended.key]
        if folder.status()["state"] != "failed":
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.set_status("failed", ended.reason)

    def _look_elsewhere(self) -> None:
        """Jobs that another process has ended are settled; those it left are ours."""
        for key in list(self.elsewhere):
            status = self.folders[key].status()
            if not lease_is_live(status):
                self.elsewhere.remove(key)
                if status["state"] not in ("done", "failed"):
                    self.waiting.append(key)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop the sweep after the steps at hand; a second one at once."""
        self.interrupted = False

        def ask(number: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            self.stop()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def scratch_folder(output_dir: str, study: str, sweep_id: str) -> Path:
    """For a sweep's own files: the log of its workers."""
    return Path(output_dir) / study / "sweeps" / sweep_id
