"""What a command imports before it answers: help and a refusal must not wait for torch.

Real processes, since a test's own has imported everything already; which modules are there, never
how long it took.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

HEAVY = ("torch", "transformers", "mlflow", "datasets", "pandas", "scipy", "matplotlib", "sympy")
REPORT = """
import sys
from grpolab.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
print("imported:", *sorted(m for m in sys.modules if "." not in m), file=sys.stderr)
sys.exit(code)
"""


def python(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd, env=launching.environment(), capture_output=True, text=True, check=False,
        timeout=launching.LIMIT,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, ["--help"]),
        (0, ["train", "--help"]),
        (0, ["list"]),
        (0, ["list", "clip", "ppo"]),
        (2, ["trian"]),
        (2, ["train", "clip=pppo"]),
        (2, ["train", "clip.hihg=0.3"]),
        (2, ["train", "stepps=3"]),
        (2, ["train", "clip=ppo,cispo"]),
        (2, ["train", "steps=many"]),
        (2, ["train", "clip.low=-1"]),
        (2, ["train", "kl=k3", "reference=none"]),
        (2, ["train", "-m", "sampler.group_size=4,1"]),
        (2, ["train", "model.name=tinny"]),
        (2, ["train", "task=jsonl", "task.path=no.jsonl"]),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else None,
)
def test_nothing_heavy_is_imported(code: int, words: list[str], tmp_path: Path) -> None:
    done = python(REPORT, *words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    imported = done.stderr.splitlines()[-1].split()
    assert imported[0] == "imported:"
    assert not set(HEAVY) & set(imported)


def test_a_sweep_s_driver_needs_no_torch(tmp_path: Path) -> None:
    words = ["train", "-m", *launching.SMALL, "seed=0,1", "steps=1", "hydra.launcher.workers=1"]
    done = python(REPORT, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    imported = done.stderr.splitlines()[-1].split()
    assert {"mlflow", "matplotlib"} <= set(imported)
    assert not {"torch", "transformers"} & set(imported)


def test_what_a_sweep_s_workers_refuse_is_said_by_its_driver(tmp_path: Path) -> None:
    words = [*launching.SMALL, "seed=0,1", "sampler.max_new_tokens=100000"]
    done = launching.grpolab("train", "-m", *words, "hydra.launcher.workers=2", cwd=tmp_path)
    assert done.returncode == 2
    said = launching.one_sentence(done.stderr)
    assert "sampler.max_new_tokens: 100000 given, but the context of" in said
    assert list(tmp_path.iterdir()) == []


DEFERRED = """
import sys
from grpolab import component
from grpolab import deferred

made = {
    "kl": component("kl", "k3"),
    "clip": component("clip", "ppo"),
    "correction": component("correction", "none"),
}
assert "torch" not in sys.modules
holders = [
    module for name, module in list(sys.modules.items())
    if name.startswith("grpolab.objective.")
    and any(value is deferred._TORCH for value in vars(module).values())
]
assert len(holders) > 5
import torch  # by somebody else, past the stand-in

logps = torch.tensor([[-1.0, -2.0]], requires_grad=True)
mask = torch.ones(1, 2, dtype=torch.bool)
surrogate = made["clip"](logps, logps.detach(), torch.tensor([[1.0]]), mask)
found = made["kl"](logps, torch.tensor([[-1.5, -2.0]]), mask)
torch.testing.assert_close(found[0, 0].item(), 2.718281828 ** -0.5 - 1 + 0.5)
assert surrogate.loss.requires_grad
for module in holders:
    assert module.torch is torch, module
    assert getattr(module, "Tensor", torch.Tensor) is torch.Tensor, module
assert isinstance(logps, deferred.Tensor) and not isinstance(1, deferred.Tensor)
"""


def test_the_first_use_puts_torch_in_place_everywhere(tmp_path: Path) -> None:
    done = python(DEFERRED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


MADE = """
from __future__ import annotations
import torch
from torch import Tensor

@torch.no_grad()
def frozen(x: Tensor) -> Tensor:
    return x * 2

@torch.inference_mode()
def inferred(x: Tensor) -> Tensor:
    return x * 2
"""
USE = """
import sys
import grpolab
from grpolab.deferred import deferred

grpolab.__path__.append(".")
with deferred():
    from grpolab import made_by_a_test as made
assert "torch" not in sys.modules
assert made.frozen.__name__ == "frozen"
import torch

x = torch.ones(2, requires_grad=True)
assert not made.frozen(x).requires_grad
assert made.inferred(x).is_inference()
assert torch.is_grad_enabled()
"""


def test_decorators_of_torch_wait_too(tmp_path: Path) -> None:
    (tmp_path / "made_by_a_test.py").write_text(MADE)
    done = python(USE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


OUTSIDER = """
import sys
from grpolab.deferred import deferred

with deferred():
    import outsider
assert outsider.torch is sys.modules["torch"]
assert outsider.torch.ones(2).sum() == 2
"""


def test_the_import_of_others_is_their_own(tmp_path: Path) -> None:
    (tmp_path / "outsider.py").write_text("import torch")
    done = python(OUTSIDER, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
