"""What `grpolab plan` says: arms, what seeds can show, costs by a real run, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpolab.cli import main
from grpolab.cli.plan import clock, count, size
from grpolab.config import Run, bind_run
from grpolab.results.power import seeds
from grpolab.sweep.compose import Command, expand
from grpolab.sweep.past import Past, completions, estimate, evaluations, most_tokens, past_runs
from grpolab.sweep.past import shape_of as shape
from grpolab.sweep.plan import sentences

SMOKE = (
    "debug=smoke", "tracking=jsonl", "sampler.group_size=4", "sampler.max_new_tokens=8",
    "hardware=cpu", "hardware.threads=1", "tracking.progress=false",
)  # fmt: skip
KEYS = [
    "command", "study", "output_dir", "design", "factors", "baseline", "seeds", "jobs", "arms",
    "seeds_can_show", "cost", "done", "notes", "refused",
]  # fmt: skip


def run_of(*overrides: str) -> Run:
    (job,) = expand(Command([*SMOKE, *overrides])).jobs
    return bind_run(job.raw)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one real run."""
    out = tmp_path_factory.mktemp("trained") / "out"
    assert main(["train", *SMOKE, f"output_dir={out}", "study=planned"]) == 0
    return out


def rows(out: Path) -> list[dict[str, float]]:
    (path,) = out.glob("planned/*/metrics.jsonl")
    return [json.loads(line)["metrics"] for line in path.read_text().splitlines()]


def past_of(out: Path, *runs: Run) -> list[Past]:
    return past_runs(out, {shape(run.raw) for run in runs})


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `grpolab plan … out=…`; (exit code, the file's content)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, dict[str, Any]]:
        path = tmp_path / "made" / "plan.json"
        code = main(["plan", *SMOKE, *words, f"out={path}"])
        found: dict[str, Any] = json.loads(path.read_text())
        assert list(found) == KEYS
        return code, found

    return run


# -- costs by a real run ---------------------------------------------------------------------------


def test_the_same_run_again_costs_what_it_cost(trained: Path) -> None:
    again = run_of("seed=5")
    found = estimate(again, 128, past_of(trained, again))
    assert found is not None
    last = rows(trained)[-1]
    assert found.past_runs == 1
    assert found.tokens == pytest.approx(last["tokens/generated"])
    assert found.seconds == pytest.approx(last["time/wall"], rel=1e-6)
    files = [p for p in trained.glob("planned/*/**/*") if p.is_file()]
    assert found.bytes == pytest.approx(sum(p.stat().st_size for p in files))


def test_costs_grow_with_steps_updates_and_evaluations(trained: Path) -> None:
    short = run_of()
    past = past_of(trained, short)
    held_out = 128

    def seconds(*overrides: str) -> float:
        found = estimate(run_of(*overrides), held_out, past)
        assert found is not None
        return found.seconds

    base = seconds()
    metrics = rows(trained)
    steps = [m for m in metrics if "time/step" in m]
    updates = sum(m["time/update"] for m in steps)
    looks = [m["time/eval"] for m in metrics if "time/eval" in m]
    assert len(looks) == evaluations(3, 10) == 2
    # four updates a batch for one
    assert seconds("updates_per_batch=4") == pytest.approx(base + 3 * updates)
    # without samples an evaluation is a third of the completions; every step makes four of them
    assert seconds("eval.samples=0") == pytest.approx(base - sum(looks) * 2 / 3)
    assert seconds("eval.every=1") == pytest.approx(base + sum(looks))
    longer = estimate(run_of("steps=30", "eval.every=0"), held_out, past)
    assert longer is not None
    assert longer.seconds == pytest.approx(10 * (base - sum(looks)) + sum(looks))
    assert longer.tokens == pytest.approx(10 * metrics[-1]["tokens/generated"])
    assert longer.bytes is not None
    model = next(trained.glob("planned/*/model/model.safetensors")).stat().st_size
    assert model < longer.bytes < model + 10 * 1024**2


@pytest.mark.parametrize(
    "override",
    ["sampler.group_size=8", "sampler.max_new_tokens=9", "prompts_per_step=3", "task.digits_max=1",
     "hardware.dtype=bfloat16", "model.template=plain"],
)  # fmt: skip
def test_another_shape_says_nothing(override: str, trained: Path) -> None:
    other = run_of(override)
    assert past_of(trained, other) == []
    assert estimate(other, 128, past_of(trained, run_of())) is None


@pytest.mark.parametrize("override", ["clip=cispo", "steps=7", "optimizer.lr=1e-3", "study=other"])
def test_what_is_no_shape_may_differ(override: str, trained: Path) -> None:
    assert estimate(run_of(override), 128, past_of(trained, run_of())) is not None


def test_folders_that_are_no_runs_are_passed_over(tmp_path: Path) -> None:
    for name, text in (("a", "model: [1"), ("b", "7"), ("c", "model: {name: tiny}"), ("d", "")):
        (tmp_path / "study" / name).mkdir(parents=True)
        (tmp_path / "study" / name / "config.yaml").write_text(text)
    assert past_of(tmp_path, run_of()) == []
    assert past_of(tmp_path / "nowhere", run_of()) == []


@pytest.mark.parametrize(
    ("steps", "every", "number"),
    [(3, 10, 2), (10, 10, 2), (20, 10, 3), (25, 10, 4), (5, 1, 6), (5, 0, 2), (1, 1, 2)],
)
def test_evaluations_of_a_run(steps: int, every: int, number: int) -> None:
    assert evaluations(steps, every) == number


def test_completions_of_an_evaluation() -> None:
    assert completions(4, 2, 128) == 12
    assert completions(None, 0, 128) == 128
    assert completions(500, 1, 128) == 256


def test_the_most_tokens_of_a_run() -> None:
    assert most_tokens(run_of()) == 3 * 2 * 4 * 8
    assert most_tokens(run_of("selection=dynamic", "selection.max_rounds=3")) == 3 * 2 * 4 * 8 * 3


# -- the plan --------------------------------------------------------------------------------------


def test_arms_seeds_and_what_they_can_show(planned: Any) -> None:
    code, found = planned("-m", "clip=ppo,cispo", "kl=none,k3", "seed=0,1,2,3,4", "study=mine")
    assert code == 0
    assert (found["study"], found["output_dir"]) == ("mine", "outputs")
    assert found["factors"] == {"clip": ["ppo", "cispo"], "kl": ["none", "k3"]}
    assert found["baseline"] == {"clip": "ppo", "kl": "none"}
    assert found["seeds"] == [0, 1, 2, 3, 4]
    assert found["design"]["name"] == "product"
    assert [a["arm"] for a in found["arms"]] == [
        "baseline",
        "kl=k3",
        "clip=cispo",
        "clip=cispo,kl=k3",
    ]
    assert [a["baseline"] for a in found["arms"]] == [True, False, False, False]
    assert found["arms"][3]["changes"] == {
        "clip": {"from": "ppo", "to": "cispo"}, "kl": {"from": "none", "to": "k3"},
    }  # fmt: skip
    assert all(a["seeds"] == [0, 1, 2, 3, 4] for a in found["arms"])
    assert all(a["states"] == {"pending": 5} for a in found["arms"])
    shown = found["seeds_can_show"]
    assert (shown["n"], shown["comparisons"]) == (5, 3)
    assert (shown["minimum_p"], shown["minimum_p_holm"]) == (0.0625, 0.1875)
    assert (shown["n_for_power"], shown["effect"], shown["correlation"]) == (10, 1.0, 0.5)
    assert len(found["jobs"]) == 20
    assert found["done"] == []
    assert any("no clip binds" in note for note in found["notes"])


def test_effect_and_correlation_are_asked_for(planned: Any) -> None:
    _, found = planned("clip=ppo,cispo", "seed=range(6)", "plan.effect=0.5", "plan.correlation=0.8")
    shown = found["seeds_can_show"]
    expected = seeds(6, 1, 0.5, 0.8)
    assert {k: shown[k] for k in vars(expected)} == vars(expected)


def test_a_plan_without_past_runs(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = planned("clip=ppo,cispo", "seed=0,1")
    assert all(job["estimate"] is None for job in found["jobs"])
    cost = found["cost"]
    assert (cost["jobs"], cost["jobs_with_estimate"], cost["seconds"]) == (4, 0, None)
    assert cost["tokens_at_most"] == 4 * 3 * 2 * 4 * 8
    assert "unknown: no past run of this shape" in " ".join(capsys.readouterr().out.split())


def test_a_plan_knows_what_is_done_and_what_the_rest_costs(planned: Any, trained: Path) -> None:
    place = (f"output_dir={trained}", "study=planned")
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    _, found = planned("clip=ppo,cispo", "seed=0,1", *place, "hydra.launcher.workers=2")
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before
    (done,) = [p.parent.name for p in trained.glob("planned/*/STATUS")]
    assert found["done"] == [done]
    states = {(j["arm"], j["seed"]): j["state"] for j in found["jobs"]}
    assert states.pop(("baseline", 0)) == "done"
    assert set(states.values()) == {"pending"}
    assert found["arms"][0]["states"] == {"done": 1, "pending": 1}
    cost = found["cost"]
    assert (cost["jobs"], cost["jobs_with_estimate"], cost["past_runs"]) == (3, 3, 1)
    assert cost["seconds"] == pytest.approx(3 * rows(trained)[-1]["time/wall"], rel=1e-6)
    assert cost["tokens"] == pytest.approx(3 * rows(trained)[-1]["tokens/generated"])
    assert (cost["workers"], cost["wall_seconds"]) == (2, pytest.approx(cost["seconds"] / 2))
    _, other = planned("clip=ppo,cispo", "seed=0", f"output_dir={trained}", "study=another")
    assert other["done"] == []
    assert other["cost"]["jobs_with_estimate"] == 2


def test_a_single_run_has_a_plan(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = planned("clip=cispo")
    assert code == 0
    assert [a["arm"] for a in found["arms"]] == ["baseline"]
    assert found["seeds_can_show"] is None
    assert "One arm: nothing is compared." in capsys.readouterr().out


def test_a_design_and_its_aliases(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = planned(
        "clip=ppo,cispo", "kl=none,k3", "advantage=group_zscore,rloo", "seed=0,1",
        "design=fractional_factorial", "design.resolution=3",
    )  # fmt: skip
    assert code == 0
    assert len(found["jobs"]) == 8
    assert found["design"]["settings"] == {"resolution": 3}
    assert "I = clip·kl·advantage" in " ".join(found["design"]["about"])
    assert "clip = kl·advantage" in capsys.readouterr().out


def test_arms_that_are_one_configuration(planned: Any) -> None:
    _, found = planned("optimizer.lr=1e-3,0.001,2e-3", "seed=0,1")
    assert [(j["arm"], j["seed"]) for j in found["jobs"]] == [
        ("baseline", 0), ("baseline", 1), ("optimizer.lr=0.002", 0), ("optimizer.lr=0.002", 1),
    ]  # fmt: skip
    template = "{a} and {b} make "
    _, found = planned(f"task.template='{template}',\"{template}\"", "kl=none,k3")
    assert len(found["jobs"]) == 4
    assert found["cost"]["jobs"] == 2
    arm = f'task.template="{template}"'
    assert [n.partition(": the same")[0] for n in found["notes"]] == [
        f"baseline and {arm}", f"kl=k3 and kl=k3,{arm}",
    ]  # fmt: skip


def test_every_refused_job_is_said(
    planned: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, found = planned("clip.low=0.2,-1", "kl=none,k3", "reference=frozen,none")
    assert code == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == len(found["refused"]) == 5
    assert all(line.startswith("grpolab: ") for line in lines)
    assert sum(line.startswith("grpolab: clip.low: -1.0 is out of bounds") for line in lines) == 4
    assert "(job clip.low=0.2 kl=k3 reference=none)" in lines[0]
    assert found["refused"][0]["error"].startswith("reference: none given with kl=k3")
    assert found["factors"]["clip.low"] == ["0.2", "-1"]
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_jobs_that_do_not_even_compose_are_listed_too(planned: Any) -> None:
    code, found = planned("clip=ppo,cisop,gspo", "steps=3,many")
    assert code == 2
    errors = [r["error"].partition(":")[0] for r in found["refused"]]
    assert sorted(errors) == ["clip", "clip", "steps", "steps"]


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["plan.efect=2"], "plan.efect: unknown key"),
        (["plan.effect=big"], "plan.effect: 'big' given; allowed: a number above 0."),
        (["plan.effect=0"], "plan.effect: 0 given"),
        (["plan.effect=nan"], "plan.effect: 'nan' given"),
        (["plan.correlation=1"], "plan.correlation: 1 given"),
        (["out=plan.txt"], "out: 'plan.txt' given"),
        (["--cfg", "job"], "--cfg: unknown flag"),
        (["clip=ppo,cispo", "design=zip", "kl=none,k1,k3"], "design: zip given with"),
        (["clip=ppo,cispo", "+tracking.baseline.clip=cisop"], "tracking.baseline.clip: 'cisop'"),
        (["hydra.launcher.wokers=2", "seed=0,1"], "hydra.launcher.wokers"),
        (["hydra.launcher.gpus=[99]", "seed=0,1"], "hydra.launcher.gpus: 99 given"),
        (["stepps=2"], "stepps:"),
    ],
)
def test_a_command_that_makes_no_plan(
    words: list[str], start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    own = [] if words[0].startswith("out=") else ["out=made.json"]
    assert main(["plan", *SMOKE, *words, *own]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"grpolab: {start}")
    assert not list(tmp_path.iterdir())


# -- words -----------------------------------------------------------------------------------------


def test_seeds_in_words() -> None:
    flip, power, need = sentences(seeds(5, 1, 1.0, 0.5))
    assert flip == (
        "5 paired seeds can never reach p < 0.05 by the exact sign-flip test: its smallest p is "
        "0.0625; that needs 6."
    )
    assert "a power of 40%." in power
    assert need == "A power of 80% needs 10 seeds."
    flip, power, need = sentences(seeds(9, 10, 1.0, 0.5))
    assert flip == (
        "9 paired seeds can reach p < 0.05 by the exact sign-flip test: its smallest p is 0.00391, "
        "0.0391 after Holm over 10 comparisons."
    )
    assert need.startswith("A power of 80% needs 10 seeds, after Holm ")
    assert sentences(seeds(1, 1, 1.0, 0.5))[0].startswith("1 paired seed can never")
    assert sentences(seeds(1, 1, 1e-4, 0.5))[2] == "A power of 80% needs more than 10,000 seeds."


def test_numbers_as_people_say_them() -> None:
    assert [size(b) for b in (None, 3, 2048, 5 * 1024**2, 3 * 1024**3)] == [
        "", "3 B", "2 KiB", "5 MiB", "3.0 GiB",
    ]  # fmt: skip
    assert (clock(None), clock(187.0)) == ("", "3:07")
    assert (count(1, "job"), count(2, "job")) == ("1 job", "2 jobs")
