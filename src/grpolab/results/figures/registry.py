"""The figures by name: what `grpolab analyze figures=[…]` and the scripts of `analysis/` draw."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from grpolab.results import style
from grpolab.results.family import names_of
from grpolab.results.figures.common import Drawn, NothingToDrawError
from grpolab.results.figures.cost import step_time, threshold
from grpolab.results.figures.curves import learning_curves, learning_curves_caption
from grpolab.results.figures.diagnostics import clip_shares, entropy, lengths, ratios
from grpolab.results.figures.difficulty import advantage_by_difficulty
from grpolab.results.figures.factors import factorial, sensitivity
from grpolab.results.figures.final import final_comparison, final_comparison_caption
from grpolab.results.figures.forest import forest
from grpolab.results.figures.kl import kl_estimators, kl_frontier
from grpolab.results.figures.ladder import ladder
from grpolab.results.figures.scores import pass_at_k, performance_profile
from grpolab.results.frames import Results, refuse

USUAL = ("forest", "learning_curves", "final_comparison")  # seconds matter when a sweep ends
CURVE_METRICS = ("reward/mean", "eval/accuracy", "eval/pass@1")


@dataclass(frozen=True)
class Source:
    """What a figure is drawn from: the runs, the metric compared, its verdicts.

    `more`: further metrics that are compared; what shows one metric is drawn for each. `order`: of
    a ladder's changes, as config keys.
    """

    results: Results
    metric: str
    verdicts: pd.DataFrame
    more: tuple[str, ...] = ()
    order: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that are compared."""
        return (self.metric, *self.more)


@dataclass(frozen=True)
class Entry:
    """A figure: how it is drawn from a source, what it shows, and whether that is the metric."""

    draw: Callable[[Source], Drawn]
    about: str
    of_metric: bool = False


def curve_metrics(results: Results, *metrics: str) -> list[str]:
    """The rows of the learning curves: the usual metrics that were logged, and `metrics`."""
    logged = set(results.history["metric"])
    return [name for name in dict.fromkeys([*CURVE_METRICS, *metrics]) if name in logged]


def _forest(source: Source) -> Drawn:
    judged = source.verdicts[source.verdicts["metric"] == source.metric]
    return forest(judged, source.verdicts.attrs.get("equivalence"))


def _learning_curves(source: Source) -> Drawn:
    metrics = curve_metrics(source.results, source.metric, *source.more)
    if not metrics:
        listed = " or ".join(dict.fromkeys([*CURVE_METRICS, source.metric, *source.more]))
        raise NothingToDrawError(f"figures=learning_curves: no run logged {listed}")
    return Drawn(
        learning_curves(source.results, metrics), learning_curves_caption(source.results, metrics)
    )


def _final_comparison(source: Source) -> Drawn:
    return Drawn(
        final_comparison(source.results, source.metric),
        final_comparison_caption(source.results, source.metric),
    )


FIGURES: dict[str, Entry] = {
    "forest": Entry(_forest, "Δ against the baseline, verdicts", True),
    "learning_curves": Entry(_learning_curves, "metrics against step, tokens and wall time"),
    "final_comparison": Entry(_final_comparison, "final value of each arm", True),
    "clip_shares": Entry(lambda s: clip_shares(s.results), "tokens whose gradient a clip changed"),
    "ratios": Entry(lambda s: ratios(s.results), "spread and maximum of the ratio, its ESS"),
    "entropy": Entry(lambda s: entropy(s.results), "entropy, and reward against entropy"),
    "kl_estimators": Entry(lambda s: kl_estimators(s.results), "k1, k2 and k3 on one axis"),
    "kl_frontier": Entry(
        lambda s: kl_frontier(s.results, s.metric), "final value against √KL", True
    ),
    "lengths": Entry(lambda s: lengths(s.results), "completion lengths and truncation"),
    "sensitivity": Entry(
        lambda s: sensitivity(s.results, s.metric), "a swept number's effect", True
    ),
    "step_time": Entry(lambda s: step_time(s.results), "seconds of a step by phase"),
    "factorial": Entry(lambda s: factorial(s.results, s.metric), "two crossed factors", True),
    "performance_profile": Entry(
        lambda s: performance_profile(s.results, s.metric), "share of runs above each score", True
    ),
    "ladder": Entry(
        lambda s: ladder(s.results, s.metric, s.order),
        "changes added one after the other, both orders, one taken back",
        True,
    ),
    "advantage_by_difficulty": Entry(
        lambda s: advantage_by_difficulty(s.results), "mean |A| by success rate, f_G(p) and theory"
    ),
    "threshold": Entry(
        lambda s: threshold(s.results, s.metric), "tokens and time to a level", True
    ),
    "pass_at_k": Entry(lambda s: pass_at_k(s.results), "final pass@k against k"),
}


def chosen(names: str | Sequence[str]) -> tuple[list[str], bool]:
    """Figure names (see `names_of`), and whether each was asked for.

    `all` and `usual` (those drawn when a sweep ends) ask for none by name. Raises ResultsError for
    a name that is not registered, or without any.
    """
    wanted = list(names_of(names))
    if not wanted:
        raise refuse("figures", names, "no name given", list(FIGURES))
    if wanted == ["all"]:
        return list(FIGURES), False
    if wanted == ["usual"]:
        return list(USUAL), False
    for name in wanted:
        if name not in FIGURES:
            raise refuse("figures", name, "no such figure", list(FIGURES))
    return wanted, True


def draw(
    source: Source, names: str | Sequence[str] = "all"
) -> tuple[dict[str, Drawn], dict[str, str]]:
    """The figures of those names (see `chosen`), and why others could not be drawn.

    Of the metrics after the first, a figure bears the metric in its name: forest_length_mean.
    A figure asked for by name that has nothing to show raises NothingToDrawError; otherwise it is
    left out, with its sentence.
    """
    wanted, asked = chosen(names)
    drawn, left_out = {}, {}
    for name in wanted:
        entry = FIGURES[name]
        for metric in (source.metric, *(source.more if entry.of_metric else ())):
            first = metric == source.metric
            key = name if first else f"{name}_{re.sub(r'[^0-9A-Za-z@]+', '_', metric)}"
            try:
                drawn[key] = entry.draw(source if first else replace(source, metric=metric))
            except NothingToDrawError as error:
                if asked:
                    raise
                left_out[key] = str(error)
    return drawn, left_out


def save(drawn: dict[str, Drawn], folder: Path, dark: bool = False) -> tuple[Path, ...]:
    """Write each figure with its caption; `dark`: its variants for dark pages too."""
    paths: list[Path] = []
    for name, (figure, caption) in drawn.items():
        paths += style.save(figure, folder, name, caption, dark)
    return tuple(paths)


def truth(key: str, given: bool | str) -> bool:
    """`true` or `false` of a command line as a bool; ResultsError for anything else."""
    known = {"true": True, "false": False}
    text = str(given).lower()
    if text not in known:
        raise refuse(key, given, "neither true nor false", list(known))
    return known[text]
