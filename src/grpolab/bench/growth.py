"""Step time against group size, completion length and prompt length, ours beside TRL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpolab.bench.cases import Plan
from grpolab.bench.report import summarise
from grpolab.bench.session import Show, measure
from grpolab.component import ConfigError, nearest

FAMILIES = {
    "group": ("group_size", (8, 16, 32, 64), "completions a prompt, G"),
    "length": ("max_new_tokens", (64, 128, 256, 512), "tokens of a completion"),
    "prompt": ("prompt_tokens", (32, 128, 512, 1024), "tokens of the prompt"),
}
"""Name → (key of the work, its values, label); the others stay at the case's own."""
PEER_LABEL = {"trl": "TRL 1.16", "none": ""}


def point_names() -> list[str]:
    """group_8, group_16, …"""
    return [f"{name}_{value}" for name, (_, values, _) in FAMILIES.items() for value in values]


def chosen(points: Sequence[str]) -> list[str]:
    """The points that `points=` names, by family or one by one; all where it names none."""
    names = point_names()
    for given in points:
        if given not in names and given not in FAMILIES:
            allowed = [*FAMILIES, *names]
            raise ConfigError(
                f"points: {given!r} given; allowed: {', '.join(allowed)}"
                f"{nearest(given, allowed) or '.'}"
            )
    if not points:
        return names
    return [n for n in names if n in points or n.rpartition("_")[0] in points]


def plan_of(plan: Plan, name: str) -> Plan:
    """The plan of one point."""
    family, _, value = name.rpartition("_")
    change: dict[str, Any] = {FAMILIES[family][0]: int(value)}
    return replace(plan, work=replace(plan.work, **change))


def run(plan: Plan, show: Show) -> dict[str, Any]:
    """Measures every point, and returns the first point's summary with all points in it."""
    measured: dict[Any, dict[str, Any]] = {}
    points = []
    for name in chosen(plan.points):
        own = plan_of(plan, name)
        if own.work not in measured:  # the three curves share their first point
            measured[own.work] = summarise(measure(own, prefixed(show, name)))
        kept = ("ours", "peer", "ratio", "ratio_per_token", "limit", "limit_share")
        family, _, value = name.rpartition("_")
        point = {"point": name, "family": family, "value": int(value)}
        points.append(point | {k: measured[own.work][k] for k in kept})
    first = next(iter(measured.values()))
    return first | {"summary_of": points[0]["point"], "points": points}


def prefixed(show: Show, name: str) -> Show:
    """Progress that says which point it is about."""
    return lambda line: show(f"{name}: {line}")


def draw(found: Mapping[str, Any], out: Path) -> list[Path]:
    """The figure beside the result file: PNG, PDF, SVG and a caption."""
    import matplotlib
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    from grpolab.results.style import COLOURS, DOUBLE_COLUMN, PAPER, new_figure, save

    families = [f for f in FAMILIES if any(p["family"] == f for p in found["points"])]
    with matplotlib.rc_context(PAPER):
        figure = new_figure(DOUBLE_COLUMN, 2.2)
        axes = figure.subplots(1, len(families), squeeze=False, sharey=True)[0]
        for axis, family in zip(axes, families, strict=True):
            points = [p for p in found["points"] if p["family"] == family]
            values = [p["value"] for p in points]
            sides = [("peer", PEER_LABEL[found["work"]["peer"]], "black", "o")]
            sides.append(("ours", "GRPO Lab", COLOURS[0], "s"))
            for side, label, colour, marker in sides:
                if points[0][side] is None:
                    continue
                middle = [p[side]["step"] for p in points]
                low = [p[side]["spread"]["step"]["min"] for p in points]
                high = [p[side]["spread"]["step"]["max"] for p in points]
                axis.plot(values, middle, color=colour, marker=marker, ms=3, label=label)
                axis.fill_between(values, low, high, color=colour, alpha=0.15, lw=0)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(values, [str(v) for v in values])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel(FAMILIES[family][2])
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes[0].yaxis.set_minor_locator(NullLocator())
        axes[0].set_ylabel("seconds a step")
        axes[0].legend()
        return save(figure, out.parent, out.stem, caption(found))


def caption(found: Mapping[str, Any]) -> str:
    """What was measured, and how."""
    work, hardware = found["work"], found["hardware"]
    return (
        f"Seconds a step (sampling and one update) of SmolLM2-135M in {found['dtype']}, "
        f"{work['prompts']} prompt a step; where an axis does not say otherwise, 8 completions of "
        f"64 forced tokens to a prompt of 32. Medians of {work['steps']} steps of each side, "
        f"alternating after one to warm up; bands from the fastest to the slowest. "
        f"{hardware['gpu'] or hardware['cpu']}, {hardware['threads']} threads, {found['date']}."
    )
