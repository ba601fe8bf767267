"""Do the verdicts hold what they promise? Simulated studies whose truth is known.

python experiments/statistics/simulate.py [out=experiments/statistics/numbers.json] [draws=20000]

Every share stands with its binomial standard error. Runs of one seed share what the seed brings
(correlation ρ between arms), which is what pairing removes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from grpolab.results import statistics
from grpolab.results.frames import Results
from grpolab.results.power import seeds
from grpolab.results.statistics.intervals import ROUNDING
from grpolab.results.verdicts import verdicts

Array = npt.NDArray[np.float64]
Share = dict[str, float]
METRIC = "eval/accuracy"
ALPHA = 0.05


def share(hits: npt.ArrayLike) -> Share:
    """The share of true `hits` [draws] with its standard error."""
    found = np.asarray(hits, dtype=float)
    mean = float(found.mean())
    return {
        "share": round(mean, 4),
        "error": round(float(np.sqrt(mean * (1 - mean) / len(found))), 4),
    }


def studies(
    rng: np.random.Generator, draws: int, effects: list[float], n: int, correlation: float = 0.5
) -> Array:
    """Normal final values [draws, 1 + arms, n], deviation 1 a run, the baseline first."""
    shared = rng.normal(size=(draws, 1, n)) * np.sqrt(correlation)
    own = rng.normal(size=(draws, 1 + len(effects), n)) * np.sqrt(1 - correlation)
    return np.asarray(shared + own + np.array([0.0, *effects])[:, None])


def accuracies(
    rng: np.random.Generator, draws: int, levels: list[float], n: int, prompts: int = 128
) -> Array:
    """Accuracies of `prompts` evaluations [draws, arms, n]: binomial around a level that the seed
    moves by .15 in log odds and the run by as much again."""
    odds = np.log(np.array(levels) / (1 - np.array(levels)))[:, None]
    seed = 0.15 * rng.normal(size=(draws, 1, n))
    run = 0.15 * rng.normal(size=(draws, len(levels), n))
    p = 1 / (1 + np.exp(-(odds + seed + run)))
    return np.asarray(rng.binomial(prompts, p) / prompts)


def frames(values: Array) -> Results:
    """One study as the analysis gets it: `values` [1 + arms, n], NaN for a run that failed."""
    arms, n = values.shape
    names = ["baseline", *(f"arm{i:02d}" for i in range(1, arms))]
    runs = pd.DataFrame(
        {
            "study": "simulated",
            "sweep": "s",
            "job_id": [f"{name}-{seed}" for name in names for seed in range(n)],
            "arm": np.repeat(names, n),
            "baseline": np.repeat([i == 0 for i in range(arms)], n),
            "seed": np.tile(np.arange(n), arms),
            "status": np.where(np.isnan(values.ravel()), "failed", "done"),
            "reason": None,
        }
    )
    history = runs[["study", "job_id", "arm", "seed"]].assign(
        step=1, metric=METRIC, value=values.ravel(), tokens=1.0, wall=1.0
    )
    return Results(runs, history[history["value"].notna()])


def coverage(
    rng: np.random.Generator, n: int, draws: int, method: str = "student-t", skewed: bool = False
) -> Share:
    """How often the 95 % interval of n values holds their mean (0)."""
    data = rng.exponential(size=(draws, n)) - 1 if skewed else rng.normal(size=(draws, n))

    def of(values: Array) -> statistics.Interval:
        if method == "student-t":
            return statistics.mean_interval(values)
        kind: Any = method
        return statistics.bootstrap_interval(values, rng, method=kind, resamples=1000)

    return share([found.low <= 0 <= found.high for found in map(of, data)])


def paired_p(values: Array) -> Array:
    """p of the paired t tests of `values` [draws, 1 + arms, n] with the baseline: [draws, arms].

    As the verdicts have it: differences that are all equal get the sign-flip p, not t's 0.
    """
    d = values[:, 1:] - values[:, :1]
    mean, deviation, n = d.mean(axis=2), d.std(axis=2, ddof=1), d.shape[2]
    equal = deviation <= ROUNDING * np.abs(values).max()
    t = mean * np.sqrt(n) / np.where(equal, 1.0, deviation)
    flips = np.where(np.abs(mean) > 0, statistics.minimum_sign_flip_p(n), 1.0)
    return np.asarray(np.where(equal, flips, 2 * stats.t.sf(np.abs(t), n - 1)))


def sign_flip_p(values: Array) -> Array:
    """The same by exact sign flips, all patterns of all studies at once: [draws, arms]."""
    d = values[:, 1:] - values[:, :1]  # [draws, arms, n]
    n = d.shape[2]
    signs = 1 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # [2^n, n]
    sums = np.abs(d @ signs.T)
    return np.asarray((sums >= sums[..., :1] - 1e-9).mean(axis=2))


def found(p: Array, correction: Callable[[statistics.Floats], Array]) -> npt.NDArray[np.bool_]:
    """Which arms are called different in each study: [draws, arms]."""
    return np.array([correction(row) < ALPHA for row in p])


def dunnett_found(values: Array) -> npt.NDArray[np.bool_]:
    """The same by Dunnett in blocks of seeds: |t| beyond the quantile, which is all studies'."""
    fits = [statistics.dunnett_blocked(study[1:], study[0]) for study in values]
    bound = next(fit.quantile(1 - ALPHA) for fit in fits if fit is not None)
    return np.array([np.abs(fit.t) > bound for fit in fits if fit is not None])


def family_wise(rng: np.random.Generator, draws: int, arms: int, n: int) -> dict[str, Share]:
    """Studies of arms that do nothing: the share in which any is called better or worse."""
    values = studies(rng, draws, [0.0] * arms, n)
    p = paired_p(values)
    result = {
        "none": share(found(p, np.asarray).any(axis=1)),
        "holm": share(found(p, statistics.holm).any(axis=1)),
        "bonferroni": share(found(p, statistics.bonferroni).any(axis=1)),
        "dunnett": share(dunnett_found(values[: draws // 4]).any(axis=1)),
    }
    if n <= 10:
        flips = sign_flip_p(values[: draws // 10])
        result["holm, sign_flip"] = share(found(flips, statistics.holm).any(axis=1))
    return result


def family_wise_accuracies(rng: np.random.Generator, draws: int, n: int) -> Share:
    """The same for Holm's on accuracies of 128 prompts around .9, 12 arms."""
    values = accuracies(rng, draws, [0.9] * 13, n)
    return share(found(paired_p(values), statistics.holm).any(axis=1))


def agreement(rng: np.random.Generator, draws: int, arms: int, n: int) -> Share:
    """That the table of verdicts says what the vectorised tests say, study by study."""
    values = studies(rng, draws, [0.0] * (arms - 2) + [2.0, -2.0], n, correlation=0.8)
    holm = found(paired_p(values), statistics.holm)
    same = []
    for study, different in zip(values, holm, strict=True):
        claims = verdicts(frames(study), METRIC)["verdict"] != "undecided"
        same.append(list(claims) == list(different))
    return share(same)


def power(rng: np.random.Generator, draws: int, effect: float, n: int, arms: int) -> dict[str, Any]:
    """How often the one arm that does something is called better, beside what power.py promises."""
    values = studies(rng, draws, [effect] + [0.0] * (arms - 1), n)
    p = paired_p(values)
    gain = values[:, 1].mean(axis=1) > values[:, 0].mean(axis=1)
    promised = seeds(n, arms, effect, 0.5)
    return {
        "effect": effect,
        "n": n,
        "arms": arms,
        "alone": share((p[:, 0] < ALPHA) & gain),
        "alone promised": round(promised.power or 0.0, 4),
        "holm": share(found(p, statistics.holm)[:, 0] & gain),
        "holm promised": round(promised.power_holm or 0.0, 4),
    }


def planted(rng: np.random.Generator, draws: int, n: int) -> dict[str, dict[str, float]]:
    """Shares of each verdict on accuracies of 128 prompts, margin .03, by the whole table.

    Levels .90 (baseline), .95, .85, .90, and .87, which is at the margin.
    """
    values = accuracies(rng, draws, [0.90, 0.95, 0.85, 0.90, 0.87], n)
    tables = [list(verdicts(frames(v), METRIC, equivalence=0.03)["verdict"]) for v in values]
    kinds = ("better", "worse", "equivalent", "undecided")
    names = ("+.05", "-.05", "0", "-.03")
    return {
        name: {kind: round(float(np.mean([t[i] == kind for t in tables])), 3) for kind in kinds}
        for i, name in enumerate(names)
    }


def survivors(rng: np.random.Generator, draws: int, n: int) -> dict[str, Share]:
    """An arm that does nothing and loses each run below its mean: how often is it called better?"""
    values = studies(rng, draws, [0.0], n)
    values[:, 1][values[:, 1] < 0] = np.nan
    naive, ours = [], []
    for study in values:
        kept = ~np.isnan(study[1])
        test = statistics.paired(study[1][kept], study[0][kept])
        naive.append(test.p < ALPHA and test.delta > 0)
        ours.append(verdicts(frames(study), METRIC)["verdict"].iloc[0] == "better")
    return {"survivors only": share(naive), "verdicts": share(ours)}


def everything(draws: int) -> dict[str, Any]:
    """All simulations; `draws` studies where they are vectorised, fewer where they are not."""
    rng = np.random.default_rng(20261127)
    few = max(20, draws // 40)
    return {
        "coverage of 95 %": {
            "student-t": {n: coverage(rng, n, draws) for n in (3, 5, 10)},
            "student-t, skewed": {n: coverage(rng, n, draws, skewed=True) for n in (3, 5, 10)},
            "percentile": {n: coverage(rng, n, 4 * few, "percentile") for n in (3, 5, 10, 20)},
            "bca": {n: coverage(rng, n, 4 * few, "bca") for n in (3, 5, 10, 20)},
            "bca, skewed": {n: coverage(rng, n, 4 * few, "bca", True) for n in (10, 20)},
        },
        "any of 12 arms under no effect": {n: family_wise(rng, draws, 12, n) for n in (3, 5, 10)},
        "any of 12 arms under no effect, accuracies, holm": {
            n: family_wise_accuracies(rng, draws, n) for n in (3, 5, 10)
        },
        "table as vectorised": agreement(rng, few, 12, 5),
        "power": [
            power(rng, draws, effect, n, arms)
            for effect, n, arms in ((1.0, 5, 3), (1.0, 10, 12), (2.0, 5, 12), (1.5, 8, 6))
        ],
        "planted accuracies": {n: planted(rng, few, n) for n in (5, 10)},
        "survivors": {n: survivors(rng, few, n) for n in (10, 20)},
    }


def main(arguments: list[str]) -> None:
    """Writes the numbers as JSON."""
    given = dict(word.partition("=")[::2] for word in arguments)
    out = Path(given.get("out", "experiments/statistics/numbers.json"))
    draws = int(given.get("draws", 20_000))
    begun = time.perf_counter()
    numbers = everything(draws)
    out.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(numbers, indent=1))
    print(f"{time.perf_counter() - begun:.0f} s, written to {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
