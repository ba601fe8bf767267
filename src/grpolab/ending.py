"""The end of a process that has nothing left to say."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def end(code: int) -> NoReturn:
    """Ends this process as `sys.exit` does, but leaves memory to the kernel.

    Taking torch, Transformers and MLflow apart costs the interpreter two seconds. What is
    registered for an exit is done, and what was printed, or written to a file that is still open,
    a reward's own log among them, goes out. Where a thread has still to be waited for, the
    interpreter ends in its own way.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main or any(
        not thread.daemon for thread in threading.enumerate() if thread is not main
    ):
        sys.exit(code)
    atexit._run_exitfuncs()
    flush_all()
    os._exit(code)


def flush_all() -> None:
    """Writes out what Python's and C's open files hold back."""
    # by type: isinstance would ask proxies for their class, which some import things for
    files = [found for found in gc.get_objects() if issubclass(type(found), io.IOBase)]
    # text files first: they hand on to the buffers below them
    for file in sorted(files, key=lambda f: not isinstance(f, io.TextIOBase)):
        with suppress(Exception):  # closed, not writable, or nobody reads
            file.flush()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).fflush(None)
