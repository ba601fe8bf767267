"""Arms beside their baseline: the values that a test compares, and what was lost on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from grpolab.results import statistics
from grpolab.results.family import opponents
from grpolab.results.frames import FACTOR_PREFIX
from grpolab.results.statistics import Comparison
from grpolab.results.summary import arms_of, usable

TESTS = ("auto", "paired_t", "sign_flip", "welch", "permutation")
# What ends a run without a final value for a reason that has to do with the values themselves.
LOST = ("failed", "pruned")
PAIRED = ("paired_t", "sign_flip")
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """An arm and its baseline: final values [n] and [m], by seed where the test is a paired one."""

    study: str
    metric: str
    arm: str
    baseline: str
    by_seed: pd.Series[float]
    baseline_by_seed: pd.Series[float]
    x: Array
    y: Array
    test: str
    seed: int
    runs: int
    failed: int
    baseline_runs: int
    baseline_failed: int

    def compare(self, level: float) -> Comparison:
        """Difference, interval at that level, p; the same draws at every level."""
        if self.test == "paired_t":
            return statistics.paired(self.x, self.y, level)
        if self.test == "welch":
            return statistics.welch(self.x, self.y, level)
        tests = {
            "sign_flip": statistics.sign_flip_test,
            "permutation": statistics.permutation_test,
        }
        return tests[self.test](self.x, self.y, np.random.default_rng(self.seed), level)

    def equivalence_p(self, margin: float) -> float:
        """The larger p of both one-sided tests against a difference of margin."""
        if self.test == "paired_t":
            return statistics.tost_paired(self.x, self.y, margin).p
        if self.test == "welch":
            return statistics.tost_welch(self.x, self.y, margin).p
        tests = {
            "sign_flip": statistics.tost_sign_flip,
            "permutation": statistics.tost_permutation,
        }
        return tests[self.test](self.x, self.y, margin, np.random.default_rng(self.seed))


def pairs_of(
    values: pd.DataFrame, test: str, rng: np.random.Generator, by: Sequence[str] = ()
) -> list[Pair]:
    """Every arm with its baseline, in the order of the studies and their arms: the study's, or
    with `by` the arm that has its values of those factors and the study's baseline's of others.

    Raises:
        ResultsError: `by` names no swept factor, or an arm has no such arm to be compared with.
    """
    found = []
    for _, runs in values.groupby("study"):
        arms = list(arms_of(runs))
        if not any(baseline for _, _, baseline, _ in arms):
            continue
        groups = {arm: group for _, arm, _, group in arms}
        for study, arm, base in _against(arms, by):
            group, base_group = groups[arm], groups[base]
            ours, theirs = _by_seed(group), _by_seed(base_group)
            x, y, chosen = _samples(ours, theirs, test)
            found.append(
                Pair(
                    study=study,
                    metric=str(values["metric"].iloc[0]),
                    arm=arm,
                    baseline=base,
                    by_seed=ours,
                    baseline_by_seed=theirs,
                    x=x,
                    y=y,
                    test=chosen,
                    seed=int(rng.integers(2**63)),
                    runs=len(group),
                    failed=_failed(group),
                    baseline_runs=len(base_group),
                    baseline_failed=_failed(base_group),
                )
            )
    return found


def _against(
    arms: Sequence[tuple[str, str, bool, pd.DataFrame]], by: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """(study, arm, the arm it is compared with) for each of a study's arms that has one."""
    study, base, _, base_runs = next(entry for entry in arms if entry[2])
    names = [str(column) for column in base_runs]
    columns = [c for c in names if c.startswith(FACTOR_PREFIX) and c != f"{FACTOR_PREFIX}seed"]
    levels = {arm: _levels(group, columns) for _, arm, _, group in arms}
    yield from ((study, arm, other) for arm, other in opponents(levels, base, by).items())


def _levels(group: pd.DataFrame, columns: Sequence[str]) -> dict[str, str]:
    """The arm's values of these factors by their keys; one that it does not have is null."""
    values = group[list(columns)].iloc[0].fillna("null")
    return {c.removeprefix(FACTOR_PREFIX): str(v) for c, v in zip(columns, values, strict=True)}


def _samples(x: pd.Series[float], y: pd.Series[float], test: str) -> tuple[Array, Array, str]:
    """The values a test compares, and which test: `auto` decides by the seeds that are shared."""
    shared = x.index.intersection(y.index)
    if test == "auto":
        # one shared seed still gives a paired difference where Welch has too few runs to do better
        few = len(shared) == 1 and min(len(x), len(y)) < 2
        test = "paired_t" if len(shared) >= 2 or few else "welch"
    if test in PAIRED:
        x, y = x.loc[shared], y.loc[shared]
    values: list[Array] = [np.asarray(sample, dtype=float) for sample in (x, y)]
    return values[0], values[1], test


def _by_seed(group: pd.DataFrame) -> pd.Series[float]:
    return usable(group).set_index("seed")["final"].sort_index()


def _failed(group: pd.DataFrame) -> int:
    """Runs that failed, were pruned, or ended without a finite value; not those unfinished."""
    done = group["status"] == "done"
    diverged = done & ~np.isfinite(group["final"].to_numpy(dtype=float))
    return int((group["status"].isin(LOST) | diverged).sum())
