"""The command's files, from either source, and the thin scripts beside it."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpolab.results import figures
from grpolab.results.analyze import analyze, script_input, summary
from grpolab.results.load import ResultsError

SCRIPTS = Path(__file__).parents[2] / "analysis"


def test_everything_is_written_where_it_says(output_dir: Path, tmp_path: Path) -> None:
    output = analyze(output_dir=output_dir, sweep="first", out=tmp_path / "out", figures="usual")
    written = {str(path.relative_to(output.out)) for path in output.out.rglob("*.*")}
    kinds = ("png", "pdf", "svg", "caption.txt")
    drawn = {f"figures/{n}.{k}" for n in figures.USUAL for k in kinds}
    names = ("arms.csv", "arms.md", "verdicts.csv", "verdicts.md", "verdicts.tex")
    tables = {f"tables/{name}" for name in names}
    assert written == {"verdicts.csv", "runs.csv"} | tables | drawn
    assert {*output.tables, *output.figures, output.verdicts_csv, output.runs_csv} == {
        output.out / name for name in written
    }
    rows = list(csv.DictReader(output.runs_csv.open()))
    assert [row["status"] for row in rows].count("failed") == 1
    assert {row["job_id"]: row["final"] for row in rows}["clip-none-1"] == ""
    verdicts = list(csv.DictReader(output.verdicts_csv.open()))
    assert [row["verdict"] for row in verdicts] == ["undecided", "undecided"]


def test_both_sources_write_the_same_files(
    output_dir: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    files = analyze(output_dir=output_dir, sweep="first", out=tmp_path / "files", figures="usual")
    store = analyze(uri=mlflow_uri, sweep="first", out=tmp_path / "store", figures="usual")
    for path in sorted(files.out.rglob("*.*")):
        same = store.out / path.relative_to(files.out)
        assert path.read_bytes() == same.read_bytes(), path.name


def test_default_folder_is_named_after_the_sweep(output_dir: Path) -> None:
    one: dict[str, Any] = {"output_dir": output_dir, "figures": "final_comparison"}
    output = analyze(**one, sweep="latest")
    assert output.out == output_dir / "analysis" / "second"
    assert analyze(**one, study="kl").out == output_dir / "analysis" / "kl"
    # the analysis of one call is no study to the next
    assert analyze(**one, sweep="latest").out == output.out


def test_summary_and_table_for_reading(output_dir: Path, tmp_path: Path) -> None:
    output = analyze(
        output_dir=output_dir, sweep="latest", out=tmp_path, figures="final_comparison"
    )
    text = summary(output)
    assert text.startswith("4 runs (3 done, 1 missing)\n")
    assert "clip=gspo" in text
    assert text.endswith(f"written to {tmp_path}")
    assert "| clipping | clip=gspo | 1 of 2 | 0.200 |" in output.tables[1].read_text()


def test_nothing_is_written_for_a_bad_request(output_dir: Path, tmp_path: Path) -> None:
    for wrong in ({"sweep": "thrid"}, {"sweep": "first", "metric": "eval/acc"}, {}):
        with pytest.raises(ResultsError):
            analyze(output_dir=output_dir, out=tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_several_metrics_are_one_family(output_dir: Path, tmp_path: Path) -> None:
    one = analyze(output_dir=output_dir, sweep="first", out=tmp_path / "one", figures="forest")
    both = analyze(
        output_dir=output_dir, sweep="first", out=tmp_path / "both",
        metric="[eval/accuracy, reward/mean]", figures="[forest,learning_curves]",
    )  # fmt: skip
    names = {path.stem for path in both.figures if path.suffix == ".png"}
    assert names == {"forest", "forest_reward_mean", "learning_curves"}
    assert both.verdicts["metric"].tolist() == ["eval/accuracy"] * 2 + ["reward/mean"] * 2
    # Holm over twice as many comparisons; NaN where an arm has one run
    twice = both.verdicts["p_corrected"][:2] >= one.verdicts["p_corrected"]
    assert (twice | one.verdicts["p_corrected"].isna()).all()
    assert both.runs["metric"].value_counts().to_dict() == {"eval/accuracy": 6, "reward/mean": 6}
    assert both.arms["metric"].tolist() == ["eval/accuracy"] * 3 + ["reward/mean"] * 3
    assert both.tables[1].read_text().count("| study | arm |") == 2
    assert summary(both).startswith("6 runs (5 done, 1 failed)\n")


def test_a_filter_has_a_folder_of_its_own(output_dir: Path) -> None:
    where = "factor.clip in ['ppo', 'none']"
    found = analyze(output_dir=output_dir, sweep="first", where=where, figures="forest")
    assert found.out == output_dir / "analysis" / "first_where_factor.clip_in_ppo_none"
    assert found.verdicts["arm"].tolist() == ["clip=none"]
    with pytest.raises(ResultsError, match=r"^metric=eval/accuracy: .* there are no runs$"):
        analyze(output_dir=output_dir, sweep="first", where="seed == 7", figures="forest")
    with pytest.raises(ResultsError, match=r"^where=.*nearest: seed"):
        script_input([f"output_dir={output_dir}", "sweep=first", "where=sed == 1"])


def test_arguments_of_scripts(output_dir: Path) -> None:
    given = script_input([f"output_dir={output_dir}", "sweep=null", "study=kl", "out=d"])
    assert (given.metrics, given.out) == (("eval/accuracy",), Path("d"))
    assert set(given.results.runs["study"]) == {"kl"}
    with pytest.raises(ResultsError, match=r"^sweeep=a: .*nearest: sweep$"):
        script_input(["sweeep=a"])
    with pytest.raises(ResultsError, match=r"^sweep=1e5: "):
        script_input([f"output_dir={output_dir}", "sweep=1e5"])


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("learning_curves", "learning_curves.pdf"),
        ("final_comparison", "final_comparison.pdf"),
        ("tables", "arms.md"),
    ],
)
def test_scripts_run(script: str, expected: str, output_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), "sweep=first"]
    subprocess.run([*command, f"output_dir={output_dir}", f"out={tmp_path}"], check=True)
    assert (tmp_path / expected).stat().st_size > 100
