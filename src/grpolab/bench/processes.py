"""The parent's end of the line: workers that load once, then do one step when told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

PATIENCE = 20.0  # seconds for a worker to end by itself
TAIL = 12  # lines of a dead worker's log that are shown


class BenchError(RuntimeError):
    """A side cannot go on; the message says which and why."""


class Worker:
    """A side in a process of its own; one line to it, one line back, stderr in a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, threads: int) -> None:
        self.name, self.log = name, log
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        package = str(Path(__file__).parents[2])  # the sources at hand, installed or not
        environment["PYTHONPATH"] = os.pathsep.join(
            p for p in (package, os.environ.get("PYTHONPATH")) if p
        )
        self._log: BinaryIO = log.open("wb")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self.about: dict[str, Any] = {}

    def start(self, spec: Mapping[str, Any]) -> None:
        """Tells it what to load; returns at once."""
        self._write(spec)

    def wait_ready(self) -> None:
        """Waits until it has loaded."""
        self.about = self._read()["ready"]

    def ask(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """One line to it, and its answer."""
        self._write(line)
        return self._read()

    def close(self) -> None:
        """Ends the process: politely, then not."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it is dead already
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._died() from error

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        found: dict[str, Any] = json.loads(line)
        return found

    def _died(self) -> BenchError:
        code = self._process.wait()
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL:]
        tail = "\n".join(f"    {line}" for line in lines)
        return BenchError(
            f"{self.name}: the worker ended with exit code {code}; its log is {self.log}, "
            f"and ends so:\n{tail}"
        )


def worker_command(side: str, python: str | None = None) -> list[str]:
    """The command of a side; vLLM's is a script for the interpreter that has vLLM."""
    if side == "vllm":
        assert python is not None
        return [python, str(Path(__file__).with_name("vllm_side.py"))]
    return [sys.executable, "-m", "grpolab.bench.worker", side]
