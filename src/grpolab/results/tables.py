"""Verdicts as tables: Markdown to read, CSV to compute with, LaTeX (booktabs, siunitx) to print.

Bold stands for a verdict of better or worse, so never for what merely is the largest number. Under
each table stands what its numbers are: n, interval, test and correction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from grpolab.results.metrics import decimals, spoken
from grpolab.tracking.folder import write_atomically

PREAMBLE = r"% \usepackage{array, booktabs, siunitx, tabularx}"
_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "−": "-", "–": "--", "α": r"$\alpha$",
    "δ": r"$\delta$",
}  # fmt: skip


def write_verdicts(verdicts: pd.DataFrame, folder: Path) -> tuple[Path, ...]:
    """verdicts.md, .csv and .tex under `folder`, each replaced whole."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "verdicts.csv": verdicts.to_csv(index=False),
        "verdicts.md": verdicts_markdown(verdicts),
        "verdicts.tex": verdicts_latex(verdicts),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return tuple(folder / name for name in texts)


def verdicts_markdown(verdicts: pd.DataFrame, digits: int = 3) -> str:
    """The table as Markdown; a row's difference is bold where its verdict is better or worse."""
    head = ["metric", "arm", "n", "mean", "baseline", "difference", "interval", "p", "verdict"]
    lines = [head, ["---"] * 2 + ["---:"] * 6 + ["---"]]
    for row in _rows(verdicts):
        delta = decimals(row["delta"], digits, signed=True)
        lines.append(
            [
                str(row["metric"]),
                _in_markdown(_arm(row, verdicts)),
                str(row["n"]),
                decimals(row["mean"], digits),
                decimals(row["baseline_mean"], digits),
                f"**{delta}**" if significant(row) else delta,
                _span(row, digits),
                p_value(row["p_corrected"]),
                spoken(str(row["verdict"]), str(row["metric"])),
            ]
        )
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{table}\n\n{note(verdicts)}\n"


def verdicts_latex(verdicts: pd.DataFrame, digits: int = 3) -> str:
    """A `table` environment as wide as the text, whose arms break into lines.

    Needs booktabs, siunitx and tabularx (the first line says so). Metrics, if several, head their
    rows; one alone is named in the caption.
    """
    number, signed = f"S[table-format=1.{digits}]", f"S[table-format=+1.{digits}]"
    metrics = list(dict.fromkeys(map(str, verdicts["metric"])))
    lines = [
        PREAMBLE,
        r"\begin{table}",
        r"  \centering",
        r"  \sisetup{detect-weight, mode=text}",
        r"  \footnotesize",
        r"  \setlength{\tabcolsep}{3pt}",
        rf"  \begin{{tabularx}}{{\textwidth}}{{@{{}}{_ARM} r {number} {signed} c r l@{{}}}}",
        r"    \toprule",
        r"    arm & $n$ & {mean} & {difference} & interval & $p$ & verdict \\",
    ]
    for metric in metrics:
        lines.append(r"    \midrule")
        if len(metrics) > 1:
            lines.append(rf"    \multicolumn{{7}}{{@{{}}l}}{{{latex(metric)}}} \\")
        own = verdicts[verdicts["metric"] == metric]
        lines += ["    " + " & ".join(_cells(row, own, digits)) + r" \\" for row in _rows(own)]
    about = f"{latex(metrics[0])}. " if len(metrics) == 1 else ""
    return "\n".join(
        [
            *lines,
            r"    \bottomrule",
            r"  \end{tabularx}",
            rf"  \caption{{{about}{latex(note(verdicts))}}}",
            r"\end{table}",
            "",
        ]
    )


_ARM = r">{\raggedright\arraybackslash\hangindent=1em}X"


def _cells(row: Mapping[Any, Any], verdicts: pd.DataFrame, digits: int) -> list[str]:
    """A row of the LaTeX table."""
    delta = _tex_number(row["delta"], digits, signed=True)
    return [
        _breakable(latex(_arm(row, verdicts))),
        str(row["n"]),
        _tex_number(row["mean"], digits),
        rf"\bfseries {delta}" if significant(row) else delta,
        latex(_span(row, digits)).replace("[-", "[$-$").replace(", -", ", $-$"),
        latex(p_value(row["p_corrected"])).replace(r"\textless{}", "$<$"),
        spoken(str(row["verdict"]), str(row["metric"])),
    ]


def _breakable(text: str) -> str:
    """Overrides that may go on in the next line behind each comma, =, dot and underscore."""
    return re.sub(r"(,|=|\.|\\_)(?=.)", r"\1\\allowbreak{}", text)


def note(verdicts: pd.DataFrame) -> str:
    """What the numbers are, as sentences: baseline, n, interval, test, correction, bold."""
    if verdicts.empty:
        return "No arm to compare with a baseline."
    counts = sorted({int(n) for n in verdicts["n"]})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lost = [
        f"{row['arm']} {failed}"
        for row in _rows(verdicts)
        if (failed := str(row["test"]).partition("; failed: ")[2])
    ]
    intervals = [
        str(kind) for kind in dict.fromkeys(verdicts["interval"]) if str(kind) not in ("", "nan")
    ]
    parts = [
        f"Final values (mean of the last 10 % of evaluations) of n = {n} runs an arm against "
        f"{_and(dict.fromkeys(verdicts['baseline']))}",
        *rules_in_words(verdicts),
        f"interval of the difference: {_and(intervals)}" if intervals else "no intervals",
        "bold: better or worse after correction",
        *([f"failed runs, left out of n: {'; '.join(dict.fromkeys(lost))}"] if lost else []),
    ]
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def rules_in_words(verdicts: pd.DataFrame) -> list[str]:
    """How p came about: the test, the correction, and over how many comparisons."""
    tests = dict.fromkeys(str(test).partition("; failed: ")[0] for test in verdicts["test"])
    by = _and(dict.fromkeys(verdicts["correction"]))
    many = f"{len(verdicts)} comparison{'s' * (len(verdicts) > 1)}"
    return [f"test: {_and(tests)}; p corrected by {by} over {many}"]


def significant(row: Mapping[Any, Any]) -> bool:
    """Whether a row's difference is set in bold."""
    return row["verdict"] in ("better", "worse")


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def _in_markdown(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*").replace("_", r"\_")


def _rows(verdicts: pd.DataFrame) -> Sequence[dict[Any, Any]]:
    return verdicts.to_dict("records")


def _arm(row: Mapping[Any, Any], verdicts: pd.DataFrame) -> str:
    several = len(verdicts["study"].unique()) > 1
    return f"{row['study']}: {row['arm']}" if several else str(row["arm"])


def _tex_number(value: object, digits: int, signed: bool = False) -> str:
    shown = decimals(value, digits, signed)
    return "{--}" if shown == "–" else shown  # an S column takes text only in braces


def _span(row: Mapping[Any, Any], digits: int) -> str:
    low, high = (decimals(row[end], digits, signed=True) for end in ("low", "high"))
    return "–" if "–" in (low, high) else f"[{low}, {high}]"


def p_value(value: object) -> str:
    """A p to three decimals, `<.001` below; a dash for none."""
    number = float(str(value))
    if not math.isfinite(number):
        return "–"
    return "<.001" if number < 0.001 else f"{number:.3f}"


def _and(words: Iterable[object]) -> str:
    listed = [str(word) for word in words]
    return listed[0] if len(listed) == 1 else ", ".join(listed[:-1]) + " and " + listed[-1]
