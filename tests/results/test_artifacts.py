"""A sweep's analysis lies at its MLflow run, under the output folder, and never fails a command."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from grpolab.cli import main
from grpolab.results.artifacts import log_analysis
from grpolab.tracking.listing import listing_tags
from grpolab.tracking.mlflow import connect, default_uri

if TYPE_CHECKING:
    from tests.results.synthetic_sweep import FIRST, manifest_of, write_files, write_mlflow
else:
    from synthetic_sweep import FIRST, manifest_of, write_files, write_mlflow

CREATED = "2026-01-01T10:00:00+00:00"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(output folder, id of the sweep's run): the files and the default store of a sweep."""
    out = tmp_path_factory.mktemp("logged") / "outputs"
    write_files(out, FIRST, "first", CREATED)
    connect(default_uri(out), out, "clipping")
    tags = listing_tags(manifest_of(FIRST, "first", CREATED))
    run_id = write_mlflow(default_uri(out), FIRST, "first", tags=tags)
    name_parent(out, run_id)
    return out, run_id


def name_parent(out: Path, run_id: str | None) -> None:
    path = out / "clipping" / "sweeps" / "first.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parent_run_id": run_id}))


def artifacts(out: Path, run_id: str, below: str = "analysis") -> list[str]:
    """As MLflow lists them."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=default_uri(out)).list_artifacts(run_id, below)
    return sorted(entry.path.removeprefix("analysis/") for entry in found)


def log(out: Path, file: Path, **more: Any) -> str | None:
    given: dict[str, Any] = {"output_dir": out, "study": "clipping", "sweep": "first"} | more
    return log_analysis({"a/b.txt": file}, **given)


def test_report_and_analyze_of_a_sweep_are_logged(
    made: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run_id = made
    common = [f"output_dir={out}", f"out={tmp_path}", "figures=[forest]"]
    assert main(["report", *common]) == 0
    assert artifacts(out, run_id) == ["report.html"]
    assert main(["analyze", "sweep=first", *common]) == 0
    assert artifacts(out, run_id) == [
        "figures",
        "report.html",
        "runs.csv",
        "tables",
        "verdicts.csv",
    ]
    assert "figures/forest.png" in artifacts(out, run_id, "analysis/figures")
    assert capsys.readouterr().err == ""
    place = out / "mlartifacts" / "clipping" / run_id / "artifacts" / "analysis"
    for name in ("verdicts.csv", "report.html"):
        assert (place / name).read_bytes() == (tmp_path / name).read_bytes()
    assert [path.name for path in place.parent.iterdir()] == ["analysis"]  # nothing is left behind


@pytest.mark.parametrize("words", [["study=clipping"], ["log=false"], ["where=status == 'done'"]])
def test_only_a_whole_sweep_is_logged(
    words: list[str], made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logged(*_: Any, **__: Any) -> None:
        pytest.fail("it was logged")

    monkeypatch.setattr("grpolab.results.artifacts.log_analysis", logged)
    given = [f"output_dir={made[0]}", f"out={tmp_path}", "figures=[forest]", *words]
    assert main(["report", *given]) == 0


def test_by_the_store_alone(made: tuple[Path, str], tmp_path: Path) -> None:
    out, run_id = made
    (tmp_path / "c.txt").write_text("c")
    uri = default_uri(out)
    assert log_analysis(
        {"c.txt": tmp_path / "c.txt"}, output_dir=out, study="clipping", sweep="first", uri=uri
    ) is None  # fmt: skip
    assert "c.txt" in artifacts(out, run_id)
    # also where the manifest names the run of another store
    name_parent(out, "0" * 32)
    assert log(out, tmp_path / "c.txt", uri=uri) is None
    assert "b.txt" in artifacts(out, run_id, "analysis/a")[0]
    name_parent(out, run_id)
    # no run of that name: nothing to say, either
    assert log(out, tmp_path / "c.txt", sweep="other", uri=uri) is None
    assert log(out, tmp_path / "c.txt", study="other", uri=uri) is None


def test_a_renamed_experiment_still_gets_it(made: tuple[Path, str], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    out, run_id = made
    client = MlflowClient(tracking_uri=default_uri(out))
    experiment = client.get_run(run_id).info.experiment_id
    file = tmp_path / "b.txt"
    file.write_text("found by its id")
    client.rename_experiment(experiment, "of the spring")
    try:
        sweep: dict[str, Any] = {"output_dir": out, "study": "clipping", "sweep": "first"}
        assert log_analysis({"renamed/b.txt": file}, **sweep) is None
        assert "renamed" in artifacts(out, run_id)
    finally:
        client.rename_experiment(experiment, "clipping")


def test_a_sweep_without_mlflow_has_nothing_to_be_logged_to(tmp_path: Path) -> None:
    write_files(tmp_path, FIRST[:1], "first", CREATED)
    assert log(tmp_path, tmp_path / "clipping" / "sweeps" / "first.json") is None
    name_parent(tmp_path, "0" * 32)  # its store has been deleted
    assert log(tmp_path, tmp_path / "clipping" / "sweeps" / "first.json") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clipping"]


def test_a_store_that_is_away_is_said(
    made: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(made[0], tmp_path / "outputs"))
    for path in out.glob("clipping/*/config.yaml"):
        path.write_text(path.read_text() + "tracking:\n  uri: http://127.0.0.1:9\n")
    assert main(["report", f"output_dir={out}", "figures=[forest]"]) == 0
    told = capsys.readouterr()
    assert Path(told.out.strip()).is_file()
    assert told.err.startswith("MLflow has not got the analysis (ConfigError: tracking.uri: cannot")
    assert told.err.endswith("grpolab report sweep=first logs it again.\n")


def test_a_full_disk_leaves_what_was_there(
    made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run_id = made
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("old")
    new.write_text("new")
    assert log(out, old) is None

    def full(source: Path, target: Path) -> None:
        target.write_text("n")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    problem = log(out, new)
    assert problem is not None
    assert "No space left on device" in problem
    place = out / "mlartifacts" / "clipping" / run_id / "artifacts"
    assert (place / "analysis" / "a" / "b.txt").read_text() == "old"
    assert [path.name for path in place.iterdir()] == ["analysis"]


def test_nothing_is_written_where_a_moved_store_once_lay(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(made[0], tmp_path / "moved"))
    (tmp_path / "x.txt").write_text("x")
    problem = log(moved, tmp_path / "x.txt")
    assert problem is not None
    assert f"outside of output_dir={moved}" in problem
    problem = log(tmp_path, tmp_path / "x.txt", uri=f"sqlite:///{moved / 'mlflow.db'}")
    assert problem is None  # another store, whose artifacts' folder is here
    shutil.rmtree(made[0] / "mlartifacts")
    problem = log(tmp_path, tmp_path / "x.txt", uri=f"sqlite:///{moved / 'mlflow.db'}")
    assert problem is not None
    assert "which is not here" in problem
    assert not (made[0] / "mlartifacts").exists()


def test_other_places_than_folders_get_them_through_mlflow(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    seen: dict[str, str] = {}

    class Client:
        def get_run(self, run_id: str) -> Any:
            return SimpleNamespace(info=SimpleNamespace(artifact_uri="mlflow-artifacts:/1/x"))

        def log_artifacts(self, run_id: str, folder: str, below: str) -> None:
            for path in Path(folder).rglob("*.txt"):
                seen[f"{run_id}/{below}/{path.relative_to(folder)}"] = path.read_text()

    (tmp_path / "x.txt").write_text("x")
    problem = log(made[0], tmp_path / "x.txt", uri=default_uri(made[0]), parent=(Client(), "r"))
    assert problem is None
    assert seen == {"r/analysis/a/b.txt": "x"}
