"""The end of a process that has nothing left to say."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def end(code: int) -> NoReturn:
    """Ends this process as `sys.exit` does, but leaves memory to the kernel.

    Taking torch, Transformers and MLflow apart costs the interpreter two seconds. What is
    registered for an exit is done, and what was printed goes out. Where a thread has still to be
    waited for, the interpreter ends in its own way.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main or any(
        not thread.daemon for thread in threading.enumerate() if thread is not main
    ):
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads
            stream.flush()
    os._exit(code)
