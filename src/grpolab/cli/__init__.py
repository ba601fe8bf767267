"""The command line: `grpolab <command> …`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from grpolab.component import ConfigError, nearest

FAILED = 1
BAD_CONFIG = 2
INTERRUPTED = 130


def _train(arguments: Sequence[str]) -> int:
    from grpolab.cli.train import train

    return train(arguments)


def _plan(arguments: Sequence[str]) -> int:
    from grpolab.cli.plan import plan

    return plan(arguments)


def _status(arguments: Sequence[str]) -> int:
    from grpolab.cli.status import status

    return status(arguments)


def _resume(arguments: Sequence[str]) -> int:
    from grpolab.cli.status import resume

    return resume(arguments)


def _sync(arguments: Sequence[str]) -> int:
    from grpolab.cli.sync import sync

    return sync(arguments)


def _analyze(arguments: Sequence[str]) -> int:
    from grpolab.cli.inspect import analyze

    return analyze(arguments)


def _report(arguments: Sequence[str]) -> int:
    from grpolab.cli.report import report

    return report(arguments)


def _list(arguments: Sequence[str]) -> int:
    from grpolab.cli.inspect import list_components

    return list_components(arguments)


def _doctor(arguments: Sequence[str]) -> int:
    from grpolab.cli.doctor import doctor

    return doctor(arguments)


def _fetch(arguments: Sequence[str]) -> int:
    from grpolab.cli.inspect import fetch_model

    return fetch_model(arguments)


def _probe(arguments: Sequence[str]) -> int:
    from grpolab.cli.probe import probe

    return probe(arguments)


def _bench(arguments: Sequence[str]) -> int:
    from grpolab.cli.bench import bench

    return bench(arguments)


def _lab(arguments: Sequence[str]) -> int:
    from grpolab.cli.lab import lab

    return lab(arguments)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (_train, "one run, or a sweep with -m: grpolab train clip=cispo kl=k3"),
    "plan": (
        _plan,
        "a sweep before it runs: arms, seeds needed, cost: grpolab plan clip=ppo,cispo",
    ),
    "status": (_status, "how a sweep stands: arm × seed, progress, reward, time left"),
    "resume": (_resume, "goes on with what is not finished, without arguments"),
    "sync": (_sync, "sends MLflow what it has missed, each number once"),
    "analyze": (_analyze, "figures and tables of a sweep: grpolab analyze sweep=latest"),
    "report": (_report, "a sweep as one HTML page: grpolab report sweep=latest"),
    "probe": (
        _probe,
        "every variant's gradient on the same rollouts: grpolab probe clip=ppo,cispo",
    ),
    "bench": (_bench, "seconds a step beside the peers and the limit: grpolab bench case=tiny"),
    "lab": (_lab, "every variant against a gradient known exactly: grpolab lab lab=bandit out=lab"),
    "list": (_list, "every variant with formula, source and settings: grpolab list [group] [name]"),
    "doctor": (_doctor, "device, dtypes, versions, memory, what is missing"),
    "fetch": (_fetch, "a model into the cache, without a hub: grpolab fetch smollm2_135m"),
}


def usage() -> str:
    """The help text of the bare command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "grpolab: compose, sweep, log and compare variants of GRPO.",
            "",
            "usage: grpolab <command> [key=value …]",
            "",
            *lines,
            "",
            "grpolab train --help shows all groups, choices and settings.",
            'Shell completion: eval "$(grpolab train -sc install=bash)"',
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; 0 done, 1 something failed, 2 a bad configuration, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmuls on CUDA
    command, rest = words[0], words[1:]
    if command in ("-sc", "--shell-completion"):  # the shell asks on behalf of `grpolab train`
        line = os.environ.get("COMP_LINE", "")
        os.environ["COMP_LINE"] = line.replace("grpolab train", "grpolab", 1)
        command, rest = "train", words
    if command == "--version":
        from grpolab import __version__

        print(__version__)
        return 0
    try:
        if command not in COMMANDS:
            raise ConfigError(
                f"unknown command {command!r}; allowed: {', '.join(COMMANDS)}"
                f"{nearest(command, COMMANDS) or '.'}"
            )
        return COMMANDS[command][0](rest)
    except ConfigError as error:
        print(f"grpolab: {error}", file=sys.stderr)
        return BAD_CONFIG
    except KeyboardInterrupt:
        from grpolab.training.launched import leads

        if leads():
            print("grpolab: interrupted; the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from grpolab.tracking.disk import is_disk_full

        if not is_disk_full(error):
            raise
        print(f"grpolab: no space is left on the disk ({error}).", file=sys.stderr)
        return FAILED


def entry() -> None:
    """The console script."""
    from grpolab.cli.streams import open_all
    from grpolab.ending import end

    open_all()
    code = main()
    sys.stdout.flush()
    end(code)
