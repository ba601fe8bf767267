"""The result as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from grpolab.bench.report import COLUMNS, COMPARED

NOTHING = "–"
ALWAYS = ("tokens a step", "tokens/s, sampling")


def show(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints phases, tokens, memory and the share of the limit."""
    console = console or Console(highlight=False)
    peer = found["peer"]
    name = peer["name"] if peer else "no peer"
    hardware = found["hardware"]
    console.print(
        f"case={found['case']} {found['dtype']}, {hardware['gpu'] or hardware['cpu']}, "
        f"{hardware['threads']} threads; {len(found['ours']['steps'])} steps of ours"
        + (f", {len(peer['steps'])} of {name}" if peer else ""),
        soft_wrap=True,
    )
    table = Table("seconds a step", box=None, pad_edge=False)
    for title in ("ours", "min–max", name if peer else "", "min–max" if peer else "", "ours/peer"):
        table.add_column(title, justify="right")
    for column in COLUMNS:
        mine, yours = found["ours"], peer or {}
        ratio = found["ratio"].get(column)
        if not mine[column] and not yours.get(column):
            continue
        table.add_row(column, *times(mine, column), *times(yours, column), number(ratio))
    console.print(table)
    console.print(rest(found))
    console.print(per_token_line(found), soft_wrap=True)
    console.print(limit_lines(found), soft_wrap=True)
    if "learn" in found:
        console.print(learn_lines(found), soft_wrap=True)


def rest(found: Mapping[str, Any]) -> Table:
    """Tokens and memory of both sides."""
    table = Table("", box=None, pad_edge=False)
    name = found["peer"]["name"] if found["peer"] else ""
    for title in ("ours", name, "ours/peer"):
        table.add_column(title, justify="right")
    rows = {
        "tokens a step": ("tokens", "{:.0f}"),
        "tokens/s": ("tokens_per_s", "{:.0f}"),
        "tokens/s, sampling": ("sample_tokens_per_s", "{:.0f}"),
        "peak GiB": ("peak_gib", "{:.2f}"),
    }
    for label, (key, form) in rows.items():
        pair = [found["ours"][key], found["peer"][key] if found["peer"] else None]
        texts = [NOTHING if value is None else form.format(value) for value in pair]
        same_work = found["ratio"]["step"] is not None or label in ALWAYS
        ratio = pair[0] / pair[1] if pair[1] and same_work else None
        table.add_row(label, *texts, number(ratio))
    return table


def per_token_line(found: Mapping[str, Any]) -> str:
    """The ratios of times for each token generated."""
    ratios = found["ratio_per_token"]
    return f"ours/peer, per token: {', '.join(f'{c} {number(ratios[c])}' for c in COMPARED)}"


def limit_lines(found: Mapping[str, Any]) -> str:
    """What was measured of the machine, and the share of it that is reached."""
    rates = found["limit"]["rates"]
    lines = [
        f"measured: {rates['bandwidth'] / 1e9:.1f} GB/s; GFLOP/s decoding "
        f"{rates['decode_body'] / 1e9:.0f} (head {rates['decode_head'] / 1e9:.0f}), updating "
        f"{rates['update_body'] / 1e9:.0f} (head {rates['update_head'] / 1e9:.0f})"
    ]
    for name, key in (("ours", "limit_share"), ("peer", "peer_limit_share")):
        shares = {c: s for c, s in found[key].items() if s is not None}
        if shares:
            bound = found["limit"][name]
            parts = (f"{c} {s:.0%} (at least {bound[c]:.3g} s)" for c, s in shares.items())
            lines.append(f"share of the limit, {name}: {', '.join(parts)}")
    return "\n".join(lines)


def learn_lines(found: Mapping[str, Any]) -> str:
    """Steps and seconds until learnt."""
    learn = found["learn"]
    lines = [f"time to learn ({learn['rule']}):"]
    for name in ("ours", "peer"):
        side = learn[name]
        if side["steps"]:
            lines.append(f"  {name}: {side['steps']} steps, {side['seconds']:.1f} s")
        elif side["rewards"]:
            lines.append(f"  {name}: not within {len(side['rewards'])} steps")
    return "\n".join([*lines, f"  ours/peer: {number(learn['ratio'])}"])


def times(side: Mapping[str, Any], column: str) -> tuple[str, str]:
    """(median, minimum–maximum)."""
    if not side.get(column):  # a peer that samples has no update
        return NOTHING, ""
    spread = side["spread"][column]
    return seconds(side[column]), f"{seconds(spread['min'])}–{seconds(spread['max'])}"


def seconds(value: float) -> str:
    """Three digits or so, never in powers of ten."""
    return f"{value:.4f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def number(value: float | None) -> str:
    """A ratio."""
    return NOTHING if value is None else f"{value:.3f}"
