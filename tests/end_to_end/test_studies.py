"""The named studies: what was asked, what was run, and the verdict that its numbers give again."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from grpolab.cli import plan
from grpolab.results.load import Results, load
from grpolab.results.verdicts import Rules, verdicts

ROOT = Path(__file__).parents[2]
EXPERIMENTS = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
NOT_STUDIES = {"demo", "every_advantage", "every_clip", "seed_example", "smollm2_addition"}
STUDIES = sorted(EXPERIMENTS - NOT_STUDIES)
every_study = pytest.mark.parametrize("study", STUDIES)
FEWEST_SEEDS = 6  # 5 pairs can never reach p < .05 by the sign-flip test
KB = 1000
# keys of `grpolab analyze` that change verdicts.csv
RULES = {"metric", "where", "equivalence", "correction", "alpha", "test", "by"}


def folder(study: str) -> Path:
    return ROOT / "experiments" / study


@cache
def kept(study: str) -> Results:
    """All of its runs."""
    return load(kept=folder(study))


def page(study: str) -> str:
    return (folder(study) / "README.md").read_text(encoding="utf-8")


def rules(study: str) -> dict[str, str]:
    """The rules of the first `grpolab analyze study=NAME …` that the page says to run."""
    command = re.search(rf"`(grpolab analyze [^`]*\bstudy={study}\b[^`]*)`", page(study))
    assert command, f"{study}: no command that makes verdicts.csv"
    words = dict(word.split("=", 1) for word in shlex.split(command[1])[2:])
    return {key: value for key, value in words.items() if key in RULES}


def test_the_list_of_what_is_no_study_is_right() -> None:
    assert NOT_STUDIES <= EXPERIMENTS
    assert "clip_by_updates" in STUDIES


@every_study
def test_it_expands_to_what_was_run(study: str) -> None:
    """Every job is checked for one seed; the seeds, too many to compose, are read from the file."""
    file: Any = OmegaConf.load(ROOT / "conf" / "experiment" / f"{study}.yaml")
    assert file["study"] == study
    planned = plan.made([f"experiment={study}", "seed=0"], 1.0, 0.5)
    assert not planned["refused"]
    assert [arm["baseline"] for arm in planned["arms"]].count(True) == 1
    runs = kept(study).runs
    assert set(runs["arm"]) == {arm["arm"] for arm in planned["arms"]}
    assert set(runs.loc[runs["baseline"], "arm"]) == {
        arm["arm"] for arm in planned["arms"] if arm["baseline"]
    }
    seeds = given(str(file["hydra"]["sweeper"]["params"]["seed"]))
    assert len(seeds) >= FEWEST_SEEDS
    for arm, own in runs.groupby("arm"):
        assert sorted(own["seed"]) == seeds, f"{study}: {arm} has not run with every seed"


def given(seeds: str) -> list[int]:
    """The seeds of `range(6)`, `range(2,8)` or `0,1,2`."""
    ends = re.fullmatch(r"range\(([\d, ]+)\)", seeds)
    if ends:
        return list(range(*(int(end) for end in ends[1].split(","))))
    return sorted(int(seed) for seed in seeds.split(","))


@every_study
def test_its_page_asks_predicts_and_ends_in_a_verdict(study: str) -> None:
    text = page(study)
    parts = [r"\*\*Question\.\*\*", r"\*\*Prediction, made beforehand\.?\*\*"]
    parts += [r"\*\*Fixed beforehand\.\*\*", r"\*\*Verdict, \d{4}-\d\d-\d\d\*\*"]
    places = [re.search(part, text) for part in parts]
    assert all(places), f"{study}: {[p for p, at in zip(parts, places, strict=True) if not at]}"
    assert [at.start() for at in places if at] == sorted(at.start() for at in places if at)
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert figures
    for figure in figures:
        assert (folder(study) / figure).stat().st_size <= 150 * KB
        assert (folder(study) / figure).with_suffix(".caption.txt").read_text().strip()
    assert sum(path.stat().st_size for path in folder(study).iterdir()) <= 500 * KB
    index = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert f"]({study}/README.md)" in index


@every_study
def test_its_numbers_give_its_verdicts_again(study: str) -> None:
    wanted = pd.read_csv(folder(study) / "verdicts.csv")
    rule = rules(study)
    metrics = rule.pop("metric", "eval/accuracy").strip("[]").split(",")
    where = rule.pop("where", None)
    results = load(kept=folder(study), where=where) if where else kept(study)
    found = verdicts(results, metrics, **asdict(Rules.of(**rule)))
    assert len(wanted)
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), wanted, check_dtype=False, rtol=1e-6, atol=1e-12
    )


def test_with_one_update_the_clip_changes_no_bit() -> None:
    """clip_by_updates' first finding: all kept numbers but times, of every pair of seeds."""
    results = kept("clip_by_updates")
    pairs = results.history[results.history["arm"].isin(["baseline", "clip=none"])]
    pairs = pairs[~pairs["metric"].astype(str).str.startswith("time/")]
    table = pairs.assign(
        metric=pairs["metric"].astype(str), arm=pairs["arm"].astype(str)
    ).pivot_table(index=["seed", "metric", "step"], columns="arm", values="value")
    assert set(table.index.get_level_values("seed")) == set(range(6))
    assert len(table) > 1000
    pd.testing.assert_series_equal(
        table["baseline"], table["clip=none"], check_exact=True, check_names=False
    )
