"""What `grpolab plan` promises beforehand is what verdicts.csv says afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from grpolab.cli import main
from grpolab.results.analyze import analyze
from tests.results.synthetic_sweep import Job, write_files

SEEDS = 9
PLAN = (
    "plan", "clip=ppo,none", "kl=none,k3", f"seed=range({SEEDS})", "updates_per_batch=4",
    "debug=smoke", "tracking=jsonl", "hardware=cpu", "hardware.threads=1",
)  # fmt: skip


def planned(folder: Path, *words: str) -> dict[str, Any]:
    """What the seeds can show."""
    path = folder / "plan.json"
    assert main([*PLAN, *words, f"out={path}"]) == 0
    found: dict[str, Any] = json.loads(path.read_text())["seeds_can_show"]
    return found


def as_planned(root: Path) -> None:
    """That sweep, whose every arm is better than the one before on every seed: the smallest p."""
    levels = {"baseline": 0.3, "clip=none": 0.35, "kl=k3": 0.4, "clip=none,kl=k3": 0.5}
    jobs = [
        Job(arm, seed, level + 0.001 * (seed * len(arm) % 7))
        for arm, level in levels.items()
        for seed in range(SEEDS)
    ]
    write_files(root, jobs, "s", "2026-01-01")


@pytest.mark.parametrize(
    ("metrics", "by", "comparisons"),
    [
        ("eval/accuracy", None, 3),
        ("[eval/accuracy,eval/pass@8]", None, 6),
        ("[eval/accuracy, 'eval/accuracy']", None, 3),
        ("['eval/accuracy', \"eval/pass@8\"]", "['kl']", 4),
        ("eval/accuracy", "kl", 2),
        ("[eval/accuracy,eval/pass@8]", "clip", 4),
    ],
)
def test_plan_counts_the_family_that_is_tested(
    metrics: str, by: str | None, comparisons: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    own = [f"plan.metric={metrics}", *([f"plan.by={by}"] if by else [])]
    shown = planned(tmp_path, *own)
    said = " ".join(capsys.readouterr().out.split())
    assert f"One family of {comparisons} comparisons: " in said
    as_planned(tmp_path / "outputs")
    made = analyze(
        output_dir=tmp_path / "outputs", sweep="s", metric=metrics, by=by, test="sign_flip",
        figures="forest",
    )  # fmt: skip
    written = pd.read_csv(made.verdicts_csv)
    assert (shown["n"], shown["comparisons"]) == (SEEDS, comparisons)
    assert len(written) == comparisons
    assert set(written["n"]) == {SEEDS}
    pairs = dict(zip(written["arm"], written["baseline"], strict=True))
    assert shown["family"]["against"] == pairs
    assert shown["family"]["metrics"] == list(dict.fromkeys(written["metric"]))
    assert written["p"].min() == pytest.approx(shown["minimum_p"])
    assert written["p_corrected"].min() == pytest.approx(shown["minimum_p_holm"])


def test_a_factor_that_is_not_swept_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*PLAN, "plan.by=klip"]) == 2
    assert "plan.by=klip: no such swept factor; there is: " in capsys.readouterr().err
    assert main([*PLAN, "plan.metric=[]"]) == 2
    assert "plan.metric: no name given" in capsys.readouterr().err
