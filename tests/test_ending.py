"""A command ends without taking itself apart, and nothing that was written is lost by that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import atexit, ctypes, sys, threading
from grpolab.ending import end

file = open(sys.argv[1], "w")
file.write("kept by a reward\\n")
atexit.register(lambda: print("at exit"))
print("printed")
ctypes.CDLL(None).printf(b"by C\\n")
if sys.argv[2] == "thread":
    wait = threading.Event()
    threading.Timer(0.2, print, ["by a thread"]).start()
end(3)
"""


def ended(path: Path, how: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", CODE, str(path), how],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["alone", "thread"])
def test_nothing_that_was_written_is_lost(tmp_path: Path, how: str) -> None:
    done = ended(tmp_path / "log.txt", how)
    assert done.returncode == 3, done.stderr
    said = {"printed", "by C", "at exit"} | ({"by a thread"} if how == "thread" else set())
    assert set(done.stdout.splitlines()) == said
    assert (tmp_path / "log.txt").read_text() == "kept by a reward\n"
