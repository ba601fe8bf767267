"""A disk that fills up while a run logs, checkpoints or exports: said once, nothing lost."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.sharing import once

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

STEPS = 6
SENTENCE = "no space is left for"


def own_mounts() -> list[str] | None:
    """The command that runs another with mounts of its own; None where the system allows none."""
    for words in (["unshare", "-m"], ["unshare", "-Urm"]):
        test = [*words, "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /tmp"]
        if shutil.which("unshare") and not subprocess.run(test, capture_output=True).returncode:
            return words
    return None


UNSHARE = own_mounts()
pytestmark = pytest.mark.skipif(UNSHARE is None, reason="needs Linux, and the right to mount tmpfs")


@dataclass(frozen=True)
class Case:
    mebibytes: int
    """Of the small disk."""
    ballast: int
    """KiB that are taken before the run starts."""
    overrides: tuple[str, ...]
    checkpoint: bool
    """Whether there is one when the disk is full."""


CASES = {
    # a checkpoint of the tiny model is 12.6 MB: two fit, the third does not
    "checkpointing": Case(30, 0, ("checkpoint.every=1",), True),
    # 64 KiB for metrics and samples
    "logging": Case(4, 4032, ("tracking.log_samples=8",), False),
    # the exported model is 4.2 MB
    "exporting": Case(3, 0, (), False),
    "logging to MLflow": Case(4, 3500, ("tracking=mlflow", "tracking.flush_seconds=0.2"), False),
}

SCRIPT = """
set -u
mkdir -p {disk} && mount -t tmpfs -o size={size}m tmpfs {disk} || exit 99
head -c {ballast}k /dev/zero > {disk}/ballast
{command} > {kept}/first.out 2> {kept}/first.err
echo $? > {kept}/first.code
for run in {disk}/out/default/*/; do
    cp -r "$run" {kept}/full
done
rm {disk}/ballast
mount -o remount,size=300m {disk} || exit 98
{command} > {kept}/second.out 2> {kept}/second.err
echo $? > {kept}/second.code
cp -r {disk}/out {kept}/
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:

    def make(out: Path) -> Path:
        launching.train(f"steps={STEPS}", "tracking=jsonl", f"output_dir={out}", cwd=out)
        return launching.only_run(out / "default")

    return once(tmp_path_factory, "full-disk-undisturbed", make)


@pytest.mark.parametrize("name", list(CASES))
def test_a_full_disk_is_said_and_the_run_goes_on_later(
    name: str, undisturbed: Path, tmp_path: Path
) -> None:
    case, kept, disk = CASES[name], tmp_path / "kept", tmp_path / "disk"
    kept.mkdir()
    tracking = () if "tracking=mlflow" in case.overrides else ("tracking=jsonl",)
    command = launching.words(
        "train", *launching.SMALL, f"steps={STEPS}", *tracking, *case.overrides,
        f"output_dir={disk / 'out'}",
    )  # fmt: skip
    script = SCRIPT.format(
        disk=shlex.quote(str(disk)), kept=shlex.quote(str(kept)), size=case.mebibytes,
        ballast=case.ballast, command=shlex.join(command),
    )  # fmt: skip
    assert UNSHARE is not None
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", script], capture_output=True, text=True, cwd=tmp_path,
        env=launching.environment(TMPDIR=os.environ.get("TMPDIR", "/tmp")), check=False,
        timeout=launching.LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = (kept / "first.out").read_text() + (kept / "first.err").read_text()
    assert (kept / "first.code").read_text().strip() == "1", said
    assert said.count(SENTENCE) == 1, said
    assert "Traceback" not in said
    if (kept / "full" / "STATUS").exists():
        assert launching.status(kept / "full")["state"] in ("pending", "running")
    assert (kept / "full" / "checkpoint" / "state.json").exists() is case.checkpoint
    assert not list((kept / "full").glob("model*"))  # no part of one
    assert (kept / "second.code").read_text().strip() == "0", (kept / "second.err").read_text()
    run = launching.only_run(kept / "out" / "default")
    if case.checkpoint:
        assert_it_went_on(kept / "full", run)
    assert launching.metrics(run) == launching.metrics(undisturbed)
    assert launching.weights(run) == launching.weights(undisturbed)


def assert_it_went_on(stopped: Path, run: Path) -> None:
    """No step up to the checkpoint was made again: the clock's numbers on its line are the same."""
    state = json.loads((stopped / "checkpoint" / "state.json").read_text())
    made = state["step"] + 1  # lines, step 0 among them
    assert made > 1
    before, after = ((f / "metrics.jsonl").read_text().splitlines() for f in (stopped, run))
    assert json.loads(before[made - 1])["step"] == state["step"]
    assert after[:made] == before[:made]
