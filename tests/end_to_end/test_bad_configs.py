"""A bad configuration: exit code 2, one sentence that says what to change, and nothing written."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

Refused = Callable[..., str]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Inputs that lie outside the folder the command runs in."""
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(12)]
    return launching.write_tree(
        tmp_path / "files",
        {
            "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
            "empty.jsonl": "",
            "regular": "a file, not a folder",
            "no_model/readme.txt": "no config.json here",
        },
    )


SETTINGS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "unknown choice": (["clip=pppo"], ["clip:", "pppo", "cispo", "did you mean ppo?"]),
    "misspelt key": (["clip.hihg=0.3"], ["clip.hihg:", "0.3", "did you mean high?"]),
    "misspelt root key": (["stepps=3"], ["stepps:", "3", "did you mean steps?"]),
    "misspelt setting of a section": (
        ["optimizer.learning_rate=1"],
        ["optimizer.learning_rate:", "1", "optimizer.lr"],
    ),
    "key added with +": (["+optimizer.lrr=1"], ["optimizer.lrr:", "1", "did you mean lr?"]),
    "wrong type": (["steps=many"], ["steps:", "'many'", "a whole number"]),
    "wrong type of a section": (["optimizer.lr=fast"], ["optimizer.lr:", "'fast'", "a number"]),
    "unknown literal": (
        ["hardware.device=cudda"],
        ["hardware.device:", "'cudda'", "did you mean cuda?"],
    ),
    "a group of one": (["sampler.group_size=1"], ["sampler.group_size:", "1", "at least 2"]),
    "KL without a reference": (
        ["kl=k3", "reference=none"],
        ["reference:", "none", "kl=k3", "reference=frozen"],
    ),
    "negative weight of the KL": (["kl=k3", "kl.beta=-0.1"], ["kl.beta:", "-0.1", "≥ 0"]),
    "negative temperature": (
        ["sampler.temperature=-1"],
        ["sampler.temperature:", "-1", "> 0"],
    ),
    "no room for the completion": (
        ["sampler.max_new_tokens=100000"],
        ["sampler.max_new_tokens:", "100000", "tiny", "at most"],
    ),
    "no file given": (["task=jsonl"], ["task.path:", "missing"]),
    "a number that nothing holds": (
        [f"model.max_prompt_tokens={'1' * 400}"],
        ["model.max_prompt_tokens:", "1326 bits", "at most 63 bits"],
    ),
    "no seed": (["-m", "~seed=0"], ["seed:", "~seed=0 takes it away", "a whole number"]),
    "a seed beyond 64 bits": ([f"seed={2**64}"], ["seed:", "65 bits", "≥ 0 of at most 63 bits"]),
    "unknown model": (["model.name=tinny"], ["model.name:", "'tinny'", "did you mean tiny?"]),
    "half a batch": (
        ["updates_per_batch=3", "minibatches=2"],
        ["updates_per_batch:", "3", "a multiple of minibatches"],
    ),
    "study with a slash": (["study=a/b"], ["study:", "'a/b'"]),
    "several values without -m": (["clip=ppo,cispo"], ["clip:", "-m"]),
    "no such override": (["clip"], ["clip"]),
}  # fmt: skip


@pytest.mark.parametrize("case", list(SETTINGS))
def test_bad_setting(case: str, refused: Refused) -> None:
    overrides, wanted = SETTINGS[case]
    sentence = refused("train", *overrides)
    for part in wanted:
        assert part in sentence


def test_missing_file(files: Path, refused: Refused) -> None:
    path = files / "row.jsonl"
    sentence = refused("train", "task=jsonl", f"task.path={path}")
    assert "task.path" in sentence
    assert str(path) in sentence


def test_missing_column(files: Path, refused: Refused) -> None:
    path = files / "rows.jsonl"
    sentence = refused("train", "task=jsonl", f"task.path={path}", "task.answer_column=anser")
    assert "task.answer_column" in sentence
    assert "'anser'" in sentence
    assert "did you mean" in sentence
    assert "answer" in sentence.split("did you mean")[1]


def test_empty_data_set(files: Path, refused: Refused) -> None:
    sentence = refused("train", "task=jsonl", f"task.path={files / 'empty.jsonl'}")
    assert "task.path" in sentence
    assert "empty.jsonl" in sentence


@pytest.mark.parametrize("folder", ["no_model", "not_there"])
def test_unknown_model_folder(folder: str, files: Path, refused: Refused) -> None:
    sentence = refused("train", f"model.name={files / folder}")
    assert "model.name:" in sentence
    assert str(files / folder) in sentence


def test_output_below_a_regular_file(files: Path, refused: Refused) -> None:
    out = files / "regular" / "out"
    sentence = refused("train", f"output_dir={out}")
    assert "output_dir:" in sentence
    assert str(out) in sentence


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs Linux's /proc")
def test_output_that_cannot_be_written(refused: Refused) -> None:
    sentence = refused("train", "output_dir=/proc/grpolab")
    assert "output_dir:" in sentence
    assert "/proc/grpolab" in sentence


def test_unreachable_tracking_uri(refused: Refused, tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{closed_port()}"
    out = tmp_path / "out"
    sentence = refused("train", f"tracking.uri={uri}", f"output_dir={out}")
    assert "tracking.uri:" in sentence
    assert uri in sentence
    assert not out.exists()


@pytest.mark.parametrize(
    ("uri", "allowed"),
    [("sqlit:///a.db", "sqlite"), ("mlruns", "sqlite"), ("sqlite:////no/such/folder/a.db", "/no")],
)
def test_impossible_tracking_uri(uri: str, allowed: str, refused: Refused) -> None:
    sentence = refused("train", f"tracking.uri={uri}")
    assert "tracking.uri:" in sentence
    assert uri in sentence
    assert allowed in sentence


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_one_bad_job_refuses_the_whole_sweep(refused: Refused) -> None:
    assert "sampler.group_size:" in refused("train", "-m", "sampler.group_size=4,1", "seed=0,1")
    assert "did you mean ppo?" in refused("train", "-m", "clip=cispo,ppoo", "seed=0,1")
    assert "clip.low:" in refused("train", "-m", "clip=ppo", "clip.low=0.2,-1")


def test_a_baseline_that_is_no_factor(refused: Refused) -> None:
    sentence = refused("train", "-m", "clip=ppo,cispo", "+tracking.baseline.kl=none")
    assert "tracking.baseline:" in sentence
    assert "'kl'" in sentence


def test_unknown_command(refused: Refused) -> None:
    sentence = refused("trian", "clip=ppo")
    assert "'trian'" in sentence
    assert "did you mean train?" in sentence


def test_unknown_words_of_other_commands(refused: Refused) -> None:
    assert "did you mean sweep?" in refused("analyze", "swep=latest")
    assert "did you mean output_dir?" in refused("doctor", "output_di=x")
    assert "did you mean clip" in refused("list", "clipp")
    assert "did you mean ppo" in refused("list", "clip", "pppo")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [(("clip=pppo",), "clip:"), (("-m", "kl=k3", "reference=frozen,none"), "reference:")],
)
def test_a_real_process_says_it_too(overrides: tuple[str, ...], key: str, tmp_path: Path) -> None:
    done = launching.grpolab("train", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert key in launching.one_sentence(done.stderr)
    assert done.stdout == ""
    assert not os.listdir(tmp_path)
