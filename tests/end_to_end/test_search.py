"""A hyperparameter search as a person runs it: real runs, a real study, kills."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from grpolab.cli import main
from grpolab.sweep.compose import expand, parse_command
from grpolab.sweep.search.prepare import prepare
from grpolab.sweep.search.study import Study
from tests.sharing import once

if TYPE_CHECKING:
    from tests.end_to_end import launching, sweeping
    from tests.end_to_end.conftest import Refused
else:
    import launching
    import sweeping

pytest.importorskip("optuna", reason="needs the extra search")

SMALL = (
    "model=tiny", "prompts_per_step=1", "eval.prompts=1", "eval.samples=0", "hardware.threads=1",
    "hardware.device=cpu", "sampler.group_size=2", "sampler.max_new_tokens=4", "study=tuned",
    "search=optuna", "tracking.log_samples=0",
)  # fmt: skip
STEPS, RUNG = 40, 14
PRUNED = (
    *SMALL, f"steps={STEPS}",
    # steps long enough for the driver, which looks five times a second, to see the rung before
    # the run is over
    "prompts_per_step=8", "sampler.group_size=8", "sampler.max_new_tokens=16",
    "eval.every=0", "seed=0,1", "search.trials=4", "search.seeds=[1000]",
    "search.space={optimizer.lr:{low:1e-6,high:1e-3,log:true},clip:[ppo,cispo]}",
    # the objective is the learning rate itself, so that every decision is known beforehand; all
    # trials share one bracket, whose one rung within the run lies at step 14
    "search.objective=[{metric:optim/lr,direction:minimize}]", f"search.min_steps={RUNG}",
    "search.seed=7", "hydra.launcher.workers=1",
)  # fmt: skip


@dataclass(frozen=True)
class Searched:
    out: Path
    done: CompletedProcess[str]

    @property
    def folder(self) -> Path:
        """The search's own folder."""
        (found,) = (self.out / "tuned").glob("sweeps/*/search.json")
        return found.parent

    @property
    def trials(self) -> list[dict[str, Any]]:
        """search.json's, without where files lie."""
        found: list[dict[str, Any]] = json.loads((self.folder / "search.json").read_text())["all"]
        return [{k: v for k, v in trial.items() if k != "file"} for trial in found]

    def run(self, trial: dict[str, Any], seed: int = 0) -> Path:
        """The folder of a trial's run."""
        return self.out / "tuned" / str(trial["jobs"][seed])


def search(out: Path, *overrides: str) -> Searched:
    done = launching.grpolab("train", *overrides, f"output_dir={out}", cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    return Searched(out, done)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return once(tmp_path_factory, "search-undisturbed", lambda out: search(out, *PRUNED))


def rate(trial: dict[str, Any]) -> float:
    return float(trial["overrides"]["optimizer.lr"])


def test_a_trial_is_pruned_where_it_falls_behind(undisturbed: Searched) -> None:
    trials = undisturbed.trials
    rates = [rate(t) for t in trials]
    behind = [rate(t) > min(rates[: i + 1]) for i, t in enumerate(trials)]
    assert [t["state"] for t in trials] == ["pruned" if b else "complete" for b in behind]
    assert behind == [False, True, False, True]
    for trial, ended in zip(trials, behind, strict=True):
        status = launching.status(undisturbed.run(trial))
        last = launching.metrics(undisturbed.run(trial))[-1][0]
        if ended:
            assert status["state"] == "pruned"
            assert (
                f"pruned by the search at step {RUNG} (trial {trial['trial']}" in status["reason"]
            )
            assert RUNG <= last < STEPS
            assert not (undisturbed.run(trial) / "checkpoint").exists()
        else:
            assert (status["state"], last) == ("done", STEPS)
            assert trial["values"] == [pytest.approx(rate(trial))]


def test_mlflow_has_a_parent_and_says_what_was_pruned(undisturbed: Searched) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{undisturbed.out / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tuned"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if "grpolab.job_id" not in r.data.tags]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["grpolab.tuning_seeds"] == "1000"
    children = {r.data.tags["grpolab.job_id"]: r for r in runs if r is not parent}
    assert set(children) == {t["jobs"][0] for t in undisturbed.trials}
    for trial in undisturbed.trials:
        child = children[trial["jobs"][0]]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        ended = trial["state"] == "pruned"
        assert child.info.status == ("KILLED" if ended else "FINISHED")
        assert ("grpolab.pruned" in child.data.tags) == ended
        assert child.data.params["optimizer.lr"] == trial["overrides"]["optimizer.lr"]


def test_its_analysis_lies_at_its_mlflow_run(undisturbed: Searched) -> None:
    from mlflow import MlflowClient

    name = undisturbed.folder.name
    client = MlflowClient(tracking_uri=f"sqlite:///{undisturbed.out / 'mlflow.db'}")
    run_id = json.loads(undisturbed.folder.with_suffix(".json").read_text())["parent_run_id"]
    assert client.get_run(run_id).info.status == "FINISHED"
    logged = {
        entry.path.removeprefix("analysis/")
        for below in ("analysis", "analysis/figures", "analysis/tables", "analysis/experiment")
        for entry in client.list_artifacts(run_id, below)
        if not entry.is_dir
    }
    figures = {f"figures/search_history.{kind}" for kind in ("caption.txt", "pdf", "png", "svg")}
    tables = {"tables/trials.csv", "tables/trials.md"}
    assert logged == figures | tables | {"search.json", "experiment/best.yaml"}
    assert "MLflow has not got" not in undisturbed.done.stderr
    rows = pd.read_csv(undisturbed.out / "analysis" / name / "tables" / "trials.csv")
    trials = undisturbed.trials
    assert list(rows["state"]) == [trial["state"] for trial in trials]
    assert list(rows["optimizer.lr"]) == [pytest.approx(rate(trial)) for trial in trials]
    assert list(rows.loc[rows["best"], "trial"]) == [min(trials, key=rate)["trial"]]


def test_status_and_resume_know_a_search(
    undisturbed: Searched, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"output_dir={undisturbed.out}"
    ours = f"sweep={undisturbed.folder.name}"
    assert main(["status", where, ours, "json=true"]) == 0
    (sweep,) = json.loads(capsys.readouterr().out)["sweeps"]
    states = [t["state"] for t in undisturbed.trials]
    assert sweep["counts"]["pruned"] == states.count("pruned")
    assert sweep["counts"]["done"] == states.count("complete")
    assert sweep["counts"]["pending"] == 0
    assert sweep["search"]["tuning_seeds"] == [1000]
    assert main(["status", where, ours, "watch=false"]) == 0
    assert "4 trials: " in capsys.readouterr().out
    assert main(["resume", where, ours]) == 0
    assert "Nothing is left to do" in capsys.readouterr().out


def test_the_analysis_keeps_pruned_runs_as_what_they_are(undisturbed: Searched) -> None:
    from grpolab.results.load import load

    for uri in (None, f"sqlite:///{undisturbed.out / 'mlflow.db'}"):
        found = load(output_dir=undisturbed.out, sweep=undisturbed.folder.name, uri=uri).runs
        states = dict(zip(found["job_id"], found["status"], strict=True))
        assert states == {
            t["jobs"][0]: "pruned" if t["state"] == "pruned" else "done" for t in undisturbed.trials
        }


def test_a_killed_search_ends_as_one_that_nobody_killed(
    undisturbed: Searched, tmp_path: Path
) -> None:
    """The driver is killed in its second trial, which is to be pruned."""
    words = ["train", *PRUNED, "tracking=jsonl", f"output_dir={tmp_path}"]

    def logged() -> int:
        return sum(p.read_bytes().count(b"\n") for p in tmp_path.glob("tuned/*/metrics.jsonl"))

    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: logged() >= STEPS + 5, process)
    process.kill()
    process.communicate()
    again = search(tmp_path, *PRUNED, "tracking=jsonl")
    assert again.trials == undisturbed.trials
    for trial in again.trials:
        if trial["state"] == "complete":
            ours, theirs = again.run(trial), undisturbed.run(trial)
            assert launching.metrics(ours) == launching.metrics(theirs)
            assert launching.weights(ours) == launching.weights(theirs)
        else:
            assert launching.status(again.run(trial))["state"] == "pruned"


def test_the_best_file_runs_and_refuses_the_seeds_it_was_tuned_on(undisturbed: Searched) -> None:
    best = min(undisturbed.trials, key=rate)
    text = (undisturbed.folder / "conf" / "experiment" / "best.yaml").read_text()
    assert f"# Trial {best['trial']} of 4" in text
    assert "Tuned on seeds 1000" in text
    words = (
        "train", "--config-dir", str(undisturbed.folder / "conf"), "experiment=best", "steps=1",
        f"output_dir={undisturbed.out}", "tracking=jsonl",
    )  # fmt: skip
    assert " ".join(words[1:4]) in undisturbed.done.stdout
    done = launching.grpolab(*words, cwd=undisturbed.out)
    assert done.returncode == 0, done.stderr
    assert "tuned on seeds 1000" in done.stdout
    folders = launching.run_folders(undisturbed.out / "tuned_best")
    configs: list[Any] = [OmegaConf.load(f / "config.yaml") for f in folders]
    assert sorted(c.seed for c in configs) == [0, 1]
    assert {c.optimizer.lr for c in configs} == {rate(best)}
    assert {c.clip.name for c in configs} == {best["overrides"]["clip"]}
    refused = launching.called(*words, "seed=1000", cwd=undisturbed.out)
    assert refused.returncode == 2
    assert "seed: 1000 given, on which this configuration was tuned" in refused.stderr


def test_two_workers_double_nothing(tmp_path: Path) -> None:
    """Six trials of two settings on two seeds are four runs, whoever asks for them when; more
    trials go on with the same study."""
    space = "search.space={clip:[ppo,cispo]}"
    goals = "search.objective=[reward/mean,{metric:optim/lr,direction:minimize}]"
    words = (
        *SMALL, "steps=2", space, goals, "search.pruner=none", "search.sampler=random",
        "search.seeds=[5,6]", "hydra.launcher.workers=2", "tracking=jsonl",
    )  # fmt: skip
    search(tmp_path, *words, "search.trials=4")
    found = search(tmp_path, *words, "search.trials=6")
    trials = found.trials
    assert [t["trial"] for t in trials] == list(range(6))
    assert {t["state"] for t in trials} == {"complete"}
    assert {t["overrides"]["clip"] for t in trials} == {"ppo", "cispo"}
    folders = launching.run_folders(tmp_path / "tuned")
    assert len(folders) == 4
    for folder in folders:
        assert [step for step, _ in launching.metrics(folder)] == [0, 1, 2]
    by_clip = {t["overrides"]["clip"]: (t["jobs"], t["values"]) for t in trials}
    assert all(by_clip[t["overrides"]["clip"]] == (t["jobs"], t["values"]) for t in trials)
    front = sorted((found.folder / "conf" / "experiment").glob("front_*.yaml"))
    assert front


MANY, LONG = 4, 150
KILLED = (
    *SMALL, f"steps={LONG}", f"search.trials={MANY}", "search.seeds=[5]", "search.seed=3",
    "search.space={optimizer.lr:{low:1e-6,high:1e-3,log:true}}", "search.sampler=random",
    "search.pruner=none", "search.objective=[reward/mean]", "eval.every=0", "checkpoint.every=5",
    "hydra.launcher.workers=2", "tracking=jsonl",
)  # fmt: skip


def test_no_trial_is_lost_or_doubled_by_kills(tmp_path: Path) -> None:
    """Two workers; one of them is killed, then the search gets a Ctrl-C, then its driver is
    killed. The study at the end has the draws of one that nobody touched."""
    words = ["train", *KILLED, f"output_dir={tmp_path}"]

    def states() -> list[str]:
        folders = launching.run_folders(tmp_path / "tuned")
        return [launching.status(f)["state"] for f in folders]

    def logged() -> int:
        return sum(p.read_bytes().count(b"\n") for p in tmp_path.glob("tuned/*/metrics.jsonl"))

    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: states().count("running") == 2 and logged() > 20, process)
    sweeping.workers(process)[0].kill()
    sweeping.wait_until(lambda: "done" in states(), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 130, out + err
    assert "running" not in states()
    assert 0 < states().count("done") < MANY

    process = launching.start(*words, cwd=tmp_path)
    before = states().count("done")
    sweeping.wait_until(lambda: states().count("done") > before, process)
    process.kill()
    process.communicate()

    found = search(tmp_path, *KILLED)
    assert len(list((tmp_path / "tuned" / "sweeps").glob("*.json"))) == 1  # one search, one study
    assert [t["trial"] for t in found.trials] == list(range(MANY))
    assert {t["state"] for t in found.trials} == {"complete"}
    assert [t["overrides"] for t in found.trials] == draws(KILLED, tmp_path / "untouched.db")
    assert len({rate(t) for t in found.trials}) == MANY
    folders = launching.run_folders(tmp_path / "tuned")
    assert {f.name for f in folders} == {key for t in found.trials for key in t["jobs"]}
    for trial in found.trials:
        assert launching.status(found.run(trial))["state"] == "done"
        steps = [step for step, _ in launching.metrics(found.run(trial))]
        assert steps == list(range(LONG + 1))


def draws(words: tuple[str, ...], path: Path) -> list[dict[str, str]]:
    """The settings of every trial of a study that runs nothing."""
    command = parse_command(words)
    found = prepare(command, expand(command))
    study = Study(path, found.key, found.settings, found.space, steps=LONG, first=0)
    return [study.overrides(study.draw()) for _ in range(MANY)]


def test_sync_makes_a_search_anew_in_another_store(undisturbed: Searched, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    shutil.copy(undisturbed.out / "mlflow.db", tmp_path / "other.db")  # spares a new schema
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "tuned"]
    for run in client.search_runs([experiment.experiment_id]):
        client.delete_run(run.info.run_id)
    manifest = undisturbed.folder.with_suffix(".json")
    ours = json.loads(manifest.read_text())["parent_run_id"]
    assert main(["sync", f"output_dir={undisturbed.out}", "study=tuned", f"uri={uri}"]) == 0
    assert json.loads(manifest.read_text())["parent_run_id"] == ours  # of its own store
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if "grpolab.job_id" not in r.data.tags]
    best = min(undisturbed.trials, key=rate)
    assert parent.info.run_name == f"search {undisturbed.folder.name}"
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["grpolab.search"] == "optuna"
    assert parent.data.tags["grpolab.tuning_seeds"] == "1000"
    assert parent.data.tags["grpolab.best_trial"] == str(best["trial"])
    assert parent.data.metrics["optim/lr"] == pytest.approx(rate(best))
    children = {r.data.tags["grpolab.job_id"]: r.data.tags for r in runs if r is not parent}
    for trial in undisturbed.trials:
        tags = children[trial["jobs"][0]]
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert ("grpolab.pruned" in tags) == (trial["state"] == "pruned")


GIVEN = ("train", *SMALL, "steps=4")
RATE = "search.space={optimizer.lr:{low:1e-5,high:1e-2,log:true}}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "search.space: empty"),
        (("search.space={optimizer.lrr:[1e-4]}",), "did you mean lr?"),
        (("search.space={clip:[ppo,cipso]}",), "did you mean cispo?"),
        (("search.space={optimizer.lr:{low:-1.0,high:1.0}}",), "optimizer.lr"),
        (("search.space={optimizer.lr:{low:1e-2,high:1e-5}}",), "low below high"),
        ((RATE, "search.objective=[eval/acuracy]"), "did you mean eval/accuracy?"),
        ((RATE, "search.objective=[reward/mean,eval/accuracy]"), "search.pruner"),
        ((RATE, "search.objective=[eval/pass@4]"), "eval.samples=0"),
        ((RATE, "-m", "clip=ppo,cispo"), "clip: several values given with search=optuna"),
        ((RATE, "clip=ppo,cispo"), "its place in search.space"),
        ((RATE, "seed=7", "search.seeds=[7,8]"), "search.seeds: 7 given"),
        ((RATE, "optimizer.lr=1e-3"), "searched"),
        ((RATE, "retry=failed"), "retry: failed given"),
        ((RATE, "search.seeds=[1000]"), "search.pruner: hyperband given"),
        ((RATE, "search.trails=3"), "did you mean trials?"),
        ((RATE, "eval.every=1", "hydra.launcher.workers=0"), "hydra.launcher.workers: 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    refused: Refused, words: tuple[str, ...], said: str
) -> None:
    assert said in refused(*GIVEN, *words)


def test_without_optuna_it_is_refused(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'grpolab[search]'" in refused(*GIVEN, RATE)


def test_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["plan", *SMALL, "steps=4", RATE, "eval.every=1", "search.trials=7", "seed=0,1"]
    assert main([*words, "out=plan.json"]) == 0
    assert "7 trials × 2 tuning seeds (1000, 1001)" in capsys.readouterr().out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["runs_at_most"] == 14
    assert found["tokens_at_most"] == 14 * 4 * 1 * 2 * 4  # runs, steps, prompts, group, tokens
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
