"""The one module that knows MLflow.

The store's schema is made once, under a lock: parallel first contact with an empty sqlite file
breaks it. Metrics are buffered and sent by a thread of their own, so that a step costs one
append; what a kill loses there is in metrics.jsonl and is sent when the run resumes.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from grpolab.component import ConfigError

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that went away costs seconds, not the minutes of MLflow's seven tries; what it missed is
# kept and sent with the next batch.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")

PARAM_LIMIT = 6000  # characters; MLflow truncates beyond
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


def default_uri(output_dir: str | Path) -> str:
    """The sqlite store under the output folder; absolute, since runs may change folder."""
    return f"sqlite:///{Path(output_dir).absolute() / 'mlflow.db'}"


def check_reachable(uri: str, timeout: float = 5.0) -> None:
    """Refuses a tracking URI that cannot work, in seconds and without writing.

    Raises:
        ConfigError: unknown scheme, missing folder, or nobody listening.
    """
    parts = urlparse(uri)
    scheme = parts.scheme.split("+")[0]
    if scheme not in SCHEMES:
        raise ConfigError(
            f"tracking.uri: {uri!r} given; allowed: a URI of {', '.join(SCHEMES)} "
            "(MLflow's file store is no longer supported)."
        )
    if scheme == "sqlite":
        folder = Path(uri.split("sqlite:///", 1)[-1]).parent
        if not folder.is_dir():
            raise ConfigError(f"tracking.uri: {uri!r} lies in no existing folder ({folder}).")
    elif parts.hostname:
        ports = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
        try:
            socket.create_connection((parts.hostname, parts.port or ports[scheme]), timeout).close()
        except OSError as error:
            raise ConfigError(
                f"tracking.uri: cannot reach {uri!r} ({error}); allowed: a server that listens, "
                "or null for the sqlite store under output_dir."
            ) from error


def connect(uri: str, output_dir: str | Path, study: str) -> tuple[Any, str]:
    """(client, experiment id) of a study; makes schema and experiment once, under a lock."""
    from filelock import FileLock
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    folder = Path(output_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".mlflow.lock")):
        if uri == default_uri(output_dir):
            make_schema(folder / "mlflow.db")
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(study)
        if found is not None:
            return client, str(found.experiment_id)
        local = uri.startswith("sqlite")
        artifacts = (folder / "mlartifacts" / study).as_uri() if local else None
        return client, str(client.create_experiment(study, artifact_location=artifacts))


def make_schema(path: Path) -> None:
    """An empty sqlite store at `path`, unless there is one.

    MLflow's migrations commit some hundred times, each waiting for the disk: most of what the
    first run would wait for. They are run on a scratch file without waiting, which is put in place
    whole. A kill in between leaves no store instead of half of one.
    """
    from mlflow import MlflowClient

    if path.exists():
        return
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "made.db"
        with _unsynchronised(made):
            MlflowClient(tracking_uri=f"sqlite:///{made}").get_experiment_by_name("Default")
        whole = Path(scratch) / "whole.db"  # a copy, since MLflow keeps the other one open
        shutil.copyfile(made, whole)
        with whole.open("rb+") as file:
            os.fsync(file.fileno())
        whole.replace(path)


@contextmanager
def _unsynchronised(path: Path) -> Iterator[None]:
    """Connections to that sqlite file made in the block do not wait for the disk."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def on_connect(connection: Any, _: Any) -> None:
        files = [row[2] for row in connection.execute("PRAGMA database_list")]
        if os.path.realpath(path) in files:
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", on_connect)
    try:
        yield
    finally:
        event.remove(Engine, "connect", on_connect)


class MlflowRun:
    """One run in MLflow: tags and params once, metrics buffered, the end of it."""

    def __init__(self, client: Any, run_id: str, flush_seconds: float = 15.0) -> None:
        self.client, self.run_id, self.flush_seconds = client, run_id, flush_seconds
        self.seconds = 0.0
        """CPU seconds spent on logging, both in the caller and in the sending thread."""
        self.error: str | None = None
        self._buffer: list[Any] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._last_step = self._find_last_step()
        self._thread = threading.Thread(target=self._send_regularly, daemon=True)
        self._thread.start()

    def _find_last_step(self) -> int:
        history = self.client.get_metric_history(self.run_id, "tokens/generated")
        return max((m.step for m in history), default=-1)

    def log(self, step: int, metrics: Mapping[str, float], at: float | None = None) -> None:
        """Buffers a step's metrics, measured at that time (now); a step the store already has is
        not sent again."""
        from mlflow.entities import Metric

        if step <= self._last_step:
            return
        began = time.thread_time()
        now = int((time.time() if at is None else at) * 1000)
        made = [Metric(safe_name(n), value, now, step) for n, value in metrics.items()]
        with self._lock:
            self._buffer += made
        self.seconds += time.thread_time() - began

    def _send_regularly(self) -> None:
        while not self._stop.wait(self.flush_seconds):
            self._send()

    def _send(self) -> None:
        with self._lock:
            batch, self._buffer = self._buffer, []
        part: list[Any] = []
        began = time.thread_time()
        try:
            while batch:
                part, batch = whole_steps(batch)
                self.client.log_batch(self.run_id, metrics=part)
        except Exception as error:
            # The store may be away for a while. metrics.jsonl has every point; a store that
            # missed some is filled when the run resumes.
            self.error = f"{type(error).__name__}: {error}"
            with self._lock:
                self._buffer = part + batch + self._buffer
        self.seconds += time.thread_time() - began

    def log_text(self, text: str, name: str) -> None:
        """A small text artifact."""
        self.client.log_text(self.run_id, text, name)

    def log_samples(self, path: Path) -> None:
        """The completions of samples.jsonl as MLflow's table."""
        from grpolab.tracking.folder import read_jsonl

        records = read_jsonl(path)
        if records:
            columns = {key: [r.get(key) for r in records] for key in records[0]}
            self.client.log_table(self.run_id, columns, "samples.json")

    def finish(self, status: str) -> None:
        """Sends what is buffered and ends the run: FINISHED, FAILED or KILLED."""
        self._stop.set()
        self._thread.join()
        self._send()
        if self.error is None or not self._buffer:
            self.client.set_terminated(self.run_id, status=status)


def safe_name(name: str) -> str:
    """A metric's name as MLflow accepts it: eval/pass@8 is stored as eval/pass_at_8."""
    return name.replace("@", "_at_")


def whole_steps(batch: list[Any]) -> tuple[list[Any], list[Any]]:
    """(as many metrics as one call takes, the rest), never parting a step: the store then has a
    step whole or not at all."""
    if len(batch) <= METRICS_PER_CALL:
        return batch, []
    cut = METRICS_PER_CALL
    while cut > 0 and batch[cut - 1].step == batch[cut].step:
        cut -= 1
    cut = cut or METRICS_PER_CALL
    return batch[:cut], batch[cut:]


def reopen(client: Any, run_id: str, tags: Mapping[str, str] | None = None) -> bool:
    """Marks a run as running again, under new tags where given; False if the store lacks it."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_terminated(run_id, status="RUNNING")
    except MlflowException:
        return False
    for name, value in (tags or {}).items():
        client.set_tag(run_id, name, value)
    return True


def start_run(
    client: Any,
    experiment_id: str,
    *,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    parent: str | None = None,
    source: str | None = None,
) -> str:
    """A new run; its id. The environment's MLFLOW_RUN_ID plays no part: the client is explicit."""
    from mlflow.entities import Param, RunTag

    all_tags = dict(tags)
    if parent:
        all_tags["mlflow.parentRunId"] = parent
    made = client.create_run(experiment_id, run_name=name, tags=all_tags)
    run_id = str(made.info.run_id)
    entries = [Param(k, _text(v)) for k, v in params.items()]
    for start in range(0, len(entries), PARAMS_PER_CALL):
        client.log_batch(run_id, params=entries[start : start + PARAMS_PER_CALL])
    if source:
        _log_dataset(client, run_id, source)
    client.log_batch(run_id, tags=[RunTag("grpolab.started", str(int(time.time())))])
    return run_id


def _log_dataset(client: Any, run_id: str, source: str) -> None:
    from mlflow.entities import Dataset, DatasetInput

    name = source.split("(")[0].strip()[:500] or "task"
    entry = Dataset(name=name, digest=_digest(source), source_type="grpolab", source=source[:65000])
    client.log_inputs(run_id, datasets=[DatasetInput(dataset=entry, tags=[])])


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _text(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    return str(value)[:PARAM_LIMIT]
