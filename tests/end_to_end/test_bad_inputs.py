"""Bad data, models, checkpoints, stores and folders: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grpolab.policy.locate import TINY
from grpolab.sweep.compose import Command, expand
from grpolab.training import checkpoint

Refused = Callable[..., str]
Make = Callable[[Path], object]
"""Puts the bad thing at that path."""

GOOD = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(12)]


def text(content: str) -> Make:
    return raw(content.encode())


def raw(content: bytes) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


def rows(*changed: Any) -> Make:
    return text("".join(json.dumps(row) + "\n" for row in [*GOOD, *changed]))


DATA: dict[str, tuple[str, Make, tuple[str, ...]]] = {
    "a torn line": ("a.jsonl", text('{"prompt": "1", "answer": "2"}\n{"prompt": '), ("row 2",)),
    "no JSON at all": ("a.jsonl", text("hello\n"), ("row 1",)),
    "a list instead of an object": ("a.jsonl", text("[1, 2]\n"), ("row 1",)),
    "not UTF-8": ("a.jsonl", raw(b'{"prompt": "\xff\xfe", "answer": "2"}\n'), ("utf-8",)),
    "zeros": ("a.jsonl", raw(b"\0" * 512), ()),
    "only blank lines": ("a.jsonl", text("\n\n\n"), ()),
    "an empty prompt": ("a.jsonl", rows({"prompt": "", "answer": "1"}), ("row 13",)),
    "a blank answer": ("a.jsonl", rows({"prompt": "x", "answer": "  "}), ("row 13",)),
    "no prompt": ("a.jsonl", rows({"answer": "1"}), ("row 13",)),
    "an answer that is null": ("a.jsonl", rows({"prompt": "x", "answer": None}), ("row 13",)),
    "one row": ("a.jsonl", text(json.dumps(GOOD[0]) + "\n"), ()),
    "a prompt longer than the context": (
        "a.jsonl", rows({"prompt": "1+" * 400, "answer": "1"}), ("context", "tiny")
    ),
    "no known ending": ("a.xml", text("<a/>"), (".jsonl",)),
    "JSON that is no list": ("a.json", text('"text"'), ()),
    "a CSV without the column": ("a.csv", text("question,answer\n1,2\n"), ("prompt",)),
    "a CSV row too long": ("a.csv", text("prompt,answer\n1,2\n1,2,3,4\n"), ("row 2",)),
    "a Parquet that is none": ("a.parquet", raw(b"PAR1nothingPAR1"), ()),
    "a folder": ("a.jsonl", Path.mkdir, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", list(DATA))
def test_bad_data(case: str, tmp_path: Path, refused: Refused) -> None:
    name, make, wanted = DATA[case]
    path = tmp_path / name
    make(path)
    sentence = refused("train", "task=jsonl", f"task.path={path}")
    assert "task" in sentence
    assert name in sentence
    for part in wanted:
        assert part in sentence


def copy_of_tiny(folder: Path) -> Path:
    shutil.copytree(TINY, folder)
    return folder


def changed(**settings: Any) -> Make:
    """The embedded model with other settings in its config.json."""

    def make(folder: Path) -> None:
        path = copy_of_tiny(folder) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return make


def with_file(name: str, content: bytes | None) -> Make:
    """The embedded model with a file replaced, or without it."""

    def make(folder: Path) -> None:
        path = copy_of_tiny(folder) / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return make


def cut_weights(folder: Path) -> None:
    path = copy_of_tiny(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled_weights(folder: Path) -> None:
    """Weights as a pickle that would leave a file behind if anyone loaded it."""
    copy_of_tiny(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(folder / "exploded"))))


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def own_code(folder: Path) -> None:
    """A model folder with code of its own, which must not run."""
    changed(
        model_type="hostile", architectures=["Hostile"],
        auto_map={"AutoConfig": "hostile.Config", "AutoModelForCausalLM": "hostile.Hostile"},
    )(folder)  # fmt: skip
    (folder / "hostile.py").write_text(f"import os\nos.mkdir({str(folder / 'exploded')!r})\n")


MODELS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "config.json is no JSON": (with_file("config.json", b"{"), ()),
    "config.json is a list": (with_file("config.json", b"[]"), ("the config.json of",)),
    "an unknown kind": (changed(model_type="llamma"), ("llamma",)),
    "no language model": (changed(model_type="vit", architectures=["ViTModel"]), ()),
    "no tokenizer": (with_file("tokenizer.json", None), ("the tokenizer of", "one of: …)")),
    "a tokenizer that is none": (with_file("tokenizer.json", b"{}"), ("tokenizer", "KeyError")),
    "no weights": (with_file("model.safetensors", None), ("safetensors",)),
    "empty weights": (with_file("model.safetensors", b""), ("safetensors",)),
    "weights cut off": (cut_weights, ("safetensors",)),
    "a header beyond the file": (
        with_file("model.safetensors", struct.pack("<Q", 2**40) + b"{}"), ("safetensors",)
    ),
    "pickled weights": (pickled_weights, ("safetensors",)),
    "code of its own": (own_code, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", list(MODELS))
def test_bad_model(case: str, tmp_path: Path, refused: Refused) -> None:
    make, wanted = MODELS[case]
    folder = tmp_path / "model"
    make(folder)
    sentence = refused("train", f"model.name={folder}")
    assert "model" in sentence
    assert str(folder) in sentence
    for part in wanted:
        assert part in sentence
    assert not (folder / "exploded").exists()


def run_folder(folder: Path, *words: str) -> Path:
    """As a run leaves it that has no weights yet."""
    from omegaconf import OmegaConf

    raw = expand(Command(["model=tiny", "hardware.device=cpu", *words])).jobs[0].raw
    folder.mkdir()
    OmegaConf.save(OmegaConf.create(raw), folder / "config.yaml")
    return folder


def run_with_weights(folder: Path) -> Path:
    """A run whose checkpoint is whole, and holds the weights of another model than its own."""
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    state = {"step": 3, "baseline": None, "beta": None}
    checkpoint.save(run_folder(folder), {"w": weight}, torch.optim.SGD([weight], lr=0.1), state)
    return folder / checkpoint.FOLDER


def cut_checkpoint(folder: Path) -> None:
    path = run_with_weights(folder) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def run_without_configuration(folder: Path) -> None:
    path = run_with_weights(folder).parent / "config.yaml"
    path.write_text("model: [")


CHECKPOINTS: dict[str, tuple[Make, str, tuple[str, ...]]] = {
    "a folder without one": (Path.mkdir, ".", ("no weights", "a saved model")),
    "a run that has none yet": (run_folder, ".", ("no weights yet", "checkpoint.every")),
    "a misspelt folder of a run": (run_with_weights, "chekpoint", ("no weights", "a run's folder")),
    "a checkpoint cut off": (cut_checkpoint, ".", ("weights.safetensors is damaged",)),
    "a saved model cut off": (cut_weights, ".", ("model.safetensors is cut off",)),
    "the weights of another model": (
        run_with_weights, "checkpoint", ("another model than tiny", "missing")
    ),
    "a run whose config.yaml is none": (run_without_configuration, ".", ("config.yaml",)),
}  # fmt: skip
"""What lies there, and what of it is named."""


@pytest.mark.parametrize("case", list(CHECKPOINTS))
def test_bad_checkpoint(case: str, tmp_path: Path, refused: Refused) -> None:
    make, named, wanted = CHECKPOINTS[case]
    path = tmp_path / "run"
    make(path)
    sentence = refused("probe", f"checkpoint={path / named}", "variants=[clip=ppo]")
    assert sentence.startswith("grpolab: checkpoint: ")
    assert str(path) in sentence
    for part in wanted:
        assert part in sentence


def other_schema(path: Path) -> None:
    with sqlite3.connect(path) as store:
        store.execute("create table alembic_version (version_num text)")
        store.execute("insert into alembic_version values ('from the future')")
    store.close()


STORES: dict[str, Make] = {
    "no database": raw(b"this is a letter, and no database" * 99),
    "a store of another version": other_schema,
    "a folder": Path.mkdir,
}


@pytest.mark.parametrize("case", list(STORES))
def test_bad_store(case: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "store.db"
    STORES[case](path)
    sentence = refused("train", f"tracking.uri=sqlite:///{path}")
    assert "tracking.uri:" in sentence
    assert str(path) in sentence


def test_a_default_store_that_is_none(tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mlflow.db").write_bytes(b"this is a letter, and no database" * 99)
    sentence = refused("train", f"output_dir={out}")
    assert str(out / "mlflow.db") in sentence


OTHERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a config folder that is none": (("train", "--config-dir=nowhere"), ("nowhere",)),
    "no such launcher": (("train", "-m", "seed=0,1", "hydra/launcher=lokal"), ("lokal", "local")),
    "no such setting of the launcher": (
        ("train", "-m", "seed=0,1", "hydra.launcher.wokers=2"),
        ("wokers", "hydra.launcher.jobs_per_gpu", "did you mean workers?"),
    ),
    "workers below 0": (
        ("train", "-m", "seed=0,1", "hydra.launcher.workers=-1"),
        ("hydra.launcher.workers:", "-1", "≥ 0"),
    ),
    "GPUs that are not there": (
        ("train", "-m", "seed=0,1", "hydra.launcher.gpus=[7]"), ("hydra.launcher.gpus:", "7")
    ),
    "a factor that changes no run": (
        ("train", "-m", "study=a,b", "seed=0,1"), ("study:", "one value")
    ),
    "retry of what": (("train", "retry=all"), ("retry:", "'all'", "failed")),
    "an error policy": (("train", "on_error=ignore"), ("on_error:", "'ignore'", "continue")),
    "resume of what": (("resume", "retry=all"), ("retry:", "'all'", "failed")),
    "status of no sweep": (("status", "sweep=20200101-000000-abcd"), ("sweep:", "latest")),
    "status of no study": (("status", "study=clippin"), ("study:", "'clippin'")),
    "status as something": (("status", "json=yes"), ("json:", "'yes'", "true")),
    "analysis of nothing": (("analyze", "output_dir=nowhere"), ("output_dir", "nowhere")),
}  # fmt: skip


@pytest.mark.parametrize("case", list(OTHERS))
def test_other_bad_words(case: str, refused: Refused) -> None:
    words, wanted = OTHERS[case]
    sentence = refused(*words)
    for part in wanted:
        assert part in sentence
