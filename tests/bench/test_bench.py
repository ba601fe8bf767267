"""`grpolab bench` itself, at the smallest size, with its workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpolab.cli import main
from grpolab.training.clock import PHASES

SMALL = ["prompts=2", "group_size=2", "max_new_tokens=4", "steps=1", "mlflow=false", "threads=1"]


def bench(tmp_path: Path, *words: str) -> dict[str, Any]:
    out = tmp_path / "found.json"
    assert main(["bench", *words, f"out={out}"]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_tiny_beside_trl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The keys that others read, ratios that are the quotients of the medians, the same work."""
    pytest.importorskip("trl")
    found = bench(tmp_path, "case=tiny", *SMALL, "mlflow=true")
    wanted = {"case", "dtype", "hardware", "versions", "ours", "peer", "ratio", "limit_share"}
    assert wanted <= set(found)
    ours, peer = found["ours"], found["peer"]
    for side in (ours, peer):
        assert {*PHASES, "idle", "tokens_per_s", "peak_gib"} <= set(side)
        assert side["idle"] >= 0
        assert side["sample"] > 0
        assert side["backward"] > 0
        assert side["peak_gib"] > 0
        (step,) = side["steps"]
        assert len(step["lengths"]) == 4
        assert all(1 <= n <= 4 for n in step["lengths"])
    assert ours["steps"][0]["prompts"] == peer["steps"][0]["prompts"]
    for key in ("step", "sample", "update"):
        assert found["ratio"][key] == pytest.approx(ours[key] / peer[key])
        assert found["limit_share"][key] > 0
    assert found["ratio"]["peak_memory"] == pytest.approx(ours["peak_gib"] / peer["peak_gib"])
    assert found["about"]["peer"]["loss_type"] == "dapo"
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("backward", "share of the limit", "peak GiB"))


def test_forced_lengths_on_the_gpu_case(tmp_path: Path) -> None:
    """Qwen2.5's shapes, shrunk, beside `generate`; runs on a CPU, to test itself."""
    found = bench(tmp_path, "case=gpu_0.5b", "shrink=24", "forced=true", *SMALL, "device=cpu")
    assert found["dtype"] == "bfloat16"
    for side in ("ours", "peer"):
        assert found[side]["steps"][0]["lengths"] == [4] * 4
    assert found["ratio"]["sample"] > 0
    assert found["ratio"]["update"] is None


STUB = """
from types import SimpleNamespace as Bag
__version__ = "stub"
SamplingParams = Bag
class LLM:
    def __init__(self, **settings):
        print("engines are talkative")
        assert settings["enforce_eager"] is False
    def generate(self, prompts, sampling, use_tqdm):
        assert sampling.ignore_eos and sampling.min_tokens == sampling.max_tokens
        one = Bag(token_ids=[0] * sampling.max_tokens)
        return [Bag(outputs=[one] * sampling.n) for p in prompts if p["prompt_token_ids"]]
"""


def test_vllm_is_driven_in_its_own_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line protocol, with a stub in the engine's place."""
    (tmp_path / "vllm.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ["case=sampling", "peer=vllm", f"peer_python={sys.executable}", "model.name=tiny"]
    found = bench(tmp_path, *words, *SMALL)
    assert found["versions"]["vllm"] == "stub"
    assert found["peer"]["tokens"] == found["ours"]["tokens"] == 16
    assert set(found["ours"]["steps"][0]["lengths"]) == {4}
    assert found["limit_share"]["update"] is None


def test_the_worker_needs_no_parent() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "grpolab.bench.worker", "ours"], input=b"", capture_output=True
    )
    assert done.returncode == 0
