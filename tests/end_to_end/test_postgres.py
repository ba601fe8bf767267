"""PostgreSQL as the tracking store, behind MLflow's server or alone, is what sqlite is: the same
frames as from the files, each number once, and an outage costs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING

import pandas as pd
import pytest

pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'grpolab[postgres]')")

if TYPE_CHECKING:
    from tests.end_to_end import launching, serving
else:
    import launching
    import serving

SWEEP = ("-m", "debug=smoke", "clip=ppo,none", "seed=0,1", "study=team", "model=tiny",
         "hardware.threads=1", "hardware.device=cpu", "sampler.max_new_tokens=16")  # fmt: skip
BY = ["job_id", "metric", "step"]
DOUBLED = "select run_uuid, key, step from metrics group by 1, 2, 3 having count(*) > 1"
STATES = "select status, count(*) from runs group by 1 order by 1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[serving.Postgres]:
    with serving.postgres() as found:
        yield found


def grpolab(cluster: serving.Postgres, *arguments: str, cwd: Path) -> str:
    """A command that must end well; what it printed. It may know the database's password."""
    run = launching.grpolab if arguments[0] == "train" else launching.called
    done = run(*arguments, cwd=cwd, **cluster.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_same_as_files(out: Path, uri: str) -> None:
    from grpolab.results.load import load

    ours = load(output_dir=out, sweep="latest")
    theirs = load(output_dir=out, sweep="latest", uri=uri)
    assert len(ours.runs) == 4
    assert len(ours.history) > 4 * 3 * 20  # runs, steps, metrics
    pd.testing.assert_frame_equal(
        ours.history.sort_values(BY).reset_index(drop=True),
        theirs.history.sort_values(BY).reset_index(drop=True),
        check_exact=True,
    )
    assert {"factor.clip", "factor.seed"} < set(ours.runs)
    pd.testing.assert_frame_equal(
        ours.runs.sort_values("job_id").reset_index(drop=True),
        theirs.runs.sort_values("job_id").reset_index(drop=True),
        check_exact=True,
    )


def tables(folder: Path) -> dict[str, str]:
    """What `grpolab analyze` wrote, without the figures, whose files name their date."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {k: p.read_text() for k, p in found.items() if not k.startswith("figures")}


def test_a_sweep_logged_to_a_server(cluster: serving.Postgres, tmp_path: Path) -> None:
    out, store = tmp_path / "out", cluster.create("behind_a_server")
    port = serving.free_port()
    with serving.mlflow_server(tmp_path, port, store, **cluster.environment) as uri:
        # the clients know the server only, neither the database nor its password
        launched = launching.grpolab(
            "train", *SWEEP, f"tracking.uri={uri}", f"output_dir={out}", cwd=tmp_path
        )
        assert launched.returncode == 0, launched.stderr
        assert "grpolab sync" not in launched.stderr
        assert_same_as_files(out, uri)
        written = []
        for name, words in {"files": (), "store": (f"uri={uri}",)}.items():
            folder = tmp_path / name
            grpolab(cluster, "analyze", f"output_dir={out}", f"out={folder}", *words, cwd=tmp_path)
            written.append(tables(folder))
        assert {"verdicts.csv", "runs.csv"} < set(written[0])
        assert written[0] == written[1]
        assert "0 numbers sent" in grpolab(cluster, "sync", f"output_dir={out}", cwd=tmp_path)
    assert not (out / "mlflow.db").exists()
    assert cluster.psql("behind_a_server", DOUBLED) == []
    assert cluster.psql("behind_a_server", STATES) == ["FINISHED|5"]  # four jobs and their sweep


def test_a_local_sweep_is_copied_to_a_database(cluster: serving.Postgres, tmp_path: Path) -> None:
    out, store = tmp_path / "out", cluster.create("direct")
    grpolab(cluster, "train", *SWEEP, f"output_dir={out}", cwd=tmp_path)
    points = sum(len(m) for f in launching.run_folders(out / "team") for _, m in _metrics(f))
    sync = ("sync", f"output_dir={out}", f"uri={store}")
    assert f"{points} numbers sent" in grpolab(cluster, *sync, cwd=tmp_path).replace(",", "")
    assert "0 numbers sent" in grpolab(cluster, *sync, cwd=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", cluster.password)
        assert_same_as_files(out, store)
    assert cluster.psql("direct", DOUBLED) == []
    assert cluster.psql("direct", STATES) == ["FINISHED|5"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]  # artifacts lie with the runs
    assert len(list((out / "mlartifacts" / "team").glob("*/artifacts/config.yaml"))) == 8


def _metrics(folder: Path) -> list[tuple[int, dict[str, float]]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["metrics"]) for r in map(json.loads, lines)]


def test_a_database_that_dies_under_a_run(cluster: serving.Postgres, tmp_path: Path) -> None:
    out, store = tmp_path / "out", cluster.create("dies")
    words = ("train", *launching.SMALL, "steps=25", "eval.every=0", "tracking.flush_seconds=0.3",
             f"output_dir={out}", f"tracking.uri={store}")  # fmt: skip
    process = Popen(
        launching.words(*words), cwd=tmp_path, env=launching.environment(**cluster.environment),
        stdout=PIPE, stderr=PIPE, text=True,
    )  # fmt: skip
    launching.wait_for_lines(process, out / "default", 5)
    cluster.stop()
    try:
        before = launching.lines(out / "default")
        launching.wait_for_lines(process, out / "default", min(25, before + 5))
    finally:
        cluster.start()
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 0, errors
    grpolab(cluster, "sync", f"output_dir={out}", cwd=tmp_path)  # where it was too late at the end
    folder = launching.only_run(out / "default")
    stored = cluster.psql("dies", "select count(*) from metrics")
    assert stored == [str(sum(len(m) for _, m in _metrics(folder)))]
    assert cluster.psql("dies", DOUBLED) == []
    assert cluster.psql("dies", STATES) == ["FINISHED|1"]


def test_no_password_reaches_a_run_folder(cluster: serving.Postgres, tmp_path: Path) -> None:
    out, store = tmp_path / "out", cluster.create("secret")
    grpolab(cluster, "train", *SWEEP[1:2], *launching.SMALL, "study=team", "steps=1",
            f"output_dir={out}", f"tracking.uri={store}", cwd=tmp_path)  # fmt: skip
    texts = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert any(store.encode() in text for text in texts.values())  # the URI itself is there
    assert [p for p, text in texts.items() if cluster.password.encode() in text] == []
