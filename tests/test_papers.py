"""PAPERS.md: every path, test and configuration it names is there, and nothing is left out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from grpolab.cli.catalogue import ARXIV, Entry, entries
from grpolab.component import MODULES
from grpolab.config import bind_run
from grpolab.sweep.compose import Command, expand

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "PAPERS.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| paper")
]
COVERED = ("advantage", "kl", "clip", "mask", "aggregation", "correction")
"""Groups of which every choice has its row."""


def test_the_table_was_read() -> None:
    assert len(ROWS) > 80
    assert all(len(row) == 4 for row in ROWS)


@cache
def functions_of(path: str) -> set[str]:
    """The test functions of a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("proof", sorted({row[3] for row in ROWS}))
def test_the_proof_exists(proof: str) -> None:
    path, separator, name = proof.partition("::")
    assert separator
    assert name in functions_of(path)


@pytest.mark.parametrize("configuration", sorted({row[2] for row in ROWS}))
def test_the_configuration_binds(configuration: str) -> None:
    words = configuration.strip("`").split()
    assert bind_run(expand(Command(words)).jobs[0].raw)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"tests/[\w/]+\.py", TEXT))))
def test_the_files_exist(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("entry", [e for g in COVERED for e in entries(g)], ids=str)
def test_every_choice_has_a_row(entry: Entry) -> None:
    if (entry.group, entry.name) in (("kl", "none"), ("correction", "none")):
        return  # the absence of one is nobody's
    used = [word for row in ROWS for word in row[2].strip("`").split()]
    assert entry.usage in used


@pytest.mark.parametrize("group", list(MODULES))
def test_every_source_of_the_catalogue_is_listed(group: str) -> None:
    sources = {s for e in entries(group) for s in e.sources if ARXIV.fullmatch(s)}
    assert sources <= set(ARXIV.findall(TEXT))
