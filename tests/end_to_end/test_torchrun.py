"""`torchrun … -m grpolab train …` as a person starts it: what it leaves behind, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from grpolab.results.from_mlflow import read
from tests.sharing import once

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

STEPS = 4
RUN = (*launching.SMALL, f"steps={STEPS}", "kl=k3")
CLOSE = 1e-5
"""Of weights in float32, where the order of a sum shows; test_ranks.py compares in float64."""
SOON = 60.0  # seconds; torchrun itself gives up on a rank that does not end after 30

BROKEN = '''
"""A policy loss that goes wrong on one rank."""
import os
from dataclasses import dataclass
from typing import ClassVar

from grpolab.objective.clip.ratio import PPO


@dataclass(frozen=True)
class Broken(PPO):
    """ppo, but rank 1 {what}."""

    name: ClassVar[str] = "broken"

    def formula(self, x, plan):
        loss, low, high = super().formula(x, plan)
        if os.environ.get("RANK") == "1":
            {how}
        return loss, low, high
'''


def command(*arguments: str) -> list[str]:
    """Two ranks of `grpolab …` on this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [sys.executable, *launcher, "-m", "grpolab", *arguments]


def torchrun(
    *arguments: str, cwd: Path, seconds: float = launching.LIMIT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=launching.environment(PYTHONPATH=str(cwd)),
        capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip


def rank_pid(process: subprocess.Popen[str], rank: int) -> int:
    """The process of one rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    wanted = f"RANK={rank}".encode()
    (found,) = [
        p for p in children if wanted in Path(f"/proc/{p}/environ").read_bytes().split(b"\0")
    ]
    return int(found)


def wait_for_end(folder: Path) -> None:
    """Returns once STATUS says that the run no longer goes on."""
    deadline = time.monotonic() + SOON
    while launching.status(folder)["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def close(one: Path, other: Path) -> float:
    """The distance of two exported models, relative to their size."""
    models = [load_file(f / "model" / "model.safetensors") for f in (one, other)]
    a, b = (torch.cat([m[n].flatten().double() for n in sorted(m)]) for m in models)
    return float((a - b).norm() / b.norm())


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Metrics as numbers: metrics.jsonl has NaN as text."""
    return {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""

    def make(here: Path) -> Path:
        launching.train(*RUN, "tracking=jsonl", cwd=here)
        return launching.only_run(here / "outputs" / "default")

    return once(tmp_path_factory, "torchrun-alone", make)


def test_two_ranks_leave_one_run_behind(alone: Path, tmp_path: Path) -> None:
    done = torchrun("train", *RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1 of 1 runs done") == 1
    folder = launching.only_run(tmp_path / "outputs" / "default")
    assert folder.name == alone.name  # the job id does not depend on the ranks
    assert launching.status(folder)["state"] == "done"
    assert json.loads((folder / "provenance.json").read_text())["world_size"] == 2
    assert (folder / "samples.jsonl").read_bytes() == (alone / "samples.jsonl").read_bytes()
    found, expected = launching.metrics(folder), launching.metrics(alone)
    assert [step for step, _ in found] == list(range(STEPS + 1))
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-2, abs=1e-4, nan_ok=True)
    assert close(folder, alone) < CLOSE
    assert len(read(f"sqlite:///{tmp_path}/outputs/mlflow.db", None, "default")) == 1
    again = torchrun("train", *RUN, cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("Done before") == 1


def test_a_signal_to_one_rank_stops_all_and_one_process_goes_on(tmp_path: Path) -> None:
    long = (*RUN, "tracking=jsonl", "steps=40", "eval.every=0")
    process = subprocess.Popen(
        command("train", *long), cwd=tmp_path, env=launching.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    study = tmp_path / "outputs" / "default"
    launching.wait_for_lines(process, study, 2)
    os.kill(rank_pid(process, 1), signal.SIGTERM)  # not to the one that writes
    out, err = process.communicate(timeout=SOON)
    assert process.returncode != 0
    folder = launching.only_run(study)
    found = launching.status(folder)
    assert (found["state"], found["lease"]) == ("pending", None), out + err
    assert "interrupted" in found["reason"]
    reached = json.loads((folder / "checkpoint" / "state.json").read_text())["step"]
    assert 1 <= reached < 40
    assert err.count("grpolab: interrupted") == 1
    launching.train(*long, cwd=tmp_path)
    assert [step for step, _ in launching.metrics(folder)] == list(range(41))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_ends_the_others(tmp_path: Path, how: signal.Signals) -> None:
    process = subprocess.Popen(
        command("train", *RUN, "tracking=jsonl", "steps=2000", "checkpoint.every=1"), cwd=tmp_path,
        env=launching.environment(GRPOLAB_RANK_TIMEOUT="20"), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    study = tmp_path / "outputs" / "default"
    launching.wait_for_lines(process, study, 3)
    other = rank_pid(process, 1)
    os.kill(other, how)
    wait_for_end(launching.only_run(study))
    if how == signal.SIGSTOP:  # torchrun would wait another 30 seconds for it
        os.kill(other, signal.SIGKILL)
    out, err = process.communicate(timeout=SOON)
    found = launching.status(launching.only_run(study))
    assert (found["state"], found["lease"]) == ("pending", None), out + err
    assert "another rank is gone" in found["reason"]
    assert (launching.only_run(study) / "checkpoint" / "state.json").exists()


@pytest.mark.parametrize(
    ("what", "how", "reason", "shard"),
    [
        ("fails", 'raise ValueError("made to fail")', "rank 1: ValueError: made to fail", "none"),
        # in the middle of a pass, where the other rank waits for this one's weights
        ("fails", 'raise ValueError("made to fail")', "rank 1: ValueError: made to fail", "fsdp2"),
        ("gives NaN", 'loss = loss * float("nan")', "non-finite loss or gradient", "none"),
    ],
)
def test_an_error_on_one_rank_is_the_reason_of_the_run(
    tmp_path: Path, what: str, how: str, reason: str, shard: str
) -> None:
    source = BROKEN.replace("{what}", what).replace("{how}", how)
    conf = {"conf/clip/broken.yaml": "_target_: broken.Broken\n", "broken.py": source}
    launching.write_tree(tmp_path, conf)
    began = time.monotonic()
    done = torchrun(
        "train", "--config-dir", "conf", *RUN, "clip=broken", "tracking=jsonl",
        "optimizer.max_skipped=0", f"hardware.shard={shard}", cwd=tmp_path, seconds=SOON,
    )  # fmt: skip
    assert time.monotonic() - began < SOON
    assert done.returncode != 0
    folder = launching.only_run(tmp_path / "outputs" / "default")
    found = launching.status(folder)
    assert (found["state"], found["lease"]) == ("failed", None), done.stdout + done.stderr
    assert reason in found["reason"]
    if what == "fails":
        assert "in formula" in (folder / "traceback.txt").read_text()


def test_a_sweep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = launching.called("train", "-m", "seed=0,1", *launching.SMALL, cwd=tmp_path)
    assert done.returncode == 2
    assert launching.one_sentence(done.stderr).startswith("grpolab: torchrun: 2 ranks given with")
    assert not list(tmp_path.iterdir())
    done = launching.called("train", *launching.SMALL, cwd=tmp_path)  # no torchrun set these
    assert done.returncode == 2
    assert "RANK, MASTER_ADDR, MASTER_PORT" in launching.one_sentence(done.stderr)
    assert not list(tmp_path.iterdir())
