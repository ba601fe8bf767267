"""The longest single call of `log()` while the tracking store is away.

    python experiments/robustness/log_calls.py locked|silent

locked: the sqlite store is locked for 30 s of a run. silent: a server takes connections and never
answers. Prints calls, the longest and the median one, in milliseconds.
"""

from __future__ import annotations

import socket
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
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


def main(how: str) -> None:
    """A run of 200 steps beside a store that is away."""
    calls: list[float] = []
    real = Trackers.log

    def timed(self: Trackers, step: int, metrics: dict[str, float]) -> None:
        began = time.perf_counter()
        real(self, step, metrics)
        calls.append(time.perf_counter() - began)

    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as silent,
        mock.patch.object(Trackers, "log", timed),
    ):
        words = [*SMALL, "steps=200", f"output_dir={folder}/out"]
        if how == "silent":
            words.append(f"tracking.uri=http://127.0.0.1:{silent.getsockname()[1]}")
        else:
            store = Path(folder) / "out" / "mlflow.db"
            threading.Thread(target=lock, args=(store,), daemon=True).start()
        code = grpolab(["train", *words])
    ms = [1000 * seconds for seconds in calls]
    print(f"{how}: exit code {code}, {len(ms)} calls, longest {max(ms):.2f} ms, "
          f"median {statistics.median(ms):.3f} ms")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "locked")
