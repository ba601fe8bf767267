"""Components from outside: a second package with an entry point, and a --config-dir of one's own.

Neither edits this package."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

PYPROJECT = """
[project]
name = "trimmed-grpo"
version = "1.2.0"
dependencies = ["grpolab"]

[project.entry-points."grpolab.components"]
tanh_clip = "trimmed_grpo.components:TanhClip"
signs = "trimmed_grpo.advantages"
"""

COMPONENTS = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from grpolab.objective.clip import Clip
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class TanhClip(Clip):
    """L = −scale·tanh(r/scale)·A: a ratio that saturates softly."""

    name: ClassVar[str] = "tanh"

    scale: float = setting(2.0, "where the ratio saturates", gt=0)

    def formula(self, x, plan):
        loss = -self.scale * torch.tanh(x.d.exp() / self.scale) * x.advantages
        none = torch.zeros_like(x.mask)
        return loss, none, none
'''

ADVANTAGES = '''
from dataclasses import dataclass
from typing import ClassVar

from grpolab.objective.advantage import Advantage


@dataclass(frozen=True)
class Signs(Advantage):
    """A = sign(R − mean(R))."""

    name: ClassVar[str] = "signs"

    def formula(self, x):
        return (x.rewards - x.rewards.mean(dim=1, keepdim=True)).sign()
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an installation of the second package would fill, made from its pyproject:
    its modules and its metadata, which is where entry points are read from."""
    project = tmp_path_factory.mktemp("project")
    launching.write_tree(project, {"pyproject.toml": PYPROJECT})
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    groups = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in about["entry-points"].items()
    )
    metadata = f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    info = f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    return launching.write_tree(
        tmp_path_factory.mktemp("installed"),
        {
            "trimmed_grpo/__init__.py": "",
            "trimmed_grpo/components.py": COMPONENTS,
            "trimmed_grpo/advantages.py": ADVANTAGES,
            f"{info}/METADATA": metadata,
            f"{info}/entry_points.txt": groups,
        },
    )


def test_a_second_package_s_components_train(package: Path, tmp_path: Path) -> None:
    launching.train(
        "clip=tanh", "clip.scale=1.5", "advantage=signs", "updates_per_batch=2", "steps=2",
        "tracking=jsonl", f"output_dir={tmp_path / 'out'}", cwd=tmp_path, PYTHONPATH=str(package),
    )  # fmt: skip
    folder = launching.only_run(tmp_path / "out" / "default")
    assert launching.status(folder)["state"] == "done"
    steps = [m for step, m in launching.metrics(folder) if step]
    assert {m["advantage/abs_max"] for m in steps} <= {0.0, 1.0}
    config = (folder / "config.yaml").read_text()
    assert "scale: 1.5" in config


def test_they_are_listed(package: Path, tmp_path: Path) -> None:
    found = launching.grpolab("list", "clip", cwd=tmp_path, PYTHONPATH=str(package))
    assert found.returncode == 0, found.stderr
    assert "tanh" in found.stdout
    assert "scale=2.0" in found.stdout
    entry = launching.grpolab("list", "clip", "tanh", cwd=tmp_path, PYTHONPATH=str(package))
    assert "saturates softly" in " ".join(entry.stdout.split())


def test_their_settings_are_checked_like_ours(package: Path, tmp_path: Path) -> None:
    found = launching.grpolab(
        "train", "clip=tanh", "clip.scal=1.5", cwd=tmp_path, PYTHONPATH=str(package)
    )
    assert found.returncode == 2
    sentence = launching.one_sentence(found.stderr)
    assert "clip.scal:" in sentence
    assert "1.5" in sentence
    assert "did you mean scale" in sentence
    assert not list(tmp_path.iterdir())


MINE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from grpolab.objective.clip import Clip
from grpolab.objective.settings import setting


@dataclass(frozen=True)
class MyClip(Clip):
    """L = −min(r, bound)·A."""

    name: ClassVar[str] = "mine"

    bound: float = setting(5.0, "largest ratio", gt=0)

    def formula(self, x, plan):
        high = x.d.exp() > self.bound
        loss = -x.d.exp().clamp(max=self.bound) * x.advantages
        return loss, torch.zeros_like(x.mask), high
'''


def test_a_config_dir_adds_a_choice(tmp_path: Path) -> None:
    mine = launching.write_tree(
        tmp_path / "mine",
        {
            "my_module.py": MINE,
            "clip/mine.yaml": "_target_: my_module.MyClip\nbound: 3.0\n",
        },
    )
    launching.train(
        "clip=mine", "steps=2", "tracking=jsonl", f"output_dir={tmp_path / 'out'}",
        "--config-dir", str(mine), cwd=tmp_path, PYTHONPATH=str(mine),
    )  # fmt: skip
    folder = launching.only_run(tmp_path / "out" / "default")
    assert launching.status(folder)["state"] == "done"
    assert "_target_: my_module.MyClip" in (folder / "config.yaml").read_text()


def test_a_bad_setting_in_a_config_dir_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from grpolab.cli import main

    name = "my_module_with_a_bad_setting"
    mine = launching.write_tree(
        tmp_path / "mine",
        {f"{name}.py": MINE, "clip/mine.yaml": f"_target_: {name}.MyClip\nbounds: 3.0\n"},
    )
    monkeypatch.syspath_prepend(str(mine))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "model=tiny", "clip=mine", "--config-dir", str(mine)]) == 2
    sentence = launching.one_sentence(capsys.readouterr().err)
    assert "clip.bounds:" in sentence
    assert "3.0" in sentence
    assert "did you mean bound" in sentence
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
