"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grpolab.cli import main
from tests.sharing import once

if TYPE_CHECKING:
    from tests.end_to_end import launching, sweeping
else:
    import launching
    import sweeping

Refused = Callable[..., str]


@pytest.fixture(scope="session")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose jobs ran one after the other in the driver's process; nobody changes it."""

    def make(out: Path) -> Path:
        words = sweeping.command(out, sweeping.STEPS, "tracking=jsonl", "hydra.launcher.workers=0")
        done = launching.grpolab(*words, cwd=out)
        assert done.returncode == 0, done.stderr
        assert "4 of 4 runs done" in done.stdout
        return out

    return once(tmp_path_factory, "in-process", make)


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Runs a command in an empty folder; its sentence, once all else has been checked."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: str) -> str:
        elsewhere = launching.snapshot(tmp_path)
        assert main(arguments) == 2
        found = capsys.readouterr()
        assert found.out == ""
        assert not list(here.iterdir())
        assert launching.snapshot(tmp_path) == elsewhere
        return launching.one_sentence(found.err)

    return run
