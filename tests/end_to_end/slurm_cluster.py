"""A real Slurm cluster of one node on this machine: munged, slurmctld and slurmd from a folder of
their own, as root, bound to 127.0.0.1."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo")
UP_SECONDS = 30.0

CONFIGURATION = """\
ClusterName=grpolab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
SchedulerParameters=sched_min_interval=100000
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
"""`urgent` preempts `main`, whose jobs have a minute for their checkpoints."""


def why_not() -> str | None:
    """Why no cluster can be started here; None if one can."""
    absent = [p for p in PROGRAMS if which(p) is None]
    if absent:
        return f"no {absent[0]} here: apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "slurmd must be started by root"
    return None


def which(program: str) -> str | None:
    """Daemons may lie where a user's PATH does not look."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def cluster(folder: Path) -> Iterator[Mapping[str, str]]:
    """Runs one; the environment variables that make Slurm's commands find it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=host, folder=folder, ports=free_ports(2))
    )
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = [f"--{n}-file={folder / f'munge.{n}'}" for n in ("key", "log", "pid", "seed")]
    with ExitStack() as stack:
        stack.enter_context(daemon(folder, "munged", "--foreground", "--force", *munge,
                                   f"--socket={folder / 'munge.socket'}"))  # fmt: skip
        wait_for(lambda: (folder / "munge.socket").exists(), folder)
        conf = str(folder / "slurm.conf")
        stack.enter_context(daemon(folder, "slurmctld", "-D", "-c", "-f", conf))
        stack.enter_context(daemon(folder, "slurmd", "-D", "-N", host, "-f", conf))
        wait_for(lambda: "idle" in sinfo(environment), folder)
        yield environment


@contextmanager
def daemon(folder: Path, program: str, *arguments: str) -> Iterator[None]:
    """Runs a daemon in the foreground of nobody."""
    found = which(program)
    assert found is not None
    with (folder / f"{program}.out").open("wb") as out:
        process = subprocess.Popen(
            [found, *arguments], stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def sinfo(environment: Mapping[str, str]) -> str:
    """The states of the nodes."""
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"], env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout


def wait_for(condition: Callable[[], bool], folder: Path) -> None:
    """Polls; fails with what the daemons have logged."""
    deadline = time.monotonic() + UP_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            logs = [p.read_text()[-2000:] for p in sorted(folder.glob("*.log"))]
            logs += [p.read_text()[-2000:] for p in sorted(folder.glob("*.out"))]
            raise AssertionError("\n".join(logs))
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
