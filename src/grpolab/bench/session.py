"""One benchmark from loading to raw steps: both sides loaded once, then A B A B, one at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from grpolab.bench.cases import Plan
from grpolab.bench.limit import update_tokens
from grpolab.bench.processes import BenchError, Worker, worker_command

Raw = dict[str, Any]
Show = Callable[[str], None]
"""Called with one line for each thing that is done."""
WARM_UP = 1
LEARNT, WINDOW = 0.9, 5


@dataclass
class Result:
    """Raw steps of both sides, in the order they ran, and what the machine can do."""

    plan: Plan
    ours: list[Raw] = field(default_factory=list)
    peer: list[Raw] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    """Whose turn each measured step was."""
    about: dict[str, Raw] = field(default_factory=dict)
    machine: Raw = field(default_factory=dict)
    """{sizes, rates}, as `grpolab.bench.machine` measures them."""


def measure(plan: Plan, show: Show) -> Result:
    """Runs a plan.

    Raises:
        BenchError: a side ended, or was given other prompts than ours. Its log stays.
    """
    plan = replace(plan, work=replace(plan.work, threads=plan.work.threads or default_threads()))
    result = Result(plan)
    with kept_after_an_end() as scratch:
        with sides(result, scratch, show) as (ours, peer):
            if plan.case == "learn":
                learn(result, ours, peer, show)
            else:
                alternate(result, ours, peer, show)
            add_tracking(result, ours)
        show("measuring the machine")
        with worker(plan, "machine", scratch) as machine:
            machine.wait_ready()
            arguments = shapes(result.ours, plan.work.rows)
            result.machine = machine.ask({"command": "measure", "arguments": arguments})
            result.about["machine"] = machine.about
    return result


@contextmanager
def kept_after_an_end() -> Iterator[Path]:
    """A folder for both sides. It goes away unless one of them ended, whose log lies there."""
    scratch = Path(tempfile.mkdtemp(prefix="grpolab-bench-"))
    try:
        yield scratch
    except BenchError:
        raise
    except BaseException:
        shutil.rmtree(scratch)
        raise
    shutil.rmtree(scratch)


def default_threads() -> int:
    """What torch would choose."""
    import torch

    return torch.get_num_threads()


@contextmanager
def sides(result: Result, scratch: Path, show: Show) -> Iterator[tuple[Worker, Worker | None]]:
    """Both sides, loaded."""
    plan = result.plan
    show("loading")
    with worker(plan, "ours", scratch) as ours:
        if plan.work.peer == "none":
            ours.wait_ready()
            result.about["ours"] = ours.about
            yield ours, None
            return
        if plan.work.peer == "vllm":
            ours.wait_ready()  # it says which model, and makes the prompts' tokens
        with worker(plan, plan.work.peer, scratch, vllm=ours.about) as peer:
            if plan.work.peer != "vllm":
                ours.wait_ready()
            peer.wait_ready()
            result.about |= {"ours": ours.about, "peer": peer.about}
            yield ours, peer


@contextmanager
def worker(plan: Plan, side: str, scratch: Path, vllm: Raw | None = None) -> Iterator[Worker]:
    """A side that has been told what to load."""
    folder = scratch / side
    folder.mkdir()
    python = plan.peer_python or os.environ.get("GRPOLAB_VLLM_PYTHON")
    command = worker_command(side, python)
    made = Worker(side, command, scratch / f"{side}.log", plan.work.threads or 1)
    try:
        work = plan.work
        spec: Raw = {
            "work": asdict(work),
            "overrides": plan.overrides,
            "folder": str(folder),
            "sampling_alone": plan.sampling_alone,
        }
        if side == "vllm":
            spec = {k: asdict(work)[k] for k in ("dtype", "threads", "compile", "seed")}
            spec |= {"model": (vllm or {})["model"], "rows": work.rows}
            spec["context"] = (work.prompt_tokens or 256) + work.max_new_tokens
        made.start(spec)
        yield made
    finally:
        made.close()


def alternate(result: Result, ours: Worker, peer: Worker | None, show: Show) -> None:
    """A B A B: a step to warm up each, then the measured ones."""
    steps = result.plan.work.steps
    commands = peer_commands(result, ours)
    for step in range(WARM_UP + steps):
        count = f"{step}/{steps}" if step else "warm-up"
        mine = take_turn(ours, {"command": "step"}, "ours", count, show)
        yours = None
        if peer is not None:
            yours = take_turn(peer, commands[step], result.plan.work.peer, count, show)
            same_prompts(mine, yours)
        if step < WARM_UP:
            continue
        result.ours.append(mine)
        result.turns.append("ours")
        if yours is not None:
            result.peer.append(yours)
            result.turns.append("peer")


def add_tracking(result: Result, ours: Worker) -> None:
    """Adds to each of our steps its share of what is sent to MLflow, as if it held up the step (a
    run has a thread for it)."""
    if not result.plan.work.mlflow or result.plan.sampling_alone:
        return
    step_seconds = median(step["seconds"] for step in result.ours)
    arguments = {"step_seconds": step_seconds}
    seconds = ours.ask({"command": "tracking", "arguments": arguments})["seconds"]
    for step in result.ours:
        step["seconds"] += seconds
        step["phases"]["log"] += seconds


def learn(result: Result, ours: Worker, peer: Worker | None, show: Show) -> None:
    """Ours until it has learnt, then the peer; the first step counts, loading does not."""
    pairs = [(ours, result.ours, "ours"), (peer, result.peer, "peer")]
    for side, found, name in pairs:
        if side is None:
            continue
        for step in range(result.plan.work.steps):
            count = f"{step + 1}/{result.plan.work.steps}"
            found.append(take_turn(side, {"command": "step"}, side.name, count, show))
            result.turns.append(name)
            if learnt_at([s["reward"] for s in found]) is not None:
                break
    for mine, yours in zip(result.ours, result.peer, strict=False):
        same_prompts(mine, yours)


def learnt_at(rewards: Sequence[float]) -> int | None:
    """The first step, counted from 1, at which the mean reward of the last 5 steps is .9."""
    for step in range(WINDOW, len(rewards) + 1):
        if sum(rewards[step - WINDOW : step]) / WINDOW >= LEARNT - 1e-9:
            return step
    return None


def take_turn(side: Worker, command: Raw, name: str, count: str, show: Show) -> Raw:
    """One step of one side."""
    raw = side.ask(command)
    show(f"{name:<5} {count}: {raw['seconds']:.2f} s, {sum(raw['lengths'])} tokens")
    return raw


def peer_commands(result: Result, ours: Worker) -> list[Raw]:
    """What the peer is told at each step: to step, or for vLLM which prompts to sample."""
    work = result.plan.work
    count = WARM_UP + work.steps
    if work.peer != "vllm":
        return [{"command": "step"}] * count
    prompts = ours.ask({"command": "prompts", "arguments": {"steps": count}})["prompts"]
    settings = {k: asdict(work)[k] for k in ("group_size", "max_new_tokens", "forced")}
    return [settings | {"prompts": ids} for ids in prompts]


def same_prompts(mine: Raw, yours: Raw) -> None:
    """Refuses a comparison of different work."""
    for key in ("prompts", "prompt_lengths"):
        if key in yours and mine[key] != yours[key]:
            raise BenchError(f"the sides were given different {key.replace('_', ' ')}")


def shapes(steps: Sequence[Raw], rows: int) -> dict[str, int]:
    """The numbers of tokens at which the machine is measured: the median step's."""
    body = sorted(update_tokens(s["prompt_lengths"], s["lengths"]) for s in steps)
    head = sorted(sum(s["lengths"]) for s in steps)
    middle = len(steps) // 2
    return {
        "rows": rows,
        "update_tokens": max(1, body[middle]),
        "head_tokens": max(1, head[middle]),
    }
