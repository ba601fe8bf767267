"""The longest single call of `log()` while the tracking store is away.

    python experiments/robustness/log_calls.py locked|silent|stopped [steps]

locked: the sqlite store is locked for 30 s of a run. silent: a server takes connections and never
answers. stopped: an MLflow server gets SIGSTOP once it has taken the run's first numbers, so that
its connections stay open and nothing comes back. Prints calls, the longest and the median one, in
milliseconds, and how many of them came after the stop.
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

from grpolab.cli import main as grpolab
from grpolab.sweep.trackers import Trackers

SECONDS = 30.0
SMALL = (
    "model=tiny", "prompts_per_step=2", "eval.every=0", "eval.prompts=4", "eval.samples=0",
    "hardware.threads=1", "hardware.device=cpu", "sampler.group_size=4",
    "sampler.max_new_tokens=16", "tracking.flush_seconds=0.3", "tracking.progress=false",
)  # fmt: skip


def lock(store: Path) -> None:
    """Holds the write lock of a sqlite store for a while, once there is one."""
    while not store.exists():
        time.sleep(0.01)
    held = sqlite3.connect(store, timeout=60, isolation_level=None)
    held.execute("begin immediate")
    time.sleep(SECONDS)
    held.execute("rollback")
    held.close()


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """(URI, process group) of an MLflow server that answers; it is killed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{folder / 'server.db'}",
             "--default-artifact-root", str(folder / "artifacts")]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if server.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text())
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def stop_once_it_has_numbers(folder: Path, group: int, stopped: threading.Event) -> None:
    """SIGSTOP for the server and its workers, once a metric stands in its store."""
    while not stopped.wait(0.2):
        with suppress(sqlite3.Error):
            store = sqlite3.connect(f"file:{folder / 'server.db'}?mode=ro", uri=True)
            count = store.execute("select count(*) from metrics").fetchone()[0]
            store.close()
            if count:
                os.killpg(group, signal.SIGSTOP)
                stopped.set()


def main(how: str, steps: int) -> None:
    """A run beside a store that is away."""
    calls: list[float] = []
    after: list[float] = []
    stopped = threading.Event()
    real = Trackers.log

    def timed(self: Trackers, step: int, metrics: dict[str, float]) -> None:
        began = time.perf_counter()
        real(self, step, metrics)
        calls.append(time.perf_counter() - began)
        if stopped.is_set():
            after.append(calls[-1])

    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as silent,
        mock.patch.object(Trackers, "log", timed),
    ):
        words = [*SMALL, f"steps={steps}", f"output_dir={folder}/out"]
        if how == "stopped":
            with served(Path(folder)) as (uri, group):
                watch = (Path(folder), group, stopped)
                threading.Thread(target=stop_once_it_has_numbers, args=watch, daemon=True).start()
                code = grpolab(["train", *words, f"tracking.uri={uri}"])
        elif how == "silent":
            stopped.set()
            words.append(f"tracking.uri=http://127.0.0.1:{silent.getsockname()[1]}")
            code = grpolab(["train", *words])
        else:
            store = Path(folder) / "out" / "mlflow.db"
            threading.Thread(target=lock, args=(store,), daemon=True).start()
            code = grpolab(["train", *words])
    ms = [1000 * seconds for seconds in calls]
    print(f"{how}: exit code {code}, {len(ms)} calls, longest {max(ms):.2f} ms, "
          f"median {statistics.median(ms):.3f} ms")  # fmt: skip
    if after:
        print(f"{len(after)} calls after the stop, longest {1000 * max(after):.2f} ms")


if __name__ == "__main__":
    given = [*sys.argv[1:], *("locked", "200")[len(sys.argv) - 1 :]]
    main(given[0], int(given[1]))
