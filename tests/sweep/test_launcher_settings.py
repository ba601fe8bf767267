"""Launchers: their settings, what they refuse, what the Slurm one makes of what a queue says."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import OmegaConf

from grpolab.cli.train import own_launcher
from grpolab.component import ConfigError, settings_of
from grpolab.sweep.compose import expand, parse_command
from grpolab.sweep.errand import Errand
from grpolab.sweep.explain import conf_dir
from grpolab.sweep.launchers.base import DIED, Ended, Launcher
from grpolab.sweep.launchers.batch import Refused, last_words
from grpolab.sweep.launchers.local import LocalPool
from grpolab.sweep.launchers.ray import Ray
from grpolab.sweep.launchers.slurm import REFUSALS, Slurm, SlurmPool
from grpolab.sweep.manifest import run_folder

FILES = sorted((conf_dir() / "hydra" / "launcher").glob("*.yaml"))
EXTRAS = {"ray": "ray", "slurm": "submitit"}


def launcher_class(path: Path) -> type[Launcher]:
    """The class behind a choice of hydra/launcher."""
    settings: Any = OmegaConf.load(path)
    module, _, name = settings["_target_"].rpartition(".")
    found: type[Launcher] = getattr(importlib.import_module(module), name)
    return found


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_a_launcher_s_file_says_what_its_class_says(path: Path) -> None:
    fields = settings_of(launcher_class(path))
    given: Any = OmegaConf.to_container(OmegaConf.load(path))
    del given["_target_"]
    for name, field in fields.items():
        made = field.default_factory
        default = made() if made is not dataclasses.MISSING else field.default
        assert repr(given.pop(name)) == repr(default)  # 0 is not False
    assert given == {}
    comments = [line.partition("  # ")[2] for line in path.read_text().splitlines()[2:]]
    assert comments == [field.metadata["help"] for field in fields.values()]


@pytest.mark.parametrize("choice", sorted(EXTRAS))
def test_a_missing_package_is_one_sentence(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = ["-m", "debug=smoke", "seed=0,1", f"hydra/launcher={choice}"]
    settings = expand(parse_command(words)).launcher
    with pytest.raises(ConfigError) as caught:
        own_launcher(settings)
    assert str(caught.value) == (
        f"hydra/launcher: {choice} given, which needs the package {EXTRAS[choice]}; allowed once "
        f"it is installed: pip install 'grpolab[{choice}]'."
    )


def test_help_and_plain_sweeps_import_neither_package() -> None:
    script = (
        "import sys; from grpolab.cli import main; main(['train', '--help']); "
        "import grpolab.cli.train, grpolab.sweep.launchers.ray, grpolab.sweep.launchers.slurm; "
        "sys.exit(any(m in sys.modules for m in ('ray', 'submitit')))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def hardware(device: str = "cpu", threads: int | None = None) -> list[dict[str, Any]]:
    return [{"hardware": {"device": device, "threads": threads}}] * 2


@pytest.mark.parametrize(
    ("settings", "nodes", "raws", "needs", "places"),
    [
        ({}, [{"CPU": 8.0}], hardware(threads=2), (2, 0), 4),
        ({}, [{"CPU": 8.0}, {"CPU": 4.0}], hardware(), (4, 0), 3),
        ({}, [{"CPU": 8.0, "GPU": 4.0}], hardware("auto"), (1, 1), 4),
        ({}, [{"CPU": 8.0, "GPU": 4.0}], hardware("cpu", 1), (1, 0), 8),
        ({"gpus_per_job": 0.5}, [{"CPU": 16.0, "GPU": 4.0}], hardware("cuda", 4), (4, 0.5), 4),
        ({"gpus_per_job": 0.1}, [{"CPU": 16.0, "GPU": 1.0}], hardware("cuda"), (1, 0.1), 10),
        ({"cpus_per_job": 3}, [{"CPU": 2.0}, {"CPU": 2.0}], hardware(), (3, 0), 0),
    ],
)
def test_ray_places(
    settings: dict[str, Any],
    nodes: list[dict[str, float]],
    raws: list[dict[str, Any]],
    needs: tuple[float, float],
    places: int,
) -> None:
    pytest.importorskip("ray")
    launcher = Ray(**settings)
    assert tuple(launcher._needs(nodes, raws).values()) == needs
    assert launcher._places(nodes, raws) == places


def test_a_check_starts_no_cluster() -> None:
    ray = pytest.importorskip("ray")
    Ray(workers=2).check(hardware(threads=1))
    assert not ray.is_initialized()
    with pytest.raises(ConfigError, match=r"cpus_per_job: 999 asked for"):
        Ray(cpus_per_job=999).check(hardware())


# -- Slurm -----------------------------------------------------------------------------------------


class Scripted:
    """A queue whose jobs do what the test says."""

    def __init__(self) -> None:
        self.arrays: list[list[Errand]] = []
        self.known: dict[str, str] = {}
        self.stopped: list[str] = []
        self.killed: list[str] = []
        self.refuses = False

    def submit(self, errands: Sequence[Errand]) -> list[str]:
        if self.refuses:
            raise Refused("Job violates accounting/QOS policy")
        self.arrays.append(list(errands))
        ids = [f"{len(self.arrays)}_{i}" for i in range(len(errands))]
        self.known |= dict.fromkeys(ids, "RUNNING")
        return ids

    def states(self) -> dict[str, str] | None:
        return dict(self.known)

    def stop(self, ids: Iterable[str]) -> None:
        self.stopped += ids

    def kill(self, ids: Iterable[str]) -> None:
        self.killed += ids


@pytest.fixture
def raws(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Two jobs, a and b."""
    words = ["-m", "debug=smoke", "seed=0,1", f"output_dir={tmp_path / 'out'}", "study=queued"]
    return dict(zip("ab", (j.raw for j in expand(parse_command(words)).jobs), strict=True))


@pytest.fixture
def queue() -> Scripted:
    return Scripted()


@pytest.fixture
def pool(queue: Scripted, raws: dict[str, Any], tmp_path: Path) -> SlurmPool:
    """With both jobs submitted."""
    made = SlurmPool(2, queue, tmp_path, poll=1e-6)
    for key, raw in raws.items():
        made.submit(key, raw)
    assert made.wait(0.0) == []
    return made


def trains_to(raw: dict[str, Any], step: int) -> None:
    """What a run leaves behind that has come so far."""
    folder = run_folder(raw)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.append_metrics(step, {"reward/mean": 0.0})
    folder.set_status("running", lease=True)


def settled(pool: SlurmPool) -> list[Ended]:
    """After the queue has been asked often enough to believe it."""
    return [ended for _ in range(3) for ended in pool.wait(0.0)]


def test_what_is_submitted_together_is_one_array(pool: SlurmPool, queue: Scripted) -> None:
    assert [[e.key for e in array] for array in queue.arrays] == [["a", "b"]]


def test_a_job_ends_as_it_says(pool: SlurmPool, queue: Scripted) -> None:
    queue.arrays[0][0].answer("failed", "NaN")
    assert pool.wait(0.0) == [Ended("a", "failed", "NaN")]
    assert settled(pool) == []


def test_a_run_that_checkpointed_before_its_end_is_submitted_again(
    pool: SlurmPool, queue: Scripted, raws: dict[str, Any]
) -> None:
    trains_to(raws["a"], 4)
    queue.arrays[0][0].answer("interrupted", None)
    assert settled(pool) == []
    assert len(queue.arrays) == 1  # while the job is not over
    queue.known["1_0"] = "COMPLETED"
    assert settled(pool) == []
    assert [e.key for e in queue.arrays[1]] == ["a"]
    assert queue.arrays[1][0].token != queue.arrays[0][0].token
    queue.arrays[1][0].answer("done", None)
    assert pool.wait(0.0) == [Ended("a", "done")]


def test_a_run_that_gets_nowhere_is_not_submitted_for_ever(
    pool: SlurmPool, queue: Scripted
) -> None:
    queue.arrays[0][0].answer("interrupted", None)
    queue.known["1_0"] = "COMPLETED"
    (ended,) = settled(pool)
    assert ended.state == DIED
    assert "before a step was done" in str(ended.reason)


@pytest.mark.parametrize("answers", [True, False])
def test_a_preempted_run_is_submitted_again(
    answers: bool, pool: SlurmPool, queue: Scripted, raws: dict[str, Any]
) -> None:
    trains_to(raws["a"], 0)
    if answers:
        queue.arrays[0][0].answer("interrupted", None)
    queue.known["1_0"] = "PREEMPTED"
    assert settled(pool) == []
    assert [e.key for e in queue.arrays[1]] == ["a"]
    assert run_folder(raws["a"]).status()["state"] == "pending"


@pytest.mark.parametrize("answers", [True, False])
def test_a_run_that_somebody_took_away_is_left_pending(
    answers: bool, pool: SlurmPool, queue: Scripted, raws: dict[str, Any]
) -> None:
    trains_to(raws["a"], 4)
    if answers:
        queue.arrays[0][0].answer("interrupted", None)
    queue.known["1_0"] = "CANCELLED"
    assert settled(pool) == [Ended("a", "interrupted", "its Slurm job 1_0 ended (CANCELLED)")]
    assert run_folder(raws["a"]).status()["state"] == "pending"
    assert len(queue.arrays) == 1


@pytest.mark.parametrize("state", ["NODE_FAIL", "OUT_OF_MEMORY", "FAILED", "TIMEOUT", None])
def test_a_job_that_ends_without_a_word_has_died(
    state: str | None, pool: SlurmPool, queue: Scripted
) -> None:
    if state is None:
        del queue.known["1_0"]
    else:
        queue.known["1_0"] = state
    assert pool.wait(0.0) == []  # its answer may be on the way
    (ended,) = settled(pool)
    assert (ended.key, ended.state) == ("a", DIED)
    assert (state or "GONE") in str(ended.reason)


def test_a_late_answer_counts(pool: SlurmPool, queue: Scripted) -> None:
    queue.known["1_0"] = "COMPLETED"
    assert pool.wait(0.0) == []
    queue.arrays[0][0].answer("done", None)
    assert pool.wait(0.0) == [Ended("a", "done")]


def test_a_queue_that_does_not_answer_is_no_death(pool: SlurmPool, queue: Scripted) -> None:
    queue.states = lambda: None  # type: ignore[method-assign]
    assert settled(pool) == []


def test_stop(pool: SlurmPool, queue: Scripted, raws: dict[str, Any]) -> None:
    pool.submit("c", raws["a"])  # not yet in the queue
    pool.stop(["a", "b", "c"])
    assert queue.stopped == ["1_0", "1_1"]
    assert queue.arrays[0][0].stop_asked()
    queue.arrays[0][0].answer("interrupted", None)
    queue.known["1_1"] = "CANCELLED"  # had not started
    found = {ended.key: ended.state for ended in settled(pool)}
    assert found == dict.fromkeys("abc", "interrupted")
    assert len(queue.arrays) == 1


def test_close_kills_only_when_asked(pool: SlurmPool, queue: Scripted) -> None:
    pool.close()
    assert queue.killed == []
    pool.close(kill=True)
    assert queue.killed == ["1_0", "1_1"]


def test_the_next_driver_finds_jobs_again(
    pool: SlurmPool, queue: Scripted, raws: dict[str, Any], tmp_path: Path
) -> None:
    queue.known["1_1"] = "FAILED"
    after = SlurmPool(2, queue, tmp_path, poll=1e-6)
    for key, raw in raws.items():
        after.submit(key, raw)
    assert after.wait(0.0) == []
    assert [[e.key for e in array] for array in queue.arrays[1:]] == [["b"]]
    queue.arrays[0][0].answer("done", None)
    assert after.wait(0.0) == [Ended("a", "done")]


def test_a_queue_that_takes_nothing_is_asked_again_and_then_given_up(
    queue: Scripted, raws: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpolab.sweep.launchers.slurm.REFUSED_SECONDS", 0.0)
    made = SlurmPool(1, queue, tmp_path, poll=1e-6)
    made.submit("a", raws["a"])
    queue.refuses = True
    assert [made.wait(0.0) for _ in range(REFUSALS - 1)] == [[]] * (REFUSALS - 1)
    with pytest.raises(ConfigError, match="QOS policy"):
        made.wait(0.0)
    queue.refuses = False
    made.wait(0.0)
    assert [e.key for e in queue.arrays[0]] == ["a"]


@pytest.mark.parametrize("key", ["array", "job_name", "output", "requeue"])
def test_sbatch_options_that_are_the_launcher_s_own(key: str) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match=f"hydra.launcher.sbatch: {key} given; allowed: "):
        Slurm(sbatch={key: "x"})


def test_what_sbatch_says() -> None:
    text = "sbatch: error: invalid partition\nallocation failure: Invalid partition name.\n"
    assert last_words(text) == "Invalid partition name"
    text = "sbatch: unrecognized option '--x=1'\nTry \"sbatch --help\" for more information\n"
    assert last_words(text) == "unrecognized option '--x=1'"


@pytest.mark.parametrize("how", ["wish", signal.SIGTERM, signal.SIGUSR2])
def test_an_errand_that_is_stopped_before_it_trains(
    how: str | int, raws: dict[str, Any], tmp_path: Path
) -> None:
    errand = Errand("a", raws["a"], str(tmp_path))
    if how == "wish":
        errand.ask_to_stop()
    script = "import json, os, sys\nfrom grpolab.sweep import errand, worker\n"
    if how != "wish":
        script += f"worker.attend = lambda raw: os.kill(os.getpid(), {int(how)})\n"
    script += "errand.Errand(**json.loads(sys.argv[1]))()\n"
    given = json.dumps(dataclasses.asdict(errand))
    done = subprocess.run([sys.executable, "-c", script, given], check=False)
    assert done.returncode == 0
    assert errand.read_answer() == ("interrupted", None)


def test_a_signal_after_the_end_is_too_late(raws: dict[str, Any], tmp_path: Path) -> None:
    errand = Errand("a", raws["a"], str(tmp_path))
    script = (
        "import json, os, signal, sys, threading, time\n"
        "from grpolab.sweep import errand, worker\n"
        "worker.attend = lambda raw: ('done', None)\n"
        "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n"
        "errand.Errand(**json.loads(sys.argv[1]))()\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
    )
    given = json.dumps(dataclasses.asdict(errand))
    done = subprocess.run([sys.executable, "-c", script, given], check=False)
    assert done.returncode == 0
    assert errand.read_answer() == ("done", None)


def test_processes_that_are_ready_are_used(tmp_path: Path) -> None:
    pool = LocalPool([None, None, None], fresh=False, scratch=tmp_path)
    pool.prepare(2)
    ready = children()
    assert len(ready) == 2
    # refused by the worker, so that nothing is trained: what counts is who answered
    raw = {"output_dir": str(tmp_path), "study": "s", "nonsense": 1}
    pool.submit("a", raw)
    pool.submit("b", raw)
    assert children() == ready
    ended: list[str] = []
    while len(ended) < 2:
        ended += [e.key for e in pool.wait(1.0)]
    pool.close()
    assert sorted(ended) == ["a", "b"]
    assert children() == set()


def test_processes_check_before_there_is_a_folder(
    raws: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # lines on stderr from the first moment on
    outputs, scratch = tmp_path / "outputs", tmp_path / "sweep"
    own = [{**raw, "output_dir": str(outputs)} for raw in raws.values()]
    pool = LocalPool([None, None], fresh=False, scratch=None)
    pool.prepare(2)
    done: list[str] = []
    assert pool.passes(own, meanwhile=lambda: done.append("meanwhile"))
    assert done == ["meanwhile"]
    wrong = {**own[0], "sampler": {**own[0]["sampler"], "max_new_tokens": 10**6}}
    assert not pool.passes([*own, wrong])
    assert list(tmp_path.iterdir()) == []
    ready = children()
    pool.move_in(scratch)
    pool.submit("a", {"output_dir": str(outputs), "study": "s", "nonsense": 1})
    while not pool.wait(1.0):
        pass
    assert children() == ready
    printed = (scratch / "workers.log").read_text()
    assert printed.startswith("import time: self [us]")
    assert printed.count("import time: self [us]") == 2  # of each worker
    assert printed.count("torch._C") >= 2
    os.kill(min(ready), signal.SIGKILL)
    assert not pool.passes(own)
    pool.close()
    assert children() == set()


def children() -> set[int]:
    """Worker processes that this one has started and that are alive."""
    return {
        p.pid
        for p in psutil.Process().children()
        if p.status() != psutil.STATUS_ZOMBIE and "grpolab.sweep.worker" in p.cmdline()
    }
