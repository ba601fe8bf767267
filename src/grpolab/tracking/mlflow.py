"""The one module that knows MLflow.

The store's schema is made once, under a lock: parallel first contact with an empty sqlite file
breaks it. Who sends metrics is `grpolab.tracking.sender`'s affair.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from grpolab.component import ConfigError
from grpolab.tracking.parents import find_parent

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that went away costs seconds, not the minutes of MLflow's seven tries; what it missed is
# kept and sent with the next batch.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

PARAM_LIMIT = 6000  # characters; MLflow truncates beyond
MOST_OF_A_TAG = 5000  # characters that every store takes
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SCHEMES = (*DATABASES, "http", "https", "databricks")


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

    folder = Path(output_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".mlflow.lock")):
        if uri == default_uri(output_dir):
            make_schema(folder / "mlflow.db")
        client = client_of(uri)
        found = client.get_experiment_by_name(study)
        if found is not None:
            return client, str(found.experiment_id)
        # without a server MLflow would put them into the folder that the command was given in
        local = urlparse(uri).scheme.split("+")[0] in DATABASES
        artifacts = (folder / "mlartifacts" / study).as_uri() if local else None
        return client, str(client.create_experiment(study, artifact_location=artifacts))


def client_of(uri: str) -> Any:
    """MLflow's client, which says nothing of its migrations."""
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def load() -> None:
    """Imports MLflow, or waits until another thread has; an error is left to whoever uses it."""
    with suppress(Exception):
        from mlflow import MlflowClient  # noqa: F401


def make_schema(path: Path) -> None:
    """An empty sqlite store at `path`, unless there is one.

    MLflow's migrations commit some hundred times, each waiting for the disk: most of what the
    first run would wait for. They are run on a scratch file without waiting, which is put in place
    whole. A kill in between leaves no store instead of half of one.
    """
    if path.exists():
        return
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as scratch:
        whole = Path(scratch) / "whole.db"
        whole.write_bytes(_ahead.pop() if _ahead else _empty_store(Path(scratch)))
        with whole.open("rb+") as file:
            os.fsync(file.fileno())
        whole.replace(path)


_ahead: list[bytes] = []
"""An empty store that waits for its place."""


def make_ahead(uri: str | None, output_dir: str | Path) -> None:
    """Does now what `connect` would take seconds for: imports MLflow, and makes an empty store if
    there is none where runs go by default. Nothing is written to the output folder, and a failure
    is left to `connect`."""
    load()
    with suppress(Exception), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        if uri is None and not _ahead and not (Path(output_dir) / "mlflow.db").exists():
            _ahead.append(_empty_store(Path(scratch)))


def _empty_store(scratch: Path) -> bytes:
    """A new store's file, made in this folder by MLflow's own migrations."""
    made = scratch / "made.db"
    with _unsynchronised(made):
        client_of(f"sqlite:///{made}").get_experiment_by_name("Default")
    return made.read_bytes()  # what MLflow keeps open is the other one


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


@dataclass(frozen=True)
class Point:
    """A step's metrics, and when they were measured (seconds of the clock)."""

    step: int
    metrics: Mapping[str, float]
    at: float


class MlflowRun:
    """One run in a store. What the store has of it is asked once; nothing is sent twice."""

    def __init__(self, client: Any, run_id: str, *, new: bool = False) -> None:
        self.client, self.run_id = client, run_id
        self.known: set[tuple[str, int]] = set() if new else self._stored()
        """(metric, step) pairs that the store has."""

    def _stored(self) -> set[tuple[str, int]]:
        names = self.client.get_run(self.run_id).data.metrics
        histories = (self.client.get_metric_history(self.run_id, name) for name in names)
        return {(m.key, m.step) for history in histories for m in history}

    def send(self, points: Sequence[Point]) -> int:
        """Sends what the store lacks of these; how many numbers that were. Where it fails half way,
        the same points may be sent again."""
        from mlflow.entities import Metric

        left = [
            Metric(safe_name(name), value, int(p.at * 1000), p.step)
            for p in points
            for name, value in p.metrics.items()
            if (safe_name(name), p.step) not in self.known
        ]
        count = len(left)
        while left:
            part, left = whole_steps(left)
            self.client.log_batch(self.run_id, metrics=part)
            self.known.update((m.key, m.step) for m in part)
        return count

    def end(self, status: str, reason: str | None = None) -> None:
        """Ends the run: FINISHED, FAILED or KILLED; why is a tag, having no field in MLflow."""
        if reason:
            self.tag("grpolab.reason", reason)
        self.client.set_terminated(self.run_id, status=status)

    def tag(self, name: str, text: str) -> None:
        """A tag, as much of it as every store takes."""
        self.client.set_tag(self.run_id, name, text[:MOST_OF_A_TAG])

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


T = TypeVar("T")


def patiently(work: Callable[[], T], seconds: float = 60.0) -> T:
    """Does something with a store that may be locked or away for a while: tried again until it
    works, or so much time has passed."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return work()
        except ConfigError:
            raise
        except Exception as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"tracking.uri: the store does not answer ({type(error).__name__}: "
                    f"{str(error).splitlines()[0]}); allowed: one that does, or tracking=jsonl."
                ) from error
            time.sleep(1.0)


ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow says of a run that a store does not have (any more); all else may pass."""


def reopen(client: Any, run_id: str, tags: Mapping[str, str] | None = None) -> bool:
    """Marks a run as running again, under new tags where given; False if the store lacks it."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_terminated(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return False
    for name, value in (tags or {}).items():
        client.set_tag(run_id, name, value)
    return True


def open_parent(
    uri: str,
    output_dir: str,
    study: str,
    sweep_id: str,
    known: str | None,
    *,
    kind: str = "sweep",
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, str],
) -> tuple[Any, str]:
    """(client, id) of the run that a sweep's jobs are children of: the one that the store has,
    running again, or a new one."""
    client, experiment = connect(uri, output_dir, study)
    found = find_parent(client, experiment, sweep_id, known)
    if found and reopen(client, found, tags):
        return client, found
    own = {"grpolab.study": study, "grpolab.sweep": sweep_id, **(tags or {})}
    name = f"{kind} {sweep_id}"
    return client, start_run(client, experiment, name=name, tags=own, params=params)


def drop(client: Any, run_id: str) -> None:
    """Deletes a run, if the store has it."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_run(run_id)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise


def start_run(
    client: Any,
    experiment_id: str,
    *,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    parent: str | None = None,
    source: str | None = None,
    made: Callable[[str], None] = lambda run_id: None,
) -> str:
    """A new run; its id. The environment's MLFLOW_RUN_ID plays no part: the client is explicit.

    Args:
        made: told the id as soon as the run exists, before the rest, which may fail.
    """
    all_tags = dict(tags)
    if parent:
        all_tags["mlflow.parentRunId"] = parent
    created = client.create_run(experiment_id, run_name=name, tags=all_tags)
    run_id = str(created.info.run_id)
    made(run_id)
    describe(client, run_id, params, source)
    return run_id


def describe(client: Any, run_id: str, params: Mapping[str, Any], source: str | None) -> None:
    """A run's parameters, data set and starting time; the same again changes nothing."""
    from mlflow.entities import Param, RunTag

    entries = [Param(k, _text(v)) for k, v in params.items()]
    for start in range(0, len(entries), PARAMS_PER_CALL):
        client.log_batch(run_id, params=entries[start : start + PARAMS_PER_CALL])
    if source:
        try:
            _log_dataset(client, run_id, source)
        except Exception:  # two runs that enter the same data set at once: the second finds it
            _log_dataset(client, run_id, source)
    client.log_batch(run_id, tags=[RunTag("grpolab.started", str(int(time.time())))])


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
