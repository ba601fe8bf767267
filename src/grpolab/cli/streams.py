"""Output that nobody reads any more: a command goes on without it.

`grpolab train … | head -1` closes the pipe behind its first line, a terminal goes away with its
connection, a log file's disk is full, what reads the pipe is stuck: none of that is a reason to
lose a run, or to have it wait for ever.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from typing import Any

PATIENCE_SECONDS = 10.0
"""How long a run waits for the reader of a full pipe, before it goes on without it."""


class Pipe(io.RawIOBase):
    """A standard stream that is a pipe, of which a reader may be alive and not read.

    Pieces of at most PIPE_BUF bytes are written: so many fit where select says that a pipe takes
    something, while a longer write would wait for the reader. What compiled code writes to the
    descriptor itself does not come through here.
    """

    patience: float | None = None
    """Seconds; None: for ever, as a command does whose output is all it is for (`… | less`)."""

    def __init__(self, number: int, name: str) -> None:
        self._number, self.name = number, name

    def fileno(self) -> int:
        return self._number

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Writes the beginning of it.

        Raises:
            TimeoutError: nobody has read for so long.
        """
        if not select.select([], [self._number], [], self.patience)[1]:
            raise TimeoutError(f"{self.name}: nobody reads")
        return os.write(self._number, memoryview(data)[: select.PIPE_BUF])


def impatient() -> None:
    """From now on something else is at stake than the output."""
    Pipe.patience = PATIENCE_SECONDS


def through_pipe(stream: Any) -> Any:
    """The same stream; if it is a pipe, with a limit to waiting."""
    if not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Pipe(stream.fileno(), stream.name)),
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering or stream.write_through,
    )


class Tolerant:
    """A text stream that drops what cannot be written, from the first failure on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes it, or not."""
        try:
            self._stream.write(text)
        except OSError:
            self._give_up()
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes them, or not."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Sends what was written, if anybody takes it."""
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Sends this and all that follows, also of libraries that write to the descriptor itself,
        to nobody."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def open_all() -> None:
    """Gives the standard streams that the caller has closed to nobody: else the first files that
    are opened would get their numbers, and be written into."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, Tolerant(through_pipe(stream)))
