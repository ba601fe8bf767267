"""`grpolab list`: what a person sees in a terminal, and what a script reads."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from grpolab.cli import main
from grpolab.cli.catalogue import Entry, about, as_yaml, common, entries, reflow
from grpolab.component import MODULES, NESTED, component_class, names
from grpolab.config import bind_run
from grpolab.sweep.compose import Command, expand

EVERY = [(group, name) for group in MODULES for name in names(group)]


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `grpolab list …` in a terminal of so many columns; what it printed."""

    def run(*words: str, columns: int = 100) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["list", *words]) == 0
        found = capsys.readouterr()
        assert found.err == ""
        return found.out

    return run


def columns_of(text: str, name: str) -> str:
    """The line of a choice in a group's table."""
    (line,) = [x for x in text.splitlines() if x.split()[:1] in ([name], [f"{name}*"])]
    return line


# --- The tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal(listed: Any, columns: int) -> None:
    lines = listed(columns=columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line == line.rstrip() for line in lines)


def test_every_group_and_choice_is_listed(listed: Any) -> None:
    found = listed(columns=160)
    for group in MODULES:
        assert f"{group}  {about(group)}" in found.splitlines()
    starts = {line.split()[0].rstrip("*") for line in found.splitlines() if line.strip()}
    assert {name for _, name in EVERY} <= starts


@pytest.mark.parametrize("group", [g for g in MODULES if g not in NESTED])
def test_every_group_says_what_it_is_for(group: str) -> None:
    assert about(group)


def test_formula_source_and_settings_stand_together(listed: Any) -> None:
    lines = listed("clip", columns=160).splitlines()
    (row,) = [i for i, line in enumerate(lines) if line.startswith("  gspo ")]
    assert "−min(sA, clip(s, 1−low, 1+high)A) with s = exp(mean_t d)" in lines[row]
    assert lines[row].endswith("2507.18071")
    assert lines[row + 1].split() == ["low=0.0003,", "high=0.0004"]


def test_columns_are_aligned(listed: Any) -> None:
    found = listed("clip", columns=100)
    for name in ("gspo", "sapo", "cispo", "dual"):  # one with a short name, one with a long formula
        line, cls = columns_of(found, name), component_class("clip", name)
        source = Entry("clip", name, cls).sources[0]
        assert line.index(source) == columns_of(found, "ppo").index("1707.06347")
        formula = line.split(None, 1)[1]
        assert line.index(formula) == columns_of(found, "ppo").index("−min")


def test_the_default_is_marked(listed: Any) -> None:
    assert columns_of(listed("kl"), "none").startswith("  none*")
    assert columns_of(listed("clip"), "ppo").startswith("  ppo*")
    assert "*" not in listed("mask").replace("clip.masks=[<name>]", "")


def test_shared_settings_stand_once_at_the_head(listed: Any) -> None:
    found = listed("kl")
    assert "all but none take" in found
    assert found.count("beta=0.04") == found.count("schedule=constant") == 1
    assert found.index("beta=0.04") < found.index("  k1 ")
    assert listed("clip").count("masks=[]") == 1
    assert listed("sampler").count("temperature=1.0") == 1


def test_what_is_not_shared_stays_with_its_choice(listed: Any) -> None:
    assert "c=10.0" in listed("kl")
    assert "all" not in listed("selection").splitlines()[2].split()
    for group in MODULES:
        shared = common(entries(group))
        for e in entries(group):
            kept = {k: s.default for k, s in e.settings.items()}
            assert not kept or {k: kept[k] for k in shared} == {
                k: s.default for k, s in shared.items()
            }


def test_a_nested_group_says_how_to_use_it(listed: Any) -> None:
    assert "grpolab train clip.masks=[<name>]" in listed("mask")
    one = listed("mask", "off_policy_sequence")
    assert "grpolab train clip.masks=[off_policy_sequence]" in one
    assert "'clip.masks=[{name: off_policy_sequence, delta: 0.5}]'" in one


# --- One choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_one_in_full(listed: Any, group: str, name: str) -> None:
    found = listed(group, name, columns=80)
    assert max(map(len, found.splitlines())) <= 120  # links and quoted formulas stay whole
    cls = component_class(group, name)
    joined = " ".join(found.split())
    assert " ".join((cls.__doc__ or "").split("\n\n")[0].split()) in joined
    for key, setting in Entry(group, name, cls).settings.items():
        assert f"  {key}=" in found
        shown = f"{setting.help} ({setting.type})"
        assert set(shown.split()) <= set(found.split())  # nothing is cut off
    assert f"class   {cls.__module__}.{cls.__qualname__}" in found


@pytest.mark.parametrize("words", [("clip", "ppo"), ("clip=ppo",), ("ppo",)])
def test_ways_to_ask_for_one(listed: Any, words: tuple[str, ...]) -> None:
    found = listed(*words)
    assert found.startswith("clip=ppo\n")
    assert "https://arxiv.org/abs/1707.06347" in found


def test_a_name_of_several_groups_shows_each(listed: Any) -> None:
    found = listed("none")
    assert all(f"{g}=none\n" in found for g in ("kl", "clip", "reference", "correction"))


def test_example_of_use_is_a_configuration_that_works(listed: Any) -> None:
    (line,) = [x for x in listed("clip", "dual").splitlines() if x.startswith("use ")]
    words = line.split("grpolab train ")[1].split()
    assert bind_run(expand(Command(words)).jobs[0].raw).clip.name == "dual"


# --- Sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "name", "sources"),
    [
        ("clip", "cispo", ["2506.13585", "2510.13786"]),
        ("clip", "tis_pg", ["ROLL"]),
        ("kl", "straight_through", ["verl"]),
        ("mask", "truncated", ["2503.14476"]),
        ("clip", "none", []),
    ],
)
def test_sources(group: str, name: str, sources: list[str]) -> None:
    assert Entry(group, name, component_class(group, name)).sources == sources


# --- Values, text and machines ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.0"), (0.0, "0.0"), (1, "1"), (True, "true"), (False, "false"), (None, "null"),
     (float("inf"), ".inf"), (-float("inf"), "-.inf"), ([0.5, None], "[0.5, null]"), ([], "[]"),
     ("k3", "k3")],
)  # fmt: skip
def test_values_as_yaml(value: Any, text: str) -> None:
    assert as_yaml(value) == text


def test_lists_in_a_docstring_keep_their_lines() -> None:
    assert reflow("one\ntwo", 80) == ["one two"]
    assert reflow("a list\n  one\n  two", 80) == ["a list", "  one", "  two"]


def test_json(listed: Any) -> None:
    found = json.loads(listed("json=true"))
    assert list(found) == list(MODULES)
    assert {(g, e["name"]) for g, es in found.items() for e in es} == set(EVERY)
    (ppo,) = [e for e in found["clip"] if e["name"] == "ppo"]
    assert ppo["default"]
    assert ppo["sources"] == ["1707.06347", "2503.14476"]
    assert [(s["name"], s["default"]) for s in ppo["settings"]] == [
        ("masks", []),
        ("low", 0.2),
        ("high", 0.2),
    ]
    assert [e["name"] for e in json.loads(listed("kl", "k3", "json=true"))["kl"]] == ["k3"]
    defaults = {g: [e["name"] for e in es if e["default"]] for g, es in found.items()}
    assert all(len(d) == (g not in NESTED) for g, d in defaults.items())


# --- Mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "start", "end"),
    [
        (["clpi"], "unknown group 'clpi'; allowed: task, ", "did you mean clip?"),
        (["cipso"], "unknown group 'cipso'; allowed: task, ", "did you mean cispo?"),
        (["clip", "cipso"], "clip: unknown clip 'cipso'; allowed: ", "did you mean cispo?"),
        (["clip=cipso"], "clip: unknown clip 'cipso'; allowed: ", "did you mean cispo?"),
        (["zzzz"], "unknown group 'zzzz'; allowed: ", "search."),
        (["clip", "ppo", "low"], "low: too much; allowed: ", "[name]."),
        (["json=yes"], "json: 'yes' given; allowed: ", "false."),
        (["--all"], "--all: unknown flag; allowed: ", "json=true."),
    ],
)
def test_mistakes(
    words: list[str], start: str, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", *words]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(f"grpolab: {start}")
    assert found.err.endswith(f"{end}\n")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["clip", "--help"]])
def test_help_names_every_group(listed: Any, words: list[str]) -> None:
    found = listed(*words)
    assert found.startswith("usage: grpolab list [group] [name]")
    assert all(group in found.split("groups: ")[1] for group in MODULES)


# --- A real terminal and a pipe -----------------------------------------------------------------

LIST_KL = [sys.executable, "-m", "grpolab", "list", "kl"]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    sources = str(Path(__file__).parents[1] / "src")
    return {**kept, "TERM": "xterm-256color", "PYTHONPATH": sources}


def test_a_pipe_gets_no_colour() -> None:
    done = subprocess.run(LIST_KL, capture_output=True, env=environment(), check=True)
    assert b"\x1b" not in done.stdout
    assert b"  k3 " in done.stdout


def test_a_terminal_gets_colour_and_its_own_width() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 72, 0, 0))
    process = subprocess.Popen(LIST_KL, stdout=theirs, stdin=theirs, env=environment())
    os.close(theirs)
    read = b""
    try:
        while chunk := os.read(ours, 4096):
            read += chunk
    except OSError:  # Linux: the other end is closed
        pass
    assert process.wait() == 0
    os.close(ours)
    text = read.decode()
    assert "\x1b[1m" in text
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "").splitlines()
    assert 60 < max(map(len, lines)) <= 72
