"""The bare command: usage, and what a shell's completion asks of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from grpolab.cli import COMMANDS, main


def test_usage_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in COMMANDS)


@pytest.mark.parametrize("command", ["grpolab train", "grpolab"])
def test_bash_completion_knows_the_choices(command: str) -> None:
    line = f"{command} clip="
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(
        [sys.executable, "-m", "grpolab", "-sc", "query=bash"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"clip=ppo", "clip=cispo", "clip=gspo"} <= set(done.stdout.split())
