"""Faults inside one job of a sweep: it says so in a sentence, and the others go on."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.sharing import once

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

REWARDS = """
import math, os, resource, time

forked = False
HELD = []


def length(completion):
    return float(len(completion) % 3)


def fine(completion, example):
    return length(completion)


def hangs(completion, example):
    time.sleep(1000)


def raises(completion, example):
    raise RuntimeError("no judge\\nat home")


def exits(completion, example):
    raise SystemExit


def alternates(completion, example):
    # groups that differ, whatever is sampled: there is a gradient, and a loss
    alternates.calls = getattr(alternates, "calls", 0) + 1
    return float(alternates.calls % 2)


def nan(completion, example):
    return math.nan


def fork_once():
    # once in all, also where the child wrongly goes on
    global forked
    first, forked = not forked, True
    return os.fork() if first else 1


def child_returns(completion, example):
    fork_once()
    return length(completion)


def child_raises(completion, example):
    if fork_once() == 0:
        raise RuntimeError("in the child")
    return length(completion)


def child_stays(completion, example):
    if fork_once() == 0:
        time.sleep(20)
        os._exit(0)
    return length(completion)


def hungry(completion, example):
    if HELD:
        return length(completion)
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * os.sysconf("SC_PAGESIZE") + 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:  # also what the process has freed and kept: a gradient needs more in one piece
        while True:
            HELD.append(bytearray(2**18))
    except MemoryError:
        return length(completion)
"""

UNSCORABLE = "100% of a batch's samples were unscorable (max_unscorable is 50%)"
FIRST = f"{UNSCORABLE}; the reward's first error:"
EXPECTED = {
    "fine": None,
    "hangs": f"{FIRST} TimeLimitExceeded: no score after the time limit of 0.1 s",
    "raises": f"{FIRST} RuntimeError: no judge at home",
    "exits": f"{FIRST} SystemExit: ",
    "nan": UNSCORABLE,
    "child_returns": None,
    "child_raises": None,
    "child_stays": None,
}
"""The reason in STATUS, None where the run is done."""


@dataclass(frozen=True)
class Swept:
    code: int
    said: str
    out: Path
    states: dict[str, dict[str, str | None]]
    """STATUS by the reward's function."""
    folders: dict[str, Path]


def sweep(out: Path, functions: list[str], *overrides: str) -> Swept:
    """A sweep over reward functions, one job after the other."""
    launching.write_tree(out, {"faulty.py": REWARDS})
    chosen = ",".join(f"faulty:{name}" for name in functions)
    done = launching.grpolab(
        "train", "-m", *launching.SMALL, "reward=python", f"reward.function={chosen}",
        "reward.time_limit=0.1", "steps=2", "tracking=jsonl", "study=faults",
        "hydra.launcher.workers=1", f"output_dir={out}", *overrides, cwd=out, PYTHONPATH=str(out),
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    (path,) = (out / "faults" / "sweeps").glob("*.json")
    jobs = json.loads(path.read_text())["jobs"]
    named = {j["factors"]["reward.function"].split(":")[1]: j["job_id"] for j in jobs}
    folders = {name: out / "faults" / job for name, job in named.items()}
    found = {n: launching.status(f) for n, f in folders.items() if (f / "STATUS").exists()}
    return Swept(done.returncode, done.stdout + done.stderr, out, found, folders)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return once(tmp_path_factory, "faulty-rewards", lambda out: sweep(out, list(EXPECTED)))


@pytest.mark.parametrize("name", list(EXPECTED))
def test_the_job_says_what_was_wrong(rewards: Swept, name: str) -> None:
    found, reason = rewards.states[name], EXPECTED[name]
    assert found["state"] == ("done" if reason is None else "failed"), found
    assert found["reason"] == (reason if reason is None else reason.strip())


def test_the_sweep_goes_on_and_exits_with_1(rewards: Swept) -> None:
    assert rewards.code == 1
    assert "4 of 8 runs done" in rewards.said


def test_status_shows_the_reasons(rewards: Swept) -> None:
    done = launching.called("status", f"output_dir={rewards.out}", "json=true", cwd=rewards.out)
    (found,) = json.loads(done.stdout)["sweeps"]
    shown = sorted(j["reason"] for j in found["jobs"] if j["state"] == "failed")
    assert shown == sorted(reason.strip() for reason in EXPECTED.values() if reason)


@pytest.mark.parametrize("name", ["child_returns", "child_raises", "child_stays"])
def test_a_child_of_the_reward_does_not_train(rewards: Swept, name: str) -> None:
    ours, fine = rewards.folders[name], rewards.folders["fine"]
    assert launching.metrics(ours) == launching.metrics(fine)
    assert launching.weights(ours) == launching.weights(fine)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_out_of_memory(tmp_path: Path) -> None:
    found = sweep(tmp_path, ["hungry", "fine"], "hydra.launcher.fresh=true")
    assert found.code == 1
    assert found.states["fine"]["state"] == "done"
    assert found.states["hungry"]["state"] == "failed"
    reason = str(found.states["hungry"]["reason"])
    assert reason.startswith("out of memory")
    assert "\n" not in reason


def test_on_error_stop_starts_no_other(tmp_path: Path) -> None:
    found = sweep(tmp_path, ["raises", "fine"], "on_error=stop")
    assert found.code == 1
    assert found.states["raises"]["state"] == "failed"
    assert "fine" not in found.states


def test_a_loss_that_is_nan(tmp_path: Path) -> None:
    launching.write_tree(tmp_path, {"faulty.py": REWARDS})
    done = launching.grpolab(
        "train", "-m", *launching.SMALL, "optimizer.lr=1e30,1e-4", "steps=3", "tracking=jsonl",
        "study=diverging", "optimizer.max_skipped=0", "hydra.launcher.workers=1", "reward=python",
        "reward.function=faulty:alternates", f"output_dir={tmp_path}", cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    found = [launching.status(f) for f in launching.run_folders(tmp_path / "diverging")]
    assert done.returncode == 1
    assert sorted(f["state"] for f in found) == ["done", "failed"], found
    (reason,) = [f["reason"] for f in found if f["reason"]]
    assert "non-finite" in reason
    assert "Traceback" not in done.stderr
