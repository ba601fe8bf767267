"""The parquet files of a study: the same verdicts to the last digit, in few bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from grpolab.cli import main
from grpolab.results import kept
from grpolab.results.analyze import analyze
from grpolab.results.frames import ResultsError
from grpolab.results.load import Results, load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(output_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole study, with a failed run and one that never started, through the script."""
    place = tmp_path_factory.mktemp("kept") / "clipping"
    done = subprocess.run(
        [sys.executable, "experiments/keep.py", "study=clipping", f"output_dir={output_dir}",
         f"out={place}", "every=4"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.startswith("8 runs, ")
    return place


def test_runs_come_back_whole(folder: Path, output_dir: Path) -> None:
    before, after = load(output_dir=output_dir, study="clipping"), load(kept=folder)
    pd.testing.assert_frame_equal(after.runs, before.runs)
    assert sorted(after.runs["status"].unique()) == ["done", "failed", "missing"]


def test_evaluations_are_exact_with_their_x(folder: Path, output_dir: Path) -> None:
    before, after = load(output_dir=output_dir, study="clipping"), load(kept=folder)
    for metric in ("eval/accuracy", "eval/pass@8"):
        one, other = (
            r.history[r.history["metric"] == metric].astype({"job_id": str, "metric": str})
            for r in (before, after)
        )
        columns = ["job_id", "seed", "step", "metric", "value", "tokens", "wall"]
        pd.testing.assert_frame_equal(
            one[columns].reset_index(drop=True), other[columns].reset_index(drop=True)
        )
        assert len(one) > 60


def test_a_filter_goes_with_it(folder: Path) -> None:
    found = load(kept=folder, where="status == 'failed' and metric == 'eval/accuracy'")
    assert list(found.runs["arm"]) == ["clip=none"]
    assert set(found.history["metric"]) == {"eval/accuracy"}


def test_other_metrics_are_thinned(folder: Path) -> None:
    history = load(kept=folder, runs=["baseline-0"]).history
    reward = history[history["metric"] == "reward/mean"]
    # every fourth step, and every fifth, where there is an evaluation; the first logged step is 1
    assert reward["step"].tolist() == [s for s in range(1, 51) if s % 4 == 0 or s % 5 == 0]
    assert (reward["value"] == reward["value"].astype(np.float32)).all()
    assert (reward["tokens"] == 100.0 * reward["step"]).all()


def test_the_same_verdicts_to_the_byte(folder: Path, output_dir: Path, tmp_path: Path) -> None:
    before = analyze(
        output_dir=output_dir, study="clipping", out=tmp_path / "a", figures=["forest"],
        equivalence=0.05,
    )  # fmt: skip
    after = analyze(kept=folder, out=tmp_path / "b", figures=["forest"], equivalence=0.05)
    assert len(before.verdicts) == 3
    assert after.verdicts_csv.read_bytes() == before.verdicts_csv.read_bytes()
    assert after.runs_csv.read_bytes() == before.runs_csv.read_bytes()


def test_by_the_command_line(folder: Path, tmp_path: Path) -> None:
    words = ["analyze", f"kept={folder}", f"out={tmp_path}", "figures=[forest]"]
    assert main([*words, "where=status != 'failed'"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "verdicts.csv", "runs.csv", "tables", "figures",
    }  # fmt: skip
    assert "failed" not in (tmp_path / "runs.csv").read_text()


def test_whole_metrics_stay_exact(first: Results, tmp_path: Path) -> None:
    made = kept.write(first, tmp_path, [], every=50, whole=["reward/mean"])
    after = load(kept=tmp_path)
    one, other = (r.history[r.history["metric"] == "reward/mean"] for r in (first, after))
    assert other["value"].tolist() == one["value"].tolist()
    assert other["tokens"].tolist() == one["tokens"].tolist()
    assert made.points < made.points_before
    assert "policy/ratio_max" not in set(after.history["metric"])


def test_not_a_number_and_infinities_survive(first: Results, tmp_path: Path) -> None:
    kept.write(first, tmp_path, ["optim/grad_norm", "policy/ratio_max", "kl/ref_k1"], every=1)
    after = load(kept=tmp_path).history.set_index("metric")["value"]
    assert np.isnan(after["optim/grad_norm"])
    assert after["policy/ratio_max"] == np.inf
    assert after["kl/ref_k1"] == -np.inf


def test_small(tmp_path: Path) -> None:
    """48 runs of 60 steps with evaluations every 5 stay below 300 kB."""
    rng = np.random.default_rng(0)
    names = [*kept.USUAL, "tokens/generated", "time/wall", "eval/accuracy", "eval/pass@4"]
    rows = [(j, m, s) for j in range(48) for m in range(len(names)) for s in range(61)
            if s % 5 == 0 or not names[m].startswith("eval/")]  # fmt: skip
    job, metric, step = (np.array(column) for column in zip(*rows, strict=True))
    values = rng.standard_normal(len(rows))
    accuracy = np.char.startswith(np.array(names)[metric], "eval/")
    values[accuracy] = np.round(np.abs(values[accuracy]) * 128) / 128
    jobs = [f"{number:012x}" for number in range(48)]
    runs = pd.DataFrame(
        {"study": "one", "sweep": "s", "job_id": jobs, "arm": [f"arm{i // 6}" for i in range(48)],
         "baseline": [i < 6 for i in range(48)], "seed": [i % 6 for i in range(48)],
         "status": "done", "reason": None}
    )  # fmt: skip
    history = pd.DataFrame(
        {"study": "one", "job_id": np.array(jobs)[job], "arm": "a", "seed": 0, "step": step,
         "metric": np.array(names)[metric], "value": values, "tokens": 0.0, "wall": 0.0}
    )  # fmt: skip
    made = kept.write(Results(runs, history), tmp_path)
    assert made.points > 15_000
    assert made.size < 300_000


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("runs.parquet", None, "there is no runs.parquet"),
        ("history.parquet", b"PAR1 nothing", "history.parquet is no parquet"),
    ],
)
def test_what_is_missing_or_broken(
    first: Results, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    kept.write(first, tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ResultsError, match=said):
        load(kept=tmp_path)


def test_wrong_names(first: Results, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"study=cliping: .*nearest: clipping"):
        load(kept=folder, study="cliping")
    with pytest.raises(ResultsError, match="uri=sqlite:///x is given, too"):
        load(kept=folder, uri="sqlite:///x")
    with pytest.raises(ResultsError, match=r"whole=reward/men.*nearest: reward/mean"):
        kept.write(first, tmp_path, whole=["reward/men"])
    with pytest.raises(ResultsError, match="every=0"):
        kept.write(first, tmp_path, every=0)
    assert list(tmp_path.iterdir()) == []


def test_the_script_refuses(tmp_path: Path) -> None:
    for words, said in (
        (["study=x"], "out: a folder is needed"),
        (["study=x", f"out={tmp_path}", "evry=3"], "evry: unknown key"),
        (["study=x", f"out={tmp_path}", f"output_dir={tmp_path}"], "study=x: no such study"),
    ):
        done = subprocess.run(
            [sys.executable, "experiments/keep.py", *words],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 2
        assert said in done.stderr
    assert list(tmp_path.iterdir()) == []
