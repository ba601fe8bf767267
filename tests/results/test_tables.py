"""Tables of verdicts: bold only where something was found, and a note that says what they are."""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from grpolab.results.tables import latex, note, verdicts_latex, verdicts_markdown, write_verdicts
from grpolab.results.verdicts import VERDICT_COLUMNS


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        ("clip=a_b", 8, 0.61, 0.5, 0.11, 0.05, 0.17, "paired t", 0.0001, 0.0002, "better"),
        ("clip=c", 8, 0.69, 0.5, 0.19, -0.05, 0.43, "paired t", 0.1, 0.1, "undecided"),
        ("clip=d", 0, *[math.nan] * 5, "paired t; failed: 8 of 8, baseline 0 of 8",
         math.nan, math.nan, "undecided"),
    ]  # fmt: skip
    full = [
        ("s", "eval/pass@8", arm, "baseline", n, mean, base, delta, low, high,
         "student-t 98.3333%", test, p, corrected, "holm", verdict)
        for arm, n, mean, base, delta, low, high, test, p, corrected, verdict in rows
    ]  # fmt: skip
    return pd.DataFrame(full, columns=list(VERDICT_COLUMNS))


def test_markdown(table: pd.DataFrame) -> None:
    lines = verdicts_markdown(table).splitlines()
    assert lines[2] == (
        r"| eval/pass@8 | clip=a\_b | 8 | 0.610 | 0.500 | **+0.110** | [+0.050, +0.170] "
        "| <.001 | better |"
    )
    # the largest difference is not found, so it is not bold
    assert "| +0.190 | [-0.050, +0.430] | 0.100 | undecided |" in lines[3]
    assert lines[4] == "| eval/pass@8 | clip=d | 0 | – | – | – | – | – | undecided |"
    assert {line.count("|") for line in lines[:5]} == {10}


def test_latex(table: pd.DataFrame) -> None:
    text = verdicts_latex(table)
    rows = [line.strip() for line in text.splitlines() if line.endswith(r"\\")]
    assert rows[1] == (
        r"clip=\allowbreak{}a\_\allowbreak{}b & 8 & 0.610 & \bfseries +0.110 & [+0.050, +0.170] & "
        r"$<$.001 & better \\"
    )
    assert text.count(r"\bfseries") == 1
    assert "[$-$0.050, +0.430]" in rows[2]
    # an S column takes what is no number only in braces
    assert rows[3].count("{--}") == 2
    assert {row.count(" & ") for row in rows} == {6}
    for command in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{command}") == 1
    assert text.count("{") == text.count("}")
    caption = re.search(r"\\caption\{(.*)\}", text)
    assert caption
    assert caption[1].startswith("eval/pass@8. Final values")
    assert r"10 \% of evaluations" in caption[1]


def test_several_metrics_head_their_rows(table: pd.DataFrame) -> None:
    text = verdicts_latex(pd.concat([table, table.assign(metric="length/mean")]))
    heads = [line.strip() for line in text.splitlines() if "multicolumn" in line]
    assert heads == [
        rf"\multicolumn{{7}}{{@{{}}l}}{{{metric}}} \\" for metric in ("eval/pass@8", "length/mean")
    ]
    assert text.count(r"\midrule") == 2
    assert text.count("clip=") == 7  # six rows, and the caption's arm that failed, once


def test_special_characters() -> None:
    assert latex(r"a_b & 50% {x} \y #1 $2 ~ ^") == (
        r"a\_b \& 50\% \{x\} \textbackslash{}y \#1 \$2 \textasciitilde{} \textasciicircum{}"
    )


def test_the_note_says_n_interval_test_and_correction(table: pd.DataFrame) -> None:
    text = note(table)
    for part in ("n = 0 to 8 runs", "student-t 98.3333%", "paired t", "holm over 3 comparisons",
                 "Test: paired t; p corrected",
                 "left out of n: clip=d 8 of 8, baseline 0 of 8.",
                 "Bold: better or worse after correction"):  # fmt: skip
        assert part in text
    empty = table.iloc[:0]
    assert note(empty) == "No arm to compare with a baseline."
    assert verdicts_latex(empty).count(r"\\") == 1


def test_files(table: pd.DataFrame, tmp_path: Path) -> None:
    made = write_verdicts(table, tmp_path / "t")
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "verdicts.csv", "verdicts.md", "verdicts.tex",
    ]  # fmt: skip
    read = pd.read_csv(io.StringIO(made[0].read_text()))
    pd.testing.assert_frame_equal(read, table)


LONG = "advantage=leave_one_out,aggregation=seq_mean_token_sum_norm,clip=two_sided,clip.high=0.28"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
@pytest.mark.parametrize("page", ["article", "twocolumn"])
def test_latex_compiles_within_the_page(page: str, table: pd.DataFrame, tmp_path: Path) -> None:
    long = table.assign(arm=[LONG, LONG + ",kl=k3", "clip=d"], metric="length/mean")
    verdicts = verdicts_latex(pd.concat([table, long]))
    if page == "twocolumn":
        verdicts = verdicts.replace("{table}", "{table*}")
    options = "[twocolumn]" if page == "twocolumn" else ""
    preamble = verdicts.splitlines()[0].removeprefix("% ")
    text = rf"\documentclass{options}{{article}}{preamble}\begin{{document}}" + "\n" + verdicts
    (tmp_path / "page.tex").write_text(text + r"\end{document}" + "\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "page.pdf").stat().st_size > 1000
    assert "Overfull" not in done.stdout
