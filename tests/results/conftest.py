"""Both stores of the synthetic study, made once a session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grpolab.results.load import Results, load

if TYPE_CHECKING:  # the same file under the name the type checker knows it by
    from tests.results.synthetic_sweep import FIRST, SECOND, Job, write_files, write_mlflow
else:
    from synthetic_sweep import FIRST, SECOND, Job, write_files, write_mlflow


@pytest.fixture(scope="session")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results") / "outputs"
    write_files(root, FIRST, "first", "2026-01-01T10:00:00+00:00")
    write_files(root, SECOND, "second", "2026-01-02T10:00:00+00:00")
    other = [Job("baseline", 0, 0.4), Job("kl=k2", 0, 0.5)]
    write_files(root, other, "other", "2026-01-01T12:00:00+00:00", study="kl")
    return root


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    write_mlflow(uri, FIRST, "first")
    write_mlflow(uri, [Job("baseline", 0, 0.4), Job("kl=k2", 0, 0.5)], "other", study="kl")
    return uri


@pytest.fixture(scope="session")
def first(output_dir: Path) -> Results:
    return load(output_dir=output_dir, sweep="first")
