"""Everything that can be refused before a model is loaded or a byte is written."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpolab.component import ConfigError
from grpolab.config import Model, Run
from grpolab.deferred import load
from grpolab.policy.locate import locate
from grpolab.policy.weights import check_weights
from grpolab.tasks.base import Examples, Task, TaskError
from grpolab.tracking.mlflow import check_reachable, default_uri
from grpolab.tracking.sqlite_store import check_sqlite

if TYPE_CHECKING:
    from grpolab.policy.policy import Encoder


@dataclass(frozen=True)
class Ready:
    """What the checks have loaded anyway."""

    encoder: Encoder
    examples: Examples


def check(run: Run) -> Ready:
    """Loads tokenizer and examples and tries every path and address a run will need.

    Raises:
        ConfigError: one sentence; nothing has been written.
    """
    examples = check_without_torch(run)
    load()
    from grpolab.policy.policy import pick_device

    pick_device(run.hardware.device)
    encoder = load_encoder(run.model.name, run.model)
    check_kernels(run, encoder.config)
    check_room(run, encoder, examples)
    prepare = getattr(run.reward, "prepare", None)
    if prepare is not None:
        prepare()
    return Ready(encoder, examples)


def check_kernels(run: Run, config: Any) -> None:
    """Refuses what our own kernels alone do, for a family that they are not written for."""
    from grpolab.policy.decoder import is_known

    asked = {
        "sampler.cuda_graphs": getattr(run.sampler, "cuda_graphs", False),
        "hardware.gradient_checkpointing": run.hardware.gradient_checkpointing,
    }
    for key, given in asked.items():
        if given and not is_known(config):
            raise ConfigError(
                f"{key}: true given with model.name={run.model.name}, a {config.model_type}, which "
                "runs through Transformers' own forward; allowed: false."
            )


def check_without_torch(run: Run) -> Examples:
    """The part of `check` that takes no seconds of imports; the task's examples.

    Raises:
        ConfigError: one sentence; nothing has been written.
    """
    check_writable(run.output_dir)
    if run.tracking.mlflow:
        _reachable(tracking_uri(run))
    examples = load_examples(run.task)
    path = Path(locate(run.model.name))
    if path.is_dir() and not run.model.random_weights:
        check_weights(path, run.model.name)
    return examples


def tracking_uri(run: Run) -> str:
    """The MLflow store of a run."""
    return run.tracking.uri or default_uri(run.output_dir)


def check_writable(output_dir: str, key: str = "output_dir") -> None:
    """Tries to write beside where the output will lie; leaves nothing behind."""
    path = Path(output_dir).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        if not path.is_dir():
            raise NotADirectoryError(f"{path} is a file")
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f"{key}: cannot write to {output_dir!r} ({error}); allowed: a folder that can be "
            "written to."
        ) from error


@lru_cache(maxsize=8)
def _reachable(uri: str) -> None:
    path = Path(uri.partition("sqlite:///")[2])
    if not uri.startswith("sqlite:///"):
        check_reachable(uri)
    elif uri != default_uri(path.parent) or path.parent.is_dir():  # the default's folder is made
        check_reachable(uri)
        check_sqlite(path)


_examples: dict[str, Examples] = {}


def load_examples(task: Task) -> Examples:
    """A task's examples; made once per process, since the jobs of a sweep share them."""
    key = repr(task)
    if key not in _examples:
        try:
            _examples[key] = task.load()
        except TaskError as error:
            text = str(error)
            raise ConfigError(text if text.startswith("task") else f"task: {text}") from error
        for half in ("train", "held_out"):
            if not getattr(_examples[key], half):
                raise ConfigError(f"task: no {half} examples; allowed: at least one.")
    return _examples[key]


_encoders: dict[str, Encoder] = {}


def load_encoder(name: str, settings: Model) -> Encoder:
    """A model's tokenizer and config; loaded once per process."""
    from grpolab.policy.policy import Encoder

    key = repr(settings)
    if key not in _encoders:
        _encoders[key] = Encoder(settings)
    return _encoders[key]


_longest: dict[tuple[int, int], tuple[int, int, str]] = {}


def check_room(run: Run, encoder: Encoder, examples: Examples) -> None:
    """Refuses prompts that, with the longest completion, do not fit the model's context."""
    key = (id(encoder), id(examples))
    if key not in _longest:
        halves = (("train", examples.train), ("held_out", examples.held_out))
        named = [(f"{half} row {i + 1}", e) for half, es in halves for i, e in enumerate(es)]
        encoded = encoder.encode([e.prompt for _, e in named])
        for (row, _), ids in zip(named, encoded, strict=True):
            if not ids:
                raise ConfigError(f"task: {examples.source}, {row}: the prompt has no tokens.")
        worst = max(range(len(encoded)), key=lambda i: len(encoded[i]))
        _longest[key] = (len(encoded[worst]), worst, named[worst][0])
    longest, _, row = _longest[key]
    new, context = run.sampler.max_new_tokens, encoder.context
    if new >= context:
        raise ConfigError(
            f"sampler.max_new_tokens: {new} given, but the context of {run.model.name} is "
            f"{context} tokens; allowed: at most {context - longest} beside the longest prompt."
        )
    limit = run.model.max_prompt_tokens
    if limit is not None and longest > limit:
        raise ConfigError(
            f"model.max_prompt_tokens: {examples.source}, {row}: the prompt has {longest} tokens; "
            f"allowed: at most {limit}."
        )
    if longest >= context:
        raise ConfigError(
            f"task: {examples.source}, {row}: the prompt has {longest} tokens, and the context "
            f"of {run.model.name} is {context}; allowed: shorter prompts, or more context."
        )
    if longest + new > context:
        raise ConfigError(
            f"sampler.max_new_tokens: {new} given, but {examples.source}, {row} has a prompt of "
            f"{longest} tokens and the context of {run.model.name} is {context}; allowed: at most "
            f"{context - longest}."
        )


def plain(value: Any) -> Any:
    """Nested settings as {dotted key: value}, for params."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= {f"{key}.{k}": v for k, v in plain(item).items()}
        else:
            flat[key] = item
    return flat
