"""Verdicts: each arm against its study's baseline, by rules fixed before any result is seen.

- One value a run, the mean of a metric's last 10 % of evaluations; the seed is the unit. Runs are
  paired by seed where at least two seeds are shared, else two unpaired samples.
- `by` names swept factors that are not what is asked about: each arm is then compared with the arm
  that has its values of those and the baseline's of all others (`by=updates_per_batch`: none
  against ppo, both with 1 update, both with 4, …).
- All comparisons of a study, over arms and metrics, are one family: `correction` holds over them.
- `equivalent`: two one-sided tests reject a difference of δ or more, either way, after the same
  correction. It goes before better and worse: below δ a difference does not matter, however sure.
- `better`, `worse`: the corrected p is below α, in the direction that the metric calls better.
- `dunnett` is a test of its own: one error pooled over all arms, in blocks of the seeds that they
  all share (of two at least, else unpaired); several metrics are put together by Bonferroni.
- Each row's interval is at the level its correction leaves it, which `interval` names. It excludes
  0 exactly where the corrected p is below α; where both one-sided tests reject it is instead
  their 1 − 2α interval and lies within (−δ, δ).
- A run that failed, was pruned by a search, or whose final value is not finite has no value, so
  its seed leaves n, means and p. It is not forgotten: what is left are survivors. An arm that lost
  a larger share of its runs than the baseline is not called better or equivalent, one that lost a
  smaller share is not called worse or equivalent, and `test` says how many failed. Unfinished runs
  only lower n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from grpolab.results import statistics
from grpolab.results.family import METRIC, names_of
from grpolab.results.frames import Results, ResultsError, refuse
from grpolab.results.metrics import describe
from grpolab.results.pairs import TESTS, Array, Pair, pairs_of
from grpolab.results.statistics import Comparison, Dunnett
from grpolab.results.summary import run_values
from grpolab.results.words import in_words

__all__ = ["VERDICT_COLUMNS", "Rules", "in_words", "verdicts"]

VERDICT_COLUMNS = (
    "study", "metric", "arm", "baseline", "n", "mean", "baseline_mean", "delta", "low", "high",
    "interval", "test", "p", "p_corrected", "correction", "verdict",
)  # fmt: skip
DUNNETT = "dunnett"


@dataclass(frozen=True)
class Rules:
    """What counts as a finding. `equivalence` is δ, in the metric's units; None: not tested."""

    alpha: float = 0.05
    correction: str = "holm"
    test: str = "auto"
    equivalence: float | None = None
    by: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        alpha: float | str = 0.05,
        correction: str = "holm",
        test: str = "auto",
        equivalence: float | str | None = None,
        by: str | Sequence[str] | None = None,
    ) -> Rules:
        """The rules from values or their text; ResultsError, the key first, for what is neither."""
        corrections = sorted([*statistics.ADJUST, DUNNETT])
        if correction not in corrections:
            raise refuse("correction", correction, "no such correction", corrections)
        if test not in TESTS:
            raise refuse("test", test, "no such test", TESTS)
        if correction == DUNNETT and test != "auto":
            raise refuse("test", test, "correction=dunnett has a test of its own", ["auto"])
        factors = names_of(by)
        if factors and correction == DUNNETT:
            problem = "correction=dunnett compares all arms with one baseline"
            raise refuse("by", ",".join(factors), problem, ["null"])
        share = _number("alpha", alpha, "a number above 0 and below .5", lambda a: 0 < a < 0.5)
        if equivalence in (None, "", "null"):
            return cls(share, correction, test, None, factors)
        wanted = "a difference that would matter, above 0 and finite, or null"
        margin = _number("equivalence", equivalence, wanted, lambda d: 0 < d < math.inf)
        return cls(share, correction, test, margin, factors)


def verdicts(
    results: Results,
    metrics: str | Sequence[str] = METRIC,
    equivalence: float | str | None = None,
    alpha: float | str = 0.05,
    correction: str = "holm",
    test: str = "auto",
    rng: np.random.Generator | None = None,
    by: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Each arm's final value of each metric against its study's baseline: VERDICT_COLUMNS.

    `correction`: holm, bonferroni, bh, dunnett, none. `test`: auto (paired t, or Welch's t where
    fewer than two seeds are shared), paired_t, sign_flip, welch, permutation. `rng` draws patterns
    where there are too many to count; the default gives the same table every time. `by`: factors
    within whose levels arms are compared, as a list or separated by commas. A study without
    baseline runs has no verdicts, an arm without values a row without numbers. The frame's `attrs`
    keep alpha, equivalence and by.
    """
    rules = Rules.of(alpha, correction, test, equivalence, by)
    source = rng or np.random.default_rng(0)
    names = list(dict.fromkeys([metrics] if isinstance(metrics, str) else metrics))
    values = [run_values(results, metric) for metric in names]
    pairs = [pair for table in values for pair in pairs_of(table, rules.test, source, rules.by)]
    rows: list[dict[str, object]] = []
    for study in dict.fromkeys(pair.study for pair in pairs):
        family = [pair for pair in pairs if pair.study == study]
        judge = _dunnett if rules.correction == DUNNETT else _each
        rows += [_row(judged, rules) for judged in judge(family, rules)]
    judged = pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))
    judged.attrs = {"alpha": rules.alpha, "equivalence": rules.equivalence, "by": rules.by}
    return judged


@dataclass(frozen=True)
class _Judged:
    """A comparison whose interval is at the level that its correction leaves it."""

    pair: Pair
    found: Comparison
    interval: str
    corrected: float
    equivalent: bool
    x: Array
    y: Array


def _each(pairs: Sequence[Pair], rules: Rules) -> Iterable[_Judged]:
    """Every arm by its own test, corrected over all of a study's comparisons."""
    adjust, alpha, margin = statistics.ADJUST[rules.correction], rules.alpha, rules.equivalence
    p = np.array([pair.compare(1 - alpha).p for pair in pairs])
    corrected = adjust(p)
    alphas = statistics.interval_alphas(p, corrected, rules.correction, alpha)
    equal = np.array([pair.equivalence_p(margin) if margin else np.nan for pair in pairs])
    surely_equal = adjust(equal)
    for i, pair in enumerate(pairs):
        same = bool(surely_equal[i] < alpha)  # NaN is not below
        level = 1 - (_tost_alpha(equal[i], surely_equal[i], alpha) * 2 if same else alphas[i])
        found = pair.compare(level)
        kind = "student-t" if found.test.endswith(" t") else found.test
        yield _Judged(
            pair, found, _interval(kind, level), float(corrected[i]), same, pair.x, pair.y
        )


def _dunnett(pairs: Sequence[Pair], rules: Rules) -> Iterable[_Judged]:
    """All arms of a metric by one test; metrics are put together by Bonferroni."""
    metrics = dict.fromkeys(pair.metric for pair in pairs)
    for metric in metrics:
        yield from _one_dunnett([q for q in pairs if q.metric == metric], rules, len(metrics))


def _one_dunnett(pairs: Sequence[Pair], rules: Rules, metrics: int) -> Iterable[_Judged]:
    there = [pair for pair in pairs if len(pair.by_seed)]
    samples, fit, name = _fit(there)
    missing = len(pairs) - len(there)
    none = np.empty(0)
    if fit is None:
        for pair in pairs:
            x, y = samples.get(pair.arm, (none, none))
            delta = float(x.mean() - y.mean()) if len(x) and len(y) else np.nan
            found = Comparison(delta, np.nan, np.nan, len(x), np.nan, name)
            yield _Judged(pair, found, "", np.nan, False, x, y)
        return
    # an arm that was planned and has no values still counts
    whole = Dunnett(
        fit.delta, fit.error, fit.degrees, np.append(fit.weights, [np.sqrt(0.5)] * missing)
    )
    bound = whole.quantile(1 - rules.alpha / metrics)
    corrected = np.minimum(whole.corrected() * metrics, 1.0)
    equal = _pooled_tost(whole, rules.equivalence)
    surely_equal = statistics.holm(np.append(equal, [np.nan] * (len(pairs) * metrics - len(equal))))
    for pair in pairs:
        if pair.arm not in samples:
            found = Comparison(np.nan, np.nan, np.nan, 0, np.nan, name)
            yield _Judged(pair, found, "", np.nan, False, none, none)
            continue
        i = there.index(pair)
        same = bool(surely_equal[i] < rules.alpha)
        half, interval = bound * fit.error[i], _interval("dunnett", 1 - rules.alpha / metrics)
        if same:
            level = 1 - 2 * _tost_alpha(equal[i], surely_equal[i], rules.alpha)
            half = statistics.t_quantile(level, fit.degrees) * fit.error[i]
            interval = _interval("pooled t", level)
        delta, (x, y) = float(fit.delta[i]), samples[pair.arm]
        p = 2 * float(stats.t.sf(abs(fit.t[i]), fit.degrees))
        found = Comparison(delta, delta - half, delta + half, len(x), p, name)
        yield _Judged(pair, found, interval, float(corrected[i]), same, x, y)


def _fit(pairs: Sequence[Pair]) -> tuple[dict[str, tuple[Array, Array]], Dunnett | None, str]:
    """The values of each arm and the baseline, what fits them, and the test's name."""
    if not pairs or not len(pairs[0].baseline_by_seed):
        return {}, None, "Dunnett t"
    base = pairs[0].baseline_by_seed
    shared = base.index
    for pair in pairs:
        shared = shared.intersection(pair.by_seed.index)
    blocked = len(shared) >= 2
    chosen = [pair.by_seed.loc[shared] if blocked else pair.by_seed for pair in pairs]
    y = np.array(base.loc[shared] if blocked else base, dtype=float)
    arms = [np.array(values, dtype=float) for values in chosen]
    samples = {pair.arm: (x, y) for pair, x in zip(pairs, arms, strict=True)}
    if blocked:
        return samples, statistics.dunnett_blocked(np.array(arms), y), "Dunnett t by seed"
    return samples, statistics.dunnett_unpaired(arms, y), "Dunnett t"


def _pooled_tost(fit: Dunnett, margin: float | None) -> Array:
    """The larger of both one-sided p of each arm, with the pooled error; NaN without a margin."""
    if margin is None:
        return np.full(len(fit.delta), np.nan)
    above = stats.t.sf((fit.delta + margin) / fit.error, fit.degrees)
    below = stats.t.cdf((fit.delta - margin) / fit.error, fit.degrees)
    larger: Array = np.maximum(above, below)
    return larger


def _tost_alpha(p: float, corrected: float, alpha: float) -> float:
    """The α of an equivalence test at its own step of the correction."""
    return alpha * p / corrected if corrected else alpha


def _interval(kind: str, level: float) -> str:
    return f"{kind} {100 * level:.6g}%"


def _row(judged: _Judged, rules: Rules) -> dict[str, object]:
    pair, found = judged.pair, judged.found
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
        "mean": judged.x.mean() if len(judged.x) else np.nan,
        "baseline_mean": judged.y.mean() if len(judged.y) else np.nan,
        "delta": found.delta,
        "low": found.low,
        "high": found.high,
        "interval": judged.interval,
        "test": found.test + lost,
        "p": found.p,
        "p_corrected": judged.corrected,
        "correction": rules.correction,
        "verdict": _verdict(judged, rules.alpha),
    }


def _verdict(judged: _Judged, alpha: float) -> str:
    pair, delta = judged.pair, judged.found.delta
    gain = delta if describe(pair.metric).higher_is_better else -delta
    claim = "undecided"
    if judged.equivalent:
        claim = "equivalent"
    elif judged.corrected < alpha:  # NaN is not below
        claim = "better" if gain > 0 else "worse"
    lost, theirs = pair.failed * pair.baseline_runs, pair.baseline_failed * pair.runs
    if (lost > theirs and claim in ("better", "equivalent")) or (
        lost < theirs and claim in ("worse", "equivalent")
    ):
        return "undecided"
    return claim


def _number(key: str, given: object, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(str(given))
    except ValueError:
        number = math.nan
    if not fits(number):
        raise ResultsError(f"{key}={given}: {wanted} is needed")
    return number
