"""A store alone knows what its sweeps planned: reused jobs, jobs never started, the newest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from grpolab.results import from_mlflow
from grpolab.results.frames import Results, ResultsError
from grpolab.results.load import load
from grpolab.results.store import ClientStore
from grpolab.tracking.listing import COUNT, CREATED, LONGEST, listing_of, listing_tags
from grpolab.tracking.mlflow import default_uri

if TYPE_CHECKING:
    from tests.results.synthetic_sweep import (
        FIRST,
        SECOND,
        Job,
        manifest_of,
        write_files,
        write_mlflow,
    )
else:
    from synthetic_sweep import FIRST, SECOND, Job, manifest_of, write_files, write_mlflow

OTHER = [Job("baseline", 0, 0.4), Job("kl=k2", 0, 0.5)]


def tags_of(jobs: list[Job], sweep: str, created: str, study: str = "clipping") -> dict[str, str]:
    done_before = {job.job_id for job in jobs if sweep == "second" and job in FIRST}
    return listing_tags(manifest_of(jobs, sweep, created, study), done_before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the files of `output_dir` were logged to, the sweep asked for last before the others."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('listed') / 'mlflow.db'}"
    second = tags_of(SECOND, "second", "2026-01-02T10:00:00+00:00")
    write_mlflow(uri, SECOND, "second", tags=second, before=FIRST)
    write_mlflow(uri, FIRST, "first", tags=tags_of(FIRST, "first", "2026-01-01T10:00:00+00:00"))
    other = tags_of(OTHER, "other", "2026-01-01T12:00:00+00:00", "kl")
    write_mlflow(uri, OTHER, "other", study="kl", tags=other)
    return uri


def assert_same(one: Results, other: Results) -> None:
    pd.testing.assert_frame_equal(one.runs, other.runs)
    pd.testing.assert_frame_equal(one.history, other.history)


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {"sweep": "first"},
        {"sweep": "second"},
        {"sweep": "latest"},
        {"sweep": "latest", "study": "kl"},
        {"study": "clipping"},
        {},
    ],
)
def test_a_store_gives_what_the_files_give(
    asked: dict[str, Any],
    client: bool,
    output_dir: Path,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if client:
        monkeypatch.setattr(from_mlflow, "SqlStore", lambda path: ClientStore(store))
        monkeypatch.setattr(from_mlflow, "sqlite_path", lambda uri: None)
    assert_same(load(uri=store, **asked), load(output_dir=output_dir, **asked))


def test_reused_and_missing_jobs_are_rows(store: str) -> None:
    runs = load(uri=store, sweep="latest").runs.set_index("job_id")
    assert set(runs["sweep"]) == {"second"}
    assert runs["status"].to_dict() == {
        "baseline-0": "done",
        "baseline-1": "done",
        "clip-gspo-0": "done",
        "clip-gspo-1": "missing",
    }
    assert runs.loc["clip-gspo-1", "factor.clip"] == "gspo"


def test_a_sweep_of_nothing_but_reused_jobs_is_there(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    write_mlflow(uri, FIRST[:2], "first")
    again = tags_of(FIRST[:2], "second", "2100-01-01T10:00:00+00:00")
    write_mlflow(uri, FIRST[:2], "second", tags=again, before=FIRST)
    for sweep in ("second", "latest"):
        runs = load(uri=uri, sweep=sweep).runs
        assert list(runs["sweep"]) == ["second", "second"]
        assert list(runs["status"]) == ["done", "done"]
    with pytest.raises(ResultsError, match=r"^sweep=secnd: .*nearest: second$"):
        load(uri=uri, sweep="secnd")


def test_a_run_that_is_not_listed_is_still_a_row(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    write_mlflow(uri, FIRST, "first", tags=tags_of(FIRST[:3], "first", "2026-01-01T00:00:00+00:00"))
    assert len(load(uri=uri, sweep="first").runs) == len(FIRST)


def test_sync_gives_a_store_the_list(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from grpolab.sweep.sync import _find_parent

    write_files(tmp_path, FIRST, "first", "2026-01-01T10:00:00+00:00")
    write_files(tmp_path, SECOND, "second", "2026-01-02T10:00:00+00:00")
    path = tmp_path / "clipping" / "sweeps" / "second.json"
    uri = default_uri(tmp_path)
    run_id = _find_parent(path, uri, tmp_path, home=True)
    assert json.loads(path.read_text())["parent_run_id"] == run_id
    assert _find_parent(path, uri, tmp_path, home=True) == run_id
    found = listing_of(MlflowClient(tracking_uri=uri).get_run(run_id).data.tags)
    assert found is not None
    assert found.created == "2026-01-02T10:00:00+00:00"
    assert {job.job_id for job in found.jobs if job.reused} == {"baseline-0", "baseline-1"}
    assert set(load(uri=uri, sweep="second").runs["status"]) == {"missing"}  # none is there yet


def test_the_manifest_names_the_run_of_its_own_store_alone(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from grpolab.sweep.sync import _find_parent
    from grpolab.tracking.mlflow import make_schema

    write_files(tmp_path, FIRST, "first", "2026-01-01T10:00:00+00:00")
    path = tmp_path / "clipping" / "sweeps" / "first.json"
    home = default_uri(tmp_path)
    ours = _find_parent(path, home, tmp_path, home=True)
    make_schema(tmp_path / "team.db")
    team = f"sqlite:///{tmp_path / 'team.db'}"
    theirs = _find_parent(path, team, tmp_path, home=False)
    assert theirs != ours
    assert json.loads(path.read_text())["parent_run_id"] == ours
    # each store's own is found again, whatever the manifest names, and none is made twice
    assert _find_parent(path, team, tmp_path, home=False) == theirs
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parent_run_id": theirs}))
    assert _find_parent(path, home, tmp_path, home=True) == ours
    assert json.loads(path.read_text())["parent_run_id"] == ours
    for uri in (home, team):
        client = MlflowClient(tracking_uri=uri)
        (experiment,) = [e for e in client.search_experiments() if e.name == "clipping"]
        assert len(client.search_runs([experiment.experiment_id])) == 1


@pytest.mark.parametrize("damage", [{COUNT: "7"}, {COUNT: "x"}, {f"{COUNT}.0": '{"jobs":'}])
def test_a_list_that_is_not_whole_counts_as_none(damage: dict[str, str], tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tags = tags_of(SECOND, "second", "2026-01-02T10:00:00+00:00") | damage
    write_mlflow(uri, SECOND, "second", tags=tags)
    assert list(load(uri=uri, sweep="second").runs["job_id"]) == [
        "baseline-0",
        "baseline-1",
        "clip-gspo-0",
    ]


def test_a_long_list_comes_back_from_its_parts() -> None:
    jobs = [Job(f"clip=none,note=ü{arm}", seed, 0.5) for arm in range(100) for seed in range(20)]
    manifest = json.loads(json.dumps(manifest_of(jobs, "long", "2026-01-01T10:00:00+00:00")))
    tags = listing_tags(manifest, {jobs[5].job_id})
    assert max(map(len, tags.values())) == LONGEST < 5000
    assert all(len(value.encode()) <= LONGEST for value in tags.values())
    found = listing_of(tags)
    assert found is not None
    assert found.created == tags[CREATED] == "2026-01-01T10:00:00+00:00"
    assert [job.job_id for job in found.jobs] == [job.job_id for job in jobs]
    assert [job.reused for job in found.jobs] == [i == 5 for i in range(2000)]
    assert found.jobs[21].arm == "clip=none,note=ü1"
    assert found.jobs[21].factors == {"clip": "none", "kl": "none", "note": "ü1"}
