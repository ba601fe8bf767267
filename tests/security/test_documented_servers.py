"""MLflow asks nobody who they are: a server in our documents listens to its own machine alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("conf", "src", "experiments", "analysis", "tests/parity")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), ROOT / "Makefile"]
    + [p for f in FOLDERS for end in ("md", "yaml", "py") for p in (ROOT / f).rglob(f"*.{end}")]
)


def commands(text: str) -> list[str]:
    """Every `mlflow server …`, its continued lines joined; its bare name in a sentence is none."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return re.findall(r"\bmlflow server\b(?!`)[^\n`]*", joined)


COMMANDS = [
    (f"{path.relative_to(ROOT)}: {command}", command)
    for path in DOCUMENTS
    for command in commands(path.read_text(encoding="utf-8"))
]


def test_the_readme_s_server_was_found() -> None:
    assert any(place.startswith("README.md: ") for place, _ in COMMANDS)
    assert commands("behind `mlflow server` or\n    mlflow server \\\n  --port 1\n") == [
        "mlflow server  --port 1"
    ]


@pytest.mark.parametrize("command", [c for _, c in COMMANDS], ids=[place for place, _ in COMMANDS])
def test_a_server_listens_to_its_own_machine(command: str) -> None:
    assert re.search(r"--host[ =]127\.0\.0\.1(\s|$)", command)
