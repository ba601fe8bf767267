"""Verdicts in words: what holds, what is ruled out, what needs more seeds and how many."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

from grpolab.results.metrics import spoken
from grpolab.results.power import (
    WANTED_POWER,
    seeds_for_equivalence,
    seeds_for_power,
    seeds_for_sign_flip,
)
from grpolab.results.statistics import fisher, t_quantile

EXACT = ("sign-flip", "permutation")


def in_words(verdicts: pd.DataFrame) -> list[str]:
    """One sentence a row of `verdicts`, from its columns (and alpha and δ, where `attrs` has them).

    For an undecided arm it says which differences are ruled out and how many seeds would find the
    observed one with a power of .8: a difference seen by chance is larger than the true one, so
    this is the fewest to plan with.
    """
    alpha = float(verdicts.attrs.get("alpha") or 0.05)
    margin = verdicts.attrs.get("equivalence")
    rows = verdicts.to_dict("records")
    studies = {str(row["study"]) for row in rows}
    lines = []
    for row in rows:
        where = f"{row['study']}: " if len(studies) > 1 else ""
        family = sum(other["study"] == row["study"] for other in rows)
        lines.append(where + _sentence(row, family, alpha, margin) + _lost(row))
    return lines


def _sentence(row: dict[Any, Any], family: int, alpha: float, margin: float | None) -> str:
    head = f"{row['arm']} against {row['baseline']} on {row['metric']}"
    size = f"{row['delta']:+.3g}" if row["delta"] else "exactly 0"
    seen = f"difference {size}, {_between(row)}, n={row['n']}"
    p = f"p={row['p_corrected']:.2g} ({row['correction']})"
    if row["verdict"] in ("better", "worse"):
        said = spoken(str(row["verdict"]), str(row["metric"]))
        return f"{head}: {said} holds ({seen}, {p})."
    if row["verdict"] == "equivalent":
        limit = "the equivalence margin" if margin is None else f"{margin:g}"
        return f"{head}: a difference of {limit} or more is ruled out ({seen})."
    if not math.isfinite(row["p"]):
        return f"{head}: no comparison could be made (n={row['n']}); needs at least 2 paired seeds."
    if row["p_corrected"] < alpha:
        return f"{head}: undecided, as only surviving runs could be compared ({seen}, {p})."
    return (
        f"{head}: undecided ({seen}, {p}); {_ruled_out(row)}{_needed(row, family, alpha, margin)}."
    )


def _between(row: dict[Any, Any]) -> str:
    if not math.isfinite(row["low"]):
        return "no bounded interval"
    kind, _, level = str(row["interval"]).rpartition(" ")
    named = f"{kind[:1].upper()}{kind[1:]} {float(level.rstrip('%')):.4g} % interval"
    return f"{named} [{row['low']:+.3g}, {row['high']:+.3g}]"


def _ruled_out(row: dict[Any, Any]) -> str:
    if not math.isfinite(row["low"]):
        return ""
    return f"below {row['low']:+.3g} and above {row['high']:+.3g} is ruled out; "


def _needed(row: dict[Any, Any], family: int, alpha: float, margin: float | None) -> str:
    """How many seeds would decide, were the true difference the one seen."""
    level = _level(row["interval"])
    if str(row["interval"]).startswith("dunnett"):
        level = 1 - (1 - level) / family  # of all arms together, as Bonferroni would have it of one
    exact = str(row["test"]).startswith(EXACT)
    least = seeds_for_sign_flip(_steps(level, alpha, family), alpha) if exact else 2
    half, n = (row["high"] - row["low"]) / 2, int(row["n"])
    if not math.isfinite(half) or not half or n < 2:
        return f"needs at least {max(least, n + 1)} seeds"
    deviation = half / t_quantile(level, n - 1) * math.sqrt(n)
    effect = abs(row["delta"]) / deviation
    ways = [_seeds(seeds_for_power(effect, 0.5, 1 - level) if effect else None, least, n)]
    if margin is not None and effect < margin / deviation:
        same = seeds_for_equivalence(effect, margin / deviation, 1 - level)
        ways.append(f"{_seeds(same, least, n)} to rule out {margin:g}")
    return (
        f"needs {', or '.join(ways)}, for a power of {WANTED_POWER:g} "
        "if the true difference is the one seen"
    )


def _seeds(found: int | None, least: int, n: int) -> str:
    return "more than 10,000 seeds" if found is None else f"about {max(found, least, n + 1)} seeds"


def _level(interval: object) -> float:
    found = re.search(r"([\d.]+)%$", str(interval))
    return float(found.group(1)) / 100 if found else 0.95


def _steps(level: float, alpha: float, family: int) -> int:
    return max(1, min(family, round(alpha / (1 - level)))) if level < 1 else family


def _lost(row: dict[Any, Any]) -> str:
    """The failed runs that `test` counts, and whether the arms differ in them."""
    _, separator, counts = str(row["test"]).partition("; failed: ")
    found = re.fullmatch(r"(\d+) of (\d+), baseline (\d+) of (\d+)", counts)
    if not separator or found is None:
        return ""
    return f" Failed runs: {counts} (Fisher's exact p={fisher(*map(int, found.groups())):.2g})."
