"""Starts `grpolab` as a real process, as a person would, and reads what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from grpolab.cli import main

SOURCES = Path(__file__).resolve().parents[2] / "src"
LIMIT = 600.0  # seconds; far more than any command here takes on a crowded machine, too

SMALL = (
    "model=tiny", "prompts_per_step=2", "eval.prompts=4", "eval.samples=2", "hardware.threads=1",
    "hardware.device=cpu", "sampler.group_size=4", "sampler.max_new_tokens=16", "optimizer.lr=2e-4",
)  # fmt: skip
"""A run of some seconds; the learning rate is high enough that every step moves the weights."""

CLOCKED = ("time/", "speed/", "memory/")
"""Metrics that no two runs share."""


def environment(**more: str) -> dict[str, str]:
    """The environment of a command; `PYTHONPATH` in `more` is put before the package's."""
    paths = [more.pop("PYTHONPATH", ""), str(SOURCES), os.environ.get("PYTHONPATH", "")]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    return {**os.environ, **own, **more}


def words(*arguments: str) -> list[str]:
    """The command line of `grpolab …`."""
    return [sys.executable, "-m", "grpolab", *arguments]


def grpolab(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        words(*arguments), cwd=cwd, env=environment(**more), capture_output=True, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip


def called(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """What `grpolab` returns, of a command called in this process, which has imported torch long
    ago: for commands of which the process itself is not tested."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        for name, value in more.items():
            patch.setenv(name, value)
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def train(*overrides: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`grpolab train` of a small run that must end well."""
    done = grpolab("train", *SMALL, *overrides, cwd=cwd, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def start(
    *arguments: str, cwd: Path, start_new_session: bool = False, before: str | None = None
) -> subprocess.Popen[str]:
    """Starts a command and does not wait for it; `before` is code that its process runs first."""
    command = words(*arguments)
    if before is not None:
        code = f"{before}\nfrom grpolab.cli import entry\nentry()"
        command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=start_new_session,
    )  # fmt: skip


def wait_for_lines(process: subprocess.Popen[str], study: Path, count: int) -> None:
    """Returns once the study's only run has logged so many steps."""
    deadline = time.monotonic() + LIMIT
    while lines(study) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def lines(study: Path) -> int:
    """Lines of the study's only metrics.jsonl."""
    found = list(study.glob("*/metrics.jsonl"))
    return found[0].read_text().count("\n") if found else 0


def run_folders(study: Path) -> list[Path]:
    """The folders of a study's runs."""
    return sorted(path.parent for path in study.glob("*/STATUS"))


def only_run(study: Path) -> Path:
    """The folder of a study's one run."""
    (folder,) = run_folders(study)
    return folder


def status(folder: Path) -> dict[str, Any]:
    """A run's STATUS."""
    found: dict[str, Any] = json.loads((folder / "STATUS").read_text())
    return found


def metrics(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """(step, metrics) of every line, without what a clock measured."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        (r["step"], {k: v for k, v in r["metrics"].items() if not k.startswith(CLOCKED)})
        for r in records
    ]


def weights(folder: Path) -> bytes:
    """The exported weights, as they lie on the disk."""
    return (folder / "model" / "model.safetensors").read_bytes()


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """{path: (size, time of change)} of all files below a folder."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


def write_tree(folder: Path, files: Mapping[str, str]) -> Path:
    """Writes {relative path: text}; the folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def one_sentence(stderr: str) -> str:
    """The only line on stderr; fails if there is anything else."""
    found: Sequence[str] = stderr.strip().splitlines()
    assert len(found) == 1, stderr
    assert found[0].startswith("grpolab: "), stderr
    return found[0]
