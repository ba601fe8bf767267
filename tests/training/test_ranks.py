"""Two real processes over gloo end with the parameters that one process ends with."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from grpolab.component import ConfigError
from grpolab.config import bind_run
from grpolab.training.ranks import ALONE, Ranks, backend, buckets
from tests.sharing import folder_of, once

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src"
LIMIT = 300.0  # seconds

SMALL = (
    "task.train_size=20", "task.held_out_size=3", "prompts_per_step=4", "steps=3",
    "sampler.group_size=4", "sampler.max_new_tokens=8", "eval.samples=2", "eval.every=0",
    "optimizer.lr=1e-3", "tracking.log_samples=99", "hardware.threads=1",
)  # fmt: skip
REPLAY = ["selection=replay", "updates_per_batch=2", "minibatches=2"]
VARIANTS: dict[str, list[str]] = {
    "token_mean": [],
    "seq_mean_token_mean": ["aggregation=seq_mean_token_mean"],
    "token_mean_micro": ["aggregation=token_mean_micro", "aggregation.rows=3"],
    "prompt_mean": ["aggregation=prompt_mean", "aggregation.count_empty=false"],
    "batch_std": ["advantage=batch_std", "kl=k3"],
    "reinforce_pp": ["advantage=reinforce_pp", "kl=k2", "kl.placement=reward_to_go"],
    "kl_in_reward": ["kl=k1", "kl.placement=reward", "advantage=global_center"],
    "kl_full": ["kl=full", "kl.beta=0.1"],
    "adaptive_beta": ["kl=k3", "kl.schedule=adaptive", "kl.beta=0.1", "reference=ema",
                      "reference.every=1"],
    "ema_baseline": ["advantage=ema_baseline"],
    "remax": ["advantage=remax"],
    "collision": ["advantage=optimal_token_baseline"],
    "clip_cov": ["clip=clip_cov", "clip.share=0.1", "clip.lo=-1", "clip.hi=1",
                 "updates_per_batch=2"],
    "kl_cov": ["clip=kl_cov", "clip.share=0.1", "updates_per_batch=2"],
    "fipo": ["clip=fipo", "updates_per_batch=2"],
    "bapo": ["clip=bapo", "updates_per_batch=2"],
    "top_entropy": ["clip.masks=[truncated,{name: top_entropy, share: 0.3}]"],
    "epochs": ["updates_per_batch=3", "kl=k3", "reference=old"],
    "minibatches": ["updates_per_batch=4", "minibatches=2", "correction=truncate"],
    "target_kl": ["updates_per_batch=6", "kl=k3", "kl.target_kl=1e-4"],
    "dynamic": ["selection=dynamic", "selection.max_rounds=3"],
    "replay": [*REPLAY, "steps=5"],
    "subset": ["selection=max_variance", "selection.keep=2"],
    "uneven": ["prompts_per_step=3", "hardware.tokens_per_microbatch=30"],
    "one_group": ["prompts_per_step=1", "kl=k3"],
    "hf": ["sampler=hf"],
    "plain": ["hardware.engine=plain", "sampler.top_k=10", "sampler.match_support=true"],
}  # fmt: skip
"""What is computed from the whole batch, one way or another."""
SHARD = "hardware.shard=fsdp2"
SHARDED = (
    "token_mean", "kl_full", "adaptive_beta", "remax", "clip_cov", "minibatches", "dynamic",
    "uneven", "one_group", "hf", "plain",
)  # fmt: skip
"""Passes of ours and of Transformers', of a reference that moves too, greedy samples, plans,
ranks with fewer micro-batches than others or none, samplers of ours and of Transformers'."""
NARROW = ["hardware.dtype=bfloat16", "kl=k3", "steps=2"]
RESUMED = ["steps=4", *REPLAY, "kl=k3", "reference=ema", "reference.every=1"]


@dataclass(frozen=True)
class Ended:
    """What the ranks of a case ended with, by rank."""

    parameters: list[dict[str, Tensor]]
    metrics: list[list[Any]]
    samples: list[dict[str, Any]]
    kept: list[int]
    """Numbers that each rank kept of weights and optimizer state."""


def run_cases(ranks: int, cases: dict[str, dict[str, Any]], folder: Path) -> dict[str, Ended]:
    """Runs cases in as many processes, as torchrun starts them."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = {name: {"folder": str(folder / name), **case} for name, case in cases.items()}
    (folder / "cases.json").write_text(json.dumps(cases))
    paths = [str(SOURCES), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    script = [str(HERE / "ranked.py"), str(folder / "cases.json"), str(folder)]
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else []), *script],
        env=environment, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: ended(folder / name, Path(c["folder"]), ranks) for name, c in cases.items()}


def ended(out: Path, folder: Path, ranks: int) -> Ended:
    paths = [f"{out}.{rank}" for rank in range(ranks)]
    samples = folder / "samples.jsonl"
    return Ended(
        [load_file(f"{p}.safetensors") for p in paths],
        [json.loads(Path(f"{p}.json").read_text())["metrics"] for p in paths],
        [json.loads(s) for s in samples.read_text().splitlines()] if samples.exists() else [],
        [json.loads(Path(f"{p}.json").read_text())["kept"] for p in paths],
    )


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The distance of two sets of parameters, relative to their size."""
    one, other = (torch.cat([p[n].flatten() for n in expected]) for p in (found, expected))
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cases of `both` run, once for all of pytest's own workers."""
    return folder_of(tmp_path_factory, "ranks")


def raw(folder: Path, *overrides: str) -> dict[str, Any]:
    """A small run's configuration."""
    return lab.run_of(f"model.name={folder / 'model'}", *SMALL, *overrides).raw


@pytest.fixture(scope="module")
def both(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Ended], dict[str, Ended]]:
    """All cases on one rank, and on two."""
    return once(tmp_path_factory, folder.name, run_all)


def run_all(folder: Path) -> tuple[dict[str, Ended], dict[str, Ended]]:
    lab.random_model(folder / "model", "Llama")
    cases: dict[str, dict[str, Any]]
    cases = {name: {"raw": raw(folder, *settings)} for name, settings in VARIANTS.items()}
    little = raw(folder, "clip=cispo", "hardware.tokens_per_microbatch=20")
    cases["idle"] = {"raw": little, "idle": True}
    planned = raw(folder, "clip=bapo", "hardware.tokens_per_microbatch=20")
    cases["idle_planned"] = {"raw": planned, "idle": True}
    cases["whole"] = {"raw": raw(folder, *RESUMED)}
    cases["stopped"] = {"raw": raw(folder, *RESUMED), "stop": 2}
    cases["remembering"] = {"raw": raw(folder, "hardware.gradient_checkpointing=true")}
    cases["narrow"] = {"raw": raw(folder, *NARROW), "narrow": True}
    cases["sharded_stopped"] = {"raw": raw(folder, *RESUMED, SHARD), "stop": 2}
    doubled = dict(cases)
    for name in (*SHARDED, "idle", "remembering", "narrow"):
        shared = bind_run(cases[name]["raw"]).raw
        shared = shared | {"hardware": shared["hardware"] | {"shard": "fsdp2"}}
        doubled[f"sharded_{name}"] = cases[name] | {"raw": shared, "export": name == "plain"}

    return run_cases(1, cases, folder / "one"), run_cases(2, doubled, folder / "two")


@pytest.mark.parametrize("name", [*VARIANTS, "idle", "idle_planned", "remembering"])
def test_two_ranks_learn_what_one_learns(
    both: tuple[dict[str, Ended], dict[str, Ended]], name: str
) -> None:
    one, two = both[0][name], both[1][name]
    same_end(one, two)


@pytest.mark.parametrize("name", [*SHARDED, "remembering"])
def test_ranks_that_share_out_their_weights_learn_the_same(
    both: tuple[dict[str, Ended], dict[str, Ended]], name: str
) -> None:
    found = both[1][f"sharded_{name}"]
    same_end(both[0][name], found)
    shared_out(found)


def test_ranks_with_nothing_to_learn_keep_pace(
    both: tuple[dict[str, Ended], dict[str, Ended]],
) -> None:
    found = both[1]["sharded_idle"]  # the other cases have run out of memory on the way
    assert gap(found.parameters[0], both[0]["idle"].parameters[0]) < 1e-12
    assert gap(found.parameters[1], found.parameters[0]) == 0
    shared_out(found)


def shared_out(found: Ended) -> None:
    """Weights and both moments are kept once by all ranks together, about as much by each."""
    whole = sum(p.numel() for p in found.parameters[0].values())
    assert sum(found.kept) == 3 * whole
    assert max(found.kept) < 0.6 * sum(found.kept)


def test_a_lower_dtype_is_shared_out_too(
    both: tuple[dict[str, Ended], dict[str, Ended]],
) -> None:
    """The sampler's copy follows the weights: the same completions."""
    plain, shared = both[1]["narrow"], both[1]["sharded_narrow"]
    assert gap(shared.parameters[0], plain.parameters[0]) < 1e-6
    assert shared.samples == plain.samples


def test_shared_out_weights_are_exported_whole(
    both: tuple[dict[str, Ended], dict[str, Ended]], folder: Path
) -> None:
    exported = folder / "two" / "sharded_plain" / "model"
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float64)
    assert json.loads((exported / "config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]
    found = {n: p.detach() for n, p in model.named_parameters()}
    assert gap(found, both[1]["sharded_plain"].parameters[0]) < 1e-12


def same_end(one: Ended, two: Ended) -> None:
    """One rank and two have the same parameters, completions and metrics."""
    assert gap(two.parameters[0], one.parameters[0]) < 1e-12
    assert gap(two.parameters[1], two.parameters[0]) == 0
    assert two.samples == one.samples  # the very same completions
    for (step, found), (same, expected) in zip(two.metrics[0], one.metrics[0], strict=True):
        assert step == same
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            by_sampler = key.startswith(("correction/", "kl/sampler"))  # float32, where it is hf
            digits = 1e-5 if by_sampler else 1e-10
            assert found[key] == pytest.approx(value, rel=digits, abs=digits, nan_ok=True), key


def test_the_variants_move_the_weights_and_differ(
    both: tuple[dict[str, Ended], dict[str, Ended]],
) -> None:
    reached = {name: both[0][name].parameters[0] for name in VARIANTS}
    for (name, one), (other, parameters) in combinations(reached.items(), 2):
        assert gap(parameters, one) > 1e-7, (name, other)


def test_a_checkpoint_goes_on_at_another_world_size(
    both: tuple[dict[str, Ended], dict[str, Ended]], folder: Path
) -> None:
    whole = both[0]["whole"]
    places = {"one/stopped": both[0], "two/stopped": both[1], "two/sharded_stopped": both[1]}
    for place, stopped in places.items():
        assert {m[-1][0] for m in stopped[Path(place).name].metrics} == {"interrupted"}
        assert (folder / place / "checkpoint" / "state.json").exists()
    # whole on one → in parts on two; whole on two, in parts on two → whole on one
    goes_on = {2: ["one/stopped"], 1: ["two/stopped", "two/sharded_stopped"]}
    for ranks, found in goes_on.items():
        settings = [*RESUMED, *([SHARD] if ranks > 1 else [])]
        cases = {
            Path(place).name: {"raw": raw(folder, *settings), "folder": str(folder / place)}
            for place in found
        }
        for last in run_cases(ranks, cases, folder / f"last{ranks}").values():
            assert last.metrics[0][0][0] > 1  # it did not begin anew
            assert gap(last.parameters[0], whole.parameters[0]) < 1e-12
            assert last.samples == whole.samples


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.lora={r: 4}"], "model.lora: adapters given with hardware.shard=fsdp2"),
        (["hardware.dtype=float16"], "hardware.dtype: float16 given with hardware.shard=fsdp2"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lab.run_of(SHARD, *settings)


# -- what is split ---------------------------------------------------------------------------------


def some_ranks(size: int) -> list[Ranks]:
    found = [Ranks() for _ in range(size)]
    for rank, ranks in enumerate(found):
        ranks.rank, ranks.size = rank, size
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 3, 7, 16])
def test_parts_and_shares_are_the_whole(size: int, count: int) -> None:
    things = list(range(count))
    sizes = [(7 * place) % 11 for place in things]
    parts = [things[ranks.part(count)] for ranks in some_ranks(size)]
    shares = [ranks.share(sizes) for ranks in some_ranks(size)]
    assert list(chain(*parts)) == things
    assert sorted(chain(*shares)) == things
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    loads = [sum(sizes[place] for place in share) for share in shares]
    assert max(loads) <= sum(sizes) / size + max(sizes, default=0) + count


def test_one_long_group_is_weighed_against_many_short_ones() -> None:
    assert [ranks.share([9, 3, 3, 3]) for ranks in some_ranks(2)] == [[0], [1, 2, 3]]


def test_a_process_alone_gets_back_what_it_gives() -> None:
    tensor = torch.tensor([1.0, math.nan])
    ALONE.sum_([tensor])
    assert tensor[0] == 1
    assert ALONE.gather({"a": 1}) == [{"a": 1}]
    assert ALONE.part(5) == slice(0, 5)
    assert ALONE.share([3, 0, 4]) == [0, 1, 2]


def test_buckets_hold_one_dtype_and_so_many_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpolab.training.ranks.BUCKET", 10)
    wide = torch.float64
    tensors = [torch.zeros(n) for n in (4, 6, 1, 25, 3)] + [torch.zeros(2, dtype=wide)]
    assert [[t.numel() for t in b] for b in buckets(tensors)] == [[4, 6], [1], [25], [3], [2]]


# -- joining ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("local_ranks", "devices", "carrier", "own"),
    [(2, 2, "cpu:gloo,cuda:nccl", 1), (2, 1, "gloo", 0), (4, 2, "gloo", 1)],
)
def test_each_rank_has_a_device_and_those_that_share_one_use_gloo(
    monkeypatch: pytest.MonkeyPatch, local_ranks: int, devices: int, carrier: str, own: int
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_ranks))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert backend("auto") == carrier
    assert backend("cuda") == carrier
    assert chosen == [own, own]
    assert backend("cpu") == "gloo"


def test_mps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hardware\.device: mps given"):
        backend("mps")
