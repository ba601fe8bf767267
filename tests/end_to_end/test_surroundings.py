"""What a run's surroundings do to it: pipes, signals, clocks, odd paths, two drivers at once."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.sharing import once

if TYPE_CHECKING:
    from tests.end_to_end import launching, sweeping
    from tests.end_to_end.test_full_disk import own_mounts
else:
    import launching
    import sweeping
    from test_full_disk import own_mounts

STEPS = 3
QUICK = (f"steps={STEPS}", "seed=0", "tracking=jsonl", "hydra.launcher.workers=1")
"""Two runs, one after the other."""
SINGLE = ("steps=2", "tracking=jsonl", "eval.every=1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:

    def make(out: Path) -> Path:
        done = launching.grpolab(*sweeping.command(out, *QUICK), cwd=out)
        assert done.returncode == 0, done.stderr
        return out

    return once(tmp_path_factory, "surroundings-undisturbed", make)


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], cwd=cwd, env=launching.environment(), capture_output=True,
        text=True, timeout=launching.LIMIT, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "ending",
    ["2>&1 | head -1", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full"],
    ids=["head", "closed", "all closed", "full"],
)
def test_output_that_nobody_reads_loses_no_run(ending: str, tmp_path: Path) -> None:
    command = shlex.join(launching.words("train", *launching.SMALL, *SINGLE, "output_dir=out"))
    done = shell(f"set -o pipefail; {command} {ending}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    run = launching.only_run(tmp_path / "out" / "default")
    assert launching.status(run)["state"] == "done"
    assert [step for step, _ in launching.metrics(run)] == [0, 1, 2]


IMPATIENT = "from grpolab.cli import streams; streams.PATIENCE_SECONDS = 0.2"


def test_a_full_pipe_that_nobody_reads_loses_no_run(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, bytes(select.PIPE_BUF))
    os.set_blocking(write, True)  # as a shell's pipes are
    code = f"{IMPATIENT}\nfrom grpolab.cli import entry\nentry()"
    words = ["train", *launching.SMALL, "steps=1", "tracking=jsonl", "output_dir=out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=launching.environment(),
        stdout=write, stderr=write, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    run = launching.only_run(tmp_path / "out" / "default")
    assert launching.status(run)["state"] == "done"
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert not pipe.read().strip(b"\0")  # all that the run had to say was dropped


def test_a_sweep_whose_reader_leaves(undisturbed: Path, tmp_path: Path) -> None:
    command = shlex.join(launching.words(*sweeping.command(tmp_path, *QUICK)))
    done = shell(f"set -o pipefail; {command} | head -1", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Sweep ")
    assert "Traceback" not in done.stderr
    sweeping.assert_same_runs(tmp_path, undisturbed)


def test_sigterm_to_driver_and_workers_as_slurm_sends_it(undisturbed: Path, tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, *QUICK, "checkpoint.every=0")
    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 2, process)
    for one in [*sweeping.workers(process), psutil.Process(process.pid)]:
        one.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "running" not in sweeping.states(tmp_path).values()
    done = launching.grpolab("resume", f"output_dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweeping.assert_same_runs(tmp_path, undisturbed)


CLOCK = """
import os, time

real, mark = time.time, os.environ.get("GRPOLAB_TEST_CLOCK")


def jumping():
    try:
        return real() + float(open(mark).read())
    except (OSError, ValueError):
        return real()


if mark:
    time.time = jumping
"""


def test_two_drivers_at_once_while_the_clock_jumps(undisturbed: Path, tmp_path: Path) -> None:
    """An hour ahead in the first run, an hour back in the second; each run is made once."""
    out, clock = tmp_path / "out", tmp_path / "clock"
    launching.write_tree(tmp_path, {"clocked/sitecustomize.py": CLOCK})
    clocked = launching.environment(
        PYTHONPATH=str(tmp_path / "clocked"), GRPOLAB_TEST_CLOCK=str(clock)
    )
    drivers = [
        subprocess.Popen(
            launching.words(*sweeping.command(out, *QUICK)), cwd=tmp_path, env=clocked, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    for lines, hours in ((2, 1), (STEPS + 3, -1)):
        sweeping.wait_until(lambda least=lines: sweeping.steps_logged(out) >= least)  # type: ignore[misc]
        clock.write_text(str(hours * 3600))
    for driver in drivers:
        _, errors = driver.communicate(timeout=launching.LIMIT)
        assert driver.returncode == 0, errors
        assert "Traceback" not in errors
    assert len(sweeping.members(out)) == 2  # one manifest
    sweeping.assert_same_runs(out, undisturbed)


def test_a_path_with_spaces_and_unicode(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "größe 実験 (a, b) = 'c'" / "out put"
    quoted = str(out).replace("'", "\\'")
    words = ["train", "-m", *launching.SMALL, *sweeping.SWEEP, *QUICK]
    process = launching.start(*words, f"output_dir='{quoted}'", cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(out) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 130, errors
    done = launching.grpolab("resume", f"output_dir={out}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweeping.assert_same_runs(out, undisturbed)
    assert list(out.glob("analysis/*/verdicts.csv"))  # which the end of the sweep has analysed


READ_ONLY = """
mkdir -p {disk} && mount -t tmpfs -o size=50m tmpfs {disk} || exit 99
mount -o remount,ro {disk} || exit 98
{command}
"""


def test_a_read_only_output_folder(tmp_path: Path) -> None:
    unshare = own_mounts()
    if unshare is None:
        pytest.skip("needs Linux, and the right to mount tmpfs (root ignores permissions)")
    disk = tmp_path / "disk"
    command = shlex.join(
        launching.words("train", *launching.SMALL, *SINGLE, f"output_dir={disk / 'out'}")
    )
    script = READ_ONLY.format(disk=shlex.quote(str(disk)), command=command)
    done = subprocess.run(
        [*unshare, "sh", "-c", script], cwd=tmp_path, env=launching.environment(),
        capture_output=True, text=True, timeout=launching.LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    sentence = launching.one_sentence(done.stderr)
    assert "output_dir:" in sentence
    assert os.strerror(30) in sentence
