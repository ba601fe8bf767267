"""Verdicts: each arm against its study's baseline, by rules fixed before any result is seen.

- One value a run, the mean of a metric's last 10 % of evaluations; the seed is the unit. Runs are
  paired by seed where at least two seeds are shared, else two unpaired samples.
- All comparisons of a study, over arms and metrics, are one family: `correction` holds over them.
- `equivalent`: two one-sided tests reject a difference of δ or more, either way, after the same
  correction. It goes before better and worse: below δ a difference does not matter, however sure.
- `better`, `worse`: the corrected p is below α, in the direction that the metric calls better.
- Each row's interval is at the level its correction leaves it, which `interval` names. It excludes
  0 exactly where the corrected p is below α; where the verdict is `equivalent` it is the 1 − 2α
  interval of that test and lies within (−δ, δ).
- A run that failed, or whose final value is not finite, has no value, so its seed leaves n, means
  and p. It is not forgotten: what is left are survivors. An arm that lost a larger share of its
  runs than the baseline is not called better or equivalent, one that lost a smaller share is not
  called worse or equivalent, and `test` says how many failed. Unfinished runs only lower n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from grpolab.results import statistics
from grpolab.results.frames import Results, ResultsError, refuse
from grpolab.results.metrics import describe
from grpolab.results.statistics import Comparison
from grpolab.results.summary import arms_of, run_values, usable
from grpolab.results.words import in_words

__all__ = ["VERDICT_COLUMNS", "Rules", "in_words", "verdicts"]

VERDICT_COLUMNS = (
    "study", "metric", "arm", "baseline", "n", "mean", "baseline_mean", "delta", "low", "high",
    "interval", "test", "p", "p_corrected", "correction", "verdict",
)  # fmt: skip
TESTS = ("auto", "paired_t", "sign_flip", "welch", "permutation")
PAIRED = ("paired_t", "sign_flip")
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rules:
    """What counts as a finding. `equivalence` is δ, in the metric's units; None: not tested."""

    alpha: float = 0.05
    correction: str = "holm"
    test: str = "auto"
    equivalence: float | None = None

    @classmethod
    def of(
        cls,
        alpha: float | str = 0.05,
        correction: str = "holm",
        test: str = "auto",
        equivalence: float | str | None = None,
    ) -> Rules:
        """The rules from values or their text; ResultsError, the key first, for what is neither."""
        if correction not in statistics.ADJUST:
            allowed = sorted(statistics.ADJUST)
            raise refuse("correction", correction, "no such correction", allowed)
        if test not in TESTS:
            raise refuse("test", test, "no such test", TESTS)
        share = _number("alpha", alpha, "a number above 0 and below .5", lambda a: 0 < a < 0.5)
        if equivalence in (None, "", "null"):
            return cls(share, correction, test)
        wanted = "a difference that would matter, above 0 and finite, or null"
        margin = _number("equivalence", equivalence, wanted, lambda d: 0 < d < math.inf)
        return cls(share, correction, test, margin)


def verdicts(
    results: Results,
    metrics: str | Sequence[str] = "eval/accuracy",
    equivalence: float | str | None = None,
    alpha: float | str = 0.05,
    correction: str = "holm",
    test: str = "auto",
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """Each arm's final value of each metric against its study's baseline: VERDICT_COLUMNS.

    `correction`: holm, bonferroni, bh, none. `test`: auto (paired t, or Welch's t where fewer than
    two seeds are shared), paired_t, sign_flip, welch, permutation. `rng` draws patterns where there
    are too many to count; the default gives the same table every time. A study without baseline
    runs has no verdicts, an arm without values a row without numbers. The frame's `attrs` keep
    alpha and equivalence.
    """
    rules = Rules.of(alpha, correction, test, equivalence)
    source = rng or np.random.default_rng(0)
    names = list(dict.fromkeys([metrics] if isinstance(metrics, str) else metrics))
    values = [run_values(results, metric) for metric in names]
    pairs = [pair for table in values for pair in _pairs(table, rules.test, source)]
    rows: list[dict[str, object]] = []
    for study in dict.fromkeys(pair.study for pair in pairs):
        rows += _family([pair for pair in pairs if pair.study == study], rules)
    judged = pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))
    judged.attrs = {"alpha": rules.alpha, "equivalence": rules.equivalence}
    return judged


@dataclass(frozen=True)
class _Pair:
    """An arm and its baseline: final values [n] and [m], by seed where the test is a paired one."""

    study: str
    metric: str
    arm: str
    baseline: str
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


def _pairs(values: pd.DataFrame, test: str, rng: np.random.Generator) -> list[_Pair]:
    """Every arm with its study's baseline, in the order of the studies and their arms."""
    found = []
    for _, runs in values.groupby("study"):
        arms = list(arms_of(runs))
        base = next((entry for entry in arms if entry[2]), None)
        for study, arm, baseline, group in arms:
            if base is None or baseline:
                continue
            x, y, chosen = _samples(_by_seed(group), _by_seed(base[3]), test)
            found.append(
                _Pair(
                    study,
                    str(values["metric"].iloc[0]),
                    arm,
                    base[1],
                    x,
                    y,
                    chosen,
                    seed=int(rng.integers(2**63)),
                    runs=len(group),
                    failed=_failed(group),
                    baseline_runs=len(base[3]),
                    baseline_failed=_failed(base[3]),
                )
            )
    return found


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


def _family(pairs: Sequence[_Pair], rules: Rules) -> list[dict[str, object]]:
    """The rows of one study: its corrections are over all of them."""
    adjust = statistics.ADJUST[rules.correction]
    p = np.array([pair.compare(1 - rules.alpha).p for pair in pairs])
    corrected = adjust(p)
    alphas = statistics.interval_alphas(p, corrected, rules.correction, rules.alpha)
    margin = rules.equivalence
    equal = np.array([pair.equivalence_p(margin) if margin else np.nan for pair in pairs])
    surely_equal = adjust(equal)
    rows = []
    for i, pair in enumerate(pairs):
        found = pair.compare(1 - alphas[i])
        verdict = _verdict(pair, found.delta, corrected[i], surely_equal[i], rules.alpha)
        level = 1 - alphas[i]
        if verdict == "equivalent":
            # the two one-sided tests at this row's step of the correction: 1 − 2α, α = .05 · p/p'
            share = rules.alpha * equal[i] / surely_equal[i] if surely_equal[i] else rules.alpha
            level = 1 - 2 * share
            found = pair.compare(level)
        rows.append(
            _row(pair, found, level)
            | {"p_corrected": corrected[i], "correction": rules.correction, "verdict": verdict}
        )
    return rows


def _row(pair: _Pair, found: Comparison, level: float) -> dict[str, object]:
    kind = "student-t" if found.test.endswith(" t") else found.test
    lost = ""
    if pair.failed or pair.baseline_failed:
        lost = (
            f"; failed: {pair.failed} of {pair.runs}, "
            f"baseline {pair.baseline_failed} of {pair.baseline_runs}"
        )
    return {
        "study": pair.study,
        "metric": pair.metric,
        "arm": pair.arm,
        "baseline": pair.baseline,
        "n": found.n,
        "mean": pair.x.mean() if len(pair.x) else np.nan,
        "baseline_mean": pair.y.mean() if len(pair.y) else np.nan,
        "delta": found.delta,
        "low": found.low,
        "high": found.high,
        "interval": f"{kind} {100 * level:.6g}%",
        "test": found.test + lost,
        "p": found.p,
    }


def _verdict(pair: _Pair, delta: float, p: float, equal: float, alpha: float) -> str:
    gain = delta if describe(pair.metric).higher_is_better else -delta
    claim = "undecided"
    if equal < alpha:  # NaN is not below
        claim = "equivalent"
    elif p < alpha:
        claim = "better" if gain > 0 else "worse"
    lost, theirs = pair.failed * pair.baseline_runs, pair.baseline_failed * pair.runs
    if (lost > theirs and claim in ("better", "equivalent")) or (
        lost < theirs and claim in ("worse", "equivalent")
    ):
        return "undecided"
    return claim


def _by_seed(group: pd.DataFrame) -> pd.Series[float]:
    return usable(group).set_index("seed")["final"].sort_index()


def _failed(group: pd.DataFrame) -> int:
    """Runs that failed or ended without a finite value; unfinished ones are not counted."""
    done = group["status"] == "done"
    diverged = done & ~np.isfinite(group["final"].to_numpy(dtype=float))
    return int(((group["status"] == "failed") | diverged).sum())


def _number(key: str, given: object, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(str(given))
    except ValueError:
        number = math.nan
    if not fits(number):
        raise ResultsError(f"{key}={given}: {wanted} is needed")
    return number
