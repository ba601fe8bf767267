"""Both sources give the same frames, and nothing a run did is dropped or repaired in silence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from grpolab.results.frames import HISTORY_COLUMNS, RUN_COLUMNS
from grpolab.results.from_files import read_metrics
from grpolab.results.from_mlflow import overrides
from grpolab.results.load import Results, ResultsError, load

if TYPE_CHECKING:  # the same file under the name the type checker knows it by
    from tests.results.synthetic_sweep import FIRST, Job, write_files
else:
    from synthetic_sweep import FIRST, Job, write_files


def by_metric(path: Path) -> dict[str, dict[int, float]]:
    """{metric: {step: value}} of a metrics.jsonl."""
    found = read_metrics(path)
    steps = {name: (found.of(name)[0].tolist(), found.of(name)[1].tolist()) for name in found.names}
    return {name: dict(zip(*pair, strict=True)) for name, pair in steps.items()}


def test_runs_hold_identity_status_and_factors(first: Results) -> None:
    factors = ["factor.clip", "factor.kl", "factor.seed"]
    assert list(first.runs.columns) == [*RUN_COLUMNS, *factors]
    assert len(first.runs) == len(FIRST)
    row = first.runs.set_index("job_id").loc["clip-cispo_kl-k3-1"]
    expected = ["clipping", "first", "clip=cispo,kl=k3", False, 1, "done", "cispo", "k3"]
    names = ["study", "sweep", "arm", "baseline", "seed", "status", "factor.clip", "factor.kl"]
    assert list(row[names]) == expected
    assert first.runs["arm"].iloc[0] == "baseline"
    assert first.runs["baseline"].dtype == bool
    assert first.runs["seed"].dtype == "int64"


def test_failed_run_is_a_row_with_its_reason_and_its_history(first: Results) -> None:
    failed = first.runs[first.runs["status"] == "failed"]
    assert list(failed["job_id"]) == ["clip-none-1"]
    assert list(failed["reason"]) == ["loss is not finite at step 26"]
    assert first.history.loc[first.history["job_id"] == "clip-none-1", "step"].max() == 25


def test_history_values_and_x_columns(first: Results) -> None:
    assert list(first.history.columns) == list(HISTORY_COLUMNS)
    one = first.history[
        (first.history["job_id"] == "baseline-1") & (first.history["metric"] == "eval/accuracy")
    ].set_index("step")
    assert list(one.index) == list(range(0, 51, 5))
    # step 0 is evaluated before a token is generated; afterwards 100 tokens and 3 s a step
    assert list(one["tokens"]) == [100.0 * step for step in one.index]
    assert list(one["wall"]) == [3.0 * step for step in one.index]
    assert one.loc[50, "value"] == 0.64


def test_not_finite_numbers_survive(first: Results) -> None:
    odd = first.history[(first.history["job_id"] == "baseline-0") & (first.history["step"] == 3)]
    values = odd.set_index("metric")["value"]
    assert math.isnan(values["optim/grad_norm"])
    assert values["policy/ratio_max"] == math.inf
    assert values["kl/ref_k1"] == -math.inf


def test_mlflow_gives_the_same_frames(first: Results, mlflow_uri: str) -> None:
    stored = load(uri=mlflow_uri, sweep="first")
    pd.testing.assert_frame_equal(stored.runs, first.runs)
    pd.testing.assert_frame_equal(stored.history, first.history)


def test_mlflow_by_study_latest_and_all(mlflow_uri: str) -> None:
    assert set(load(uri=mlflow_uri, sweep="latest").runs["sweep"]) == {"other"}
    assert set(load(uri=mlflow_uri, study="clipping").runs["sweep"]) == {"first"}
    everything = load(uri=mlflow_uri).runs
    assert len(everything) == len(FIRST) + 2
    assert set(everything["study"]) == {"clipping", "kl"}


def test_mlflow_merges_attempts_at_one_job(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("s")
    tags = {"grpolab.job_id": "a", "grpolab.arm": "baseline", "grpolab.seed": "3"}
    for start, steps, status in ((1, (1, 2), "KILLED"), (2, (2, 3), "FINISHED")):
        run = client.create_run(experiment, start_time=start, tags=tags).info.run_id
        for step in steps:
            client.log_metric(run, "reward/mean", 10 * start + step, step=step)
        client.set_terminated(run, status)
    found = load(uri=uri)
    assert list(found.runs["status"]) == ["done"]
    assert list(found.history["value"]) == [11, 22, 23]
    assert found.history["tokens"].isna().all()


def test_latest_sweep_reuses_runs_and_lists_missing_jobs(output_dir: Path) -> None:
    latest = load(output_dir=output_dir, sweep="latest")
    assert set(latest.runs["sweep"]) == {"second"}
    assert dict(zip(latest.runs["job_id"], latest.runs["status"], strict=True)) == {
        "baseline-0": "done",
        "baseline-1": "done",
        "clip-gspo-0": "done",
        "clip-gspo-1": "missing",
    }
    # a job that never started is known by its overrides alone
    assert latest.runs.set_index("job_id").loc["clip-gspo-1", "factor.clip"] == "gspo"
    assert "clip-gspo-1" not in set(latest.history["job_id"])


def test_latest_within_a_study_and_a_whole_study(output_dir: Path) -> None:
    assert set(load(output_dir=output_dir, sweep="latest", study="kl").runs["sweep"]) == {"other"}
    study = load(output_dir=output_dir, study="clipping").runs
    assert len(study) == len(FIRST) + 2
    assert list(study.loc[study["status"] == "missing", "job_id"]) == ["clip-gspo-1"]
    assert set(load(output_dir=output_dir).runs["study"]) == {"clipping", "kl"}


def test_factor_of_a_reused_run_comes_from_its_config(tmp_path: Path) -> None:
    write_files(tmp_path, FIRST[:1], "a", "2026-01-01")
    folder = tmp_path / "clipping"
    run = json.loads((folder / "baseline-0" / "run.json").read_text()) | {"factors": {}}
    (folder / "baseline-0" / "run.json").write_text(json.dumps(run))
    manifest = json.loads((folder / "sweeps" / "a.json").read_text())
    manifest["jobs"][0]["overrides"] = []
    (folder / "sweeps" / "a.json").write_text(json.dumps(manifest))
    runs = load(output_dir=tmp_path, sweep="a").runs
    assert list(runs["factor.clip"]) == ["ppo"]


def test_unreadable_status_is_a_row_that_says_so(tmp_path: Path) -> None:
    write_files(tmp_path, FIRST[:1], "a", "2026-01-01")
    (tmp_path / "clipping" / "baseline-0" / "STATUS").write_text('{"sta')
    runs = load(output_dir=tmp_path, sweep="a").runs
    assert list(runs["status"]) == ["pending"]
    assert "STATUS" in runs["reason"].iloc[0]


def test_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "metrics": {"a": 1}}\n{"step": 2, "metrics": {"a": 2')
    assert by_metric(path) == {"a": {1: 1.0}}


def test_line_behind_a_torn_one_is_recovered_and_the_later_value_wins(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "metrics": {"a": 1}}\n'
        '{"step": 2, "met{"step": 1, "metrics": {"a": 5}}\n'
        '{"step": 2, "metrics": {"a": "NaN", "b": "Infinity"}}\n'
    )
    points = by_metric(path)
    assert points["a"][1] == 5.0
    assert math.isnan(points["a"][2])
    assert points["b"] == {2: math.inf}


def test_other_unreadable_lines_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('nonsense\n{"step": 1, "metrics": {"a": 1}}\n')
    with pytest.raises(ResultsError, match=r"metrics\.jsonl:1: not a JSON line"):
        read_metrics(path)


def test_unknown_names_are_refused_with_the_nearest(output_dir: Path, mlflow_uri: str) -> None:
    with pytest.raises(ResultsError, match=r"^sweep=secnd: .*there is: .*nearest: second$"):
        load(output_dir=output_dir, sweep="secnd")
    with pytest.raises(ResultsError, match=r"^sweep=frist: .*nearest: first$"):
        load(uri=mlflow_uri, sweep="frist")
    with pytest.raises(ResultsError, match=r"^study=cliping: .*nearest: clipping$"):
        load(output_dir=output_dir, study="cliping")
    with pytest.raises(ResultsError, match=r"^study=cliping: .*nearest: clipping$"):
        load(uri=mlflow_uri, study="cliping")


def test_no_folder_and_no_sweep_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"^output_dir=.*nowhere: no such folder$"):
        load(output_dir=tmp_path / "nowhere")
    with pytest.raises(ResultsError, match=r"^sweep=latest: no sweep was run .*nothing$"):
        load(output_dir=tmp_path, sweep="latest")


def test_a_run_without_metrics_gives_an_empty_history_of_the_same_columns(tmp_path: Path) -> None:
    write_files(tmp_path, [Job("baseline", 0, 0.5, state="missing")], "a", "2026-01-01")
    history = load(output_dir=tmp_path, sweep="a").history
    assert list(history.columns) == list(HISTORY_COLUMNS)
    assert len(history) == 0
    assert history["value"].dtype == np.float64


def test_commas_inside_brackets_belong_to_an_arms_value() -> None:
    assert overrides("clip=none,task.terms=[1,2],kl=k3") == [
        ("clip", "none"),
        ("task.terms", "[1,2]"),
        ("kl", "k3"),
    ]
    assert overrides("baseline") == []
