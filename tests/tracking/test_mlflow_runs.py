"""MLflow: one schema made once, whole steps once each, and a store that goes away."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric
from sqlalchemy import create_engine

from grpolab.component import ConfigError
from grpolab.results.load import load
from grpolab.sweep.compose import Command, expand
from grpolab.sweep.job import run_job
from grpolab.sweep.sync import needs_sync, sync
from grpolab.tracking.folder import RunFolder
from grpolab.tracking.mlflow import (
    METRICS_PER_CALL,
    MlflowRun,
    Point,
    _unsynchronised,
    check_reachable,
    connect,
    default_uri,
    make_ahead,
    make_schema,
    safe_name,
    start_run,
    whole_steps,
)
from grpolab.tracking.sender import NAME, Sender
from grpolab.training.loop import Trainer

SOURCES = Path(__file__).resolve().parents[2] / "src"


def entries(step: int, count: int) -> list[Metric]:
    return [Metric(f"m{i}", float(i), 0, step) for i in range(count)]


# -- names and batches -----------------------------------------------------------------------------


def test_names_are_ones_that_mlflow_accepts() -> None:
    assert safe_name("eval/pass@8") == "eval/pass_at_8"
    assert safe_name("kl/ref_k3") == "kl/ref_k3"


def test_a_small_batch_is_sent_whole() -> None:
    batch = entries(0, 10) + entries(1, 10)
    assert whole_steps(batch) == (batch, [])


@pytest.mark.parametrize("per_step", [1, 7, 40, 333, 999, METRICS_PER_CALL])
def test_a_step_is_never_parted(per_step: int) -> None:
    batch = [
        m for step in range(3 * METRICS_PER_CALL // per_step + 1) for m in entries(step, per_step)
    ]
    sent, rest = [], batch
    while rest:
        part, rest = whole_steps(rest)
        assert 0 < len(part) <= METRICS_PER_CALL
        sent.append({m.step for m in part})
        assert len(part) == per_step * len(sent[-1])
    assert sum(map(len, sent)) == len({m.step for m in batch})


def test_a_step_larger_than_a_call_still_goes_out() -> None:
    batch = entries(0, METRICS_PER_CALL + 5)
    part, rest = whole_steps(batch)
    assert (len(part), len(rest)) == (METRICS_PER_CALL, 5)


# -- the schema ------------------------------------------------------------------------------------


def dump(path: Path) -> list[str]:
    """What makes up a store but for the times in it, in no order, nor its clauses in any."""
    with sqlite3.connect(path) as connection:
        lines = [re.sub(r"\b\d{13}\b", "time", line) for line in connection.iterdump()]
    return sorted("|".join(sorted(re.split(r"[\s,]+", line))) for line in lines)


@pytest.mark.parametrize("ahead", [False, True])
def test_the_schema_made_beside_is_mlflows_own(ahead: bool, tmp_path: Path) -> None:
    if ahead:
        make_ahead(None, tmp_path)
        assert list(tmp_path.iterdir()) == []
    make_schema(tmp_path / "ours.db")
    MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'theirs.db'}").get_experiment_by_name("x")
    assert dump(tmp_path / "ours.db") == dump(tmp_path / "theirs.db")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.db", "theirs.db"]


def test_a_store_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("somebody's")
    make_schema(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_text() == "somebody's"


def test_only_the_scratch_file_is_not_waited_for(tmp_path: Path) -> None:
    with _unsynchronised(tmp_path / "a.db"):
        levels = []
        for name in ("a.db", "b.db"):
            with create_engine(f"sqlite:///{tmp_path / name}").connect() as connection:
                levels.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())
    assert levels == [0, 2]
    with create_engine(f"sqlite:///{tmp_path / 'a.db'}").connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


# -- a real store ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    out = tmp_path_factory.mktemp("store")
    return connect(default_uri(out), out, "study")


def new_run(store: tuple[Any, str]) -> str:
    return start_run(*store, name="a run", tags={"grpolab.arm": "x"}, params={"lr": math.inf})


def sender(store: tuple[Any, str], run_id: str, flush_seconds: float = 60.0) -> Sender:
    made = Sender(lambda: MlflowRun(store[0], run_id), flush_seconds)
    made.start()
    return made


def history(store: tuple[Any, str], run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in store[0].get_metric_history(run_id, name))


def test_every_step_is_stored_once_though_logged_again(store: tuple[Any, str]) -> None:
    run_id = new_run(store)
    first = sender(store, run_id, flush_seconds=0.01)
    for step in range(3):
        first.log(step, {"tokens/generated": float(step), "eval/pass@2": step / 2})
    assert first.finish(lambda run: run.end("KILLED"), 60) is None
    resumed = sender(store, run_id)
    for step in range(1, 5):  # a resumed run goes back to its checkpoint
        resumed.log(step, {"tokens/generated": float(step), "eval/pass@2": step / 2})
    assert resumed.finish(lambda run: run.end("FINISHED"), 60) is None
    assert history(store, run_id, "tokens/generated") == [(s, float(s)) for s in range(5)]
    assert history(store, run_id, "eval/pass_at_2") == [(s, s / 2) for s in range(5)]
    assert store[0].get_run(run_id).info.status == "FINISHED"


def test_a_step_torn_by_a_kill_is_made_whole(store: tuple[Any, str]) -> None:
    run_id = new_run(store)
    store[0].log_batch(run_id, metrics=[Metric("a", 1.0, 0, 0), Metric("a", 2.0, 0, 1)])
    sent = MlflowRun(store[0], run_id).send(
        [Point(step, {"a": step + 1.0, "b": 7.0}, 0.0) for step in range(3)]
    )
    assert sent == 4
    assert history(store, run_id, "a") == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert history(store, run_id, "b") == [(0, 7.0), (1, 7.0), (2, 7.0)]
    assert MlflowRun(store[0], run_id).send([Point(1, {"a": 2.0, "b": 7.0}, 9.0)]) == 0


def test_numbers_that_are_none_are_stored(store: tuple[Any, str]) -> None:
    run_id = new_run(store)
    run = sender(store, run_id)
    run.log(0, {"tokens/generated": 0.0, "a": math.nan, "b": math.inf})
    assert run.finish(lambda run: run.end("FINISHED"), 60) is None
    assert len(history(store, run_id, "tokens/generated")) == 1


def test_params_and_parent(store: tuple[Any, str]) -> None:
    parent = new_run(store)
    child = start_run(
        *store, name="child", tags={}, params={f"p{i}": i for i in range(250)}, parent=parent,
        source="arithmetic (100 rows)",
    )  # fmt: skip
    found = store[0].get_run(child)
    assert found.data.tags["mlflow.parentRunId"] == parent
    assert len(found.data.params) == 250
    assert store[0].get_run(parent).data.params["lr"] == ".inf"


FIRST_CONTACT = """
import sys
from grpolab.tracking.mlflow import MlflowRun, connect, default_uri, start_run
from grpolab.tracking.sender import Sender

out, number = sys.argv[1], sys.argv[2]
client, experiment = connect(default_uri(out), out, "together")
made = start_run(client, experiment, name=number, tags={"number": number}, params={"a": number})
run = Sender(lambda: MlflowRun(client, made), flush_seconds=0.01)
run.start()
for step in range(20):
    run.log(step, {"tokens/generated": float(step), "x": float(number)})
error = run.finish(lambda run: run.end("FINISHED"), 120)
assert error is None, error
"""


def test_sixteen_processes_meet_an_empty_store(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_CONTACT, str(tmp_path), str(number)],
            env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )
        for number in range(16)
    ]  # fmt: skip
    for process in processes:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
    client = MlflowClient(tracking_uri=default_uri(tmp_path))
    (experiment,) = [e for e in client.search_experiments() if e.name == "together"]
    runs = client.search_runs([experiment.experiment_id])
    assert {r.data.tags["number"] for r in runs} == {str(n) for n in range(16)}
    assert {r.info.status for r in runs} == {"FINISHED"}
    for run in runs:
        found = client.get_metric_history(run.info.run_id, "x")
        assert sorted(m.step for m in found) == list(range(20))


# -- a store that goes away ------------------------------------------------------------------------


class Flaky(MlflowRun):
    """A run whose store is away while `away` is set."""

    def __init__(self) -> None:
        self.away = False
        self.sent: list[tuple[int, str]] = []
        self.status = "RUNNING"

    def send(self, points: Sequence[Point]) -> int:
        if self.away and points:
            raise ConnectionError("nobody listens")
        self.sent += [(p.step, name) for p in points for name in p.metrics]
        return len(points)

    def end(self, status: str, reason: str | None = None) -> None:
        if self.away:
            raise ConnectionError("nobody listens")
        self.status = status


def test_what_a_store_missed_is_sent_when_it_is_back() -> None:
    store = Flaky()
    run = Sender(lambda: store)
    run.log(0, {"a": 0.0})
    assert run.send_now()
    store.away = True
    for step in (1, 2):
        run.log(step, {"a": 1.0})
        assert not run.send_now()
    store.away = False
    run.log(3, {"a": 3.0})
    assert run.finish(lambda run: run.end("FINISHED"), 60) is None
    assert store.sent == [(step, "a") for step in range(4)]
    assert store.status == "FINISHED"


def test_a_store_that_stays_away_is_given_up_and_said() -> None:
    store = Flaky()
    store.away = True
    run = Sender(lambda: store, flush_seconds=0.01)
    run.start()
    run.log(0, {"a": 0.0})
    error = run.finish(lambda run: run.end("FINISHED"), 0.5)
    assert error is not None
    assert "nobody listens" in error
    assert store.status == "RUNNING"


def test_a_store_is_met_as_soon_as_it_is_there() -> None:
    tries: list[int] = []
    store = Flaky()

    def meet() -> Flaky:
        tries.append(1)
        if len(tries) < 4:
            raise ConnectionError("nobody listens")
        return store

    run = Sender(meet, flush_seconds=0.01)
    run.log(0, {"a": 0.0})
    assert run.finish(lambda run: run.end("FINISHED"), 60) is None
    assert (len(tries), store.sent, store.status) == (4, [(0, "a")], "FINISHED")


def test_logging_does_not_wait_for_a_store_that_hangs() -> None:
    entered, release = threading.Event(), threading.Event()

    class Hanging(Flaky):
        def send(self, points: Sequence[Point]) -> int:
            entered.set()
            release.wait(60)
            return super().send(points)

    store = Hanging()
    run = Sender(lambda: store, flush_seconds=0.01)
    run.log(0, {"a": 0.0})
    run.start()
    assert entered.wait(60)
    for step in range(1, 1000):
        run.log(step, {"a": 0.0})  # the store hangs all the while
    assert store.sent == []
    release.set()
    assert run.finish(lambda run: run.end("FINISHED"), 60) is None
    assert [step for step, _ in store.sent] == list(range(1000))


@pytest.fixture
def _torch_as_it_was() -> Iterator[None]:
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    """A run of a second, logged to a store below `tmp_path`."""
    overrides = [
        "model=tiny", "steps=2", "prompts_per_step=1", "sampler.group_size=2", "eval.prompts=2",
        "eval.samples=0", "hardware.threads=1", "hardware.device=cpu", "tracking.progress=false",
        "tracking.flush_seconds=0.01", f"output_dir={tmp_path}",
    ]  # fmt: skip
    (job,) = expand(Command(overrides)).jobs
    return job.raw


def only_run(output_dir: Path) -> RunFolder:
    (status,) = (output_dir / "default").glob("*/STATUS")
    return RunFolder(status.parent)


def away(*_: object, **__: object) -> None:
    raise ConnectionError("nobody listens")


@pytest.mark.usefixtures("_torch_as_it_was")
def test_a_run_goes_on_without_its_store(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = Sender.log
    monkeypatch.setattr("grpolab.tracking.sender.FINISH_SECONDS", 1.0)

    def log_then_vanish(
        self: Sender, step: int, metrics: dict[str, float], at: float | None = None
    ) -> None:
        began(self, step, metrics, at)
        if step == 1:
            for name in ("log_batch", "log_text", "log_table", "set_terminated"):
                monkeypatch.setattr(MlflowClient, name, away)

    monkeypatch.setattr(Sender, "log", log_then_vanish)
    assert run_job(raw) == "done"
    folder = only_run(tmp_path)
    assert folder.status()["state"] == "done"
    assert [step for step, _ in folder.metrics()] == [0, 1, 2]
    assert (folder.path / "model" / "model.safetensors").exists()
    note = folder.read_json("tracking.json")
    assert note["error"]  # that nobody listens, or no answer in time
    assert note["unsent"] is True


@pytest.mark.usefixtures("_torch_as_it_was")
def test_a_store_without_room_for_artifacts_gets_the_metrics(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MlflowClient, "log_text", away)
    assert run_job(raw) == "done"
    known = only_run(tmp_path).read_json("mlflow.json")
    client = MlflowClient(tracking_uri=known["uri"])
    assert client.get_run(known["run_id"]).info.status == "FINISHED"
    found = client.get_metric_history(known["run_id"], "tokens/generated")
    assert sorted(m.step for m in found) == [0, 1, 2]


@pytest.mark.usefixtures("_torch_as_it_was")
def test_the_store_is_met_behind_the_first_step(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[int] = []
    create = MlflowClient.create_run

    def create_run(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        logged.extend(step for step, _ in only_run(tmp_path).metrics())
        return create(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    before = time.time() * 1000
    assert run_job(raw) == "done"
    assert logged[:2] == [0, 1]
    known = only_run(tmp_path).read_json("mlflow.json")
    found = MlflowClient(tracking_uri=known["uri"]).get_metric_history(
        known["run_id"], "tokens/generated"
    )
    assert [m.step for m in sorted(found, key=lambda m: m.timestamp)] == [0, 1, 2]
    assert min(m.timestamp for m in found) >= int(before)


@pytest.mark.usefixtures("_torch_as_it_was")
def test_a_run_that_fails_before_its_first_step_is_a_run_of_the_store(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "fit", away)
    assert run_job(raw) == "failed"
    known = only_run(tmp_path).read_json("mlflow.json")
    run = MlflowClient(tracking_uri=known["uri"]).get_run(known["run_id"])
    assert run.info.status == "FAILED"
    for found in (load(uri=known["uri"]), load(output_dir=tmp_path)):
        assert list(found.runs["reason"]) == ["ConnectionError: nobody listens"]


@pytest.mark.usefixtures("_torch_as_it_was")
def test_a_store_that_was_never_met_is_filled_later(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpolab.tracking.sender.FINISH_SECONDS", 1.0)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "create_run", away)
        assert run_job(raw) == "done"
        for thread in threading.enumerate():
            if thread.name == NAME:
                thread.join(60)
    folder = only_run(tmp_path)
    assert needs_sync(folder)
    (found,) = sync(tmp_path)
    assert found.error is None
    assert found.sent == sum(len(m) for _, m in folder.metrics())
    known = folder.read_json("mlflow.json")
    client = MlflowClient(tracking_uri=known["uri"])
    run = client.get_run(known["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["grpolab.job_id"] == folder.path.name
    assert run.data.params["steps"] == "2"
    assert len(client.get_metric_history(known["run_id"], "tokens/generated")) == 3
    assert not needs_sync(folder)
    (again,) = sync(tmp_path)
    assert again.sent == 0


@pytest.mark.usefixtures("_torch_as_it_was")
def test_a_lost_name_is_found_by_its_job_id_and_nothing_doubled(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    assert run_job(raw) == "done"
    folder = only_run(tmp_path)
    known = folder.read_json("mlflow.json")
    (folder.path / "mlflow.json").unlink()
    (found,) = sync(tmp_path)
    assert (found.sent, found.error) == (0, None)
    assert folder.read_json("mlflow.json") == known


@pytest.mark.usefixtures("_torch_as_it_was")
def test_another_store_gets_the_whole(raw: dict[str, Any], tmp_path: Path) -> None:
    assert run_job(raw | {"tracking": {**raw["tracking"], "mlflow": False}}) == "done"
    folder = only_run(tmp_path)
    assert list(sync(tmp_path)) == []  # it was not to be logged
    uri = f"sqlite:///{tmp_path / 'team.db'}"
    (found,) = sync(tmp_path, uri=uri)
    assert found.sent == sum(len(m) for _, m in folder.metrics())
    ours = load(output_dir=tmp_path).history
    theirs = load(output_dir=tmp_path, uri=uri).history
    by = ["job_id", "metric", "step"]
    pd.testing.assert_frame_equal(
        ours.sort_values(by).reset_index(drop=True), theirs.sort_values(by).reset_index(drop=True)
    )


@pytest.mark.usefixtures("_torch_as_it_was")
def test_a_run_that_is_at_work_is_left_alone(raw: dict[str, Any], tmp_path: Path) -> None:
    assert run_job(raw) == "done"
    folder = only_run(tmp_path)
    lease = {"host": socket.gethostname(), "pid": os.getppid(), "time": 0.0}
    status = {"state": "running", "reason": None, "lease": lease}
    (folder.path / "STATUS").write_text(json.dumps(status))
    assert list(sync(tmp_path)) == []


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["mlruns", "file:///a", "sqlit:///a.db", "ftp://host/x"])
def test_a_scheme_that_cannot_work_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri: .*sqlite"):
        check_reachable(uri)


def test_an_sqlite_file_needs_its_folder(tmp_path: Path) -> None:
    check_reachable(f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        check_reachable(f"sqlite:///{tmp_path}/none/a.db")
    assert not list(tmp_path.iterdir())
