"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grpolab.cli import main

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

Refused = Callable[..., str]


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
