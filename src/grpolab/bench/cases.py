"""What can be benchmarked: the cases, their peers, and the keys that change them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from grpolab.component import ConfigError, check, nearest, type_hints
from grpolab.config import COMPONENTS, SETTINGS
from grpolab.objective.settings import setting

PEERS = {
    "trl": "TRL 1.16's GRPOTrainer, left at its defaults",
    "hf": "model.generate of Transformers: sampling alone",
    "vllm": "vLLM's engine, in an interpreter of its own: sampling alone",
    "none": "nothing: ours alone",
}
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Work:
    """What both sides do in a step."""

    model: str = setting("tiny", "tiny, smollm2_135m, qwen2_0.5b or qwen2_1.5b (random weights)")
    peer: str = setting("trl", "what runs beside ours: trl, hf, vllm, none")
    steps: int = setting(5, "measured steps of each side, after one to warm up", ge=1)
    dtype: Dtype = setting("float32", "of the forward pass; weights stay float32, as in TRL")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: CUDA where there is one")
    threads: int | None = setting(None, "CPU threads of each side; null: torch's choice", ge=1)
    seed: int = setting(0, "of every random stream", ge=0)
    prompts: int = setting(8, "prompts a step", ge=1)
    group_size: int = setting(16, "completions a prompt", ge=2)
    max_new_tokens: int = setting(16, "tokens of a completion at most", ge=1)
    prompt_tokens: int | None = setting(
        None, "tokens of every prompt (filler text); null: the task's own prompts", ge=2
    )
    forced: bool = setting(False, "ignore end tokens: every completion has max_new_tokens")
    rewards: Literal["synthetic", "task"] = setting(
        "synthetic", "synthetic: a hash of the text, so that every group has something to learn"
    )
    lr: float = setting(1e-6, "learning rate", ge=0)
    mlflow: bool = setting(False, "our side logs to MLflow, too")
    shrink: int = setting(
        1, "divides layers and vocabulary of random weights, to test on a small machine", ge=1
    )
    peer_rows: int | None = setting(
        None, "TRL's rows a forward pass (per_device_train_batch_size); null: all of a step", ge=1
    )
    compile: bool = setting(True, "vLLM compiles the model")

    @property
    def rows(self) -> int:
        """Completions a step."""
        return self.prompts * self.group_size


@dataclass(frozen=True)
class Case:
    """One benchmark: the work, and the peers that can do it."""

    about: str
    work: Work
    peers: tuple[str, ...]
    sampling_alone: bool = False


SMOLLM2 = Work(model="smollm2_135m", prompts=4, group_size=8, max_new_tokens=64, mlflow=True)
GPU = Work(dtype="bfloat16", prompts=32, group_size=8, max_new_tokens=256, peer="hf")
CASES: dict[str, Case] = {
    "tiny": Case(
        "the embedded 1 M parameter model, 8 prompts × 16 completions of 16 tokens at most",
        Work(mlflow=True),
        ("trl", "none"),
    ),
    "smollm2": Case(
        "SmolLM2-135M, 4 prompts × 8 completions of 64 tokens at most", SMOLLM2, ("trl", "none")
    ),
    "sampling": Case(
        "SmolLM2-135M, sampling alone: 4 prompts × 8 completions of 64 forced tokens",
        replace(SMOLLM2, peer="hf", forced=True, mlflow=False),
        ("hf", "vllm", "none"),
        sampling_alone=True,
    ),
    "learn": Case(
        "experiment=smollm2_addition until its training reward is .9; steps= is the limit",
        replace(SMOLLM2, max_new_tokens=24, lr=1e-5, rewards="task", steps=30),
        ("trl", "none"),
    ),
    "growth": Case(
        "SmolLM2-135M, step time against group size, completion length and prompt length",
        replace(SMOLLM2, prompts=1, prompt_tokens=32, forced=True, mlflow=False),
        ("trl", "none"),
    ),
    "gpu_0.5b": Case(
        "Qwen2.5-0.5B's shapes, random weights, 32 prompts × 8 completions of 256 tokens at most",
        replace(GPU, model="qwen2_0.5b"),
        ("hf", "trl", "none"),
    ),
    "gpu_1.5b": Case(
        "Qwen2.5-1.5B's shapes, likewise", replace(GPU, model="qwen2_1.5b"), ("hf", "trl", "none")
    ),
}
PLAIN_KEYS = {
    "case": "which benchmark",
    "out": "write the result here as JSON (growth: figures beside it)",
    "points": "growth: restrict to these, such as points=group,length_128",
    "peer_python": "the interpreter that has vLLM ($GRPOLAB_VLLM_PYTHON)",
}
WORK_KEYS = {f.name: f for f in fields(Work) if f.name != "model"}


@dataclass(frozen=True)
class Plan:
    """A checked command."""

    case: str
    work: Work
    overrides: dict[str, Any]
    """Settings of the run by their config keys, applied to our side (see `recipe`)."""
    out: Path | None = None
    points: tuple[str, ...] = ()
    peer_python: str | None = None

    @property
    def sampling_alone(self) -> bool:
        """Whether our side samples and does nothing else."""
        return CASES[self.case].sampling_alone


def parse(arguments: Sequence[str]) -> Plan:
    """The plan that `key=value` words make.

    Raises:
        ConfigError: an unknown case, peer or key, or a value that is not allowed.
    """
    given = dict(split(word) for word in arguments)
    name = given.pop("case", None)
    if name not in CASES:
        raise ConfigError(
            f"case: {'missing' if name is None else repr(name) + ' given'}; allowed: "
            f"{', '.join(CASES)}{nearest(name or '', CASES) or '.'}"
        )
    plain = {k: given.pop(k) for k in PLAIN_KEYS if k in given}
    changes = {k: typed(k, given.pop(k)) for k in WORK_KEYS if k in given}
    work = replace(CASES[name].work, **changes)
    allowed = CASES[name].peers
    if work.peer not in allowed:
        raise ConfigError(
            f"peer: {work.peer!r} given with case={name}; allowed: {', '.join(allowed)}"
            f"{nearest(work.peer, allowed) or '.'}"
        )
    if work.shrink > 1 and not work.model.startswith("qwen2"):
        raise ConfigError(
            f"shrink: {work.shrink} given with case={name}, whose weights are real; allowed: 1."
        )
    out = Path(plain["out"]) if "out" in plain else None
    if out is not None and out.suffix != ".json":
        raise ConfigError(f"out: {plain['out']!r} given; allowed: a file name that ends in .json.")
    if "points" in plain and name != "growth":
        raise ConfigError(f"points: given with case={name}; allowed with case=growth.")
    points = tuple(p for p in plain.get("points", "").split(",") if p)
    overrides = {key: plain_value(value) for key, value in given.items()}
    return Plan(name, work, overrides, out, points, plain.get("peer_python"))


def split(word: str) -> tuple[str, str]:
    """(key, value) of a word; a key is one of ours, a config key, or a group's name."""
    key, separator, value = word.partition("=")
    group = key.partition(".")[0]
    ours = key in PLAIN_KEYS or key in WORK_KEYS
    if not separator or not (ours or key in COMPONENTS or ("." in key and is_group(group))):
        allowed = [*PLAIN_KEYS, *WORK_KEYS]
        raise ConfigError(
            f"{key}: unknown key (given {word!r}); allowed: {', '.join(allowed)}, or a setting of "
            f"our run by its config key (hardware.tokens_per_microbatch=4096)"
            f"{nearest(key, [*allowed, *COMPONENTS]) or '.'}"
        )
    return key, value


def is_group(name: str) -> bool:
    """Whether `name` is a group of the configuration."""
    return name in COMPONENTS or name in SETTINGS


def typed(key: str, text: str) -> Any:
    """A value of `Work`, checked."""
    hint = type_hints(Work)[key]
    value = text if hint is str else plain_value(text)
    return check(key, value, hint, WORK_KEYS[key].metadata)


def plain_value(text: str) -> Any:
    """A value as YAML reads it, with 1e-5 a number, and as it stands where it is no YAML."""
    import yaml  # type: ignore[import-untyped]

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
