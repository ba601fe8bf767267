"""The typed root: every setting that is no component's, and the hash that identifies a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from grpolab.component import (
    MODULES,
    NESTED,
    ConfigError,
    check,
    from_config,
    make,
    nearest,
    settings_of,
    type_hints,
)
from grpolab.conflicts import check_conflicts
from grpolab.objective.settings import setting

Device = Literal["auto", "cpu", "cuda", "mps"]
Engine = Literal["auto", "plain"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Shard = Literal["none", "fsdp2"]


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters through peft (an extra)."""

    r: int = setting(16, "rank of the adapters", ge=1)
    alpha: float = setting(32.0, "scale of the adapters, divided by the rank", gt=0)
    target_modules: list[str] | str = setting("all-linear", "which modules get one")


@dataclass(frozen=True)
class Model:
    """Which language model is trained, and how a prompt is put to it."""

    name: str = setting("tiny", "tiny, a hub id, a local folder, or what `grpolab fetch` cached")
    template: Literal["auto", "chat", "plain"] = setting(
        "auto", "auto: the tokenizer's chat template where it has one"
    )
    system: str | None = setting(None, "system message of the chat template")
    max_prompt_tokens: int | None = setting(None, "longest prompt (what the context leaves)", ge=1)
    attention: Literal["sdpa", "eager", "flash_attention_2"] = setting(
        "sdpa", "Transformers' attention implementation"
    )
    random_weights: bool = setting(False, "same shapes, random weights: for benchmarks")
    lora: Lora | None = setting(None, "train low-rank adapters instead of all weights")


@dataclass(frozen=True)
class Optimizer:
    """AdamW with warm-up and a schedule."""

    lr: float = setting(1e-6, "peak learning rate", ge=0)
    weight_decay: float = setting(0.0, "decoupled weight decay", ge=0)
    decay: Literal["all", "matrices"] = setting(
        "all", "matrices: biases and normalisation layers do not decay, as in TRL"
    )
    betas: list[float] = setting([0.9, 0.999], "Adam's decay rates", ge=0, lt=1)
    eps: float = setting(1e-8, "Adam's epsilon", gt=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm; .inf: never", gt=0)
    warmup_steps: int = setting(0, "steps of linear warm-up", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "after the warm-up, down towards 0, which the step after the last would reach"
    )
    max_skipped: int = setting(10, "non-finite updates until the run is failed", ge=0)


@dataclass(frozen=True)
class Hardware:
    """Where and in which precision."""

    device: Device = setting("auto", "auto: CUDA, then MPS, then CPU")
    dtype: Dtype = setting("auto", "of the forward pass; auto: bfloat16 on CUDA, else float32")
    master_weights: bool = setting(
        True, "weights and optimizer stay float32 below a lower dtype (autocast)"
    )
    tokens_per_microbatch: int = setting(
        8192, "tokens per forward and backward pass, padding included where there is some", ge=1
    )
    memory_budget: float | None = setting(
        None, "GiB that a backward pass may keep; fewer tokens a pass where needed", gt=0
    )
    engine: Engine = setting(
        "auto", "auto: own sampling and update kernels for Llama-like models; plain: Transformers'"
    )
    gradient_checkpointing: bool = setting(
        False, "own kernels keep each layer's input alone and run it again in the backward pass"
    )
    shard: Shard = setting(
        "none", "fsdp2: ranks of one run share out weights, gradients and optimizer state"
    )
    threads: int | None = setting(None, "CPU threads of torch", ge=1)
    deterministic: bool = setting(True, "deterministic kernels; a warning where there is none")


@dataclass(frozen=True)
class Tracking:
    """Where runs are logged besides metrics.jsonl."""

    mlflow: bool = setting(True, "log to MLflow")
    uri: str | None = setting(None, "MLflow tracking URI; null: sqlite under output_dir")
    log_samples: int = setting(4, "completions a step written to samples.jsonl", ge=0)
    flush_seconds: float = setting(15.0, "MLflow gets the buffered metrics this often", gt=0)
    sweep: str | None = setting(None, "the sweep this run belongs to (set by the sweep)")
    baseline: dict[str, Any] | None = setting(
        None, "swept factors of the baseline arm; null: those of the first job"
    )
    progress: bool = setting(True, "show a progress bar")
    tuned_on: list[int] = setting(
        [], "seeds a search tuned this configuration on, of which no result is reported", ge=0
    )


@dataclass(frozen=True)
class Evaluation:
    """Held-out evaluation."""

    every: int = setting(10, "steps between evaluations; 0: only first and last", ge=0)
    prompts: int | None = setting(None, "held-out prompts; null: all of them", ge=1)
    samples: int = setting(8, "samples per prompt for pass@k; 0: greedy only", ge=0)


@dataclass(frozen=True)
class Checkpoint:
    """When the run's state is saved."""

    every: int = setting(0, "steps between checkpoints; 0: only on Ctrl-C", ge=0)
    keep_on_done: bool = setting(False, "keep the last checkpoint of a finished run")


@dataclass(frozen=True)
class Run:
    """A whole configuration, bound: scalars, settings and components."""

    model: Model
    task: Any
    sampler: Any
    selection: Any
    reward: Any
    advantage: Any
    reference: Any
    kl: Any
    clip: Any
    aggregation: Any
    correction: Any
    design: Any
    search: Any
    optimizer: Optimizer
    hardware: Hardware
    tracking: Tracking
    eval: Evaluation
    checkpoint: Checkpoint
    seed: int = setting(0, "of every random stream", ge=0)
    study: str = setting("default", "the MLflow experiment and the folder below output_dir")
    output_dir: str = setting("outputs", "everything a run writes lies here")
    steps: int = setting(100, "optimizer batches", ge=1)
    prompts_per_step: int = setting(8, "groups per step", ge=1)
    updates_per_batch: int = setting(1, "optimizer updates per batch of rollouts", ge=1)
    minibatches: int = setting(1, "parts an epoch over the batch is split into", ge=1)
    max_unscorable: float = setting(
        0.5, "share of unscorable samples in a batch that fails the run", ge=0, le=1
    )
    report: str | None = setting(
        None, "module:function called with (run, folder) for the closing summary of a single run"
    )
    retry: Literal["failed"] | None = setting(None, "failed: a sweep runs its failed jobs again")
    on_error: Literal["continue", "stop"] = setting(
        "continue", "stop: a sweep ends after the first job that fails"
    )
    raw: dict[str, Any] = field(default_factory=dict, repr=False)
    """The resolved configuration as plain containers."""

    @property
    def epochs(self) -> int:
        """Passes over each batch."""
        return self.updates_per_batch // self.minibatches


COMPONENTS = tuple(g for g in MODULES if g not in NESTED)
SETTINGS: dict[str, type] = {
    "model": Model,
    "optimizer": Optimizer,
    "hardware": Hardware,
    "tracking": Tracking,
    "eval": Evaluation,
    "checkpoint": Checkpoint,
}


def bind_run(raw: Mapping[str, Any]) -> Run:
    """A resolved configuration as a `Run`; ConfigError names the key that cannot be used."""
    root = {f: v for f, v in settings_of(Run).items() if f != "raw"}
    for key in raw:
        if key not in root:
            raise ConfigError(
                f"{key}: unknown key (given {raw[key]!r}); allowed: {', '.join(root)}"
                f"{nearest(key, root) or '.'}"
            )
    values: dict[str, Any] = {}
    for group in COMPONENTS:
        values[group] = from_config(group, _node(raw, group))
    for group, cls in SETTINGS.items():
        values[group] = _bind_settings(cls, _node(raw, group), group)
    hints = type_hints(Run)
    for key, item in root.items():
        if key not in values and key in raw:
            values[key] = check(key, raw[key], hints[key], item.metadata)
    run = Run(**values, raw=dict(raw))
    check_conflicts(run)
    return run


def _node(raw: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    node = raw.get(group)
    if not isinstance(node, Mapping):
        raise ConfigError(f"{group}: {node!r} given; allowed: a choice of conf/{group}/.")
    return node


def _bind_settings(cls: type, node: Mapping[str, Any], key: str) -> Any:
    settings = dict(node)
    if cls is Model and isinstance(settings.get("lora"), Mapping):
        settings["lora"] = make(Lora, settings["lora"], f"{key}.lora")
    return make(cls, settings, key)


UNHASHED = (
    "tracking", "output_dir", "study", "report", "debug", "design", "search", "retry", "on_error",
)  # fmt: skip
"""Keys that change where or how a run is recorded, not what it computes."""
UNHASHED_KEY = "hardware.shard"
"""Which rank keeps what changes no result either."""


def job_id(raw: Mapping[str, Any]) -> str:
    """12 hex digits of the resolved config and of the package's sources; the seed is inside."""
    kept = {k: v for k, v in raw.items() if k not in UNHASHED}
    kept["checkpoint"] = None  # when the state is saved changes no result
    group, _, key = UNHASHED_KEY.partition(".")
    if isinstance(kept.get(group), Mapping):
        kept[group] = {k: v for k, v in kept[group].items() if k != key}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256((text + fingerprint()).encode()).hexdigest()[:12]


RESULT_FREE = ("results", "sweep", "tracking", "cli", "bench", "probe")
"""Parts of the package that change no run's numbers, so a new figure re-runs nothing."""


@cache
def fingerprint() -> str:
    """A hash of what can change a run's numbers: the sources, and the embedded model."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    embedded = [p for p in (root / "policy" / "tiny").iterdir() if p.is_file()]
    for path in sorted([*root.rglob("*.py"), *embedded]):
        relative = path.relative_to(root)
        if relative.parts[0].removesuffix(".py") not in RESULT_FREE:
            digest.update(str(relative).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
