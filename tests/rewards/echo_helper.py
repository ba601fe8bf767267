"""A helper process for the tests of `grpolab.rewards.isolated`: what it is told, it does."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from grpolab.rewards.isolated import serve

asked = 0


def obey(request: dict[str, Any]) -> Any:
    """Do one thing: echo, fail, end, hang in Python or in compiled code, print."""
    global asked
    asked += 1
    match request["do"]:
        case "echo":
            return request["value"]
        case "count":
            return asked
        case "process":
            return os.getpid()
        case "fail":
            raise KeyError("gone")
        case "end":
            os._exit(3)
        case "wait":
            threading.Event().wait()
        case "multiply":  # hours in compiled code
            return 9 ** (9**9)
        case "print":
            print('{"value": "a lie"}', flush=True)
            sys.__stdout__.write("another\n")  # type: ignore[union-attr]
            return "printed"
    raise ValueError(request)


if __name__ == "__main__":
    serve(obey)
