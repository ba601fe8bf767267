"""A worker process: one job after the other, as JSON lines from its driver.

    {"key", "raw"} in, {"key", "state", "reason"} out;
    {"key", "raws"} in: are these all right?, {"key", "state", "reason"} out;
    {"log"} in: the file for what is printed from now on.

What a job prints goes to log.txt in its folder. When the driver is gone, stdin ends: a running job
then finishes its step, checkpoints and ends, and the worker with it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpolab.ending import end

if TYPE_CHECKING:
    from grpolab.tracking.folder import RunFolder

CHECK = "check"
"""The key of a message with configurations to check, and of its answer."""
PASSED = "passed"
"""The state of an answer that refuses none of them."""
LAST_WORDS = 60.0  # seconds a job has to end after its driver did


class Worker:
    """The worker's loop."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._running = False
        self._threads: int | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def loop(self) -> None:
        """Runs jobs until stdin ends."""
        load_what_jobs_need()
        while (job := self._jobs.get()) is not None:
            if "log" in job:
                print_to(Path(job["log"]))
                continue
            state, reason = checked(job["raws"]) if "raws" in job else self._run(job["raw"])
            self._replies.write(
                json.dumps({"key": job["key"], "state": state, "reason": reason}) + "\n"
            )
            self._replies.flush()

    def _listen(self) -> None:
        """Takes lines in a thread of its own, so that the driver's end is noticed in a job, too."""
        for line in sys.stdin:
            self._jobs.put(json.loads(line))
        self._jobs.put(None)
        if self._running:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(LAST_WORDS)
            os._exit(1)

    def _run(self, raw: dict[str, Any]) -> tuple[str, str | None]:
        if self._threads is None:
            import torch

            self._threads = torch.get_num_threads()
        self._running = True
        try:
            return attend(raw)
        finally:
            self._running = False
            self._tidy()

    def _tidy(self) -> None:
        """What a job leaves behind in this process and the next one would meet."""
        import torch

        torch.set_num_threads(self._threads or torch.get_num_threads())
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load_what_jobs_need() -> None:
    """Imports that every job pays for, while the first one is still on its way."""
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    import grpolab.sweep.job  # noqa: F401


def checked(raws: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
    """Tries all that can be refused in these configurations; what that loads serves the jobs.

    Returns:
        PASSED, or refused; and the reason. What is refused the driver tries again by itself, which
        says so as it does without workers.
    """
    from grpolab.config import bind_run
    from grpolab.sweep.preflight import check

    try:
        for raw in raws:
            check(bind_run(raw))
    except Exception as error:
        return "refused", f"{type(error).__name__}: {error}"
    return PASSED, None


def attend(raw: dict[str, Any]) -> tuple[str, str | None]:
    """Runs a job to its end, whatever that is; what it prints goes to its log.txt.

    Returns:
        What `run_job` says, or failed or interrupted; and the reason.
    """
    from grpolab.component import ConfigError
    from grpolab.sweep.job import run_job
    from grpolab.sweep.manifest import run_folder

    folder = run_folder(raw)
    with printing_to(folder.path / "log.txt"):
        try:
            state = run_job(raw)
            return state, folder.status()["reason"]
        except KeyboardInterrupt:
            leave(folder)
            return "interrupted", None
        except ConfigError as error:
            return "failed", str(error)
        except Exception as error:
            traceback.print_exc()
            return "failed", f"{type(error).__name__}: {error}"


def leave(folder: RunFolder) -> None:
    """A job that was interrupted before it began to train is no longer ours."""
    from grpolab.tracking.folder import is_own

    status = folder.status()
    if status["state"] == "running" and is_own(status["lease"]):
        folder.set_status("pending", "interrupted")


def print_to(path: Path) -> None:
    """What is printed from now on, by anyone in this process, is appended to a file."""
    with path.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """What is printed meanwhile, by anyone in this process, is appended to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(1), os.dup(2)]
    print_to(path)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)


def main() -> None:
    """Serves a driver."""
    # A parent of another make (a Ray actor) may have left them blocked, and a mask is inherited
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    Worker().loop()
    end(0)


if __name__ == "__main__":
    main()
