"""Standard streams that are pipes, of which nobody reads the other end."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from grpolab.cli import main, streams
from grpolab.cli.streams import Pipe, Tolerant, through_pipe

LIMIT = 60.0  # seconds; far more than anything here takes
LONG = "0123456789\n" * 30_000  # several times what a pipe holds


@pytest.fixture
def ends() -> Iterator[tuple[int, Any]]:
    """The reading end of a pipe, and its writing end as `grpolab` has its standard streams."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as plain:
        yield read, Tolerant(through_pipe(plain))
        os.close(read)


def ends_in_time(work: Callable[[], object]) -> bool:
    """Whether it returns; else its thread is left alone, and ends with the pipe."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT)
    return not thread.is_alive()


def test_a_reader_that_never_reads_is_waited_for_once(
    ends: tuple[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, stream = ends
    waits: list[float | None] = []
    ready = select.select

    def counted(*given: Any) -> Any:
        found = ready(*given)
        waits.extend([given[3]] if not found[1] else [])
        return found

    monkeypatch.setattr(select, "select", counted)
    monkeypatch.setattr(Pipe, "patience", 0.01)

    def work() -> None:
        for _ in range(3):
            stream.write(LONG)
            stream.flush()

    assert ends_in_time(work)
    assert waits == [0.01]
    os.write(stream.fileno(), b"of a library")  # goes nowhere as well
    os.set_blocking(read, False)
    held = os.read(read, len(LONG))
    assert LONG.encode().startswith(held)
    assert len(held) > select.PIPE_BUF
    assert os.read(read, 1) == b""  # no more, and nobody holds the other end


@pytest.mark.parametrize("patience", [None, LIMIT])
def test_a_slow_reader_gets_everything(
    patience: float | None, ends: tuple[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, stream = ends
    monkeypatch.setattr(Pipe, "patience", patience)
    got = bytearray()

    def work() -> None:
        while len(got) < len(LONG):
            got.extend(os.read(read, 999))

    reader = threading.Thread(target=work, daemon=True)
    reader.start()
    stream.write(LONG)
    stream.flush()
    reader.join(LIMIT)
    assert got.decode() == LONG


@pytest.mark.parametrize(
    ("words", "patience"),
    [
        (["list", "clip"], None),
        (["status"], None),
        (["train", "--help"], None),
        (["train", "clip=none", "x=1"], 0.5),
        (["resume"], 0.5),
    ],
    ids=["list", "status", "help", "train", "resume"],
)
def test_only_a_run_goes_on_without_its_reader(
    words: list[str], patience: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pager that waits at its first page has not left."""
    monkeypatch.chdir(tmp_path)  # where nothing is left to resume
    monkeypatch.setattr(Pipe, "patience", None)
    monkeypatch.setattr(streams, "PATIENCE_SECONDS", 0.5)
    with suppress(SystemExit):  # of Hydra's help
        main(words)
    assert Pipe.patience == patience


def test_files_stay_as_they_are(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        assert through_pipe(file) is file
