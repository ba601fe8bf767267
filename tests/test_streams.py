"""Standard streams that are pipes, of which nobody reads the other end."""

from __future__ import annotations

import io
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpolab import ending
from grpolab.cli import main, streams
from grpolab.cli.streams import Pipe, Tolerant, through_pipe
from grpolab.rewards.guard import TimeLimitExceeded

LIMIT = 60.0  # seconds; far more than anything here takes
LONG = "0123456789\n" * 30_000  # several times what a pipe holds


def socket_pair() -> tuple[int, int]:
    read, write = socket.socketpair()
    return read.detach(), write.detach()


@pytest.fixture(params=[os.pipe, socket_pair], ids=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, Any]]:
    """The reading end of a pipe, and its writing end as `grpolab` has its standard streams."""
    read, write = request.param()
    with os.fdopen(write, "w") as plain:
        yield read, Tolerant(through_pipe(plain))
        os.close(read)


def ends_in_time(work: Callable[[], object]) -> bool:
    """Whether it returns; else its thread is left alone, and ends with the pipe."""
    returned: list[object] = []
    thread = threading.Thread(target=lambda: returned.append(work()), daemon=True)
    thread.start()
    thread.join(LIMIT)
    return bool(returned)


@pytest.mark.parametrize("way", ["text", "binary", "without proc"])
def test_a_reader_that_never_reads_is_waited_for_once(
    way: str, ends: tuple[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, stream = ends
    waits: list[float | None] = []
    ready = select.select

    def counted(*given: Any) -> Any:
        found = ready(*given)
        waits.extend([given[3]] if not found[1] else [])
        return found

    opened = os.open

    def without_proc(path: Any, *given: Any, **more: Any) -> int:
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(path)
        return opened(path, *given, **more)

    if way == "without proc":
        monkeypatch.setattr(os, "open", without_proc)
    monkeypatch.setattr(select, "select", counted)
    monkeypatch.setattr(Pipe, "patience", 0.01)

    def work() -> None:
        for _ in range(3):
            if way == "binary":
                stream.buffer.write(LONG.encode())
            else:
                stream.write(LONG)
        ending.flush_all()

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
    assert ends_in_time(lambda: (stream.write(LONG), stream.flush()))
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
    for other in (file, io.StringIO(), SimpleNamespace()):  # closed, in memory, a notebook's
        assert through_pipe(other) is other


def test_an_interruption_does_not_renew_patience(
    ends: tuple[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of select takes two seconds, of the five that a run waits."""
    _, stream = ends
    now, lefts = [0.0], list[float]()
    happens = iter(["interrupted", "ready", "interrupted", "interrupted", "full"])

    def slow(_read: Any, write: Any, _other: Any, left: float) -> Any:
        lefts.append(left)
        now[0] += 2
        what = next(happens)
        if what == "interrupted":
            raise TimeLimitExceeded
        return [], write if what == "ready" else [], []

    pipe = Pipe(stream.fileno(), "stdout")
    monkeypatch.setattr(streams, "monotonic", lambda: now[0])
    monkeypatch.setattr(Pipe, "patience", 5.0)
    with monkeypatch.context() as patched:
        patched.setattr(select, "select", slow)
        for interrupted in (True, False, True, True, False):
            with pytest.raises(TimeLimitExceeded) if interrupted else nullcontext():
                assert pipe.write(b"said") == 4
    assert lefts == [5, 3, 5, 3, 1]
    assert os.fstat(pipe.fileno()).st_rdev == os.stat(os.devnull).st_rdev


def test_a_reader_that_has_left_is_an_error_until_a_run_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, write = os.pipe()
    os.close(read)
    pipe = Pipe(write, "stdout")
    monkeypatch.setattr(Pipe, "patience", None)  # another test's run may have changed it
    with pytest.raises(BrokenPipeError):
        pipe.write(b"said")
    monkeypatch.setattr(Pipe, "patience", LIMIT)
    assert pipe.write(b"said") == 4
    assert os.write(write, b"of a library") == 12  # goes nowhere as well
    os.close(write)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="elsewhere the write waits")
def test_another_writer_that_fills_the_pipe_is_not_waited_for(
    ends: tuple[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stream = ends
    os.set_blocking(stream.fileno(), False)
    with suppress(BlockingIOError):
        while True:
            os.write(stream.fileno(), bytes(select.PIPE_BUF))
    os.set_blocking(stream.fileno(), True)
    ready, calls = select.select, list[float]()

    def too_early(*given: Any) -> Any:
        calls.append(given[3])
        return ready(*given) if len(calls) > 1 else given[:3]

    monkeypatch.setattr(select, "select", too_early)
    monkeypatch.setattr(Pipe, "patience", 0.01)
    assert ends_in_time(lambda: (stream.write("said\n"), stream.flush()))
    assert len(calls) > 1


def test_python_u_holds_nothing_back(ends: tuple[int, Any]) -> None:
    read, stream = ends
    os.set_blocking(read, False)
    with os.fdopen(os.dup(stream.fileno()), "w") as plain:
        plain.reconfigure(write_through=True)
        direct = Tolerant(through_pipe(plain))
        print(".", end="", file=direct)
        assert os.read(read, 9) == b"."
        direct.buffer.write(b"!")
        assert os.read(read, 9) == b"!"
