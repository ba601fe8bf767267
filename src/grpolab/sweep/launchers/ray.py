"""Jobs on a Ray cluster: an actor for each place, and in its care a worker process on its node.

The worker is the one that `hydra/launcher=local` starts: a job runs in a process of its own, in
its main thread and with its signals, and gives the same numbers. Ray places and watches; all
results go through the run folders, so that the nodes must share the file system that `output_dir`
and the folder of the command lie on. When an actor or its node dies, the sweep's driver hears of
it and gives the job a second place; a worker whose actor is gone finishes its step, checkpoints and
ends.
"""

from __future__ import annotations

import math
import os
import queue
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpolab.component import ConfigError
from grpolab.objective.settings import setting
from grpolab.sweep.launchers.base import DIED, Ended, Launcher, Pool, require
from grpolab.sweep.launchers.local import PATIENCE, WorkerProcess, cores, python_path

CARRIED = (
    "CUBLAS_", "GRPOLAB_", "HF_", "KMP_", "MKL_", "MLFLOW_", "OMP_", "ONEDNN_", "PYTORCH_",
    "TOKENIZERS_", "TORCH_", "TRANSFORMERS_",
)  # fmt: skip
"""What the names of environment variables begin with that go from the driver to the workers. The
others are a node's own affair."""
TOKENS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
"""Where Ray finds out who is let in; left alone where the user has set one of them."""
LOOPBACK = "127.0.0.1", "localhost"
KNOCK_SECONDS = 5.0  # at an address, before it is said to be that of no cluster
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
KILL_SECONDS = 5.0  # that actors have to kill their workers


@dataclass(frozen=True)
class Ray(Launcher):
    """Worker processes on the nodes of a Ray cluster."""

    address: str | None = setting(
        None,
        "the cluster: auto (the one this machine belongs to) or host:port; null: a local one is "
        "started, and ends with the sweep",
    )
    workers: int | None = setting(
        None, "jobs at once; null: as many as the cluster has CPUs and GPUs for", ge=1
    )
    cpus_per_job: int | None = setting(
        None,
        "CPUs that a job takes of its node; null: hardware.threads, or if that is null, too, all "
        "CPUs of the smallest node (one, if the jobs take GPUs)",
        ge=1,
    )
    gpus_per_job: float | None = setting(
        None,
        "GPUs that a job takes of its node, or a share of one; null: one, where there are any and "
        "hardware.device lets jobs use them",
        ge=0,
    )

    def __post_init__(self) -> None:
        require("ray", "ray")

    def check(self, raws: Sequence[Mapping[str, Any]]) -> None:
        if self.address is None:  # a plan asks, too, and needs no cluster
            self._check_room([self._this_machine(raws)], raws)
            return
        self._connect(self.address)
        import ray

        try:
            self._check_room(resources(), raws)
        except ConfigError:
            ray.shutdown()
            raise

    def _check_room(
        self, nodes: Sequence[Mapping[str, float]], raws: Sequence[Mapping[str, Any]]
    ) -> None:
        """Refuses jobs that no node has room for; with `workers`, the cluster may yet grow."""
        if self.workers is not None or self._places(nodes, raws):
            return
        needs = self._needs(nodes, raws)
        kind = "GPU" if self._fits(nodes, needs["CPU"], 0.0) else "CPU"
        most = max((n.get(kind, 0.0) for n in nodes), default=0.0)
        raise ConfigError(
            f"hydra.launcher.{kind.lower()}s_per_job: {needs[kind]:g} asked for, but no node of "
            f"the cluster has more than {most:g} {kind}s; allowed: at most so many."
        )

    def pool(self, raws: Sequence[Mapping[str, Any]], scratch: Path) -> Pool:
        if self.address is None:
            self._start(raws)
        nodes = resources()
        size = min(self.workers or self._places(nodes, raws), len(raws))
        return RayPool(size, self._needs(nodes, raws), scratch)

    def _this_machine(self, raws: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """What a local cluster has to give: {"CPU", "GPU"}; more CPUs than there are, if so many
        workers are asked for."""
        import torch

        asked = (self.workers or 0) * (self.cpus_per_job or most_threads(raws) or 1)
        return {"CPU": float(max(cores(), asked)), "GPU": float(torch.cuda.device_count())}

    def _start(self, raws: Sequence[Mapping[str, Any]]) -> None:
        """A cluster of this machine alone."""
        self._set_environment()
        import ray

        has = self._this_machine(raws)
        ray.init(
            "local", num_cpus=int(has["CPU"]), num_gpus=int(has["GPU"]), include_dashboard=False,
            **QUIET,
        )  # fmt: skip

    def _connect(self, address: str) -> None:
        self._set_environment()
        host, _, port = address.rpartition(":")
        try:
            if port.isdigit():  # Ray would knock for minutes, and talk meanwhile
                socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
            import ray

            ray.init(address, **QUIET)
        except Exception as error:  # of many kinds: no cluster, another version, no token
            raise ConfigError(
                f"hydra.launcher.address: no Ray cluster at {address!r} that lets us in "
                f"({first_line(error)}); allowed: auto or host:port of a cluster that this machine "
                "belongs to (ray start --address=host:port), or null."
            ) from error

    def _set_environment(self) -> None:
        """What Ray reads while it is imported."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else uploads the folder
        if self.address is None or self.address.rpartition(":")[0] in LOOPBACK:
            # Ray's name for: 127.0.0.1 is meant, not to be replaced by an address others can reach
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if self.address is None and TOKENS.isdisjoint(os.environ):
            # Only this sweep gets in. A token that Ray makes itself stays in the home folder, and
            # changes how the user's other clusters start
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def _needs(
        self, nodes: Sequence[Mapping[str, float]], raws: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        """What a job takes of its node: {"CPU", "GPU"}."""
        gpus = self.gpus_per_job
        if gpus is None:
            wanted = all(raw["hardware"]["device"] in ("auto", "cuda") for raw in raws)
            gpus = 1.0 if wanted and any(n.get("GPU") for n in nodes) else 0.0
        cpus = self.cpus_per_job or most_threads(raws)
        if cpus is None:
            cpus = 1 if gpus else int(min((n.get("CPU", 1.0) for n in nodes), default=1))
        return {"CPU": float(max(1, cpus)), "GPU": float(gpus)}

    def _places(
        self, nodes: Sequence[Mapping[str, float]], raws: Sequence[Mapping[str, Any]]
    ) -> int:
        needs = self._needs(nodes, raws)
        return self._fits(nodes, needs["CPU"], needs["GPU"])

    @staticmethod
    def _fits(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
        """Jobs that the nodes have room for at once."""
        room = 0
        for node in nodes:
            by_gpu = math.floor(node.get("GPU", 0.0) / gpus + 1e-9) if gpus else math.inf
            room += int(min(math.floor(node.get("CPU", 0.0) / cpus), by_gpu))
        return room


def resources() -> list[dict[str, float]]:
    """{"CPU", "GPU", …} of each live node."""
    import ray

    return [dict(n["Resources"]) for n in ray.nodes() if n["Alive"]]


def most_threads(raws: Sequence[Mapping[str, Any]]) -> int | None:
    """The largest hardware.threads; None where one leaves it to torch."""
    threads = [raw["hardware"]["threads"] for raw in raws]
    return None if any(t is None for t in threads) else max(threads)


class RayPool:
    """Actors, made when a job comes."""

    def __init__(self, size: int, needs: Mapping[str, float], scratch: Path) -> None:
        import ray

        self.size, self.scratch = size, scratch
        scratch.mkdir(parents=True, exist_ok=True)
        self._environment = carried_environment()
        self._make = ray.remote(Place).options(
            num_cpus=needs["CPU"],
            num_gpus=needs["GPU"],
            max_restarts=0,
            max_concurrency=4,  # a thread runs the job, others hear `stop` and `close`
            runtime_env={"env_vars": {"PYTHONPATH": python_path()}},  # Place must be importable
        )
        if not needs["GPU"]:
            self._environment["CUDA_VISIBLE_DEVICES"] = ""
        self._idle: list[Any] = []
        self._running: dict[str, tuple[Any, Any, Any]] = {}
        """(actor, the answer to come, the sign that the actor has started)"""
        self._withdrawn: list[str] = []

    def prepare(self, jobs: int) -> None:
        """Places are asked for job by job: what waits would keep them from others."""

    def submit(self, key: str, raw: Mapping[str, Any]) -> None:
        actor = self._idle.pop() if self._idle else self._start()
        self._running[key] = (actor, actor.run.remote(key, dict(raw)), actor.hello.remote())

    def _start(self) -> Any:
        return self._make.remote(os.getcwd(), str(self.scratch.absolute()), self._environment)

    def wait(self, seconds: float) -> list[Ended]:
        import ray

        ended = [Ended(key, "interrupted") for key in self._withdrawn]
        self._withdrawn = []
        answers = {answer: key for key, (_, answer, _) in self._running.items()}
        if not answers:
            time.sleep(0.0 if ended else seconds)
            return ended
        ready, _ = ray.wait(list(answers), timeout=0.0 if ended else seconds)
        if ready:
            ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=0.0)
        return ended + [self._settle(answers[answer]) for answer in ready]

    def _settle(self, key: str) -> Ended:
        """Reads an answer; the actor is free, or gone."""
        import ray

        actor, answer, _ = self._running.pop(key)
        try:
            state, reason = ray.get(answer)
        except ray.exceptions.RayError as error:
            with suppress(Exception):
                ray.kill(actor)
            return Ended(key, DIED, cause_of_death(error))
        self._idle.append(actor)
        return Ended(key, state, reason)

    def stop(self, keys: Sequence[str]) -> None:
        import ray

        for key in keys:
            if key not in self._running:
                continue
            actor, _, hello = self._running[key]
            if ray.wait([hello], timeout=0.0)[0]:
                actor.stop.remote()
            else:  # still waits for room on the cluster: there is nothing to checkpoint
                del self._running[key]
                ray.kill(actor)
                self._withdrawn.append(key)

    def close(self, *, kill: bool = False) -> None:
        import ray

        actors = [*self._idle, *(actor for actor, _, _ in self._running.values())]
        ends = [actor.close.remote(kill) for actor in actors]
        with suppress(ray.exceptions.RayError):
            ray.wait(ends, num_returns=len(ends), timeout=KILL_SECONDS if kill else 2 * PATIENCE)
        for actor in actors:
            ray.kill(actor)
        ray.shutdown()


class Place:
    """The actor. It stands where Ray puts it, and passes jobs on to a worker process there.

    Args:
        folder: the driver's folder, which relative paths start from.
        scratch: for the worker's own log.
        environment: the driver's variables that go along.
    """

    def __init__(self, folder: str, scratch: str, environment: Mapping[str, str]) -> None:
        self._folder, self._scratch = folder, Path(scratch)
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray's, which changes how torch splits sums
        os.environ.update(environment)
        self._ended: queue.Queue[Ended] = queue.Queue()
        self._worker: WorkerProcess | None = None

    def hello(self) -> str:
        """Answers once the actor has started."""
        return socket.gethostname()

    def run(self, key: str, raw: Mapping[str, Any]) -> tuple[str, str | None]:
        """Runs a job to its end: its state and the reason."""
        missing = next((p for p in (self._folder, self._scratch) if not Path(p).is_dir()), None)
        if missing is not None:
            return DIED, (
                f"there is no {missing} on {socket.gethostname()}: the nodes must share the file "
                "system of output_dir and of the folder that the command is given in"
            )
        if self._worker is None:
            os.chdir(self._folder)
            self._worker = WorkerProcess(None, self._scratch, self._ended)
        self._worker.run(key, raw)
        ended = self._ended.get()
        if ended.state == DIED:
            self._worker.close(kill=True)
            self._worker = None
        return ended.state, ended.reason

    def stop(self) -> None:
        """The running job finishes its step, checkpoints and ends."""
        if self._worker is not None:
            self._worker.stop()

    def close(self, kill: bool) -> None:
        """Ends the worker process."""
        if self._worker is not None:
            self._worker.close(kill=kill)


def carried_environment() -> dict[str, str]:
    """The driver's variables that a worker needs to do the same as here."""
    found = {k: v for k, v in os.environ.items() if k.startswith(CARRIED)}
    return {**found, "PYTHONPATH": python_path()}


def cause_of_death(error: Exception) -> str:
    """A Ray error, which has many lines and a stack, in a few words."""
    text = str(error)
    if "worker process has died" in text or "SIGKILL" in text or "connection error" in text:
        where = next(
            (x.partition(":")[2].strip() for x in text.splitlines() if x.strip().startswith("ip:")),
            "its node",
        )
        return f"its Ray actor on {where} was killed (out of memory?)"
    if "node" in text and "died" in text:
        return f"its Ray node died ({first_line(error)})"
    return f"its Ray actor died ({first_line(error)})"


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
