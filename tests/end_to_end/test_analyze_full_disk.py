"""A disk that is full while an analysis is written: a sentence, and nothing half-written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from grpolab.cli import main
from grpolab.results import style
from grpolab.tracking.disk import staged


def test_files_take_their_places_together(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "analysis"
    with staged(folder) as scratch:
        (scratch / "tables").mkdir()
        (scratch / "tables" / "arms.csv").write_text("new")
        assert not folder.exists()
    assert (folder / "tables" / "arms.csv").read_text() == "new"
    assert [p.name for p in folder.parent.iterdir()] == ["analysis"]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_write(folder: Path) -> None:
    (folder / "a.csv").write_text("half")
    full()


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "analysis"
    for _ in range(2):  # the second time, an older file is there
        with pytest.raises(OSError, match="No space left"), staged(folder) as scratch:
            half_write(scratch)
        assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) in ([], ["old.csv"])
        assert folder.exists() or not (tmp_path / "new").exists()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "old.csv").write_text("old")
    assert [p.name for p in folder.iterdir()] == ["old.csv"]


def test_analyze_says_so(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(style, "save", full)
    words = ["analyze", f"output_dir={synthetic}", "sweep=first"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("grpolab: no space is left on the disk")
    assert len(said.err.splitlines()) == 1
    assert not (synthetic / "analysis").exists()


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """A sweep's files, in an output folder without an analysis."""
    from tests.results.synthetic_sweep import FIRST, write_files

    write_files(tmp_path / "outputs", FIRST, "first", "2026-01-01T10:00:00+00:00")
    return tmp_path / "outputs"
