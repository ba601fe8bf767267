"""Where a probe's weights lie: what is named is used or refused, and never silently replaced."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from grpolab.component import ConfigError
from grpolab.policy.locate import TINY
from grpolab.policy.policy import Encoder
from grpolab.probe.request import Place, Request, place_of
from grpolab.probe.source import load_state
from grpolab.sweep.compose import Command
from grpolab.training import checkpoint

if TYPE_CHECKING:
    from tests.probe.first_gradients import composed
else:
    from first_gradients import composed


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is done, with two checkpoints, a model and figures."""
    weight = torch.nn.Parameter(torch.zeros(3))
    for step in (1, 2):
        checkpoint.save(tmp_path, {"w": weight}, torch.optim.SGD([weight]), {"step": step})
    (tmp_path / "config.yaml").write_text("steps: 3")
    shutil.copytree(TINY, tmp_path / "model")
    shutil.copytree(TINY, tmp_path / "figures")  # even a model, where none belongs
    return tmp_path


def cut(part: Path) -> None:
    path = part / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize("part", ["checkpoint", "checkpoint.old", "model"])
def test_a_named_part_is_used(run: Path, part: str) -> None:
    assert place_of(run / part) == Place(run, run / part)


@pytest.mark.parametrize("part", ["checkpoint", "checkpoint.old"])
def test_a_named_part_that_is_damaged_is_refused(run: Path, part: str) -> None:
    cut(run / part)
    with pytest.raises(ConfigError, match=r"weights\.safetensors is damaged"):
        place_of(run / part)
    (run / part / checkpoint.SUMS).unlink()
    with pytest.raises(ConfigError, match=r"sums\.json is missing"):
        place_of(run / part)


@pytest.mark.parametrize("part", ["figures", "checkpoint.new", "model", "checkpoint"])
def test_what_is_no_part_with_weights_is_refused(run: Path, part: str) -> None:
    shutil.rmtree(run / part, ignore_errors=True)
    if part != "checkpoint":
        (run / part).mkdir()
    with pytest.raises(ConfigError, match="no weights at"):
        place_of(run / part)


def test_a_model_among_the_figures_is_no_part(run: Path) -> None:
    with pytest.raises(ConfigError, match="no weights at"):
        place_of(run / "figures")


@pytest.mark.parametrize(
    ("damaged", "used"),
    [([], "checkpoint"), (["checkpoint"], "checkpoint.old"), (checkpoint.PARTS, "model")],
)
def test_a_run_s_folder_says_what_is_used_instead(run: Path, damaged: list[str], used: str) -> None:
    for part in damaged:
        cut(run / part)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert place_of(run) == Place(run, run / used)
    sentences = [str(w.message) for w in said]
    assert len(sentences) == bool(damaged)
    for sentence in sentences:  # one, or none
        assert sentence.endswith(f"; {run / used} is used instead")
        assert all(
            f"{run / part / 'weights.safetensors'} is damaged" in sentence for part in damaged
        )


def test_a_configuration_that_does_not_compose_names_its_key(run: Path) -> None:
    from omegaconf import OmegaConf

    raw = composed().raw
    del raw["optimizer"]["lr"]
    OmegaConf.save(OmegaConf.create(raw), run / "config.yaml")
    with pytest.raises(ConfigError, match=r"^checkpoint: its configuration does not compose"):
        Request(Command([]), [["clip=ppo"]], checkpoint=run).resolved()


def test_merged_adapters_name_their_key(run: Path) -> None:
    lora = composed("model.lora={r: 2}")
    with pytest.raises(ConfigError, match=r"^checkpoint: its adapters are merged"):
        load_state(lora, Encoder(lora.model), place_of(run / "model"), needs_reference=False)


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a parameter that no model trains, as in architectures that keep some fixed."""
    from transformers import AutoModelForCausalLM

    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    name = "model.norm.weight"

    def loaded(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        model.get_parameter(name).requires_grad_(False)
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    return name


def test_frozen_parameters_of_a_saved_model_are_loaded_too(frozen: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    (tmp_path / "config.yaml").write_text("steps: 3")
    saved = load_file(folder / "model.safetensors")
    saved[frozen] = saved[frozen] + 1
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    run = composed()
    policy = load_state(run, Encoder(run.model), place_of(folder), needs_reference=False).policy
    assert frozen not in policy.trainable()
    assert torch.equal(policy.model.get_parameter(frozen).cpu(), saved[frozen].float())


def test_a_saved_model_with_fewer_layers_is_refused(frozen: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(TINY)
    config.num_hidden_layers -= 1
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    (tmp_path / "config.yaml").write_text("steps: 3")
    run, place = composed(), place_of(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"another model than tiny: model\.layers\..* is missing"):
        load_state(run, Encoder(run.model), place, needs_reference=False)
