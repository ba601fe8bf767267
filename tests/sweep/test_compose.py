"""From a command line to composed jobs, their arms, and the identity that makes a job resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpolab.component import ConfigError, names
from grpolab.config import bind_run, job_id
from grpolab.sweep.compose import Command, Sweep, expand, parse_command
from grpolab.sweep.manifest import members, new_manifest, read_manifest, write_manifest


def jobs_of(*overrides: str) -> Sweep:
    return expand(Command(list(overrides), multirun=True))


def one(*overrides: str) -> dict[str, Any]:
    (job,) = expand(Command(list(overrides))).jobs
    return job.raw


def test_flags_and_overrides_may_be_mixed() -> None:
    command = parse_command(["clip=ppo", "-m", "--config-dir", ".", "seed=0,1", "--cfg", "job"])
    assert command.overrides == ["clip=ppo", "seed=0,1"]
    assert command.multirun
    assert command.config_dir == "."
    assert command.rest == ["--cfg", "job"]


@pytest.mark.parametrize("arguments", [["--config-dir"], ["--config-dir", "no/such/folder"]])
def test_a_config_dir_that_is_none(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="--config-dir"):
        parse_command(arguments)


def test_a_sweep_is_the_product_of_its_factors() -> None:
    sweep = jobs_of("clip=ppo,cispo", "steps=3", "seed=0,1,2")
    assert sweep.factors == ["clip", "seed"]
    found = [(j.raw["clip"]["name"], j.raw["seed"], j.raw["steps"]) for j in sweep.jobs]
    assert found == [(c, s, 3) for c in ("ppo", "cispo") for s in (0, 1, 2)]


def test_ranges_and_choices_are_sweeps_too() -> None:
    assert len(jobs_of("seed=range(0,4)").jobs) == 4
    assert len(jobs_of("clip=choice(ppo,none)", "seed=0").jobs) == 2


def test_a_glob_is_every_choice_of_a_group() -> None:
    sweep = jobs_of("clip=glob(*)", "seed=0")
    assert [j.raw["clip"]["name"] for j in sweep.jobs] == names("clip")
    assert sweep.factors == ["clip"]
    assert len(jobs_of("clip=glob(*,exclude=[none,ppo])").jobs) == len(names("clip")) - 2


def test_an_experiment_carries_its_sweep() -> None:
    sweep = expand(Command(["experiment=demo"]))
    assert sweep.multirun
    assert set(sweep.factors) == {"clip", "kl", "seed"}
    assert len(sweep.jobs) == 12


def test_the_command_line_narrows_an_experiment_s_sweep() -> None:
    sweep = expand(Command(["experiment=demo", "seed=5", "kl=none"]))
    assert [(j.raw["seed"], j.raw["kl"]["name"]) for j in sweep.jobs] == [(5, "none")] * 3
    assert sweep.factors == ["clip"]
    found = members(sweep, {"clip": "ppo", "kl": "none"})  # the experiment's own baseline
    assert sorted(m.arm for m in found) == ["baseline", "clip=cispo", "clip=none"]


def test_arms_name_what_differs_from_the_first_job() -> None:
    found = members(jobs_of("kl=none,k3", "clip=ppo,cispo", "seed=0,1"), None)
    arms = [m.arm for m in found if m.seed == 0]
    assert arms == ["baseline", "clip=cispo", "kl=k3", "clip=cispo,kl=k3"]
    assert [m.baseline for m in found] == [m.arm == "baseline" for m in found]
    assert found[0].factors == {"kl": "none", "clip": "ppo"}
    assert len({m.job_id for m in found}) == 8


def test_a_baseline_of_one_s_own() -> None:
    found = members(jobs_of("kl=none,k3", "clip=ppo,cispo"), {"clip": "cispo"})
    assert [m.arm for m in found] == ["clip=ppo", "baseline", "clip=ppo,kl=k3", "kl=k3"]


def test_a_baseline_is_written_as_in_a_yaml_file() -> None:
    sweep = jobs_of("hardware.master_weights=true,false", "model.system=null,hi", "clip=ppo")
    found = members(sweep, {"hardware.master_weights": False, "model.system": None})
    assert [m.arm for m in found if m.baseline] == ["baseline"]
    assert found[2].baseline


def test_a_baseline_that_is_not_swept_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.baseline\.clip: 'cisop'.*did you mean cispo"):
        members(jobs_of("clip=ppo,cispo"), {"clip": "cisop"})
    with pytest.raises(ConfigError, match=r"tracking\.baseline: 'kl'"):
        members(jobs_of("clip=ppo,cispo"), {"kl": "none"})


def test_arms_are_written_without_hydra_s_backslashes() -> None:
    found = members(jobs_of("task.template='a b','c: {a}'", "+note=x\\:y,z"), None)
    assert found[1].factors["note"] == "z"
    assert found[0].factors["note"] == "x:y"


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    found = members(jobs_of("clip=ppo,cispo", "seed=0,1"), None)
    path = tmp_path / "study" / "sweeps" / "a.json"
    made = new_manifest(
        sweep_id="a", study="study", command=["grpolab", "train"], factors=["clip", "seed"],
        jobs=found,
    )  # fmt: skip
    write_manifest(path, made)
    read = read_manifest(path)
    assert read["sweep"] == "a"
    assert read["jobs"] == [vars(m) for m in found]
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


# -- identity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "study=x", "output_dir=x", "tracking=jsonl", "tracking.log_samples=0", "checkpoint.every=3",
        "hardware.shard=fsdp2",
    ],
)  # fmt: skip
def test_what_changes_no_number_changes_no_job(override: str) -> None:
    assert job_id(one(override)) == job_id(one())


@pytest.mark.parametrize(
    "override", ["seed=1", "clip.high=0.28", "steps=99", "eval.every=3", "hardware.dtype=bfloat16"]
)
def test_what_changes_numbers_changes_the_job(override: str) -> None:
    assert job_id(one(override)) != job_id(one())


@pytest.mark.parametrize("factor", ["hardware.shard=none,fsdp2", "checkpoint.every=0,3"])
def test_what_changes_no_number_is_no_factor(factor: str) -> None:
    with pytest.raises(ConfigError, match="its arms would be one run"):
        members(jobs_of(factor), None)


def test_a_sweep_s_job_is_the_same_run_as_the_single_command() -> None:
    sweep = jobs_of("clip=ppo,cispo", "seed=0,1")
    assert job_id(sweep.jobs[3].raw) == job_id(one("clip=cispo", "seed=1"))


def test_the_defaults_bind() -> None:
    run = bind_run(one())
    assert (run.model.name, run.clip.name, run.kl.name) == ("tiny", "ppo", "none")


# -- a --config-dir --------------------------------------------------------------------------------


def test_a_config_dir_s_files_are_found_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "wide.yaml").write_text("name: ppo\nlow: 0.5\nhigh: 0.5\n")
    command = Command(["clip=wide,ppo"], multirun=True, config_dir=str(tmp_path))
    wide, ours = expand(command).jobs
    assert bind_run(wide.raw).clip.high == 0.5
    assert bind_run(ours.raw).clip.high != 0.5


def test_ours_win_over_a_config_dir_s_file_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "ppo.yaml").write_text("name: ppo\nlow: 0.9\n")
    (job,) = expand(Command(["clip=ppo"], config_dir=str(tmp_path))).jobs
    assert bind_run(job.raw).clip.low == 0.2


def test_jobs_that_share_all_but_the_seed_are_composed_as_each_alone(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    text = "# @package _global_\nstudy: after_${seed}\noptimizer:\n  warmup_steps: ${seed}\n"
    (folder / "seeded.yaml").write_text(text)
    words = ["--config-dir", str(tmp_path), "experiment=seeded"]
    sweep = expand(parse_command(["-m", *words, "clip=ppo,cispo", "seed=0,7,7000"]))
    assert [job.raw["seed"] for job in sweep.jobs] == [0, 7, 7000] * 2
    for job in sweep.jobs:
        clip, seed = job.raw["clip"]["name"], job.raw["seed"]
        assert job.raw["study"] == f"after_{seed}"
        assert job.raw["optimizer"]["warmup_steps"] == seed
        # a seed of this form is composed on its own
        (alone,) = expand(parse_command([*words, f"clip={clip}", f"++seed={seed}"])).jobs
        assert job.raw == alone.raw


def test_a_seed_that_is_no_plain_number_is_hydra_s_affair() -> None:
    assert one("seed=0x1f")["seed"] == one("seed='0x1f'")["seed"]
    assert one("seed=1", "seed=2")["seed"] == 2
    assert one("seed=${steps}", "steps=5")["seed"] == 5


def test_new_entries_of_a_table_are_given_one_by_one() -> None:
    base = ["reward=python", "reward.function=math:sqrt"]
    message = (
        r"^reward\.arguments: \{scale: 2\} given; allowed: each new entry by itself, "
        r"as \+reward\.arguments\.NAME=VALUE\.$"
    )
    with pytest.raises(ConfigError, match=message):
        expand(parse_command([*base, "reward.arguments={scale: 2}"]))
    found = expand(parse_command([*base, "+reward.arguments.scale=2"])).jobs[0].raw
    assert found["reward"]["arguments"] == {"scale": 2}
