"""Output that nobody reads any more: a command goes on without it.

`grpolab train … | head -1` closes the pipe behind its first line, a terminal goes away with its
connection, a log file's disk is full: none of that is a reason to lose a run.
"""

from __future__ import annotations

import os
import sys
from typing import Any


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
        setattr(sys, name, Tolerant(stream))
