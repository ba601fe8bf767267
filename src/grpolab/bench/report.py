"""From raw steps to the figures: medians, spread, ratios, shares of the limit, and a table."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from grpolab.bench.limit import Rates, Sizes, bounds
from grpolab.bench.session import LEARNT, WINDOW, Raw, Result, learnt_at
from grpolab.training.clock import PHASES

COLUMNS = (*PHASES, "idle", "update", "step")
UPDATE = ("logps", "backward", "optimizer")
COMPARED = ("step", "sample", "update")
SAMPLING_ONLY = ("hf", "vllm")


def summarise(result: Result) -> dict[str, Any]:
    """The content of the result file."""
    work = result.plan.work
    ours = side(result.ours)
    peer = side(result.peer) | {"name": work.peer} if result.peer else None
    limit = limits(result)
    found: dict[str, Any] = {
        "case": result.plan.case,
        "dtype": work.dtype,
        "date": date.today().isoformat(),
        "command": "grpolab " + " ".join(sys.argv[1:]),
        "hardware": hardware(result),
        "versions": versions(result),
        "work": asdict(work) | {"overrides": result.plan.overrides},
        "ours": ours,
        "peer": peer,
        "ratio": ratios(result, ours, peer),
        "ratio_per_token": per_token(result, ours, peer),
        "limit": limit,
        "limit_share": shares(limit["ours"], ours),
        "peer_limit_share": shares(limit["peer"], peer or {}),
        "turns": result.turns,
        "about": {s: {k: v for k, v in d.items() if k != "model"} for s, d in result.about.items()},
    }
    return found | ({"learn": learning(result)} if result.plan.case == "learn" else {})


def side(steps: Sequence[Raw]) -> dict[str, Any]:
    """Medians of each phase in seconds, their spread, tokens per second and peak memory."""
    rows = [columns(step) for step in steps]
    tokens = [sum(s["lengths"]) for s in steps]
    return {c: median(row[c] for row in rows) for c in COLUMNS} | {
        "tokens": median(tokens),
        "tokens_per_s": median(n / r["step"] for n, r in zip(tokens, rows, strict=True)),
        "sample_tokens_per_s": median(
            n / r["sample"] if r["sample"] else 0.0 for n, r in zip(tokens, rows, strict=True)
        ),
        "peak_gib": max(s["peak_gib"] for s in steps),
        "spread": {c: spread([row[c] for row in rows]) for c in COLUMNS},
        "steps": [dict(step) for step in steps],
    }


def columns(step: Raw) -> dict[str, float]:
    """Seconds of a raw step by phase; idle is what no phase accounts for, update the sum of
    log-probs, backward and optimizer."""
    phases: dict[str, float] = dict.fromkeys(PHASES, 0.0) | step["phases"]
    seconds = float(step["seconds"])
    idle = max(0.0, seconds - sum(phases.values()))
    return phases | {"idle": idle, "update": sum(phases[p] for p in UPDATE), "step": seconds}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, quartiles and maximum."""
    pair = list(values) if len(values) > 1 else [*values, *values]
    first, _, third = quantiles(pair, n=4, method="inclusive")
    return {"min": min(values), "q1": first, "q3": third, "max": max(values)}


def ratios(
    result: Result, ours: Mapping[str, Any], peer: Mapping[str, Any] | None
) -> dict[str, float | None]:
    """Ours / peer: of the medians, and of the peak memory. None where the peer does no such work.
    Below 1 ours is faster."""
    found = {c: quotient(ours, peer, c) if c in comparable(result) else None for c in COMPARED}
    memory = "step" in comparable(result)
    return found | {"peak_memory": quotient(ours, peer, "peak_gib") if memory else None}


def per_token(
    result: Result, ours: Mapping[str, Any], peer: Mapping[str, Any] | None
) -> dict[str, float | None]:
    """The ratios of times, each side's divided by the tokens it generated in the same steps."""
    found: dict[str, float | None] = dict.fromkeys(COMPARED)
    if peer is None:
        return found
    for column in comparable(result):
        mine = median(c[column] / n for c, n in costs(result.ours))
        yours = median(c[column] / n for c, n in costs(result.peer))
        found[column] = mine / yours if yours else None
    return found


def costs(steps: Sequence[Raw]) -> list[tuple[dict[str, float], int]]:
    """(seconds by phase, tokens) of each step."""
    return [(columns(step), max(1, sum(step["lengths"]))) for step in steps]


def comparable(result: Result) -> tuple[str, ...]:
    """Which of step, sample and update both sides do."""
    if result.plan.sampling_alone:
        return ("step", "sample")
    return ("sample",) if result.plan.work.peer in SAMPLING_ONLY else COMPARED


def quotient(ours: Mapping[str, Any], peer: Mapping[str, Any] | None, column: str) -> float | None:
    """Ours / peer."""
    return ours[column] / peer[column] if peer and peer[column] else None


def limits(result: Result) -> dict[str, Any]:
    """Measured rates, sizes, and the median lower bounds in seconds of either side's tokens."""
    sizes, rates = Sizes(**result.machine["sizes"]), Rates(**result.machine["rates"])
    found: dict[str, Any] = {"sizes": asdict(sizes), "rates": asdict(rates), "peer": {}}
    for name, steps in (("ours", result.ours), ("peer", result.peer)):
        each = bounds(sizes, rates, steps)
        found[name] = {c: median(b[c] for b in each) for c in COMPARED} if each else {}
    if result.plan.sampling_alone:
        for name in ("ours", "peer"):
            found[name] = {"sample": s, "step": s} if (s := found[name].get("sample")) else {}
    elif result.plan.work.peer in SAMPLING_ONLY:
        found["peer"] = {"sample": found["peer"]["sample"]}
    return found


def shares(bound: Mapping[str, float], measured: Mapping[str, Any]) -> dict[str, float | None]:
    """bound / measured; 1 is the limit."""
    return {c: bound[c] / measured[c] if bound.get(c) else None for c in COMPARED}


def learning(result: Result) -> dict[str, Any]:
    """Steps and seconds until the training reward was reached, by the same rule on both sides."""
    rule = f"first step at which the mean reward of the last {WINDOW} steps is at least {LEARNT}"
    found: dict[str, Any] = {"rule": rule}
    for name, steps in (("ours", result.ours), ("peer", result.peer)):
        rewards = [s["reward"] for s in steps]
        at = learnt_at(rewards)
        seconds = sum(s["seconds"] for s in steps[:at]) if at else None
        found[name] = {"steps": at, "seconds": seconds, "rewards": rewards}
    mine, yours = found["ours"]["seconds"], found["peer"]["seconds"]
    return found | {"ratio": mine / yours if mine and yours else None}


def hardware(result: Result) -> dict[str, Any]:
    """What it ran on."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": result.plan.work.threads,
        "capability": result.about["machine"]["cpu"],
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "device": result.about["ours"]["device"],
        "gpu": result.about["ours"]["gpu"],
        "platform": f"{platform.system()} {platform.machine()}",
    }


def cpu_name() -> str:
    """As the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def versions(result: Result) -> dict[str, Any]:
    """Of Python and of the packages that did the work."""
    from grpolab.tracking.provenance import _git, _version

    found: dict[str, Any] = {"python": platform.python_version(), "grpolab": _version("grpolab")}
    found["git_sha"] = _git("rev-parse", "HEAD")
    for package in ("torch", "transformers"):
        found[package] = result.about["ours"][package]
    if result.plan.work.peer == "trl":
        found["trl"] = _version("trl")
    if result.plan.work.peer == "vllm":
        found["vllm"] = result.about["peer"]["vllm"]
    return found
