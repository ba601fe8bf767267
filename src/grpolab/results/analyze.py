"""From a sweep to its files: verdicts.csv, runs.csv, figures and tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from grpolab.results import figures as drawing
from grpolab.results.family import METRIC, names_of
from grpolab.results.frames import Results, ResultsError, refuse
from grpolab.results.load import load
from grpolab.results.metrics import decimals
from grpolab.results.summary import (
    arm_table,
    check_metric,
    check_one_study,
    run_values,
)
from grpolab.results.tables import write_verdicts
from grpolab.results.verdicts import Rules, in_words, verdicts
from grpolab.tracking.disk import staged

_SCRIPT_DEFAULTS: dict[str, str | None] = {
    "sweep": "latest",
    "study": None,
    "uri": None,
    "kept": None,
    "where": None,
    "output_dir": "outputs",
    "metric": METRIC,
    "out": "figures",
    "dark": "false",
    "order": None,
    "equivalence": None,
    "correction": "holm",
    "alpha": "0.05",
    "test": "auto",
    "by": None,
}


@dataclass(frozen=True)
class AnalyzeOutput:
    """What `analyze` wrote, and the frames behind it."""

    out: Path
    verdicts_csv: Path
    runs_csv: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    left_out: dict[str, str]
    """Figures that had nothing to show: why, in a sentence."""
    verdicts: pd.DataFrame
    arms: pd.DataFrame
    runs: pd.DataFrame
    source: drawing.Source
    drawn: dict[str, drawing.Drawn]

    def files(self) -> dict[str, Path]:
        """{name below `out`, with slashes: path} of all that was written."""
        paths = (self.verdicts_csv, self.runs_csv, *self.tables, *self.figures)
        return {path.relative_to(self.out).as_posix(): path for path in paths}


def analyze(
    *,
    output_dir: str | Path = "outputs",
    sweep: str | None = None,
    study: str | None = None,
    uri: str | None = None,
    where: str | None = None,
    out: str | Path | None = None,
    metric: str | Sequence[str] = METRIC,
    equivalence: float | str | None = None,
    correction: str = "holm",
    alpha: float | str = 0.05,
    test: str = "auto",
    figures: str | Sequence[str] = "all",
    dark: bool | str = False,
    order: str | Sequence[str] = (),
    kept: str | Path | None = None,
    by: str | Sequence[str] | None = None,
) -> AnalyzeOutput:
    """Load the runs (see `load`) and write their analysis under `out`.

    Default `out`: see `default_out`. `metric`: one, or several (`[eval/accuracy,length/mean]`),
    which are one family to the correction; figures show the first, and what shows a metric is drawn
    for each. `where`: a filter of runs and numbers (see `load`). `equivalence`, `correction`,
    `alpha`, `test` and `by` are the verdicts' (numbers may be text). `figures`: names of FIGURES,
    `usual`, or all that have something to show; `dark`: their variants for dark pages too;
    `order`: config keys, in which a ladder's changes are added where there is a choice. Nothing is
    written if the results, a metric or a figure asked for do not exist or one of these is not
    allowed (ResultsError).
    """
    both = drawing.truth("dark", dark)
    source = compared(
        output_dir=output_dir, sweep=sweep, study=study, uri=uri, where=where, kept=kept,
        metric=metric, equivalence=equivalence, correction=correction, alpha=alpha, test=test,
        by=by, figures=figures, order=order,
    )  # fmt: skip
    results, judged = source.results, source.verdicts
    folder = Path(out) if out is not None else default_out(output_dir, results, sweep, study, where)
    arms = pd.concat([arm_table(results, name) for name in source.metrics], ignore_index=True)
    runs = pd.concat([run_values(results, name) for name in source.metrics], ignore_index=True)
    drawn, left_out = drawing.draw(source, figures)
    with staged(folder) as scratch:
        judged.to_csv(scratch / "verdicts.csv", index=False)
        runs.to_csv(scratch / "runs.csv", index=False)
        tables = [
            *write_tables(arms, scratch / "tables"),
            *write_verdicts(judged, scratch / "tables"),
        ]
        saved = drawing.save(drawn, scratch / "figures", both)
    return AnalyzeOutput(
        out=folder,
        verdicts_csv=folder / "verdicts.csv",
        runs_csv=folder / "runs.csv",
        tables=tuple(folder / path.relative_to(scratch) for path in tables),
        figures=tuple(folder / path.relative_to(scratch) for path in saved),
        left_out=left_out,
        verdicts=judged,
        arms=arms,
        runs=runs,
        source=source,
        drawn=drawn,
    )


def compared(
    *,
    output_dir: str | Path = "outputs",
    sweep: str | None = None,
    study: str | None = None,
    uri: str | None = None,
    where: str | None = None,
    kept: str | Path | None = None,
    metric: str | Sequence[str] = METRIC,
    equivalence: float | str | None = None,
    correction: str = "holm",
    alpha: float | str = 0.05,
    test: str = "auto",
    by: str | Sequence[str] | None = None,
    figures: str | Sequence[str] = "all",
    order: str | Sequence[str] = (),
) -> drawing.Source:
    """The runs and their verdicts, what both `analyze` and the report are made of.

    The keys are `analyze`'s. Raises ResultsError, the key first, for what does not exist or is not
    allowed; wrong rules and figures are refused before the runs are read.
    """
    rules = Rules.of(alpha, correction, test, equivalence, by)
    drawing.chosen(figures)
    metrics = _metrics(metric)
    results = load(output_dir=output_dir, sweep=sweep, study=study, uri=uri, where=where, kept=kept)
    check_one_study(results)
    for name in metrics:
        check_metric(results, name)
    judged = verdicts(results, metrics, **asdict(rules))
    return drawing.Source(results, metrics[0], judged, metrics[1:], names_of(order))


def _metrics(given: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the metrics that are compared; ResultsError if there is none."""
    names = names_of(given)
    if not names:
        raise ResultsError(f"metric={given}: no name given; allowed: one or more metrics")
    return names


def default_out(
    output_dir: str | Path,
    results: Results,
    sweep: str | None,
    study: str | None,
    where: str | None = None,
) -> Path:
    """`<output_dir>/analysis/<sweep or study>`, `latest` under the name of its sweep.

    What a filter chose is no analysis of the whole: its words go into the name.
    """
    name = study or str(results.runs["study"].iloc[0])
    if sweep is not None:
        name = str(results.runs["sweep"].iloc[0])
    if where is not None:
        name += " where " + re.sub(r"[^0-9A-Za-z.=<>!_-]+", " ", where).strip()
    return Path(output_dir) / "analysis" / name.replace(" ", "_")[:150]


def write_tables(arms: pd.DataFrame, folder: Path) -> tuple[Path, ...]:
    """arms.csv (full precision) and arms.md (to read)."""
    folder.mkdir(parents=True, exist_ok=True)
    arms.to_csv(folder / "arms.csv", index=False)
    (folder / "arms.md").write_text(arms_markdown(arms), encoding="utf-8")
    return folder / "arms.csv", folder / "arms.md"


def arms_markdown(arms: pd.DataFrame) -> str:
    """The table of arms as Markdown, one a metric; the interval is Student-t 95 % over seeds."""
    return "\n".join(_arms_of_metric(own) for _, own in arms.groupby("metric", sort=False))


def _arms_of_metric(arms: pd.DataFrame) -> str:
    head = ["study", "arm", "n", "start", "final", "95 % interval", "rise"]
    rows = [
        [
            row["study"],
            row["arm"] + (" (baseline)" if row["baseline"] and row["arm"] != "baseline" else ""),
            str(row["n"]) if row["n"] == row["runs"] else f"{row['n']} of {row['runs']}",
            decimals(row["start"]),
            decimals(row["final"]),
            _span(row["low"], row["high"]),
            decimals(row["rise"], signed=True),
        ]
        for row in arms.to_dict("records")
    ]
    lines = [head, ["---"] * 2 + ["---:"] * 5, *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    metric = arms["metric"].iloc[0]
    note = "mean of the last 10 % of evaluations, Student-t interval over n seeds"
    return f"{table}\n\n{metric}: final = {note}; rise = final - first evaluation.\n"


def summary(output: AnalyzeOutput) -> str:
    """A few lines for the terminal: runs, each arm's verdict in words, where it went."""
    runs = output.source.results.runs
    states = runs["status"].value_counts().sort_index()
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    lines = [f"{len(runs)} runs ({counted})"]
    lines += [f"  {line}" for line in in_words(output.verdicts)]
    if output.verdicts.empty:
        lines.append("  no verdicts: no arm to compare with a baseline")
    if output.left_out:
        lines.append(f"  nothing to draw for {', '.join(output.left_out)} (figures=NAME says why)")
    return "\n".join([*lines, f"written to {output.out}"])


@dataclass(frozen=True)
class ScriptInput:
    """What a script of `analysis/` works on."""

    results: Results
    metrics: tuple[str, ...]
    out: Path
    dark: bool
    rules: Rules
    order: tuple[str, ...] = ()


def script_input(argv: Sequence[str]) -> ScriptInput:
    """`key=value` arguments: sweep (latest), study, uri, kept, output_dir, where, metric, out
    (figures), dark, order, and the verdicts' rules equivalence, correction, alpha, test,
    by.

    Values stay text (a sweep called 1e5 is no number). ResultsError for any other key.
    """
    given: dict[str, str | None] = dict(_SCRIPT_DEFAULTS)
    for argument in argv:
        key, separator, value = argument.partition("=")
        if key not in given or not separator:
            raise refuse(key, value, "no such argument of this script", sorted(given), key)
        given[key] = None if value in ("", "null") else value
    text = {key: given[key] or default for key, default in _SCRIPT_DEFAULTS.items() if default}
    rules = Rules.of(
        text["alpha"], text["correction"], text["test"], given["equivalence"], given["by"]
    )
    newest = given["sweep"] == "latest" and given["kept"] is not None
    results = load(
        output_dir=text["output_dir"],
        sweep=None if newest else given["sweep"],
        study=given["study"],
        uri=given["uri"],
        where=given["where"],
        kept=given["kept"],
    )
    metrics = _metrics(text["metric"])
    for name in metrics:
        check_metric(results, name)
    dark = drawing.truth("dark", text["dark"])
    order = names_of(given["order"])
    return ScriptInput(results, metrics, Path(text["out"]), dark, rules, order)


def draw_script(name: str, argv: Sequence[str]) -> int:
    """A script of `analysis/` that draws the figure of that name; exit code 2 and a sentence."""
    try:
        given = script_input(argv)
        check_one_study(given.results)
        judged = verdicts(given.results, given.metrics, **asdict(given.rules))
        first, *more = given.metrics
        source = drawing.Source(given.results, first, judged, tuple(more), given.order)
        drawn, _ = drawing.draw(source, [name])
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 2
    drawing.save(drawn, given.out, given.dark)
    return 0


def _span(low: object, high: object) -> str:
    both = f"[{decimals(low)}, {decimals(high)}]"
    return "–" if "–" in both else both
