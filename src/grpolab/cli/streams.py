"""Output that nobody reads any more: a command goes on without it.

`grpolab train … | head -1` closes the pipe behind its first line, a terminal goes away with its
connection, a log file's disk is full, what reads the pipe is stuck: none of that is a reason to
lose a run, or to have it wait for ever.
"""

from __future__ import annotations

import io
import os
import select
import socket
import stat
import sys
from contextlib import suppress
from time import monotonic
from typing import Any

PATIENCE_SECONDS = 5.0
"""How long a run waits for the reader of a full pipe, before it goes on without it."""


class Pipe(io.RawIOBase):
    """A standard stream that is a pipe or a socket, of which a reader may be alive and not read.

    Pieces of at most PIPE_BUF bytes are written: so many fit where select says that a pipe takes
    something, while a longer write would wait for the reader. What compiled code writes to the
    descriptor itself does not come through here.
    """

    patience: float | None = None
    """Seconds; None: for ever, as a command does whose output is all it is for (`… | less`)."""

    def __init__(self, number: int, name: str) -> None:
        self._number, self.name = number, name
        self._waited = 0.0  # since something was written

    def fileno(self) -> int:
        return self._number

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Writes the beginning of it; with limited patience, all of it to nobody if nobody reads.

        The giving up is done here, below every buffer: so all of them are rid of what they hold,
        and none waits again.
        """
        view = memoryview(data).cast("B")
        try:
            while self._is_ready():
                with suppress(BlockingIOError):  # another writer was faster
                    written = put(self._number, view[: select.PIPE_BUF])
                    self._waited = 0.0
                    return written
        except OSError:
            if self.patience is None:
                raise
        to_nobody(self._number)
        self._waited = 0.0
        return len(view)

    def _is_ready(self) -> bool:
        """Whether it takes something before patience is at its end.

        What interrupts the waiting, a reward's time limit for instance, does not renew patience.
        """
        left = None if self.patience is None else max(self.patience - self._waited, 0.0)
        start = monotonic()
        try:
            return bool(select.select([], [self._number], [], left)[1])
        finally:
            self._waited += monotonic() - start


class Unbuffered(io.BufferedWriter):
    """Holds nothing back, as `python -u` asks for; a pipe takes a long text only in pieces."""

    def write(self, data: Any) -> int:
        written = super().write(data)
        self.flush()
        return written


def put(number: int, piece: memoryview) -> int:
    """Writes the beginning of it, where possible without waiting.

    Other processes share the descriptor's flags, so it is not made non-blocking itself. Linux
    opens a second one to the same pipe; elsewhere the write may wait if another writer has filled
    the pipe since select.

    Raises:
        BlockingIOError: nothing fits.
    """
    mode = os.fstat(number).st_mode
    if stat.S_ISSOCK(mode):
        with socket.fromfd(number, socket.AF_UNIX, socket.SOCK_STREAM) as own:
            return own.send(piece, socket.MSG_DONTWAIT)
    if not stat.S_ISFIFO(mode):  # somebody has redirected it, into a file for instance
        return os.write(number, piece)
    try:
        second = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # no such folder, another user's pipe, or no reader
        return os.write(number, piece)
    try:
        return os.write(second, piece)
    finally:
        os.close(second)


def to_nobody(number: int) -> None:
    """Sends all that follows, also of libraries that write to the descriptor itself, to nobody."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def impatient() -> None:
    """From now on something else is at stake than the output."""
    Pipe.patience = PATIENCE_SECONDS


def through_pipe(stream: Any) -> Any:
    """The same stream; if it is a pipe or a socket, with a limit to waiting."""
    try:
        number = stream.fileno()
        mode = os.fstat(number).st_mode
    except (AttributeError, OSError, ValueError):  # in memory, or a notebook's
        return stream
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return stream
    stream.flush()
    buffered = Unbuffered if stream.write_through else io.BufferedWriter
    return io.TextIOWrapper(
        buffered(Pipe(number, stream.name)),
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
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
        with suppress(AttributeError, ValueError):  # no descriptor
            to_nobody(self._stream.fileno())


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
