"""SQL, MLflow's client and files give one and the same; a store is only read; caches only help."""

from __future__ import annotations

import math
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import grpolab.results
from grpolab.results import cache, from_mlflow
from grpolab.results.load import Results, ResultsError, load
from grpolab.results.points import Points, merged, points
from grpolab.results.sql_store import SqlStore, sqlite_path
from grpolab.results.store import ClientStore, StoredRun


def assert_same(one: Results, other: Results) -> None:
    pd.testing.assert_frame_equal(one.runs, other.runs)
    pd.testing.assert_frame_equal(one.history, other.history)


def file_of(uri: str) -> Path:
    path = sqlite_path(uri)
    assert path is not None
    return path


@pytest.fixture
def store(mlflow_uri: str, tmp_path: Path) -> Path:
    """A copy of the synthetic study's store, to do things to."""
    return Path(shutil.copy(file_of(mlflow_uri), tmp_path / "mlflow.db"))


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, of however few points."""
    monkeypatch.setenv("GRPOLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SMALLEST", 1)
    return tmp_path / "cache" / "results"


def uri_of(path: Path) -> str:
    return f"sqlite:///{path}"


# -- three sources ---------------------------------------------------------------------------------


def test_sql_client_and_files_agree(
    first: Results, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_sql = load(uri=mlflow_uri, sweep="first")
    monkeypatch.setattr(from_mlflow, "SqlStore", lambda path: ClientStore(mlflow_uri))
    monkeypatch.setattr(from_mlflow, "sqlite_path", lambda uri: None)
    by_client = load(uri=mlflow_uri, sweep="first")
    assert_same(by_sql, by_client)
    assert_same(by_sql, first)
    assert len(first.history) > 900


def test_sql_does_not_import_mlflow(mlflow_uri: str, tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys, grpolab.results as r; found = r.load(uri=sys.argv[1], sweep='first'); "
        "print(len(found.runs), 'mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, mlflow_uri], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["6", "False"]


def test_the_package_itself_loads(output_dir: Path) -> None:
    found = grpolab.results.load(output_dir=output_dir, sweep="first", runs="baseline-1")
    assert isinstance(found, grpolab.results.Results)
    assert list(found.runs["job_id"]) == ["baseline-1"]
    with pytest.raises(grpolab.results.ResultsError, match=r"^runs=basline-1: .*nearest: base"):
        load(output_dir=output_dir, sweep="first", runs=["basline-1"])


def test_metrics_jsonl_alone_is_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "study" / "abc"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 2, "metrics": {"a": 1, "b": "-Infinity"}}\n')
    found = load(output_dir=tmp_path)
    assert list(found.runs["status"]) == ["pending"]
    assert list(found.history["value"]) == [1.0, -math.inf]


# -- what a store is spared ------------------------------------------------------------------------


def test_a_store_is_read_while_another_writes_and_stays_as_it_is(store: Path) -> None:
    before = (store.read_bytes(), store.stat().st_mtime_ns)
    with closing(sqlite3.connect(store, isolation_level=None)) as writer:
        writer.execute("begin immediate")
        writer.execute("delete from params")  # not committed: readers see what was
        found = load(uri=uri_of(store), sweep="first")
        writer.execute("rollback")
    assert set(found.runs["factor.clip"]) == {"ppo", "cispo", "none"}
    assert (store.read_bytes(), store.stat().st_mtime_ns) == before
    assert {p.name for p in store.parent.iterdir()} <= {"mlflow.db", "cache"}


def test_no_lock_is_held_between_two_runs(store: Path) -> None:
    read = SqlStore(store)
    try:
        (one, *_) = read.runs(list(read.experiments()), "first")
        assert len(read.points(one))
        with closing(sqlite3.connect(store, timeout=0)) as writer:
            writer.execute("delete from tags")
            writer.commit()  # needs the file for itself
    finally:
        read.close()


def test_what_a_kill_left_half_written_is_rolled_back_in_a_copy(store: Path) -> None:
    """A hot journal beside the file: a reader must not roll it back, and must not read past it."""
    whole = load(uri=uri_of(store), sweep="first")
    torn = store.parent / "torn"
    torn.mkdir()
    with closing(sqlite3.connect(store, isolation_level=None)) as writer:
        writer.execute("pragma cache_size = 1")
        writer.execute("begin")
        writer.execute("update metrics set value = 7, step = step + 1000")  # spills to the file
        for name in ("mlflow.db", "mlflow.db-journal"):
            shutil.copy(store.parent / name, torn / name)
        writer.execute("rollback")
    before = {p.name: p.read_bytes() for p in torn.iterdir()}
    assert before["mlflow.db"] != store.read_bytes()
    assert_same(load(uri=uri_of(torn / "mlflow.db"), sweep="first"), whole)
    assert {p.name: p.read_bytes() for p in torn.iterdir()} == before


def test_stores_that_are_not_there_are_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"^uri=sqlite:.*nowhere\.db: no such file$"):
        load(uri=uri_of(tmp_path / "nowhere.db"))
    assert not (tmp_path / "nowhere.db").exists()
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(ResultsError, match=r"text\.db: is no sqlite database"):
        load(uri=uri_of(tmp_path / "text.db"))
    with pytest.raises(ResultsError, match=r"^uri=http://127\.0\.0\.1:9: cannot reach"):
        load(uri="http://127.0.0.1:9")


# -- points ----------------------------------------------------------------------------------------


def test_points_are_put_in_order_and_the_later_of_two_counts() -> None:
    found = points(["b", "a"], [0, 1, 0, 1, 0], [2, 5, 1, 5, 2], [1, 2, 3, 4, 5])
    assert found.names == ("a", "b")
    assert found.of("a")[1].tolist() == [4]
    assert [part.tolist() for part in found.of("b")] == [[1, 2], [3, 5]]
    assert len(found.of("c")[0]) == 0
    other = points(["c", "b"], [0, 1], [0, 1], [9, 8])
    both = merged([found, other])
    assert both.used() == ["a", "b", "c"]
    assert both.of("b")[1].tolist() == [8, 5]


# -- the cache -------------------------------------------------------------------------------------


def test_only_a_changed_run_is_read_again(
    store: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = SqlStore.points

    def counted(self: SqlStore, run: StoredRun) -> Points:
        asked.append(run.run_id)
        return real(self, run)

    monkeypatch.setattr(SqlStore, "points", counted)
    before = load(uri=uri_of(store), sweep="first")
    assert len(asked) == 6
    asked.clear()
    assert_same(load(uri=uri_of(store), sweep="first"), before)
    assert asked == []
    with closing(sqlite3.connect(store)) as writer:
        (run,) = writer.execute(
            "select run_uuid from tags where key = 'grpolab.job_id' and value = 'baseline-1'"
        ).fetchone()
        # an earlier step than the last: the store's latest values stay what they were
        writer.execute(
            "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) "
            "values ('reward/mean', 0.125, 1, ?, 0, 0)", [run],
        )  # fmt: skip
        writer.commit()
    after = load(uri=uri_of(store), sweep="first")
    assert asked == [run]
    assert len(after.history) == len(before.history) + 1
    new = after.history.query("job_id == 'baseline-1' and metric == 'reward/mean' and step == 0")
    assert new["value"].tolist() == [0.125]
    assert len(list(cached.iterdir())) == 1


def test_a_changed_file_is_read_again_and_a_fresh_one_is_never_cached(
    output_dir: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(output_dir, tmp_path / "out")
    monkeypatch.setattr("grpolab.results.from_files._SETTLED_SECONDS", 3600.0)
    load(output_dir=tmp_path / "out", sweep="first")
    assert not cached.exists()
    monkeypatch.setattr("grpolab.results.from_files._SETTLED_SECONDS", 0.0)
    before = load(output_dir=tmp_path / "out", sweep="first")
    assert len(list(cached.iterdir())) == 1
    assert_same(load(output_dir=tmp_path / "out", sweep="first"), before)
    with (tmp_path / "out" / "clipping" / "baseline-0" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "metrics": {"reward/mean": 3.5}}\n')
    after = load(output_dir=tmp_path / "out", sweep="first")
    assert len(after.history) == len(before.history) + 1
    assert after.history.loc[after.history["step"] == 99, "value"].tolist() == [3.5]


@pytest.mark.parametrize("damage", ["text", "torn", "empty", "counts", "names", "version"])
def test_a_corrupt_cache_counts_as_none(store: Path, cached: Path, damage: str) -> None:
    from pyarrow import parquet

    before = load(uri=uri_of(store), sweep="first")
    (path,) = cached.iterdir()
    if damage in ("counts", "names", "version"):
        table = parquet.read_table(path)
        note = table.schema.metadata[b"grpolab"]
        wrong = {
            "counts": note.replace(b'"counts": [', b'"counts": [1, '),
            "names": b'{"version": "1", "names": [], "fingerprints": ["x"], "counts": [%d]}'
            % table.num_rows,
            "version": note.replace(b'"version": "1"', b'"version": "0"'),
        }[damage]
        parquet.write_table(table.replace_schema_metadata({"grpolab": wrong}), path)
    else:
        content = {"text": b"PAR1 nonsense", "torn": path.read_bytes()[:-40], "empty": b""}
        path.write_bytes(content[damage])
    assert cache.read(path) == {}
    assert_same(load(uri=uri_of(store), sweep="first"), before)
    assert cache.read(path) != {}  # and is written anew


def test_a_place_that_cannot_be_written_is_no_matter(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GRPOLAB_CACHE", str(tmp_path / "file"))
    assert len(load(uri=uri_of(store), sweep="first").runs) == 6
    assert (tmp_path / "file").read_text() == "no folder"


def test_few_caches_are_kept(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT", 3)
    own = points(["a"], [0, 0], [1, 2], np.array([1.0, math.nan]))
    for i in range(5):
        cache.write(cache.path_of("source", i), ["x"], [own])
    assert len(list(cached.iterdir())) == 3
    found: Any = cache.read(cache.path_of("source", 4))["x"]
    np.testing.assert_array_equal(found.values, own.values)
