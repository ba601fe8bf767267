"""A run's folder: STATUS, metrics.jsonl (the truth), samples.jsonl, config and provenance."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LEASE_SECONDS = 60.0  # a lease not renewed for so long is stale, whatever host it names
RENEW_SECONDS = 10.0
WATCH_SECONDS = 25.0  # a live process renews its lease at least twice meanwhile


class Busy(RuntimeError):
    """Another process holds the run's lease."""


class RunFolder:
    """`outputs/<study>/<job_id>/`. Appends are flushed line by line; STATUS is replaced whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._status_lock = threading.Lock()

    # -- STATUS --------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """{"state": pending | running | done | failed | missing, "reason", "lease"}."""
        try:
            found: dict[str, Any] = json.loads((self.path / "STATUS").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return {"state": "missing", "reason": None, "lease": None}
        return found

    def set_status(self, state: str, reason: str | None = None, *, lease: bool = False) -> None:
        """Replaces STATUS; with `lease`, this process is named as the one at work."""
        with self._status_lock:
            self._write_status(state, reason, lease=lease)

    def _write_status(self, state: str, reason: str | None, *, lease: bool) -> None:
        held = {
            "host": socket.gethostname(),
            "space": pid_space(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "time": time.time(),
        }
        content = {"state": state, "reason": reason, "lease": held if lease else None}
        text = json.dumps(content) + "\n"
        try:
            write_atomically(self.path / "STATUS", text)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            overwrite(self.path / "STATUS", text)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Marks the run as running, and renews the lease until the block ends.

        Raises:
            Busy: a live process holds it.
        """
        from filelock import FileLock

        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self.path / ".lock")):
            if lease_is_live(self.status()) or self._is_renewed():
                raise Busy(f"{self.path} is being run by another process")
            self.set_status("running", lease=True)
        stop = threading.Event()
        thread = threading.Thread(target=self._renew, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _is_renewed(self) -> bool:
        """Watches a lease of another host that looks old: its clock, or ours, may be wrong."""
        seen = self.status()
        if seen["state"] != "running" or not seen["lease"] or not is_foreign(seen["lease"]):
            return False
        time.sleep(WATCH_SECONDS)
        return self.status() != seen

    def _renew(self, stop: threading.Event) -> None:
        while not stop.wait(RENEW_SECONDS):
            with self._status_lock:  # else it could overwrite the end set in between
                if self.status()["state"] == "running":
                    self._write_status("running", None, lease=True)

    # -- records -------------------------------------------------------------------------------

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl; non-finite numbers become strings, as JSON has none."""
        plain = {k: _plain(v) for k, v in metrics.items()}
        self._append("metrics.jsonl", [{"step": step, "metrics": plain}])

    def append_samples(self, records: list[dict[str, Any]]) -> None:
        """Lines of samples.jsonl."""
        if records:
            self._append("samples.jsonl", records)

    def _append(self, name: str, records: list[dict[str, Any]]) -> None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        # half a surrogate pair has no UTF-8; its backslash escape is JSON for the same character
        with (self.path / name).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)

    def metrics(self) -> list[tuple[int, dict[str, float]]]:
        """(step, metrics) of every whole line."""
        return [
            (int(r["step"]), {k: float(v) for k, v in r["metrics"].items()})
            for r in read_jsonl(self.path / "metrics.jsonl")
        ]

    def truncate(self, step: int) -> None:
        """Drops what was logged at or after a step: a resumed run logs it again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (self.path / name).exists():
                found = whole_lines(self.path / name)
                kept = (line + "\n" for line, record in found if record["step"] < step)
                write_atomically(self.path / name, "".join(kept))

    def write_json(self, name: str, content: Any) -> None:
        """A JSON file in the folder, replaced whole."""
        write_atomically(self.path / name, json.dumps(content, indent=2, default=str) + "\n")

    def read_json(self, name: str) -> Any:
        """A JSON file of the folder, or None."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None


def lease_is_live(status: Mapping[str, Any]) -> bool:
    """Whether some process is still at work on a run. One that this process can see is asked for;
    of another one, only how long ago the lease was renewed is known."""
    lease = status.get("lease")
    if status.get("state") != "running" or not lease:
        return False
    if not is_foreign(lease):
        return lease["pid"] != os.getpid() and _alive(lease["pid"], lease.get("started"))
    return abs(time.time() - float(lease["time"])) < LEASE_SECONDS


def is_foreign(lease: Mapping[str, Any]) -> bool:
    """Whether its process number means nothing here: another host's, or another container's,
    which may well share the host's name."""
    own = pid_space()
    if lease["host"] != socket.gethostname():
        return True
    return bool(own and lease.get("space") and lease["space"] != own)


def is_own(lease: Mapping[str, Any] | None) -> bool:
    """Whether this very process holds it."""
    if not lease or is_foreign(lease) or lease["pid"] != os.getpid():
        return False
    return lease.get("started") in (None, process_start(os.getpid()))


def pid_space() -> str | None:
    """Where process numbers mean the same as here: this start of the kernel, and in it the pid
    namespace. None where the system does not say."""
    try:
        return f"{_boot()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _alive(pid: int, started: str | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    found = process_start(pid)
    if found and started and found != started:
        return False  # another process got the number
    return not _is_zombie(pid)


def process_start(pid: int) -> str | None:
    """When a process began, as text that no later process of that number shares; None where the
    system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = _boot()
    except OSError:
        return None
    return f"{boot}:{stat.rpartition(')')[2].split()[19]}"


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a last line torn by a kill is left out."""
    return [record for _, record in whole_lines(path)]


def whole_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(line, record) of a JSON-lines file, up to a line torn by a kill. Only a newline ends a
    line: completions may hold what else Unicode calls a line end."""
    if not path.exists():
        return []
    found = []
    for raw in path.read_bytes().split(b"\n"):
        try:
            line = raw.decode("utf-8")
            found.append((line, json.loads(line)))
        except ValueError:  # no whole JSON, or torn inside a character
            break
    return found


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file whole: a reader sees the old one or the new one."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def overwrite(path: Path, text: str) -> None:
    """Writes into the place a file has: on a full disk there is none for a second one."""
    with path.open("r+b") as file:
        file.write(text.encode())
        file.truncate()


def _plain(value: float) -> float | str:
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value
