"""What each part of the ladder adds, in every order, out of one full factorial design.

    python experiments/dapo_ladder/effects.py kept=FOLDER out=FOLDER [metric=eval/pass@1]

Reads the study's runs (`kept`: runs.parquet and history.parquet) and writes `effects.csv`: for each
part its difference within each seed

- `alone`: switched on first, all else off: the first rung of a ladder that begins with it
- `last`: switched on last, all else on: what leaving it out costs
- `main`: the mean over all settings of the others

the interactions of pairs, and the rungs of every possible ladder (`rung`), each with a paired t
interval and Holm over all rows of its kind. `contributions.png` shows the first three.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd

from grpolab.cli.inspect import key_values
from grpolab.component import ConfigError
from grpolab.results import statistics, style
from grpolab.results.figures.common import INTERVAL
from grpolab.results.frames import Results, ResultsError
from grpolab.results.load import load
from grpolab.results.metrics import describe
from grpolab.results.summary import arms_of, run_values, usable

KEYS = {
    "kept": "folder of the study's runs.parquet and history.parquet",
    "out": "folder for effects.csv and the figure",
    "metric": "the outcome (eval/pass@1)",
}
LEVEL = 0.95
KINDS = {"alone": "first: nothing else on", "last": "last: all else on", "main": "mean over all"}
Cells = dict[frozenset[str], npt.NDArray[np.float64]]


def cells(results: Results, metric: str) -> tuple[list[str], Cells]:
    """The parts' names, and {parts that are on: final values [seeds]} in the order of the seeds."""
    found: Cells = {}
    for _, arm, baseline, group in arms_of(run_values(results, metric)):
        on = frozenset() if baseline else frozenset(arm.split(","))
        found[on] = usable(group).sort_values("seed")["final"].to_numpy(dtype=float)
    parts = sorted(frozenset().union(*found))
    sizes = {len(own) for own in found.values()}
    if len(found) != 2 ** len(parts) or len(sizes) != 1:
        raise ResultsError(
            f"kept: {len(found)} arms with {sorted(sizes)} finished seeds given; needed: every "
            f"combination of {', '.join(parts)}, each with the same seeds"
        )
    return parts, found


def effects(parts: Sequence[str], found: Cells) -> pd.DataFrame:
    """One row an effect: kind, what, delta, low, high, p, p_holm."""
    everything = frozenset(parts)
    arms = list(found)
    levels = [[1 if part in on else -1 for part in parts] for on in arms]
    values = np.array([found[on] for on in arms])
    factorial = statistics.factorial_effects(levels, values, list(parts), LEVEL)
    rows = []
    for part in parts:
        one = frozenset([part])
        rows += [
            ("alone", part, statistics.paired(found[one], found[frozenset()], LEVEL)),
            ("last", part, statistics.paired(found[everything], found[everything - one], LEVEL)),
            ("main", part, factorial[part]),
        ]
    rows += [("interaction", name, own) for name, own in factorial.items() if name not in parts]
    rows += list(rungs(parts, found))
    table = pd.DataFrame(
        [
            {"kind": k, "what": w, "delta": c.delta, "low": c.low, "high": c.high, "p": c.p}
            for k, w, c in rows
        ]
    )
    holm = {str(kind): statistics.holm(g["p"].to_numpy()) for kind, g in table.groupby("kind")}
    table = table.sort_values("kind", kind="stable", ignore_index=True)
    return table.assign(p_holm=np.concatenate([holm[kind] for kind in sorted(holm)]))


def rungs(parts: Sequence[str], found: Cells) -> Iterator[tuple[str, str, statistics.Comparison]]:
    """What each part adds after each set of others: the rungs of all ladders, each once."""
    for part in parts:
        others = [other for other in parts if other != part]
        for size in range(len(parts)):
            for chosen in combinations(others, size):
                before = frozenset(chosen)
                added = statistics.paired(found[before | {part}], found[before], LEVEL)
                yield "rung", f"{part} after {', '.join(chosen) or 'nothing'}", added


def draw(table: pd.DataFrame, metric: str, seeds: int) -> tuple[matplotlib.figure.Figure, str]:
    """Each part's contribution by where in the ladder it stands, and the caption."""
    parts = list(dict.fromkeys(table.loc[table["kind"] == "main", "what"]))
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN * 0.75, 0.9 + 0.5 * len(parts))
        axes = figure.subplots()
        axes.axvline(0, color="0.5", lw=0.7)
        for i, (kind, label) in enumerate(KINDS.items()):
            rows = table[table["kind"] == kind].set_index("what").loc[parts]
            look = style.nth_style(i, label)
            at = np.arange(len(parts)) + 0.22 * (i - 1)
            spread = [rows["delta"] - rows["low"], rows["high"] - rows["delta"]]
            axes.errorbar(
                rows["delta"], at, xerr=spread, fmt=look.marker, color=look.colour, ms=4,
                lw=1.0, capsize=2, label=label,
            )  # fmt: skip
        axes.set_yticks(range(len(parts)), parts)
        axes.invert_yaxis()
        axes.set_xlabel(f"Difference in {describe(metric).in_a_sentence}")
        axes.legend(loc="best")
    caption = (
        f"What each part adds to final {describe(metric).in_a_sentence} switched on first, last, "
        f"and on average over all settings of the other parts: paired differences over {seeds} "
        f"seeds; bars: {INTERVAL}, uncorrected."
    )
    return figure, caption


def main(words: Sequence[str]) -> int:
    """Writes the table and the figure; 2 and a sentence for what cannot be read."""
    try:
        given = key_values(words, KEYS)
        if not given.keys() >= {"kept", "out"}:
            raise ConfigError("out: kept and out are needed")
        metric = given.get("metric", "eval/pass@1")
        parts, found = cells(load(kept=given["kept"]), metric)
    except (ConfigError, ResultsError) as error:
        print(error, file=sys.stderr)
        return 2
    table = effects(parts, found)
    folder = Path(given["out"])
    table.to_csv(folder / "effects.csv", index=False)
    figure, caption = draw(table, metric, len(found[frozenset()]))
    style.save(figure, folder, "contributions", caption, kinds=("png",))
    print(table.round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
