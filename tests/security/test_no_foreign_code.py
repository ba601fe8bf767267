"""Nothing that a run reads is ever executed: no pickle, no evaluated text, no code of a model's."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from grpolab.component import ConfigError, component
from grpolab.policy import policy
from grpolab.rewards.base import RewardInputs
from grpolab.tasks.base import Example
from grpolab.training import checkpoint

SOURCES = Path(__file__).resolve().parents[2] / "src" / "grpolab"
UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
REFUSED = {"eval", "exec", "compile", "__import__"}
"""Builtins that run a text."""
REFUSED_OF = {
    ("torch", "load"), ("torch", "save"), ("yaml", "load"), ("yaml", "unsafe_load"),
    ("yaml", "full_load"), ("os", "system"), ("os", "popen"), ("pd", "read_pickle"),
    ("distributed", "all_gather_object"), ("distributed", "broadcast_object_list"),
    ("distributed", "gather_object"), ("distributed", "recv_object_list"),
}  # fmt: skip
WRONG = {"trust_remote_code": True, "shell": True, "allow_pickle": True, "weights_only": False,
         "use_safetensors": False, "safe_serialization": False}  # fmt: skip
"""Keyword arguments that open a door, and the value that does."""


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """(place, node) of all sources."""
    return [
        (f"{path.relative_to(SOURCES)}:{getattr(node, 'lineno', 0)}", node)
        for path in sorted(SOURCES.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").partition(".")[0]]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func).rpartition(".")[2]
        return [str(node.args[0].value)] if called == "import_module" else []
    return []


def opens_a_door(node: ast.AST) -> bool:
    """Whether it is a call that runs what it reads."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    if isinstance(function, ast.Name) and function.id in REFUSED:
        return True
    if isinstance(function, ast.Attribute):
        owner = ast.unparse(function.value).rpartition(".")[2]
        if (owner, function.attr) in REFUSED_OF:
            return True
    return any(
        isinstance(k.value, ast.Constant) and k.arg in WRONG and k.value.value is WRONG[k.arg]
        for k in node.keywords
    )


def test_no_source_reads_pickles_or_evaluates_text() -> None:
    found = nodes()
    assert len(found) > 50_000
    assert [place for place, node in found if set(imported(node)) & UNPICKLERS] == []
    assert [place for place, node in found if opens_a_door(node)] == []


@pytest.mark.parametrize(
    "source",
    ["eval('1')", "torch.load(path)", "yaml.load(text)", "np.load(p, allow_pickle=True)",
     "subprocess.run(words, shell=True)", "distributed.all_gather_object(a, b)"],
)  # fmt: skip
def test_the_check_sees_what_it_looks_for(source: str) -> None:
    assert any(opens_a_door(node) for node in ast.walk(ast.parse(source)))
    assert imported(ast.parse("import pickle as p").body[0]) == ["pickle"]


def test_no_server_listens_to_other_machines() -> None:
    """Hosts stand in the sources as text; 0.0.0.0 and :: would be every interface."""
    texts = [(p, n.value) for p, n in nodes() if isinstance(n, ast.Constant)]
    assert [place for place, value in texts if value in ("0.0.0.0", "::")] == []
    called = [(p, ast.unparse(n.func).rpartition(".")[2]) for p, n in calls()]
    assert [place for place, name in called if name in SERVERS] == []  # none of its own


def calls() -> list[tuple[str, ast.Call]]:
    return [(place, node) for place, node in nodes() if isinstance(node, ast.Call)]


SERVERS = {"socket", "create_server", "start_server", "HTTPServer", "ThreadingHTTPServer",
           "TCPServer", "serve_forever"}  # fmt: skip
"""What opens a port."""


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def optimizer_of(weight: torch.nn.Parameter) -> torch.optim.Optimizer:
    return torch.optim.AdamW([weight], lr=0.1)


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_checkpoint_with_pickles_runs_none(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer, exploded = optimizer_of(weight), tmp_path / "exploded"
    weight.grad = torch.ones(2)
    optimizer.step()
    checkpoint.save(tmp_path, {"w": weight}, optimizer, {"step": 3})
    bomb = pickle.dumps(Bomb(exploded))
    folder = tmp_path / checkpoint.FOLDER
    for name in ("optimizer.pt", "weights.bin", "state.pkl", "pytorch_model.bin", "rng_state.pth"):
        (folder / name).write_bytes(bomb)
    again = torch.nn.Parameter(torch.zeros(2))
    found = checkpoint.load(tmp_path, {"w": again}, optimizer_of(again))
    assert found is not None
    assert found["step"] == 3
    assert torch.equal(again, weight)
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(bomb)  # in the place of what is read
        try:
            assert checkpoint.load(tmp_path, {"w": again}, optimizer_of(again)) is None
        finally:
            (folder / name).write_bytes(kept)
    assert not exploded.exists()


def test_a_reward_model_with_pickled_weights_or_code_runs_neither(tmp_path: Path) -> None:
    tiny = Path(policy.__file__).parent / "tiny"
    folder, exploded = tmp_path / "judge", tmp_path / "exploded"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(exploded)))
    inputs = RewardInputs(
        ["2"], [Example("1+1=", "2")], component("task", "inline"), [1], [False], 8
    )
    with pytest.raises(ConfigError, match=r"reward\.model"):
        component("reward", "neural", model=str(folder), device="cpu")(inputs)
    own = {"auto_map": {"AutoConfig": "judge.Config"}, "model_type": "judge"}
    (folder / "config.json").write_text(json.dumps(own))
    (folder / "judge.py").write_text(f"import os\nos.mkdir({str(exploded)!r})\n")
    with pytest.raises(ConfigError, match=r"reward\.model"):
        component("reward", "neural", model=str(folder), device="cpu")(inputs)
    assert not exploded.exists()
