"""What a full disk looks like, whichever library met it."""

from __future__ import annotations

import errno

WORDS = ("no space left on device", "os error 28", "disk quota exceeded", "disk is full")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is the lack of disk space. Safetensors and SQLite say so
    in words alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error).lower() for words in WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False
