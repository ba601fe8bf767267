"""A side of a benchmark in a process of its own: `python -m grpolab.bench.worker <side>`.

The first line on stdin is what to load; each {"command": "step"} after it runs one step. The
process ends with its stdin.
"""

from __future__ import annotations

import sys
from typing import Any

from grpolab.bench.channel import STEP, Channel, Line


def load(side: str, spec: Line) -> Any:
    """The side, loaded."""
    if side == "ours":
        from grpolab.bench.our_side import Ours

        return Ours(spec)
    if side == "hf":
        from grpolab.bench.hf_side import Generate

        return Generate(spec)
    if side == "trl":
        from grpolab.bench.trl_side import Trl

        return Trl(spec)
    from grpolab.bench.machine import Machine

    return Machine(spec)


def main(side: str) -> None:
    """Loads, says so, and steps until nobody asks."""
    channel = Channel()
    spec = channel.read()
    if spec is None:
        return
    loaded = load(side, spec)
    channel.write({"ready": loaded.about() | versions()})
    if hasattr(loaded, "serve"):  # a trainer that keeps its own loop
        loaded.serve(channel)
        return
    while (command := channel.read()) is not None:
        if command["command"] == STEP:
            channel.write(loaded.step())
        else:
            channel.write(getattr(loaded, command["command"])(**command["arguments"]))


def versions() -> Line:
    """What ran."""
    import torch
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main(sys.argv[1])
