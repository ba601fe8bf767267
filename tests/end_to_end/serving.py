"""Real servers for the tests, on 127.0.0.1 alone: MLflow's, and a scratch PostgreSQL."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(uri: str) -> bool:
    """Whether an MLflow server is there."""
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def mlflow_server(
    folder: Path, port: int, store: str | None = None, **environment: str
) -> Iterator[str]:
    """A real MLflow server, killed at the end of the block; its address.

    Args:
        store: what lies behind it; a sqlite file in `folder` unless given.
        environment: for the server alone, such as PGPASSWORD.
    """
    uri = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
            "--backend-store-uri", store or f"sqlite:///{folder / 'server.db'}", "--workers", "1",
            "--artifacts-destination", str(folder / "artifacts"),
        ],
        env=launching.environment(**environment), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True, cwd=folder,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + launching.LIMIT
        while not answers(uri):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield uri
    finally:
        subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=False)
        process.wait()


def postgres_binaries() -> Path | None:
    """The folder with initdb and pg_ctl: Debian keeps them out of the PATH."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(versions, key=lambda path: float(path.parts[-3]))
    found = str(newest[-1]) if newest else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@dataclass(frozen=True)
class Postgres:
    """A cluster of one test module, with a password that no URI carries: libpq finds it in the
    environment."""

    binaries: Path
    folder: Path
    port: int
    password: str
    owner: Mapping[str, Any]
    """Arguments of `subprocess.run` for PostgreSQL's own programs, which refuse to run as root."""

    @property
    def environment(self) -> dict[str, str]:
        return {"PGPASSWORD": self.password}

    def create(self, name: str) -> str:
        """A new database; its URI."""
        self.psql("postgres", f'create database "{name}"')
        return f"postgresql+psycopg://lab@127.0.0.1:{self.port}/{name}"

    def psql(self, database: str, query: str) -> list[str]:
        """The rows of a query, columns separated by |."""
        words = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "lab", "-d", database, "-c", query]
        done = subprocess.run(
            [self.binaries / "psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", *words],
            env=launching.environment(**self.environment), capture_output=True, text=True,
            timeout=launching.LIMIT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    def start(self) -> None:
        log = str(self.folder / "log")
        options = f"-h 127.0.0.1 -p {self.port} -c unix_socket_directories="
        self.control("start", "-w", "-l", log, "-o", options)

    def stop(self) -> None:
        self.control("stop", "-w", "-m", "immediate")  # as a machine that loses power

    def control(self, *words: str) -> None:
        command = [str(self.binaries / "pg_ctl"), "-D", str(self.folder / "data"), *words]
        # no pipes: the server would hold them open
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=launching.LIMIT, check=False, **self.owner,
        )  # fmt: skip
        log = self.folder / "log"
        assert done.returncode == 0, log.read_text() if log.exists() else words


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A new cluster on a port of its own; skips the test where PostgreSQL is not installed.

    It lies in a folder of its own beside pytest's, which only root may enter when root runs them.
    """
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    owner: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="grpolab-postgres-"))
    if os.geteuid() == 0:
        user = unprivileged()
        owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(folder, user.pw_uid, user.pw_gid)
    cluster = Postgres(binaries, folder, free_port(), secrets.token_hex(16), owner)
    try:
        secret = folder / "password"
        secret.write_text(cluster.password + "\n")
        done = subprocess.run(
            [
                str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "lab", "-E", "UTF8",
                "--locale=C", "--auth=scram-sha-256", f"--pwfile={secret}",
            ],
            cwd=folder, capture_output=True, text=True, timeout=launching.LIMIT, check=False,
            **owner,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        cluster.start()
        yield cluster
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            cluster.stop()
        shutil.rmtree(folder)


def unprivileged() -> pwd.struct_passwd:
    """The user that a Debian installation makes for PostgreSQL, or nobody."""
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
