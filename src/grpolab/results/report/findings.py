"""The page's verdicts: what was found about each metric at each level, and its table of arms."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from grpolab.results.figures import Source
from grpolab.results.frames import FACTOR_PREFIX
from grpolab.results.metrics import spoken
from grpolab.results.summary import arm_table
from grpolab.results.tables import rules_in_words
from grpolab.results.words import in_words

HEADINGS = {
    "holds": "Differences that hold",
    "out": "Ruled out: equivalent within the margin",
    "more": "Undecided: what is ruled out, and how many seeds are needed",
}
_KIND = {"better": "holds", "worse": "holds", "equivalent": "out"}


@dataclass(frozen=True)
class Section:
    """The sentences on one metric, within one level of the factors of `by` where there are any."""

    title: str
    """The metric and the level; empty where the page has one section alone."""
    words: dict[str, list[str]]
    """{kind of finding, a key of HEADINGS: its sentences}."""


@dataclass(frozen=True)
class ArmTable:
    """A metric's arms: final values, and differences from what each is compared with."""

    metric: str
    rows: list[dict[Any, Any]]
    baselines: tuple[str, ...]
    """What arms are compared with: the study's baseline, or with `by` one a level."""


def sections(source: Source) -> list[Section]:
    """Verdicts in words, metric by metric and level by level."""
    judged = source.verdicts
    levels = _levels(source)
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    # in words first: the family that a sentence counts is that of all metrics and levels
    for row, line in zip(judged.to_dict("records"), in_words(judged), strict=True):
        at = str(row["metric"]), levels.get(str(row["arm"]), "")
        words = found.setdefault(at, {kind: [] for kind in HEADINGS})
        words[_KIND.get(str(row["verdict"]), "more")].append(with_minus(line))
    several = len(found) > 1
    titled = {at: " at ".join(filter(None, at)) if several else "" for at in found}
    metrics = list(source.metrics)
    order = sorted(found, key=lambda at: (metrics.index(at[0]), _natural(at[1])))
    return [Section(titled[at], found[at]) for at in order]


def with_minus(text: str) -> str:
    """A text whose negative numbers have a true minus; a setting such as `clip.low=-1` stays."""
    return re.sub(r"(?<![\w.=-])-(?=[\d.])", "−", text)


def _natural(level: str) -> list[tuple[float, str]]:
    """By which levels are sorted: 4 before 16."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", level)
    return [(float(p), "") if i % 2 else (math.inf, p) for i, p in enumerate(parts)]


def rules(source: Source) -> str:
    """By which rules the verdicts were found, in a sentence each; empty without verdicts."""
    judged = source.verdicts
    if judged.empty:
        return ""
    parts = [*rules_in_words(judged), f"α = {judged.attrs['alpha']:g}"]
    if margin := judged.attrs["equivalence"]:
        parts.append(f"equivalence margin ±{margin:g}")
    if by := judged.attrs["by"]:
        parts.append(f"compared within the levels of {', '.join(by)}")
    return ". ".join(part[0].upper() + part[1:] if part[0] != "α" else part for part in parts) + "."


def arm_tables(source: Source) -> list[ArmTable]:
    """A table for each metric, the baseline first."""
    baselines = tuple(dict.fromkeys(map(str, source.verdicts["baseline"])))
    return [
        ArmTable(metric, list(_arm_rows(arm_table(source.results, metric), own)), baselines)
        for metric in source.metrics
        for own in [source.verdicts[source.verdicts["metric"] == metric]]
    ]


def _arm_rows(table: pd.DataFrame, judged: pd.DataFrame) -> Iterator[dict[Any, Any]]:
    """Each arm's final value with its difference from what it is compared with, and the verdict."""
    found: Mapping[Any, Any] = {row["arm"]: row for row in judged.to_dict("records")}
    keys = ("delta", "low", "high", "p_corrected", "verdict", "baseline")
    none = dict.fromkeys(keys, math.nan) | {"verdict": "", "baseline": ""}
    for row in table.to_dict("records"):
        own = found.get(row["arm"], none)
        yield row | {
            "delta": own["delta"],
            "delta_low": own["low"],
            "delta_high": own["high"],
            "p_corrected": own["p_corrected"],
            "verdict": spoken(str(own["verdict"]), str(row["metric"])),
            "against": own["baseline"],
        }


def _levels(source: Source) -> dict[str, str]:
    """{arm: its level of the factors of `by`, as overrides}; {} without such factors."""
    by: Sequence[str] = source.verdicts.attrs["by"]
    if not by:
        return {}
    columns = [FACTOR_PREFIX + name for name in by]
    runs = source.results.runs.drop_duplicates("arm").set_index("arm")[columns].fillna("null")
    return {
        str(arm): ", ".join(f"{name}={value}" for name, value in zip(by, values, strict=True))
        for arm, values in zip(runs.index, runs.itertuples(index=False), strict=True)
    }
