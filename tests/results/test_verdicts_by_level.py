"""Verdicts within the levels of a factor: each arm against the baseline's choice at its level."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from grpolab.cli import main
from grpolab.results.analyze import analyze
from grpolab.results.frames import Results, ResultsError
from grpolab.results.load import load
from grpolab.results.summary import run_values
from grpolab.results.verdicts import verdicts
from tests.results.synthetic_sweep import Job, write_files

NOISE = (0.0, 0.02, -0.01, 0.015, -0.02, 0.01)
OWN = (0.004, -0.003, 0.001, -0.006, 0.005, 0.002)
GRID = {"baseline": 0.5, "kl=k3": 0.7, "clip=none": 0.5, "clip=none,kl=k3": 0.6}


def own(arm: str, seed: int) -> float:
    """What a seed does to one choice and not to the other."""
    return OWN[seed] * ("clip=none" in arm) + OWN[-1 - seed] * ("kl=k3" in arm)


def sweep(root: Path, levels: Mapping[str, float]) -> Results:
    jobs = [
        Job(arm, seed, level + NOISE[seed] + own(arm, seed))
        for arm, level in levels.items()
        for seed in range(6)
    ]
    write_files(root, jobs, "s", "2026-01-01")
    return load(output_dir=root, sweep="s")


def rows(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    return {row["arm"]: (row["baseline"], row["verdict"]) for row in table.to_dict("records")}


def test_each_arm_is_compared_at_its_own_level(tmp_path: Path) -> None:
    results = sweep(tmp_path, GRID)
    found = verdicts(results, by="kl", equivalence=0.05)
    assert rows(found) == {
        "clip=none": ("baseline", "equivalent"),
        "clip=none,kl=k3": ("kl=k3", "worse"),  # better than the study's baseline all the same
    }
    worse = found.set_index("arm").loc["clip=none,kl=k3"]
    finals = run_values(results, "eval/accuracy").groupby("arm")["final"].mean()
    assert worse["delta"] == pytest.approx(finals["clip=none,kl=k3"] - finals["kl=k3"])
    assert worse["baseline_mean"] == pytest.approx(finals["kl=k3"])
    # the family is the two comparisons that were made, not the three arms that are no baseline
    assert worse["p_corrected"] == pytest.approx(2 * worse["p"])


def test_without_by_all_arms_face_the_studys_baseline(tmp_path: Path) -> None:
    results = sweep(tmp_path, GRID)
    assert set(verdicts(results)["baseline"]) == {"baseline"}
    assert verdicts(results, by="null").equals(verdicts(results))
    assert len(verdicts(results)) == 3


def test_an_arm_alone_at_its_level_and_an_unknown_factor_are_refused(tmp_path: Path) -> None:
    results = sweep(tmp_path, {arm: GRID[arm] for arm in ("baseline", "clip=none,kl=k3")})
    with pytest.raises(ResultsError, match=r"^by=kl: arm clip=none,kl=k3 has none of its levels"):
        verdicts(results, by="kl")
    with pytest.raises(ResultsError, match=r"^by=klip: no such swept factor; .*nearest: clip"):
        verdicts(results, by=["klip"])
    with pytest.raises(ResultsError, match=r"^by=kl: correction=dunnett compares all arms"):
        verdicts(results, by="kl", correction="dunnett")


def test_analyze_takes_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, GRID)
    made = analyze(output_dir=tmp_path, sweep="s", by="[kl]", figures="forest")
    assert rows(pd.read_csv(made.verdicts_csv))["clip=none,kl=k3"] == ("kl=k3", "worse")
    (caption,) = made.out.glob("figures/forest.caption.txt")
    assert "baseline: the baseline's choice at the same level, mean 0." in caption.read_text()
    where = [f"output_dir={tmp_path}", "sweep=s", "figures=forest"]
    assert main(["analyze", *where, "by=clip"]) == 0
    assert "clip=none,kl=k3 against clip=none on eval/accuracy: better" in capsys.readouterr().out
    assert main(["analyze", *where, "by=kll"]) == 2
